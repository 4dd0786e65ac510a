"""Sends webhooks: makes events of changed balances, claims what is due, and writes what became of each try.

Delivery is at least once, with the event's id the same on every try. A sender that dies loses nothing: its claims end with their
lease. Several processes may send side by side.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from lava_proxy import tasks, telemetry
from lava_proxy.domain.errors import StoreError
from lava_proxy.domain.webhooks import Attempt, Outgoing, next_try
from lava_proxy.notify.webhook_client import WebhookClient
from lava_proxy.settings import Webhooks as WebhookSettings
from lava_proxy.stores.webhook_store import WebhookStore

_BALANCES_BATCH = 500
_log = structlog.get_logger("webhook_sender")


class WebhookSender:
    """`run_once` starts deliveries and does not wait for them: a slow receiver holds up nobody else."""

    def __init__(
        self,
        store: WebhookStore,
        client: WebhookClient,
        settings: WebhookSettings,
        *,
        clock: Callable[[], datetime],
        jitter: Callable[[], int],
    ) -> None:
        """`jitter` returns a random integer of 0 to 1000."""
        self._store = store
        self._client = client
        self._settings = settings
        self._clock = clock
        self._jitter = jitter
        self._busy: Counter[str] = Counter()
        self._running: set[asyncio.Task[None]] = set()

    async def run_once(self) -> int:
        """Emit balances and start what is due, as far as the bounds allow; how much was found to do."""
        now = self._clock()
        balances_due, deliveries_due = await self._store.due(now)
        emitted = await self._store.emit_balances(now, _BALANCES_BATCH) if balances_due else 0
        free = self._settings.concurrency_max - len(self._running)
        claimed: list[Outgoing] = []
        if free > 0 and (deliveries_due or emitted):
            claimed = await self._store.claim(
                now,
                lease=timedelta(seconds=self._settings.lease_s),
                limit=free,
                per_webhook=self._settings.endpoint_concurrency_max,
                busy=dict(self._busy),
            )
        for outgoing in claimed:
            self._busy[outgoing.webhook_id] += 1
            task = tasks.start("webhook", self._deliver(outgoing))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return emitted + len(claimed)

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        while self._running:
            await asyncio.wait(set(self._running))

    async def measure(self) -> int:
        """Set the gauges; how many deliveries wait."""
        pending, oldest = await self._store.backlog()
        telemetry.WEBHOOKS_PENDING.set(pending)
        telemetry.WEBHOOK_OLDEST.set(0 if oldest is None else max(0, (self._clock() - oldest) // timedelta(seconds=1)))
        return pending

    async def prune(self) -> int:
        """Delete what has been kept long enough; how many rows."""
        now = self._clock()
        total = 0
        while deleted := await self._store.prune(now - timedelta(days=self._settings.keep_days), now):
            total += deleted
        return total

    async def _deliver(self, outgoing: Outgoing) -> None:
        try:
            attempt = await self._client.send(outgoing)
            await self._record(outgoing, attempt)
        except StoreError as error:
            # The lease ends and it is sent again: at least once.
            _log.warning("A delivery could not be recorded", action="webhook_unrecorded", error=error.message)
        finally:
            self._busy[outgoing.webhook_id] -= 1
            if not self._busy[outgoing.webhook_id]:
                del self._busy[outgoing.webhook_id]

    async def _record(self, outgoing: Outgoing, attempt: Attempt) -> None:
        now = self._clock()
        again_at = None
        if not attempt.is_delivered and not attempt.is_gone:
            again_at = next_try(outgoing.first_try_at, now, outgoing.tries, self._jitter())
        disabled = await self._store.record(outgoing, attempt, now, again_at)
        outcome = "delivered" if attempt.is_delivered else "failed" if again_at is None else "retried"
        telemetry.WEBHOOK_DELIVERIES.labels(outcome).inc()
        if disabled is not None:
            telemetry.WEBHOOKS_DISABLED.labels(disabled).inc()
            _log.warning(
                "A webhook endpoint was disabled", action="webhook_disabled", webhook_id=outgoing.webhook_id, reason=disabled
            )
