"""Limits of spend keys and connections in the one reserve script: all or nothing, shared, never leaked."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lava_proxy.domain.errors import InsufficientFunds, LimitExceeded
from lava_proxy.domain.limits import KeyRules, Limits, Scope
from lava_proxy.stores.balance_store import BalanceStore, ScopeUse, partition_of, scope_key, tag
from lava_proxy.stores.hot_redis import HotRedis
from lava_proxy.workers.recovery import rebuild_all
from tests.billing_world import FLUSHER, World
from tests.charging_world import USD, done, till
from tests.charging_world import call as chat_call

AT = datetime(2026, 11, 23, 23, 59, 30, tzinfo=UTC)


def use(limits: Limits, scope_id: str = "spk_1", tokens: int = 0, at: datetime = AT) -> ScopeUse:
    return ScopeUse(scope=Scope(scope_id=scope_id, limits=limits), tokens=tokens, at=at)


async def counters(world: World, wallet_id: str, scope_id: str = "spk_1") -> dict[str, int]:
    """The figures that are not about moments."""
    [found] = await world.outbox.scope_counters([(wallet_id, scope_id)])
    return {name: int(found.get(name, "0")) for name in ("open", "so", "rc", "sp", "tr", "ts")}


async def refused(world: World, wallet_id: str, amount: int, *uses: ScopeUse) -> LimitExceeded:
    with pytest.raises(LimitExceeded) as caught:
        await world.reserve(wallet_id, amount, scopes=uses)
    return caught.value


async def test_all_limits_are_checked_before_any_is_counted(world: World) -> None:
    """K9, K10: a refusal by one limit of one scope, or by the balance, changes no counter of any."""
    wallet_id = await world.wallet(100)
    wide = use(Limits(requests_per_minute=1000, tokens_per_minute=10_000, concurrent_calls=50, spend_nanos=90), "con_1", tokens=10)
    narrow = use(Limits(request_count=2), "spk_1")
    for _ in range(2):
        await world.reserve(wallet_id, 1, scopes=(wide, narrow))
    keys = [scope_key(wallet_id, "con_1"), scope_key(wallet_id, "spk_1"), f"{tag(partition_of(wallet_id))}:w:{wallet_id}"]
    before = [await world.redis.dump(key) for key in keys]
    assert (await refused(world, wallet_id, 1, wide, narrow)).code == "request_limit_exceeded"
    with pytest.raises(InsufficientFunds):
        await world.reserve(wallet_id, 1_000, scopes=(wide,))
    for limits in (
        Limits(requests_per_minute=1, request_burst=1, tokens_per_minute=1),
        Limits(concurrent_calls=2),
        Limits(spend_nanos=2),
    ):
        await refused(world, wallet_id, 1, use(limits, "con_1", tokens=2))
    assert [await world.redis.dump(key) for key in keys] == before


@pytest.mark.parametrize(
    ("limits", "code", "status", "limit"),
    [
        (Limits(requests_per_minute=2), "rate_limit_exceeded", 429, 2),
        (Limits(requests_per_minute=600, request_burst=2), "rate_limit_exceeded", 429, 600),
        (Limits(concurrent_calls=2), "concurrency_limit_exceeded", 429, 2),
        (Limits(request_count=2, request_cycle="daily"), "request_limit_exceeded", 429, 2),
        (Limits(tokens_per_minute=25), "token_limit_exceeded", 429, 25),
        (Limits(spend_nanos=25, spend_cycle="daily"), "spend_limit_exceeded", 402, 25),
    ],
)
async def test_each_limit_refuses_what_is_one_too_many(world: World, limits: Limits, code: str, status: int, limit: int) -> None:
    """9, E9: the third call of ten tokens and ten nanos; each refusal has its code, status and figures."""
    wallet_id = await world.wallet(1_000)
    for _ in range(2):
        await world.reserve(wallet_id, 10, scopes=(use(limits, tokens=10),))
    error = await refused(world, wallet_id, 10, use(limits, tokens=10))
    assert (error.code, error.status, error.limit) == (code, status, limit)
    assert error.retry_after_s is not None and error.retry_after_s >= 1
    if "count" in code or code in ("request_limit_exceeded", "spend_limit_exceeded"):
        assert (error.retry_after_s, error.reset_s) == (30, int(datetime(2026, 11, 24, tzinfo=UTC).timestamp()))


async def test_a_call_that_can_never_fit_is_told_so(world: World) -> None:
    wallet_id = await world.wallet(1_000)
    error = await refused(world, wallet_id, 1, use(Limits(tokens_per_minute=5), tokens=6))
    assert error.retry_after_s is None and "this call can use 6" in error.message
    total = use(Limits(request_count=1, request_cycle="total"))
    await world.reserve(wallet_id, 1, scopes=(total,))
    error = await refused(world, wallet_id, 1, total)
    assert (error.retry_after_s, error.reset_s) == (None, None)


async def test_a_bucket_fills_with_time_and_no_further_than_its_burst(world: World) -> None:
    """60 a minute with a burst of 2: a second gives one, an hour gives two."""
    wallet_id = await world.wallet(1_000)
    limited = use(Limits(requests_per_minute=60, request_burst=2))
    key = scope_key(wallet_id, "spk_1")
    for earlier_ms, admitted in ((0, 2), (1_000, 1), (3_600_000, 2)):
        await world.redis.hincrby(key, "ra", -earlier_ms)  # as if the last call were so much longer ago
        if earlier_ms:
            await world.redis.hset(key, "rt", "0")
        for _ in range(admitted):
            await world.reserve(wallet_id, 1, scopes=(limited,))
        await refused(world, wallet_id, 1, limited)


async def test_a_slot_and_a_ceiling_are_freed_by_the_settle_and_only_the_charge_stays(world: World) -> None:
    """K8: counters follow the hold; a repeated settle frees nothing twice."""
    wallet_id = await world.wallet(1_000)
    limited = use(Limits(concurrent_calls=1, spend_nanos=100, spend_cycle="daily"))
    request_id = await world.reserve(wallet_id, 90, scopes=(limited,))
    assert (await refused(world, wallet_id, 1, limited)).code == "concurrency_limit_exceeded"
    for _ in range(2):
        await world.settle(wallet_id, request_id, 30)
    assert await counters(world, wallet_id) == {"open": 0, "so": 0, "rc": 1, "sp": 30, "tr": 1, "ts": 30}
    error = await refused(world, wallet_id, 71, limited)
    assert (error.code, error.remaining) == ("spend_limit_exceeded", 70)
    await world.reserve(wallet_id, 70, scopes=(limited,))
    assert not await world.redis.exists(f"{tag(partition_of(wallet_id))}:q:{request_id}")


async def test_the_same_reserve_again_counts_once(world: World) -> None:
    """2: a lost reply and its retry."""
    wallet_id = await world.wallet(1_000)
    limited = use(Limits(request_count=1))
    request_id = await world.reserve(wallet_id, 5, scopes=(limited,))
    await world.reserve(wallet_id, 5, request_id, scopes=(limited,))
    assert await counters(world, wallet_id) == {"open": 1, "so": 5, "rc": 1, "sp": 0, "tr": 1, "ts": 0}


async def test_a_dead_process_gives_its_slot_back_through_the_reaper(world: World) -> None:
    """K8: the slot ends with the hold's lease."""
    shop = till(world)
    wallet_id = await world.wallet(1_000)
    limited = use(Limits(concurrent_calls=1))
    await world.reserve(wallet_id, 5, scopes=(limited,), lease_ms=0)
    await refused(world, wallet_id, 5, limited)
    assert await shop.reaper().run_once() == 1
    await world.reserve(wallet_id, 5, scopes=(limited,))


async def test_a_rebuild_forgets_open_slots_and_keeps_what_was_spent(world: World) -> None:
    """K8: holds are dropped by a rebuild, and their slots with them; the late settle frees nothing that is not held."""
    wallet_id = await world.wallet(1_000)
    limited = use(Limits(concurrent_calls=2, spend_nanos=500))
    await world.settle(wallet_id, await world.reserve(wallet_id, 40, scopes=(limited,)), 40)
    request_id = await world.reserve(wallet_id, 100, scopes=(limited,))
    await rebuild_all(world.outbox, world.ledger, FLUSHER)
    second = await world.reserve(wallet_id, 1, scopes=(limited,))
    await world.settle(wallet_id, request_id, 60)
    assert await counters(world, wallet_id) == {"open": 1, "so": 1, "rc": 3, "sp": 40, "tr": 3, "ts": 40}
    assert not await world.redis.exists(f"{tag(partition_of(wallet_id))}:q:{request_id}")
    await world.settle(wallet_id, second, 0)
    await world.clean_audit()


async def test_a_total_loss_of_redis_gives_the_counters_back(world: World) -> None:
    """12: a spend limit is not forgotten with its counters; calls without the key are not counted to it."""
    key = await world.catalog.create_spend_key(world.merchant_id, name="k", rules=KeyRules(), limits=Limits(spend_nanos=100))
    await world.credit(key.wallet_id, 1_000)
    now = datetime.now(UTC)
    limited = use(key.limits, key.spend_key_id, at=now)
    for charge, days_ago, spend_key_id in ((30, 0, key.spend_key_id), (40, 40, key.spend_key_id), (7, 0, None)):
        opened_ms = int((now - timedelta(days=days_ago)).timestamp()) * 1000
        changes = {"priced_at_ms": opened_ms, **({"spend_key_id": spend_key_id} if spend_key_id else {})}
        await world.settle(key.wallet_id, await world.reserve(key.wallet_id, 50), charge, changes=changes)
    await world.flush()
    await world.redis.flushall()
    await world.recover()
    assert await world.hot.wait_ready(10)
    assert await counters(world, key.wallet_id, key.spend_key_id) == {"open": 0, "so": 0, "rc": 1, "sp": 30, "tr": 2, "ts": 70}
    assert (await refused(world, key.wallet_id, 71, limited)).remaining == 70
    await world.settle(key.wallet_id, await world.reserve(key.wallet_id, 70, scopes=(limited,)), 70)
    assert (await counters(world, key.wallet_id, key.spend_key_id))["sp"] == 100


async def test_a_new_cycle_starts_at_nothing_and_a_call_belongs_to_the_cycle_it_began_in(world: World) -> None:
    """Midnight UTC between a reserve and its settle."""
    wallet_id = await world.wallet(1_000)
    limits = Limits(spend_nanos=100, spend_cycle="daily", request_count=2, request_cycle="daily")
    before, after = use(limits), use(limits, at=AT + timedelta(minutes=1))
    await world.settle(wallet_id, await world.reserve(wallet_id, 60, scopes=(before,)), 60)
    late = await world.reserve(wallet_id, 30, scopes=(before,))
    assert (await refused(world, wallet_id, 1, before)).code == "request_limit_exceeded"
    await world.reserve(wallet_id, 50, scopes=(after,))
    await world.settle(wallet_id, late, 30)
    assert await counters(world, wallet_id) == {"open": 1, "so": 50, "rc": 1, "sp": 0, "tr": 3, "ts": 90}


async def test_unused_tokens_go_back_when_the_call_has_ended(world: World) -> None:
    wallet_id = await world.wallet(1_000)
    limited = use(Limits(tokens_per_minute=1_000), tokens=900)
    request_id = await world.reserve(wallet_id, 1, scopes=(limited,))
    await refused(world, wallet_id, 1, limited)
    await world.settle(wallet_id, request_id, 1, tokens=50)
    await world.reserve(wallet_id, 1, scopes=(limited,))


async def test_a_hold_that_grows_stays_within_the_spend_limit(world: World) -> None:
    """E5: what a stream's hold is extended by counts too; beyond the limit nothing changes."""
    wallet_id = await world.wallet(1_000)
    limited = use(Limits(spend_nanos=100))
    request_id = await world.reserve(wallet_id, 40, scopes=(limited,), plan_linked=True)
    assert await world.balances.extend(wallet_id, request_id, 90) == (0, 90)
    assert (await counters(world, wallet_id))["so"] == 90
    with pytest.raises(InsufficientFunds):
        await world.balances.extend(wallet_id, request_id, 101)
    assert (await counters(world, wallet_id))["so"] == 90
    await world.settle(wallet_id, request_id, 95)
    assert await counters(world, wallet_id) == {"open": 0, "so": 0, "rc": 1, "sp": 95, "tr": 1, "ts": 95}
    await world.clean_audit()


async def test_two_gateways_share_one_limit(world: World) -> None:
    """10, K9, I16: many at once through two connections; exactly as many as the narrowest limit admits."""
    wallet_id = await world.wallet(10_000)
    other_hot = HotRedis(world.redis_url)
    await other_hot.start()
    assert await other_hot.wait_ready(5)
    stores = (world.balances, BalanceStore(other_hot))
    limited = use(Limits(concurrent_calls=37, requests_per_minute=60, spend_nanos=5_000))
    try:
        found: list[Any] = await asyncio.gather(
            *(
                stores[n % 2].reserve(wallet_id, f"req_{n}", 10, row=world.row(wallet_id), lease_ms=60_000, scopes=(limited,))
                for n in range(200)
            ),
            return_exceptions=True,
        )
    finally:
        await other_hot.stop()
    assert sum(not isinstance(one, BaseException) for one in found) == 37
    assert {type(one) for one in found if isinstance(one, BaseException)} == {LimitExceeded}


async def test_random_histories_leave_counters_that_are_the_sums_of_their_calls(world: World) -> None:
    """I1, I5, K8: whatever the order of reserves, refusals, settles and repeats."""
    rng = random.Random(7)
    wallet_id = await world.wallet(2_000)
    limits = Limits(concurrent_calls=6, request_count=150, spend_nanos=1_500)
    open_calls: dict[str, int] = {}
    spent = calls = 0
    for _ in range(400):
        if open_calls and rng.random() < 0.5:
            request_id = rng.choice(sorted(open_calls))
            charge = rng.randint(0, open_calls.pop(request_id) + 2)
            await world.settle(wallet_id, request_id, charge)
            spent += charge
            if rng.random() < 0.2:
                await world.settle(wallet_id, request_id, charge)
        else:
            amount = rng.randint(0, 30)
            fits = len(open_calls) < 6 and calls < 150 and spent + sum(open_calls.values()) + amount <= 1_500
            try:
                request_id = await world.reserve(wallet_id, amount, scopes=(use(limits),))
            except LimitExceeded:
                assert not fits
                continue
            assert fits
            open_calls[request_id] = amount
            calls += 1
        assert await counters(world, wallet_id) == {
            "open": len(open_calls), "so": sum(open_calls.values()), "rc": calls, "sp": spent, "tr": calls, "ts": spent,
        }  # fmt: skip
    await world.clean_audit()


async def test_charging_counts_the_ceiling_first_and_the_charge_in_the_end(world: World) -> None:
    """4: a spend limit of what one call can cost admits many calls that cost less, one after the other."""
    shop = till(world)
    wallet_id = await world.wallet(100 * USD)
    scope = Scope(scope_id="spk_1", limits=Limits(spend_nanos=12_000_000, tokens_per_minute=1_600))
    grant = shop.grant(wallet_id, None, scopes=(scope,))
    for _ in range(3):
        hold = await shop.reserve(grant, chat_call())
        with pytest.raises(LimitExceeded):
            await shop.reserve(grant, chat_call())
        await shop.charging.settle(hold, done(100, 50))
    found = await counters(world, wallet_id)
    assert (found["open"], found["so"], found["tr"], found["ts"]) == (0, 0, 3, 3 * (100 * 1_000 + 50 * 10_000))
