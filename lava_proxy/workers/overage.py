"""Charges cards for usage beyond the credit and buys bundles, within a second of what makes it due."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from lava_proxy.billing.overage import OverageDesk
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.overage_store import OverageStore

_BATCH = 100


class OverageWorker:
    """Idempotent; any number of these at once do what one does."""

    def __init__(self, store: OverageStore, desk: OverageDesk, outbox: Outbox, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._desk = desk
        self._outbox = outbox
        self._clock = clock
        self._month = ""

    async def run_once(self) -> int:
        """Look at the wallets that are due; how many were. Raises StoreError when Redis or Postgres cannot answer."""
        month = f"{self._clock().astimezone(UTC):%Y-%m}"
        if month != self._month:
            await self._store.note_month(month)
            self._month = month
        refused = await self._outbox.refused_wallets(_BATCH)
        if refused:
            await self._store.note_refused(refused)
            await self._outbox.forget_refused(list(refused))
        return await self._desk.look(_BATCH)
