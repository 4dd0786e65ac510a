"""`@lavapayments/nodejs` 2.5.0, 8.1.0 and 11.2.0, unmodified, against the running daemon: every method, every answer's shape.

The SDK checks nothing that it gets, so each answer is checked here, key by key. Plans, subscriptions, bundles and checkout sessions
are in test_lava_sdk_plans.py.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

import pytest

from lava_proxy.app.embedded import socket_dir
from lava_proxy.stores import outbox
from lava_proxy.stores.login_codes import Login, LoginCodes
from tests.daemon import Daemon, until
from tests.e2e import lava_sdk, node_packages
from tests.e2e.lava_sdk import SdkError, Sdks, has_shape, page_of, running_sdks

HERE = Path(__file__).parent
START = "2026-01-01T00:00:00+02:00"
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 20}
FILTERS = {"lava2": ("connection_id", "product_id"), "lava8": ("connection_id", "meter_id"), "lava11": ("customer_id", "meter_id")}
VERSIONS = ("lava2", "lava8", "lava11")

# Method -> the test that calls it. `request` and `throwApiError` are what all others are made of.
COMMON = {
    "connections.delete": "test_connections_in_both_older_vocabularies",
    "connections.list": "test_connections_in_both_older_vocabularies",
    "connections.retrieve": "test_connections_in_both_older_vocabularies",
    "generateForwardToken": "test_a_token_of_each_generation_pays_for_a_forwarded_call",
    "request": "test_an_error_tells_status_and_code",
    "requests.list": "test_requests_are_listed_by_customer_meter_and_metadata",
    "requests.retrieve": "test_a_token_of_each_generation_pays_for_a_forwarded_call",
    "usage.retrieve": "test_usage_by_day_in_each_vocabulary",
}
PLANS = "test_plans_bundles_and_subscriptions_of_the_newest_sdk"
CONFIGS = "test_the_older_sdk_reads_plans_as_subscription_configs"
CHECKOUTS = "test_checkout_sessions_of_each_generation"
METHODS: dict[str, dict[str, str]] = {
    "lava2": {**COMMON, "checkout.create": CHECKOUTS, "checkout.retrieve": CHECKOUTS},
    "lava8": {
        **COMMON,
        "checkoutSessions.create": CHECKOUTS,
        "connections.getSubscription": "test_connections_in_both_older_vocabularies",
        "creditBundles.list": CONFIGS,
        "creditBundles.retrieve": CONFIGS,
        "meters.list": "test_meters",
        "meters.retrieve": "test_meters",
        "requests.create": "test_a_report_is_charged_once_and_answered_with_the_request",
        "subscriptions.cancel": CONFIGS,
        "subscriptions.list": CONFIGS,
        "subscriptions.listConfigs": CONFIGS,
        "subscriptions.retrieveConfig": CONFIGS,
    },
    "lava11": {
        **{name: test for name, test in COMMON.items() if not name.startswith("connections.")},
        "Lava.exchangeAuthCode": "test_a_sign_in_code_becomes_a_secret_key",
        "Lava.login": "test_a_sign_in_code_becomes_a_secret_key",
        "checkoutSessions.create": CHECKOUTS,
        "creditBundles.list": PLANS,
        "creditBundles.retrieve": PLANS,
        "customers.create": "test_customers",
        "customers.delete": "test_customers",
        "customers.getSubscription": "test_customers",
        "customers.list": "test_customers",
        "customers.retrieve": "test_customers",
        "customers.update": "test_customers",
        "gateway": "test_the_gateway_method_pays_by_customer_meter_or_merchant",
        "meters.create": "test_meters",
        "meters.delete": "test_meters",
        "meters.list": "test_meters",
        "meters.retrieve": "test_meters",
        "meters.update": "test_meters",
        "models.list": "test_models",
        "requests.create": "test_a_report_is_charged_once_and_answered_with_the_request",
        "secretKeys.create": "test_secret_keys",
        "secretKeys.delete": "test_secret_keys",
        "secretKeys.list": "test_secret_keys",
        "spendKeys.create": "test_spend_keys",
        "spendKeys.list": "test_spend_keys",
        "spendKeys.retrieve": "test_spend_keys",
        "spendKeys.revoke": "test_spend_keys",
        "spendKeys.rotate": "test_spend_keys",
        "spendKeys.update": "test_spend_keys",
        "subscriptions.cancel": PLANS,
        "subscriptions.create": PLANS,
        "subscriptions.createPlan": PLANS,
        "subscriptions.deletePlan": PLANS,
        "subscriptions.list": PLANS,
        "subscriptions.listPlans": PLANS,
        "subscriptions.retrievePlan": PLANS,
        "subscriptions.update": PLANS,
        "subscriptions.updatePlan": PLANS,
        "throwApiError": "test_an_error_tells_status_and_code",
        "webhooks.create": "test_webhooks",
        "webhooks.delete": "test_webhooks",
        "webhooks.list": "test_webhooks",
        "webhooks.retrieve": "test_webhooks",
        "webhooks.update": "test_webhooks",
    },
}


@pytest.fixture(scope="module")
def sdks(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sdks]:
    """Skipped, loudly, where Node or the packages cannot be had."""
    try:
        with running_sdks(daemon, tmp_path_factory.mktemp("lava")) as running:
            yield running
    except node_packages.NotHere as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("sdk", VERSIONS)
def test_every_method_of_the_sdk_is_called_by_a_test(sdks: Sdks, sdk: str) -> None:
    """The list is the SDK's own, so that a method that a test forgets is seen."""
    assert sdks.ask(sdk, "methods") == sorted(METHODS[sdk])
    text = (HERE / "test_lava_sdk.py").read_text() + (HERE / "test_lava_sdk_plans.py").read_text()
    bodies = {part.partition("(")[0]: part for part in text.split("\ndef ")}
    unproved = [
        method
        for method, test in METHODS[sdk].items()
        if method not in ("request", "throwApiError") and f'"{method}"' not in bodies[test]
    ]
    assert unproved == []


@pytest.mark.parametrize("sdk", VERSIONS)
def test_the_urls_of_all_providers_lead_to_a_provider(sdks: Sdks, daemon: Daemon, sdk: str) -> None:
    """Each is known here: with a key that is none the answer is 401, not "no such provider"."""
    helpers = sdks.ask(sdk, "helpers")
    assert len(helpers) >= 7
    for name, url in helpers.items():
        assert url.startswith(f"{daemon.base_url}forward?u=https://")
        assert refused(f"{url}/models") == 401, name
    assert refused(f"{daemon.base_url}forward?u=https://api.example.com/v1/models") == 400


def refused(url: str) -> int:
    """The status for a key that is none."""
    try:
        with urlopen(Request(url, headers={"Authorization": "Bearer aks_test_none"}), timeout=30) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code


def forwarded(url: str, token: str) -> str:
    """The request id of a call through a provider's URL."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urlopen(Request(f"{url}/chat/completions", json.dumps(CHAT).encode(), headers), timeout=30) as answer:
        assert json.loads(answer.read())["choices"]
        return str(answer.headers["x-lava-request-id"])


def test_a_token_of_each_generation_pays_for_a_forwarded_call(sdks: Sdks, daemon: Daemon) -> None:
    """The wallet, the meter and the request are the same ones, whatever they are called."""
    customer_id = daemon.info["connection_id"]
    secret = sdks.call("lava2", "connections.retrieve", customer_id)["connection_secret"]
    meter = sdks.call("lava11", "meters.create", new_meter("Tokens of SDKs"))
    options = {
        "lava2": {"connection_secret": secret, "product_secret": meter["meter_secret"]},
        "lava8": {"connection_id": customer_id, "meter_slug": meter["meter_slug"]},
        "lava11": {"customer_id": customer_id, "meter_slug": meter["meter_slug"]},
    }
    shapes = {"lava2": lava_sdk.OLDER_REQUEST, "lava8": lava_sdk.OLDER_REQUEST, "lava11": lava_sdk.REQUEST}
    for sdk, option in options.items():
        token = sdks.call(sdk, "generateForwardToken", option)
        assert json.loads(base64.b64decode(token)) == {"secret_key": daemon.info["secret_key"], **option}
        helpers = sdks.ask(sdk, "helpers")
        request_id = forwarded(helpers.get("openai") or helpers["openaiUrl"], token)
        row = has_shape(sdks.call(sdk, "requests.retrieve", request_id), shapes[sdk])
        assert (row["connection_id"], row["customer_id"], row["product_id"]) == (customer_id, customer_id, meter["meter_id"])
        assert (row["meter_id"], row["model"], row["provider"]) == (meter["meter_id"], CHAT["model"], "openai")
        assert row["endpoint"] == "POST https://api.openai.com/v1/chat/completions"
        tokens = row["model_usage"]["total_tokens"]
        assert tokens > 0 and row["charge"]["amount"] == row["fee"]["amount"] == f"{Decimal(tokens) / 100_000:.10f}"
        [line] = row["charge"]["breakdown"]
        assert line["tier"] == {"start": 0, "rate": "10", "type": "tokens_1m"} and line["tokens"] == tokens


def new_meter(name: str) -> dict[str, Any]:
    return {"name": name, "rate_type": "fixed", "tier_type": "tokens_1m", "tiers": [{"start": "0", "rate": "10"}]}


def test_the_gateway_method_pays_by_customer_meter_or_merchant(sdks: Sdks, daemon: Daemon) -> None:
    """With a customer and a meter, or with less: then the merchant's own wallet pays the provider's cost."""
    url, customer = "https://api.openai.com/v1/chat/completions", daemon.info["connection_id"]
    by_customer = {"customer_id": customer, "meter_slug": "fixed"}
    payers = {
        "customer": by_customer,
        "meter": {"meter_slug": "fixed"},
        "merchant": {},
        "free": {**by_customer, "disable_billing": True},
    }
    rows = {}
    for label, payer in payers.items():
        headers = {"x-lava-metadata": json.dumps({"sdk_payer": label})}
        answer = sdks.call("lava11", "gateway", url, {"body": CHAT, "headers": headers, **payer})
        assert answer["choices"]
        rows[label] = until(lambda label=label: labelled_row(sdks, label), "the row")
    assert [row.get("customer_id") for row in rows.values()] == [customer, None, None, customer]
    assert ["meter_id" in row for row in rows.values()] == [True, False, False, True]
    for row in (rows["meter"], rows["merchant"]):
        assert row["charge"] == {"amount": row["cost"], "rate_type": None, "breakdown": []} and Decimal(row["cost"]) > 0
    assert rows["free"]["charge"]["amount"] == "0.0000000000"
    with pytest.raises(SdkError, match="requires meter_slug"):
        sdks.call("lava11", "gateway", url, {"customer_id": customer})
    with pytest.raises(SdkError, match=r"501 .*not_implemented"):
        sdks.call("lava11", "gateway", "https://api.anthropic.com/v1/messages", {"format": "openai", "body": CHAT})


def labelled_row(sdks: Sdks, label: str) -> Any:
    found = sdks.call("lava11", "requests.list", {"metadata_filters": {"sdk_payer": label}})["data"]
    return found[0] if found else None


def test_customers(sdks: Sdks) -> None:
    """Created once a reference_id, changed field by field, and gone."""
    new = {
        "reference_id": "sdk-11",
        "email": "ada@example.com",
        "phone": "+14155552671",
        "name": "Ada Lovelace",
        "metadata": {"a": 1},
    }
    made = has_shape(sdks.call("lava11", "customers.create", new), lava_sdk.CUSTOMER)
    assert made["contact"] == {
        "phone": "+14155552671", "email": "ada@example.com", "first_name": "Ada", "last_name": "Lovelace",
    }  # fmt: skip
    assert sdks.call("lava11", "customers.create", {"reference_id": "sdk-11"}) == made
    listed = has_shape(sdks.call("lava11", "customers.list", {"limit": 2}), page_of(lava_sdk.CUSTOMER))
    assert listed["data"][0] == made and listed["has_more"] is (listed.get("next_cursor") is not None)
    changed = sdks.call("lava11", "customers.update", made["customer_id"], {"name": None, "metadata": None})
    has_shape(changed, lava_sdk.CUSTOMER)
    assert (changed["contact"]["first_name"], changed["contact"]["email"], changed["metadata"]) == (None, "ada@example.com", None)
    assert sdks.call("lava11", "customers.retrieve", "sdk-11") == changed
    subscription = sdks.call("lava11", "customers.getSubscription", made["customer_id"])
    has_shape(subscription, {"subscription": (lava_sdk.SUBSCRIPTION, None)})
    has_shape(sdks.call("lava11", "customers.delete", made["customer_id"]), lava_sdk.SUCCESS)
    with pytest.raises(SdkError, match=r"404 Not Found - \{.*not_found"):
        sdks.call("lava11", "customers.retrieve", made["customer_id"])


def test_connections_in_both_older_vocabularies(sdks: Sdks) -> None:
    for sdk, shape, reference in (("lava2", lava_sdk.CONNECTION_2, "sdk-2"), ("lava8", lava_sdk.CONNECTION_8, "sdk-8")):
        customer_id = sdks.call("lava11", "customers.create", {"reference_id": reference, "email": "b@example.com"})["customer_id"]
        listed = has_shape(sdks.call(sdk, "connections.list", {"limit": 100}), page_of(shape))
        assert listed["data"][0]["connection_id"] == customer_id
        one = has_shape(sdks.call(sdk, "connections.retrieve", customer_id), {**shape, "connection_secret": str})
        assert one["customer"]["email"] == one["wallet"]["email"] == "b@example.com"
        if sdk == "lava2":
            named = sdks.call("lava2", "connections.list", {"reference_id": reference})["data"]
            assert [each["connection_id"] for each in named] == [customer_id]
        else:
            has_shape(
                sdks.call("lava8", "connections.getSubscription", customer_id), {"subscription": (lava_sdk.SUBSCRIPTION_8, None)}
            )
        has_shape(sdks.call(sdk, "connections.delete", customer_id), lava_sdk.SUCCESS)
        with pytest.raises(SdkError, match="404"):
            sdks.call(sdk, "connections.retrieve", customer_id)


def test_meters(sdks: Sdks) -> None:
    """Tiers start as text and come back as numbers, each with its unit."""
    tiers = [{"start": "0", "rate": "5"}, {"start": "1000000", "rate": "3"}, {"start": "10000000", "rate": "1.25"}]
    new = {"name": "SDK meter", "meter_slug": "sdk-meter", "rate_type": "fixed", "tier_type": "tokens_1m", "tiers": tiers}
    made = has_shape(sdks.call("lava11", "meters.create", new), lava_sdk.METER)
    assert [(tier["start"], tier["rate"]) for tier in made["tiers"]] == [(0, "5"), (1_000_000, "3"), (10_000_000, "1.25")]
    for kind in ("characters_1m", "minutes", "requests"):
        other = {"name": f"SDK {kind}", "rate_type": "fixed", "tier_type": kind, "tiers": [{"start": "0", "rate": "0.01"}]}
        assert has_shape(sdks.call("lava11", "meters.create", other), lava_sdk.METER)["tiers"][0]["type"] == kind
    for sdk, shape in (("lava8", lava_sdk.METER_8), ("lava11", lava_sdk.METER)):
        assert has_shape(sdks.call(sdk, "meters.retrieve", made["meter_id"]), shape)["meter_slug"] == "sdk-meter"
        first = has_shape(sdks.call(sdk, "meters.list", {"limit": 1}), page_of(shape))
        then = sdks.call(sdk, "meters.list", {"limit": 1, "cursor": first["next_cursor"]})
        assert first["data"][0]["meter_id"] != then["data"][0]["meter_id"]
    changes = {"name": "Renamed", "tiers": [{"start": "0", "rate": "7"}]}
    changed = has_shape(sdks.call("lava11", "meters.update", made["meter_id"], changes), lava_sdk.METER)
    assert (changed["name"], changed["tiers"][0]["rate"], changed["meter_slug"]) == ("Renamed", "7", "sdk-meter")
    deleted = has_shape(sdks.call("lava11", "meters.delete", made["meter_id"]), lava_sdk.DELETED)
    assert deleted["id"] == made["meter_id"]


def report(daemon: Daemon, request_id: str, metadata: dict[str, str]) -> dict[str, Any]:
    quantities = {"input_tokens": 1000, "output_tokens": 500, "input_seconds": 1.5, "output_characters": 7}
    return {"request_id": request_id, "meter_slug": "fixed", "metadata": metadata, **quantities}


def test_a_report_is_charged_once_and_answered_with_the_request(sdks: Sdks, daemon: Daemon) -> None:
    """L7: a repeat gets the stored request."""
    customer = sdks.call("lava11", "customers.create", {"reference_id": "sdk-reports"})["customer_id"]
    for sdk, field, shape in (("lava8", "connection_id", lava_sdk.OLDER_REQUEST), ("lava11", "customer_id", lava_sdk.REQUEST)):
        body = {**report(daemon, f"report-{sdk}", {"feature": "chat"}), field: customer}
        made = has_shape(sdks.call(sdk, "requests.create", body), shape)
        assert sdks.call(sdk, "requests.create", body) == made == sdks.call(sdk, "requests.retrieve", f"report-{sdk}")
        assert (made[field], made["charge"]["amount"], made["metadata"]) == (customer, "0.0300000000", {"feature": "chat"})
        assert made["model_usage"]["input_seconds"] == 1.5 and made["model_usage"]["total_characters"] == 7
    assert sdks.call("lava2", "connections.retrieve", customer)["wallet"]["balance"] == "-0.0600000000"


def test_requests_are_listed_by_customer_meter_and_metadata(sdks: Sdks, daemon: Daemon) -> None:
    customer = sdks.call("lava11", "customers.create", {"reference_id": "sdk-lists"})["customer_id"]
    for number, feature in enumerate(("chat", "chat", "search")):
        body = {**report(daemon, f"listed-{number}", {"feature": feature, "n": str(number)}), "customer_id": customer}
        sdks.call("lava11", "requests.create", body)
    until(lambda: len(sdks.call("lava11", "requests.list", {"customer_id": customer})["data"]) == 3 or None, "three rows")
    meter = sdks.call("lava11", "meters.retrieve", "fixed")["meter_id"]
    for sdk, (customer_field, meter_field) in FILTERS.items():
        shape = lava_sdk.REQUEST if sdk == "lava11" else lava_sdk.OLDER_REQUEST
        by = {customer_field: customer, meter_field: meter}
        first = has_shape(sdks.call(sdk, "requests.list", {**by, "limit": 2}), page_of(shape))
        rest = sdks.call(sdk, "requests.list", {**by, "limit": 2, "cursor": first["next_cursor"]})
        assert [row["request_id"] for row in first["data"] + rest["data"]] == ["listed-2", "listed-1", "listed-0"]
        assert (first["has_more"], rest["has_more"], rest.get("next_cursor")) == (True, False, None)
        labelled = sdks.call(sdk, "requests.list", {**by, "metadata_filters": {"feature": "chat", "n": "1"}})
        assert [row["request_id"] for row in labelled["data"]] == ["listed-1"]
        assert sdks.call(sdk, "requests.list", {customer_field: customer, meter_field: "prd_none"})["data"] == []


def test_usage_by_day_in_each_vocabulary(sdks: Sdks, daemon: Daemon) -> None:
    """The offset of `start` is the zone of the days."""
    customer = sdks.call("lava11", "customers.create", {"reference_id": "sdk-usage"})["customer_id"]
    body = {**report(daemon, "usage-1", {"feature": "u"}), "customer_id": customer}
    created = sdks.call("lava11", "requests.create", body)["created_at"]
    meter = sdks.call("lava11", "meters.retrieve", "fixed")["meter_id"]
    until(lambda: sdks.call("lava11", "requests.list", {"customer_id": customer})["data"] or None, "the row")
    shapes = {"lava2": lava_sdk.USAGE_2, "lava8": lava_sdk.USAGE_8, "lava11": lava_sdk.USAGE}
    start = f"{created[:10]}T00:00:00+00:00"
    for sdk, shape in shapes.items():
        customer_field, meter_field = FILTERS[sdk]
        by = {"start": start, customer_field: customer, meter_field: meter}
        found = has_shape(sdks.call(sdk, "usage.retrieve", by), shape)
        assert (found["totals"]["total_requests"], found["totals"]["total_usage_tokens"]) == (1, 1500)
        assert (found["totals"]["total_charge"], found["totals"]["total_fee_amount"]) == ("0.0300000000", "0.0300000000")
        assert found["items"][0]["date"] == created[:10]
        labelled = sdks.call(
            sdk, "usage.retrieve", {**by, "end": f"{created[:10]}T23:59:59Z", "metadata_filters": {"feature": "u"}}
        )
        assert labelled["totals"]["total_requests"] == 1
        other = sdks.call(sdk, "usage.retrieve", {**by, "start": START, "end": "2026-01-02T12:00:00+02:00"})
        assert [item["start"][-6:] for item in other["items"]] == ["+02:00", "+02:00"]


def test_webhooks(sdks: Sdks) -> None:
    new = {"name": "SDK", "url": "https://example.com/hooks"}
    made = has_shape(sdks.call("lava11", "webhooks.create", new), {**lava_sdk.WEBHOOK, "webhook_secret": str})
    shown = has_shape(sdks.call("lava11", "webhooks.retrieve", made["webhook_id"]), lava_sdk.WEBHOOK)
    assert "webhook_secret" not in shown
    assert shown in has_shape(sdks.call("lava11", "webhooks.list", {"limit": 3}), page_of(lava_sdk.WEBHOOK))["data"]
    changed = sdks.call("lava11", "webhooks.update", made["webhook_id"], {"name": "Renamed", "url": "https://example.com/h"})
    assert (has_shape(changed, lava_sdk.WEBHOOK)["name"], changed["url"]) == ("Renamed", "https://example.com/h")
    deleted = sdks.call("lava11", "webhooks.delete", made["webhook_id"])
    assert has_shape(deleted, lava_sdk.DELETED)["id"] == made["webhook_id"]


def test_secret_keys(sdks: Sdks, daemon: Daemon) -> None:
    made = has_shape(sdks.call("lava11", "secretKeys.create", {"name": "SDK"}), {**lava_sdk.SECRET_KEY, "secret_key": str})
    assert made["secret_key"].startswith("aks_test_") and daemon.get("wallet", made["secret_key"])["wallet_id"]
    listed = has_shape(sdks.call("lava11", "secretKeys.list", {"limit": 10}), page_of(lava_sdk.SECRET_KEY))
    assert made["secret_key_id"] in {key["secret_key_id"] for key in listed["data"]}
    assert all("secret_key" not in key for key in listed["data"])
    deleted = sdks.call("lava11", "secretKeys.delete", made["secret_key_id"])
    assert has_shape(deleted, lava_sdk.DELETED)["id"] == made["secret_key_id"]


def test_spend_keys(sdks: Sdks) -> None:
    limits = {
        "allowed_models": ["gpt-4o*"], "allowed_providers": ["openai"], "spend_limit": {"amount": "5.00", "cycle": "daily"},
        "request_limit": {"count": 10, "cycle": "total"}, "rate_limit": {"rpm": 60, "burst": None},
        "expires_at": "2099-01-01T00:00:00Z",
    }  # fmt: skip
    with_key = {**lava_sdk.SPEND_KEY, "key": str}
    made = has_shape(sdks.call("lava11", "spendKeys.create", {"name": "SDK", **limits}), with_key)
    assert made["key"].startswith("lava_sk_") and made["expires_at"] == "2099-01-01T00:00:00Z"
    plain = has_shape(sdks.call("lava11", "spendKeys.create", {"name": "Plain"}), with_key)
    assert plain["spend_limit"] is plain["request_limit"] is plain["rate_limit"] is plain["allowed_models"] is None
    identifier = made["spend_key_id"]
    assert has_shape(sdks.call("lava11", "spendKeys.retrieve", identifier), lava_sdk.SPEND_KEY)["name"] == "SDK"
    listed = has_shape(sdks.call("lava11", "spendKeys.list", {"limit": 1}), page_of(lava_sdk.SPEND_KEY))
    assert listed["data"][0]["spend_key_id"] == plain["spend_key_id"] and listed["has_more"]
    update = {"name": "Paused", "status": "paused", "spend_limit": None}
    changed = has_shape(sdks.call("lava11", "spendKeys.update", identifier, update), lava_sdk.SPEND_KEY)
    assert (changed["status"], changed["spend_limit"]) == ("paused", None)
    rotated = has_shape(sdks.call("lava11", "spendKeys.rotate", identifier), with_key)
    assert rotated["key"] != made["key"] and rotated["spend_key_id"] == identifier
    has_shape(sdks.call("lava11", "spendKeys.revoke", identifier), lava_sdk.SUCCESS)


def test_models(sdks: Sdks) -> None:
    found = has_shape(sdks.call("lava11", "models.list"), lava_sdk.MODELS)
    assert {model["owned_by"] for model in found["data"]} >= {"openai", "anthropic"}


def test_an_error_tells_status_and_code(sdks: Sdks) -> None:
    """What the SDK throws has the status and the whole error object."""
    for sdk in VERSIONS:
        for path, expected in (("nothing", "404 Not Found"), ("requests?limit=0", "400 Bad Request")):
            with pytest.raises(
                SdkError, match=rf'Lava API Error: {expected} - \{{"message":".*","code":"[a-z_]+","status":\d+'
            ) as told:
                sdks.call(sdk, "request", "GET", path)
            assert "limit" in str(told.value) or "nothing" in path


def test_a_sign_in_code_becomes_a_secret_key(sdks: Sdks, daemon: Daemon) -> None:
    """Once. `login` waits on loopback for the browser that brings the code; here the test is the browser."""
    code = login_code(daemon)
    made = has_shape(sdks.call("lava11", "Lava.exchangeAuthCode", {"code": code, "baseUrl": daemon.base_url}), lava_sdk.LOGIN)
    assert made["merchant_id"] == daemon.info["merchant_id"]
    assert daemon.get("wallet", made["secret_key"])["wallet_id"] == made["wallet_id"]
    with pytest.raises(SdkError, match="401 Unauthorized - This code is unknown"):
        sdks.call("lava11", "Lava.exchangeAuthCode", {"code": code, "baseUrl": daemon.base_url})

    sdks.send("lava11", "call", "Lava.login", {"baseUrl": daemon.base_url.removesuffix("/v1/")})
    address = until(lambda: sdks.opened.read_text() if sdks.opened.exists() else None, "the browser to be opened")
    asked = parse_qs(urlsplit(address).query)
    assert urlsplit(address).path == "/auth/connect"
    back = f"http://127.0.0.1:{asked['port'][0]}/callback?code={login_code(daemon)}&state={asked['state'][0]}"
    with urlopen(back, timeout=30) as answer:
        assert answer.status == 200
    again = has_shape(sdks.read(), lava_sdk.LOGIN)
    assert again["secret_key"] != made["secret_key"]


def login_code(daemon: Daemon) -> str:
    """What the sign-in page gives to the browser."""

    async def create() -> str:
        redis = outbox.connect(f"unix://{socket_dir(daemon.data_dir) / 'redis.sock'}?db=0")
        try:
            return await LoginCodes(redis).create(Login(merchant_id=daemon.info["merchant_id"], account_id="acc_1"))
        finally:
            await redis.aclose()

    return asyncio.run(create())
