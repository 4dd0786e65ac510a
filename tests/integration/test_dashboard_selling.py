"""The pages of what is sold and to whom: every form's good and bad ends, what they write down, and that merchants stay apart."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.dashboard_world import DashboardWorld, dashboard_world
from tests.engines import RunningEngines
from tests.integration.api_world import Shop, Stores, open_shop, opened_stores, sell

BASE = "/dashboard"


@pytest.fixture
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture
async def world(stores: Stores) -> AsyncIterator[DashboardWorld]:
    async with dashboard_world(stores) as made:
        yield made


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    return await open_shop(stores, "one")


async def acts(world: DashboardWorld, shop: Shop) -> list[str]:
    """What the audit log says was done, newest first."""
    return [entry.action for entry in await world.audit_log.many(shop.merchant.merchant_id)]


async def test_every_page_opens(world: DashboardWorld, shop: Shop) -> None:
    await sell(world.stores, shop)
    async with world.browser(shop) as browser:
        for path in (
            "customers",
            "customers/new",
            f"customers/{shop.customer.connection_id}",
            "meters",
            "meters/new",
            f"meters/{shop.meter.meter_id}",
            "plans",
            "plans/new",
            "plans/subscriptions",
            "keys",
            "keys/spend/new",
            "webhooks",
            "webhooks/new",
            "settings",
            "token",
        ):
            text = await browser.get(f"{BASE}/{path}")
            assert "style=" not in text and "<script>" not in text and "onclick" not in text, path
