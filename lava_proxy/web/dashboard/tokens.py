"""/dashboard/token: a forward token and a program that uses it. The secret key typed for it is used once and kept nowhere."""

from __future__ import annotations

from aiohttp import web

from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.provider_key_store import ProviderKeyStore
from lava_proxy.web.dashboard.acts import is_id
from lava_proxy.web.dashboard.forms import Form
from lava_proxy.web.dashboard.frame import View, session_of
from lava_proxy.web.dashboard.snippets import snippets
from lava_proxy.wire.forward_token import SECRET_KEY_PREFIX, mint


class Tokens:
    """The builder; other pages load it as a part of themselves."""

    def __init__(
        self, view: View, catalog: CatalogStore, provider_keys: ProviderKeyStore, base_url: str, keyless: frozenset[str]
    ) -> None:
        """`keyless`: the providers that this installation calls without a key of the merchant's."""
        self._view = view
        self._catalog = catalog
        self._provider_keys = provider_keys
        self._base_url = base_url
        self._keyless = keyless

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/dashboard/token", self.blank), web.post("/dashboard/token", self.built)]

    async def blank(self, request: web.Request) -> web.StreamResponse:
        """For `customer` and `meter` of the query, without a key."""
        form = Form({"customer": request.query.get("customer", ""), "meter": request.query.get("meter", "")})
        return await self._answer(request, form)

    async def built(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, await Form.read(request))

    async def _answer(self, request: web.Request, form: Form) -> web.Response:
        merchant_id = session_of(request).merchant.merchant_id
        meters = await self._catalog.meters(merchant_id, before=None, limit=100)
        customer_id = await self._customer(merchant_id, form.value("customer"))
        meter = next((one for one in meters if one.version.slug == form.value("meter")), meters[0] if meters else None)
        slug = None if customer_id is None or meter is None else meter.version.slug
        key = form.value("secret_key").strip()
        form.values["secret_key"] = ""
        if key and not await self._is_own(merchant_id, key):
            form.fail("secret_key", "This is no secret key of yours (aks_...) that is valid; nothing was made with it.")
            key = ""
        form.values["meter"] = slug or ""
        token = mint(key, customer_id, slug) if key else None
        reachable = self._keyless | {one.provider for one in await self._provider_keys.many(merchant_id)}
        programs = snippets(
            self._base_url, customer_id=customer_id, meter_slug=slug, token=token,
            by_anthropic="anthropic" in reachable and "openai" not in reachable,
        )  # fmt: skip
        return self._view.part(
            request, "token.html", form=form, customer_id=customer_id, meters=meters, token=token, snippets=programs
        )

    async def _customer(self, merchant_id: str, reference: str) -> str | None:
        if not is_id(reference, "con"):
            return None
        found = await self._catalog.connection(merchant_id, reference)
        return None if found is None else found.connection_id

    async def _is_own(self, merchant_id: str, key: str) -> bool:
        if not key.startswith(SECRET_KEY_PREFIX) or not key.isascii() or not key.isprintable() or len(key) > 255:
            return False
        merchant = await self._catalog.merchant_by_key(key)
        return merchant is not None and merchant.merchant_id == merchant_id
