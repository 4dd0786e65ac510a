"""/v1/wallet/fund, /v1/payment_methods and the money of customers: wallet, ledger, cards, charges, refunds, adjustments."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from lava_proxy.payments.processor import CardDetails
from tests.engines import RunningEngines
from tests.integration.api_world import CLOCK, Shop, Stores, dependencies, open_shop, opened_stores, payments, sell, served

Client = TestClient[Any, Any]


@pytest.fixture
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture
async def client(stores: Stores) -> AsyncIterator[Client]:
    async with served(dependencies(stores)) as started:
        yield started


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    return await open_shop(stores, "acme")


async def add_card(stores: Stores, wallet_id: str, number: str = "4242424242424242") -> str:
    services = payments(stores)
    person_id = await services.charge_store.wallet_person_made(wallet_id, CLOCK)
    return (await services.cards.add(person_id, CardDetails(number=number, expiry_month=12, expiry_year=2034))).payment_method_id


async def ask(client: Client, shop: Shop, method: str, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
    headers = shop.headers | ({"Idempotency-Key": key} if key else {})
    async with client.request(method, path, headers=headers, json=body) as answer:
        return answer.status, await answer.json()


async def test_the_own_wallet_is_funded_by_a_stored_card_once_a_key(client: Client, stores: Stores, shop: Shop) -> None:
    """L4, 67: the contract's body and answer; the same key charges once, also when the kept answer was lost."""
    card = await add_card(stores, shop.merchant.wallet_id)
    status, cards = await ask(client, shop, "GET", "/v1/payment_methods")
    assert status == 200
    assert cards == {
        "data": [
            {
                "payment_method_id": card, "last4": "4242", "expiry_month": 12, "expiry_year": 2034, "brand": "visa",
                "is_default": True, "has_error": False, "error_code": None, "error_message": None, "error_at": None,
            }
        ]
    }  # fmt: skip
    before = (await ask(client, shop, "GET", "/v1/wallet"))[1]["balance"]
    body = {"payment_method_id": card, "amount": "25.00"}
    status, first = await ask(client, shop, "POST", "/v1/wallet/fund", body, "k1")
    assert (status, first["status"]) == (200, "completed") and first["payment_id"].startswith("chg_")
    assert Decimal(first["balance"]) == Decimal(before) + 25
    assert (await ask(client, shop, "POST", "/v1/wallet/fund", body, "k1")) == (200, first)
    await stores.pool.execute("DELETE FROM idempotent_answer")
    assert (await ask(client, shop, "POST", "/v1/wallet/fund", body, "k1"))[1]["payment_id"] == first["payment_id"]
    rows = await stores.pool.fetch("SELECT facts FROM sandbox_object WHERE kind = 'payment'")
    assert [row["facts"]["captured"] for row in rows] == [2500]
    assert (await ask(client, shop, "POST", "/v1/wallet/fund", body))[1]["payment_id"] != first["payment_id"]


async def test_funding_says_what_the_bank_said(client: Client, stores: Stores, shop: Shop) -> None:
    path = f"/v1/customers/{shop.customer.connection_id}/wallet/fund"
    status, answer = await ask(client, shop, "POST", path, {"amount": "10"})
    assert (status, answer["error"]["code"]) == (402, "payment_method_required")
    await add_card(stores, shop.customer.wallet_id, "4000000000000341")
    status, answer = await ask(client, shop, "POST", path, {"amount": "10"})
    assert (status, answer["error"]["code"]) == (402, "card_declined")
    holder = await add_card(stores, shop.customer.wallet_id, "4000002500003155")
    status, answer = await ask(client, shop, "POST", path, {"amount": "10", "payment_method_id": holder})
    assert (status, answer["status"]) == (200, "requires_action") and answer["redirect_url"].startswith("http://sandbox.test/")
    status, answer = await ask(client, shop, "POST", path, {"amount": "12"})
    assert (status, answer["error"]["code"]) == (409, "charge_in_progress")
    assert (await stores.pool.fetchval("SELECT count(*) FROM charge_hold_off")) == 0  # on session: not held against automatic ones


@pytest.mark.parametrize("amount", ["9.99", "10000.01", "-10", "ten", "10.001", 10, None])
async def test_amounts_out_of_bounds_are_refused_and_charge_nothing(
    client: Client, stores: Stores, shop: Shop, amount: object
) -> None:
    await add_card(stores, shop.merchant.wallet_id)
    status, answer = await ask(client, shop, "POST", "/v1/wallet/fund", {"amount": amount})
    assert status == 400 and "amount" in answer["error"]["message"]
    assert await stores.pool.fetchval("SELECT count(*) FROM charge") == 0


async def test_a_customers_wallet_shows_its_lots_and_its_ledger_every_movement(client: Client, stores: Stores, shop: Shop) -> None:
    """Credits, usage, adjustments and refunds are entries; the pages follow each other."""
    base = f"/v1/customers/{shop.customer.connection_id}"
    await add_card(stores, shop.customer.wallet_id)
    assert (await ask(client, shop, "POST", base + "/wallet/fund", {"amount": "10"}))[1]["status"] == "completed"
    await sell(stores, shop)
    status, made = await ask(client, shop, "POST", base + "/adjustments", {"amount": "-2.50", "reason": "wrong meter"}, "a1")
    assert status == 201 and made["amount"] == "-2.5000000000"
    assert (await ask(client, shop, "POST", base + "/adjustments", {"amount": "-2.50", "reason": "wrong meter"}, "a1"))[1] == made
    _, charges = await ask(client, shop, "GET", base + "/charges")
    (charge,) = charges["data"]
    assert (charge["status"], charge["amount"], charge["receipt"]["paid_with"]) == ("succeeded", "10.00", "visa ending in 4242")
    status, back = await ask(
        client, shop, "POST", f"/v1/charges/{charge['charge_id']}/refund", {"amount": "4.00", "reason": "sorry"}
    )
    assert (status, back["status"], back["amount"]) == (201, "done", "4.00")
    status, refused = await ask(client, shop, "POST", f"/v1/charges/{charge['charge_id']}/refund", {"amount": "7.00"})
    assert (status, refused["error"]["code"]) == (400, "refund_too_large") and "At most $6.00" in refused["error"]["message"]
    await payments(stores).accounts._funding.apply_order(f"{back['refund_id']}.1")
    await stores.flush()

    _, wallet = await ask(client, shop, "GET", base + "/wallet")
    assert wallet["balance"] == "28.4700000000" and wallet["debt"] == "0.0000000000" and wallet["limited_reason"] is None
    assert [(lot["lot_class"], lot["expires_at"]) for lot in wallet["lots"]] == [("funds", None), ("funds", None)]
    assert sum(int(lot["remaining"].replace(".", "")) for lot in wallet["lots"]) == 284_700_000_000
    entries, cursor = [], ""
    while True:
        _, page = await ask(client, shop, "GET", f"{base}/ledger?limit=2&cursor={cursor}")
        entries += page["data"]
        if not page["has_more"]:
            break
        cursor = page["next_cursor"]
    assert [entry["type"] for entry in entries] == ["refund", "adjustment", "usage", "credit", "credit"]
    assert [entry["amount"] for entry in entries] == [
        "-4.0000000000", "-2.5000000000", "-0.0300000000", "10.0000000000", "25.0000000000"
    ]  # fmt: skip
    assert entries[1]["reason"] == "wrong meter" and entries[0]["balance"] == wallet["balance"]
    _, charges = await ask(client, shop, "GET", base + "/charges")
    assert (charges["data"][0]["refunded"], charges["data"][0]["receipt"]["refunded"]) == ("4.00", "4.00")
    audited = await stores.pool.fetch("SELECT amount_nanos, reason, made_by FROM adjustment")
    assert [tuple(row) for row in audited] == [(-2_500_000_000, "wrong meter", "api")]


async def test_an_adjustment_below_everything_leaves_debt_that_funds_pay(client: Client, stores: Stores, shop: Shop) -> None:
    base = f"/v1/customers/{shop.customer.connection_id}"
    status, _ = await ask(client, shop, "POST", base + "/adjustments", {"amount": "-30", "reason": "chargeback"})
    _, wallet = await ask(client, shop, "GET", base + "/wallet")
    assert (status, wallet["debt"], wallet["balance"]) == (201, "5.0000000000", "-5.0000000000")
    await ask(client, shop, "POST", base + "/adjustments", {"amount": "6", "reason": "made up"})
    _, wallet = await ask(client, shop, "GET", base + "/wallet")
    assert (wallet["debt"], wallet["balance"]) == ("0.0000000000", "1.0000000000")


@pytest.mark.parametrize(
    "body", [{}, {"amount": "1"}, {"reason": "x"}, {"amount": "0", "reason": "x"}, {"amount": "1e99", "reason": "x"},
             {"amount": "--1", "reason": "x"}, {"amount": 1, "reason": "x"}, {"amount": "1", "reason": " "}]
)  # fmt: skip
async def test_adjustments_that_say_too_little_change_nothing(client: Client, stores: Stores, shop: Shop, body: Any) -> None:
    status, answer = await ask(client, shop, "POST", f"/v1/customers/{shop.customer.connection_id}/adjustments", body)
    assert (status, answer["error"]["code"]) == (400, "invalid_parameter")
    assert await stores.pool.fetchval("SELECT count(*) FROM adjustment") == 0


async def test_money_of_others_and_of_the_own_wallet_is_not_refunded(client: Client, stores: Stores, shop: Shop) -> None:
    """What was paid into the own wallet is the installation's to give back."""
    await add_card(stores, shop.merchant.wallet_id)
    _, paid = await ask(client, shop, "POST", "/v1/wallet/fund", {"amount": "10"})
    rival = await open_shop(stores, "rival")
    for asker in (shop, rival):
        status, answer = await ask(client, asker, "POST", f"/v1/charges/{paid['payment_id']}/refund", {})
        assert (status, answer["error"]["code"]) == (404, "not_found")
    assert await stores.pool.fetchval("SELECT count(*) FROM refund") == 0
