"""Plans, bundles, subscriptions and checkout sessions by the official SDKs; their other methods are in test_lava_sdk.py."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.e2e import lava_sdk, node_packages
from tests.e2e.lava_sdk import SdkError, Sdks, has_shape, page_of, running_sdks

ORIGIN = "https://shop.example"
BUNDLES = [{"name": "Small", "cost": "10.00", "credit_amount": "10.00"}, {"name": "Large", "cost": "45", "credit_amount": "50"}]


@pytest.fixture(scope="module")
def sdks(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sdks]:
    """Skipped, loudly, where Node or the packages cannot be had."""
    try:
        with running_sdks(daemon, tmp_path_factory.mktemp("lava")) as running:
            yield running
    except node_packages.NotHere as reason:
        pytest.skip(str(reason))


def new_plan(sdks: Sdks, name: str, **changes: Any) -> dict[str, Any]:
    body = {"name": name, "period_amount": "25.00", "billing_interval": "month", "credit_bundles": BUNDLES, **changes}
    made: dict[str, Any] = has_shape(sdks.call("lava11", "subscriptions.createPlan", body), lava_sdk.PLAN)
    return made


def test_plans_bundles_and_subscriptions_of_the_newest_sdk(sdks: Sdks) -> None:
    """A plan from its making to its end, and a customer on a free one."""
    meter = sdks.call("lava11", "meters.retrieve", "fixed")
    plan = new_plan(sdks, "Pro", rollover_type="full", meter_ids=[meter["meter_id"]], default_auto_top_up_bundle_index=1)
    assert (plan["name"], plan["billing_interval"], plan["rollover_type"]) == ("Pro", "month", "full")
    assert plan["linked_meters"] == [{"meter_id": meter["meter_id"], "name": meter["name"]}]
    names = {bundle["credit_bundle_id"]: bundle["name"] for bundle in plan["credit_bundles"]}
    assert sorted(names.values()) == ["Large", "Small"] and names[plan["default_auto_top_up_bundle_id"]] == "Large"
    assert sdks.call("lava11", "subscriptions.retrievePlan", plan["plan_id"]) == plan
    listed = has_shape(sdks.call("lava11", "subscriptions.listPlans", {"limit": 100}), page_of(lava_sdk.PLAN))
    assert plan in listed["data"]

    bundles = has_shape(sdks.call("lava11", "creditBundles.list", {"plan_id": plan["plan_id"]}), page_of(lava_sdk.CREDIT_BUNDLE))
    assert {bundle["credit_bundle_id"] for bundle in bundles["data"]} == set(names)
    first = bundles["data"][0]
    assert has_shape(sdks.call("lava11", "creditBundles.retrieve", first["credit_bundle_id"]), lava_sdk.CREDIT_BUNDLE) == first

    renamed = {"credit_bundle_id": first["credit_bundle_id"], "name": "Renamed", "cost": "11.00", "credit_amount": "12.00"}
    change = {"name": "Pro 2", "bundle_rollover_type": "none", "credit_bundles": [renamed], "meter_ids": []}
    changed = has_shape(sdks.call("lava11", "subscriptions.updatePlan", plan["plan_id"], change), lava_sdk.PLAN)
    assert (changed["name"], changed["bundle_rollover_type"], changed["linked_meters"]) == ("Pro 2", "none", [])
    assert "Renamed" in {bundle["name"] for bundle in changed["credit_bundles"]}

    customer = sdks.call("lava11", "customers.create", {"reference_id": "sdk-plans"})["customer_id"]
    with pytest.raises(SdkError, match=r"Lava API Error: 4\d\d"):
        sdks.call("lava11", "subscriptions.create", {"customer_id": customer, "plan_id": plan["plan_id"]})
    at_no_cost = {"name": "Free of the SDK", "period_amount": "0", "billing_interval": "month", "credit_bundles": BUNDLES}
    free = has_shape(sdks.call("lava11", "subscriptions.createPlan", at_no_cost), lava_sdk.PLAN)
    made = sdks.call("lava11", "subscriptions.create", {"customer_id": customer, "plan_id": free["plan_id"]})
    subscription = has_shape(made, {"subscription": lava_sdk.SUBSCRIPTION})["subscription"]
    assert (subscription["plan_id"], subscription["status"]) == (free["plan_id"], "active")
    assert sdks.call("lava11", "customers.getSubscription", customer) == made
    summary = sdks.call("lava11", "customers.retrieve", customer)["subscription"]
    expected = {
        "subscription_id": subscription["subscription_id"],
        "plan_id": free["plan_id"],
        "name": "Free of the SDK",
        "status": "active",
    }
    assert summary == {**summary, **expected}
    by = {"status": "active", "customer_id": customer, "limit": 10}
    found = has_shape(sdks.call("lava11", "subscriptions.list", by), page_of(lava_sdk.LISTED_SUBSCRIPTION))
    assert [one["subscription_id"] for one in found["data"]] == [subscription["subscription_id"]]
    bundle = free["credit_bundles"][0]["credit_bundle_id"]
    identifier = subscription["subscription_id"]
    has_shape(sdks.call("lava11", "subscriptions.update", identifier, {"auto_top_up_bundle_id": bundle}), lava_sdk.SUCCESS)
    read = sdks.call("lava11", "customers.getSubscription", customer)["subscription"]
    assert read["auto_top_up_bundle_id"] == bundle
    has_shape(sdks.call("lava11", "subscriptions.update", identifier, {"auto_top_up_bundle_id": None}), lava_sdk.SUCCESS)
    has_shape(sdks.call("lava11", "subscriptions.cancel", identifier), lava_sdk.SUCCESS)
    deleted = has_shape(sdks.call("lava11", "subscriptions.deletePlan", plan["plan_id"]), lava_sdk.DELETED)
    assert deleted["id"] == plan["plan_id"]


def test_the_older_sdk_reads_plans_as_subscription_configs(sdks: Sdks) -> None:
    plan = new_plan(sdks, "Seen by 8.1", period_amount="0")
    configs = has_shape(sdks.call("lava8", "subscriptions.listConfigs", {"limit": 100}), page_of(lava_sdk.CONFIG))
    [config] = [one for one in configs["data"] if one["subscription_config_id"] == plan["plan_id"]]
    assert has_shape(sdks.call("lava8", "subscriptions.retrieveConfig", plan["plan_id"]), lava_sdk.CONFIG) == config
    by = {"subscription_config_id": plan["plan_id"]}
    bundles = has_shape(sdks.call("lava8", "creditBundles.list", by), page_of({**lava_sdk.BUNDLE, "subscription_config_id": str}))
    [one, other] = bundles["data"]
    assert sdks.call("lava8", "creditBundles.retrieve", one["credit_bundle_id"]) == one != other

    customer = sdks.call("lava11", "customers.create", {"reference_id": "sdk-configs"})["customer_id"]
    sdks.call("lava11", "subscriptions.create", {"customer_id": customer, "plan_id": plan["plan_id"]})
    found = sdks.call("lava8", "subscriptions.list", {"status": "all", "connection_id": customer})
    ours = [each for each in found["data"] if each["subscription_config_id"] == plan["plan_id"]]
    has_shape(found, page_of(lava_sdk.LISTED_SUBSCRIPTION_8))
    held = sdks.call("lava8", "connections.getSubscription", customer)
    assert (
        has_shape(held, {"subscription": lava_sdk.SUBSCRIPTION_8})["subscription"]["subscription_id"] == ours[0]["subscription_id"]
    )
    assert has_shape(sdks.call("lava8", "connections.retrieve", customer), lava_sdk.CONNECTION_8)["subscription"] is not None
    has_shape(sdks.call("lava8", "subscriptions.cancel", ours[0]["subscription_id"]), lava_sdk.SUCCESS)


def test_checkout_sessions_of_each_generation(sdks: Sdks) -> None:
    """The token carries the page's own address, so the stock checkout library comes here."""
    plan = new_plan(sdks, "Sold")
    customer = sdks.call("lava11", "customers.create", {"reference_id": "sdk-checkout"})["customer_id"]
    newest = {"checkout_mode": "subscription", "origin_url": ORIGIN, "plan_id": plan["plan_id"]}
    older = {"checkout_mode": "subscription", "origin_url": ORIGIN, "subscription_config_id": plan["plan_id"]}
    made = [
        has_shape(sdks.call("lava11", "checkoutSessions.create", newest), lava_sdk.CHECKOUT),
        has_shape(sdks.call("lava11", "checkoutSessions.create", {**newest, "customer_id": customer}), lava_sdk.CHECKOUT),
        has_shape(sdks.call("lava8", "checkoutSessions.create", {**older, "connection_id": customer}), lava_sdk.CHECKOUT_8),
        has_shape(
            sdks.call("lava2", "checkout.create", {"checkout_mode": "onboarding", "origin_url": ORIGIN, "reference_id": "u1"}),
            lava_sdk.CHECKOUT_2,
        ),
        has_shape(
            sdks.call("lava2", "checkout.create", {"checkout_mode": "topup", "origin_url": ORIGIN, "connection_id": customer}),
            lava_sdk.CHECKOUT_2,
        ),
    ]
    assert made[1]["customer_id"] == made[2]["connection_id"] == made[4]["connection_id"] == customer
    assert made[3]["reference_id"] == "u1"
    for session in made:
        inside = json.loads(base64.b64decode(session["checkout_session_token"]))
        assert inside["secret"].startswith("css_") and inside["base"].endswith("/")
        assert session["origin_url"] == ORIGIN
    again = has_shape(sdks.call("lava2", "checkout.retrieve", made[3]["checkout_session_id"]), lava_sdk.CHECKOUT_2)
    assert again["checkout_session_id"] == made[3]["checkout_session_id"]
    with pytest.raises(SdkError, match="400"):
        sdks.call("lava11", "checkoutSessions.create", {"checkout_mode": "subscription", "origin_url": ORIGIN})
