"""billing/charging.py on real stores: what is refused before, what is charged after, and that a hold ends once whatever happens."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from lava_proxy import tasks, telemetry
from lava_proxy.domain.errors import CallerError, InsufficientFunds, StoreError
from lava_proxy.domain.usage import Outcome, Usage, token_usage
from lava_proxy.providers.base import Provider
from lava_proxy.settings import Reserve
from lava_proxy.stores.balance_store import BalanceStore, Held, Settled
from lava_proxy.stores.hot_redis import Ambiguous, NotSent
from lava_proxy.stores.ids import new_id
from tests.billing_world import RESERVE, World
from tests.charging_world import PROVIDER, USD, Till, call, done
from tests.charging_world import till as make_till

FUNDS = 10 * USD
COST = 100 * 1_000 + 50 * 10_000  # of done()


@pytest.fixture
def till(world: World) -> Till:
    return make_till(world)


def count(till: Till, counter: Any) -> int:
    return sum(amount for (found, _), amount in till.tally._sums.items() if found is counter)


# -- what is charged


@pytest.mark.parametrize("output_tokens", [0, 1, 50, 999])
async def test_streamed_and_unstreamed_calls_with_equal_usage_cost_the_same(till: Till, output_tokens: int) -> None:
    """A1, A2: byte-identical amounts on the ledger, for each kind of meter."""
    wallet_id = await till.world.wallet(FUNDS)
    for meter in (await till.fixed(), await till.percentage(), None):
        grant = till.grant(wallet_id, meter)
        plain = await till.charge(grant, done(100, output_tokens))
        assert plain == await till.charge(grant, done(100, output_tokens), call(stream=True)) > 0
    await till.world.flush()
    rows = await till.world.fetch("SELECT charge_nanos, cost_nanos, breakdown, meter_id, streamed FROM request ORDER BY wseq")
    assert [row["streamed"] for row in rows] == [False, True] * 3
    for plain_row, streamed_row in zip(rows[0::2], rows[1::2], strict=True):
        assert {**plain_row, "streamed": 0} == {**streamed_row, "streamed": 0}
        if plain_row["meter_id"]:
            assert sum(line[3] for line in plain_row["breakdown"]["charge"]) == plain_row["charge_nanos"]
    await till.world.clean_audit()


@pytest.mark.parametrize(
    "ending",
    [
        done(outcome=Outcome.PROVIDER_ERROR, status=500),
        done(outcome=Outcome.PROVIDER_ERROR, status=429, usage=None),
        done(outcome=Outcome.UPSTREAM_BROKEN, status=None, delivered=False, usage=None),
        done(outcome=Outcome.UPSTREAM_TIMEOUT, status=None, delivered=False, usage=None),
        done(outcome=Outcome.CLIENT_GONE, status=None, delivered=False, usage=None),
        done(usage=None, error=True),
    ],
    ids=["500", "429", "refused", "timeout", "client gone before", "error in a 200"],
)
async def test_a_call_that_delivered_nothing_is_free_and_releases_its_hold(till: Till, ending: Any) -> None:
    """D6, D11, A17, A18, 1: also for a per-request meter; the whole hold comes back; there is a row."""
    wallet_id = await till.world.wallet(FUNDS)
    for meter in (await till.fixed((0, 500), tier_type="requests"), await till.percentage(), None):
        assert await till.charge(till.grant(wallet_id, meter), ending) == 0
    state = await till.world.state(wallet_id)
    assert (state.funds_available, state.funds_held) == (FUNDS, 0)
    await till.world.flush()
    rows = await till.world.fetch("SELECT status, billed, charge_nanos FROM request")
    status = "completed" if ending.http_status == 200 or ending.outcome is Outcome.CLIENT_GONE else "error"
    assert [tuple(row.values()) for row in rows] == [(status, False, 0)] * 3
    await till.world.clean_audit()


async def test_an_unpriced_model_is_refused_before_where_the_charge_needs_its_cost(till: Till) -> None:
    """B6, B9: percentage and bare keys; nothing is held, and it is counted."""
    wallet_id = await till.world.wallet(FUNDS)
    for meter in (await till.percentage(), None):
        with pytest.raises(CallerError) as refused:
            await till.reserve(till.grant(wallet_id, meter), call(model="unknown"))
        assert (refused.value.code, refused.value.status) == ("model_not_priced", 400)
    assert (await till.world.state(wallet_id)).funds_available == FUNDS
    assert count(till, telemetry.UNPRICED) == 2


async def test_a_fixed_meter_charges_an_unpriced_model_too(till: Till) -> None:
    """B1: its own rate; the missing cost is counted, not charged."""
    wallet_id = await till.world.wallet(FUNDS)
    assert await till.charge(till.grant(wallet_id, await till.fixed()), done(model="unknown"), call(model="unknown")) == 150 * 2_000
    assert count(till, telemetry.UNPRICED) == 1
    assert (await till.row())["cost_nanos"] == 0


async def test_a_response_that_names_an_unpriced_model_is_priced_as_the_one_asked_for(till: Till) -> None:
    """I28: and the row says so, so that pricing it again gives the same."""
    wallet_id = await till.world.wallet(FUNDS)
    grant = till.grant(wallet_id, await till.percentage())
    assert await till.charge(grant, done(model="m-2026-11-01")) == COST * 12 // 10
    row = await till.row()
    assert (row["model"], row["breakdown"]["model"], row["cost_nanos"]) == ("m-2026-11-01", "m", COST)


async def test_usage_whose_price_is_gone_is_not_charged_but_marked_and_counted(till: Till) -> None:
    """B6: priced when it was held, unpriced when it ended: the row says unpriced, the counter moves, nothing raises."""
    wallet_id = await till.world.wallet(FUNDS)
    hold = await till.reserve(till.grant(wallet_id, await till.percentage()))
    hold.call = call(model="gone")
    assert (await till.charging.settle(hold, done(model="gone"))).charge_nanos == 0
    row = await till.row()
    assert (row["billed"], row["breakdown"], row["usage"]["output_tokens"]) == (False, {"unpriced": True}, 50)
    assert count(till, telemetry.UNPRICED) == 1
    assert (await till.world.state(wallet_id)).funds_held == 0


async def test_with_the_customers_own_provider_key_only_the_share_is_charged(till: Till) -> None:
    """BYOK: percentage alone, fixed as ever, nothing without a meter."""
    wallet_id = await till.world.wallet(FUNDS)
    charge = {}
    for name, meter in (("percentage", await till.percentage()), ("fixed", await till.fixed()), ("none", None)):
        charge[name] = await till.charge(till.grant(wallet_id, meter), done(), key_type="unmanaged")
    assert charge == {"percentage": COST // 5, "fixed": 150 * 2_000, "none": 0}
    # Without a meter no cost is needed, so an unpriced model is no reason to refuse.
    assert await till.charge(till.grant(wallet_id, None), done(model="x"), call(model="x"), key_type="unmanaged") == 0


async def test_without_a_meter_the_wallet_pays_provider_cost(till: Till) -> None:
    """The self token: cost, exactly."""
    wallet_id = await till.world.wallet(FUNDS)
    assert await till.charge(till.grant(wallet_id, None), done()) == COST
    assert (await till.world.state(wallet_id)).funds_available == FUNDS - COST


async def test_disabled_billing_records_and_charges_nothing(till: Till) -> None:
    """Usage and cost are on the row; an empty wallet is no obstacle, nor is an unpriced model."""
    wallet_id = await till.world.wallet()
    grant = till.grant(wallet_id, await till.percentage(), disable_billing=True)
    assert await till.charge(grant, done()) == 0
    row = await till.row()
    assert (row["billed"], row["cost_nanos"], row["usage"]["output_tokens"]) == (False, COST, 50)
    assert await till.charge(grant, done(model="x"), call(model="x")) == 0


async def test_free_endpoints_hold_and_charge_nothing(till: Till) -> None:
    """Models lists and the like need no funds, whatever the meter."""
    wallet_id = await till.world.wallet()
    grant = till.grant(wallet_id, await till.fixed((0, 500), tier_type="requests"))
    assert await till.charge(grant, done(usage=None), call(api="models", model=None, billable=False)) == 0


async def test_a_broken_stream_is_charged_for_what_was_delivered(till: Till) -> None:
    """C2, C11, D8, A25: outcome and amount on the same row, marked as estimated."""
    wallet_id = await till.world.wallet(FUNDS)
    ending = done(outcome=Outcome.UPSTREAM_BROKEN, usage=None, output_text_bytes=400)
    charged = await till.charge(till.grant(wallet_id, None), ending, call(stream=True))
    row = await till.row()
    assert (row["status"], row["outcome"], row["provenance"]) == ("error", "upstream_broken", "estimated")
    assert row["usage"]["output_tokens"] == 100 and row["charge_nanos"] == charged >= 100 * 10_000


async def test_the_policy_none_charges_nothing_when_the_client_left(till: Till) -> None:
    """C9: the operator's choice a provider."""
    wallet_id = await till.world.wallet(FUNDS)
    provider: Provider = replace(PROVIDER, disconnect="none")
    ending = done(outcome=Outcome.CLIENT_GONE, usage=None, output_text_bytes=400)
    assert await till.charge(till.grant(wallet_id, None), ending, call(stream=True), provider=provider) == 0


@pytest.mark.parametrize(
    "usage",
    [
        token_usage(10**20, 5),
        token_usage(5, 2**60),
        token_usage(5, 5, audio_seconds=Decimal("1e400000")),
        Usage({"input_tokens": 1, "output_tokens": 1, "other_models": {"m": {"output_tokens": 10**30}}}),
        token_usage(10**13, 10**13),
    ],
    ids=["beyond 64 bits", "beyond doubles", "endless decimal", "nested", "above any wallet"],
)
async def test_usage_that_cannot_be_true_is_estimated_and_never_keeps_a_hold_open(till: Till, usage: Usage) -> None:
    """A5, B8, I31: no settle fails for ever, no flusher stops, the counter says so."""
    wallet_id = await till.world.wallet(FUNDS)
    grant = till.grant(wallet_id, None)
    hold = await till.reserve(grant)
    ending = done(usage=usage, output_text_bytes=40)
    assert await till.charging.checkpoint(hold, ending)
    charged = (await till.charging.settle(hold, ending)).charge_nanos
    assert 0 < charged < USD
    row = await till.row()
    assert (row["provenance"], row["usage"]["output_tokens"]) == ("estimated", 10)
    assert count(till, telemetry.ANOMALIES) == 1
    assert (await till.world.state(wallet_id)).funds_held == 0


async def test_negative_and_contradicting_usage_never_credits(till: Till) -> None:
    """A5, I31, 112: a negative count charges nothing and gives nothing."""
    wallet_id = await till.world.wallet(FUNDS)
    for meter in (await till.fixed(), await till.percentage(), None):
        assert await till.charge(till.grant(wallet_id, meter), done(-5, -(10**6))) == 0
        assert await till.charge(till.grant(wallet_id, meter), done(1, 0, usage=token_usage(1, 0, cached=965_602))) >= 0
    assert (await till.world.state(wallet_id)).funds_available <= FUNDS


async def test_text_that_utf8_cannot_hold_is_no_reason_to_lose_a_call(till: Till) -> None:
    """A lone surrogate or a NUL in a model's name, as JSON may spell them."""
    wallet_id = await till.world.wallet(FUNDS)
    grant = till.grant(wallet_id, await till.fixed())
    asked = call(model="m\ud800\0")
    assert await till.charge(grant, done(model="m\udfff", response_id="\0\ud800"), asked) == 300_000
    assert (await till.row())["model"] == "m?"


# -- holds


async def test_the_hold_covers_the_dearest_tier_and_the_ceiling(till: Till) -> None:
    """E10, 23: hold and settle count the same unit; a settle within the ceiling never passes the hold."""
    wallet_id = await till.world.wallet(FUNDS)
    meter = await till.fixed((0, 1 * USD), (50, 5 * USD))
    hold = await till.reserve(till.grant(wallet_id, meter))
    assert hold.amount_nanos == 1_256 * 5_000
    ended = await till.charging.settle(hold, done(100, 1_000))
    assert (ended.charge_nanos, ended.flags) == (50 * 1_000 + 1_050 * 5_000, "")


async def test_what_exceeds_the_hold_is_taken_and_marked(till: Till) -> None:
    """I15, 24: the service was delivered; the row carries both flags; the overshoot is counted."""
    wallet_id = await till.world.wallet(1_256 * 2_000)
    hold = await till.reserve(till.grant(wallet_id, await till.fixed()))
    ended = await till.charging.settle(hold, done(256, 1_100))
    assert ended.flags == "ob"
    assert (await till.world.state(wallet_id)).funds_available == -100 * 2_000
    assert count(till, telemetry.OVERSHOOT) == 100 * 2_000
    await till.world.clean_audit()
    with pytest.raises(InsufficientFunds):
        await till.reserve(till.grant(wallet_id, await till.fixed()))


async def test_an_unknown_wallet_is_an_error_and_never_a_fresh_one(till: Till) -> None:
    """15, I34, E8."""
    with pytest.raises(CallerError) as refused:
        await till.reserve(till.grant("wal_nobody", await till.fixed()))
    assert refused.value.code == "wallet_not_found"


async def test_settles_that_straddle_a_tier_boundary_at_once_split_the_units_once(till: Till) -> None:
    """52, I30: twelve settles in one batch over three tiers cost together what one call of the same units costs."""
    wallet_id = await till.world.wallet(FUNDS)
    grant = till.grant(wallet_id, await till.fixed((0, 7 * USD), (400, 3 * USD), (1_000, 1 * USD)))
    holds = [await till.reserve(grant) for _ in range(12)]
    settled = await asyncio.gather(*(till.charging.settle(hold, done(60, 40)) for hold in holds))
    assert sum(reply.charge_nanos for reply in settled) == 400 * 7_000 + 600 * 3_000 + 200 * 1_000
    state = await till.world.state(wallet_id)
    assert list(state.counters.values()) == [1_200]
    assert sorted(reply.position for reply in settled) == [n * 100 for n in range(12)]
    await till.world.flush()
    rows = await till.world.fetch("SELECT position, charge_nanos, breakdown, tier_field, tier_units FROM request ORDER BY wseq")
    for row in rows:
        assert sum(line[2] for line in row["breakdown"]["charge"]) == row["tier_units"] == 100
        assert sum(line[3] for line in row["breakdown"]["charge"]) == row["charge_nanos"]
    await till.world.clean_audit()


async def test_a_refusal_looks_again_when_a_call_is_just_ending(till: Till) -> None:
    """E11, F8: a sequential caller whose last settle is under way is not refused for it."""
    wallet_id = await till.world.wallet(1_256 * 2_000)
    grant = till.grant(wallet_id, await till.fixed())
    first = await till.reserve(grant)
    waiting = tasks.start("second", till.reserve(grant, call(ceiling=token_usage(256, 900))))
    while not count_calls(till.world):
        await asyncio.sleep(0)
    await till.charging.settle(first, done(10, 10))
    assert isinstance((await waiting).amount_nanos, int)


def count_calls(world: World) -> bool:
    """Has the second reserve been sent?"""
    connection = world.hot._connection
    return connection is not None and bool(connection.waiting)


# -- outages


class Unsure(BalanceStore):
    """Fails as told: before the call was sent, or after Redis has applied it."""

    def __init__(self, store: BalanceStore, failures: list[str]) -> None:
        self._store = store
        self.failures = failures
        self.settles = 0

    async def reserve(self, wallet_id: str, request_id: str, amount_nanos: int, **options: Any) -> Held:
        return await self._fail(self._store.reserve(wallet_id, request_id, amount_nanos, **options))

    async def settle(self, wallet_id: str, request_id: str, charge_nanos: int, **options: Any) -> Any:
        self.settles += 1
        return await self._fail(self._store.settle(wallet_id, request_id, charge_nanos, **options))

    async def _fail(self, made: Any) -> Any:
        failure = self.failures.pop(0) if self.failures else ""
        if failure == "not sent":
            made.close()
            raise NotSent("away")
        found = await made
        if failure == "lost":
            raise Ambiguous("lost")
        return found


async def test_a_reserve_of_unknown_fate_is_refused_and_its_hold_ended(till: Till) -> None:
    """2, F2, 1: the caller gets an error, so nothing may stay held; with a row that says why."""
    wallet_id = await till.world.wallet(FUNDS)
    charging = till.with_settings(RESERVE, Unsure(till.world.balances, ["lost"]))
    with pytest.raises(Ambiguous):
        await charging.reserve(
            new_id("req"), till.grant(wallet_id, None), PROVIDER, call(), endpoint="/", key_type="managed", metadata=None
        )
    assert await tasks.drain("exchange-abandon", 5) == 0
    state = await till.world.state(wallet_id)
    assert (state.funds_available, state.funds_held) == (FUNDS, 0)
    assert (await till.row())["charge_nanos"] == 0
    # Never applied: there is nothing to end, and nothing is written.
    with pytest.raises(StoreError):
        await till.with_settings(RESERVE, Unsure(till.world.balances, ["not sent"])).reserve(
            new_id("req"), till.grant(wallet_id, None), PROVIDER, call(), endpoint="/", key_type="managed", metadata=None
        )
    await till.world.clean_audit()


@pytest.mark.parametrize("failures", [["not sent", "not sent", "lost"], ["lost", "lost"], ["lost", "not sent"]], ids=str)
async def test_a_settle_is_repeated_through_an_outage_until_it_is_applied_and_applies_once(till: Till, failures: list[str]) -> None:
    """6, 5, 26, I7, I32: an error is never swallowed, and the repeat of an applied settle changes nothing."""
    wallet_id = await till.world.wallet(FUNDS)
    store = Unsure(till.world.balances, [])
    charging = till.with_settings(RESERVE, store)
    hold = await charging.reserve(
        new_id("req"), till.grant(wallet_id, None), PROVIDER, call(), endpoint="/", key_type="managed", metadata=None
    )
    store.failures = list(failures)
    ended = await charging.settle(hold, done())
    assert isinstance(ended, Settled) and ended.charge_nanos == COST and store.settles == len(failures) + 1
    assert (await till.world.state(wallet_id)).funds_available == FUNDS - COST
    assert (await till.row())["charge_nanos"] == COST
    await till.world.clean_audit()


async def test_a_hold_is_settled_once_by_its_owner(till: Till) -> None:
    """I7: a second settle of the same hold is a bug of ours, and it is caught."""
    wallet_id = await till.world.wallet(FUNDS)
    hold = await till.reserve(till.grant(wallet_id, None))
    await till.charging.settle(hold, done())
    with pytest.raises(AssertionError):
        await till.charging.settle(hold, done())


async def test_a_repeated_request_id_is_refused(till: Till) -> None:
    """L1, I11: an id that has ended cannot be held again."""
    wallet_id = await till.world.wallet(FUNDS)
    grant = till.grant(wallet_id, None)
    hold = await till.reserve(grant)
    await till.charging.settle(hold, done())
    with pytest.raises(CallerError) as refused:
        await till.reserve(grant, request_id=hold.request_id)
    assert refused.value.status == 409


def test_leases_outlive_several_checkpoints() -> None:
    """18, 19: bounded, so a dead owner blocks nobody for long."""
    assert RESERVE == Reserve(output_tokens_default=1000, lease_s=60, checkpoint_s=2, keep_s=3600)
    assert RESERVE.lease_s >= 5 * RESERVE.checkpoint_s
