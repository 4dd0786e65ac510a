"""workers/hold_reaper.py: a dead owner's hold ends with its checkpoint, once, and a living owner's is left alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from lava_proxy.domain.usage import Outcome
from lava_proxy.settings import Reserve
from lava_proxy.stores.balance_store import Settled, partition_of, tag
from lava_proxy.stores.hot_redis import HotRedis
from lava_proxy.stores.ids import new_id
from tests.billing_world import RESERVE, World
from tests.charging_world import PROVIDER, USD, Till, call, done
from tests.charging_world import till as make_till

FUNDS = 10 * USD
SO_FAR = done(100, 20, outcome=Outcome.ORPHANED)
SO_FAR_COST = 100 * 1_000 + 20 * 10_000


@pytest.fixture
def till(world: World) -> Till:
    return make_till(world)


def impatient(till: Till) -> Till:
    """Leases that end at once."""
    till.charging = till.with_settings(Reserve(output_tokens_default=1, lease_s=0, checkpoint_s=0, keep_s=3600))
    return till


async def test_a_dead_owners_hold_ends_with_its_checkpoint_marked_as_estimated(till: Till) -> None:
    """F6, C1: what was delivered until the last checkpoint is charged; the rest of the hold comes back."""
    wallet_id = await till.world.wallet(FUNDS)
    hold = await impatient(till).reserve(till.grant(wallet_id, None), call(stream=True))
    assert await till.charging.checkpoint(hold, SO_FAR)
    assert await till.reaper().run_once() == 1
    assert await till.reaper().run_once() == 0
    state = await till.world.state(wallet_id)
    assert (state.funds_available, state.funds_held) == (FUNDS - SO_FAR_COST, 0)
    row = await till.row()
    assert (row["outcome"], row["provenance"], row["charge_nanos"], row["status"]) == (
        "orphaned",
        "estimated",
        SO_FAR_COST,
        "error",
    )
    await till.world.clean_audit()


async def test_a_dead_owner_that_delivered_nothing_costs_nothing_and_leaves_a_row(till: Till) -> None:
    """F1, 1: the hold returns whole."""
    wallet_id = await till.world.wallet(FUNDS)
    await impatient(till).reserve(till.grant(wallet_id, await till.fixed()))
    assert await till.reaper().run_once() == 1
    assert (await till.world.state(wallet_id)).funds_available == FUNDS
    row = await till.row()
    assert (row["outcome"], row["provenance"], row["charge_nanos"], row["billed"]) == ("orphaned", "none", 0, False)
    await till.world.clean_audit()


async def test_a_living_hold_is_not_reaped(till: Till) -> None:
    """I9, K3: a lease that is renewed is not due; also when the owner renews it between the look and the settle."""
    wallet_id = await till.world.wallet(FUNDS)
    hold = await till.reserve(till.grant(wallet_id, None))
    assert await till.reaper().run_once() == 0
    due = impatient(till)
    late = await due.reserve(till.grant(wallet_id, None))
    found = await till.world.outbox.due_holds(partition_of(wallet_id), await till.world.outbox.now_ms(), 10)
    assert [entry.request_id for entry in found] == [late.request_id]
    await till.with_settings(RESERVE).checkpoint(late, SO_FAR)
    assert await till.reaper()._end(found[0]) == 0
    for open_hold in (hold, late):
        assert (await till.charging.settle(open_hold, done())).charge_nanos > 0


async def test_reaper_and_late_owner_end_a_hold_once_between_them(till: Till) -> None:
    """I7, 21, 26: whoever comes second changes nothing, in either order and at once."""
    wallet_id = await till.world.wallet(FUNDS)
    impatient(till)
    grant = till.grant(wallet_id, None)
    reaped = await till.reserve(grant)
    await till.charging.checkpoint(reaped, SO_FAR)
    assert await till.reaper().run_once() == 1
    ended = await till.charging.settle(reaped, done())
    assert ended == Settled(SO_FAR_COST, repeated=True)
    settled = await till.reserve(grant)
    await till.charging.checkpoint(settled, SO_FAR)
    found = await till.world.outbox.due_holds(partition_of(wallet_id), await till.world.outbox.now_ms(), 10)
    own = (await till.charging.settle(settled, done())).charge_nanos
    assert await till.reaper()._end(found[0]) == 0
    racing = await till.reserve(grant)
    await till.charging.checkpoint(racing, SO_FAR)
    replies = await asyncio.gather(till.charging.settle(racing, done()), till.reaper().run_once())
    third = replies[0].charge_nanos
    assert third in (SO_FAR_COST, own)
    state = await till.world.state(wallet_id)
    assert (state.funds_available, state.funds_held) == (FUNDS - SO_FAR_COST - own - third, 0)
    await till.world.flush()
    assert len(await till.world.fetch("SELECT * FROM request")) == 3
    await till.world.clean_audit()


async def test_a_checkpoint_priced_for_another_tier_position_is_priced_again(till: Till) -> None:
    """I28, I30: other calls moved the counter since the checkpoint; the reaper charges what holds now."""
    wallet_id = await till.world.wallet(FUNDS)
    meter = await till.fixed((0, 8 * USD), (150, 2 * USD))
    grant = till.grant(wallet_id, meter)
    orphan = await impatient(till).reserve(grant, call(stream=True))
    await till.charging.checkpoint(orphan, SO_FAR)
    await till.charging.settle(await till.reserve(grant), done(50, 50))
    assert await till.reaper().run_once() == 1
    await till.world.flush()
    row = (await till.world.fetch("SELECT * FROM request WHERE request_id = $1", orphan.request_id))[0]
    assert (row["position"], row["tier_units"], row["charge_nanos"]) == (100, 120, 50 * 8_000 + 70 * 2_000)
    assert sum(line[3] for line in row["breakdown"]["charge"]) == row["charge_nanos"]
    await till.world.clean_audit()


async def test_a_checkpoint_of_a_model_that_only_the_request_could_price_is_priced_again(till: Till) -> None:
    """I28: by the same model's price; no error stops the reaper."""
    wallet_id = await till.world.wallet(FUNDS)
    grant = till.grant(wallet_id, await till.percentage())
    orphan = await impatient(till).reserve(grant, call(stream=True))
    await till.charging.checkpoint(orphan, replace(SO_FAR, reading=replace(SO_FAR.reading, model="m-dated")))
    await till.charging.settle(await till.reserve(grant), done())
    assert await till.reaper().run_once() == 1
    await till.world.flush()
    row = (await till.world.fetch("SELECT * FROM request WHERE request_id = $1", orphan.request_id))[0]
    assert (row["charge_nanos"], row["model"]) == (SO_FAR_COST * 12 // 10, "m-dated")


async def test_a_hold_that_cannot_be_ended_does_not_keep_the_others_open(till: Till) -> None:
    """22, 25: a spoiled record is logged; the rest of the queue is ended."""
    wallet_id = await till.world.wallet(FUNDS)
    impatient(till)
    holds = [await till.reserve(till.grant(wallet_id, None)) for _ in range(3)]
    key = f"{tag(partition_of(wallet_id))}:h:{holds[0].request_id}"
    record = await till.world.redis.get(key)
    await till.world.redis.set(key, record.rpartition(b"|")[0] + b"|not json")
    assert await till.reaper().run_once() == 2


async def test_hundreds_of_holds_of_one_wallet_are_ended_within_a_few_rounds(till: Till) -> None:
    """22, I9: many orphans of one owner, no error and nothing held afterwards."""
    wallet_id = await till.world.wallet(FUNDS)
    await asyncio.gather(*(till.world.reserve(wallet_id, 5, lease_ms=0) for _ in range(700)))
    reaper = till.reaper()
    assert [await reaper.run_once() for _ in range(3)] == [500, 200, 0]
    state = await till.world.state(wallet_id)
    assert (state.funds_available, state.funds_held) == (FUNDS, 0)
    await till.world.clean_audit()


async def test_a_killed_gateway_leaves_holds_that_the_reaper_ends(till: Till) -> None:
    """F6, I5: its connection is gone mid-call; after one round nothing is held."""
    wallet_id = await till.world.wallet(FUNDS)
    gateway = HotRedis(till.world.redis_url)
    await gateway.start()
    assert await gateway.wait_ready(5)
    charging = till.with_settings(
        Reserve(output_tokens_default=1, lease_s=0, checkpoint_s=0, keep_s=3600), type(till.world.balances)(gateway)
    )
    for _ in range(8):
        await charging.reserve(
            new_id("req"), till.grant(wallet_id, None), PROVIDER, call(), endpoint="/", key_type="managed", metadata=None
        )
    await gateway.stop()
    assert await till.reaper().run_once() == 8
    assert (await till.world.state(wallet_id)).funds_held == 0
    await till.world.flush()
    assert len(await till.world.fetch("SELECT * FROM request WHERE outcome = 'orphaned'")) == 8
    await till.world.clean_audit()
