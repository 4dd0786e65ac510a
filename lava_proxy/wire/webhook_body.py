"""The body of an outgoing webhook, in the vocabulary of its endpoint: the same bytes for every try of one event.

Top level: `event` (the name), `id`, `created_at`, `sequence` and `data`. In the newest vocabulary `data` has the Customer's keys
and the Customer again below `customer`; in the older one it has the Connection's keys, with `connection_secret`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson

from lava_proxy.domain.money import format_usd
from lava_proxy.domain.webhooks import OutgoingEvent, Vocabulary, event_name

_CONTACT_KEYS = ("phone", "email", "first_name", "last_name")


def webhook_body(event: OutgoingEvent, vocabulary: Vocabulary, connection_secret: str | None = None) -> bytes:
    """Compact JSON. Events about no customer have their own facts as `data`."""
    data: dict[str, Any] = dict(event.facts)
    if event.customer is not None and vocabulary == "customer":
        customer = _customer(event)
        data = {**customer, **data, "customer": customer}
    elif event.customer is not None:
        data = {**_connection(event, connection_secret), **data}
    body = {
        "event": event_name(event.event_type, vocabulary),
        "id": event.event_id,
        "created_at": _text(event.created_at),
        "sequence": event.sequence,
        "data": data,
    }
    return orjson.dumps(body, default=_plain)


def _customer(event: OutgoingEvent) -> dict[str, Any]:
    facts = event.customer or {}
    return {
        "customer_id": facts["connection_id"],
        "reference_id": facts["reference_id"],
        "status": facts["status"],
        "contact": _contact(facts),
        "subscription": facts.get("subscription"),
        "metadata": orjson.Fragment(event.metadata),
        "balance": _balance(event),
        "wallet": {"balance": _balance(event)},
        "created_at": facts["created_at"],
    }


def _connection(event: OutgoingEvent, connection_secret: str | None) -> dict[str, Any]:
    """The union of both older vocabularies, as REST has it."""
    facts = event.customer or {}
    start, end = _month(event.created_at)
    return {
        "connection_id": facts["connection_id"],
        "connection_secret": connection_secret,
        "reference_id": facts["reference_id"],
        "status": facts["status"],
        "has_lava_credit_balance": (event.balance_nanos or 0) > 0,
        "customer": _contact(facts),
        "subscription": facts.get("subscription"),
        "wallet": {"balance": _balance(event), **_contact(facts), "autopay_enabled": False},
        "metadata": orjson.Fragment(event.metadata),
        "previous_usage_reset": _text(start),
        "next_usage_reset": _text(end),
        "created_at": facts["created_at"],
    }


def _contact(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: facts["contact"].get(key) for key in _CONTACT_KEYS}


def _balance(event: OutgoingEvent) -> str | None:
    """Everything the wallet holds, what open calls hold included, at the committed entry that `sequence` names."""
    return None if event.balance_nanos is None else format_usd(event.balance_nanos)


def _month(at: datetime) -> tuple[datetime, datetime]:
    """The first instants of the UTC month and of the next: while there is no plan, tier counters start again then."""
    utc = at.astimezone(UTC)
    return (
        datetime(utc.year, utc.month, 1, tzinfo=UTC),
        datetime(utc.year + utc.month // 12, utc.month % 12 + 1, 1, tzinfo=UTC),
    )


def _text(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):  # a number of the event's facts keeps its digits
        return orjson.Fragment(format(value, "f").encode())
    raise TypeError(f"{type(value).__name__} has no JSON form")
