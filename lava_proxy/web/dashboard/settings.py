"""/dashboard/settings: what a merchant sets for all customers, and what the installation does with calls that are cut off."""

from __future__ import annotations

from aiohttp import web

from lava_proxy.domain.plans import overage_document
from lava_proxy.providers.registry import Registry
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.merchant_settings import MerchantSettings
from lava_proxy.stores.plan_store import PlanStore
from lava_proxy.web.dashboard.acts import Acts
from lava_proxy.web.dashboard.forms import Form
from lava_proxy.web.dashboard.frame import View, session_of
from lava_proxy.web.dashboard.inputs import checked, overage_values, read_overage
from lava_proxy.wire.texts import checked_name

CLAMP_FLOOR_MAX = 2_000_000
_BASE = "/dashboard/settings"
_DISCONNECTS = (
    ("drain", "Reads on to the usage that the provider reports, for at most 120 seconds, and charges that."),
    ("estimate", "Stops at once; charges what had been delivered, estimated."),
    ("none", "Stops at once and charges nothing."),
)


class Settings:
    """One page of small forms."""

    def __init__(
        self, view: View, acts: Acts, *, settings: MerchantSettings, plans: PlanStore, catalog: CatalogStore, registry: Registry
    ) -> None:
        self._view = view
        self._acts = acts
        self._settings = settings
        self._plans = plans
        self._catalog = catalog
        self._registry = registry

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(_BASE, self.page),
            web.post(_BASE + "/name", self.rename),
            web.post(_BASE + "/overage", self.set_overage),
            web.post(_BASE + "/clamp", self.set_clamp),
        ]

    async def page(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request)

    async def rename(self, request: web.Request) -> web.StreamResponse:
        form, merchant = await Form.read(request), session_of(request).merchant
        name = checked(form, "name", checked_name)
        if name is None:
            return await self._answer(request, name=form)
        async with self._acts.transaction() as db:
            await self._settings.rename(merchant.merchant_id, name, db=db)
            await self._acts.note(
                db, request, "merchant.rename", merchant.merchant_id, before={"name": merchant.name}, after={"name": name}
            )
        return self._view.redirect(request, _BASE, "The name has been changed.")

    async def set_overage(self, request: web.Request) -> web.StreamResponse:
        form, merchant = await Form.read(request), session_of(request).merchant
        overage = read_overage(form, may_inherit=False)
        if overage is None:
            return await self._answer(request, overage=form)
        before = await self._acts.default_overage(merchant.merchant_id)
        async with self._acts.transaction() as db:
            await self._plans.set_merchant_overage(merchant.merchant_id, overage, db=db)
            await self._acts.note(
                db, request, "merchant.overage", merchant.merchant_id, before=overage_document(before),
                after=overage_document(overage),
            )  # fmt: skip
        return self._view.redirect(request, _BASE, "The default policy has been changed.")

    async def set_clamp(self, request: web.Request) -> web.StreamResponse:
        form, merchant = await Form.read(request), session_of(request).merchant
        floor = form.integer("clamp_floor", most=CLAMP_FLOOR_MAX)
        if floor is None:
            return await self._answer(request, clamp=form)
        async with self._acts.transaction() as db:
            await self._catalog.set_clamp_floor(merchant.merchant_id, floor, db=db)
            await self._acts.note(
                db, request, "merchant.clamp_floor", merchant.merchant_id, before={"clamp_floor": merchant.clamp_floor},
                after={"clamp_floor": floor},
            )  # fmt: skip
        return self._view.redirect(request, _BASE, "The clamp floor has been changed.")

    async def _answer(
        self, request: web.Request, *, name: Form | None = None, overage: Form | None = None, clamp: Form | None = None
    ) -> web.Response:
        merchant = session_of(request).merchant
        is_refused = name is not None or overage is not None or clamp is not None
        default = await self._acts.default_overage(merchant.merchant_id)
        return self._view.page(
            request,
            "settings.html",
            "settings",
            status=422 if is_refused else 200,
            name_form=name or Form({"name": merchant.name}),
            overage_form=overage or Form(overage_values(default)),
            clamp_form=clamp or Form({"clamp_floor": merchant.clamp_floor}),
            disconnects=[
                (policy, does, sorted(one.name for one in self._registry.providers if one.disconnect == policy))
                for policy, does in _DISCONNECTS
            ],
        )
