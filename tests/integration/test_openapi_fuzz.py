"""The running API against its own OpenAPI document: made-up requests, good and bad, to every operation of the control plane."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from yarl import URL

from lava_proxy.billing.funding import Funding
from lava_proxy.billing.subscriptions import Subscriptions
from lava_proxy.domain.limits import KeyRules, Limits
from lava_proxy.domain.plans import Terms
from lava_proxy.payments.processor import CardDetails
from lava_proxy.providers.model_list import ListedModel
from lava_proxy.stores.plan_store import BundleDraft, PlanStore
from tests.card_world import Clock
from tests.checkout_world import made_checkout
from tests.engines import RunningEngines
from tests.integration.api_world import CLOCK, USD, Shop, Stores, dependencies, open_shop, opened_stores, payments, sell, served

EXAMPLES = os.environ.get("LAVA_FUZZ_EXAMPLES", "6")
# Not `positive_data_acceptance`: that a phone number must be possible, or a cursor one of ours, no schema can say.
EXCLUDED = "positive_data_acceptance"
MODEL = ListedModel(model="gpt-4o", providers=("openai",), shape="openai")


@pytest.fixture(scope="module")
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture
async def shop(stores: Stores, tmp_path: Path) -> Shop:
    """A merchant with one of everything, which the fuzzer's paths name."""
    shop = await open_shop(stores, "fuzzed")
    await stores.catalog.create_secret_key(shop.merchant.merchant_id, "a second, so that the first may be asked to go")
    spend_key = await stores.catalog.create_spend_key(shop.merchant.merchant_id, name="k", rules=KeyRules(), limits=Limits())
    secret_key = (await stores.catalog.secret_keys(shop.merchant.merchant_id))[0]
    named = {
        "customer": shop.customer.connection_id,
        "connection": shop.customer.connection_id,
        "meter": shop.meter.meter_id,
        "request_id": await sell(stores, shop, metadata={"feature": "chat"}),
        "spend_key": spend_key.spend_key_id,
        "model": MODEL.model,
        "secret_key": secret_key["secret_key_id"],
    }
    webhook = await stores.webhooks.create(
        shop.merchant.merchant_id, name="w", url="https://hooks.example/w", vocabulary="customer", events=None, status="active",
        now=CLOCK,
    )  # fmt: skip
    delivery = await stores.webhooks.add_test(webhook, CLOCK, timedelta(seconds=9))
    named |= {"webhook": webhook.webhook_id, "delivery": delivery.delivery_id, "wallet_key": "wk_1"}
    named |= await _sold(stores, shop)
    lines = [f'"path.{name}" = "{identifier}"' for name, identifier in named.items()]
    (tmp_path / "schemathesis.toml").write_text("\n".join(["[parameters]", *lines]))
    return shop


async def _sold(stores: Stores, shop: Shop) -> dict[str, str]:
    """A plan with a bundle, the customer on it, a checkout that is open and a charge that was paid."""
    funding, plans = Funding(stores.catalog, stores.balances), PlanStore(stores.pool, lambda: CLOCK)
    plan = await plans.create_plan(
        shop.merchant.merchant_id,
        Terms(plan_id="", name="Free of charge", period_amount_nanos=0, included_credit_nanos=0, billing_interval="month"),
        overage=None, meter_ids=[shop.meter.meter_id],
        bundles=[BundleDraft(name="Extra", cost_nanos=10 * USD, credit_nanos=12 * USD)],
    )  # fmt: skip
    subscription = await Subscriptions(plans, funding, lambda: CLOCK).change_unpaid(shop.customer, plan)
    session = await made_checkout(stores, funding, Clock(CLOCK), vault=stores.vault).checkout.create(
        shop.merchant.merchant_id, "topup", origin_url="https://shop.example", is_test=True, customer=shop.customer.connection_id
    )
    services = payments(stores)
    person_id = await services.charge_store.wallet_person_made(shop.customer.wallet_id, CLOCK)
    await services.cards.add(person_id, CardDetails(number="4242424242424242", expiry_month=12, expiry_year=2034))
    charge = await services.charges.open(
        wallet_id=shop.customer.wallet_id, merchant_id=shop.merchant.merchant_id, purpose="top_up", amount_cents=1000, key="fuzzed"
    )
    assert (await services.charges.advance(charge.charge_id)).state == "succeeded"
    return {
        "plan": plan.plan_id,
        "bundle": plan.bundles[0].credit_bundle_id,
        "subscription": subscription.subscription_id,
        "checkout_session": session.checkout_session_id,
        "charge": charge.charge_id,
    }


async def fuzz(document: URL, key: str, folder: Path, *options: str) -> None:
    fuzzer = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")), "run", str(document), "--exclude-tag", "Gateway",
        "--exclude-checks", EXCLUDED, "--seed", "20260101", "--generation-database", "none", "--workers", "1", "--no-color",
        "--header", f"Authorization: Bearer {key}", "--max-failures", "20", *options,
        cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await fuzzer.communicate()
    assert fuzzer.returncode == 0, output.decode()[-8000:]


async def test_every_answer_to_made_up_requests_is_as_the_document_says(stores: Stores, shop: Shop, tmp_path: Path) -> None:
    """No 5xx, no undocumented status, no body that the schema does not describe, no operation that forgets its key."""
    async with served(dependencies(stores, models=(MODEL,), requests_per_minute=10**9)) as client:
        document = client.make_url("/openapi.json")
        phases = ("--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES)
        await fuzz(document, shop.key, tmp_path, "--exclude-method", "DELETE", *phases)
        await fuzz(document, shop.key, tmp_path, "--include-method", "DELETE", *phases)
