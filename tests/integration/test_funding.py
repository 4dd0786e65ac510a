"""billing/funding.py and workers/credit_applier.py: money in, exactly once a credit."""

from __future__ import annotations

import asyncio

import pytest

from lava_proxy.domain.errors import CallerError, StoreError
from lava_proxy.stores.ids import new_id
from lava_proxy.workers.credit_applier import CreditApplier
from tests.billing_world import World


async def test_the_same_credit_many_times_is_one_credit(world: World) -> None:
    """I25, 38, L4: in sequence, at once, and by the applier."""
    wallet_id, credit_id = await world.wallet(), new_id("crd")
    await asyncio.gather(*(world.funding.fund(world.merchant_id, wallet_id, 500, "top-up", credit_id) for _ in range(5)))
    assert await world.funding.fund(world.merchant_id, wallet_id, 500, "top-up", credit_id) == credit_id
    assert await CreditApplier(world.catalog, world.funding).run_once() == 0
    assert (await world.state(wallet_id)).balance_nanos == 500
    await world.flush()
    await world.clean_audit()


async def test_a_credit_written_before_a_crash_is_applied_afterwards(world: World) -> None:
    """I13, 27, 116: Postgres first; what never reached Redis arrives by the applier, once."""
    wallet_id = await world.wallet()
    await world.outbox.set_recovering(range(64))
    with pytest.raises(StoreError):
        await world.funding.fund(world.merchant_id, wallet_id, 700, "top-up")
    assert (await world.state(wallet_id)).balance_nanos == 0
    for part in range(64):
        await world.outbox.set_state(part, "ready")
    applier = CreditApplier(world.catalog, world.funding)
    assert [await applier.run_once() for _ in range(2)] == [1, 0]
    assert (await world.state(wallet_id)).balance_nanos == 700
    await world.flush()
    assert await applier.run_once() == 0
    await world.clean_audit()


async def test_a_credit_that_redis_lost_before_it_was_flushed_comes_back(world: World) -> None:
    """I27: a total loss cannot lose a top-up."""
    wallet_id = await world.wallet()
    await world.funding.fund(world.merchant_id, wallet_id, 700, "top-up")
    await world.redis.flushall()
    await world.recover()
    assert (await world.state(wallet_id)).balance_nanos == 0
    assert await CreditApplier(world.catalog, world.funding).run_once() == 1
    assert (await world.state(wallet_id)).balance_nanos == 700
    await world.flush()
    await world.clean_audit()


async def test_a_flushed_credit_is_not_applied_again_after_a_loss(world: World) -> None:
    """I25: though Redis has forgotten its id."""
    wallet_id, credit_id = await world.wallet(), new_id("crd")
    await world.funding.fund_once(world.merchant_id, wallet_id, 700, "seed", credit_id)
    await world.flush()
    await world.redis.flushall()
    await world.recover()
    await world.funding.fund_once(world.merchant_id, wallet_id, 700, "seed", credit_id)
    await CreditApplier(world.catalog, world.funding).run_once()
    assert (await world.state(wallet_id)).balance_nanos == 700


@pytest.mark.parametrize("amount", [0, -1, 9_000_000 * 10**9 + 1])
async def test_amounts_out_of_bounds_are_refused_before_anything_is_written(world: World, amount: int) -> None:
    """113: neither row nor credit."""
    wallet_id = await world.wallet()
    with pytest.raises(CallerError):
        await world.funding.fund(world.merchant_id, wallet_id, amount, "top-up")
    assert await world.catalog.open_credits(10) == []


async def test_a_credit_pays_the_debt_first(world: World) -> None:
    """I17, 109: what is owed goes off the new credit to the nano; the rest becomes a lot."""
    wallet_id = await world.wallet(10)
    await world.call(wallet_id, 25, hold=10)
    assert (await world.state(wallet_id)).debt == 15
    await world.funding.fund(world.merchant_id, wallet_id, 15, "top-up")
    state = await world.state(wallet_id)
    assert (state.balance_nanos, state.debt, state.lots) == (0, 0, {})
    await world.funding.fund(world.merchant_id, wallet_id, 4, "top-up")
    assert list((await world.state(wallet_id)).lots.values()) == [4]
    await world.flush()
    await world.clean_audit()
