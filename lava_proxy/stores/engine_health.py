"""How Redis, Postgres and the way between them do: what readiness, the status page and the dashboard show."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from lava_proxy import tasks
from lava_proxy.domain.errors import StoreError
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.outbox import Outbox, Vitals

# Readiness may be asked for by anybody and costs some two hundred Redis reads, so one answer serves all who ask meanwhile.
REMEMBER_S = 0.5
_TIMEOUT_S = 2.0

RedisState = Literal["ok", "recovering", "unreachable"]
PostgresState = Literal["ok", "unreachable"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """How the parts do. Calls need Redis, verified; without Postgres they go on and their rows wait in the outbox."""

    redis: RedisState
    postgres: PostgresState
    vitals: Vitals | None

    @property
    def is_ready(self) -> bool:
        return self.redis == "ok"

    @property
    def status(self) -> Literal["ready", "degraded", "not_ready"]:
        if not self.is_ready:
            return "not_ready"
        return "ready" if self.postgres == "ok" else "degraded"

    @property
    def problems(self) -> list[str]:
        """A sentence for each part that is not well."""
        sentences = {
            "recovering": "Redis is being checked against Postgres; calls are refused until then.",
            "unreachable": "Redis does not answer; calls are refused.",
        }
        found = [sentences[self.redis]] if self.redis != "ok" else []
        if self.postgres != "ok":
            found.append("Postgres does not answer; calls go on, their rows wait in the outbox.")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The body of /readyz; figures are null while Redis cannot be asked. Durations in seconds."""
        vitals = self.vitals
        return {
            "status": self.status,
            "degraded": self.status == "degraded",
            "redis": self.redis,
            "postgres": self.postgres,
            "problems": self.problems,
            "outbox_entries": vitals.outbox_entries if vitals else None,
            "outbox_lag_seconds": vitals.outbox_lag_ms / 1000 if vitals else None,
            "holds_open": vitals.holds_open if vitals else None,
            "hold_overdue_seconds": vitals.hold_overdue_ms / 1000 if vitals else None,
        }


class Health:
    """Asks the engines how they do."""

    def __init__(self, outbox: Outbox, ledger: LedgerStore, *, remember_s: float = REMEMBER_S) -> None:
        self._outbox = outbox
        self._ledger = ledger
        self._remember_s = remember_s
        self._asking = asyncio.Lock()
        self._report: HealthReport | None = None
        self._asked_at = 0.0

    async def report(self) -> HealthReport:
        """The engines' state, at most `remember_s` old; answers within a few seconds whatever they do."""
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if self._report is None or now - self._asked_at >= self._remember_s:
                vitals, is_postgres_ok = await asyncio.gather(_answer(self._outbox.vitals), _answer(self._ledger.is_reachable))
                self._report = HealthReport(
                    redis="unreachable" if vitals is None else "ok" if vitals.is_verified else "recovering",
                    postgres="ok" if is_postgres_ok else "unreachable",
                    vitals=vitals,
                )
                self._asked_at = asyncio.get_running_loop().time()
            return self._report


async def _answer(ask: Callable[[], Awaitable[T]]) -> T | None:
    """What an engine says, None when it does not within the time."""
    task = tasks.start("health-question", _asked(ask))
    await asyncio.wait({task}, timeout=_TIMEOUT_S)
    # Left behind where it hangs: a frozen Postgres does not even answer the cancellation of a query.
    if not task.done():
        task.cancel()
        return None
    return task.result()


async def _asked(ask: Callable[[], Awaitable[T]]) -> T | None:
    try:
        return await ask()
    except (StoreError, TimeoutError):
        return None
