"""A wallet as its ledger tells it: replaying the entries gives balances, lots and debt. The model the audit compares Redis with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One immutable line of a wallet's ledger. `amount_nanos` is signed; pots carry magnitudes."""

    wseq: int
    kind: str  # settle, credit
    request_id: str
    amount_nanos: int
    balance_nanos: int
    plan_nanos: int
    funds_nanos: int
    debt_nanos: int
    flags: str = ""
    lot_key: str | None = None


@dataclass(slots=True)
class WalletModel:
    """Mutable replay of one wallet. Burn order is the order of lot keys; see stores/balance_store.lot_key."""

    wseq: int = 0
    plan_nanos: int = 0  # available and held together
    funds_nanos: int = 0
    debt_nanos: int = 0
    settled_nanos: int = 0
    credited_nanos: int = 0
    lots: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def balance_nanos(self) -> int:
        return self.plan_nanos + self.funds_nanos

    def apply(self, entry: Entry) -> None:
        """Apply the next entry; what does not fit is noted in `faults`, never raised."""
        if entry.wseq != self.wseq + 1:
            self.faults.append(f"wseq {entry.wseq} follows {self.wseq}")
        self.wseq = entry.wseq
        if entry.kind == "credit":
            self._credit(entry)
        else:
            self._settle(entry)
        if entry.balance_nanos != self.balance_nanos:
            self.faults.append(f"wseq {entry.wseq}: balance {entry.balance_nanos}, replay gives {self.balance_nanos}")
        if entry.debt_nanos != self.debt_nanos:
            self.faults.append(f"wseq {entry.wseq}: debt {entry.debt_nanos}, replay gives {self.debt_nanos}")

    def _credit(self, entry: Entry) -> None:
        assert entry.lot_key is not None
        amount = entry.amount_nanos
        self.credited_nanos += amount
        if entry.lot_key.startswith("p"):
            self.plan_nanos += amount
            self.lots[entry.lot_key] = amount
            return
        self.funds_nanos += amount
        paid = min(self.debt_nanos, amount)
        self.debt_nanos -= paid
        if amount > paid:
            self.lots[entry.lot_key] = amount - paid

    def _settle(self, entry: Entry) -> None:
        if entry.plan_nanos + entry.funds_nanos != -entry.amount_nanos:
            self.faults.append(f"wseq {entry.wseq}: pots do not sum to the amount")
        self.settled_nanos -= entry.amount_nanos
        self.plan_nanos -= entry.plan_nanos
        self.funds_nanos -= entry.funds_nanos
        self.debt_nanos += self._burn("p", entry.plan_nanos) + self._burn("f", entry.funds_nanos)

    def _burn(self, pot: str, take: int) -> int:
        """Take from the pot's lots in burn order; what they could not cover."""
        for key in sorted(self.lots):
            if take == 0:
                break
            if key.startswith(pot):
                used = min(self.lots[key], take)
                take -= used
                self.lots[key] -= used
                if self.lots[key] == 0:
                    del self.lots[key]
        return take


def replay(entries: Iterable[Entry]) -> WalletModel:
    """The wallet after its entries, which must come in wseq order."""
    wallet = WalletModel()
    for entry in entries:
        wallet.apply(entry)
    return wallet
