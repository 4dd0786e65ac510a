"""workers/recovery.py: after any loss of Redis the wallets are what the ledger says, and nothing that was settled is lost."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from lava_proxy import tasks
from lava_proxy.domain.errors import StoreError
from lava_proxy.domain.ledger import replay
from lava_proxy.stores.balance_store import PARTITIONS, BalanceStore, partition_of, tag
from lava_proxy.stores.hot_redis import VERIFIED_KEY, HotRedis
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.outbox import WalletState
from lava_proxy.workers.recovery import Recovery, rebuild_all
from tests.billing_world import FLUSHER, World

TIER = "t:prd_1:2026-11"


async def random_history(world: World, rng: random.Random, steps: int) -> None:
    """Calls, over-settles into debt, late settles and credits of both pots on every wallet; no hold stays open."""
    for _ in range(steps):
        wallet_id = rng.choice(world.wallets)
        kind = rng.random()
        if kind < 0.25:
            await world.credit(wallet_id, rng.randrange(1, 300), pot=rng.choice("pf"), priority=rng.choice([1, 500]))
        elif kind < 0.4:
            await world.settle(wallet_id, new_id("req"), rng.randrange(0, 80), plan_linked=rng.random() < 0.5)
        else:
            charge = rng.randrange(0, 50)
            request_id = await world.reserve(wallet_id, 0, tier_field=TIER, plan_linked=rng.random() < 0.5)
            await world.settle(wallet_id, request_id, charge, units=charge * 3, tier_field=TIER)


async def states(world: World) -> dict[str, WalletState]:
    return {wallet_id: await world.state(wallet_id) for wallet_id in world.wallets}


async def snapshot(world: World) -> dict[bytes, bytes]:
    """Every key as Redis would write it to disk."""
    return {key: await world.redis.dump(key) async for key in world.redis.scan_iter(match="{p*", count=1000)}


async def restore(world: World, keys: dict[bytes, bytes]) -> None:
    """Redis as it was then: what a lost tail of the append-only file looks like."""
    await world.redis.flushall()
    for key, value in keys.items():
        await world.redis.restore(key, 0, value)


@pytest.mark.parametrize("seed", range(4))
async def test_a_total_loss_gives_back_identical_wallets(world: World, seed: int) -> None:
    """4, 98, H8, I3: balances, lots, debt, counters and sequence of random histories, from the ledger alone."""
    for _ in range(4):
        await world.wallet()
    await random_history(world, random.Random(seed), 60)
    await world.flush()
    before = await states(world)
    await world.redis.flushall()
    assert await world.recover() == len(world.wallets)
    assert await states(world) == before
    await world.clean_audit()
    # Life goes on: sequences continue (48), rows reach the ledger under the new epoch.
    await world.call(world.wallets[1], 3, hold=0)
    await world.flush()
    assert (await world.state(world.wallets[1])).wseq == before[world.wallets[1]].wseq + 1
    await world.clean_audit()


async def test_a_lost_tail_is_rebuilt_where_it_is_missing_and_only_there(world: World) -> None:
    """G9, H8, 12, I34: Redis comes back older than the ledger; nothing spent is given back, no id is used twice."""
    wallets = [await world.wallet(1_000) for _ in range(6)]
    await world.flush()
    for wallet_id in wallets:
        await world.call(wallet_id, 10)
    older = await snapshot(world)
    moved = wallets[0]
    for _ in range(3):
        await world.call(moved, 20)
    await world.flush()
    others = [w for w in wallets if partition_of(w) != partition_of(moved)]
    before = await states(world)
    await restore(world, older)
    assert (await world.state(moved)).balance_nanos == 990
    rebuilt = await world.recover()
    assert 1 <= rebuilt < len(world.wallets)
    assert {w: (await states(world))[w] for w in wallets} == {w: before[w] for w in wallets}
    metas = await world.outbox.metas()
    moved_meta, other_meta = metas[partition_of(moved)], metas[partition_of(others[0])]
    assert moved_meta is not None and other_meta is not None and (moved_meta[1], other_meta[1]) == (2, 1)
    await world.flush()
    await world.clean_audit()


async def test_a_redis_ahead_of_the_ledger_is_left_alone(world: World) -> None:
    """What waits in the outbox is the truth; a restart changes nothing of it."""
    wallet_id = await world.wallet(1_000)
    await world.flush()
    open_hold = await world.reserve(wallet_id, 100)
    await world.call(wallet_id, 10)
    before = await snapshot(world)
    assert await world.recover() == 0
    assert await snapshot(world) == before
    await world.settle(wallet_id, open_hold, 1)
    assert await world.flush() == 2
    await world.clean_audit()


async def test_a_rebuild_left_half_done_is_finished_and_loses_no_unflushed_settle(world: World) -> None:
    """I32, I34: killed after it stopped the partitions, before it flushed them; the next one flushes, then rebuilds."""
    wallet_id = await world.wallet(1_000)
    await world.call(wallet_id, 10)
    before = await world.state(wallet_id)
    await world.outbox.set_recovering([partition_of(wallet_id)])
    with pytest.raises(StoreError):
        await world.reserve(wallet_id, 1)
    # The run is verified, yet a partition is not served: the worker notices by itself.
    assert await Recovery(world.outbox, world.ledger).run_once() >= 1
    assert await world.state(wallet_id) == before
    assert await world.outbox.length() == 0
    await world.call(wallet_id, 1)
    await world.flush()
    await world.clean_audit()


async def test_a_rebuild_killed_between_two_wallets_is_done_again(world: World) -> None:
    """Absolute writes: doing it twice is doing it once."""
    for _ in range(3):
        await world.wallet(1_000)
    await random_history(world, random.Random(1), 20)
    await world.flush()
    before = await states(world)
    part = partition_of(world.wallets[1])
    await world.outbox.set_meta(part, "recovering", 7, 0)
    await world.redis.delete(f"{tag(part)}:w:{world.wallets[1]}")
    await world.recover()
    assert await states(world) == before
    await world.clean_audit()


async def test_a_call_in_flight_over_a_loss_settles_late_and_once(world: World) -> None:
    """I6, I7, I10: its hold is gone; its debit is direct, marked, and not repeated."""
    wallet_id = await world.wallet(1_000)
    await world.flush()
    request_id = await world.reserve(wallet_id, 100)
    await world.redis.flushall()
    await world.recover()
    assert (await world.state(wallet_id)).funds_available == 1_000
    ended = await world.settle(wallet_id, request_id, 30)
    assert (ended.flags, ended.balance_nanos) == ("l", 970)
    assert (await world.settle(wallet_id, request_id, 30)).repeated
    await world.flush()
    await world.clean_audit()
    # Settled, flushed, lost again, settled again by a confused owner: charged once.
    await world.redis.flushall()
    await world.recover()
    await world.settle(wallet_id, request_id, 30)
    await world.flush()
    assert len(await world.fetch("SELECT * FROM request")) == 1
    assert len(await world.fetch("SELECT * FROM anomaly")) == 1
    await world.clean_audit()


async def test_many_workers_that_find_an_empty_redis_set_each_wallet_once(world: World) -> None:
    """3, F4, 14: eight cold starts at once, and calls as soon as it serves; no credit is counted twice."""
    wallet_id = await world.wallet(1_000)
    await world.call(wallet_id, 10)
    await world.flush()
    await world.redis.flushall()
    legs = [HotRedis(world.redis_url, timeout_s=2, connect_wait_s=5) for _ in range(3)]
    for leg in legs:
        await leg.start()

    async def first_call(leg: HotRedis) -> None:
        store, request_id = BalanceStore(leg), new_id("req")
        await store.reserve(wallet_id, request_id, 5, row=world.row(wallet_id), lease_ms=60_000)
        await store.settle(wallet_id, request_id, 5, row=world.row(wallet_id), keep_ms=60_000)

    calls = [tasks.start("first-call", first_call(leg)) for leg in legs]
    rebuilt = await asyncio.gather(*(Recovery(world.outbox, world.ledger).run_once() for _ in range(4)))
    assert sorted(rebuilt) == [0, 0, 0, 2]
    await asyncio.gather(*calls)
    for leg in legs:
        await leg.stop()
    assert (await world.state(wallet_id)).balance_nanos == 1_000 - 10 - 15
    await world.flush()
    await world.clean_audit()


async def test_rebuild_all_under_traffic_loses_nothing(world: World) -> None:
    """48, I32: with open holds, unflushed rows, the daemon's own flusher and calls coming in; refused or counted, never lost."""
    wallets = [await world.wallet(100_000) for _ in range(3)]
    open_holds = [await world.reserve(wallet_id, 500) for wallet_id in wallets]
    done = asyncio.Event()
    charged = dict.fromkeys(wallets, 0)

    async def traffic(wallet_id: str) -> None:
        while not done.is_set():
            request_id = new_id("req")
            try:
                await world.reserve(wallet_id, 10, request_id)
            except StoreError:
                await asyncio.sleep(0.001)
                continue
            while True:
                try:
                    await world.settle(wallet_id, request_id, 7)
                    break
                except StoreError:
                    await asyncio.sleep(0.001)
            charged[wallet_id] += 7

    async def flush() -> None:
        flusher = world.flusher()
        while not done.is_set():
            try:
                await flusher.run_once(wait=False)
            except StoreError:
                pass
            await asyncio.sleep(0)

    running = [tasks.start("traffic", traffic(wallet_id)) for wallet_id in wallets] + [tasks.start("flush", flush())]
    for _ in range(2):
        report = await rebuild_all(world.outbox, world.ledger, FLUSHER)
        assert (report["wallets"], report["partitions"]) == (4, PARTITIONS)
    await asyncio.sleep(0.01)
    done.set()
    await asyncio.gather(*running)
    for wallet_id, request_id in zip(wallets, open_holds, strict=True):
        assert (await world.settle(wallet_id, request_id, 11)).flags == "l"
        charged[wallet_id] += 11
    for wallet_id in wallets:
        state = await world.state(wallet_id)
        assert (state.balance_nanos, state.funds_held) == (100_000 - charged[wallet_id], 0)
    await world.flush()
    await world.clean_audit()


async def test_rebuild_all_ends_though_a_dead_flusher_left_committed_rows_untrimmed(world: World) -> None:
    """A stream that is not empty but flushed must not keep the rebuild waiting."""
    wallet_id = await world.wallet(1_000)

    def die() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await world.flusher(after_commit=die).flush_all()
    assert await world.outbox.length() > 0
    before = await world.state(wallet_id)
    await asyncio.wait_for(rebuild_all(world.outbox, world.ledger, FLUSHER), 10)
    assert await world.state(wallet_id) == before
    await world.clean_audit()


async def test_a_fresh_installation_is_verified_and_ready_at_once(world: World) -> None:
    """H3: nothing to rebuild; every partition serves under its first epoch."""
    assert all(
        meta == ("ready", 1, 0) for part, meta in (await world.outbox.metas()).items() if part != partition_of(world.wallets[0])
    )
    assert await Recovery(world.outbox, world.ledger).run_once() == 0
    assert await world.redis.get(VERIFIED_KEY) is not None


async def test_the_ledger_alone_replays_to_what_redis_holds(world: World) -> None:
    """I4, 108: the sum of the rows is the balance, row by row."""
    wallet_id = await world.wallet(500, plan_nanos=100)
    await random_history(world, random.Random(9), 40)
    await world.flush()
    model, state = replay(await world.ledger.history(wallet_id)), await world.state(wallet_id)
    assert model.faults == []
    assert (model.balance_nanos, model.lots, model.debt_nanos, model.wseq) == (
        state.balance_nanos,
        state.lots,
        state.debt,
        state.wseq,
    )
    gap = [entry for entry in await world.ledger.history(wallet_id) if entry.wseq != 2]
    assert replay(gap).faults
    assert replay([replace(gap[0], balance_nanos=gap[0].balance_nanos + 1)]).faults
