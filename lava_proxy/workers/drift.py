"""How far Redis and the ledger are apart, a partition a round: a figure to alert on; `lava-proxy audit` is the whole check."""

from __future__ import annotations

from lava_proxy import telemetry
from lava_proxy.stores.balance_store import PARTITIONS
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.outbox import Outbox, OutboxEntry


class Drift:
    """Goes round the partitions; the gauge is the sum over the last look at each."""

    def __init__(self, outbox: Outbox, ledger: LedgerStore) -> None:
        self._outbox = outbox
        self._ledger = ledger
        self._part = 0
        self._found = [0] * PARTITIONS

    async def run_once(self) -> int:
        """Look at the next partition; the wallets compared."""
        part, self._part = self._part, (self._part + 1) % PARTITIONS
        balances = await self._ledger.last_balances(part)
        states, _, _, stream = await self._outbox.partition_snapshot(part, list(balances))
        newest: dict[str, OutboxEntry] = {}  # one pass: a stream that waits for Postgres can be long
        for entry in stream:
            known = newest.get(entry.wallet_id)
            if known is None or entry.wseq > known.wseq:
                newest[entry.wallet_id] = entry
        compared = drift = 0
        for wallet_id, (wseq, balance_nanos) in balances.items():
            state = states[wallet_id]
            if state is None:
                continue  # being recovered
            waiting = newest.get(wallet_id)
            if waiting is not None and waiting.wseq > wseq:
                wseq, balance_nanos = waiting.wseq, waiting.balance_nanos
            if wseq == state.wseq:  # else it moved between the two looks
                compared += 1
                drift += abs(state.balance_nanos - balance_nanos)
        self._found[part] = drift
        telemetry.DRIFT.set(sum(self._found))
        return compared
