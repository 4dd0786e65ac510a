"""Plan credit in real stores: renewals, bundles, rollover, expiry and adjustments, with calls open across all of them."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lava_proxy import tasks
from lava_proxy.domain.errors import CallerError, Conflict, InsufficientFunds, NotFound, StoreError
from lava_proxy.domain.ledger import replay
from lava_proxy.stores.balance_store import PlanClass, Report, Reported, lot_key, partition_of, report_record
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.outbox import Outbox
from lava_proxy.workers.credit_applier import CreditApplier
from lava_proxy.workers.lot_expirer import LotExpirer
from tests.billing_world import KEEP_MS, World
from tests.charging_world import NOW as CHARGING_NOW
from tests.charging_world import done, till

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SOON = NOW + timedelta(hours=1)
CYCLE: frozenset[PlanClass] = frozenset({"cycle"})
BOTH: frozenset[PlanClass] = frozenset({"cycle", "bundle"})
NONE: frozenset[PlanClass] = frozenset()


async def renew(world: World, wallet_id: str, grant: int, ends: frozenset[PlanClass] = CYCLE, **options: Any) -> str:
    event_id = options.pop("event_id", None) or new_id("ren")
    return await world.funding.renew_cycle(
        world.merchant_id, wallet_id, event_id, grant_nanos=grant, ends=ends, reason="renewal", **options
    )


async def bundle(world: World, wallet_id: str, amount: int, **options: Any) -> str:
    return await world.funding.grant_bundle(world.merchant_id, wallet_id, amount, "bundle", new_id("crd"), **options)


async def adjust(world: World, wallet_id: str, delta: int, **options: Any) -> str:
    return await world.funding.adjust(world.merchant_id, wallet_id, new_id("adj"), delta, "test", **options)


async def lots(world: World, wallet_id: str) -> dict[str, int]:
    """Class (cycle, bundle, funds, pin) -> what remains."""
    names = {"p:400": "cycle", "p:450": "bundle", "f:500": "funds"}
    found: dict[str, int] = {}
    for key, left in (await world.state(wallet_id)).lots.items():
        name = names.get(key[:5], "pin")
        found[name] = found.get(name, 0) + left
    return found


async def entries(world: World, wallet_id: str) -> list[tuple[str, int]]:
    await world.flush()
    return [(entry.kind, entry.amount_nanos) for entry in await world.ledger.history(wallet_id)]


async def books_close(world: World) -> None:
    """Redis and the ledger agree before and after the flush, and Postgres alone tells the same wallets."""
    await world.clean_audit()
    await world.flush()
    await world.clean_audit()
    for wallet_id in world.wallets:
        state = (await world.ledger.wallet_states([wallet_id])).get(wallet_id)
        redis = await world.state(wallet_id)
        assert state is None or (state["wseq"], state["balance_nanos"], state["plan_nanos"], state["debt_nanos"]) == (
            redis.wseq, redis.balance_nanos, redis.plan_available + redis.plan_held, redis.debt,
        )  # fmt: skip


async def test_a_renewal_ends_the_cycle_and_begins_the_next_as_one_event_and_touches_nothing_else(world: World) -> None:
    """I20, 79, 94, 97: cycle credit goes, the new lot comes in one entry; bundles and top-ups stay where they are."""
    wallet_id = await world.wallet(30)
    await renew(world, wallet_id, 100)
    await bundle(world, wallet_id, 50)
    request_id = await world.reserve(wallet_id, 20, plan_linked=True)
    await world.settle(wallet_id, request_id, 20)
    assert await lots(world, wallet_id) == {"cycle": 80, "bundle": 50, "funds": 30}
    await renew(world, wallet_id, 70)
    assert await lots(world, wallet_id) == {"cycle": 70, "bundle": 50, "funds": 30}
    assert (await entries(world, wallet_id))[-1] == ("renew", 70 - 80)
    assert (await world.state(wallet_id)).balance_nanos == 150
    await renew(world, wallet_id, 0, BOTH)
    assert await lots(world, wallet_id) == {"funds": 30}
    assert (await entries(world, wallet_id))[-1] == ("renew", -120)
    await books_close(world)


async def test_cycle_credit_burns_before_bundles_and_bundles_before_funds(world: World) -> None:
    """I18, 82: one call is taken once from what there is of several grants; the class is the priority in the lot's key."""
    wallet_id = await world.wallet(30)
    await bundle(world, wallet_id, 20)
    await renew(world, wallet_id, 10)
    for charge, left in ((4, {"cycle": 6, "bundle": 20, "funds": 30}), (10, {"bundle": 16, "funds": 30}), (20, {"funds": 26})):
        request_id = await world.reserve(wallet_id, charge, plan_linked=True)
        await world.settle(wallet_id, request_id, charge)
        assert await lots(world, wallet_id) == left
    await books_close(world)


async def test_a_renewal_run_many_times_at_once_is_one(world: World) -> None:
    """I22, 77, 85, 86, 88: the same event from many workers, again after the flush, and after Redis forgot it."""
    wallet_id, event_id = await world.wallet(), new_id("ren")
    await renew(world, wallet_id, 40)
    await asyncio.gather(*(renew(world, wallet_id, 100, event_id=event_id) for _ in range(6)))
    assert await lots(world, wallet_id) == {"cycle": 100}
    await world.call(wallet_id, 0)
    assert await CreditApplier(world.catalog, world.funding).run_once() == 0
    await world.flush()
    await world.redis.flushall()
    await world.recover()
    await renew(world, wallet_id, 100, event_id=event_id)
    assert not await world.funding.apply_order(event_id)
    assert await lots(world, wallet_id) == {"cycle": 100}
    assert [kind for kind, _ in await entries(world, wallet_id)].count("renew") == 2
    with pytest.raises(Conflict) as other:
        await renew(world, wallet_id, 101, event_id=event_id)
    assert other.value.code == "order_id_conflict"
    await books_close(world)


@pytest.mark.parametrize("path", ["direct", "applier", "rebuilt"])
async def test_what_rolls_over_is_the_same_on_every_path(world: World, path: str) -> None:
    """I21, 78, 79: full keeps all of it, none keeps nothing, cycle after cycle, whoever applies it."""
    full, none = await world.wallet(), await world.wallet()
    applier = CreditApplier(world.catalog, world.funding)
    for _ in range(5):
        for wallet_id, ends in ((full, NONE), (none, CYCLE)):
            if path == "applier":
                async with world.pool.acquire() as db:
                    await renew(world, wallet_id, 10, ends, db=db)
            else:
                await renew(world, wallet_id, 10, ends)
        if path == "applier":
            assert await applier.run_once() == 2
        for wallet_id in (full, none):
            request_id = await world.reserve(wallet_id, 3, plan_linked=True)
            await world.settle(wallet_id, request_id, 3)
        if path == "rebuilt":
            await world.flush()
            await world.redis.flushall()
            await world.recover()
    assert (await lots(world, full), await lots(world, none)) == ({"cycle": 35}, {"cycle": 7})
    await books_close(world)


async def test_calls_open_over_a_renewal_use_the_cycle_they_began_in_and_what_they_leave_ends(world: World) -> None:
    """13, 5, I5, I17: nothing that has ended becomes spendable, and nobody pays the new cycle for what the old one covered."""
    wallet_id = await world.wallet()
    await renew(world, wallet_id, 30)
    await bundle(world, wallet_id, 20)
    first = await world.reserve(wallet_id, 40, plan_linked=True)
    await renew(world, wallet_id, 50)
    assert await lots(world, wallet_id) == {"pin": 30, "bundle": 20, "cycle": 50}
    state = await world.state(wallet_id)
    assert (state.plan_available, state.plan_held) == (60, 40)
    later = await world.reserve(wallet_id, 60, plan_linked=True)
    with pytest.raises(InsufficientFunds):
        await world.reserve(wallet_id, 1, plan_linked=True)
    await world.clean_audit()
    await world.settle(wallet_id, later, 15)  # began in the new cycle: burns the new lot, never the pin
    assert await lots(world, wallet_id) == {"pin": 30, "bundle": 20, "cycle": 35}
    await world.settle(wallet_id, first, 25)
    assert await lots(world, wallet_id) == {"bundle": 20, "cycle": 35}
    assert (await world.state(wallet_id)).plan_available == 55
    assert (await entries(world, wallet_id))[-2:] == [("settle", -25), ("expire", -5)]
    await books_close(world)


async def test_a_release_after_a_renewal_does_not_bring_the_old_cycle_back(world: World) -> None:
    """12, I20: several calls, ended in any order, above and below their holds, and one that grows."""
    for seed in range(8):
        rng = random.Random(seed)
        wallet_id = await world.wallet()
        await renew(world, wallet_id, 60)
        holds = [await world.reserve(wallet_id, amount, plan_linked=True) for amount in (10, 20, 30)]
        await renew(world, wallet_id, 100)
        grown = rng.choice(holds)
        assert await world.balances.extend(wallet_id, grown, 35) is not None
        rng.shuffle(holds)
        used = 0
        for request_id in holds:
            charge = rng.choice([0, 5, 10, 40])
            used += charge
            await world.settle(wallet_id, request_id, charge)
            await world.clean_audit()
        state = await world.state(wallet_id)
        assert (state.pins, state.plan_held) == ({}, 0)
        # Whatever the calls used came from the old cycle as far as it went; never more is left than was granted anew.
        assert max(0, 160 - 60 - used) <= state.balance_nanos <= 100
    await books_close(world)


async def test_renewals_race_calls_without_losing_a_debit(world: World) -> None:
    """5, 89, I1: debits, renewals, expiries and refunds at once, the audit looking on; every nano is on the books."""
    wallets = [await world.wallet(10_000) for _ in range(3)]
    done = asyncio.Event()
    charged = dict.fromkeys(wallets, 0)

    async def calls(wallet_id: str, seed: int) -> None:
        rng = random.Random(seed)
        while not done.is_set():
            amount = rng.randrange(1, 60)
            try:
                request_id = await world.reserve(wallet_id, amount, plan_linked=True, at=NOW + timedelta(seconds=rng.randrange(5)))
            except CallerError:
                continue
            charge = rng.choice([0, amount // 2, amount, amount + 5])
            await world.settle(wallet_id, request_id, charge)
            charged[wallet_id] += charge

    async def changes(wallet_id: str, seed: int) -> None:
        rng = random.Random(seed)
        while not done.is_set():
            expires_at = NOW + timedelta(seconds=rng.randrange(1, 6)) if rng.random() < 0.5 else None
            await renew(world, wallet_id, rng.randrange(0, 300), rng.choice([CYCLE, BOTH, NONE]), expires_at=expires_at)
            await bundle(world, wallet_id, rng.randrange(1, 200), expires_at=expires_at)
            await adjust(world, wallet_id, rng.choice([-40, 25]))

    async def flush() -> None:
        flusher = world.flusher()
        while not done.is_set():
            await flusher.run_once(wait=False)
            await asyncio.sleep(0)

    running = [tasks.start(f"calls-{n}", calls(wallets[n % 3], n)) for n in range(6)]
    running += [tasks.start(f"changes-{n}", changes(wallet_id, n)) for n, wallet_id in enumerate(wallets)]
    running.append(tasks.start("flush", flush()))
    try:
        for _ in range(6):
            await world.clean_audit()
    finally:
        done.set()
        await asyncio.gather(*running)
    await books_close(world)
    for wallet_id in wallets:
        state = await world.state(wallet_id)
        assert state.settled == charged[wallet_id]
        assert (state.pins, state.plan_held, state.funds_held) == ({}, 0, 0)
        assert not [key for key in state.lots if key[0] in "qg"]


async def test_debt_survives_a_change_of_plan_and_is_paid_by_funds_only(world: World) -> None:
    """81, I17: cycle and bundle credit are not swallowed by what is owed."""
    wallet_id = await world.wallet(10)
    await world.call(wallet_id, 25, hold=10)
    await renew(world, wallet_id, 100)
    await bundle(world, wallet_id, 40)
    await renew(world, wallet_id, 60)
    state = await world.state(wallet_id)
    assert (state.debt, state.funds_available, state.plan_available) == (15, -15, 100)
    await world.funding.fund(world.merchant_id, wallet_id, 20, "top-up")
    state = await world.state(wallet_id)
    assert (state.debt, state.funds_available, state.plan_available) == (0, 5, 100)
    await books_close(world)


async def test_orders_on_the_plan_pot_are_applied_as_they_were_written(world: World) -> None:
    """95, 116: a renewal that waited does not end the bundle or the cycle that came after it; unwritten orders have no effect."""
    wallet_id = await world.wallet()
    await renew(world, wallet_id, 10)
    async with world.pool.acquire() as db, db.transaction():
        await renew(world, wallet_id, 20, BOTH, db=db)
    assert await lots(world, wallet_id) == {"cycle": 10}
    await bundle(world, wallet_id, 7)
    assert await lots(world, wallet_id) == {"cycle": 20, "bundle": 7}
    assert await CreditApplier(world.catalog, world.funding).run_once() == 0

    class Rollback(Exception):
        pass

    with pytest.raises(Rollback):
        async with world.pool.acquire() as db, db.transaction():
            await renew(world, wallet_id, 99, BOTH, db=db)
            await adjust(world, wallet_id, -5, db=db)
            raise Rollback
    assert await CreditApplier(world.catalog, world.funding).run_once() == 0
    assert await lots(world, wallet_id) == {"cycle": 20, "bundle": 7}
    await books_close(world)


async def test_orders_written_before_a_crash_are_applied_afterwards(world: World) -> None:
    """I13, 27: of every kind; Postgres first, Redis when it serves again, once."""
    wallet_id = await world.wallet(100)
    await world.outbox.set_recovering([partition_of(wallet_id)])
    for order in (renew(world, wallet_id, 50), bundle(world, wallet_id, 20), adjust(world, wallet_id, -30)):
        with pytest.raises(StoreError):
            await order
    await world.outbox.set_state(partition_of(wallet_id), "ready")
    applier = CreditApplier(world.catalog, world.funding)
    assert [await applier.run_once() for _ in range(2)] == [3, 0]
    assert await lots(world, wallet_id) == {"cycle": 50, "bundle": 20, "funds": 70}
    await books_close(world)
    assert await world.catalog.open_credits(10) == []


@pytest.mark.parametrize("pot", ["plan", "funds"])
async def test_an_expired_lot_is_not_spendable_before_any_sweep(world: World, pot: str) -> None:
    """106, 80, 84, 92, I20: from its very second on; only the named lot, never a later one."""
    wallet_id = await world.wallet()
    credit = bundle if pot == "plan" else fund
    await credit(world, wallet_id, 40, expires_at=SOON)
    await credit(world, wallet_id, 5)
    linked = pot == "plan"
    before = await world.reserve(wallet_id, 45, plan_linked=linked, at=SOON - timedelta(milliseconds=1))
    await world.settle(wallet_id, before, 0)
    view = Outbox(world.redis, lambda: SOON)
    shown = (await view.wallet_states([wallet_id]))[wallet_id]
    assert shown is not None and shown.balance_nanos == 5 and sum(shown.lots.values()) == 5
    assert (await world.state(wallet_id)).balance_nanos == 45  # not swept yet
    with pytest.raises(InsufficientFunds):
        await world.reserve(wallet_id, 6, plan_linked=linked, at=SOON)
    assert (await world.state(wallet_id)).balance_nanos == 5
    assert (await entries(world, wallet_id))[-1] == ("expire", -40)
    await world.reserve(wallet_id, 5, plan_linked=linked, at=SOON)
    await books_close(world)


async def fund(world: World, wallet_id: str, amount: int, **options: Any) -> str:
    return await world.funding.fund(world.merchant_id, wallet_id, amount, "test", **options)


async def test_a_hold_and_a_debit_cannot_grow_into_an_expired_lot(world: World) -> None:
    """106: also where no reserve looks first."""
    wallet_id = await world.wallet()
    request_id = None
    await fund(world, wallet_id, 40, expires_at=SOON)
    await fund(world, wallet_id, 5)
    request_id = await world.reserve(wallet_id, 10, at=NOW)
    with pytest.raises(InsufficientFunds) as refused:
        await world.balances.extend(wallet_id, request_id, 16, at=SOON)
    assert "$0.000000005" in refused.value.message
    assert await world.balances.extend(wallet_id, request_id, 15, at=SOON) == (0, 15)
    assert (await world.settle(wallet_id, request_id, 12, at=SOON)).balance_nanos == 3
    late = Report(
        wallet_id=wallet_id, request_id=new_id("req"), record=report_record(world.merchant_id, "late"), fingerprint="f",
        charge_nanos=4, units=0, tier_field="", position_lo=0, position_hi=0, at=SOON,
        row=world.row(wallet_id, charge_nanos=4, billed=True, status="completed", outcome="completed", request_key="late"),
    )  # fmt: skip
    assert isinstance((await world.balances.report([late], KEEP_MS))[0], Reported)
    assert (await world.state(wallet_id)).debt == 1
    await books_close(world)


async def test_calls_open_at_an_expiry_may_finish_on_what_expires(world: World) -> None:
    """I20, 106: held before, used after; what is not used does not come back."""
    wallet_id = await world.wallet()
    await fund(world, wallet_id, 40, expires_at=SOON)
    await fund(world, wallet_id, 10)
    request_id = await world.reserve(wallet_id, 30, at=NOW)
    expirer = LotExpirer(world.catalog, world.balances, lambda: SOON)
    assert [await expirer.run_once() for _ in range(2)] == [1, 0]
    state = await world.state(wallet_id)
    assert (state.funds_available, state.funds_held) == (10, 30)
    await world.settle(wallet_id, request_id, 25)
    assert (await world.state(wallet_id)).funds_available == 10
    assert await entries(world, wallet_id) == [("credit", 40), ("credit", 10), ("expire", -10), ("settle", -25), ("expire", -5)]
    await books_close(world)


async def test_the_sweep_ends_each_lot_once_and_again_after_a_loss_of_redis(world: World) -> None:
    """I20, I3: unflushed expiries that Redis lost are done again; flushed ones are not."""
    wallets = [await world.wallet() for _ in range(3)]
    for wallet_id in wallets:
        await bundle(world, wallet_id, 40, expires_at=SOON)
        await bundle(world, wallet_id, 2, expires_at=SOON + timedelta(hours=1))
    await world.flush()
    early, due = (LotExpirer(world.catalog, world.balances, lambda at=at: at) for at in (NOW, SOON))  # type: ignore[misc]
    assert await early.run_once() == 0
    assert await due.run_once() == 3
    await world.redis.flushall()
    await world.recover()
    assert [(await world.state(wallet_id)).balance_nanos for wallet_id in wallets] == [42] * 3
    assert [await due.run_once() for _ in range(2)] == [3, 0]
    await world.flush()
    await world.redis.flushall()
    await world.recover()
    assert await due.run_once() == 0
    assert [(await world.state(wallet_id)).balance_nanos for wallet_id in wallets] == [2] * 3
    await books_close(world)


async def test_a_loss_of_redis_with_calls_open_over_a_renewal_leaves_no_free_credit(world: World) -> None:
    """I3, 12: the holds are gone, so what they kept of the ended lot ends at the next look."""
    wallet_id = await world.wallet()
    await renew(world, wallet_id, 30)
    request_id = await world.reserve(wallet_id, 20, plan_linked=True)
    await renew(world, wallet_id, 50)
    assert await lots(world, wallet_id) == {"pin": 20, "cycle": 50}
    await world.flush()
    await world.redis.flushall()
    await world.recover()
    shown = (await world.outbox.wallet_states([wallet_id]))[wallet_id]
    assert shown is not None and shown.plan_available == 50
    with pytest.raises(InsufficientFunds):
        await world.reserve(wallet_id, 51, plan_linked=True)
    assert await lots(world, wallet_id) == {"cycle": 50}
    assert (await world.settle(wallet_id, request_id, 5, plan_linked=True)).flags == "l"
    assert await lots(world, wallet_id) == {"cycle": 45}
    await books_close(world)


async def test_a_refund_takes_from_its_own_lot_first_then_from_funds_then_leaves_debt(world: World) -> None:
    """I15, I20, 75: marked where it goes below zero, and never refused for want of balance."""
    wallet_id = await world.wallet()
    first, second = await fund(world, wallet_id, 30), await fund(world, wallet_id, 20)
    await adjust(world, wallet_id, -15, lot_id=second)
    assert sorted((await world.state(wallet_id)).lots.values()) == [5, 30]
    await adjust(world, wallet_id, -10, lot_id=second)
    assert list((await world.state(wallet_id)).lots.values()) == [25]
    request_id = await world.reserve(wallet_id, 20)
    adjust_id = new_id("adj")
    for _ in range(2):
        await world.funding.adjust(world.merchant_id, wallet_id, adjust_id, -30, "clawback", lot_id=first)
    state = await world.state(wallet_id)
    assert (state.funds_available, state.funds_held, state.debt, state.lots) == (-25, 20, 5, {})
    await world.settle(wallet_id, request_id, 20)
    assert (await world.state(wallet_id)).debt == 25
    await world.flush()
    flags = await world.fetch("SELECT flags FROM ledger_entry WHERE kind = 'adjust' ORDER BY wseq")
    assert [row["flags"] for row in flags] == ["", "", "b"]
    with pytest.raises(NotFound):
        await adjust(world, wallet_id, -1, lot_id="crd_of_nobody")
    with pytest.raises(Conflict):
        await world.funding.adjust(world.merchant_id, wallet_id, adjust_id, -31, "clawback", lot_id=first)
    await books_close(world)


async def test_taking_back_a_bundle_takes_what_no_call_uses_and_the_rest_from_funds(world: World) -> None:
    """I20: other plan credit is not touched."""
    wallet_id = await world.wallet(100)
    lot_id = await bundle(world, wallet_id, 50)
    await renew(world, wallet_id, 10)
    request_id = await world.reserve(wallet_id, 30, plan_linked=True)  # the cycle's 10, and 20 of the bundle
    await adjust(world, wallet_id, -50, lot_id=lot_id)
    assert await lots(world, wallet_id) == {"cycle": 10, "bundle": 20, "funds": 80}
    await world.settle(wallet_id, request_id, 30)
    assert await lots(world, wallet_id) == {"funds": 80}
    await books_close(world)


async def test_an_adjustment_above_zero_pays_debt_or_gives_back_to_the_class_of_a_lot(world: World) -> None:
    """I17: funds unless told otherwise; the class and expiry of the lot it corrects."""
    wallet_id = await world.wallet()
    lot_id = await bundle(world, wallet_id, 5, expires_at=SOON)
    await adjust(world, wallet_id, -3)
    await adjust(world, wallet_id, 10)
    await adjust(world, wallet_id, 4, lot_id=lot_id)
    assert await lots(world, wallet_id) == {"bundle": 9, "funds": 7}
    assert await LotExpirer(world.catalog, world.balances, lambda: SOON).run_once() == 2
    assert await lots(world, wallet_id) == {"funds": 7}
    await books_close(world)


async def test_orders_out_of_bounds_are_refused_before_anything_is_written(world: World) -> None:
    """112, 113: no sign turns a grant into a debit, or the other way round."""
    wallet_id = await world.wallet()
    too_much = 9_000_000 * 10**9 + 1
    for order in (
        renew(world, wallet_id, -1),
        renew(world, wallet_id, too_much),
        bundle(world, wallet_id, 0),
        bundle(world, wallet_id, -5),
        adjust(world, wallet_id, 0),
        adjust(world, wallet_id, -too_much),
    ):
        with pytest.raises(CallerError) as refused:
            await order
        assert refused.value.code == "amount_out_of_bounds"
    with pytest.raises(NotFound):
        await renew(world, "wal_of_nobody", 1)
    assert await world.catalog.open_credits(10) == []
    row = world.row(wallet_id)
    with pytest.raises(CallerError):  # the script itself looks again, and takes cycle lots only for a grant
        key = lot_key("funds", "crd_1", 1)
        await world.balances.renew(wallet_id, "ren_1", ends=CYCLE, lot_key=key, grant_nanos=5, row=row, keep_ms=KEEP_MS)
    for delta, lot in ((0, None), (too_much, lot_key("funds", "crd_1", 1)), (5, None)):
        with pytest.raises(CallerError):
            await world.balances.adjust(wallet_id, "adj_1", delta, lot_key=lot, row=row, keep_ms=KEEP_MS)
    assert (await world.state(wallet_id)).wseq == 0


async def test_a_renewal_forgets_tier_counters_that_are_over_and_recovery_does_not_bring_them_back(world: World) -> None:
    """I30, 12: months before the last, and named cycles; what open calls may still count stays."""
    wallet_id = await world.wallet(1_000)
    await world.flush()
    months = ("2019-12", f"{datetime.now(UTC):%Y-%m}")
    for cycle in (*months, "sub_1.7", "sub_1.8"):
        await world.call(wallet_id, 1, units=5, tier_field=f"t:prd_1:{cycle}")
    await renew(world, wallet_id, 10, drop_cycles=("sub_1.7",))
    left = {f"t:prd_1:{cycle}": 5 for cycle in (months[1], "sub_1.8")}
    assert (await world.state(wallet_id)).counters == left
    await world.flush()
    await world.redis.flushall()
    await world.recover()
    assert (await world.state(wallet_id)).counters == left
    await books_close(world)


async def test_the_newest_entry_of_each_wallet_is_its_state_in_postgres(world: World) -> None:
    """108, I3: in the flush's transaction; who owes is found without reading Redis, and an old entry never overwrites a new one."""
    rich, poor = await world.wallet(100), await world.wallet(5)
    await renew(world, rich, 40)
    await world.call(poor, 9, hold=5)
    open_hold = await world.reserve(rich, 50, plan_linked=True)
    await world.flush()
    found = await world.ledger.wallet_states([rich, poor, "wal_none"])
    facts = {w: tuple(row[n] for n in ("balance_nanos", "plan_nanos", "funds_nanos", "debt_nanos")) for w, row in found.items()}
    assert facts == {rich: (140, 40, 100, 0), poor: (-4, 0, -4, 4)}
    newest = found[rich]["wseq"]
    await world.pool.execute("UPDATE wallet_state SET wseq = wseq + 10 WHERE wallet_id = $1", rich)
    await world.settle(rich, open_hold, 1)
    await world.flush()
    assert (await world.ledger.wallet_states([rich]))[rich]["wseq"] == newest + 10
    await world.pool.execute("UPDATE wallet_state SET wseq = 0 WHERE wallet_id = $1", rich)
    await world.call(rich, 1)
    await world.flush()
    await books_close(world)


async def test_the_ledger_alone_tells_a_wallet_with_every_kind_of_entry(world: World) -> None:
    """I4, 98, 108: replayed in one go or rebuilt half-way, the same lots and sums come out."""
    rng = random.Random(11)
    wallet_id = await world.wallet(500)
    lot_ids: list[str] = []
    holds: list[tuple[str, int]] = []
    for step in range(60):
        at = NOW + timedelta(minutes=step)
        expires_at = at + timedelta(minutes=rng.randrange(1, 20)) if rng.random() < 0.5 else None
        kind = rng.choice(["renew", "bundle", "fund", "adjust", "call", "call", "end", "end"])
        if kind == "renew":
            await renew(world, wallet_id, rng.randrange(0, 80), rng.choice([CYCLE, BOTH, NONE]), expires_at=expires_at)
        elif kind == "bundle":
            lot_ids.append(await bundle(world, wallet_id, rng.randrange(1, 50), expires_at=expires_at))
        elif kind == "fund":
            lot_ids.append(await fund(world, wallet_id, rng.randrange(1, 50), expires_at=expires_at))
        elif kind == "adjust":
            await adjust(world, wallet_id, rng.choice([-30, -5, 12]), lot_id=rng.choice([None, *lot_ids]))
        elif kind == "call":
            amount = rng.randrange(1, 60)
            try:
                request_id = await world.reserve(wallet_id, amount, plan_linked=rng.random() < 0.8, at=at)
            except InsufficientFunds:
                continue
            holds.append((request_id, amount))
        elif holds:
            request_id, amount = holds.pop(rng.randrange(len(holds)))
            await world.settle(wallet_id, request_id, rng.choice([0, amount // 2, amount, amount + 7]), at=at)
        await world.clean_audit()
        if step == 30:
            await world.flush()
    for request_id, amount in holds:
        await world.settle(wallet_id, request_id, amount)
    await books_close(world)
    history = await world.ledger.history(wallet_id)
    assert {entry.kind for entry in history} == {"credit", "renew", "adjust", "expire", "settle"}
    model, state = replay(history), await world.state(wallet_id)
    assert model.faults == []
    assert (model.balance_nanos, model.lots, model.debt_nanos) == (state.balance_nanos, state.lots, state.debt)
    assert sum(entry.amount_nanos for entry in history) == state.balance_nanos
    await world.redis.flushall()
    await world.recover()
    again = await world.state(wallet_id)
    assert (again.lots, again.balance_nanos, again.credited, again.settled) == (
        state.lots, state.balance_nanos, state.credited, state.settled,
    )  # fmt: skip


async def test_a_call_counts_in_the_cycle_of_its_grant(world: World) -> None:
    """I30: a subscription's tiers begin anew with its cycle; without one they count by the calendar month."""
    shop, wallet_id = till(world), await world.wallet(10**9)
    meter = await shop.fixed((0, 2 * 10**9))
    for cycle_id in ("sub_1.3", "sub_1.4", "sub_1.4", None):
        await shop.charge(shop.grant(wallet_id, meter, cycle_id=cycle_id), done(100, 50))
    counted = {f"t:{meter.meter_id}:{cycle}": units for cycle, units in (("sub_1.3", 150), ("sub_1.4", 300), ("2026-11", 150))}
    assert (await world.state(wallet_id)).counters == counted
    await books_close(world)


async def test_a_call_never_begins_on_expired_credit(world: World) -> None:
    """106: charging tells the script what time it is, by its own clock."""
    shop, wallet_id = till(world), await world.wallet()
    meter = await shop.fixed((0, 2 * 10**9))
    grant = shop.grant(wallet_id, meter, plan_linked=True)
    await bundle(world, wallet_id, 10**9, expires_at=CHARGING_NOW + timedelta(seconds=1))
    assert await shop.charge(grant, done(100, 50)) == 300_000
    await bundle(world, wallet_id, 10**9, expires_at=CHARGING_NOW)
    late = await world.wallet()
    await bundle(world, late, 10**9, expires_at=CHARGING_NOW)
    with pytest.raises(InsufficientFunds):
        await shop.reserve(shop.grant(late, meter, plan_linked=True))
    await books_close(world)


async def test_subscribing_and_ending_a_plan_touch_no_top_up(world: World) -> None:
    """96, 97: whatever order a plan's events come in, purchased funds are what they were."""
    for seed in range(6):
        rng = random.Random(seed)
        wallet_id = await world.wallet(1_000)
        for _ in range(8):
            await renew(world, wallet_id, rng.choice([0, 50]), rng.choice([CYCLE, BOTH, NONE]))
            await bundle(world, wallet_id, 5)
        await renew(world, wallet_id, 0, BOTH)
        assert await lots(world, wallet_id) == {"funds": 1_000}
    await books_close(world)
