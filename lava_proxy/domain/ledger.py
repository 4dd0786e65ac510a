"""A wallet as its ledger tells it: replaying the entries gives balances, lots and debt. The model the audit compares Redis with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

# An outbox entry's letter and what the ledger calls it.
KINDS = {"s": "settle", "c": "credit", "n": "renew", "a": "adjust", "x": "expire"}

_CLASSES = {"p:400": "c", "p:450": "b"}  # of plan lots, as `flags` of a renewal name them; see stores/balance_store.lot_key
_PINS = {"p": "q", "f": "g"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One immutable line of a wallet's ledger. `amount_nanos` is signed; pots carry magnitudes.

    A renewal's plan_nanos is what it grants, and its flags the classes that it ends. `pinned_nanos`: what a renewal or expiry
    leaves to the calls that are open; negative where they have left it. `opened_wseq`: of a settle that may have used such a pin.
    """

    wseq: int
    kind: str  # one of KINDS' values
    request_id: str
    amount_nanos: int
    balance_nanos: int
    plan_nanos: int
    funds_nanos: int
    debt_nanos: int
    flags: str = ""
    lot_key: str | None = None
    pinned_nanos: int = 0
    opened_wseq: int | None = None


@dataclass(slots=True)
class WalletModel:
    """Mutable replay of one wallet. Burn order is the order of lot keys; see stores/balance_store.lot_key. Pins: money.lua."""

    wseq: int = 0
    plan_nanos: int = 0  # available and held together
    funds_nanos: int = 0
    debt_nanos: int = 0
    settled_nanos: int = 0
    credited_nanos: int = 0
    lots: dict[str, int] = field(default_factory=dict)
    granted: dict[str, int] = field(default_factory=dict)  # lot -> what it began with
    faults: list[str] = field(default_factory=list)  # a sentence each; "I20: ..." where it is not the history's own sums (I4)

    @property
    def balance_nanos(self) -> int:
        return self.plan_nanos + self.funds_nanos

    def apply(self, entry: Entry) -> None:
        """Apply the next entry; what does not fit is noted in `faults`, never raised."""
        if entry.wseq != self.wseq + 1:
            self.faults.append(f"wseq {entry.wseq} follows {self.wseq}")
        self.wseq = entry.wseq
        if entry.kind == "credit" or (entry.kind == "adjust" and entry.amount_nanos > 0):
            self._credit(entry)
        elif entry.kind == "adjust":
            self._take_back(entry)
        elif entry.kind == "renew":
            self._renew(entry)
        elif entry.kind == "expire":
            self._expire(entry)
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
            self._add(entry.lot_key, amount)
            return
        self.funds_nanos += amount
        paid = min(self.debt_nanos, amount)
        self.debt_nanos -= paid
        if amount > paid:
            self._add(entry.lot_key, amount - paid)

    def _add(self, lot_key: str, amount: int) -> None:
        self.lots[lot_key] = amount
        self.granted[lot_key] = amount

    def _take_back(self, entry: Entry) -> None:
        """A debit that is no call: the named lot first, then funds; what they do not cover is debt."""
        if entry.plan_nanos + entry.funds_nanos != -entry.amount_nanos:
            self.faults.append(f"wseq {entry.wseq}: pots do not sum to the amount")
        self.credited_nanos += entry.amount_nanos
        self.plan_nanos -= entry.plan_nanos
        self.funds_nanos -= entry.funds_nanos
        if entry.plan_nanos and self._burn(entry.lot_key or "-", entry.plan_nanos):
            self.faults.append(f"I20: wseq {entry.wseq} takes more from {entry.lot_key} than it has")
        short = entry.funds_nanos
        if entry.lot_key is not None and entry.lot_key.startswith("f"):
            short = self._burn(entry.lot_key, short)
        self.debt_nanos += self._burn("f", short)

    def _renew(self, entry: Entry) -> None:
        ends = {key for key in self.lots if _CLASSES.get(key[:5], "-") in entry.flags}
        self._end(entry, ends, entry.plan_nanos - entry.amount_nanos, "p")
        self.credited_nanos += entry.plan_nanos
        self.plan_nanos += entry.plan_nanos
        if entry.plan_nanos:
            assert entry.lot_key is not None
            self._add(entry.lot_key, entry.plan_nanos)

    def _expire(self, entry: Entry) -> None:
        key = entry.lot_key or ""
        pot = "p" if key[:1] in "pq" else "f"
        if key[:1] not in _PINS.values():
            self._end(entry, {key} & set(self.lots), -entry.amount_nanos, pot)
            return
        if self.lots.get(key, 0) < -entry.amount_nanos or entry.pinned_nanos != entry.amount_nanos:
            self.faults.append(f"I20: wseq {entry.wseq} ends more of the pin {key} than it has")
        self._move(pot, entry.amount_nanos)
        self._burn(key, -entry.amount_nanos)

    def _end(self, entry: Entry, keys: set[str], ended: int, pot: str) -> None:
        """Take lots away: `ended` goes, the entry's pinned amount stays as a pin."""
        remaining = sum(self.lots.pop(key) for key in keys)
        if remaining != ended + entry.pinned_nanos or ended < 0 or entry.pinned_nanos < 0:
            self.faults.append(f"I20: wseq {entry.wseq} ends {ended} and pins {entry.pinned_nanos} of lots with {remaining}")
        self._move(pot, -ended)
        if entry.pinned_nanos:
            self._add(f"{_PINS[pot]}:{entry.wseq:012d}", entry.pinned_nanos)

    def _move(self, pot: str, amount: int) -> None:
        self.credited_nanos += amount
        if pot == "p":
            self.plan_nanos += amount
        else:
            self.funds_nanos += amount

    def _settle(self, entry: Entry) -> None:
        if entry.plan_nanos + entry.funds_nanos != -entry.amount_nanos:
            self.faults.append(f"wseq {entry.wseq}: pots do not sum to the amount")
        self.settled_nanos -= entry.amount_nanos
        self.plan_nanos -= entry.plan_nanos
        self.funds_nanos -= entry.funds_nanos
        for pot, take in (("p", entry.plan_nanos), ("f", entry.funds_nanos)):
            if entry.opened_wseq is not None:
                take = self._burn(_PINS[pot], take, opened_wseq=entry.opened_wseq)
            self.debt_nanos += self._burn(pot, take)

    def _burn(self, prefix: str, take: int, *, opened_wseq: int = -1) -> int:
        """Take from lots whose key begins so, in burn order; what they could not cover. Pins: those made after `opened_wseq`."""
        for key in sorted(self.lots):
            if take == 0:
                break
            if key.startswith(prefix) and (opened_wseq < 0 or int(key[2:]) > opened_wseq):
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
