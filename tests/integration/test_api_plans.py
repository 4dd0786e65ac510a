"""Plans, bundles and subscriptions over REST, in the newest vocabulary and the older one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from lava_proxy.billing.funding import Funding
from lava_proxy.domain.plans import Overage
from lava_proxy.stores.plan_store import PlanStore
from tests.engines import RunningEngines
from tests.integration.api_world import CLOCK, USD, Shop, Stores, dependencies, open_shop, opened_stores, served

Client = TestClient[Any, Any]
PLAN_KEYS = {
    "plan_id", "subscription_config_id", "merchant_id", "name", "period_amount", "included_credit", "billing_interval",
    "rollover_type", "bundle_rollover_type", "default_auto_top_up_bundle_id", "linked_meters", "credit_bundles", "overage",
    "is_default", "created_at",
}  # fmt: skip
BASE_KEYS = {
    "subscription_id", "plan_id", "status", "auto_top_up_bundle_id", "started_at", "cancelled_at", "cycle_start_at",
    "cycle_end_at", "plan", "credits", "pending_change",
}  # fmt: skip


@pytest.fixture(scope="module")
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture(scope="module")
async def client(stores: Stores) -> AsyncIterator[Client]:
    async with served(dependencies(stores)) as started:
        yield started


async def send(client: Client, shop: Shop, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    async with client.request(method, f"/v1/{path}", headers=shop.headers, json=body) as answer:
        return answer.status, await answer.json()


async def refused(client: Client, shop: Shop, method: str, path: str, body: Any) -> str:
    """The code and sentence of a 4xx."""
    status, answer = await send(client, shop, method, path, body)
    assert 400 <= status < 500, answer
    return f"{status} {answer['error']['code']}: {answer['error']['message']}"


BODY = {"name": "Pro", "period_amount": "25.00", "billing_interval": "month"}


async def test_a_plan_has_every_key_and_its_defaults(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "plan defaults")
    status, plan = await send(client, shop, "POST", "plans", BODY)
    assert (status, set(plan)) == (201, PLAN_KEYS)
    assert (plan["period_amount"], plan["included_credit"], plan["rollover_type"], plan["bundle_rollover_type"]) == (
        "25.00", "25.00", "none", "full",
    )  # fmt: skip
    assert (plan["linked_meters"], plan["credit_bundles"], plan["overage"], plan["is_default"]) == ([], [], None, False)
    assert plan["plan_id"] == plan["subscription_config_id"] and plan["plan_id"].startswith("sc_")
    assert await send(client, shop, "GET", f"plans/{plan['plan_id']}") == (200, plan)
    assert await send(client, shop, "GET", f"subscription_configs/{plan['plan_id']}") == (200, plan)
    _, page = await send(client, shop, "GET", "plans?limit=1")
    assert page == {"data": [plan], "has_more": True, "next_cursor": plan["plan_id"]}
    _, rest = await send(client, shop, "GET", f"plans?cursor={plan['plan_id']}")
    assert [(one["name"], one["is_default"]) for one in rest["data"]] == [("Free", True)]


async def test_bundles_keep_the_order_in_which_they_were_given(client: Client, stores: Stores) -> None:
    """Made within one millisecond their ids are random: they have to be put in order."""
    shop = await open_shop(stores, "ordered")
    names = [f"bundle {number}" for number in range(9)]
    drafts = [{"name": name, "cost": "5", "credit_amount": "6"} for name in names]
    status, plan = await send(
        client, shop, "POST", "plans", {"name": "P", "period_amount": "20", "billing_interval": "month", "credit_bundles": drafts}
    )
    assert status in (200, 201) and [bundle["name"] for bundle in plan["credit_bundles"]] == names


async def test_a_plan_with_meters_bundles_and_overage_and_all_its_changes(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "plan changes")
    body = BODY | {
        "included_credit": "20", "meter_ids": [shop.meter.meter_id], "default_auto_top_up_bundle_index": 1,
        "credit_bundles": [
            {"name": "S", "cost": "5.00", "credit_amount": "6.00"}, {"name": "L", "cost": "50.00", "credit_amount": "70.5"},
        ],
        "overage": {"policy": "charge", "limit": "20"},
    }  # fmt: skip
    _, plan = await send(client, shop, "POST", "plans", body)
    small, large = plan["credit_bundles"]
    assert plan["linked_meters"] == [{"meter_id": shop.meter.meter_id, "name": "Chat"}]
    assert (large["cost"], large["credit_amount"]) == ("50.00", "70.50")
    assert plan["default_auto_top_up_bundle_id"] == large["credit_bundle_id"]
    assert (plan["overage"]["policy"], plan["overage"]["limit"], plan["overage"]["threshold"]) == ("charge", "20.00", "10.00")
    path = f"plans/{plan['plan_id']}"
    changes = {
        "name": "Pro 2", "rollover_type": "full", "included_credit": "25.00", "meter_ids": [], "overage": None,
        "credit_bundles": [
            {"credit_bundle_id": small["credit_bundle_id"], "cost": "4.00"},
            {"credit_bundle_id": large["credit_bundle_id"], "is_deleted": True},
            {"name": "M", "cost": "10.00", "credit_amount": "11.00"},
        ],
    }  # fmt: skip
    status, changed = await send(client, shop, "PATCH", path, changes)
    assert status == 200, changed
    assert (changed["name"], changed["rollover_type"], changed["included_credit"], changed["overage"]) == (
        "Pro 2", "full", "25.00", None,
    )  # fmt: skip
    assert [(one["name"], one["cost"]) for one in changed["credit_bundles"]] == [("S", "4.00"), ("M", "10.00")]
    assert changed["default_auto_top_up_bundle_id"] is None and changed["linked_meters"] == []
    third = changed["credit_bundles"][1]["credit_bundle_id"]
    _, changed = await send(
        client, shop, "PATCH", path, {"default_auto_top_up_bundle_id": third, "product_ids": [shop.meter.meter_id]}
    )
    assert changed["default_auto_top_up_bundle_id"] == third and len(changed["linked_meters"]) == 1
    assert (await send(client, shop, "PATCH", path, {"period_amount": "25", "billing_interval": "month"}))[0] == 200
    _, bundles = await send(client, shop, "GET", f"credit_bundles?plan_id={plan['plan_id']}")
    assert [one["name"] for one in bundles["data"]] == ["M", "S"]
    _, one = await send(client, shop, "GET", f"credit_bundles/{third}")
    assert (one["plan_id"], one["credit_amount"]) == (plan["plan_id"], "11.00")
    assert (await send(client, shop, "GET", f"credit_bundles/{large['credit_bundle_id']}"))[0] == 404
    assert await send(client, shop, "DELETE", path) == (200, {"id": plan["plan_id"], "deleted": True})
    assert (await send(client, shop, "GET", path))[0] == 404


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"period_amount": "10000.01"}, "0.50 to 10000 dollars"),
        ({"period_amount": "0.49"}, "0.50 to 10000 dollars"),
        ({"period_amount": "25.001"}, "whole cents"),
        ({"period_amount": 25}, "dollars in a string"),
        ({"included_credit": "25.01"}, "at most period_amount"),
        ({"billing_interval": "hour"}, "billing_interval"),
        ({"meter_ids": ["prd_none"]}, "meter_ids"),
        ({"credit_bundles": [{"name": "S", "cost": "0.10", "credit_amount": "1"}]}, "credit_bundles[0].cost"),
        ({"credit_bundles": [{"name": "S", "cost": "1.00", "credit_amount": "0"}]}, "above 0"),
        ({"default_auto_top_up_bundle_index": 0}, "place of one of the 0"),
        ({"overage": {"policy": "sometimes", "limits": "3"}}, "overage.policy"),
        ({"overage": {"policy": "charge", "threshold": "60"}}, "threshold must not be above"),
        ({"colour": "red"}, "colour is not a field"),
    ],
)
async def test_what_a_plan_cannot_be_is_refused_with_a_sentence(
    client: Client, stores: Stores, changes: dict[str, Any], said: str
) -> None:
    shop = await open_shop(stores, "plan refused")
    assert said in await refused(client, shop, "POST", "plans", BODY | changes)
    assert len((await send(client, shop, "GET", "plans"))[1]["data"]) == 1


async def test_what_a_plan_costs_and_how_often_cannot_be_changed(client: Client, stores: Stores) -> None:
    shop, other = await open_shop(stores, "immutable"), await open_shop(stores, "other")
    _, plan = await send(client, shop, "POST", "plans", BODY)
    path = f"plans/{plan['plan_id']}"
    said = await refused(client, shop, "PATCH", path, {"period_amount": "30.00", "billing_interval": "year"})
    assert said.startswith("400 immutable_field: period_amount and billing_interval cannot be changed")
    assert "included_credit is above" in await refused(client, shop, "PATCH", path, {"included_credit": "30"})
    bundle = {"name": "S", "cost": "5.00", "credit_amount": "6.00"}
    _, theirs = await send(client, other, "POST", "plans", BODY | {"credit_bundles": [bundle]})
    stranger = theirs["credit_bundles"][0]["credit_bundle_id"]
    for body in (
        {"default_auto_top_up_bundle_id": stranger},
        {"credit_bundles": [{"credit_bundle_id": stranger, "name": "mine"}]},
        {"credit_bundles": [{"name": "no price"}]},
        {"meter_ids": [other.meter.meter_id]},
        {"meter_ids": [], "product_ids": [shop.meter.meter_id]},
    ):
        assert "400 invalid_parameter" in await refused(client, shop, "PATCH", path, body)
    assert await send(client, shop, "GET", path) == (200, plan)
    _, page = await send(client, shop, "GET", "plans")
    default = next(one for one in page["data"] if one["is_default"])
    assert "409 default_plan" in await refused(client, shop, "DELETE", f"plans/{default['plan_id']}", None)
    _, renamed = await send(client, shop, "PATCH", f"plans/{default['plan_id']}", {"name": "Hobby"})
    assert renamed["name"] == "Hobby"


async def test_a_subscription_has_every_key_in_both_vocabularies_and_live_credits(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "subscription keys")
    customer = shop.customer
    status, found = await send(client, shop, "GET", f"customers/{customer.connection_id}/subscription")
    base = found["subscription"]
    assert status == 200 and set(base) >= BASE_KEYS
    assert (base["status"], base["plan"]["name"], base["plan"]["period_amount"]) == ("active", "Free", "0.00")
    assert await send(client, shop, "GET", f"connections/{customer.connection_id}/subscription") == (200, found)
    funding = Funding(stores.catalog, stores.balances)
    await funding.renew_cycle(
        shop.merchant.merchant_id, customer.wallet_id, "ren_test_1", grant_nanos=7 * USD, ends=frozenset(), reason="test"
    )
    await funding.grant_bundle(shop.merchant.merchant_id, customer.wallet_id, 2 * USD, "test", "crd_test_1")
    await stores.balances.reserve(
        customer.wallet_id, "req_held", 3 * USD, row=b'{"merchant_id":"m"}', lease_ms=60_000, plan_linked=True
    )  # fmt: skip
    _, page = await send(client, shop, "GET", f"subscriptions?customer_id={customer.connection_id}")
    (one,) = page["data"]
    assert one["credits"] == {
        "total_remaining": "6.0000000000", "cycle_remaining": "4.0000000000", "bundle_remaining": "2.0000000000",
    }  # fmt: skip
    assert (one["customer_id"], one["connection_id"]) == (customer.connection_id, customer.connection_id)
    assert one["customer"]["email"] == "buyer@subscription keys.example"
    assert one["subscription_config_id"] == one["plan_id"]
    _, shown = await send(client, shop, "GET", f"customers/{customer.connection_id}")
    keys = {"subscription_id", "plan_id", "name", "status"}
    assert {key: shown["subscription"][key] for key in keys} == {
        "subscription_id": one["subscription_id"], "plan_id": one["plan_id"], "name": "Free", "status": "active",
    }  # fmt: skip
    _, listed = await send(client, shop, "GET", "connections")
    assert listed["data"][0]["subscription"]["subscription_config_id"] == one["plan_id"]


async def test_free_plans_are_started_here_and_paid_ones_by_checkout(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "free starts")
    customer_id = shop.customer.connection_id
    _, paid = await send(client, shop, "POST", "plans", BODY)
    _, free = await send(client, shop, "POST", "plans", BODY | {"name": "Basic", "period_amount": "0"})
    said = await refused(client, shop, "POST", "subscriptions", {"customer_id": customer_id, "plan_id": paid["plan_id"]})
    assert said.startswith("409 payment_required: The plan 'Pro' has to be paid: create a checkout session")
    status, made = await send(
        client, shop, "POST", "subscriptions", {"connection_id": customer_id, "subscription_config_id": free["plan_id"]}
    )
    subscription = made["subscription"]
    assert (status, subscription["plan"]["name"], subscription["pending_change"]) == (201, "Basic", None)
    one = f"subscriptions/{subscription['subscription_id']}"
    assert "auto_top_up_bundle_id is required" in await refused(client, shop, "PATCH", one, {})
    assert "404 bundle_not_found" in await refused(client, shop, "PATCH", one, {"auto_top_up_bundle_id": "cb_1"})
    assert await send(client, shop, "PATCH", one, {"auto_top_up_bundle_id": None}) == (200, {"success": True})
    assert await send(client, shop, "DELETE", one) == (200, {"success": True})
    assert (await send(client, shop, "GET", f"customers/{customer_id}/subscription"))[1] == {"subscription": None}
    for status_filter, count in (("active", 0), ("cancelled", 1), ("all", 1)):
        _, page = await send(client, shop, "GET", f"subscriptions?status={status_filter}")
        assert len(page["data"]) == count
    assert (await send(client, shop, "GET", one))[1]["cancelled_at"] is not None
    assert "status" in await refused(client, shop, "GET", "subscriptions?status=paused", None)
    assert (await send(client, shop, "GET", "subscriptions?customer_id=nobody"))[1]["data"] == []
    for body in ({"customer_id": customer_id}, {"plan_id": free["plan_id"]}):
        assert "is required" in await refused(client, shop, "POST", "subscriptions", body)
    for body in ({"customer_id": "nobody", "plan_id": free["plan_id"]}, {"customer_id": customer_id, "plan_id": "sc_1"}):
        assert "404 not_found" in await refused(client, shop, "POST", "subscriptions", body)


async def test_a_customer_and_a_merchant_can_have_an_overage_policy_of_their_own(client: Client, stores: Stores) -> None:
    shop = await open_shop(stores, "own overage")
    path = f"customers/{shop.customer.connection_id}"
    policy = {"policy": "charge", "limit": "5.00", "threshold": "2", "increment": "0.50", "monthly_cap": "40"}
    _, changed = await send(client, shop, "PATCH", path, {"overage": policy})
    assert changed["overage"] == policy | {"threshold": "2.00", "monthly_cap": "40.00"}
    assert (await send(client, shop, "GET", path))[1]["overage"] == changed["overage"]
    assert "overage.limit" in await refused(client, shop, "PATCH", path, {"overage": {"limit": "-1"}})
    assert (await send(client, shop, "PATCH", path, {"name": "Ada"}))[1]["overage"] == changed["overage"]
    assert (await send(client, shop, "PATCH", path, {"overage": None}))[1]["overage"] is None
    plans = PlanStore(stores.pool, lambda: CLOCK)
    await plans.set_merchant_overage(shop.merchant.merchant_id, Overage(policy="charge"))
    assert await plans.merchant_overage(shop.merchant.merchant_id) == Overage(policy="charge")
