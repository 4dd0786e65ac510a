"""wire/webhook_body.py: the payloads of both vocabularies, key by key."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from lava_proxy.domain.webhooks import BALANCE_UPDATED, TEST_EVENT, OutgoingEvent
from lava_proxy.wire.webhook_body import webhook_body

EVENT = OutgoingEvent(
    event_id="evt_1",
    event_type=BALANCE_UPDATED,
    sequence=7,
    created_at=datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC),
    balance_nanos=12_345_678_901,
    customer={
        "connection_id": "con_1",
        "reference_id": "user-42",
        "status": "ok",
        "contact": {"email": "a@b.example", "phone": "+15550100", "card": "no"},
        "created_at": "2026-01-02T03:04:05Z",
    },
    metadata='{"ratio": 0.10000000000000000001}',
)
CONTACT = {"phone": "+15550100", "email": "a@b.example", "first_name": None, "last_name": None}


def read(event: OutgoingEvent, vocabulary: Any, secret: str | None = None) -> dict[str, Any]:
    return dict(json.loads(webhook_body(event, vocabulary, secret), parse_float=Decimal))


def test_the_newest_vocabulary_has_the_customer_twice() -> None:
    body = read(EVENT, "customer")
    data = body.pop("data")
    assert body == {"event": BALANCE_UPDATED, "id": "evt_1", "created_at": "2026-12-31T23:59:59Z", "sequence": 7}
    customer = data.pop("customer")
    assert data == customer == {
        "customer_id": "con_1",
        "reference_id": "user-42",
        "status": "ok",
        "contact": CONTACT,
        "subscription": None,
        "metadata": {"ratio": Decimal("0.10000000000000000001")},
        "balance": "12.3456789010",
        "wallet": {"balance": "12.3456789010"},
        "created_at": "2026-01-02T03:04:05Z",
    }  # fmt: skip


def test_the_older_vocabulary_has_the_connection_with_its_secret() -> None:
    body = read(EVENT, "connection", "cons_live_x")
    data = body.pop("data")
    assert body == {
        "event": "connection.wallet.balance.updated", "id": "evt_1", "created_at": "2026-12-31T23:59:59Z", "sequence": 7,
    }  # fmt: skip
    assert data == {
        "connection_id": "con_1",
        "connection_secret": "cons_live_x",
        "reference_id": "user-42",
        "status": "ok",
        "has_lava_credit_balance": True,
        "customer": CONTACT,
        "subscription": None,
        "wallet": {"balance": "12.3456789010", **CONTACT, "autopay_enabled": False},
        "metadata": {"ratio": Decimal("0.10000000000000000001")},
        "previous_usage_reset": "2026-12-01T00:00:00Z",
        "next_usage_reset": "2027-01-01T00:00:00Z",
        "created_at": "2026-01-02T03:04:05Z",
    }


def test_the_newest_vocabulary_never_carries_a_connection_secret() -> None:
    assert b"cons_live_x" not in webhook_body(EVENT, "customer", "cons_live_x")


def test_facts_of_the_event_stand_at_the_top_of_data_beside_the_customer() -> None:
    event = replace(EVENT, facts={"payment_id": "pay_1", "share": Decimal("0.10000000000000000001")})
    assert read(event, "customer")["data"]["payment_id"] == read(event, "connection")["data"]["payment_id"] == "pay_1"
    assert read(event, "customer")["data"]["share"] == Decimal("0.10000000000000000001")
    assert "payment_id" not in read(event, "customer")["data"]["customer"]


def test_an_event_about_no_customer_has_only_its_facts() -> None:
    event = replace(EVENT, event_type=TEST_EVENT, customer=None, balance_nanos=None, facts={"message": "hello"})
    for vocabulary in ("customer", "connection"):
        body = read(event, vocabulary)
        assert (body["event"], body["data"]) == ("webhook.test", {"message": "hello"})


def test_the_bytes_are_the_same_for_every_try() -> None:
    assert webhook_body(EVENT, "customer") == webhook_body(replace(EVENT), "customer")
