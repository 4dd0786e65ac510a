"""The rules of outgoing webhooks: event names in both vocabularies, when a delivery is tried again, what an attempt was.

An endpoint speaks one vocabulary: `customer` (the newest) or `connection` (that of older clients). Events are stored under their
newest name; `event_name` translates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal

Vocabulary = Literal["customer", "connection"]
WebhookStatus = Literal["active", "disabled"]
DeliveryState = Literal["pending", "delivered", "failed"]

CUSTOMER_CREATED = "customer.created"
BALANCE_UPDATED = "customer.wallet.balance.updated"
CUSTOMER_DELETED = "customer.deleted"
CUSTOMER_LIMITED = "customer.limited"
CHARGE_FAILED = "charge.failed"
SUBSCRIPTION_CREATED: Final = "subscription.created"
SUBSCRIPTION_RENEWED: Final = "subscription.renewed"
SUBSCRIPTION_CHANGED: Final = "subscription.changed"
SUBSCRIPTION_CANCELLED: Final = "subscription.cancelled"
TEST_EVENT = "webhook.test"

EVENT_TYPES: tuple[str, ...] = (
    CUSTOMER_CREATED,
    BALANCE_UPDATED,
    CUSTOMER_DELETED,
    CUSTOMER_LIMITED,
    SUBSCRIPTION_CREATED,
    SUBSCRIPTION_RENEWED,
    SUBSCRIPTION_CHANGED,
    SUBSCRIPTION_CANCELLED,
    CHARGE_FAILED,
)
"""What an endpoint can select, by the newest names; whoever emits a new type adds it here."""

TRY_WINDOW = timedelta(days=3)
"""From its first try on, a delivery is tried for so long; its last try is at the end of it."""
RETRY_DELAYS_S = (5, 15, 60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 24 * 3600)
"""After the first, second, ... failure; the last one repeats."""
ORDERED_TRIES = 3
"""A later event of the same wallet waits for an earlier one until this many tries of it have begun, then it overtakes."""

_JITTER_PER_MILLE = 100
_OLD, _NEW = "connection.", "customer."


def event_name(event_type: str, vocabulary: Vocabulary) -> str:
    """The name of an event in an endpoint's vocabulary."""
    if vocabulary == "connection" and event_type.startswith(_NEW):
        return _OLD + event_type.removeprefix(_NEW)
    return event_type


def newest_name(name: str) -> str:
    """The newest name of an event, whichever vocabulary the name is of."""
    return _NEW + name.removeprefix(_OLD) if name.startswith(_OLD) else name


def next_try(first_try: datetime, now: datetime, tries: int, jitter: int) -> datetime | None:
    """When to try again after `tries` failures; None when the window has been used up.

    `jitter` is a random integer of 0 to 1000 that moves the delay by up to ten percent either way. The window's end gets a try
    whatever the delay.
    """
    assert tries > 0 and 0 <= jitter <= 1000
    end = first_try + TRY_WINDOW
    if now >= end:
        return None
    delay_ms = RETRY_DELAYS_S[min(tries, len(RETRY_DELAYS_S)) - 1] * (1000 - _JITTER_PER_MILLE + jitter * _JITTER_PER_MILLE // 500)
    return min(now + timedelta(milliseconds=delay_ms), end)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingEvent:
    """An event as it is stored. `customer`: the customer's facts when it happened, None when it is about no customer.

    `metadata` is the customer's, as JSON text: whatever a merchant has put there passes through as it is.
    """

    event_id: str
    event_type: str
    sequence: int  # the wallet's last movement at that time, so that receivers can order
    created_at: datetime
    balance_nanos: int | None
    customer: dict[str, Any] | None
    metadata: str = "null"
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One delivery that is to be tried now: to whom, signed with what (newest secret first), saying what."""

    delivery_id: str
    webhook_id: str
    url: str
    vocabulary: Vocabulary
    tries: int  # this one included
    first_try_at: datetime
    event: OutgoingEvent
    secrets: tuple[str, ...] = field(repr=False)
    connection_secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What became of one try: the receiver's status, or why there is none. `excerpt`: the beginning of its answer."""

    status: int | None
    error: str | None
    excerpt: str
    duration_ms: int

    @property
    def is_delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        """The receiver asks never to be called again (RFC 9110 15.5.11)."""
        return self.status == 410
