"""Outbox -> Postgres: rows and mark in one transaction, then the trim. Killed anywhere, the next read starts at the mark."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

import structlog

from lava_proxy.settings import Flusher as FlusherSettings
from lava_proxy.stores.ledger_store import LedgerStore, Marks
from lava_proxy.stores.outbox import Outbox, OutboxEntry

_GATHER_S, _GATHER_BUSY_S = 0.03, 0.2
_BUSY_ROWS_PER_S = 2_000
_log = structlog.get_logger("flusher")


class Flusher:
    """One owner of the marks; a second flusher is fenced by them."""

    def __init__(
        self,
        outbox: Outbox,
        ledger: LedgerStore,
        settings: FlusherSettings,
        *,
        after_commit: Callable[[], None] | None = None,
    ) -> None:
        """`after_commit` runs between COMMIT and trim: where the kill tests strike."""
        self._outbox = outbox
        self._ledger = ledger
        self._settings = settings
        self._marks: Marks | None = None
        self._first = 0
        self._rest: list[OutboxEntry] = []  # read already, and more than one batch may have
        self.is_behind = False  # did the last flush leave rows, as far as it could see
        self._after_commit = after_commit

    async def run_once(self, *, wait: bool = True) -> int:
        """Flush one batch; how many rows. Waits a little for the first row when `wait`."""
        if self._marks is None:
            marks = await self._ledger.marks()
            await self._outbox.trim(marks)  # what an earlier flusher committed and did not live to trim
            self._marks = marks
        rows_max = self._settings.batch_rows_max
        of_partition_max = max(1, rows_max // 8)
        entries, self._rest = self._rest, []
        if not entries:
            # The stream read first changes with each batch, so that under a backlog every partition has its turn.
            turn = sorted(self._marks, key=lambda part: part < self._first)
            entries = await self._outbox.read(
                {part: self._marks[part] for part in turn}, of_partition_max, self._settings.idle_wait_ms if wait else None
            )
        if len(entries) > rows_max:
            entries, self._rest = entries[:rows_max], entries[rows_max:]
            self._first = entries[-1].part
        self.is_behind = bool(self._rest) or max(Counter(entry.part for entry in entries).values(), default=0) >= of_partition_max
        if not entries:
            return 0
        try:
            committed = await self._ledger.flush(entries, self._marks)
        except BaseException:
            self._marks, self._rest = None, []
            raise
        if self._after_commit is not None:
            self._after_commit()
        self._marks.update(committed)
        await self._outbox.trim(committed)
        return len(entries)

    async def flush_all(self) -> int:
        """Flush until the outbox is empty."""
        total = 0
        while flushed := await self.run_once(wait=False):
            total += flushed
        return total


class Gathering:
    """How long to wait for more rows after a flush.

    A transaction costs as much as some hundred rows, and a row the less the more go together; but where few come, a large batch
    would only stand in the way of the calls that come beside it.
    """

    def __init__(self) -> None:
        self._last: float | None = None

    def pause_s(self, rows: int, now: float, *, is_behind: bool) -> float:
        """After a flush of so many rows that ended at `now` (seconds of any steady clock). What it left is flushed at once."""
        elapsed = now - self._last if self._last is not None else _GATHER_S
        self._last = now
        if not rows or is_behind:
            return 0
        return _GATHER_BUSY_S if rows > elapsed * _BUSY_ROWS_PER_S else _GATHER_S


def kill_self() -> None:
    """For the kill tests: die at once, as by `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)
