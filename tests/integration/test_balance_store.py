"""stores/balance_store.py: what the typed calls answer and raise, limits, burn order, keys."""

from __future__ import annotations

import asyncio
import itertools
import random
from datetime import UTC, datetime
from typing import Any

import pytest

from lava_proxy.domain.errors import CallerError, Conflict, InsufficientFunds, NotFound, StoreError
from lava_proxy.domain.money import AMOUNT_NANOS_MAX
from lava_proxy.stores.balance_store import (
    POSITION_MAX,
    Held,
    Moved,
    NotCovered,
    Report,
    ReportConflict,
    Reported,
    Settled,
    lot_key,
    partition_of,
    report_record,
    tag,
)
from lava_proxy.stores.ids import new_id
from tests.billing_world import KEEP_MS, World


async def test_a_refused_reserve_says_what_can_be_spent_and_what_is_held(world: World) -> None:
    """4, 24: open holds count; the sentence has the figures."""
    wallet_id = await world.wallet(100)
    await world.reserve(wallet_id, 60)
    with pytest.raises(NotCovered) as refused:
        await world.reserve(wallet_id, 41)
    assert refused.value.held_nanos == 60 and "$0.000000040 can be spent" in refused.value.message
    assert refused.value.status == 402
    await world.reserve(wallet_id, 40)


async def test_a_balance_read_counts_nothing_twice_and_settles_release_exactly_the_hold(world: World) -> None:
    """7, 20, 23: before, during and after; the hold's unit is the settle's unit."""
    wallet_id = await world.wallet(100, plan_nanos=30)
    request_id = await world.reserve(wallet_id, 50, plan_linked=True)
    state = await world.state(wallet_id)
    assert (state.plan_held, state.funds_held, state.plan_available, state.funds_available) == (30, 20, 0, 80)
    await world.settle(wallet_id, request_id, 35)
    state = await world.state(wallet_id)
    assert (state.plan_held, state.funds_held, state.plan_available, state.funds_available) == (0, 0, 0, 95)


async def test_plan_credit_is_drawn_only_by_a_linked_meter_and_never_overdrawn(world: World) -> None:
    """I14: per pot."""
    wallet_id = await world.wallet(10, plan_nanos=50)
    with pytest.raises(InsufficientFunds):
        await world.reserve(wallet_id, 11)
    request_id = await world.reserve(wallet_id, 60, plan_linked=True)
    ended = await world.settle(wallet_id, request_id, 70)
    assert (ended.balance_nanos, ended.flags) == (-10, "ob")
    state = await world.state(wallet_id)
    assert (state.plan_available, state.funds_available, state.debt, state.lots) == (0, -10, 10, {})
    await world.clean_audit()


async def test_lots_burn_by_priority_then_expiry_then_age_then_id_whatever_the_order_of_arrival(world: World) -> None:
    """I18, 110: a total order."""
    specs = [(100, 0, 5), (500, 1_700, 9), (500, 1_800, 1), (500, 0, 1), (500, 0, 2)]
    keys = [
        lot_key("funds", f"crd_{n}", created, priority=priority, expires_s=expires)
        for n, (priority, expires, created) in enumerate(specs)
    ]
    assert keys == sorted(keys)
    rng = random.Random(1)
    for _ in range(3):
        wallet_id = await world.wallet()
        for key in rng.sample(keys, len(keys)):
            row = world.row(wallet_id, lot_key=key)
            await world.balances.credit(wallet_id, new_id("crd"), 10, lot_key=key, row=row, keep_ms=KEEP_MS)
        for burnt, expected in ((15, {1: 5, 2: 10, 3: 10, 4: 10}), (16, {3: 9, 4: 10}), (18, {4: 1})):
            await world.call(wallet_id, burnt)
            assert (await world.state(wallet_id)).lots == {keys[n]: left for n, left in expected.items()}
    await world.clean_audit()


async def test_a_charge_priced_for_another_position_comes_back_with_the_counter(world: World) -> None:
    """52: nothing is charged; the second try fits."""
    wallet_id = await world.wallet(100)
    request_id = await world.reserve(wallet_id, 10, tier_field="t:m:c")
    await world.call(wallet_id, 1, units=7, tier_field="t:m:c")
    row = world.row(wallet_id)
    options = {"row": row, "keep_ms": KEEP_MS, "units": 3, "tier_field": "t:m:c"}
    assert await world.balances.settle(wallet_id, request_id, 5, position_hi=6, **options) == Moved(7)  # type: ignore[arg-type]
    found = await world.balances.settle(wallet_id, request_id, 5, position_lo=7, **options)  # type: ignore[arg-type]
    assert isinstance(found, Settled) and found.position == 7
    assert (await world.state(wallet_id)).counters == {"t:m:c": 10}


def report(wallet_id: str, merchant: str, key: str, charge: int, **changes: Any) -> Report:
    parts: dict[str, Any] = {
        "wallet_id": wallet_id, "request_id": new_id("req"), "record": report_record(merchant, key), "fingerprint": "f",
        "charge_nanos": charge, "units": 0, "tier_field": "", "position_lo": 0, "position_hi": POSITION_MAX, "row": b"{}",
        "at": datetime(2026, 11, 23, tzinfo=UTC), **changes,
    }  # fmt: skip
    return Report(**parts)


async def test_a_report_that_is_refused_does_not_hurt_those_of_its_wallet_beside_it(world: World) -> None:
    """I12, I10, 45: too large, priced for another position, said twice at once, said otherwise: each is answered for itself."""
    wallet_id, other = await world.wallet(100), await world.wallet(100)
    tiered = {"tier_field": "t:m:c", "units": 3}
    first = report(wallet_id, "mer_1", "a", 5, **tiered)
    found = await world.balances.report(
        [
            first,
            report(wallet_id, "mer_1", "huge", 9_000_000_000_000_001, **tiered),
            report(wallet_id, "mer_1", "a", 5, **tiered),
            report(wallet_id, "mer_1", "a", 6, fingerprint="g", **tiered),
            report(wallet_id, "mer_1", "late", 5, position_hi=2, **tiered),
            report(wallet_id, "mer_1", "full", 5, tier_field="t:m:c", units=POSITION_MAX - 2),
            report("wal_unknown", "mer_1", "unknown", 5),
            report(wallet_id, "mer_1", "b", 7, position_lo=3, **tiered),
            report(other, "mer_1", "a", 5),
            report(wallet_id, "mer_1", "deep", 8_999_999_999_999_999, **tiered),
            report(wallet_id, "mer_1", "deeper", 8_999_999_999_999_999, **tiered),
        ],
        KEEP_MS,
    )
    kinds = [type(answer).__name__ for answer in found]
    assert kinds == [
        "Reported", "CallerError", "Reported", "ReportConflict", "Moved", "CallerError", "NotFound", "Reported", "Reported",
        "Reported", "CallerError",
    ]  # fmt: skip
    told = [(one.request_id == first.request_id, one.fresh, one.position) for one in found if isinstance(one, Reported)]
    assert told == [(True, True, 0), (True, False, 0), (False, True, 3), (True, False, 0), (False, True, 6)]
    state = await world.state(wallet_id)
    assert (state.balance_nanos, state.counters) == (100 - 12 - 8_999_999_999_999_999, {"t:m:c": 9})
    assert (await world.state(other)).balance_nanos == 100
    waiting = await world.outbox.read(await world.ledger.marks(), 100, None)
    settles = [(e.wseq, e.amount_nanos, e.balance_nanos, e.position, e.flags) for e in waiting if e.kind == "s"]
    assert settles == [
        (2, -5, 95, 0, ""), (3, -7, 88, 3, ""), (4, -8_999_999_999_999_999, 88 - 8_999_999_999_999_999, 6, "b"),
    ]  # fmt: skip


async def test_a_wallet_that_cannot_be_read_does_not_hurt_the_reports_of_others_sent_with_its_own(world: World) -> None:
    """I12: each wallet's reports fail for themselves, wherever in the script call they stand."""
    broken, whole = await world.wallet(100), await world.wallet(100)
    key = f"{tag(partition_of(broken))}:w:{broken}"
    kept = await world.redis.hgetall(key)
    await world.redis.delete(key)
    await world.redis.set(key, "no hash")
    said = [report(wallet, "mer_1", f"{n}-{wallet}", 5) for n in range(3) for wallet in (broken, whole)]
    found = await asyncio.gather(world.balances.report(said, KEEP_MS), world.balances.report(said[:2], KEEP_MS))
    assert [type(answer).__name__ for answers in found for answer in answers] == ["Ambiguous", "Reported"] * 4
    assert (await world.state(whole)).balance_nanos == 85
    await world.redis.delete(key)
    await world.redis.hset(key, mapping=kept)
    again = await world.balances.report(said, KEEP_MS)
    assert [answer.fresh for answer in again if isinstance(answer, Reported)] == [True] * 6
    assert (await world.state(broken)).balance_nanos == 85


async def test_the_same_key_of_two_merchants_is_two_reports(world: World) -> None:
    """45, 51: scoped by merchant; any string; bounded in size."""
    keys = {report_record(merchant, key) for merchant, key in itertools.product(("mer_1", "mer_2"), ("a", "a\0b", "x" * 255, "é"))}
    assert len(keys) == 8 and {len(key) for key in keys} == {32}
    wallet_id = await world.wallet(100)
    first = [report(wallet_id, merchant, "order-1", 5) for merchant in ("mer_1", "mer_2")]
    assert [type(answer) for answer in await world.balances.report(first, KEEP_MS)] == [Reported] * 2
    (again,) = await world.balances.report([report(wallet_id, "mer_1", "order-1", 5)], KEEP_MS)
    assert isinstance(again, Reported) and (again.request_id, again.fresh) == (first[0].request_id, False)
    (other,) = await world.balances.report([report(wallet_id, "mer_1", "order-1", 6, fingerprint="g")], KEEP_MS)
    assert isinstance(other, ReportConflict)
    assert (await world.state(wallet_id)).balance_nanos == 90


async def test_a_duplicate_does_not_prolong_what_redis_remembers(world: World) -> None:
    """34: the window counts from the first."""
    wallet_id = await world.wallet(100)
    request_id = await world.call(wallet_id, 1)
    key = f"{tag(partition_of(wallet_id))}:h:{request_id}"
    await world.redis.pexpire(key, 5_000)
    await world.settle(wallet_id, request_id, 1)
    assert 0 < await world.redis.pttl(key) <= 5_000


async def test_refusals_are_typed(world: World) -> None:
    """46: each with its status; a recovering partition is 503, an unknown wallet 404, never zero."""
    wallet_id = await world.wallet(100)
    request_id = await world.reserve(wallet_id, 1, fingerprint="a")
    with pytest.raises(Conflict):
        await world.reserve(wallet_id, 1, request_id, fingerprint="b")
    with pytest.raises(NotFound) as missing:
        await world.settle(wallet_id, new_id("req"), 1, mode="held")
    assert missing.value.status == 404
    with pytest.raises(Conflict) as early:
        await world.settle(wallet_id, request_id, 1, mode="due")
    assert early.value.code == "lease_not_ended"
    with pytest.raises(InsufficientFunds):
        await world.reserve(wallet_id, 9_000_000 * 10**9 + 1)
    with pytest.raises(CallerError):
        await world.credit(wallet_id, 9_000_000 * 10**9)
    await world.outbox.set_recovering([partition_of(wallet_id)])
    with pytest.raises(StoreError) as recovering:
        await world.reserve(wallet_id, 1)
    assert (recovering.value.status, recovering.value.code) == (503, "recovering")
    assert await world.outbox.wallet_states([wallet_id]) == {wallet_id: None}


async def test_opening_a_wallet_again_does_not_empty_it(world: World) -> None:
    """3: opened once, however many ask."""
    wallet_id = await world.wallet(100)
    await asyncio.gather(*(world.balances.open_wallet(wallet_id) for _ in range(5)))
    assert (await world.state(wallet_id)).balance_nanos == 100


async def test_a_reserve_of_nothing_is_a_hold_all_the_same(world: World) -> None:
    """Calls that cost nothing are remembered too, also on an empty wallet."""
    wallet_id = await world.wallet()
    request_id = new_id("req")
    assert await world.balances.reserve(wallet_id, request_id, 0, row=world.row(wallet_id), lease_ms=5) == Held(0, 0, 0)
    assert (await world.settle(wallet_id, request_id, 0)).wseq == 1
    await world.clean_audit()


async def test_sums_stay_exact_at_the_very_bounds(world: World) -> None:
    """I1, I17: below a deep debt, and with holds on a long line, no pot grows beyond what a double counts exactly."""
    most = AMOUNT_NANOS_MAX
    owing = await world.wallet()
    await world.settle(owing, new_id("req"), most - 1, mode="late")
    await world.credit(owing, most - 1, pot="p")
    lot = lot_key("plan", "crd_x", 1)
    row = world.row(owing)
    for refused in (
        world.credit(owing, most - 2, pot="p"),
        world.balances.adjust(owing, "adj_1", most - 2, lot_key=lot, row=row, keep_ms=KEEP_MS),
        world.balances.renew(
            owing, "ren_1", ends=frozenset(), lot_key=lot_key("plan", "ren_1", 1, priority=400), grant_nanos=most - 2, row=row,
            keep_ms=KEEP_MS, months_before="", drop_cycles=(),
        ),
    ):  # fmt: skip
        with pytest.raises(CallerError):
            await refused
    state = await world.state(owing)
    assert (state.plan_available, state.funds_available, state.debt) == (most - 1, 1 - most, most - 1)
    assert sum(state.lots.values()) == most - 1 and state.balance_nanos == state.credited - state.settled == 0

    funds = 20_000_000_000_003
    deep = await world.wallet(funds)
    request_id = await world.reserve(deep, most - 1, overdraft_nanos=most)
    with pytest.raises(NotCovered) as short:
        await world.reserve(deep, funds, overdraft_nanos=most)
    assert short.value.spendable_nanos == 1
    await world.reserve(deep, 1, overdraft_nanos=most)
    with pytest.raises(NotCovered):
        await world.balances.extend(deep, request_id, most)
    assert (await world.state(deep)).funds_held == most
    await world.settle(deep, request_id, most - 1)
    state = await world.state(deep)
    assert state.balance_nanos == funds - most + 1 == state.credited - state.settled
    await world.flush()
    await world.clean_audit()
