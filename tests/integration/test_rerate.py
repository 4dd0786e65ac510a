"""`audit --rerate`: every stored row gives its amount again, or is named; and what its meter cannot see is marked on it."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from lava_proxy import telemetry
from lava_proxy.billing.charging import Charging
from lava_proxy.billing.rating import Rating
from lava_proxy.domain.prices import DatedPrice, PriceBook, compile_price
from lava_proxy.domain.usage import Outcome, Usage, token_usage
from lava_proxy.workers.audit import DIFFERENCES_MAX, rerate
from tests.billing_world import RESERVE, World
from tests.charging_world import NOW, PROVIDER, USD, Till, call, done
from tests.charging_world import till as make_till

FUNDS = 1_000 * USD


@pytest.fixture
def till(world: World) -> Till:
    return make_till(world)


def _usage(rng: random.Random) -> Usage | None:
    kind = rng.randrange(8)
    if kind == 0:
        return None  # estimated
    if kind == 1:
        return token_usage(rng.randrange(50), 5, cached=rng.randrange(900))  # contradicts itself: clamped
    if kind == 2:
        return token_usage(-rng.randrange(50), rng.randrange(50))
    if kind == 3:
        return token_usage(rng.randrange(900), 7, provider_cost_usd=Decimal(rng.randrange(10**9)).scaleb(-12))
    if kind == 4:
        return token_usage(10**20, 5)  # cannot be true: estimated
    if kind == 5:
        return Usage({"audio_seconds": Decimal(rng.randrange(10**5)).scaleb(-3)})
    return token_usage(rng.randrange(900), rng.randrange(900), cached=0)


async def test_every_row_of_a_random_history_is_found_as_it_is_stored(till: Till) -> None:
    """I28: tiers, percentage, cost, the caller's own key, estimates, clamped anomalies, free calls, checkpoints of the dead."""
    rng = random.Random(28)
    wallet_id = await till.world.wallet(FUNDS)
    meters = [
        await till.fixed((0, 7 * USD), (500, 3 * USD), (40_000, USD)),
        await till.percentage(),
        await till.fixed((0, 50), (10, 20), tier_type="requests"),
        await till.fixed((0, USD), tier_type="minutes"),
        None,
    ]
    for number in range(150):
        ending = done(
            usage=_usage(rng), model=rng.choice(["m", "m-dated"]), status=rng.choice([200, 200, 200, 500]),
            outcome=rng.choice([Outcome.COMPLETED, Outcome.CLIENT_GONE, Outcome.UPSTREAM_BROKEN]),
            output_text_bytes=400, output_text_sample=b"words and words " * 25,
        )  # fmt: skip
        grant = till.grant(wallet_id, rng.choice(meters), disable_billing=rng.random() < 0.1)
        asked = call(api=rng.choice(["chat", "chat", "responses_retrieve"]))
        key_type = rng.choice(["managed", "stored", "unmanaged"])
        if number % 10:
            await till.charge(grant, ending, asked, key_type=key_type)
            continue
        charging = till.with_settings(replace(RESERVE, lease_s=0))
        hold = await charging.reserve(
            f"req_dead{number:03d}", grant, PROVIDER, asked, endpoint="POST /x", key_type=key_type, metadata=None
        )
        await charging.checkpoint(hold, replace(ending, outcome=Outcome.ORPHANED))
    await till.reaper().run_once()
    await till.world.flush()
    report = await rerate(till.world.ledger, till.rating)
    assert (report.as_dict()["met"], report.differences, report.rows) == (True, [], 150)
    assert report.charge_nanos_again == report.charge_nanos_stored > 0
    assert report.cost_nanos_again == report.cost_nanos_stored > 0
    found = {row["provenance"] for row in await till.world.fetch("SELECT DISTINCT provenance FROM request")}
    assert found == {"provider_final", "estimated", "none"}
    await till.world.clean_audit()


async def test_the_facts_a_price_depended_on_stand_on_the_row(till: Till) -> None:
    """I28: a call that ran fast is rated again at the fast price, also from a checkpoint that is priced for another position."""

    class Fast:
        def dated(self, price_id: str, model: str, service_tier: str | None, at: datetime) -> DatedPrice:
            rate = 6 * USD if service_tier == ";speed=fast" else USD
            return DatedPrice(compile_price(model, "test", {"input_tokens": rate, "output_tokens": rate}))

    book = PriceBook("facts-1", Fast())
    till = replace(
        till, prices=book, charging=Charging(till.world.balances, book, RESERVE, till.tally, lambda: NOW),
        rating=Rating(till.world.catalog, book, {"test": "test"}),
    )  # fmt: skip
    wallet_id = await till.world.wallet(FUNDS)
    grant = till.grant(wallet_id, await till.percentage())
    asked = call(facts=(("speed", "fast"),))
    assert (await till.reserve(grant, asked)).amount_nanos > 4 * (await till.reserve(grant, call())).amount_nanos
    assert await till.charge(grant, done(1_000, 0, facts=(("speed", "fast"),)), asked) == 1_000 * 6_000 * 12 // 10
    assert await till.charge(grant, done(1_000, 0, facts=(("speed", "standard"),)), asked) == 1_000 * 1_000 * 12 // 10
    await till.world.flush()
    rows = await till.world.fetch("SELECT breakdown FROM request ORDER BY wseq")
    assert [row["breakdown"].get("facts") for row in rows] == [{"speed": "fast"}, None]
    report = await rerate(till.world.ledger, till.rating)
    assert (report.as_dict()["met"], report.rows) == (True, 2)


async def test_a_row_that_was_tampered_with_is_named_with_both_amounts(till: Till) -> None:
    """I28: charge, cost and the tier's units, each."""
    wallet_id = await till.world.wallet(FUNDS)
    await till.charge(till.grant(wallet_id, await till.fixed()), done(100, 50))
    row = await till.row()
    await till.world.pool.execute("UPDATE request SET charge_nanos = 1, cost_nanos = 2, tier_units = 3")
    report = await rerate(till.world.ledger, till.rating)
    assert report.as_dict()["met"] is False and report.differing == 1
    assert [(found["field"], found["stored"], found["again"]) for found in report.differences] == [
        ("charge_nanos", 1, row["charge_nanos"]),
        ("cost_nanos", 2, row["cost_nanos"]),
        ("tier_units", 3, 150),
    ]


async def test_a_row_that_cannot_be_rated_is_a_difference_and_many_are_counted_but_not_all_listed(till: Till) -> None:
    wallet_id = await till.world.wallet(FUNDS)
    grant = till.grant(wallet_id, await till.fixed())
    await till.charge(grant, done())
    await till.world.flush()
    columns = "usage = '{\"output_tokens\": 7}', meter_version = 999999"
    await till.world.pool.execute(f"UPDATE request SET {columns}")
    names = [r["column_name"] for r in await till.world.fetch(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'request' AND column_name <> 'request_id'"
    )]  # fmt: skip
    await till.world.pool.execute(
        f"INSERT INTO request (request_id, {', '.join(names)}) SELECT 'req_' || n, {', '.join(names)}"
        f" FROM request, generate_series(1, {DIFFERENCES_MAX * 2}) n"
    )
    report = await rerate(till.world.ledger, till.rating)
    assert (report.rows, report.differing, len(report.differences)) == (201, 201, DIFFERENCES_MAX)
    assert report.differences[0]["again"] is None


async def test_rows_of_other_prices_are_counted_and_left_alone(till: Till) -> None:
    """Old prices are gone with the version that held them; rows that needed none are still rated."""

    class Dearer:
        def dated(self, price_id: str, model: str, service_tier: str | None, at: datetime) -> DatedPrice:
            return DatedPrice(compile_price("m", "test", {"input_tokens": 2 * USD, "output_tokens": 20 * USD}))

    wallet_id = await till.world.wallet(FUNDS)
    await till.charge(till.grant(wallet_id, None), done())
    await till.charge(till.grant(wallet_id, await till.fixed()), done(model="unknown"), call(model="unknown"))
    await till.world.flush()
    report = await rerate(till.world.ledger, Rating(till.world.catalog, PriceBook("test-2", Dearer()), {"test": "test"}))
    assert (report.as_dict()["met"], report.rows, report.other_price_version) == (True, 1, 1)
    same_name = Rating(till.world.catalog, PriceBook("test-1", Dearer()), {"test": "test"})
    assert (await rerate(till.world.ledger, same_name)).differing == 1


async def test_since_leaves_out_what_is_older(till: Till) -> None:
    wallet_id = await till.world.wallet(FUNDS)
    for _ in range(3):
        await till.charge(till.grant(wallet_id, None), done())
    await till.world.flush()
    await till.world.pool.execute(
        "UPDATE request SET created_at = $1 WHERE request_id = (SELECT min(request_id) FROM request)",
        datetime.now(UTC) - timedelta(days=9),
    )
    assert (await rerate(till.world.ledger, till.rating, datetime.now(UTC) - timedelta(days=1))).rows == 2


# --- used, but not in the charge ---------------------------------------------------------------------------------------


def _counted(till: Till) -> int:
    return sum(amount for (found, _), amount in till.tally._sums.items() if found is telemetry.USAGE_CHARGE_ZERO)


async def _marks(till: Till, usage: Usage, meter: Any, *, key_type: str = "managed", **reading: Any) -> tuple[list[str], int]:
    """(the row's mark, what the counter grew by) of a call with this usage."""
    wallet_id, before = await till.world.wallet(FUNDS), _counted(till)
    await till.charge(till.grant(wallet_id, meter), done(usage=usage, **reading), key_type=key_type)
    await till.world.flush()
    row = (await till.world.fetch("SELECT breakdown FROM request ORDER BY request_id DESC LIMIT 1"))[0]
    return row["breakdown"].get("unseen", []), _counted(till) - before


async def test_what_a_meter_cannot_see_is_marked_on_the_row_and_counted(till: Till) -> None:
    """B1: nobody gives away what he does not know of."""
    tokens = await till.fixed()
    cases: list[tuple[Usage, Any, dict[str, Any], list[str]]] = [
        (Usage({"input_characters": 9}), tokens, {}, ["input_characters"]),
        (Usage({"audio_seconds": Decimal("1.5")}), tokens, {}, ["audio_seconds"]),
        (token_usage(9, 1, web_search_requests=2), tokens, {}, ["web_search_requests"]),
        (token_usage(9, 1), tokens, {"unseen": ("guardrail",)}, ["guardrail"]),
        (token_usage(9, 1), await till.fixed(tier_type="minutes"), {}, ["input_tokens", "output_tokens"]),
        (token_usage(9, 1), None, {"unseen": ("image_generation",)}, ["image_generation"]),
        (token_usage(9, 1), await till.percentage(), {"unseen": ("guardrail",)}, ["guardrail"]),
        (Usage({"images": 2}), None, {}, ["unpriced_units"]),
    ]
    for usage, meter, options, marks in cases:
        assert await _marks(till, usage, meter, **options) == (marks, 1)


async def test_what_the_charge_contains_has_no_mark(till: Till) -> None:
    tokens = await till.fixed()
    cases: list[tuple[Usage, Any, dict[str, Any]]] = [
        (token_usage(9, 1, audio_seconds=Decimal(3)), tokens, {}),
        (Usage({"input_characters": 9}), await till.fixed(tier_type="characters_1m"), {}),
        (token_usage(9, 1, web_search_requests=2), await till.fixed(tier_type="requests"), {}),
        (token_usage(9, 1, provider_cost_usd=Decimal("0.01")), None, {"unseen": ("guardrail",)}),
        (token_usage(9, 1), None, {"unseen": ("guardrail",), "key_type": "unmanaged"}),
        (token_usage(0, 0), tokens, {}),
    ]
    for usage, meter, options in cases:
        assert await _marks(till, usage, meter, **options) == ([], 0)


async def test_a_mark_survives_the_death_of_the_process_and_a_moved_tier(till: Till) -> None:
    """Re-pricing for another position keeps it."""
    wallet_id = await till.world.wallet(FUNDS)
    meter = await till.fixed((0, 7 * USD), (500, 3 * USD))
    grant = till.grant(wallet_id, meter)
    charging = till.with_settings(replace(RESERVE, lease_s=0))
    hold = await charging.reserve("req_dead", grant, PROVIDER, call(), endpoint="POST /x", key_type="managed", metadata=None)
    await charging.checkpoint(hold, replace(done(unseen=("guardrail",)), outcome=Outcome.ORPHANED))
    await till.charge(grant, done(400, 99))
    await till.reaper().run_once()
    await till.world.flush()
    rows = await till.world.fetch("SELECT breakdown FROM request WHERE request_id = 'req_dead'")
    assert rows[0]["breakdown"]["unseen"] == ["guardrail"] and len(rows[0]["breakdown"]["charge"]) == 2
    assert (await rerate(till.world.ledger, till.rating)).as_dict()["met"]


async def test_a_call_of_an_unknown_api_is_free_and_never_silently(till: Till) -> None:
    """B6, B1: a batch, a fine-tuning job, an API that came out yesterday: marked on the row and counted."""
    wallet_id = await till.world.wallet(FUNDS)
    asked = call(api="other", model=None, ceiling=Usage())
    for meter in (await till.fixed(), await till.fixed((0, 500), tier_type="requests")):
        await till.charge(till.grant(wallet_id, meter), done(usage=None, model=None), asked)
    await till.world.flush()
    rows = await till.world.fetch("SELECT charge_nanos, breakdown FROM request ORDER BY wseq")
    assert [(row["charge_nanos"], row["breakdown"].get("unseen")) for row in rows] == [(0, ["unmetered"]), (500, None)]
    assert sum(amount for (counter, _), amount in till.tally._sums.items() if counter is telemetry.USAGE_CHARGE_ZERO) == 1
