"""The pages of what is sold and to whom: every form's good and bad ends, what they write down, and that merchants stay apart."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from html import unescape
from typing import Any

import pytest

from lava_proxy.billing.cards import Cards
from lava_proxy.billing.subscriptions import Subscriptions
from lava_proxy.domain.catalog import Tier
from lava_proxy.domain.limits import KeyRules, Limits
from lava_proxy.domain.plans import Terms
from lava_proxy.payments.processor import CardDetails
from lava_proxy.payments.sandbox import SandboxProcessor
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.plan_store import BundleDraft, PlanStore
from lava_proxy.stores.provider_key_store import ProviderKeyStore
from lava_proxy.web.dashboard import meters as meters_page
from lava_proxy.workers.credit_applier import CreditApplier
from tests.dashboard_world import Browser, DashboardWorld, dashboard_world
from tests.engines import RunningEngines
from tests.integration.api_world import USD, Shop, Stores, open_shop, opened_stores, sell
from tests.webhook_receiver import running_receiver

BASE = "/dashboard"
NO_LIMITS = {"spend_cycle": "monthly", "request_cycle": "monthly"}


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


@pytest.fixture
async def browser(world: DashboardWorld, shop: Shop) -> AsyncIterator[Browser]:
    async with world.browser(shop) as signed_in:
        yield signed_in


async def acts(world: DashboardWorld, shop: Shop) -> list[str]:
    """What the audit log says was done, newest first."""
    return [entry.action for entry in await world.audit_log.many(shop.merchant.merchant_id)]


async def refused(browser: Browser, path: str, form: dict[str, Any]) -> str:
    """The page that a bad form leads back to."""
    async with browser.client.post(path, data={"csrf": browser.csrf, **form}, allow_redirects=False) as answer:
        text = await answer.text()
        assert answer.status == 422, f"{path}: {answer.status} {text[-500:]}"
        return text


async def done(browser: Browser, path: str, form: dict[str, Any] | None = None) -> str:
    """Where a good form leads."""
    answer = await browser.post(path, form)
    assert answer.status == 303, f"{path}: {answer.status} {(await answer.text())[-1500:]}"
    return str(answer.headers["Location"])


def plan_store(world: DashboardWorld) -> PlanStore:
    return PlanStore(world.stores.pool, world.deps.clock)


async def make_plan(world: DashboardWorld, shop: Shop, *, amount: int = 0, name: str = "Pro") -> Any:
    terms = Terms(
        plan_id="", name=name, period_amount_nanos=amount, included_credit_nanos=amount, billing_interval="month",
    )  # fmt: skip
    bundle = BundleDraft(name="Small", cost_nanos=5 * USD, credit_nanos=6 * USD)
    return await plan_store(world).create_plan(
        shop.merchant.merchant_id, terms, overage=None, meter_ids=[shop.meter.meter_id], bundles=[bundle]
    )


async def subscribe(world: DashboardWorld, shop: Shop, plan: Any) -> Any:
    return await Subscriptions(plan_store(world), world.deps.funding, world.deps.clock).change_unpaid(shop.customer, plan)


async def pages_of(world: DashboardWorld, shop: Shop) -> list[str]:
    """An address of every page that these modules have, of this shop's things."""
    plan = await make_plan(world, shop)
    key = await world.stores.catalog.create_spend_key(
        shop.merchant.merchant_id, name="Tool", rules=KeyRules(), limits=Limits()
    )  # fmt: skip
    webhook = await world.stores.webhooks.create(
        shop.merchant.merchant_id, name="Events", url="https://example.com/x", vocabulary="customer", events=None,
        status="active", now=datetime.now(UTC),
    )  # fmt: skip
    return [
        f"customers/{shop.customer.connection_id}", f"meters/{shop.meter.meter_id}", f"plans/{plan.plan_id}",
        f"keys/spend/{key.spend_key_id}", f"webhooks/{webhook.webhook_id}",
    ]  # fmt: skip


async def test_every_page_opens_without_anything_inline(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    await sell(world.stores, shop)
    plain = ("customers", "customers/new", "meters", "meters/new", "plans", "plans/new", "plans/subscriptions", "keys")
    more = ("keys/spend/new", "webhooks", "webhooks/new", "settings", "token", "meters/tier?n=2", "plans/bundle?n=2")
    for path in (*plain, *more, *await pages_of(world, shop)):
        text = await browser.get(f"{BASE}/{path}")
        assert "style=" not in text and "<script>" not in text and not re.search(r"\son[a-z]+=", text), path


async def test_another_merchants_things_are_not_there(world: DashboardWorld, shop: Shop) -> None:
    """Every address and every change below it, with the ids of somebody else: nothing to see, nothing changed."""
    other = await open_shop(world.stores, "two")
    changes = {
        "customers": ("details", "limits", "overage", "adjust", "refund", "status", "delete"),
        "meters": ("", "secret", "archive"),
        "plans": ("", "archive"),
        "keys": ("", "status", "rotate", "delete"),
        "webhooks": ("", "status", "rotate", "test", "delete", "deliveries/dlv_01HZZZZZZZZZZZZZZZZZZZZZZZ/replay"),
    }
    pages = await pages_of(world, shop)
    async with world.browser(other) as browser:
        for path in pages:
            await browser.get(f"{BASE}/{path}", 404)
            for change in changes[path.split("/")[0]]:
                answer = await browser.post(f"{BASE}/{path}/{change}".rstrip("/"), {"adjust_id": new_id("adj"), "status": "ok"})
                assert answer.status == 404, (path, change, answer.status)
        for listed in ("customers", "meters", "plans", "keys", "webhooks"):
            text = await browser.get(f"{BASE}/{listed}")
            assert not any(path.rpartition("/")[2] in text for path in pages), listed
        found = await world.stores.catalog.create_secret_key(shop.merchant.merchant_id, "mine")
        [key] = [
            key
            for key in await world.deps.merchant_stores.secret_keys.many(shop.merchant.merchant_id, before=None, limit=9)
            if key.name == "mine"
        ]
        assert (await browser.post(f"{BASE}/keys/secret/{key.secret_key_id}/revoke")).status == 404
        plan = await make_plan(world, shop, name="Theirs")
        theirs = await subscribe(world, shop, plan)
        assert (await browser.post(f"{BASE}/plans/subscriptions/{theirs.subscription_id}/cancel")).status == 404
        text = await (await browser.client.post(f"{BASE}/token", data={"csrf": browser.csrf, "secret_key": found})).text()
        assert "no secret key of yours" in text and found not in text
        text = await browser.get(f"{BASE}/token?customer={shop.customer.connection_id}")
        assert shop.customer.connection_id not in text
    assert await acts(world, other) == []
    assert await world.stores.catalog.merchant_by_key(found) is not None


async def test_no_form_is_taken_without_the_sessions_token(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    customer = f"customers/{shop.customer.connection_id}"
    paths = ("customers", f"{customer}/adjust", f"{customer}/delete", "meters", "plans", "keys/secret", "webhooks", "settings/name")
    for path in (*paths, f"meters/{shop.meter.meter_id}/secret", "token", "meters/quote"):
        assert (await browser.post(f"{BASE}/{path}", {"name": "x"}, csrf="")).status == 403, path
    assert await acts(world, shop) == []


# -- customers


async def test_customers_are_searched_and_paged(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    for number in range(52):
        await world.stores.catalog.create_connection(
            shop.merchant.merchant_id, reference_id=f"user_{number}", contact={"first_name": "Ada", "last_name": f"No{number}%"}
        )
    first = await browser.get(f"{BASE}/customers")
    assert "Ada No51%" in first and "Ada No3%" in first and "Ada No0%" not in first and "$" not in first.split("Ada No51%")[0][-50:]
    older = re.search(r'rel="next" href="([^"]+)"', first)
    assert older is not None
    second = await browser.get(older[1].replace("&amp;", "&"))
    assert "Ada No0%" in second and "Newest" in second and "$25.00" in second
    assert "Ada No17%" in await browser.get(f"{BASE}/customers?q=No17")
    found = await browser.get(f"{BASE}/customers?q=buyer@one")
    assert shop.customer.connection_id in found and "Ada" not in found
    assert "Ada No9" not in await browser.get(f"{BASE}/customers?q=user%5C_1%25")
    assert "No customer matches" in await browser.get(f"{BASE}/customers?q=%25%25nobody")
    assert "No customer matches" in await browser.get(f"{BASE}/customers?status=disabled")
    part = await browser.get(f"{BASE}/customers?q=No17", **{"HX-Request": "true", "HX-Target": "customer-list"})
    assert "<html" not in part and "Ada No17%" in part


async def test_a_customer_is_made_with_a_wallet_and_wrong_fields_are_told_where_they_are(
    world: DashboardWorld, shop: Shop, browser: Browser
) -> None:
    text = await refused(
        browser, f"{BASE}/customers", {"name": "Grace Hopper", "email": "nowhere", "phone": "123", "reference_id": "con_x"}
    )
    for said in (
        "Accepted is an e-mail address",
        "phone number with its country code",
        "may not start with con_",
        'value="Grace Hopper"',
    ):
        assert said in text
    taken = {"reference_id": "customer of one", "name": "Grace Hopper"}
    assert "exists already" in await refused(browser, f"{BASE}/customers", taken)
    where = await done(browser, f"{BASE}/customers", {"name": "Grace Hopper", "email": "g@h.example", "phone": "+1 415 555 0123"})
    page = await browser.get(where)
    assert "Grace Hopper" in page and "+14155550123" in page and "has been created" in page
    made = await world.stores.catalog.connection(shop.merchant.merchant_id, where.rpartition("/")[2])
    assert made is not None and (await world.stores.outbox.wallet_states([made.wallet_id]))[made.wallet_id] is not None
    assert await acts(world, shop) == ["customer.create"]


async def test_details_limits_and_overage_of_a_customer_are_changed(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    one, catalog = f"{BASE}/customers/{shop.customer.connection_id}", world.stores.catalog
    await done(browser, f"{one}/details", {"name": "Ada Lovelace", "reference_id": "ada"})
    await refused(browser, f"{one}/details", {"email": "@"})
    text = await refused(browser, f"{one}/limits", {**NO_LIMITS, "spend_amount": "a lot", "rpm": "0", "burst": "5"})
    assert "amount in dollars" in text and "from 1 to" in text and 'value="a lot"' in text
    await done(browser, f"{one}/limits", {**NO_LIMITS, "spend_amount": "12.50", "spend_cycle": "daily", "rpm": "1,000"})
    found = await catalog.connection(shop.merchant.merchant_id, "ada")
    assert found is not None and found.limits is not None and found.contact["last_name"] == "Lovelace"
    assert (found.limits.spend_nanos, found.limits.spend_cycle, found.limits.requests_per_minute) == (12_500_000_000, "daily", 1000)
    await done(browser, f"{one}/limits", NO_LIMITS)
    found = await catalog.connection(shop.merchant.merchant_id, "ada")
    assert found is not None and found.limits is None
    line = {"overage_limit": "5", "overage_threshold": "10", "overage_increment": "0.001", "overage_monthly_cap": "100"}
    text = await refused(browser, f"{one}/overage", {"overage_policy": "charge", **line})
    assert "Not above the line" in text and "Whole cents" in text
    await done(browser, f"{one}/overage", {"overage_policy": "charge", **line, "overage_threshold": "2", "overage_increment": "1"})
    assert "calls go on, the card is charged (set here)" in await browser.get(one)
    await done(browser, f"{one}/overage", {"overage_policy": "inherit"})
    assert "calls are refused (your default)" in await browser.get(one)
    assert set(await acts(world, shop)) == {"customer.change", "customer.limit", "customer.overage"}


async def test_an_adjustment_is_made_once_and_shows_in_the_ledger(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    one = f"{BASE}/customers/{shop.customer.connection_id}"
    adjust_id = new_id("adj")
    typed = {"direction": "take", "amount": "30", "reason": "A wrong import", "adjust_id": adjust_id}
    text = await refused(browser, f"{one}/adjust", {**typed, "amount": "0", "reason": ""})
    assert "outside of what is accepted" in text and "This is needed" in text and adjust_id in text
    for _ in range(2):
        await done(browser, f"{one}/adjust", typed)
    await refused(browser, f"{one}/adjust", {**typed, "amount": "31"})
    await world.stores.flush()
    page = await browser.get(one)
    assert "A wrong import" in page and "-$30.00" in page and "$5.00" in page
    await done(browser, f"{one}/adjust", {**typed, "direction": "add", "amount": "8.5", "adjust_id": new_id("adj")})
    state = (await world.stores.outbox.wallet_states([shop.customer.wallet_id]))[shop.customer.wallet_id]
    assert state is not None and (state.balance_nanos, state.debt) == (3_500_000_000, 0)
    entries = await world.audit_log.many(shop.merchant.merchant_id)
    assert entries[-1].after == {"adjust_id": adjust_id, "amount_nanos": -30 * USD, "reason": "A wrong import"}
    assert (await browser.post(f"{one}/adjust", {**typed, "adjust_id": "x"})).status == 400


async def test_a_long_ledger_is_read_in_parts(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    for _ in range(27):
        await sell(world.stores, shop, flush=False)
    await world.stores.flush()
    one = f"{BASE}/customers/{shop.customer.connection_id}"
    page = await browser.get(one)
    more = re.search(r'hx-get="([^"]+/ledger\?before=\d+)"', page)
    assert more is not None and page.count("/dashboard/requests/req_") == 25
    part = await browser.get(more[1])
    assert part.count("/dashboard/requests/req_") == 2 and "Credit" in part and "Show older" not in part


async def test_a_customer_is_switched_off_and_on_and_deleted(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    one, catalog = f"{BASE}/customers/{shop.customer.connection_id}", world.stores.catalog
    await done(browser, f"{one}/status", {"status": "disabled"})
    found = await catalog.connection(shop.merchant.merchant_id, shop.customer.connection_id)
    assert found is not None and found.status == "disabled" and "Enable" in await browser.get(one)
    await done(browser, f"{one}/status", {"status": "ok"})
    assert (await browser.post(f"{one}/status", {"status": "deleted"})).status == 400
    assert await done(browser, f"{one}/delete") == f"{BASE}/customers"
    await browser.get(one, 404)
    assert await acts(world, shop) == ["customer.delete", "customer.enable", "customer.disable"]


async def test_a_card_payment_is_refunded_in_part(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    charges, store, wallet_id = world.deps.charges, world.deps.charge_store, shop.customer.wallet_id
    person_id = await store.wallet_person_made(wallet_id, world.deps.clock())
    cards = Cards(store, SandboxProcessor(world.stores.pool, clock=world.deps.clock), charges, world.deps.clock)
    await cards.add(person_id, CardDetails(number="4242424242424242", expiry_month=12, expiry_year=2034))
    charge = await charges.open(
        wallet_id=wallet_id, merchant_id=shop.merchant.merchant_id, purpose="top_up", amount_cents=2000, key="k"
    )
    await charges.advance(charge.charge_id)
    one = f"{BASE}/customers/{shop.customer.connection_id}"
    page = await browser.get(one)
    assert "…4242" in page and "$20.00" in page and "succeeded" in page
    typed = {"charge_id": charge.charge_id, "refund_id": new_id("ref"), "refund_amount": "25", "refund_reason": "Unhappy"}
    assert "At most $20.00" in await refused(browser, f"{one}/refund", typed)
    assert "Whole cents" in await refused(browser, f"{one}/refund", {**typed, "refund_amount": "1.001"})
    for _ in range(2):
        await done(browser, f"{one}/refund", {**typed, "refund_amount": "7.50"})
    page = await browser.get(one)
    assert "refund of $7.50" in page and "all that is left, $12.50" in page
    assert (await browser.post(f"{one}/refund", {**typed, "charge_id": new_id("chg")})).status == 404
    await CreditApplier(world.stores.catalog, world.deps.funding).run_once()
    state = (await world.stores.outbox.wallet_states([wallet_id]))[wallet_id]
    assert state is not None and state.balance_nanos == 37_500_000_000


async def test_the_code_for_a_customer_makes_its_token_from_the_environment_or_from_a_key_of_ours(
    shop: Shop, browser: Browser
) -> None:
    blank = await browser.get(f"{BASE}/token?customer={shop.customer.connection_id}")
    assert (
        "LAVA_SECRET_KEY" in blank and shop.customer.connection_id in blank and "chat" in blank and "/v1/chat/completions" in blank
    )
    form = {"csrf": browser.csrf, "customer": shop.customer.connection_id, "meter": "chat", "secret_key": shop.key}
    async with browser.client.post(f"{BASE}/token", data=form) as answer:
        text = await answer.text()
    token = re.search(r'data-copy="([^"]+)"', text)
    assert token is not None and shop.key not in text and "LAVA_SECRET_KEY" not in text.split("snippets")[1]
    assert json.loads(base64.b64decode(token[1])) == {
        "secret_key": shop.key, "customer_id": shop.customer.connection_id, "meter_slug": "chat",
    }  # fmt: skip
    for wrong in ("aks_live_nobody", "lava_sk_x", "ümlaut"):
        async with browser.client.post(f"{BASE}/token", data={**form, "secret_key": wrong}) as answer:
            assert "no secret key of yours" in await answer.text()
    own = await browser.get(f"{BASE}/token")
    assert "customer_id" not in own and "LAVA_SECRET_KEY" in own


# -- meters


async def test_a_meter_is_made_changed_and_archived_and_keeps_every_price_it_had(
    world: DashboardWorld, shop: Shop, browser: Browser
) -> None:
    typed = {"name": "Voice", "rate_type": "fixed", "tier_type": "minutes", "token_basis": "input+output"}
    text = await refused(browser, f"{BASE}/meters", {**typed, "slug": "prd_x", "start": ["0"], "rate": ["0.1"]})
    assert "not starting with prd_" in text and 'value="0.1"' in text
    text = await refused(browser, f"{BASE}/meters", {**typed, "start": ["0", "0"], "rate": ["1", "2"]})
    assert "tier [1].start must be greater" in text.lower()
    assert "exists already" in await refused(browser, f"{BASE}/meters", {**typed, "slug": "chat", "start": ["0"], "rate": ["1"]})
    where = await done(browser, f"{BASE}/meters", {**typed, "start": ["0", "1,000", ""], "rate": ["$0.10", "0.08", ""]})
    page = await browser.get(where)
    assert "$0.1 per minute, 2 tiers" in page and "voice" in page
    row = await sell(world.stores, shop)
    chat = f"{BASE}/meters/{shop.meter.meter_id}"
    old = {"name": "Chat", "token_basis": "input+output", "start": ["0", "1000000"], "rate": ["20", "15"]}
    await done(browser, chat, old)
    assert await acts(world, shop) == ["meter.create"]  # nothing was different
    await done(browser, chat, {**old, "rate": ["40", "15"], "rate_type": "percentage", "tier_type": "requests"})
    page = await browser.get(chat)
    assert "$40 per 1,000,000 tokens, 2 tiers" in page and "$20 per 1,000,000 tokens, 2 tiers" in page
    stored = await world.stores.ledger.request(shop.merchant.merchant_id, row)
    assert stored is not None and stored["meter_version"] == shop.meter.version.version_id
    now = await world.stores.catalog.meter(shop.merchant.merchant_id, "chat")
    assert now is not None and now.version.tiers[0].rate == 40 * USD and now.version.tier_type == "tokens_1m"
    await refused(browser, chat, {**old, "name": " "})
    assert now.secret is not None and now.secret not in page
    async with browser.client.post(f"{chat}/secret", data={"csrf": browser.csrf}) as answer:
        assert now.secret in await answer.text()
    await done(browser, f"{chat}/archive")
    page = await browser.get(chat)
    assert "$40 per 1,000,000 tokens, 2 tiers" in page and "$20 per 1,000,000 tokens, 2 tiers" in page
    assert "cannot be brought back" in page and 'id="meter-form"' not in page and f"{chat}/archive" not in page
    for change in ("", "/secret", "/archive"):
        assert (await browser.post(f"{chat}{change}", old)).status == 404
    assert await acts(world, shop) == ["meter.archive", "meter.reveal_secret", "meter.change", "meter.create"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ({}, ("1,200 in / 300 out on gpt-4o-mini", "$0.00036</strong>", "pays <strong>$0.03</strong>", "earn")),
        ({"rate": ["0.1"]}, ("$0.00015</strong>", "lose", "$0.00021")),
        ({"rate_type": "percentage"}, ("$0.00036</strong>", "pays <strong>$0.000432</strong>", "earn", "$0.000072")),
        ({"start": ["0", "1000"], "rate": ["20", "10"], "calc_position": "500"},
         ("500 tokens at $20", "1,000 tokens at $10", "$0.02")),
        ({"tier_type": "minutes", "rate": ["0.6"], "calc_quantity": "90", "calc_model": ""}, ("90", "$0.90", "not known")),
        ({"rate_type": "percentage", "calc_model": "no-such"}, ("is not known, and this meter is a part of it",)),
        ({"rate": [""]}, ("not complete",)),
        ({"calc_input": "many"}, ("must be numbers",)),
    ],
)  # fmt: skip
async def test_the_calculator_says_what_a_call_would_come_to(
    browser: Browser, typed: dict[str, Any], said: tuple[str, ...]
) -> None:
    form = {
        "csrf": browser.csrf, "rate_type": "fixed", "tier_type": "tokens_1m", "start": ["0"], "rate": ["20"],
        "calc_model": "gpt-4o-mini", "calc_input": "1,200", "calc_output": "300", **typed,
    }  # fmt: skip
    async with browser.client.post(f"{BASE}/meters/quote", data=form) as answer:
        text = await answer.text()
    assert answer.status == 200 and all(part in text for part in said), text


async def test_archived_meters_are_listed_by_themselves_and_paged(
    world: DashboardWorld, shop: Shop, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meters_page, "PAGE_ROWS", 2)
    assert "No archived meters" in await browser.get(f"{BASE}/meters?status=archived")
    archived = []
    for number in range(3):
        made = await world.deps.merchant_stores.meters.create(
            shop.merchant.merchant_id, name=f"Old {number}", slug=None, rate_type="fixed", tier_type="requests",
            tiers=(Tier(start=0, rate=USD),), token_basis="input+output",
        )  # fmt: skip
        archived.insert(0, made.meter_id)
        await done(browser, f"{BASE}/meters/{made.meter_id}/archive")
    in_use = await browser.get(f"{BASE}/meters")
    assert shop.meter.meter_id in in_use and not any(meter_id in in_use for meter_id in archived)
    page = await browser.get(f"{BASE}/meters?status=archived")
    assert [meter_id for meter_id in archived if meter_id in page] == archived[:2] and shop.meter.meter_id not in page
    [older] = re.findall(r'rel="next" href="([^"]+)"', page)
    rest = await browser.get(unescape(older))
    assert archived[2] in rest and archived[0] not in rest and "status=archived" in rest
    other = await open_shop(world.stores, "two")
    async with world.browser(other) as stranger:
        assert "No archived meters" in await stranger.get(f"{BASE}/meters?status=archived")
        await stranger.get(f"{BASE}/meters/{archived[0]}", 404)


# -- plans


async def test_a_plan_is_made_and_changed_with_its_bundles_and_meters(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    typed = {
        "name": "Pro", "period_amount": "25", "billing_interval": "month", "included_credit": "", "rollover_type": "full",
        "bundle_rollover_type": "full", "overage_policy": "inherit", "meters": [shop.meter.meter_id],
        "bundle_id": ["", ""], "bundle_name": ["Small", ""], "bundle_cost": ["5", ""], "bundle_credit": ["6", ""],
    }  # fmt: skip
    text = await refused(
        browser, f"{BASE}/plans", {**typed, "included_credit": "26", "bundle_cost": ["0.001", ""], "period_amount": "25.001"}
    )
    assert "Whole cents" in text and "Bundle 1. Cost:" in text
    assert "At most what the cycle costs" in await refused(browser, f"{BASE}/plans", {**typed, "included_credit": "26"})
    assert "not there any more" in await refused(browser, f"{BASE}/plans", {**typed, "meters": [new_id("prd")]})
    where = await done(browser, f"{BASE}/plans", typed)
    plan = await plan_store(world).plan(shop.merchant.merchant_id, where.rpartition("/")[2])
    assert plan is not None and plan.terms.included_credit_nanos == 25 * USD and plan.terms.rollover_type == "full"
    [small] = plan.bundles
    assert (small.name, small.cost_nanos, small.credit_nanos) == ("Small", 5 * USD, 6 * USD) and len(plan.meters) == 1
    changed = {
        **typed, "name": "Pro 2", "period_amount": "1", "meters": [], "included_credit": "20", "overage_policy": "block",
        "default_auto_top_up_bundle_id": small.credit_bundle_id, "bundle_id": [small.credit_bundle_id, ""],
        "bundle_name": ["Smaller", "Big"], "bundle_cost": ["4", "50"], "bundle_credit": ["4", "60"],
    }  # fmt: skip
    await done(browser, where, changed)
    plan = await plan_store(world).plan(shop.merchant.merchant_id, plan.plan_id)
    assert plan is not None and plan.terms.period_amount_nanos == 25 * USD and plan.meters == () and plan.overage is not None
    assert [bundle.name for bundle in plan.bundles] == ["Smaller", "Big"]
    assert plan.default_auto_top_up_bundle_id == small.credit_bundle_id
    assert "Bought by itself" in await browser.get(where)
    gone = {
        **changed,
        "bundle_id": [plan.bundles[1].credit_bundle_id],
        "bundle_name": ["Big"],
        "bundle_cost": ["50"],
        "bundle_credit": ["60"],
    }
    assert "is a bundle of this plan" in await refused(browser, where, gone)
    await done(browser, where, {**gone, "default_auto_top_up_bundle_id": ""})
    plan = await plan_store(world).plan(shop.merchant.merchant_id, plan.plan_id)
    assert plan is not None and [bundle.name for bundle in plan.bundles] == ["Big"]
    theirs = {**gone, "default_auto_top_up_bundle_id": "", "bundle_id": [small.credit_bundle_id]}
    assert "One of these bundles is not there" in await refused(browser, where, theirs)
    await done(browser, f"{where}/archive")
    await browser.get(where, 404)
    assert await acts(world, shop) == ["plan.archive", "plan.change", "plan.change", "plan.create"]


async def test_the_code_calls_a_provider_that_there_is_a_key_for(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    await world.stores.catalog.set_provider_key(shop.merchant.merchant_id, "anthropic", "sk-ant-a-key")
    page = await browser.get(f"{BASE}/token?customer={shop.customer.connection_id}")
    assert "/v1/messages" in page and page.index("Python, anthropic") < page.index("Python, openai")
    await world.stores.catalog.set_provider_key(shop.merchant.merchant_id, "openai", "sk-a-key")
    page = await browser.get(f"{BASE}/token?customer={shop.customer.connection_id}")
    assert "/v1/messages" not in page and page.index("Python, openai") < page.index("Python, anthropic")


async def test_the_default_plan_stays_and_a_subscription_is_cancelled_once(
    world: DashboardWorld, shop: Shop, browser: Browser
) -> None:
    plan = await make_plan(world, shop, name="Gratis")
    subscription = await subscribe(world, shop, plan)
    page = await browser.get(f"{BASE}/plans/subscriptions")
    assert "Gratis" in page and "customer of one" in page
    assert "Gratis" in await browser.get(f"{BASE}/customers/{shop.customer.connection_id}")
    await done(browser, f"{BASE}/plans/subscriptions/{subscription.subscription_id}/cancel")
    assert "Gratis" in await browser.get(f"{BASE}/plans/subscriptions?status=cancelled")
    assert await acts(world, shop) == ["subscription.cancel"]


# -- keys


async def test_a_secret_key_is_shown_once_and_revoked_but_never_the_last(
    world: DashboardWorld, shop: Shop, browser: Browser
) -> None:
    keys = world.deps.merchant_stores.secret_keys
    [first] = await keys.many(shop.merchant.merchant_id, before=None, limit=9)
    assert await done(browser, f"{BASE}/keys/secret/{first.secret_key_id}/revoke") == f"{BASE}/keys"
    assert "last secret key" in await browser.get(f"{BASE}/keys")
    assert "This is needed" in await refused(browser, f"{BASE}/keys/secret", {"name": "", "kind": "live"})
    async with browser.client.post(f"{BASE}/keys/secret", data={"csrf": browser.csrf, "name": "Server", "kind": "test"}) as answer:
        text = await answer.text()
    secret = re.search(r"aks_test_[A-Za-z0-9_-]{20,}", text)
    assert answer.status == 200 and answer.headers["Cache-Control"] == "no-store" and secret is not None
    assert await world.stores.catalog.merchant_by_key(secret[0]) is not None
    page = await browser.get(f"{BASE}/keys")
    assert secret[0] not in page and "Server" in page
    made = next(key for key in await keys.many(shop.merchant.merchant_id, before=None, limit=9) if key.name == "Server")
    await done(browser, f"{BASE}/keys/secret/{made.secret_key_id}/revoke")
    assert await world.stores.catalog.merchant_by_key(secret[0]) is None
    assert await acts(world, shop) == ["secret_key.revoke", "secret_key.create"]
    [_, created] = await world.audit_log.many(shop.merchant.merchant_id)
    assert secret[0] not in json.dumps([created.before, created.after])


async def test_a_provider_key_is_set_replaced_and_removed_and_never_shown(
    world: DashboardWorld, shop: Shop, browser: Browser
) -> None:
    for key in ("sk-first-1111", "sk-second-2222"):
        await done(browser, f"{BASE}/keys/provider", {"provider": "openai", "provider_key": key})
    assert (await world.stores.catalog.provider_keys(shop.merchant.merchant_id)) == {"openai": "sk-second-2222"}
    page = await browser.get(f"{BASE}/keys")
    assert "...2222" in page and "sk-second" not in page
    text = await refused(browser, f"{BASE}/keys/provider", {"provider": "nobody", "provider_key": "with space"})
    assert "Choose one of" in text and "without spaces" in text and "with space" not in text
    await done(browser, f"{BASE}/keys/provider/openai/remove")
    assert await ProviderKeyStore(world.stores.pool).many(shop.merchant.merchant_id) == []
    for name in ("openai", "nobody"):
        assert (await browser.post(f"{BASE}/keys/provider/{name}/remove")).status == 404
    entries = await world.audit_log.many(shop.merchant.merchant_id)
    assert [entry.action for entry in entries] == ["provider_key.remove", "provider_key.set", "provider_key.set"]
    assert (entries[1].before, entries[1].after) == ({"hint": "...1111"}, {"hint": "...2222"})


async def test_a_spend_key_is_made_edited_paused_rotated_and_deleted(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    typed = {
        **NO_LIMITS,
        "name": "Tool",
        "request_shape": "anthropic",
        "allowed_models": "claude-*, gpt-4o",
        "expires_at": "2030-01-02T03:04",
    }
    text = await refused(browser, f"{BASE}/keys/spend", {**typed, "name": "", "expires_at": "soon", "concurrency": "-1"})
    assert "This is needed" in text and "A date and time in UTC" in text and "claude-*, gpt-4o" in text
    async with browser.client.post(f"{BASE}/keys/spend", data={"csrf": browser.csrf, **typed, "spend_amount": "5"}) as answer:
        text = await answer.text()
    secret = re.search(r"lava_sk_[A-Za-z0-9_-]{20,}", text)
    assert secret is not None
    made = await world.stores.catalog.spend_key_by_secret(secret[0])
    assert made is not None and made.rules.allowed_models == ("claude-*", "gpt-4o") and made.limits.spend_nanos == 5 * USD
    assert made.rules.expires_at == datetime(2030, 1, 2, 3, 4, tzinfo=UTC)
    one = f"{BASE}/keys/spend/{made.spend_key_id}"
    page = await browser.get(one)
    assert secret[0] not in page and "2030-01-02T03:04" in page and "Spent this cycle" in page
    assert "This is needed" in await refused(browser, one, {**typed, "name": ""})
    await done(browser, one, {**typed, "name": "Tool 2", "allowed_models": "", "expires_at": "2020-01-01T00:00"})
    assert "expired" in await browser.get(f"{BASE}/keys")
    await done(browser, f"{one}/status", {"status": "paused"})
    changed = await world.stores.catalog.spend_key(shop.merchant.merchant_id, made.spend_key_id)
    assert changed is not None and changed.rules.allowed_models is None and changed.status == "paused"
    async with browser.client.post(f"{one}/rotate", data={"csrf": browser.csrf}) as answer:
        assert re.search(r"lava_sk_[A-Za-z0-9_-]{20,}", await answer.text())
    assert await world.stores.catalog.spend_key_by_secret(secret[0]) is None
    await done(browser, f"{one}/delete")
    await browser.get(one, 404)
    assert await acts(world, shop) == [
        "spend_key.delete", "spend_key.rotate", "spend_key.pause", "spend_key.change", "spend_key.create",
    ]  # fmt: skip


# -- webhooks


async def test_an_endpoint_is_made_tested_changed_replayed_and_deleted(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    typed = {"name": "Events", "url": "ftp://x", "vocabulary": "customer", "all_events": "no"}
    text = await refused(browser, f"{BASE}/webhooks", typed)
    assert "a public https address is needed" in text and "Choose at least one event" in text and "ftp://x" in text
    async with running_receiver() as receiver:
        typed = {**typed, "url": receiver.url, "all_events": "yes"}
        async with browser.client.post(f"{BASE}/webhooks", data={"csrf": browser.csrf, **typed}) as answer:
            text = await answer.text()
        assert answer.status == 200 and "Signing secret" in text
        [made] = await world.stores.webhooks.webhooks(shop.merchant.merchant_id, before=None, limit=5)
        one = f"{BASE}/webhooks/{made.webhook_id}"
        await done(browser, f"{one}/test")
        page = await browser.get(one)
        assert "took the test event and answered 200" in page and "webhook.test" in page and "delivered" in page
        [logged] = await world.stores.webhooks.deliveries(shop.merchant.merchant_id, made.webhook_id, before=None, limit=5)
        await done(browser, f"{one}/deliveries/{logged.delivery_id}/replay")
        assert "Waiting" in await browser.get(f"{one}?state=pending") and "pending" in await browser.get(one)
        assert "Nothing was sent" in await browser.get(f"{one}?state=failed")
        assert (await browser.post(f"{one}/deliveries/{new_id('dlv')}/replay")).status == 404
    await done(browser, one, {**typed, "all_events": "no", "events": ["customer.deleted"], "name": "Ends"})
    await refused(browser, one, {**typed, "vocabulary": "x"})
    await done(browser, f"{one}/test")
    assert "did not arrive" in await browser.get(one)
    await done(browser, f"{one}/status", {"status": "disabled"})
    await done(browser, f"{one}/deliveries/{logged.delivery_id}/replay")
    assert "alert-danger" in await browser.get(one)  # a disabled endpoint is sent nothing
    async with browser.client.post(f"{one}/rotate", data={"csrf": browser.csrf}) as answer:
        text = await answer.text()
    assert "Signing secret" in text and "signs beside the new one until" in text
    await done(browser, f"{one}/delete")
    assert "No endpoints yet" in await browser.get(f"{BASE}/webhooks")
    assert await acts(world, shop) == [
        "webhook.delete", "webhook.rotate", "webhook.disable", "webhook.test", "webhook.change", "webhook.replay",
        "webhook.test", "webhook.create",
    ]  # fmt: skip


# -- settings


async def test_settings_are_changed_and_say_what_the_installation_decides(
    world: DashboardWorld, shop: Shop, browser: Browser
) -> None:
    page = await browser.get(f"{BASE}/settings")
    assert "drain" in page and "bedrock" in page and "Sign out everywhere" in page
    await refused(browser, f"{BASE}/settings/name", {"name": ""})
    await done(browser, f"{BASE}/settings/name", {"name": "Ace & Sons"})
    assert "Ace &amp; Sons" in await browser.get(f"{BASE}/settings")
    assert "from 0 to 2,000,000" in await refused(browser, f"{BASE}/settings/clamp", {"clamp_floor": "-5"})
    await done(browser, f"{BASE}/settings/clamp", {"clamp_floor": "64"})
    assert (await world.stores.catalog.merchant(shop.merchant.merchant_id)).clamp_floor == 64
    assert "Choose one of" in await refused(browser, f"{BASE}/settings/overage", {"overage_policy": "inherit"})
    await done(browser, f"{BASE}/settings/overage", {"overage_policy": "auto_top_up"})
    assert "the bundle is bought (your default)" in await browser.get(f"{BASE}/customers/{shop.customer.connection_id}")
    assert await acts(world, shop) == ["merchant.overage", "merchant.clamp_floor", "merchant.rename"]
