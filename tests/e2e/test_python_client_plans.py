"""Plans, subscriptions, bundles and checkout sessions by the Python client; its other resources are in test_python_client.py."""

from __future__ import annotations

import pytest

from lava_proxy.client import LavaApiError, LavaClient
from tests.daemon import Daemon
from tests.e2e import lava_sdk
from tests.e2e.lava_sdk import has_shape


def test_a_plan_is_made_changed_subscribed_to_sold_and_ended(daemon: Daemon) -> None:
    with LavaClient(daemon.info["secret_key"], base_url=daemon.base_url) as client:
        plan = client.plans.create(
            name="Client", period_amount="0", billing_interval="month", rollover_type="full",
            credit_bundles=[{"name": "Small", "cost": "10.00", "credit_amount": "12.00"}],
        )  # fmt: skip
        assert client.plans.retrieve(plan["plan_id"]) == has_shape(plan, lava_sdk.PLAN)
        assert client.plans.update(plan["plan_id"], name="Renamed")["name"] == "Renamed"
        assert plan["plan_id"] in {each["plan_id"] for each in client.plans.iterate()}
        assert has_shape(client.plans.list(limit=1), lava_sdk.page_of(lava_sdk.PLAN))["data"]
        [bundle] = client.credit_bundles.list(plan_id=plan["plan_id"])["data"]
        assert list(client.credit_bundles.iterate(plan_id=plan["plan_id"])) == [bundle]
        assert client.credit_bundles.retrieve(bundle["credit_bundle_id"]) == has_shape(bundle, lava_sdk.CREDIT_BUNDLE)

        customer = client.customers.create(reference_id="client-plans")["customer_id"]
        subscription = client.subscriptions.create(customer_id=customer, plan_id=plan["plan_id"])
        assert client.customers.subscription(customer) == has_shape(subscription, lava_sdk.SUBSCRIPTION)
        identifier, bundle_id = subscription["subscription_id"], bundle["credit_bundle_id"]
        assert client.subscriptions.update(identifier, auto_top_up_bundle_id=bundle_id) == {"success": True}
        held = list(client.subscriptions.iterate(customer_id=customer, status="active"))
        assert [each["auto_top_up_bundle_id"] for each in held] == [bundle_id]
        assert client.subscriptions.list(customer_id=customer)["data"] == held
        assert client.subscriptions.cancel(identifier) == {"success": True}

        paid = client.plans.create(name="Sold by the client", period_amount="25.00", billing_interval="month")
        with pytest.raises(LavaApiError) as told:
            client.subscriptions.create(customer_id=customer, plan_id=paid["plan_id"])
        assert 400 <= told.value.status < 500
        session = client.checkout_sessions.create(
            checkout_mode="subscription", origin_url="https://shop.example", plan_id=paid["plan_id"], customer_id=customer
        )
        read = client.checkout_sessions.retrieve(session["checkout_session_id"])
        assert read["checkout_session_id"] == has_shape(session, lava_sdk.CHECKOUT)["checkout_session_id"]
        identifiers = {each["checkout_session_id"] for each in client.checkout_sessions.iterate()}
        assert session["checkout_session_id"] in identifiers and client.checkout_sessions.list(limit=1)["data"]
        assert client.plans.delete(paid["plan_id"])["deleted"]
