"""An act and its entry in the audit log are one transaction: in the dashboard, and where the API ends, rotates or moves something.

Each act is tried with an entry that fails, after which everything is as it was; then without, after which both are there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from lava_proxy.billing.cards import Cards
from lava_proxy.billing.customers import open_customer
from lava_proxy.billing.subscriptions import Subscriptions
from lava_proxy.domain.errors import StoreError
from lava_proxy.domain.limits import KeyRules, Limits
from lava_proxy.domain.plans import Terms
from lava_proxy.payments.processor import CardDetails
from lava_proxy.payments.sandbox import SandboxProcessor
from lava_proxy.stores.audit_log import AuditLog
from lava_proxy.stores.catalog_store import Connection
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.plan_store import BundleDraft
from tests.dashboard_world import Browser, DashboardWorld, dashboard_world
from tests.engines import RunningEngines
from tests.integration.api_world import USD, Shop, Stores, open_shop, opened_stores

# Written down before the act, which is outside of Postgres; or nothing is changed.
OUTSIDE = {
    "/dashboard/sign-out", "/dashboard/sign-out-everywhere", "/auth/connect", "/dashboard/token", "/dashboard/meters/quote",
    "/dashboard/settings/branding/preview", "/dashboard/sign-in", "/dashboard/meters/{meter}/secret",
    "/dashboard/checkouts/{session}/email", "/dashboard/steps/hide",
}  # fmt: skip
TABLES = (
    "merchant", "secret_key", "provider_key", "spend_key", "webhook", "webhook_secret", "event", "delivery", "meter",
    "meter_version", "plan", "plan_meter", "credit_bundle", "connection", "subscription", "credit", "adjustment", "refund",
    "checkout_session", "merchant_branding", "audit_log",
)  # fmt: skip


@dataclass
class Pen:
    """Breaks on demand, after it has written."""

    is_broken: bool = False
    written: list[str] = field(default_factory=list)


@pytest.fixture
def pen(monkeypatch: pytest.MonkeyPatch) -> Pen:
    pen, write = Pen(), AuditLog.note

    async def note(self: AuditLog, merchant_id: str, actor: Any, action: str, object_id: str, **facts: Any) -> None:
        await write(self, merchant_id, actor, action, object_id, **facts)
        pen.written.append(action)
        if pen.is_broken:
            raise StoreError("The pen broke.", code="database_unavailable")

    monkeypatch.setattr(AuditLog, "note", note)
    return pen


@pytest.fixture
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture
async def world(stores: Stores) -> AsyncIterator[DashboardWorld]:
    async with dashboard_world(stores) as made:
        yield made


@dataclass(frozen=True, kw_only=True)
class Things:
    """What is there to be changed."""

    customer: str
    meter: str
    plan: str
    spend_key: str
    webhook: str
    delivery: str
    secret_key: str
    subscription: str
    charge: str
    charge_by_api: str


async def things(world: DashboardWorld, shop: Shop) -> Things:
    stores, deps, merchant_id = world.stores, world.deps, shop.merchant.merchant_id
    terms = Terms(plan_id="", name="Pro", period_amount_nanos=0, included_credit_nanos=0, billing_interval="month")
    bundle = BundleDraft(name="Small", cost_nanos=5 * USD, credit_nanos=6 * USD)
    plans = deps.merchant_stores.plans
    plan = await plans.create_plan(merchant_id, terms, overage=None, meter_ids=[], bundles=[bundle])
    subscription = await Subscriptions(plans, deps.funding, deps.clock).change_unpaid(shop.customer, plan)
    spend_key = await stores.catalog.create_spend_key(merchant_id, name="Tool", rules=KeyRules(), limits=Limits())
    webhook = await stores.webhooks.create(
        merchant_id, name="Events", url="http://127.0.0.1:9/x", vocabulary="customer", events=None, status="active",
        now=datetime.now(UTC),
    )  # fmt: skip
    outgoing = await stores.webhooks.add_test(webhook, deps.clock(), deps.clock() - deps.clock())
    key = await deps.merchant_stores.secret_keys.create(merchant_id, "second", live=True)
    wallet_id = shop.customer.wallet_id
    person_id = await deps.charge_store.wallet_person_made(wallet_id, deps.clock())
    cards = Cards(deps.charge_store, SandboxProcessor(stores.pool, clock=deps.clock), deps.charges, deps.clock)
    await cards.add(person_id, CardDetails(number="4242424242424242", expiry_month=12, expiry_year=2034))
    charges = []
    for key_of in ("a", "b"):
        opened = await deps.charges.open(
            wallet_id=wallet_id, merchant_id=merchant_id, purpose="top_up", amount_cents=2000, key=key_of
        )  # fmt: skip
        charges.append((await deps.charges.advance(opened.charge_id)).charge_id)
    await stores.flush()
    return Things(
        customer=shop.customer.connection_id, meter=shop.meter.meter_id, plan=plan.plan_id, spend_key=spend_key.spend_key_id,
        webhook=webhook.webhook_id, delivery=outgoing.delivery_id, secret_key=key.secret_key_id,
        subscription=subscription.subscription_id, charge=charges[0], charge_by_api=charges[1],
    )  # fmt: skip


async def rows(stores: Stores) -> dict[str, list[str]]:
    """Everything that acts write."""
    found = {}
    for table in TABLES:
        found[table] = sorted(row["row"] for row in await stores.pool.fetch(f"SELECT t::text AS row FROM {table} t"))
    return found


def dashboard_acts(of: Things) -> list[tuple[str, dict[str, Any], str, str]]:
    """(route, form, action, address), in an order in which each finds what it changes."""
    limits = {"spend_cycle": "monthly", "request_cycle": "monthly"}
    tiers = {"start": ["0"], "rate": ["1"], "token_basis": "input+output"}
    price = {"rate_type": "fixed", "tier_type": "tokens_1m", **tiers}
    plan = {
        "name": "Gold", "billing_interval": "month", "rollover_type": "none", "bundle_rollover_type": "full",
        "overage_policy": "inherit", "period_amount": "0",
    }  # fmt: skip
    hook = {"name": "Other", "url": "http://127.0.0.1:9/y", "vocabulary": "customer", "all_events": "yes"}
    one, key, wh = "/dashboard/customers/{customer}", "/dashboard/keys/spend/{spend_key}", "/dashboard/webhooks/{webhook}"
    money = {"direction": "add", "amount": "5", "reason": "Sorry", "adjust_id": new_id("adj")}
    refund = {"charge_id": of.charge, "refund_id": new_id("ref"), "refund_reason": "Unhappy", "refund_amount": "3"}
    return [
        ("/dashboard/settings/name", {"name": "New name"}, "merchant.rename", ""),
        ("/dashboard/settings/overage", {"overage_policy": "block"}, "merchant.overage", ""),
        ("/dashboard/settings/clamp", {"clamp_floor": "64"}, "merchant.clamp_floor", ""),
        ("/dashboard/settings/branding", {"name": "Shop", "colour": "#123456"}, "merchant.branding", ""),
        ("/dashboard/keys/secret", {"name": "CI", "kind": "live"}, "secret_key.create", ""),
        ("/dashboard/keys/secret/{secret_key}/revoke", {}, "secret_key.revoke", of.secret_key),
        ("/dashboard/keys/provider", {"provider": "openai", "provider_key": "sk-1234567890"}, "provider_key.set", ""),
        ("/dashboard/keys/provider/{provider}/remove", {}, "provider_key.remove", "openai"),
        ("/dashboard/keys/spend", {"name": "CLI", "request_shape": "openai", **limits}, "spend_key.create", ""),
        (key, {"name": "Tool 2", "request_shape": "openai", **limits}, "spend_key.change", of.spend_key),
        (key + "/status", {"status": "paused"}, "spend_key.pause", of.spend_key),
        (key + "/rotate", {}, "spend_key.rotate", of.spend_key),
        (key + "/delete", {}, "spend_key.delete", of.spend_key),
        ("/dashboard/webhooks", hook, "webhook.create", ""),
        (wh, hook, "webhook.change", of.webhook),
        (wh + "/rotate", {}, "webhook.rotate", of.webhook),
        (wh + "/test", {}, "webhook.test", of.webhook),
        (wh + "/deliveries/{delivery}/replay", {}, "webhook.replay", of.webhook),
        (wh + "/status", {"status": "disabled"}, "webhook.disable", of.webhook),
        (wh + "/delete", {}, "webhook.delete", of.webhook),
        ("/dashboard/meters", {"name": "Voice", **price}, "meter.create", ""),
        ("/dashboard/meters/{meter}", {"name": "Chat", **price, "rate": ["7"]}, "meter.change", of.meter),
        ("/dashboard/meters/{meter}/archive", {}, "meter.archive", of.meter),
        ("/dashboard/plans", plan, "plan.create", ""),
        ("/dashboard/plans/{plan}", plan, "plan.change", of.plan),
        ("/dashboard/plans/{plan}/archive", {}, "plan.archive", of.plan),
        ("/dashboard/plans/subscriptions/{subscription}/cancel", {}, "subscription.cancel", of.subscription),
        ("/dashboard/customers", {"name": "Ann", "reference_id": "ann-1"}, "customer.create", ""),
        (one + "/details", {"name": "Bob", "reference_id": "bob-1"}, "customer.change", of.customer),
        (one + "/limits", {"rpm": "5", **limits}, "customer.limit", of.customer),
        (one + "/overage", {"overage_policy": "block"}, "customer.overage", of.customer),
        (one + "/adjust", money, "customer.adjust", of.customer),
        (one + "/refund", refund, "payment.refund", of.customer),
        (one + "/status", {"status": "disabled"}, "customer.disable", of.customer),
        (one + "/portal", {}, "customer.page_link", of.customer),
        ("/dashboard/checkouts", {"offer": "onboarding"}, "checkout.create", ""),
        (one + "/delete", {}, "customer.delete", of.customer),
    ]


async def both_or_neither(
    world: DashboardWorld, pen: Pen, shop: Shop, action: str, act: Callable[[], Awaitable[int]], method: str
) -> None:
    """The act with a broken pen leaves everything as it was; with a good one it and its entry are there."""
    before = await rows(world.stores)
    pen.is_broken = True
    try:
        status = await act()
    finally:
        pen.is_broken = False
    assert status == (422 if action == "payment.refund" and method == "form" else 503), (action, status)
    assert await rows(world.stores) == before, action
    pen.written.clear()
    status = await act()
    assert status in (200, 201, 303), (action, status)
    after = await rows(world.stores)
    assert pen.written == [action]
    assert {name for name in TABLES if after[name] != before[name]} > {"audit_log"}, action
    assert (await world.audit_log.many(shop.merchant.merchant_id, limit=1))[0].action == action


async def test_a_change_in_the_dashboard_and_its_entry_are_both_there_or_neither(world: DashboardWorld, pen: Pen) -> None:
    shop = await open_shop(world.stores, "one")
    acts = dashboard_acts(await things(world, shop))
    routes = {
        route.path for route in world.site.routes() if route.method == "POST" and route.path.startswith(("/dashboard", "/auth"))
    }
    assert routes - OUTSIDE == {path for path, _, _, _ in acts}, "every change of the dashboard is tried here"
    of = await world.stores.pool.fetchval("SELECT delivery_id FROM delivery LIMIT 1")
    async with world.browser(shop) as browser:
        for path, form, action, identifier in acts:
            address = path.replace("{delivery}", of)
            address = re.sub(r"\{[a-z_]+\}", identifier, address)

            async def act(browser: Browser = browser, address: str = address, form: dict[str, Any] = form) -> int:
                return int((await browser.post(address, form)).status)

            await both_or_neither(world, pen, shop, action, act, "form")


async def test_what_the_api_ends_or_moves_and_its_entry_are_both_there_or_neither(world: DashboardWorld, pen: Pen) -> None:
    shop = await open_shop(world.stores, "one")
    of = await things(world, shop)
    other = await world.stores.catalog.create_connection(shop.merchant.merchant_id, reference_id="other")
    acts: list[tuple[str, str, dict[str, Any] | None, str, str]] = [
        ("POST", f"/v1/customers/{of.customer}/adjustments", {"amount": "-2.50", "reason": "x"}, "customer.adjust", of.customer),
        ("POST", f"/v1/charges/{of.charge_by_api}/refund", {"amount": "3", "reason": "x"}, "payment.refund", of.charge_by_api),
        ("POST", f"/v1/spend_keys/{of.spend_key}/rotate", None, "spend_key.rotate", of.spend_key),
        ("DELETE", f"/v1/spend_keys/{of.spend_key}", None, "spend_key.delete", of.spend_key),
        ("POST", f"/v1/webhooks/{of.webhook}/rotate", None, "webhook.rotate", of.webhook),
        ("DELETE", f"/v1/webhooks/{of.webhook}", None, "webhook.delete", of.webhook),
        ("DELETE", f"/v1/meters/{of.meter}", None, "meter.archive", of.meter),
        ("DELETE", f"/v1/subscriptions/{of.subscription}", None, "subscription.cancel", of.subscription),
        ("DELETE", f"/v1/plans/{of.plan}", None, "plan.archive", of.plan),
        ("DELETE", f"/v1/connections/{other.connection_id}", None, "customer.delete", other.connection_id),
        ("DELETE", f"/v1/customers/{of.customer}", None, "customer.delete", of.customer),
        ("DELETE", f"/v1/secret_keys/{of.secret_key}", None, "secret_key.revoke", of.secret_key),
    ]
    async with world.browser() as browser:
        for method, address, body, action, object_id in acts:

            async def act(method: str = method, address: str = address, body: dict[str, Any] | None = body) -> int:
                async with browser.client.request(method, address, json=body, headers=shop.headers) as answer:
                    await answer.text()
                    return answer.status

            await both_or_neither(world, pen, shop, action, act, method)
            (entry,) = await world.audit_log.many(shop.merchant.merchant_id, limit=1)
            assert (entry.object_id, entry.actor.kind) == (object_id, "key"), action
            assert entry.actor.name == f"API key {shop.key[:9]}...{shop.key[-4:]}" and entry.actor.id.startswith("sk_")


async def test_a_form_that_is_sent_twice_at_once_is_one_act_with_one_entry(world: DashboardWorld) -> None:
    shop = await open_shop(world.stores, "one")
    form = {"direction": "add", "amount": "5", "reason": "Sorry", "adjust_id": new_id("adj")}
    async with world.browser(shop) as browser:
        address = f"/dashboard/customers/{shop.customer.connection_id}/adjust"
        answers = await asyncio.gather(*(browser.post(address, form) for _ in range(4)))
    assert {answer.status for answer in answers} == {303}
    (entry,) = await world.audit_log.many(shop.merchant.merchant_id)
    assert (entry.action, entry.after) == (
        "customer.adjust", {"adjust_id": form["adjust_id"], "amount_nanos": 5 * USD, "reason": "Sorry"},
    )  # fmt: skip
    (kept,) = await world.stores.pool.fetch("SELECT adjust_id, made_by FROM adjustment")
    assert (kept["adjust_id"], kept["made_by"]) == (form["adjust_id"], "dashboard")
    state = (await world.stores.outbox.wallet_states([shop.customer.wallet_id]))[shop.customer.wallet_id]
    assert state is not None and state.balance_nanos == 30 * USD


async def test_a_key_that_ends_itself_is_named_in_the_entry(world: DashboardWorld) -> None:
    shop = await open_shop(world.stores, "one")
    keys = world.deps.merchant_stores.secret_keys
    second = await keys.create(shop.merchant.merchant_id, "second", live=True)
    async with world.browser() as browser:
        address, headers = f"/v1/secret_keys/{second.secret_key_id}", {"Authorization": f"Bearer {second.secret}"}
        async with browser.client.delete(address, headers=headers) as answer:
            assert answer.status == 200
    (entry,) = await world.audit_log.many(shop.merchant.merchant_id)
    assert (entry.action, entry.object_id, entry.actor.id) == ("secret_key.revoke", second.secret_key_id, second.secret_key_id)


async def test_a_customer_whose_wallet_cannot_be_opened_is_gone_again_and_the_log_says_so(
    world: DashboardWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, told = await open_shop(world.stores, "one"), []

    async def away(wallet_id: str) -> None:
        raise StoreError("Redis cannot answer")

    async def note(db: Any, action: str, customer: Connection) -> None:
        told.append((action, customer.reference_id))

    monkeypatch.setattr(world.deps.funding, "open_wallet", away)
    with pytest.raises(StoreError):
        await open_customer(
            world.deps.catalog, world.deps.merchant_stores.customers, world.deps.funding, shop.merchant.merchant_id,
            reference_id="ann", contact={}, note=note,
        )  # fmt: skip
    assert told == [("customer.create", "ann"), ("customer.delete", "ann")]
    assert await world.deps.catalog.connection(shop.merchant.merchant_id, "ann") is None


async def test_mail_is_noted_before_it_is_sent_and_so_is_that_it_was_not(
    world: DashboardWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = await open_shop(world.stores, "one")
    made = await world.deps.checkout.create(
        shop.merchant.merchant_id, "onboarding", origin_url="http://127.0.0.1/", is_test=True
    )  # fmt: skip

    async def refuse(session: Any, to: str, base: str) -> None:
        assert [entry.action for entry in await world.audit_log.many(shop.merchant.merchant_id)] == ["checkout.send"]
        raise StoreError("The mail server is away.", code="email_unavailable")

    monkeypatch.setattr(world.deps.checkout_links, "send", refuse)
    async with world.browser(shop) as browser:
        answer = await browser.post(f"/dashboard/checkouts/{made.checkout_session_id}/email", {"email": "ann@shop.example"})
        assert answer.status == 422
    failed, sent = await world.audit_log.many(shop.merchant.merchant_id)
    assert (sent.action, failed.action) == ("checkout.send", "checkout.send_failed")
    assert failed.after == {"email": "ann@shop.example", "error": "email_unavailable"}
