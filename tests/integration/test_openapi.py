"""The OpenAPI document: valid, complete, and true of who may see what."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from openapi_spec_validator import validate

from lava_proxy.api.application import build_application
from lava_proxy.domain.limits import KeyRules, Limits
from lava_proxy.domain.plans import Terms
from lava_proxy.payments.processor import CardDetails
from lava_proxy.stores.plan_store import BundleDraft, PlanStore
from tests.engines import RunningEngines
from tests.integration.api_world import CLOCK, USD, Shop, Stores, dependencies, open_shop, opened_stores, payments, sell, served

Client = TestClient[Any, Any]
NONE = ["none_such"]
BODIES = {
    "/v1/customers/{customer}/wallet/fund": {"amount": "10.00"},
    "/v1/customers/{customer}/adjustments": {"amount": "1.00", "reason": "x"},
}
"""What must be sent where an empty object is not enough."""
METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture(scope="module")
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture(scope="module")
async def client(stores: Stores) -> AsyncIterator[Client]:
    async with served(dependencies(stores)) as started:
        yield started


@pytest.fixture(scope="module")
async def document(client: Client) -> dict[str, Any]:
    async with client.get("/openapi.json") as answer:
        assert answer.status == 200 and answer.content_type == "application/json"
        return dict(await answer.json())


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    found = [(method, path, one) for path, methods in document["paths"].items() for method, one in methods.items()]
    assert found
    return found


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    validate(document)


def test_every_operation_has_a_tag_an_id_of_its_own_refusals_and_says_whether_it_needs_a_key(document: dict[str, Any]) -> None:
    ids, tags = set(), {tag["name"] for tag in document["tags"]}
    for method, path, operation in operations(document):
        assert method in METHODS and set(operation["tags"]) <= tags and operation["summary"], path
        assert operation["operationId"] not in ids
        ids.add(operation["operationId"])
        assert "security" in operation and any(status.startswith("4") for status in operation["responses"]), path
        named = set(re.findall(r"\{(\w+)\}", path))
        assert named == {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}, path
    assert {"/v1/forward", "/v1/chat/completions", "/v1/customers/{customer}", "/v1/auth/callback"} <= set(document["paths"])


@pytest.mark.parametrize(
    "path",
    ["/v1/checkout_sessions", "/v1/customers/{customer}/portal_session", "/v1/wallet/fund", "/v1/charges/{charge}/refund"],
)
def test_what_an_installation_may_not_be_set_up_for_says_so(document: dict[str, Any], path: str) -> None:
    said = document["paths"][path]["post"]["responses"]
    assert said["501"] == {"$ref": "#/components/responses/Refused501"}
    assert "501" not in document["paths"]["/v1/meters"]["post"]["responses"]


async def test_a_checkout_without_text_messages_is_501(stores: Stores) -> None:
    shop, deps = await open_shop(stores, "mute"), dependencies(stores)
    assert deps.checkout_sessions is not None
    deps.checkout_sessions._checkout._verification._sender = None
    async with served(deps) as client:
        for path, body in (
            ("checkout_sessions", {"checkout_mode": "onboarding", "origin_url": "https://shop.example/"}),
            (f"customers/{shop.customer.connection_id}/portal_session", {}),
        ):
            async with client.post(f"/v1/{path}", json=body, headers=shop.headers) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (501, "sms_not_configured")


def test_what_is_routed_is_described_and_what_is_not_built_is_not(stores: Stores, document: dict[str, Any]) -> None:
    application = build_application(dependencies(stores))
    pages = {"/", "/healthz", "/readyz", "/metrics", "/static/status.css"}
    described = {(method.upper(), path) for method, path, one in operations(document) if one["tags"] != ["Gateway"]}
    for route in application.router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        if path in pages or route.method == "HEAD":
            continue
        is_built = getattr(route.handler, "__name__", "") not in ("_refuse", "_misdirected")
        assert ((route.method, path) in described) == is_built, f"{route.method} {path}"


def test_every_operation_but_the_public_ones_needs_the_key(document: dict[str, Any]) -> None:
    public = {(method, path) for method, path, operation in operations(document) if operation["security"] == []}
    assert public == {("get", "/openapi.json"), ("post", "/v1/auth/callback")}


async def test_no_operation_shows_or_changes_another_merchants_thing(
    client: Client, stores: Stores, document: dict[str, Any]
) -> None:
    """Every operation with an id in its path answers 404 to another merchant, whatever the body; the thing stays as it was."""
    owner, rival = await open_shop(stores, "owner"), await open_shop(stores, "rival")
    named = await things(stores, owner)
    before = {path: await read(client, owner, path) for path in own_paths(document, named)}
    asked = 0
    for method, path, operation in operations(document):
        ids = re.findall(r"\{(\w+)\}", path)
        if not ids or path.startswith("/v1/models/") or operation["tags"] == ["Gateway"]:
            continue
        for references in ([named.get(name, NONE)[0] for name in ids], [named.get(name, NONE)[-1] for name in ids]):
            target = path
            for name, reference in zip(ids, references, strict=True):
                target = target.replace(f"{{{name}}}", reference)
            body = BODIES.get(path, {}) if method in ("post", "put", "patch") else None
            async with client.request(method, target, headers=rival.headers, json=body) as answer:
                assert answer.status == 404, f"{method} {target}: {await answer.text()}"
                assert (await answer.json())["error"]["code"] == "not_found"
            asked += 1
    assert asked > 30
    assert {path: await read(client, owner, path) for path in before} == before


async def things(stores: Stores, shop: Shop) -> dict[str, list[str]]:
    """Path parameter -> the names of a thing of this merchant's."""
    customer, meter, merchant_id = shop.customer, shop.meter, shop.merchant.merchant_id
    spend_key = await stores.catalog.create_spend_key(merchant_id, name="k", rules=KeyRules(), limits=Limits())
    (secret_key,) = await stores.catalog.secret_keys(merchant_id)
    assert customer.secret is not None and meter.secret is not None
    plans = PlanStore(stores.pool, lambda: CLOCK)
    terms = Terms(
        plan_id="", name="p", period_amount_nanos=USD, included_credit_nanos=USD, billing_interval="month"
    )  # fmt: skip
    bundle = BundleDraft(name="b", cost_nanos=USD, credit_nanos=USD)
    plan = await plans.create_plan(merchant_id, terms, overage=None, meter_ids=[], bundles=[bundle])
    subscription = await plans.live_subscription(customer.connection_id)
    assert subscription is not None
    return {
        "plan": [plan.plan_id],
        "bundle": [plan.bundles[0].credit_bundle_id],
        "subscription": [subscription.subscription_id],
        "customer": [customer.connection_id, customer.secret],
        "connection": [customer.connection_id, customer.secret],
        "meter": [meter.meter_id, meter.secret],
        "request_id": [await sell(stores, shop)],
        "spend_key": [spend_key.spend_key_id],
        "secret_key": [secret_key["secret_key_id"]],
        "wallet_key": ["wk_1"],
        "charge": [await paid_charge(stores, shop)],
    }


async def paid_charge(stores: Stores, shop: Shop) -> str:
    services = payments(stores)
    person_id = await services.charge_store.wallet_person_made(shop.customer.wallet_id, CLOCK)
    await services.cards.add(person_id, CardDetails(number="4242424242424242", expiry_month=12, expiry_year=2034))
    charge = await services.accounts.fund(shop.merchant.merchant_id, shop.customer.wallet_id, 10 * USD, return_url="http://x/")
    await stores.flush()
    return charge.charge_id


def own_paths(document: dict[str, Any], named: dict[str, list[str]]) -> list[str]:
    """What the owner can read of them."""
    found = []
    for method, path, _ in operations(document):
        ids = re.findall(r"\{(\w+)\}", path)
        if method == "get" and len(ids) == 1 and ids[0] in named:
            found.append(path.replace(f"{{{ids[0]}}}", named[ids[0]][0]))
    return found


async def read(client: Client, shop: Shop, path: str) -> Any:
    async with client.get(path, headers=shop.headers) as answer:
        assert answer.status == 200, path
        return await answer.json()
