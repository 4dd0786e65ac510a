"""Credential -> grant: who pays, by which meter. Kept by the credential's bytes, dropped when the catalogue changes."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from lava_proxy import tasks
from lava_proxy.domain.catalog import Grant
from lava_proxy.domain.errors import BadToken, CallerError, Forbidden, LavaError, StoreError
from lava_proxy.domain.limits import KeyRules, Scope
from lava_proxy.gateway.routes import MODEL_ROUTES
from lava_proxy.providers.base import Call, Provider
from lava_proxy.settings import Cache
from lava_proxy.stores.catalog_store import CatalogStore, Merchant
from lava_proxy.wire.forward_token import Credential, parse_credential

_LOOK_UP_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """A grant, the provider keys its merchant has stored, and for a spend key what it lets its holder call."""

    grant: Grant
    stored_keys: dict[str, str] = field(repr=False)
    rules: KeyRules | None = None


class Grants:
    """Resolves credentials. A known one costs a dict lookup; an unknown one a few queries, shared by those who wait for it."""

    def __init__(self, catalog: CatalogStore, cache: Cache, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._catalog = catalog
        self._max = cache.grants_max
        self._unknown_s = cache.unknown_s
        self._known: OrderedDict[bytes, Payer] = OrderedDict()
        self._of_connection: dict[str, set[bytes]] = {}  # which of the known are a connection's
        # Facts, not the exception: raised again and again it would gather the frames, and so the bodies, of all its callers. And by
        # the credential's digest: what strangers send may be as long as a head.
        self._refused: dict[bytes, tuple[float, type[CallerError], str, str, int]] = {}
        self._asking: dict[bytes, asyncio.Future[Payer]] = {}
        self._generation = 0
        self._forgotten = 0  # how often anything was: an answer that was on its way meanwhile is not kept
        self._loop = asyncio.get_running_loop()

    @property
    def generation(self) -> int:
        """Changes whenever what is remembered of the catalogue is dropped."""
        return self._generation

    def known(self, credential: bytes) -> Payer | None:
        return self._known.get(credential)

    def forget(self) -> None:
        """The catalogue has changed (or its messages may have been missed): ask again."""
        self._generation += 1
        self._forgotten += 1
        self._known.clear()
        self._of_connection.clear()
        self._refused.clear()

    def forget_connection(self, connection_id: str) -> None:
        """A connection's subscription has changed: ask for its grants again."""
        self._forgotten += 1
        for credential in self._of_connection.pop(connection_id, ()):
            self._known.pop(credential, None)

    def check(self, rules: KeyRules, raw_target: bytes, provider: Provider, call: Call) -> None:
        """Raises CallerError (400, 403) where a spend key does not let its holder make this call now."""
        rules.check_time(self._clock())
        shape = MODEL_ROUTES.get(raw_target.partition(b"?")[0].decode("latin-1"))
        if shape is not None and shape != rules.request_shape:
            right = "/v1/messages" if rules.request_shape == "anthropic" else "/v1/chat/completions"
            raise CallerError(
                f"This spend key speaks the API of {right}; its request_shape is {rules.request_shape}.",
                code="request_shape_mismatch",
            )
        rules.check_call(call.model, call.billable, provider.name, *provider.aliases)

    def has_expired(self, rules: KeyRules) -> Forbidden | None:
        """Why a spend key that was let in is not any more by now; None while it is."""
        try:
            rules.check_time(self._clock())
        except Forbidden as refused:
            return refused
        return None

    async def resolve(self, credential: bytes) -> Payer:
        """The payer. Raises BadToken (401), Forbidden (403) or StoreError (503, Postgres away and not known yet)."""
        payer = self._known.get(credential)
        if payer is not None:
            return payer
        digest = _digest(credential)
        refused = self._refused.get(digest)
        if refused is not None:
            if refused[0] > self._loop.time():
                _, kind, message, code, status = refused
                raise kind(message, code=code, status=status)
            del self._refused[digest]
        asking = self._asking.get(credential)
        if asking is None:
            asking = self._asking[credential] = self._loop.create_future()
            await self._ask(credential, asking)
        return await asyncio.shield(asking)

    async def _ask(self, credential: bytes, answer: asyncio.Future[Payer]) -> None:
        forgotten = self._forgotten
        try:
            payer = await self._bounded(parse_credential(credential))
        except BaseException as error:
            if isinstance(error, CallerError) and forgotten == self._forgotten:
                if len(self._refused) >= self._max:
                    self._refused.clear()
                self._refused[_digest(credential)] = (
                    self._loop.time() + self._unknown_s, type(error), error.message, error.code, error.status
                )  # fmt: skip
            answer.set_exception(error)
            answer.exception()  # seen, also when nobody else waits
            return
        finally:
            self._asking.pop(credential, None)
        if forgotten == self._forgotten:
            while len(self._known) >= self._max:
                self._drop(*self._known.popitem(last=False))
            self._known[credential] = payer
            if payer.grant.connection_id is not None:
                self._of_connection.setdefault(payer.grant.connection_id, set()).add(credential)
        answer.set_result(payer)

    def _drop(self, credential: bytes, payer: Payer) -> None:
        """What stands beside a known one goes with it."""
        of_connection = self._of_connection.get(payer.grant.connection_id or "")
        if of_connection is not None:
            of_connection.discard(credential)
            if not of_connection:
                del self._of_connection[payer.grant.connection_id or ""]

    async def _bounded(self, credential: Credential) -> Payer:
        """The look-up, given up after a while: a frozen Postgres answers neither a query nor its cancellation."""
        task = tasks.start("grant-look-up", self._answered(credential))
        await asyncio.wait({task}, timeout=_LOOK_UP_S)
        if not task.done():
            task.cancel()  # not awaited: a frozen server does not answer that either
        if not task.done() or task.cancelled():  # a driver cancels itself when its connection dies
            raise StoreError("The catalogue does not answer; try again shortly.", code="database_unavailable")
        found = task.result()
        if isinstance(found, LavaError):
            raise found
        return found

    async def _answered(self, credential: Credential) -> Payer | LavaError:
        """A refusal is returned: one that a task raises is logged as a fault of ours."""
        try:
            return await self._look_up(credential)
        except LavaError as refusal:
            return refusal.with_traceback(None)

    async def _look_up(self, credential: Credential) -> Payer:
        if credential.kind == "spend_key":
            return await self._of_spend_key(credential.secret_key)
        merchant = await self._catalog.merchant_by_key(credential.secret_key)
        if merchant is None:
            raise BadToken("The secret key is unknown or has been revoked.", code="invalid_secret_key")
        grant = await self._grant(credential, merchant)
        return Payer(grant=grant, stored_keys=await self._catalog.provider_keys(merchant.merchant_id))

    async def _of_spend_key(self, secret: str) -> Payer:
        """Draws on the merchant's own wallet at provider cost. Expiry is looked at on every call, not here."""
        key = await self._catalog.spend_key_by_secret(secret)
        if key is None:
            raise BadToken("The spend key is unknown, or was rotated or deleted.", code="invalid_spend_key")
        if key.status != "active":
            raise Forbidden("This spend key is paused.", code="spend_key_paused")
        scope = Scope(scope_id=key.spend_key_id, limits=key.limits)
        grant = Grant(
            merchant_id=key.merchant_id, wallet_id=key.wallet_id, scopes=(scope,), spend_key_id=key.spend_key_id,
            clamp_floor=key.clamp_floor,
        )  # fmt: skip
        return Payer(grant=grant, stored_keys=await self._catalog.provider_keys(key.merchant_id), rules=key.rules)

    async def _grant(self, credential: Credential, merchant: Merchant) -> Grant:
        grant = Grant(
            merchant_id=merchant.merchant_id, wallet_id=merchant.wallet_id, provider_key=credential.provider_key,
            clamp_floor=merchant.clamp_floor,
        )  # fmt: skip
        if credential.meter_ref is not None:
            meter = await self._catalog.meter(merchant.merchant_id, credential.meter_ref)
            if meter is None and await self._catalog.has_archived_meter(merchant.merchant_id, credential.meter_ref):
                raise Forbidden("The token names a meter that was archived; use a token of another meter.", code="meter_archived")
            if meter is None:
                raise Forbidden("The token names a meter that this merchant does not have.", code="meter_not_found")
            grant = replace(grant, meter=meter.version)
        if credential.customer_ref is None:
            # A meter alone only tracks: the merchant's own wallet pays provider cost.
            return replace(grant, meter=None) if grant.meter is not None else grant
        connection = await self._catalog.connection(merchant.merchant_id, credential.customer_ref)
        if connection is None:
            raise Forbidden("The token names a customer that this merchant does not have.", code="connection_not_found")
        if connection.status == "disabled":
            raise Forbidden("This customer has been disabled by the merchant.", code="connection_disabled")
        terms = await self._catalog.billing_terms(connection.connection_id, grant.meter.meter_id if grant.meter else None)
        return replace(
            terms.on(grant),
            wallet_id=connection.wallet_id,
            connection_id=connection.connection_id,
            disable_billing=credential.disable_billing,
            scopes=() if connection.limits is None else (Scope(scope_id=connection.connection_id, limits=connection.limits),),
        )


def _digest(credential: bytes) -> bytes:
    return hashlib.blake2b(credential, digest_size=16).digest()
