"""Recomputes the money invariants over Redis and Postgres, while serving. Ids: tests/invariants.md.

Redis is read a partition at a time, atomically; Postgres is read up to the outbox mark of that moment, and the unflushed outbox
entries of the same snapshot bridge the two, so that calls in flight are never mistaken for drift.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from lava_proxy.billing.rating import Rated, Rating
from lava_proxy.domain.ledger import KINDS, Entry, WalletModel
from lava_proxy.stores.balance_store import PARTITIONS
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.outbox import OpenHold, Outbox, OutboxEntry, WalletState


@dataclass(slots=True)
class AuditReport:
    """What was found. `violations`: {invariant, where, expected, found}."""

    violations: list[dict[str, Any]] = field(default_factory=list)
    wallets: int = 0
    holds_open: int = 0
    outbox: int = 0
    rows: int = 0
    drift_nanos: int = 0

    def add(self, invariant: str, where: str, expected: object, found: object) -> None:
        self.violations.append({"invariant": invariant, "where": where, "expected": str(expected), "found": str(found)})

    def as_dict(self) -> dict[str, Any]:
        return {
            "met": not self.violations,
            "violations": self.violations,
            "wallets": self.wallets,
            "holds_open": self.holds_open,
            "outbox": self.outbox,
            "rows": self.rows,
            "drift_nanos": self.drift_nanos,
        }


@dataclass(slots=True)
class RerateReport:
    """Every stored row rated again. `differences`: {request_id, field, stored, again}, the first DIFFERENCES_MAX of them."""

    price_version: str
    rows: int = 0
    other_price_version: int = 0  # not rated: priced by other prices than those of today
    differing: int = 0
    charge_nanos_stored: int = 0
    charge_nanos_again: int = 0
    cost_nanos_stored: int = 0
    cost_nanos_again: int = 0
    differences: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {"met": not self.differing, **asdict(self)}


DIFFERENCES_MAX = 100
_RERATE_ROWS = 1000  # read at a time


async def rerate(ledger: LedgerStore, rating: Rating, since: datetime | None = None) -> RerateReport:
    """Rate every row of the ledger (or those since a moment) from its own facts and compare (I28). Reads only."""
    report = RerateReport(rating.price_version)
    last = ""
    while rows := await ledger.rows_after(last, since=since, limit=_RERATE_ROWS):
        last = rows[-1]["request_id"]
        for row in rows:
            if row["price_version"] not in (None, rating.price_version):
                report.other_price_version += 1
                continue
            await _rerate_row(row, rating, report)
    return report


async def _rerate_row(row: dict[str, Any], rating: Rating, report: RerateReport) -> None:
    found: Rated | None = None
    with suppress(ValueError, AssertionError, ArithmeticError):  # a row that cannot be rated is a difference, not the end
        found = await rating.again(row)
    report.rows += 1
    report.charge_nanos_stored += row["charge_nanos"]
    report.cost_nanos_stored += row["cost_nanos"]
    if found is not None:
        report.charge_nanos_again += found.charge_nanos
        report.cost_nanos_again += found.cost_nanos
    pairs = {name: (row[name], getattr(found, name, None)) for name in ("charge_nanos", "cost_nanos", "tier_units")}
    wrong = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    report.differing += bool(wrong)
    for name, (stored, again) in wrong.items():
        if len(report.differences) < DIFFERENCES_MAX:
            report.differences.append({"request_id": row["request_id"], "field": name, "stored": stored, "again": again})


class Audit:
    """Reads only."""

    def __init__(self, outbox: Outbox, ledger: LedgerStore) -> None:
        self._outbox = outbox
        self._ledger = ledger

    async def run(self) -> AuditReport:
        """Check every wallet, hold and ledger entry."""
        report = AuditReport()
        records = await self._outbox.hold_records()
        for part in range(PARTITIONS):
            await self._partition(part, records.get(part, []), report)
        for row in await self._ledger.unbalanced():
            report.add("I2", f"{row['wallet_id']} wseq {row['wseq']}", 0, row["sum"])
        for row in await self._ledger.settled_twice():
            report.add("I10", row["request_id"], "1 debit", f"{row['times']} debits")
        for row in await self._ledger.doubles_kept():
            report.add("I10", row["request_id"], "a second debit given back", row["facts"])
        for row in await self._ledger.credited_twice():
            invariant = "I22" if row["kind"] == "renew" else "I25"
            report.add(invariant, row["request_id"], f"1 {row['kind']}", f"{row['times']} of them")
        for row in await self._ledger.states_astray():
            report.add("I3", f"{row['wallet_id']} in wallet_state", row["expected"], row["found"])
        for row in await self._ledger.rows_without_entry():
            report.add("I10", str(row["request_id"]), row["charge_nanos"], row["debited"])
        for row in await self._ledger.usage_differences():
            report.add("32", f"{row['rollup']} {row['merchant_id']} {row['day']:%Y-%m-%d}", row["expected"], row["found"])
        report.rows = await self._ledger.count_requests()
        return report

    async def _partition(self, part: int, records: list[OpenHold], report: AuditReport) -> None:
        wallet_ids = await self._ledger.wallet_ids(part)
        # Holds and outbox of a partition belong to all of its wallets, so one snapshot must cover them all.
        wallets, holds, dangling, stream = await self._outbox.partition_snapshot(part, wallet_ids)
        report.holds_open += len(holds)
        report.outbox += len(stream)
        pending: dict[str, list[OutboxEntry]] = defaultdict(list)
        for entry in stream:
            pending[entry.wallet_id].append(entry)
        held: Counter[str] = Counter()
        for hold in holds:
            held[hold.wallet_id] += hold.plan_nanos + hold.funds_nanos
        for identifier in dangling:
            report.add("I8", identifier, "an open hold for each entry of the expiry index", "none")
        indexed = {hold.request_id for hold in holds}
        await self._unindexed(part, [hold for hold in records if hold.request_id not in indexed], report)
        await self._settled(wallets, holds, pending, report)
        for wallet_id in wallet_ids:
            report.wallets += 1
            await self._wallet(wallet_id, wallets[wallet_id], held[wallet_id], pending[wallet_id], report)

    async def _unindexed(self, part: int, suspects: list[OpenHold], report: AuditReport) -> None:
        """Records seen open that the index does not know: they may have ended meanwhile, so each is looked at again, atomically."""
        for hold in suspects:
            if await self._outbox.is_open_unindexed(part, hold.request_id):
                report.add("I8", hold.request_id, "an entry in the expiry index", "none")

    async def _settled(
        self,
        wallets: dict[str, WalletState | None],
        holds: list[OpenHold],
        pending: dict[str, list[OutboxEntry]],
        report: AuditReport,
    ) -> None:
        """A hold that is open although its settle is in the ledger. Settles later than the snapshot do not count."""
        if not holds:
            return
        wallet_of = {hold.request_id: hold.wallet_id for hold in holds}
        ended = {entry.request_id for entries in pending.values() for entry in entries if entry.kind == "s"}
        for request_id, wseq in await self._ledger.settled_holds(list(set(wallet_of.values())), list(wallet_of)):
            state = wallets.get(wallet_of[request_id])
            if state is not None and wseq <= state.wseq:
                ended.add(request_id)
        for request_id in sorted(ended & set(wallet_of)):
            report.add("I7", request_id, "a hold that ends once", "open and settled")

    async def _wallet(
        self, wallet_id: str, state: WalletState | None, held: int, pending: list[OutboxEntry], report: AuditReport
    ) -> None:
        history = await self._ledger.history(wallet_id)
        if state is None:
            if history or pending:
                report.add("I3", wallet_id, "a wallet in Redis", "none")
            return
        found = state.plan_held + state.funds_held
        if found != held:
            report.add("I5", wallet_id, held, found)
        total = state.balance_nanos
        if total + state.settled != state.credited:
            report.add("I1", wallet_id, state.credited, total + state.settled)
        lots = sum(state.lots.values()) - state.debt
        if total != lots:
            report.add("I17", wallet_id, lots, total)
        model = WalletModel()
        for entry in _history_until(history, pending, state.wseq):
            model.apply(entry)
            takes = entry.kind in ("settle", "adjust") and entry.amount_nanos < 0
            if takes and model.funds_nanos < 0 and not set(entry.flags) & {"b", "d"}:
                report.add("I15", f"{wallet_id} wseq {entry.wseq}", "a flag on a debit that leaves less than nothing", entry.flags)
        for fault in model.faults:
            invariant, _, sentence = fault.partition(": ") if fault.startswith("I") else ("I4", "", fault)
            report.add(invariant, wallet_id, "a gapless history that adds up", sentence)
        for lot, left in state.lots.items():
            if not 0 < left <= model.granted.get(lot, left):
                report.add("I19", f"{wallet_id} {lot}", f"above 0, at most {model.granted.get(lot)}", left)
        for pin, amount in state.lots.items():
            if pin[0] in "qg" and amount > (state.plan_held if pin[0] == "q" else state.funds_held):
                report.add("I20", f"{wallet_id} {pin}", "at most what open calls hold", amount)
        self._compare(wallet_id, state, model, report)

    def _compare(self, wallet_id: str, state: WalletState, model: WalletModel, report: AuditReport) -> None:
        report.drift_nanos += abs(state.balance_nanos - model.balance_nanos)
        pairs = {
            "wseq": (model.wseq, state.wseq),
            "balance": (model.balance_nanos, state.balance_nanos),
            "plan": (model.plan_nanos, state.plan_available + state.plan_held),
            "settled": (model.settled_nanos, state.settled),
            "credited": (model.credited_nanos, state.credited),
            "lots": (model.lots, state.lots),
            "debt": (model.debt_nanos, state.debt),
        }
        for name, (expected, found) in pairs.items():
            if expected != found:
                report.add("I3", f"{wallet_id} {name}", expected, found)


def _history_until(history: list[Entry], pending: list[OutboxEntry], wseq: int) -> list[Entry]:
    """What had been settled at the moment of the snapshot: flushed (what was flushed since is left out), then waiting."""
    flushed = [entry for entry in history if entry.wseq <= wseq]
    last = flushed[-1].wseq if flushed else 0
    return flushed + [_as_entry(entry) for entry in sorted(pending, key=lambda e: e.wseq) if entry.wseq > last]


def _as_entry(entry: OutboxEntry) -> Entry:
    return Entry(
        wseq=entry.wseq, kind=KINDS[entry.kind], request_id=entry.request_id, amount_nanos=entry.amount_nanos,
        balance_nanos=entry.balance_nanos, plan_nanos=entry.plan_nanos, funds_nanos=entry.funds_nanos,
        debt_nanos=entry.debt_nanos, flags=entry.flags, lot_key=entry.row.get("lot_key"),
        pinned_nanos=entry.pinned_nanos, opened_wseq=entry.opened_wseq,
    )  # fmt: skip
