"""GET /v1/meters and /v1/meters/{id or slug}: the prices of a merchant's usage, read-only."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.envelope import json_response
from lava_proxy.api.formats import listing, timestamp
from lava_proxy.api.queries import Query, path_reference
from lava_proxy.domain.errors import NotFound
from lava_proxy.domain.fees import format_tier
from lava_proxy.stores.catalog_store import CatalogStore, Meter


class Meters:
    """The meter resource."""

    def __init__(self, catalog: CatalogStore) -> None:
        self._catalog = catalog

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/meters", self.many), web.get("/v1/meters/{meter}", self.one)]

    async def many(self, request: web.Request) -> web.Response:
        """Newest first."""
        query = Query(request.query)
        page = query.page("prd")
        query.check()
        merchant = merchant_of(request)
        meters = await self._catalog.meters(merchant.merchant_id, before=page.before, limit=page.limit + 1)
        return json_response(listing([meter_object(meter) for meter in meters], page.limit, "meter_id"))

    async def one(self, request: web.Request) -> web.Response:
        meter = await self._catalog.meter(merchant_of(request).merchant_id, path_reference(request, "meter"))
        if meter is None:
            raise NotFound("No meter of yours has this id or slug.")
        return json_response(meter_object(meter))


def meter_object(meter: Meter) -> dict[str, Any]:
    """The newest vocabulary and the keys of the one before it. Secrets are not shown."""
    version = meter.version
    return {
        "meter_id": meter.meter_id,
        "meter_slug": version.slug,
        "name": version.name,
        "rate_type": version.rate_type,
        "tier_type": version.tier_type,
        "tiers": [format_tier(version.rate_type, version.tier_type, tier) for tier in version.tiers],
        "token_basis": version.token_basis,
        "base_cost_payer": "wallet" if version.rate_type == "percentage" else "merchant",
        "service_charge_payer": "merchant",
        "created_at": timestamp(meter.created_at),
    }
