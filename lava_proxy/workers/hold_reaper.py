"""Ends holds whose process died: settles the checkpoint that lies beside the hold, marked `orphaned`."""

from __future__ import annotations

import orjson
import structlog

from lava_proxy import telemetry
from lava_proxy.billing.rating import Rating
from lava_proxy.domain.errors import CallerError
from lava_proxy.domain.usage import Provenance
from lava_proxy.stores.balance_store import PARTITIONS, BalanceStore, Moved
from lava_proxy.stores.outbox import OpenHold, Outbox

_PER_PARTITION = 500
_MOVED_ATTEMPTS_MAX = 1000
_log = structlog.get_logger("hold_reaper")


class HoldReaper:
    """Looks at every partition's expiry index."""

    def __init__(self, outbox: Outbox, store: BalanceStore, rating: Rating, keep_s: int) -> None:
        self._outbox = outbox
        self._store = store
        self._rating = rating
        self._keep_ms = keep_s * 1000

    async def run_once(self) -> int:
        """End what is due; how many holds."""
        ended = 0
        now_ms = await self._outbox.now_ms()
        for part in range(PARTITIONS):
            for hold in await self._outbox.due_holds(part, now_ms, _PER_PARTITION):
                try:
                    ended += await self._end(hold)
                except (ValueError, KeyError, AssertionError):
                    # One hold that cannot be priced must not keep all others open.
                    _log.exception("A hold cannot be ended", action="reap_failed", request_id=hold.request_id)
        return ended

    async def _end(self, hold: OpenHold) -> int:
        row = orjson.loads(hold.row)
        delivered = row["usage"] != "{}"
        if delivered:
            row["provenance"] = str(Provenance.ESTIMATED)
        row["outcome"] = "orphaned"
        for _ in range(_MOVED_ATTEMPTS_MAX):
            try:
                settled = await self._store.settle(
                    hold.wallet_id,
                    hold.request_id,
                    row["charge_nanos"],
                    row=orjson.dumps(row),
                    keep_ms=self._keep_ms,
                    units=row["tier_units"],
                    tier_field=row["tier_field"],
                    position_lo=row["position_lo"],
                    position_hi=row["position_hi"],
                    mode="due",
                )
            except CallerError:
                return 0  # its owner was quicker
            if isinstance(settled, Moved):
                row = await self._rating.at_position(row, settled.position)
                continue
            if settled.repeated:
                return 0
            telemetry.REAPED.labels("checkpoint" if delivered else "nothing").inc()
            _log.warning(
                "A hold of a dead process was settled",
                action="hold_reaped",
                request_id=hold.request_id,
                charge_nanos=settled.charge_nanos,
            )
            return 1
        return 0
