"""What an operator's alarms look at, and what reading a balance costs."""

from __future__ import annotations

from lava_proxy import telemetry
from lava_proxy.app.worker_role import _gauges
from lava_proxy.stores.balance_store import partition_of
from tests.billing_world import World


async def test_an_overdue_hold_and_rows_that_wait_show_in_the_gauges_until_they_are_gone(world: World) -> None:
    """25, 30: a reaper or a flusher that does not run is seen by the age of what it leaves, not by silence."""
    wallet_id = await world.wallet(1_000_000)
    await world.flush()
    overdue = await world.reserve(wallet_id, 1_000, lease_ms=-60_000)
    await world.call(wallet_id, 500)
    await _gauges(world.outbox)
    assert telemetry.HOLDS_OPEN._value.get() == 1
    assert telemetry.HOLD_OLDEST._value.get() >= 60
    assert telemetry.OUTBOX_ENTRIES._value.get() == 1
    assert telemetry.OUTBOX_LAG._value.get() >= 0
    await world.settle(wallet_id, overdue, 0)
    await world.flush()
    await _gauges(world.outbox)
    assert (telemetry.HOLDS_OPEN._value.get(), telemetry.HOLD_OLDEST._value.get()) == (0, 0)
    assert (telemetry.OUTBOX_ENTRIES._value.get(), telemetry.OUTBOX_LAG._value.get()) == (0, 0)


async def test_reading_a_balance_costs_one_look_up_however_long_its_history(world: World) -> None:
    """117: nothing is summed or counted for a reader; Postgres is not asked at all."""
    costs = []
    for calls in (1, 60):
        wallet_id = await world.wallet(1_000_000)
        for _ in range(calls):
            await world.call(wallet_id, 10)
        await world.redis.config_resetstat()
        states = await world.outbox.wallets(partition_of(wallet_id), [wallet_id])
        stats = await world.redis.info("commandstats")
        state = states[wallet_id]
        assert state is not None and state.balance_nanos == 1_000_000 - calls * 10
        costs.append({name: found["calls"] for name, found in stats.items() if name in ("cmdstat_hgetall", "cmdstat_xrange")})
    assert costs == [{"cmdstat_hgetall": 1}] * 2
