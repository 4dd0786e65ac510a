"""What a new installation and a new merchant are told to do next, and that it goes away when it is done."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html import unescape

import pytest

from lava_proxy.billing.funding import Funding
from lava_proxy.domain.catalog import Tier
from lava_proxy.providers.registry import load_registry
from lava_proxy.settings import load
from lava_proxy.stores.catalog_store import Merchant
from tests.dashboard_world import Browser, DashboardWorld, dashboard_world, token_of
from tests.engines import RunningEngines
from tests.integration.api_world import USD, Stores, open_shop, opened_stores, sell


@pytest.fixture
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


async def signed_in(world: DashboardWorld, browser: Browser, merchant: Merchant) -> None:
    code = await world.sessions.create_link(merchant.merchant_id)
    await browser.get(f"/dashboard/enter/{code}", 303)
    browser.csrf = token_of(await browser.get("/dashboard"))


def steps_of(page: str) -> dict[str, tuple[bool, str]]:
    """Step -> (is it done, where its button leads)."""
    found = {}
    for name, inner in re.findall(r'<li class="first-step[^"]*" id="step-(\w+)"[^>]*>(.*?)</li>', page, re.DOTALL):
        link = re.search(r'class="btn[^"]*" href="([^"]+)"', inner)
        found[name] = ("Done:" in inner, link[1] if link else "")
    return found


async def test_a_new_installation_is_told_how_to_begin_and_others_how_to_sign_in(stores: Stores) -> None:
    async with dashboard_world(stores, command="./lava {} --here".format) as world, world.browser() as browser:
        page = unescape(await browser.get("/dashboard/sign-in"))
        assert './lava merchant create --name "My company" --here' in page and "Secret key" not in page
        async with browser.client.post("/dashboard/sign-in", data={"secret_key": "aks_live_no"}) as answer:
            text = await answer.text()
            assert answer.status == 422 and "not known here" in text and "There is no merchant here yet" in text
        await stores.catalog.create_merchant("First")
        page = await browser.get("/dashboard/sign-in")
        assert "./lava dashboard link --here" in page and "Secret key" in page and "no merchant" not in page
        assert "./lava dashboard link --here" in await browser.get("/dashboard/enter/ldl_used", 410)


async def test_each_step_is_ticked_off_when_it_is_done_and_leads_to_the_next(stores: Stores) -> None:
    catalog, funding = stores.catalog, Funding(stores.catalog, stores.balances)
    merchant = await catalog.create_merchant("New")
    await funding.open_wallet(merchant.wallet_id)
    async with dashboard_world(stores) as world, world.browser() as browser:
        await signed_in(world, browser, merchant)
        page = await browser.get("/dashboard")
        assert steps_of(page) == {
            "provider": (False, "/dashboard/keys#provider"), "meter": (False, "/dashboard/meters/new"),
            "customer": (False, "/dashboard/customers/new"), "funds": (False, ""), "call": (False, ""),
        }  # fmt: skip
        assert "0 of 5 done" in page and "No calls in this time" not in page
        await catalog.set_provider_key(merchant.merchant_id, "openai", "sk-a-key")
        await catalog.create_meter(
            merchant.merchant_id, name="T", slug="t", rate_type="fixed", tier_type="tokens_1m", tiers=(Tier(start=0, rate=USD),)
        )
        assert (await browser.get("/dashboard/steps?done=2", 204)) == ""
        part = await browser.get("/dashboard/steps?done=0")
        assert "<html" not in part and "2 of 5 done" in part and "Stored: openai." in part
        older = await catalog.create_connection(merchant.merchant_id, reference_id="older")
        await funding.open_wallet(older.wallet_id)
        await funding.fund(merchant.merchant_id, older.wallet_id, USD, "test")
        newer = await catalog.create_connection(merchant.merchant_id, reference_id="newer")
        steps = steps_of(await browser.get("/dashboard"))
        assert [done for done, _ in steps.values()] == [True, True, True, True, False]
        assert steps["call"][1] == f"/dashboard/customers/{older.connection_id}#token"
        assert newer.connection_id not in steps["call"][1]


async def test_a_call_of_a_customer_ends_the_steps_and_one_that_failed_or_is_the_merchants_own_does_not(stores: Stores) -> None:
    shop = await open_shop(stores, "one")
    async with dashboard_world(stores) as world, world.browser(shop) as browser:
        await sell(stores, shop, by_meter=False)
        await sell(stores, shop, status="error", outcome="provider_error", charge_nanos=0)
        assert steps_of(await browser.get("/dashboard"))["call"][0] is False
        await sell(stores, shop)
        part = await browser.get("/dashboard/steps?done=3", 286)
        assert "5 of 5 done" in part and "The first call has been made." in part and "hx-trigger" not in part
        assert steps_of(await browser.get("/dashboard")) == {}


async def test_the_steps_stay_hidden_in_a_browser_until_it_asks_for_them(stores: Stores) -> None:
    shop = await open_shop(stores, "one")
    async with dashboard_world(stores) as world, world.browser(shop) as browser:
        assert (await browser.post("/dashboard/steps/hide", csrf="")).status == 403
        assert (await browser.post("/dashboard/steps/hide")).headers["Location"] == "/dashboard"
        page = await browser.get("/dashboard")
        assert steps_of(page) == {} and "/dashboard?steps=show" in page
        assert len(steps_of(await browser.get("/dashboard?steps=show"))) == 5
        assert len(steps_of(await browser.get("/dashboard"))) == 5


async def test_the_first_step_says_what_answers_without_a_stored_key(stores: Stores) -> None:
    merchant = await stores.catalog.create_merchant("New")
    table = load({}).providers_table
    attached = load_registry(table, {"openai": "http://127.0.0.1:8000", "google": "http://127.0.0.1:9000"})
    for changes, is_done, said in (
        ({"sandboxed": frozenset({"openai", "google"})}, True, "The built-in sandbox answers for google and openai"),
        ({"own_keys": frozenset({"anthropic"})}, True, "This installation has a key for anthropic."),
        ({"registry": attached}, False, "Calls to google and openai go to another address here, which may need none."),
        ({"registry": attached, "sandboxed": frozenset({"google"})}, True, "The built-in sandbox answers for google:"),
    ):
        async with dashboard_world(stores, **changes) as world, world.browser() as browser:
            await signed_in(world, browser, merchant)
            page = await browser.get("/dashboard")
            assert steps_of(page)["provider"][0] is is_done and said in page
