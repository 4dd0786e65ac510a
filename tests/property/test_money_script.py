"""The money script in real Redis against a pure model: any sequence of operations, compared after every step.

What is checked after each step: the wallet equals the model field by field; I1, I5, I8, I14, I15, I16, I17, I19; an operation that
is refused or repeated changes nothing (I12, compared by DUMP of every key it touches); at the end the outbox alone gives the same
wallet (I4, I32). Lots that end while calls are open are modelled by the set of those calls, the script keeps sums (I20, I21, I22).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeVar

import orjson
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from lava_proxy.domain.errors import CallerError, Conflict, InsufficientFunds, LavaError, NotFound, StoreError
from lava_proxy.domain.ledger import KINDS, Entry, replay
from lava_proxy.stores.balance_store import (
    POSITION_MAX,
    AlreadyCalled,
    BalanceStore,
    Claim,
    Held,
    Moved,
    Once,
    PlanClass,
    Report,
    ReportConflict,
    Reported,
    Settled,
    partition_of,
    report_record,
    tag,
)
from lava_proxy.stores.hot_redis import HotRedis
from lava_proxy.stores.outbox import _entry, _wallet
from tests.billing_world import KEEP_MS
from tests.engines import RunningEngines

T = TypeVar("T")
WALLETS = ("wal_a", "wal_b")
TIER = "t:prd_1:2026-11"
FAR_MS = 3_600_000
PLAN_CLASSES: tuple[PlanClass, ...] = ("cycle", "bundle")


@dataclass(slots=True)
class Hold:
    wallet: str
    plan: int
    funds: int
    od: int
    linked: bool
    fingerprint: str
    tier: str
    is_due: bool
    opened: int = 0  # the wallet's sequence number at the reserve


def expiry(lot: str) -> int:
    return int(lot.split(":")[2])


@dataclass(slots=True)
class Model:
    """One wallet, as the design says it should behave."""

    pa: int = 0
    fa: int = 0
    ph: int = 0
    fh: int = 0
    debt: int = 0
    settled: int = 0
    credited: int = 0
    seq: int = 0
    counter: int = 0
    lots: dict[str, int] = field(default_factory=dict)
    granted: dict[str, int] = field(default_factory=dict)
    holds: Callable[[], list[Hold]] = list  # the open ones

    def covered(self, pot: str) -> dict[str, int]:
        """Lot -> what open holds use of it, in burn order."""
        pin, left = {"p": "q", "f": "g"}[pot], self.ph if pot == "p" else self.fh
        left -= sum(amount for lot, amount in self.lots.items() if lot[0] == pin)
        found = {}
        for lot in sorted(lot for lot in self.lots if lot[0] == pot):
            found[lot] = max(0, min(left, self.lots[lot]))
            left -= found[lot]
        return found

    def end(self, pot: str, ending: set[str]) -> None:
        """Ends lots under the next sequence number, which the caller counts."""
        cover, pinned = self.covered(pot), 0
        for lot in ending:
            pinned += cover[lot]
            self.move(pot, cover[lot] - self.lots.pop(lot))
        if pinned:
            pin = f"{'q' if pot == 'p' else 'g'}:{self.seq + 1:012d}"
            self.lots[pin] = self.granted[pin] = pinned

    def move(self, pot: str, amount: int) -> None:
        self.credited += amount
        if pot == "p":
            self.pa += amount
        else:
            self.fa += amount

    def sweep(self, now_s: int) -> None:
        for lot in sorted(lot for lot in self.lots if lot[0] in "pf" and expiry(lot) <= now_s):
            self.end(lot[0], {lot})
            self.seq += 1

    def release(self, holds: list[Hold]) -> None:
        """Pins up to a sequence number are covered by the holds that were open then."""
        for pot, letter in (("p", "q"), ("f", "g")):
            total = 0
            for pin in sorted(lot for lot in self.lots if lot[0] == letter):
                mine = [hold for hold in holds if hold.opened < int(pin[2:])]
                room = sum(hold.plan if pot == "p" else hold.funds for hold in mine)
                excess = max(0, total + self.lots[pin] - room)
                total += self.lots[pin] - excess
                if excess:
                    self.lots[pin] -= excess
                    self.move(pot, -excess)
                    self.seq += 1
                if not self.lots[pin]:
                    del self.lots[pin]

    def renew(self, ends: str, lot: str, grant: int) -> None:
        classes = {"p:400": "c", "p:450": "b"}
        self.end("p", {lot for lot in self.lots if classes.get(lot[:5], "-") in ends})
        self.seq += 1
        self.move("p", grant)
        if grant:
            self.lots[lot] = self.granted[lot] = grant

    def adjust(self, delta: int, lot: str | None) -> str:
        """The flags of its entry."""
        if delta > 0:
            assert lot is not None
            self.credit(lot, delta)
            return ""
        plan = 0
        if lot is not None and lot in self.lots and lot[0] == "p":
            plan = min(self.lots[lot] - self.covered("p")[lot], -delta)
            self._burn(lot, plan)
        self.move("p", -plan)
        self.move("f", delta + plan)
        take = -delta - plan
        if lot is not None and lot[0] == "f":
            take = self._burn(lot, take)
        self.debt += self._burn("f", take)
        self.seq += 1
        return "b" if self.fa < 0 else ""

    def reserve(self, want: int, od: int, linked: bool) -> tuple[int, int] | None:
        plan = min(self.pa, want) if linked else 0
        funds = want - plan
        if funds > 0 and self.fa + od < funds:
            return None
        self.pa, self.ph = self.pa - plan, self.ph + plan
        self.fa, self.fh = self.fa - funds, self.fh + funds
        return plan, funds

    def extend(self, hold: Hold, target: int) -> bool:
        parts = self.reserve(max(target - hold.plan - hold.funds, 0), hold.od, hold.linked)
        if parts is None:
            return False
        hold.plan, hold.funds = hold.plan + parts[0], hold.funds + parts[1]
        return True

    def settle(self, hold: Hold | None, charge: int, od: int, linked: bool, units: int) -> str:
        """The flags of the debit."""
        hp, hf = (hold.plan, hold.funds) if hold else (0, 0)
        if hold:
            od, linked = hold.od, hold.linked
        self.pa, self.fa, self.ph, self.fh = self.pa + hp, self.fa + hf, self.ph - hp, self.fh - hf
        if charge <= hp + hf:
            plan = min(charge, hp)
        else:
            plan = min(charge, self.pa) if linked else 0
        self.pa -= plan
        self.fa -= charge - plan
        for pot, take in (("p", plan), ("f", charge - plan)):
            if hold:
                take = self._burn("q" if pot == "p" else "g", take, hold.opened)
            self.debt += self._burn(pot, take)
        self.settled += charge
        self.seq += 1
        self.counter += units
        flags = "" if hold and charge <= hp + hf else "o" if hold else ""
        if charge and self.fa < 0:
            flags += "b" if self.fa < -od else "d"
        if hold:
            self.release([other for other in self.holds() if other is not hold])
        return flags

    def credit(self, lot: str, amount: int) -> None:
        self.credited += amount
        self.seq += 1
        left = amount
        if lot[0] == "p":
            self.pa += amount
        else:
            self.fa += amount
            paid = min(self.debt, amount)
            self.debt, left = self.debt - paid, amount - paid
        if left:
            self.lots[lot] = self.granted[lot] = left

    def _burn(self, prefix: str, take: int, opened: int = -1) -> int:
        for lot in sorted(lot for lot in self.lots if lot.startswith(prefix) and (opened < 0 or int(lot[2:]) > opened)):
            used = min(take, self.lots[lot])
            take -= used
            self.lots[lot] -= used
            if not self.lots[lot]:
                del self.lots[lot]
        return take


@dataclass(slots=True)
class Driver:
    """The script behind its own event loop, so that hypothesis can call it step by step."""

    loop: asyncio.AbstractEventLoop
    plain: redis.Redis
    hot: HotRedis
    store: BalanceStore

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)


@pytest.fixture(scope="module")
def driver(engines: RunningEngines) -> Iterator[Driver]:
    loop = asyncio.new_event_loop()

    async def start() -> HotRedis:
        hot = HotRedis(engines.redis_url, require_verified=False)
        await hot.start()
        assert await hot.wait_ready(5)
        return hot

    hot = loop.run_until_complete(start())
    plain = redis.Redis.from_url(engines.redis_url)
    yield Driver(loop, plain, hot, BalanceStore(hot))
    loop.run_until_complete(hot.stop())
    loop.run_until_complete(asyncio.sleep(0))
    plain.flushall()
    plain.close()
    loop.close()


amounts = st.one_of(st.integers(0, 30), st.sampled_from([0, 1, 7, 100, 8_999_999_999_999_999]))
small = st.integers(0, 30)
wallets = st.sampled_from(WALLETS)
lasting = st.one_of(st.none(), st.integers(0, 25))


class MoneyMachine(RuleBasedStateMachine):
    driver: ClassVar[Driver]

    def __init__(self) -> None:
        super().__init__()
        plain = self.driver.plain
        plain.flushall()
        for part in {partition_of(wallet) for wallet in (*WALLETS, "wal_unknown")}:
            plain.hset(f"{tag(part)}:m", mapping={"state": "ready", "ep": 1, "pseq": 0})
        self.models = {wallet: Model() for wallet in WALLETS}
        self.holds: dict[str, Hold] = {}
        for wallet, model in self.models.items():
            model.holds = lambda wallet=wallet: [hold for hold in self.holds.values() if hold.wallet == wallet]  # type: ignore[misc]
        self.now_s = 1_000
        self.ended: dict[str, tuple[str, int, str]] = {}  # id -> wallet, charge, fingerprint
        self.told: dict[str, tuple[Reported, str]] = {}  # a report's record -> its first answer, fingerprint
        self.orders: dict[str, Callable[[], tuple[str, Coroutine[Any, Any, bool]]]] = {}
        self.lot_keys: list[str] = []
        self.flags: dict[tuple[str, int], str] = {}
        self.jobs: dict[tuple[str, str], str] = {}  # the hold that was charged for a job
        self.numbers = 0
        for wallet in WALLETS:
            self.driver.run(self.driver.store.open_wallet(wallet))

    # -- plumbing

    def new_id(self, kind: str) -> str:
        self.numbers += 1
        return f"{kind}_{self.numbers:06d}"

    def dumps(self, wallet: str, record: str) -> list[Any]:
        """Every key an operation may touch, and when its record would be forgotten."""
        t = tag(partition_of(wallet))
        pipe = self.driver.plain.pipeline(transaction=False)
        for key in (f"{t}:m", f"{t}:x", f"{t}:o", f"{t}:w:{wallet}", f"{t}:h:{record}"):
            pipe.dump(key)
        pipe.execute_command("PEXPIRETIME", f"{t}:h:{record}")
        return pipe.execute()

    def unchanged(self, wallet: str, record: str, call: Coroutine[Any, Any, T], refusal: type[LavaError] | None) -> T | None:
        """Run a call that must change nothing: refused with `refusal`, or answered as a repeat."""
        before = self.dumps(wallet, record)
        found: T | None = None
        if refusal is None:
            found = self.driver.run(call)
        else:
            with pytest.raises(refusal):
                self.driver.run(call)
        assert self.dumps(wallet, record) == before, "I12: a refused or repeated operation changed something"
        return found

    def at(self) -> datetime:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now_s)

    def looks(self, wallet: str, model: Model) -> bool:
        """What an operation that knows the time does first; True when it may have changed something."""
        xs = self.driver.plain.hget(f"{tag(partition_of(wallet))}:w:{wallet}", "xs")
        model.sweep(self.now_s)
        return xs is not None and int(xs) <= self.now_s

    def new_lot(self, pot: str, priority: int, lasts_s: int | None, name: str) -> str:
        expires_s = 99_999_999_999 if lasts_s is None else self.now_s + lasts_s
        lot = f"{pot}:{priority:03d}:{expires_s:011d}:{self.numbers:014d}:{name}"
        self.lot_keys.append(lot)
        return lot

    def reserve_call(
        self,
        wallet: str,
        request: str,
        want: int,
        od: int,
        linked: bool,
        tier: str,
        fp: str,
        lease: int,
        at: datetime | None = None,
    ) -> Any:
        return self.driver.store.reserve(
            wallet,
            request,
            want,
            row=b"{}",
            lease_ms=lease,
            fingerprint=fp,
            overdraft_nanos=od,
            plan_linked=linked,
            tier_field=tier,
            at=at,
        )

    def settle_call(self, wallet: str, request: str, charge: int, **options: Any) -> Any:
        return self.driver.store.settle(wallet, request, charge, row=b"{}", keep_ms=KEEP_MS, **options)

    # -- rules

    @rule(seconds=st.integers(1, 12))
    def time_passes(self, seconds: int) -> None:
        self.now_s += seconds

    @rule(wallet=wallets, pot=st.sampled_from("pf"), amount=st.integers(1, 60), priority=st.sampled_from([1, 400, 450, 500]),
          lasts_s=lasting)  # fmt: skip
    def credit(self, wallet: str, pot: str, amount: int, priority: int, lasts_s: int | None) -> None:
        credit_id, store = self.new_id("crd"), self.driver.store
        lot = self.new_lot(pot, priority, lasts_s, credit_id)
        row = orjson.dumps({"lot_key": lot})
        assert self.driver.run(store.credit(wallet, credit_id, amount, lot_key=lot, row=row, keep_ms=KEEP_MS))
        self.models[wallet].credit(lot, amount)
        self.orders[credit_id] = lambda: (
            wallet, store.credit(wallet, credit_id, amount, lot_key=lot, row=b"{}", keep_ms=KEEP_MS * 2),
        )  # fmt: skip

    @rule(wallet=wallets, ends=st.sampled_from(["", "c", "b", "cb"]), grant=small, lasts_s=lasting)
    def renew(self, wallet: str, ends: str, grant: int, lasts_s: int | None) -> None:
        """I21, I22: with calls open, one event; the tier counters of other cycles go with it."""
        event_id, store = self.new_id("ren"), self.driver.store
        lot = self.new_lot("p", 400, lasts_s, event_id) if grant else None
        names: frozenset[PlanClass] = frozenset(name for name in PLAN_CLASSES if name[0] in ends)
        row = orjson.dumps({"lot_key": lot})
        options: dict[str, Any] = {"ends": names, "lot_key": lot, "grant_nanos": grant, "drop_cycles": ("sub.1",)}
        assert self.driver.run(store.renew(wallet, event_id, row=row, keep_ms=KEEP_MS, **options))
        self.models[wallet].renew(ends, lot or "", grant)
        self.orders[event_id] = lambda: (wallet, store.renew(wallet, event_id, row=b"{}", keep_ms=KEEP_MS * 2, **options))

    @rule(
        wallet=wallets, delta=st.integers(-60, 60).filter(bool), pot=st.sampled_from("pf"), pick=st.randoms(use_true_random=False)
    )
    def adjust(self, wallet: str, delta: int, pot: str, pick: Any) -> None:
        """I15, I20: from the named lot first, whether it is there or not; beyond all funds as debt."""
        adjust_id, store, model = self.new_id("adj"), self.driver.store, self.models[wallet]
        lot = self.new_lot(pot, 500, None, adjust_id) if delta > 0 else pick.choice([None, *self.lot_keys])
        row = orjson.dumps({"lot_key": lot})
        assert self.driver.run(store.adjust(wallet, adjust_id, delta, lot_key=lot, row=row, keep_ms=KEEP_MS))
        flags = model.adjust(delta, lot)
        self.flags[wallet, model.seq] = flags
        self.orders[adjust_id] = lambda: (
            wallet, store.adjust(wallet, adjust_id, delta, lot_key=lot, row=b"{}", keep_ms=KEEP_MS * 2),
        )  # fmt: skip

    @rule(wallet=wallets)
    def expire(self, wallet: str) -> None:
        """I20: each expired lot once, by itself; a second sweep finds nothing."""
        model, store = self.models[wallet], self.driver.store
        due = [lot for lot in model.lots if lot[0] in "pf" and expiry(lot) <= self.now_s]
        model.sweep(self.now_s)
        assert self.driver.run(store.expire(wallet, self.at(), row=b"{}")) == len(due)
        assert self.unchanged(wallet, "-", store.expire(wallet, self.at(), row=b"{}"), None) == 0

    @precondition(lambda self: self.orders)
    @rule(pick=st.randoms(use_true_random=False))
    def order_again(self, pick: Any) -> None:
        """I22, I25: a credit, renewal or adjustment that is repeated changes nothing, not even how long it is remembered."""
        order_id = pick.choice(sorted(self.orders))
        wallet, call = self.orders[order_id]()
        assert self.unchanged(wallet, order_id, call, None) is False

    @rule(wallet=wallets, want=amounts, od=st.sampled_from([0, 0, 5]), linked=st.booleans(), tier=st.sampled_from(["", TIER]),
          due=st.booleans(), fp=st.sampled_from(["", "x"]), looks=st.booleans())  # fmt: skip
    def reserve(self, wallet: str, want: int, od: int, linked: bool, tier: str, due: bool, fp: str, looks: bool) -> None:
        request, model = self.new_id("req"), self.models[wallet]
        counter = model.counter
        swept = looks and self.looks(wallet, model)
        parts = model.reserve(want, od, linked)
        call = self.reserve_call(wallet, request, want, od, linked, tier, fp, 0 if due else FAR_MS, self.at() if looks else None)
        if parts is None and swept:
            with pytest.raises(InsufficientFunds):
                self.driver.run(call)
            return
        if parts is None:
            self.unchanged(wallet, request, call, InsufficientFunds)
            return
        assert self.driver.run(call) == Held(*parts, counter if tier else 0)
        assert model.fa >= -od or want == 0 or parts[1] == 0, "I14"
        self.holds[request] = Hold(wallet, *parts, od, linked, fp, tier, due, model.seq)

    @rule(wallet=wallets, share=st.integers(1, 20), count=st.integers(2, 12))
    def a_burst_admits_the_floor(self, wallet: str, share: int, count: int) -> None:
        """I16: together, in one batch."""
        model = self.models[wallet]
        expected = min(count, max(0, model.fa) // share)
        ids = [self.new_id("req") for _ in range(count)]

        async def burst() -> list[Any]:
            calls = [self.reserve_call(wallet, request, share, 0, False, "", "", FAR_MS) for request in ids]
            return await asyncio.gather(*calls, return_exceptions=True)

        found = self.driver.run(burst())
        admitted = [request for request, reply in zip(ids, found, strict=True) if isinstance(reply, Held)]
        assert len(admitted) == expected
        for request in admitted:
            assert model.reserve(share, 0, False) == (0, share)
            self.holds[request] = Hold(wallet, 0, share, 0, False, "", "", False, model.seq)

    @precondition(lambda self: self.holds)
    @rule(pick=st.randoms(use_true_random=False), same=st.booleans())
    def reserve_again(self, pick: Any, same: bool) -> None:
        request = pick.choice(sorted(self.holds))
        hold = self.holds[request]
        fp = hold.fingerprint if same else hold.fingerprint + "y"
        call = self.reserve_call(hold.wallet, request, 1, 0, False, "", fp, 0)
        found = self.unchanged(hold.wallet, request, call, None if same else Conflict)
        if same:
            assert found == Held(hold.plan, hold.funds, 0)

    @precondition(lambda self: self.holds)
    @rule(pick=st.randoms(use_true_random=False), share=st.sampled_from([0, 50, 100, 250]), extra=small, units=small,
          mode=st.sampled_from(["late", "held", "due"]), looks=st.booleans())  # fmt: skip
    def settle(self, pick: Any, share: int, extra: int, units: int, mode: str, looks: bool) -> None:
        """Below, at and above the hold."""
        request = pick.choice(sorted(self.holds))
        hold = self.holds[request]
        model = self.models[hold.wallet]
        charge = (hold.plan + hold.funds) * share // 100 + (extra if share == 250 else 0)
        if charge > 10**14:
            charge = 0
        units = units if hold.tier else 0
        if mode == "due" and not hold.is_due:
            self.unchanged(hold.wallet, request, self.settle_call(hold.wallet, request, charge, mode="due"), Conflict)
            return
        if hold.tier and extra % 3 == 0:
            off = model.counter + 1
            moved = self.settle_call(
                hold.wallet, request, charge, tier_field=hold.tier, position_lo=off, position_hi=off + 5, mode=mode
            )
            assert self.unchanged(hold.wallet, request, moved, None) == Moved(model.counter)
        position = model.counter if hold.tier else 0
        if looks:
            self.looks(hold.wallet, model)
        found = self.driver.run(
            self.settle_call(
                hold.wallet,
                request,
                charge,
                at=self.at() if looks else None,
                tier_field=hold.tier,
                units=units,
                position_lo=position,
                position_hi=position,
                mode=mode,
            )
        )
        wseq, before = model.seq + 1, model.pa + model.fa + model.ph + model.fh
        flags = model.settle(hold, charge, 0, False, units)
        assert found == Settled(charge, before - charge, position, flags, wseq)
        del self.holds[request]
        self.ended[request] = (hold.wallet, charge, "")
        self.flags[hold.wallet, wseq] = flags

    @precondition(lambda self: self.holds)
    @rule(pick=st.randoms(use_true_random=False), job=st.sampled_from("ab"), charge=small, misplaced=st.booleans())
    def settle_job(self, pick: Any, job: str, charge: int, misplaced: bool) -> None:
        """I10: a job is charged to the first hold that shows it; the others end with nothing, wherever they were priced for."""
        request = pick.choice(sorted(self.holds))
        hold = self.holds[request]
        model = self.models[hold.wallet]
        once = Once(digest=job, keep_ms=KEEP_MS, free_row=b'{"free":1}')
        is_free = (hold.wallet, job) in self.jobs
        position = model.counter if hold.tier else 0
        if hold.tier and misplaced:
            position += 1
            if not is_free:  # priced for another position: nothing is charged, and nothing claimed
                moved = self.settle_call(hold.wallet, request, charge, tier_field=hold.tier, position_lo=position, once=once)
                assert self.unchanged(hold.wallet, request, moved, None) == Moved(model.counter)
                return
        found = self.driver.run(
            self.settle_call(
                hold.wallet,
                request,
                charge,
                tier_field=hold.tier,
                units=charge if hold.tier else 0,
                position_lo=position,
                once=once,
            )
        )
        paid = 0 if is_free else charge
        counter, wseq = model.counter if hold.tier else 0, model.seq + 1
        balance = model.pa + model.fa + model.ph + model.fh - paid
        flags = model.settle(hold, paid, 0, False, paid if hold.tier else 0)
        assert found == Settled(paid, balance, counter, flags, wseq, seen=is_free)
        self.jobs.setdefault((hold.wallet, job), request)
        del self.holds[request]
        self.ended[request] = (hold.wallet, paid, "")
        self.flags[hold.wallet, wseq] = flags
        again = self.settle_call(hold.wallet, request, charge, once=once)
        assert self.unchanged(hold.wallet, request, again, None) == Settled(paid, repeated=True)

    @rule(wallet=wallets, charge=small, od=st.sampled_from([0, 5]), linked=st.booleans(), looks=st.booleans())
    def direct_debit(self, wallet: str, charge: int, od: int, linked: bool, looks: bool) -> None:
        """I6: without a hold only as late."""
        request, model = self.new_id("req"), self.models[wallet]
        self.unchanged(wallet, request, self.settle_call(wallet, request, charge, mode="held"), NotFound)
        self.unchanged(wallet, request, self.settle_call(wallet, request, charge, mode="due"), NotFound)
        if looks:
            self.looks(wallet, model)
        options: dict[str, Any] = {"overdraft_nanos": od, "plan_linked": linked, "at": self.at() if looks else None}
        found = self.driver.run(self.settle_call(wallet, request, charge, mode="late", fingerprint="f", **options))
        flags = "l" + model.settle(None, charge, od, linked, 0)
        assert found == Settled(charge, model.pa + model.fa + model.ph + model.fh, 0, flags, model.seq)
        self.ended[request] = (wallet, charge, "f")
        self.flags[wallet, model.seq] = flags

    @precondition(lambda self: self.ended)
    @rule(pick=st.randoms(use_true_random=False), mode=st.sampled_from(["late", "held", "due"]), charge=small)
    def settle_again(self, pick: Any, mode: str, charge: int) -> None:
        """I10, I7: the first charge stands, whoever comes second and whatever it wants."""
        request = pick.choice(sorted(self.ended))
        wallet, first, fp = self.ended[request]
        call = self.settle_call(wallet, request, charge, mode=mode, fingerprint=fp)
        assert self.unchanged(wallet, request, call, None) == Settled(first, repeated=True)
        self.unchanged(wallet, request, self.reserve_call(wallet, request, 1, 0, False, "", "", 0), Conflict)

    @rule(said=st.lists(st.tuples(wallets, st.sampled_from("abcdefgh"), small, small, st.booleans(), st.sampled_from([0, 5]),
                                  st.sampled_from(["", "fits", "moved"]), st.booleans()), min_size=1, max_size=8))  # fmt: skip
    def reports(self, said: list[tuple[str, str, int, int, bool, int, str, bool]]) -> None:
        """I6, I10, I13, I15, 52: reports sent at once are debited as if each came alone after those before it, each id once.

        Those of one wallet, counter and overdraft line go as one operation, so that is the order in which they are applied.
        """
        groups: dict[tuple[Any, ...], list[tuple[int, Report]]] = {}
        for index, (wallet, key, charge, units, linked, od, tier, is_odd) in enumerate(said):
            position = self.models[wallet].counter
            report = Report(
                wallet_id=wallet, request_id=self.new_id("req"), record=report_record("mer_1", key),
                fingerprint="odd" if is_odd else "f", charge_nanos=charge, units=units if tier else 0,
                tier_field=TIER if tier else "", position_lo=position + 1 if tier == "moved" else 0, position_hi=POSITION_MAX,
                row=b"{}", at=self.at(), overdraft_nanos=od, plan_linked=linked,
            )  # fmt: skip
            groups.setdefault((wallet, report.tier_field, od, linked), []).append((index, report))
        expected: dict[int, Any] = {}
        for (wallet, *_), group in groups.items():
            for index, report in group:
                expected[index] = self.expected_report(wallet, report)
        reports = {index: report for group in groups.values() for index, report in group}
        found = self.driver.run(self.driver.store.report([reports[index] for index in range(len(said))], KEEP_MS))
        for index, answer in enumerate(found):
            if isinstance(answer, Reported):
                answer = replace(answer, at_ms=0, row=b"")
            assert (ReportConflict if isinstance(answer, ReportConflict) else answer) == expected[index], (index, said)

    def expected_report(self, wallet: str, report: Report) -> Any:
        """What the model says to a report, and does."""
        model, told = self.models[wallet], self.told.get(report.record)
        if told is not None:
            first, fingerprint = told
            return replace(first, fresh=False) if fingerprint == report.fingerprint else ReportConflict
        position = model.counter if report.tier_field else 0
        if report.tier_field and not report.position_lo <= position <= report.position_hi:
            return Moved(position)
        self.looks(wallet, model)
        flags = model.settle(None, report.charge_nanos, report.overdraft_nanos, report.plan_linked, report.units)
        self.flags[wallet, model.seq] = flags
        first = Reported(report.request_id, report.charge_nanos, position, flags, 0)
        self.told[report.record] = (first, report.fingerprint)
        return first

    @rule(wallet=wallets, want=small, key=st.sampled_from("kl"), after=st.sampled_from(["running", "delivered", "nothing"]))
    def reserve_once(self, wallet: str, want: int, key: str, after: str) -> None:
        """I13: an idempotency key is claimed with its hold, by one call; one that delivered nothing gives it back."""
        model, store = self.models[wallet], self.driver.store
        self.numbers += 1
        claim = Claim(digest=f"{key}{self.numbers}", keep_ms=KEEP_MS)

        def call(request: str) -> Any:
            return store.reserve(wallet, request, want, row=b"{}", lease_ms=FAR_MS, claim=claim)

        first, second = self.new_id("req"), self.new_id("req")
        parts = model.reserve(want, 0, False)
        if parts is None:
            self.unchanged(wallet, first, call(first), InsufficientFunds)
            assert self.driver.plain.keys(f"*:i:{claim.digest}") == []
            return
        assert self.driver.run(call(first)) == Held(*parts, 0)
        hold = Hold(wallet, *parts, 0, False, "", "", False, model.seq)
        if after == "running":
            self.holds[first] = hold
        else:
            fp = "n" if after == "nothing" else ""
            charge = 0 if after == "nothing" else want
            self.driver.run(self.settle_call(wallet, first, charge, fingerprint=fp))
            wseq = model.seq + 1
            self.flags[wallet, wseq] = model.settle(hold, charge, 0, False, 0)
            self.ended[first] = (wallet, charge, fp)
        if after == "nothing":
            parts = model.reserve(want, 0, False)
            assert parts is not None
            assert self.driver.run(call(second)) == Held(*parts, 0)
            self.holds[second] = Hold(wallet, *parts, 0, False, "", "", False, model.seq)
        else:
            self.unchanged(wallet, second, call(second), AlreadyCalled)

    @precondition(lambda self: self.holds)
    @rule(pick=st.randoms(use_true_random=False), more=st.one_of(st.integers(-10, 40), st.just(10**12)), looks=st.booleans())
    def extend(self, pick: Any, more: int, looks: bool) -> None:
        """A hold that follows its stream: by the reserve's rules, all or nothing, and twice the same is once."""
        request = pick.choice(sorted(self.holds))
        hold = self.holds[request]
        model, store = self.models[hold.wallet], self.driver.store
        target = max(hold.plan + hold.funds + more, 0)
        swept = looks and more > 0 and self.looks(hold.wallet, model)
        fa = model.fa
        if swept:
            fits = model.extend(hold, target)
            try:
                grown = self.driver.run(store.extend(hold.wallet, request, target, at=self.at()))
            except InsufficientFunds:
                grown = None
            assert grown == ((hold.plan, hold.funds) if fits else None)
            return
        if not model.extend(hold, target):
            self.unchanged(hold.wallet, request, store.extend(hold.wallet, request, target), InsufficientFunds)
            return
        call = store.extend(hold.wallet, request, target)
        if more <= 0:
            assert self.unchanged(hold.wallet, request, call, None) == (hold.plan, hold.funds)
        else:
            assert self.driver.run(call) == (hold.plan, hold.funds)
            assert model.fa >= -hold.od or model.fa == fa, "I14"
        assert self.unchanged(hold.wallet, request, store.extend(hold.wallet, request, target), None) == (hold.plan, hold.funds)

    @precondition(lambda self: self.ended)
    @rule(pick=st.randoms(use_true_random=False))
    def extend_after_the_end(self, pick: Any) -> None:
        request = pick.choice(sorted(self.ended))
        wallet = self.ended[request][0]
        assert self.unchanged(wallet, request, self.driver.store.extend(wallet, request, 10), None) is None

    @precondition(lambda self: self.holds)
    @rule(pick=st.randoms(use_true_random=False), makes_due=st.booleans())
    def lease(self, pick: Any, makes_due: bool) -> None:
        request = pick.choice(sorted(self.holds))
        hold = self.holds[request]
        assert self.driver.run(
            self.driver.store.lease(hold.wallet, request, lease_ms=0 if makes_due else FAR_MS, row=b'{"checkpoint":1}')
        )
        hold.is_due = makes_due

    @precondition(lambda self: self.ended)
    @rule(pick=st.randoms(use_true_random=False))
    def lease_after_the_end(self, pick: Any) -> None:
        request = pick.choice(sorted(self.ended))
        wallet = self.ended[request][0]
        assert self.unchanged(wallet, request, self.driver.store.lease(wallet, request, lease_ms=1, row=b"{}"), None) is False

    @rule(wallet=st.sampled_from([*WALLETS, "wal_unknown"]), kind=st.sampled_from(["recovering", "unknown", "too_much"]))
    def refused(self, wallet: str, kind: str) -> None:
        """I34 and amounts out of bounds."""
        store, t = self.driver.store, tag(partition_of(wallet))
        calls: list[Any] = [
            lambda r: self.reserve_call(wallet, r, 0, 0, False, "", "", 0),
            lambda r: self.settle_call(wallet, r, 0, mode="late"),
            lambda r: store.extend(wallet, r, 5) if kind == "recovering" else self.settle_call(wallet, r, 0, mode="held"),
            lambda r: store.credit(wallet, r, 5, lot_key=f"f:500:99999999999:00000000000001:{r}", row=b"{}", keep_ms=1),
            lambda r: store.renew(wallet, r, ends=frozenset(), lot_key=None, grant_nanos=0, row=b"{}", keep_ms=1),
            lambda r: store.adjust(wallet, r, -5, lot_key=None, row=b"{}", keep_ms=1),
            lambda r: store.expire(wallet, self.at(), row=b"{}"),
        ]
        if kind == "too_much":
            too_much = 9_000_000_000_000_001
            calls = [
                lambda r: self.settle_call(wallet, r, too_much, mode="late"),
                lambda r: store.credit(wallet, r, too_much, lot_key=f"f:500:9:1:{r}", row=b"{}", keep_ms=1),
                lambda r: store.credit(wallet, r, 0, lot_key=f"f:500:9:1:{r}", row=b"{}", keep_ms=1),
                lambda r: store.renew(
                    wallet, r, ends=frozenset(), lot_key="p:400:9:1:x", grant_nanos=too_much, row=b"{}", keep_ms=1
                ),
                lambda r: store.renew(wallet, r, ends=frozenset(), lot_key="p:500:9:1:x", grant_nanos=1, row=b"{}", keep_ms=1),
                lambda r: store.adjust(wallet, r, -too_much, lot_key=None, row=b"{}", keep_ms=1),
                lambda r: store.adjust(wallet, r, 1, lot_key=None, row=b"{}", keep_ms=1),
            ]
        elif kind == "unknown" and wallet != "wal_unknown":
            return
        if kind == "recovering":
            self.driver.plain.hset(f"{t}:m", "state", "recovering")
        request = self.new_id("req")
        expected: type[LavaError] = StoreError if kind == "recovering" else CallerError
        for call in calls:
            self.unchanged(wallet, request, call(request), expected)
        if kind == "recovering":
            self.driver.plain.hset(f"{t}:m", "state", "ready")

    # -- after every step

    @invariant()
    def wallets_equal_the_model(self) -> None:
        plain = self.driver.plain
        for wallet, model in self.models.items():
            state = _wallet(plain.hgetall(f"{tag(partition_of(wallet))}:w:{wallet}"))
            assert (
                state.plan_available, state.funds_available, state.plan_held, state.funds_held, state.debt, state.settled,
                state.credited, state.wseq, state.lots, state.counters.get(TIER, 0),
            ) == (
                model.pa, model.fa, model.ph, model.fh, model.debt, model.settled,
                model.credited, model.seq, model.lots, model.counter,
            )  # fmt: skip
            holds = [hold for hold in self.holds.values() if hold.wallet == wallet]
            assert state.balance_nanos + state.settled == state.credited, "I1"
            assert state.plan_held == sum(hold.plan for hold in holds), "I5"
            assert state.funds_held == sum(hold.funds for hold in holds), "I5"
            assert state.balance_nanos == sum(state.lots.values()) - state.debt, "I17"
            assert all(0 < left <= model.granted[lot] for lot, left in state.lots.items()), "I19"
            assert state.plan_available >= 0 and state.plan_held >= 0, "plan credit is never overdrawn"
            pinned = {pot: sum(left for lot, left in state.lots.items() if lot[0] == pot) for pot in "qg"}
            assert pinned["q"] <= state.plan_held and pinned["g"] <= state.funds_held, "I20: what has ended is not spendable"
            seen = state.at(self.at())
            expired = {lot for lot in seen.lots if lot[0] in "pf" and expiry(lot) <= self.now_s}
            assert sum(seen.lots[lot] for lot in expired if lot[0] == "p") <= state.plan_held - pinned["q"]
            assert sum(seen.lots[lot] for lot in expired if lot[0] == "f") <= state.funds_held - pinned["g"]

    @invariant()
    def the_expiry_index_names_exactly_the_open_holds(self) -> None:
        """I8"""
        for wallet in WALLETS:
            t = tag(partition_of(wallet))
            indexed = {member.decode() for member in self.driver.plain.zrange(f"{t}:x", 0, -1)}
            assert indexed == {r for r, hold in self.holds.items() if partition_of(hold.wallet) == partition_of(wallet)}

    def teardown(self) -> None:
        """I4, I32: the outbox alone tells the same story, gapless; and when all calls have ended, so has what they had kept."""
        for request, hold in list(self.holds.items()):
            model, wseq = self.models[hold.wallet], self.models[hold.wallet].seq + 1
            self.driver.run(self.settle_call(hold.wallet, request, 0))
            self.flags[hold.wallet, wseq] = model.settle(hold, 0, 0, False, 0)
            del self.holds[request]
        self.wallets_equal_the_model()
        for wallet, model in self.models.items():
            assert not [lot for lot in model.lots if lot[0] in "qg"]
            stream = f"{tag(partition_of(wallet))}:o".encode()
            found = [_entry(stream, identifier, fields) for identifier, fields in self.driver.plain.xrange(stream)]
            assert [entry.pseq for entry in found] == list(range(1, len(found) + 1))
            entries = [
                Entry(
                    wseq=e.wseq, kind=KINDS[e.kind], request_id=e.request_id, amount_nanos=e.amount_nanos,
                    balance_nanos=e.balance_nanos, plan_nanos=e.plan_nanos, funds_nanos=e.funds_nanos, debt_nanos=e.debt_nanos,
                    flags=e.flags, lot_key=e.row.get("lot_key"), pinned_nanos=e.pinned_nanos, opened_wseq=e.opened_wseq,
                )
                for e in found if e.wallet_id == wallet
            ]  # fmt: skip
            told = replay(entries)
            assert told.faults == []
            assert (told.wseq, told.balance_nanos, told.debt_nanos, told.lots, told.settled_nanos, told.credited_nanos) == (
                model.seq, model.pa + model.fa + model.ph + model.fh, model.debt, model.lots, model.settled, model.credited,
            )  # fmt: skip
            assert told.plan_nanos == model.pa + model.ph
            assert [e.plan_total_nanos for e in found if e.wallet_id == wallet][-1:] in ([], [told.plan_nanos])
            for entry in entries:
                if entry.kind in ("settle", "adjust"):
                    assert entry.flags == self.flags[wallet, entry.wseq], "I15: what went below the line says so"


def test_any_sequence_of_operations_leaves_the_wallets_as_the_model_says(driver: Driver) -> None:
    """I1, I4, I5, I6, I8, I10, I12, I14, I15, I16, I17, I18, I19, I20, I21, I22, I32, E2, 7, 13, 24, 106: as modelled."""
    MoneyMachine.driver = driver
    run_state_machine_as_test(
        MoneyMachine,
        settings=settings(
            max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), database=None
        ),
    )
