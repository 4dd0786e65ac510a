"""A checkout session follows its charge, in the charge's own transaction: what is paid is completed, whoever notices it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

from lava_proxy.domain.webhooks import CUSTOMER_CREATED
from lava_proxy.stores.charge_store import Charge
from lava_proxy.stores.checkout_store import CheckoutStore
from lava_proxy.stores.ids import created_ms, ulid_of
from lava_proxy.stores.webhook_events import add_event

SESSION_KEY, ATTEMPT_KEY = "checkout_session_id", "checkout_attempt"
"""In a charge's subject: whose session it pays, and the number of that payment."""


def connection_id_of(session_id: str) -> str:
    """The id of the customer that a session makes: the same however often it is made."""
    return ulid_of("con", created_ms(session_id), hashlib.sha256(session_id.encode()).digest()[:10])


class CheckoutProgress:
    """Moves sessions as their payments go."""

    def __init__(self, store: CheckoutStore, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock

    async def on_transition(self, db: Any, charge: Charge, old: str, new: str) -> None:
        """For `Charges`: in the transaction of each change of a charge's state."""
        session_id = charge.subject.get(SESSION_KEY)
        if session_id is None:
            return
        if new == "succeeded":
            await self.complete(db, session_id, charge.charge_id)
        elif new in ("declined", "canceled"):
            await self._store.unpay(db, session_id, charge.subject[ATTEMPT_KEY])
        else:
            await self._store.pay(db, session_id, charge.subject[ATTEMPT_KEY])

    async def complete(self, db: Any, session_id: str, charge_id: str | None) -> None:
        """Done, and a customer whom the session has made is told of; nothing when that has happened."""
        done = await self._store.complete(db, session_id, charge_id)
        if done is None or done.connection_id != connection_id_of(session_id):
            return
        await add_event(
            db, merchant_id=done.merchant_id, event_type=CUSTOMER_CREATED, at=self._clock(), connection_id=done.connection_id,
            transition=done.connection_id,
        )  # fmt: skip
