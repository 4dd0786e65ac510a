"""POST /webhooks/stripe through the application: raw body, signature, one effect a notice."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lava_proxy.api.application import build_application
from lava_proxy.api.processor_webhooks import ProcessorWebhooks
from lava_proxy.api.sandbox_bank import SandboxBank
from lava_proxy.billing.reconciliation import reconcile
from lava_proxy.domain.money import NANOS_PER_CENT
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.vault import Vault
from tests.billing_world import World
from tests.card_world import GOOD, HOLDER, CardWorld, card_world
from tests.integration.api_world import dependencies


@pytest.fixture
async def cards(world: World) -> AsyncIterator[CardWorld]:
    async with card_world(world, "stripe") as made:
        yield made


@pytest.fixture
async def client(cards: CardWorld) -> AsyncIterator[TestClient[Any, Any]]:
    async with served(cards, ProcessorWebhooks(cards.processor, cards.charges, cards.cards).routes()) as made:
        yield made


@asynccontextmanager
async def served(cards: CardWorld, routes: list[web.RouteDef]) -> AsyncIterator[TestClient[Any, Any]]:
    world = cards.world
    vault = Vault(base64.b64encode(os.urandom(32)).decode())
    stores: Any = SimpleNamespace(
        catalog=CatalogStore(world.pool, vault), ledger=world.ledger, outbox=world.outbox, pool=world.pool, redis=world.redis,
        vault=vault, balances=world.balances, webhooks=None, webhook_client=None,
    )  # fmt: skip
    async with TestClient(TestServer(build_application(dependencies(stores, processor_routes=routes)))) as made:
        yield made


async def send(client: TestClient[Any, Any], cards: CardWorld, event: dict[str, Any], **options: Any) -> int:
    assert cards.fake is not None
    return await cards.fake.send(event, str(client.make_url("/webhooks/stripe")), **options)


async def test_a_notice_credits_once_however_often_it_is_delivered(client: TestClient[Any, Any], cards: CardWorld) -> None:
    """69, 70, 73"""
    assert cards.fake is not None
    wallet_id, _ = await cards.payer()
    cards.fake.fail("confirm", "drop_after")
    await cards.pay(wallet_id)
    (paid,) = (event for event in cards.fake.events if event["type"] == "payment_intent.succeeded")
    assert [await send(client, cards, paid) for _ in range(3)] == [200, 200, 200]
    assert (await cards.world.state(wallet_id)).balance_nanos == 2500 * NANOS_PER_CENT
    cards.fake.now_s += 3 * 86_400  # resent after three days, freshly signed, under its old id
    assert await send(client, cards, paid) == 200
    assert (await cards.world.state(wallet_id)).balance_nanos == 2500 * NANOS_PER_CENT


async def test_a_wrong_or_old_signature_is_refused_and_changes_nothing(client: TestClient[Any, Any], cards: CardWorld) -> None:
    """71"""
    assert cards.fake is not None
    wallet_id, _ = await cards.payer()
    cards.fake.fail("confirm", "drop_after")
    await cards.pay(wallet_id)
    event = cards.fake.events[-1]
    assert await send(client, cards, event, secret="whsec_wrong") == 400
    assert await send(client, cards, event, at=cards.fake.now_s - 301) == 400
    answer = await client.post("/webhooks/stripe", data=json.dumps(event))
    assert (answer.status, (await answer.json())["error"]["code"]) == (400, "invalid_signature")
    assert (await cards.world.state(wallet_id)).balance_nanos == 0
    assert await cards.world.fetch("SELECT * FROM processor_event") == []


async def test_a_notice_that_cannot_have_its_effect_now_is_asked_for_again(client: TestClient[Any, Any], cards: CardWorld) -> None:
    """73: never 200 without the effect."""
    assert cards.fake is not None
    wallet_id, _ = await cards.payer()
    cards.fake.fail("confirm", "drop_after")
    await cards.pay(wallet_id)
    paid = cards.fake.events[-1]
    cards.fake.fail("GET /v1/payment_intents", "error_before")
    assert await send(client, cards, paid) == 503
    assert await send(client, cards, paid) == 200
    assert (await cards.world.state(wallet_id)).balance_nanos == 2500 * NANOS_PER_CENT


async def test_a_finished_setup_and_a_detached_card_arrive_by_notice(client: TestClient[Any, Any], cards: CardWorld) -> None:
    assert cards.fake is not None
    _, person_id = await cards.payer(None)
    setup = await cards.cards.begin(person_id)
    method_ref = cards.fake.finish_setup(setup.setup_ref, GOOD)
    for _ in range(2):
        assert await send(client, cards, cards.fake.events[-1]) == 200
    assert [(card.last4, card.is_default) for card in await cards.cards.list(person_id)] == [("4242", True)]
    cards.fake.objects[method_ref]["customer"] = None
    cards.fake._emit("payment_method.detached", cards.fake.objects[method_ref])
    assert await send(client, cards, cards.fake.events[-1]) == 200
    assert await cards.cards.list(person_id) == []


async def test_a_payment_of_somebody_else_on_the_account_is_noted_and_left_alone(
    client: TestClient[Any, Any], cards: CardWorld
) -> None:
    assert cards.fake is not None
    customer = cards.fake._new("cus", "customer")
    intent = cards.fake._intent({"customer": customer["id"], "amount": "5000", "currency": "usd"})
    cards.fake._capture(intent)
    assert await send(client, cards, cards.fake.events[-1]) == 200
    assert len(await cards.world.fetch("SELECT * FROM processor_event")) == 1
    assert await cards.world.fetch("SELECT * FROM credit") == []
    assert (await reconcile(cards.store, cards.processor, cards.clock().date()))["payments"] == 0


@pytest.mark.parametrize(("answer", "state"), [("approve", "succeeded"), ("refuse", "declined")])
async def test_the_sandboxes_bank_asks_the_holder_and_leads_back(world: World, answer: str, state: str) -> None:
    async with card_world(world, "sandbox") as cards, served(cards, SandboxBank(cards.processor, cards.charges).routes()) as client:
        wallet_id, _ = await cards.payer(HOLDER)
        charge = await cards.pay(wallet_id, purpose="auto_top_up")
        charge = await cards.charges.authenticate(charge.charge_id, "http://127.0.0.1/back")
        assert charge.action_url is not None
        path = charge.action_url.removeprefix("http://x")
        assert "$25.00" in await (await client.get(path)).text()
        assert (await client.post(path, data={"answer": "maybe"})).status == 400
        for kind, body in (
            ("multipart/form-data; boundary=x", b"no parts"),
            ("multipart/form-data; boundary=x", b"--x\r\n\r\n"),
            ("application/x-www-form-urlencoded; charset=nothing", b"answer=approve"),
            ("application/x-www-form-urlencoded", b"answer=\xff"),
        ):
            assert (await client.post(path, data=body, headers={"Content-Type": kind})).status == 400, (kind, body)
        done = await client.post(path, data={"answer": answer}, allow_redirects=False)
        assert (done.status, done.headers["Location"]) == (303, "http://127.0.0.1/back")
        assert (await cards.store.charge(charge.charge_id)).state == state
        expected = 2500 * NANOS_PER_CENT if state == "succeeded" else 0
        assert (await cards.world.state(wallet_id)).balance_nanos == expected
        # Asked again, nothing changes any more.
        await client.post(path, data={"answer": "approve"}, allow_redirects=False)
        assert (await cards.world.state(wallet_id)).balance_nanos == expected
        assert (await client.get("/sandbox/bank/pi_unknown")).status == 404
