"""/v1/spend_keys (also /v1/manage/spend_keys): keys that draw on the merchant's own wallet within rules and limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast, get_args

from aiohttp import web

from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.envelope import json_response, read_object
from lava_proxy.api.formats import listing, timestamp
from lava_proxy.api.queries import Query, path_reference
from lava_proxy.domain.errors import CallerError, NotFound
from lava_proxy.domain.limits import KeyRules, Limits, RequestShape, cycle_id, limits_document, parse_limits
from lava_proxy.domain.money import format_usd
from lava_proxy.stores.catalog_store import CatalogStore, SpendKey
from lava_proxy.stores.ids import at_ms
from lava_proxy.stores.outbox import Outbox

NAME_CHARS_MAX = 255
ALLOWED_MAX = 1000
_STATUSES = ("active", "paused")


class SpendKeys:
    """The spend key resource."""

    def __init__(self, catalog: CatalogStore, outbox: Outbox, clock: Callable[[], datetime]) -> None:
        self._catalog = catalog
        self._outbox = outbox
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        found: list[web.RouteDef] = []
        for base in ("/v1/spend_keys", "/v1/manage/spend_keys"):
            found += [
                web.get(base, self.many),
                web.post(base, self.create),
                web.get(base + "/{spend_key}", self.one),
                web.put(base + "/{spend_key}", self.update),
                web.delete(base + "/{spend_key}", self.delete),
                web.post(base + "/{spend_key}/rotate", self.rotate),
            ]
        return found

    async def many(self, request: web.Request) -> web.Response:
        """Newest first."""
        query = Query(request.query)
        page = query.page("spk")
        query.check()
        keys = await self._catalog.spend_keys(merchant_of(request).merchant_id, before=page.before, limit=page.limit + 1)
        counters = await self._outbox.scope_counters([(key.wallet_id, key.spend_key_id) for key in keys])
        now = self._clock()
        items = [spend_key_object(key, counted, now) for key, counted in zip(keys, counters, strict=True)]
        return json_response(listing(items, page.limit, "spend_key_id"))

    async def one(self, request: web.Request) -> web.Response:
        return await self._answer(await self._found(request))

    async def create(self, request: web.Request) -> web.Response:
        """201 with `key`, which is shown only here and after a rotation."""
        body = await read_object(request)
        if "name" not in body:
            raise _bad(f"name is required: 1 to {NAME_CHARS_MAX} characters")
        made = await self._catalog.create_spend_key(
            merchant_of(request).merchant_id,
            name=_name(body["name"]),
            status=_one_of(body, "status", _STATUSES, "active"),
            rules=parse_rules(body, KeyRules()),
            limits=parse_limits(body),
        )
        return await self._answer(made, status=201)

    async def update(self, request: web.Request) -> web.Response:
        """Sent fields replace what was stored, null lifts a limit; fields that are not sent stay."""
        body, key = await read_object(request), await self._found(request)
        changed = replace(
            key,
            name=_name(body["name"]) if "name" in body else key.name,
            status=_one_of(body, "status", _STATUSES, key.status),
            rules=parse_rules(body, key.rules),
            limits=_merged(key.limits, body),
        )
        await self._catalog.update_spend_key(changed)
        return await self._answer(changed)

    async def rotate(self, request: web.Request) -> web.Response:
        """The old secret ends at once; limits and counters stay."""
        await request.read()
        key = await self._catalog.rotate_spend_key(merchant_of(request).merchant_id, path_reference(request, "spend_key"))
        if key is None:
            raise _no_such_key()
        return await self._answer(key)

    async def delete(self, request: web.Request) -> web.Response:
        key = await self._found(request)
        await self._catalog.delete_spend_key(key.merchant_id, key.spend_key_id)
        await self._outbox.forget_scope(key.wallet_id, key.spend_key_id)
        return json_response({"success": True})

    async def _found(self, request: web.Request) -> SpendKey:
        key = await self._catalog.spend_key(merchant_of(request).merchant_id, path_reference(request, "spend_key"))
        if key is None:
            raise _no_such_key()
        return key

    async def _answer(self, key: SpendKey, status: int = 200) -> web.Response:
        [counted] = await self._outbox.scope_counters([(key.wallet_id, key.spend_key_id)])
        shown = spend_key_object(key, counted, self._clock())
        return json_response(shown | ({"key": key.secret} if key.secret is not None else {}), status)


def spend_key_object(key: SpendKey, counted: Mapping[str, str], now: datetime) -> dict[str, Any]:
    """The wire's object. Current counters are those of the limits' cycles at `now`, of the month where there is no limit.

    Spend is what ended calls were charged; a call that runs counts against the limit with the most it can cost, not here.
    """
    rules, limits = key.rules, key.limits
    in_spend_cycle = counted.get("scy") == cycle_id(limits.spend_cycle, now)
    in_request_cycle = counted.get("rcy") == cycle_id(limits.request_cycle, now)
    last_used_ms = int(counted.get("lu", "0"))
    return {
        "spend_key_id": key.spend_key_id,
        "name": key.name,
        "key_preview": key.key_preview,
        "wallet_id": key.wallet_id,
        "status": key.status,
        "request_shape": rules.request_shape,
        "allowed_models": None if rules.allowed_models is None else list(rules.allowed_models),
        "allowed_providers": None if rules.allowed_providers is None else list(rules.allowed_providers),
        **limits_document(limits),
        "expires_at": None if rules.expires_at is None else timestamp(rules.expires_at),
        "current_spend": format_usd(int(counted.get("sp", "0")) if in_spend_cycle else 0),
        "total_spend": format_usd(int(counted.get("ts", "0"))),
        "current_requests": int(counted.get("rc", "0")) if in_request_cycle else 0,
        "total_requests": int(counted.get("tr", "0")),
        "last_used_at": timestamp(at_ms(last_used_ms)) if last_used_ms else None,
        "created_at": timestamp(key.created_at),
    }


def parse_rules(body: Mapping[str, Any], present: KeyRules) -> KeyRules:
    """The rules with the fields that were sent. Raises CallerError (400) naming a field and what is accepted."""
    return KeyRules(
        request_shape=cast(RequestShape, _one_of(body, "request_shape", get_args(RequestShape), present.request_shape)),
        allowed_models=_names(body, "allowed_models", present.allowed_models),
        allowed_providers=_names(body, "allowed_providers", present.allowed_providers),
        expires_at=_moment(body["expires_at"]) if "expires_at" in body else present.expires_at,
    )


def _merged(present: Limits, body: Mapping[str, Any]) -> Limits:
    document = limits_document(present)
    return parse_limits(document | {name: body[name] for name in document if name in body})


def _name(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= NAME_CHARS_MAX or not value.isprintable():
        raise _bad(f"name must be 1 to {NAME_CHARS_MAX} printable characters")
    return value


def _one_of(body: Mapping[str, Any], name: str, accepted: tuple[str, ...], default: str) -> str:
    value = body.get(name, default)
    if value not in accepted:
        raise _bad(f"{name} must be one of {', '.join(accepted)}")
    return str(value)


def _names(body: Mapping[str, Any], name: str, present: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if name not in body:
        return present
    value = body[name]
    if value is None:
        return None
    good = isinstance(value, list) and len(value) <= ALLOWED_MAX
    if not good or not all(isinstance(one, str) and 0 < len(one) <= NAME_CHARS_MAX and one.isprintable() for one in value):
        raise _bad(f"{name} must be null or a list of at most {ALLOWED_MAX} names")
    return tuple(value)


def _moment(value: object) -> datetime | None:
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(cast(str, value))
    except (ValueError, TypeError):
        raise _bad('expires_at must be null or a time such as "2026-12-31T23:59:59Z"') from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _no_such_key() -> NotFound:
    return NotFound("No spend key of yours has this id.")


def _bad(message: str) -> CallerError:
    return CallerError(message + ".", code="invalid_parameter")
