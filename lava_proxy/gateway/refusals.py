"""Tells the workers which wallets had a call refused that an automatic bundle may let pass; off the calls' own path."""

from __future__ import annotations

import asyncio

import structlog

from lava_proxy import tasks
from lava_proxy.domain.errors import StoreError
from lava_proxy.stores.outbox import Outbox

_PAUSE_S = 0.05  # what is refused meanwhile goes with the next
_WAITING_MAX = 10_000
_log = structlog.get_logger("refusals")


class Refusals:
    """Refusals by wallet, the smallest of each, sent together. One that is lost is made again by the caller's next try."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._waiting: dict[str, int] = {}
        self._sending: asyncio.Task[None] | None = None

    def note(self, wallet_id: str, needed_nanos: int) -> None:
        """A call that could have cost so much was refused. Returns at once."""
        known = self._waiting.get(wallet_id)
        if known is None and len(self._waiting) >= _WAITING_MAX:
            return
        self._waiting[wallet_id] = needed_nanos if known is None else min(known, needed_nanos)
        if self._sending is None or self._sending.done():
            self._sending = tasks.start("refusals", self._send())

    async def _send(self) -> None:
        while self._waiting:
            needed, self._waiting = self._waiting, {}
            try:
                await self._outbox.note_refused(needed)
            except StoreError:
                _log.warning("Refusals were not passed on", action="refusals_lost", wallets=len(needed))
            await asyncio.sleep(_PAUSE_S)

    async def stop(self) -> None:
        await tasks.stop(self._sending)
