"""/dashboard/keys: secret keys, spend keys, and the keys with which providers are called."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast, get_args

from aiohttp import web

from lava_proxy.domain.errors import Conflict, LavaError, NotFound
from lava_proxy.domain.limits import KeyRules, Limits, RequestShape, ScopeUse, limits_document, use_of
from lava_proxy.providers.registry import Registry
from lava_proxy.stores.catalog_store import CatalogStore, SpendKey
from lava_proxy.stores.ids import at_ms
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.provider_key_store import ProviderKeyStore
from lava_proxy.stores.secret_key_store import SecretKeyStore
from lava_proxy.web.dashboard.acts import Acts, is_id
from lava_proxy.web.dashboard.forms import Form
from lava_proxy.web.dashboard.frame import View, session_of
from lava_proxy.web.dashboard.inputs import checked, limits_values, read_limits
from lava_proxy.wire.texts import checked_name

_BASE = "/dashboard/keys"
_LISTED_MAX = 100
_NAMES_MAX = 1000
_KEY_CHARS_MAX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """A spend key and what it has used; `use` None: not known at the moment."""

    key: SpendKey
    use: ScopeUse | None

    @property
    def last_used_at(self) -> datetime | None:
        return at_ms(self.use.last_used_ms) if self.use is not None and self.use.last_used_ms else None

    def is_expired(self, now: datetime) -> bool:
        return self.key.rules.expires_at is not None and self.key.rules.expires_at <= now


class Keys:
    """One page of all keys, and one for each spend key."""

    def __init__(
        self,
        view: View,
        acts: Acts,
        *,
        catalog: CatalogStore,
        secret_keys: SecretKeyStore,
        provider_keys: ProviderKeyStore,
        outbox: Outbox,
        registry: Registry,
    ) -> None:
        self._view = view
        self._acts = acts
        self._catalog = catalog
        self._secret_keys = secret_keys
        self._provider_keys = provider_keys
        self._outbox = outbox
        self._registry = registry

    def routes(self) -> list[web.RouteDef]:
        spend, one = _BASE + "/spend", _BASE + "/spend/{spend_key}"
        return [
            web.get(_BASE, self.many),
            web.post(_BASE + "/secret", self.create_secret),
            web.post(_BASE + "/secret/{secret_key}/revoke", self.revoke_secret),
            web.post(_BASE + "/provider", self.set_provider),
            web.post(_BASE + "/provider/{provider}/remove", self.remove_provider),
            web.get(spend + "/new", self.new_spend),
            web.post(spend, self.create_spend),
            web.get(one, self.one_spend),
            web.post(one, self.change_spend),
            web.post(one + "/status", self.switch_spend),
            web.post(one + "/rotate", self.rotate_spend),
            web.post(one + "/delete", self.delete_spend),
        ]

    async def many(self, request: web.Request) -> web.StreamResponse:
        return await self._page(request)

    # -- secret keys

    async def create_secret(self, request: web.Request) -> web.StreamResponse:
        """The key is on this one answer and nowhere else."""
        form = await Form.read(request)
        name, kind = checked(form, "name", checked_name), form.choice("kind", ("live", "test"))
        if not form.is_good or name is None:
            return await self._page(request, secret=form)
        async with self._acts.transaction() as db:
            made = await self._secret_keys.create(session_of(request).merchant.merchant_id, name, live=kind == "live", db=db)
            await self._acts.note(db, request, "secret_key.create", made.secret_key_id, after={"name": name, "hint": made.hint})
        return await self._page(request, shown=("Secret key", name, cast(str, made.secret)))

    async def revoke_secret(self, request: web.Request) -> web.StreamResponse:
        secret_key_id, merchant_id = request.match_info["secret_key"], session_of(request).merchant.merchant_id
        if not is_id(secret_key_id, "sk"):
            raise NotFound("No secret key of yours has this id.")
        try:
            async with self._acts.transaction() as db:
                await self._secret_keys.revoke(merchant_id, secret_key_id, db=db)
                await self._acts.note(db, request, "secret_key.revoke", secret_key_id)
        except Conflict as error:
            return self._view.redirect(request, _BASE, error.message, "bad")
        return self._view.redirect(request, _BASE, "The key has been revoked: calls with it fail within a second.")

    # -- provider keys

    async def set_provider(self, request: web.Request) -> web.StreamResponse:
        form = await Form.read(request)
        merchant_id = session_of(request).merchant.merchant_id
        provider = form.choice("provider", self._provider_names())
        key = form.value("provider_key").strip()
        form.values["provider_key"] = ""
        if not 0 < len(key) <= _KEY_CHARS_MAX or not key.isascii() or not key.isprintable() or " " in key:
            form.fail("provider_key", "The provider's key: printable characters without spaces.")
        if not form.is_good or provider is None:
            return await self._page(request, provider=form)
        known = {one.provider: one.hint for one in await self._provider_keys.many(merchant_id)}
        before = {"hint": known[provider]} if provider in known else None
        async with self._acts.transaction() as db:
            await self._catalog.set_provider_key(merchant_id, provider, key, db=db)
            await self._acts.note(db, request, "provider_key.set", provider, before=before, after={"hint": f"...{key[-4:]}"})
        return self._view.redirect(request, _BASE, f"Calls to {provider} are made with this key within a second.")

    async def remove_provider(self, request: web.Request) -> web.StreamResponse:
        provider = request.match_info["provider"]
        if provider not in self._provider_names():
            raise NotFound("No provider has this name.")
        async with self._acts.transaction() as db:
            if not await self._provider_keys.remove(session_of(request).merchant.merchant_id, provider, db=db):
                raise NotFound("No key of yours is stored for this provider.")
            await self._acts.note(db, request, "provider_key.remove", provider)
        return self._view.redirect(request, _BASE, f"The key for {provider} has been removed.")

    # -- spend keys

    async def new_spend(self, request: web.Request) -> web.StreamResponse:
        form = Form({"request_shape": "openai", **limits_values(None)})
        return self._view.page(request, "spend_key.html", "keys", form=form, used=None, shown=None)

    async def create_spend(self, request: web.Request) -> web.StreamResponse:
        form = await Form.read(request)
        name, rules, limits = checked(form, "name", checked_name), self._rules(form), read_limits(form)
        if not form.is_good or name is None or rules is None:
            return self._view.page(request, "spend_key.html", "keys", form=form, used=None, shown=None, status=422)
        merchant_id = session_of(request).merchant.merchant_id
        async with self._acts.transaction() as db:
            made = await self._catalog.create_spend_key(merchant_id, name=name, rules=rules, limits=limits, db=db)
            await self._acts.note(db, request, "spend_key.create", made.spend_key_id, after=_facts(made))
        return await self._spend_page(request, made, shown=made.secret)

    async def one_spend(self, request: web.Request) -> web.StreamResponse:
        return await self._spend_page(request, await self._found(request))

    async def change_spend(self, request: web.Request) -> web.StreamResponse:
        key, form = await self._found(request), await Form.read(request)
        name, rules, limits = checked(form, "name", checked_name), self._rules(form), read_limits(form)
        if not form.is_good or name is None or rules is None:
            return await self._spend_page(request, key, form=form)
        changed = replace(key, name=name, rules=rules, limits=limits)
        async with self._acts.transaction() as db:
            await self._catalog.update_spend_key(changed, db=db)
            await self._acts.note(db, request, "spend_key.change", key.spend_key_id, before=_facts(key), after=_facts(changed))
        return self._back(request, key, "Saved. The new rules hold within a second.")

    async def switch_spend(self, request: web.Request) -> web.StreamResponse:
        key, form = await self._found(request), await Form.read(request)
        status = form.choice("status", ("active", "paused"))
        if status is None:
            raise NotFound("A spend key is active or paused.")
        action = "spend_key.pause" if status == "paused" else "spend_key.resume"
        before, after = {"status": key.status}, {"status": status}
        async with self._acts.transaction() as db:
            await self._catalog.update_spend_key(replace(key, status=status), db=db)
            await self._acts.note(db, request, action, key.spend_key_id, before=before, after=after)
        said = "The key is paused: calls with it are refused." if status == "paused" else "The key works again."
        return self._back(request, key, said)

    async def rotate_spend(self, request: web.Request) -> web.StreamResponse:
        key = await self._found(request)
        async with self._acts.transaction() as db:
            rotated = await self._catalog.rotate_spend_key(key.merchant_id, key.spend_key_id, db=db)
            if rotated is None:
                raise _no_such_key()
            await self._acts.note(
                db, request, "spend_key.rotate", key.spend_key_id, before={"key_preview": key.key_preview},
                after={"key_preview": rotated.key_preview},
            )  # fmt: skip
        return await self._spend_page(request, rotated, shown=rotated.secret)

    async def delete_spend(self, request: web.Request) -> web.StreamResponse:
        key = await self._found(request)
        async with self._acts.transaction() as db:
            await self._catalog.delete_spend_key(key.merchant_id, key.spend_key_id, db=db)
            await self._acts.note(db, request, "spend_key.delete", key.spend_key_id, before=_facts(key))
        await self._outbox.forget_scope(key.wallet_id, key.spend_key_id)
        return self._view.redirect(request, _BASE, "The spend key has been deleted: calls with it fail within a second.")

    # -- helpers

    async def _found(self, request: web.Request) -> SpendKey:
        identifier = request.match_info["spend_key"]
        key = None
        if is_id(identifier, "spk"):
            key = await self._catalog.spend_key(session_of(request).merchant.merchant_id, identifier)
        if key is None:
            raise _no_such_key()
        return key

    def _back(self, request: web.Request, key: SpendKey, notice: str) -> web.Response:
        return self._view.redirect(request, f"{_BASE}/spend/{key.spend_key_id}", notice)

    async def _page(
        self,
        request: web.Request,
        *,
        secret: Form | None = None,
        provider: Form | None = None,
        shown: tuple[str, str, str] | None = None,
    ) -> web.Response:
        """`shown`: (what, name, secret) of a key that was just made."""
        merchant_id = session_of(request).merchant.merchant_id
        spend_keys = await self._catalog.spend_keys(merchant_id, before=None, limit=_LISTED_MAX)
        return self._view.page(
            request,
            "keys.html",
            "keys",
            status=422 if secret is not None or provider is not None else 200,
            secret_keys=await self._secret_keys.many(merchant_id, before=None, limit=_LISTED_MAX),
            spend_keys=await self._used(spend_keys),
            provider_keys=await self._provider_keys.many(merchant_id),
            provider_names=self._provider_names(),
            secret_form=secret or Form({"kind": "live"}),
            provider_form=provider or Form(),
            shown=shown,
            now=self._acts.now(),
        )

    async def _spend_page(
        self, request: web.Request, key: SpendKey, *, form: Form | None = None, shown: str | None = None
    ) -> web.Response:
        [used] = await self._used([key])
        return self._view.page(
            request, "spend_key.html", "keys", status=422 if form is not None else 200, form=form or _form_of(key), used=used,
            shown=shown, now=self._acts.now(),
        )  # fmt: skip

    async def _used(self, keys: Collection[SpendKey]) -> list[Used]:
        try:
            counted = await self._outbox.scope_counters([(key.wallet_id, key.spend_key_id) for key in keys]) if keys else []
        except LavaError:  # the page has more to show
            return [Used(key=key, use=None) for key in keys]
        now = self._acts.now()
        return [Used(key=key, use=use_of(found, key.limits, now)) for key, found in zip(keys, counted, strict=True)]

    def _provider_names(self) -> list[str]:
        return sorted(provider.name for provider in self._registry.providers)

    def _rules(self, form: Form) -> KeyRules | None:
        shape = form.choice("request_shape", get_args(RequestShape))
        models, providers = _names(form, "allowed_models"), _names(form, "allowed_providers")
        expires_at = _moment(form, "expires_at")
        if not form.is_good:
            return None
        return KeyRules(
            request_shape=cast(RequestShape, shape), allowed_models=models, allowed_providers=providers, expires_at=expires_at
        )


def _names(form: Form, name: str) -> tuple[str, ...] | None:
    """Names separated by commas or spaces; None, that is all, for an empty field."""
    found = tuple(dict.fromkeys(form.value(name).replace(",", " ").split()))
    if len(found) > _NAMES_MAX or any(len(one) > 255 or not one.isprintable() for one in found):
        form.fail(name, "Names separated by commas, such as gpt-4o*, claude-*.")
    return found or None


def _moment(form: Form, name: str) -> datetime | None:
    """A UTC time as the browser's date field writes it; None for an empty field."""
    text = form.value(name).strip()
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        form.fail(name, "A date and time in UTC, such as 2026-12-31T23:59.")
        return None


def _form_of(key: SpendKey) -> Form:
    rules = key.rules
    return Form(
        {
            "name": key.name, "request_shape": rules.request_shape, "allowed_models": ", ".join(rules.allowed_models or ()),
            "allowed_providers": ", ".join(rules.allowed_providers or ()),
            "expires_at": "" if rules.expires_at is None else f"{rules.expires_at.astimezone(UTC):%Y-%m-%dT%H:%M}",
            **limits_values(key.limits),
        }
    )  # fmt: skip


def _facts(key: SpendKey) -> Mapping[str, Any]:
    rules = key.rules
    return {
        "name": key.name, "status": key.status, "request_shape": rules.request_shape,
        "allowed_models": None if rules.allowed_models is None else list(rules.allowed_models),
        "allowed_providers": None if rules.allowed_providers is None else list(rules.allowed_providers),
        "expires_at": None if rules.expires_at is None else rules.expires_at.isoformat(),
        **limits_document(key.limits or Limits()),
    }  # fmt: skip


def _no_such_key() -> NotFound:
    return NotFound("No spend key of yours has this id.")
