"""Goes on with charges: what a crash left, what has no answer yet, what is to be tried again; and with refunds likewise."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from lava_proxy.billing.charges import Charges
from lava_proxy.domain.errors import CallerError, UpstreamError
from lava_proxy.stores.charge_store import ChargeStore

_BATCH = 50
_REFUND_WAIT = timedelta(minutes=1)
_log = structlog.get_logger("charger")


class Charger:
    """Idempotent: a charge is claimed by its state, so two of these at once do what one does."""

    def __init__(self, store: ChargeStore, charges: Charges, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._charges = charges
        self._clock = clock

    async def run_once(self) -> int:
        """Advance what is due; how many charges moved."""
        processor = self._charges.processor_name
        if processor is None:
            return 0
        now, moved = self._clock(), 0
        for charge_id in await self._store.due(processor, now, _BATCH):
            before = await self._store.charge(charge_id)
            try:
                moved += (await self._charges.advance(charge_id)).state != before.state
            except (CallerError, UpstreamError) as error:
                # One charge that cannot go on must not keep the others.
                _log.error("A charge cannot go on", action="charge_stuck", charge_id=charge_id, error=error.message)
        for charge_id in await self._store.unfinished_refunds(processor, now - _REFUND_WAIT, _BATCH):
            try:
                await self._charges.finish_refunds(charge_id)
            except (CallerError, UpstreamError) as error:
                _log.error("A refund cannot go on", action="refund_stuck", charge_id=charge_id, error=error.message)
        return moved
