"""Redis against Postgres: on each new run of Redis, check that nothing flushed is missing; rebuild what is. Gateways wait for it.

Postgres holds everything up to the marks. A partition whose sequence stands at or after its mark is whole (AOF replays the rest);
one that stands before it, or is gone, lost acknowledged writes and is rebuilt from the ledger under a new epoch. One process
rebuilds at a time (LedgerStore.recovery_lock); what a killed one left half done, the next finishes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from lava_proxy.domain.calendar import previous_month_cycle_id
from lava_proxy.domain.ledger import WalletModel, replay
from lava_proxy.domain.limits import Limits, cycle_id, cycle_start, parse_limits
from lava_proxy.settings import Flusher as FlusherSettings
from lava_proxy.stores.balance_store import NEVER_S, PARTITIONS
from lava_proxy.stores.ledger_store import Fenced, LedgerStore
from lava_proxy.stores.outbox import Outbox

_FLUSH_ROWS = 5000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_log = structlog.get_logger("recovery")


class Recovery:
    """Decides whether Redis may serve, and makes it so."""

    def __init__(self, outbox: Outbox, ledger: LedgerStore, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._outbox = outbox
        self._ledger = ledger

    async def run_once(self) -> int:
        """Verify this run of Redis unless that was done, and finish rebuilds left half done; how many wallets were rebuilt."""
        if await self._is_served():
            return 0
        async with self._ledger.recovery_lock():
            if await self._is_served():  # another process was quicker
                return 0
            return await self._verify()

    async def _is_served(self) -> bool:
        if await self._outbox.verified_run() != await self._outbox.run_id():
            return False
        return all(meta is not None and meta[0] == "ready" for meta in (await self._outbox.metas()).values())

    async def _verify(self) -> int:
        rebuilt = 0
        run_id = await self._outbox.run_id()
        marks, metas = await self._ledger.marks(), await self._outbox.metas()
        for part in range(PARTITIONS):
            meta, mark = metas[part], marks[part]
            if meta is None and mark == (0, 0) and not await self._ledger.wallet_ids(part):
                await self._outbox.set_meta(part, "ready", 1, 0)
            elif meta is None or (meta[1], meta[2]) < mark or meta[0] != "ready":
                rebuilt += await self.rebuild_partition(part)
        await self._outbox.set_verified(run_id)
        _log.info("Redis is verified against Postgres", action="redis_verified", run_id=run_id, wallets_rebuilt=rebuilt)
        return rebuilt

    async def rebuild_partition(self, part: int) -> int:
        """Write every wallet of a partition as Postgres tells it; its open holds are forgotten, their calls settle late.

        Only under the recovery lock. What the partition's outbox still holds is flushed first, so nothing settled is lost.
        """
        await self._outbox.set_recovering([part])
        await self.flush_rest(part)
        meta, (mark_epoch, mark_pseq) = (await self._outbox.metas())[part], (await self._ledger.marks())[part]
        epoch = max(mark_epoch, meta[1] if meta else 0) + 1
        await self._outbox.set_meta(part, "recovering", epoch, mark_pseq)
        dropped = await self._outbox.drop_holds(part)
        wallet_ids = await self._ledger.wallet_ids(part)
        for wallet_id in wallet_ids:
            model = replay(await self._ledger.history(wallet_id))
            counters = await self._ledger.counters(wallet_id, previous_month_cycle_id(self._clock()))
            await self._outbox.write_wallet(part, wallet_id, _fields(model, counters))
        await self._ledger.forget_sweeps(part)
        for scope in await self._ledger.scopes(part):
            await self._write_scope(scope["wallet_id"], scope["scope_id"], parse_limits(scope["limits"]))
        await self._outbox.set_state(part, "ready")
        _log.warning(
            "A billing partition was rebuilt from Postgres",
            action="partition_rebuilt",
            part=part,
            wallets=len(wallet_ids),
            holds_dropped=dropped,
        )
        return len(wallet_ids)

    async def _write_scope(self, wallet_id: str, scope_id: str, limits: Limits) -> None:
        """A spend key's or connection's counters as its requests tell them; open calls are not among them."""
        now = self._clock()
        used = await self._ledger.scope_use(scope_id, cycle_start(limits.request_cycle, now), cycle_start(limits.spend_cycle, now))
        fields = {
            "ep": "0",  # no epoch: nothing is open
            "rcy": cycle_id(limits.request_cycle, now),
            "rc": str(used["requests"]),
            "scy": cycle_id(limits.spend_cycle, now),
            "sp": str(used["nanos"]),
            "tr": str(used["total_requests"]),
            "ts": str(used["total_nanos"]),
        }
        if used["last_used_at"] is not None:
            fields["lu"] = str((used["last_used_at"] - _EPOCH) // timedelta(milliseconds=1))
        await self._outbox.write_scope(wallet_id, scope_id, fields)

    async def flush_rest(self, part: int) -> int:
        """Commit what a stopped partition's outbox holds after its mark; how many rows."""
        flushed = 0
        while True:
            marks = {part: (await self._ledger.marks())[part]}
            entries = await self._outbox.read(marks, _FLUSH_ROWS, None)
            if not entries:
                return flushed
            try:
                await self._ledger.flush(entries, marks)
                flushed += len(entries)
            except Fenced:
                await asyncio.sleep(0.01)  # the daemon's own flusher is at it


def _fields(model: WalletModel, counters: dict[str, int]) -> dict[str, str]:
    lots = ",".join(f"{key}={model.lots[key]}" for key in sorted(model.lots))
    numbers = {
        "seq": model.wseq,
        "pa": model.plan_nanos,
        "fa": model.funds_nanos,
        "ph": 0,
        "fh": 0,
        "debt": model.debt_nanos,
        "settled": model.settled_nanos,
        "credited": model.credited_nanos,
        **counters,
    }
    # What open calls had kept of ended lots goes with them: 0 makes the next look end it, on the books.
    expiries = [0 if key[0] in "qg" else int(key.split(":")[2]) for key in model.lots]
    first = min(expiries, default=NEVER_S)
    return {
        "lots": lots,
        **{name: str(number) for name, number in numbers.items()},
        **({"xs": str(first)} if first < NEVER_S else {}),
    }


async def rebuild_all(outbox: Outbox, ledger: LedgerStore, flusher_settings: FlusherSettings) -> dict[str, int]:
    """Refuse changes, flush what Redis still has, write every wallet anew, serve again. What `lava-proxy rebuild` prints."""
    recovery = Recovery(outbox, ledger)
    async with ledger.recovery_lock():
        await outbox.set_recovering([part for part, meta in (await outbox.metas()).items() if meta is not None])
        flushed = sum([await recovery.flush_rest(part) for part in range(PARTITIONS)])
        wallets = sum([await recovery.rebuild_partition(part) for part in range(PARTITIONS)])
        await outbox.set_verified(await outbox.run_id())
    return {"wallets": wallets, "partitions": PARTITIONS, "flushed": flushed}
