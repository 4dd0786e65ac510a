"""workers/audit.py: silent about what is right, also while calls run; and it names each invariant that was broken on purpose."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lava_proxy import tasks
from lava_proxy.domain.errors import CallerError
from lava_proxy.stores.balance_store import partition_of, tag
from lava_proxy.stores.ids import new_id
from tests.billing_world import World


async def random_life(world: World, wallet_id: str, rng: random.Random, steps: int) -> None:
    """Reserves, settles below, at and above the hold, late settles, credits."""
    for _ in range(steps):
        amount = rng.randrange(1, 200)
        if rng.random() < 0.15:
            await world.credit(wallet_id, rng.randrange(1, 500), pot=rng.choice("pf"))
            continue
        linked = rng.random() < 0.5
        try:
            request_id = await world.reserve(wallet_id, amount, plan_linked=linked, tier_field="t:m:2026-11")
        except CallerError:
            continue
        if rng.random() < 0.1:
            continue  # left open
        charge = rng.choice([0, amount // 2, amount, amount * 2])
        await world.settle(wallet_id, request_id, charge, units=charge, tier_field="t:m:2026-11")
        if rng.random() < 0.2:
            await world.settle(wallet_id, request_id, charge, tier_field="t:m:2026-11")


async def test_the_audit_is_silent_after_a_random_workload(world: World) -> None:
    """F3, 4, 8: no drift, however often it is looked at, flushed or not."""
    rng = random.Random(7)
    wallets = [await world.wallet(5_000) for _ in range(4)]
    for wallet_id in wallets:
        await random_life(world, wallet_id, rng, 40)
    await world.clean_audit()
    await world.flush()
    report = await world.clean_audit()
    assert report.wallets == 5 and report.outbox == 0 and report.rows > 0 and report.drift_nanos == 0


async def test_the_audit_reports_nothing_false_while_calls_run_and_rows_are_flushed(world: World) -> None:
    """89: snapshots of a store in motion."""
    wallets = [await world.wallet(50_000) for _ in range(3)]
    done = asyncio.Event()

    async def work(seed: int) -> None:
        rng = random.Random(seed)
        while not done.is_set():
            await random_life(world, rng.choice(wallets), rng, 5)

    async def flush() -> None:
        flusher = world.flusher()
        while not done.is_set():
            await flusher.run_once(wait=False)
            await asyncio.sleep(0)

    running = [tasks.start(f"life-{seed}", work(seed)) for seed in range(6)] + [tasks.start("flush", flush())]
    try:
        for _ in range(6):
            await world.clean_audit()
    finally:
        done.set()
        await asyncio.gather(*running)
    await world.clean_audit()


async def _key(world: World, wallet_id: str) -> str:
    return f"{tag(partition_of(wallet_id))}:w:{wallet_id}"


async def _break_i1(world: World, wallet_id: str) -> None:
    await world.redis.hincrby(await _key(world, wallet_id), "credited", 1)


async def _break_i2(world: World, wallet_id: str) -> None:
    await world.pool.execute("UPDATE ledger_leg SET amount_nanos = amount_nanos + 1 WHERE account LIKE 'wallet:%'")


async def _break_i3(world: World, wallet_id: str) -> None:
    await world.redis.hincrby(await _key(world, wallet_id), "fa", 1)


async def _break_i3_missing(world: World, wallet_id: str) -> None:
    await world.redis.delete(await _key(world, wallet_id))


async def _break_i4(world: World, wallet_id: str) -> None:
    await world.pool.execute("DELETE FROM ledger_entry WHERE wallet_id = $1 AND wseq = 2", wallet_id)


async def _break_i5(world: World, wallet_id: str) -> None:
    await world.redis.hincrby(await _key(world, wallet_id), "fh", 3)


async def _break_i7(world: World, wallet_id: str) -> None:
    record = (await world.fetch("SELECT request_id FROM request WHERE wallet_id = $1 LIMIT 1", wallet_id))[0]["request_id"]
    await world.redis.delete(f"{tag(partition_of(wallet_id))}:h:{record}")
    await world.reserve(wallet_id, 1, record)


async def _break_i8_index(world: World, wallet_id: str) -> None:
    request_id = await world.reserve(wallet_id, 1)
    await world.redis.zrem(f"{tag(partition_of(wallet_id))}:x", request_id)


async def _break_i8_record(world: World, wallet_id: str) -> None:
    request_id = await world.reserve(wallet_id, 1)
    await world.redis.delete(f"{tag(partition_of(wallet_id))}:h:{request_id}")


async def _break_i10(world: World, wallet_id: str) -> None:
    await world.pool.execute(
        """INSERT INTO ledger_entry SELECT part, epoch, pseq, 'wal_other', wseq, kind, request_id, amount_nanos, balance_nanos,
        plan_nanos, funds_nanos, position, flags, debt_nanos, lot_key, at FROM ledger_entry WHERE kind = 'settle'"""
    )


async def _break_i10_row(world: World, wallet_id: str) -> None:
    await world.pool.execute("UPDATE request SET charge_nanos = charge_nanos + 1")


async def _break_i15(world: World, wallet_id: str) -> None:
    await world.call(wallet_id, 5_000, hold=1)
    await world.flush()
    assert await world.pool.execute("UPDATE ledger_entry SET flags = 'o' WHERE flags LIKE '%b%'") == "UPDATE 1"


async def _break_i17(world: World, wallet_id: str) -> None:
    await world.redis.hincrby(await _key(world, wallet_id), "debt", 7)


async def _plan_credit(world: World, wallet_id: str) -> str:
    """A renewal with credit; its id."""
    event_id = new_id("ren")
    options: dict[str, Any] = {"grant_nanos": 50, "ends": frozenset({"cycle"}), "reason": "test"}
    return await world.funding.renew_cycle(world.merchant_id, wallet_id, event_id, **options)


async def _break_i3_state(world: World, wallet_id: str) -> None:
    await world.pool.execute("UPDATE wallet_state SET debt_nanos = 1 WHERE wallet_id = $1", wallet_id)


async def _break_i19(world: World, wallet_id: str) -> None:
    await _plan_credit(world, wallet_id)
    lots = await world.redis.hget(await _key(world, wallet_id), "lots")
    await world.redis.hset(await _key(world, wallet_id), "lots", lots.replace(b"=50", b"=51"))


async def _break_i20_pin(world: World, wallet_id: str) -> None:
    """A call is open over a renewal; then its hold is made smaller than what it keeps of the old cycle."""
    await _plan_credit(world, wallet_id)
    await world.reserve(wallet_id, 20, plan_linked=True)
    await _plan_credit(world, wallet_id)
    await world.clean_audit()
    await world.redis.hincrby(await _key(world, wallet_id), "ph", -5)


async def _break_i20_entry(world: World, wallet_id: str) -> None:
    """A renewal that says it ended more than its classes had."""
    await _plan_credit(world, wallet_id)
    await world.call(wallet_id, 0)
    await _plan_credit(world, wallet_id)
    await world.flush()
    await world.pool.execute("UPDATE ledger_entry SET flags = 'b' WHERE kind = 'renew'")


async def _break_i22(world: World, wallet_id: str) -> None:
    event_id = await _plan_credit(world, wallet_id)
    await world.redis.delete(f"{tag(partition_of(wallet_id))}:h:{event_id}")
    await _plan_credit(world, wallet_id)
    order = await world.catalog.credit(event_id)
    assert order is not None
    await world.funding.apply(world.merchant_id, order)
    await world.flush()


async def _break_i25(world: World, wallet_id: str) -> None:
    credit_id = await world.credit(wallet_id, 5)
    await world.redis.delete(f"{tag(partition_of(wallet_id))}:h:{credit_id}")
    await world.credit(wallet_id, 5, credit_id=credit_id)
    await world.flush()


@pytest.mark.parametrize(
    ("invariant", "break_it"),
    [
        ("I1", _break_i1),
        ("I2", _break_i2),
        ("I3", _break_i3),
        ("I3", _break_i3_missing),
        ("I4", _break_i4),
        ("I5", _break_i5),
        ("I7", _break_i7),
        ("I8", _break_i8_index),
        ("I8", _break_i8_record),
        ("I10", _break_i10),
        ("I10", _break_i10_row),
        ("I15", _break_i15),
        ("I17", _break_i17),
        ("I3", _break_i3_state),
        ("I19", _break_i19),
        ("I20", _break_i20_pin),
        ("I20", _break_i20_entry),
        ("I22", _break_i22),
        ("I25", _break_i25),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__.removeprefix("_break_"),
)
async def test_the_audit_names_what_was_broken(
    world: World, invariant: str, break_it: Callable[[World, str], Awaitable[None]]
) -> None:
    """Each invariant, broken alone, is found."""
    wallet_id = await world.wallet(1_000)
    await world.call(wallet_id, 10)
    await world.call(wallet_id, 20)
    await world.flush()
    await world.clean_audit()
    await break_it(world, wallet_id)
    report = await world.audit()
    assert invariant in {violation["invariant"] for violation in report.violations}, report.violations
    assert not report.as_dict()["met"]


async def test_a_balance_within_its_overdraft_line_is_no_violation(world: World) -> None:
    """I15: below zero within the line is marked, below the line is marked otherwise."""
    wallet_id = await world.wallet(10)
    within = await world.reserve(wallet_id, 15, overdraft_nanos=10)
    assert (await world.settle(wallet_id, within, 15)).flags == "d"
    below = await world.reserve(wallet_id, 5, overdraft_nanos=10)
    assert (await world.settle(wallet_id, below, 9)).flags == "ob"
    assert (await world.state(wallet_id)).funds_available == -14
    await world.clean_audit()
    await world.flush()
    await world.clean_audit()
