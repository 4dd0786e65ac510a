"""billing/reporting.py on real stores: one debit an id, one answer an id, whatever dies or repeats."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import pytest

from lava_proxy import telemetry
from lava_proxy.billing.rating import Rating
from lava_proxy.billing.reporting import Answer, ProviderName, Reporting
from lava_proxy.domain.catalog import RateType, Tier, TierType
from lava_proxy.domain.errors import LavaError, StoreError
from lava_proxy.settings import Reports
from lava_proxy.stores.balance_store import BalanceStore, Moved, Report, Reported, report_key, report_record
from lava_proxy.stores.hot_redis import Ambiguous
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.ledger_store import REPORTED, LedgerStore
from lava_proxy.workers.audit import rerate
from lava_proxy.workers.credit_applier import CreditApplier
from tests.billing_world import World
from tests.charging_world import NOW, USD, prices

SETTINGS = Reports(body_bytes_max=100_000, batch_bytes_max=1_000_000, batch_items_max=1000, keep_s=900, ledger_check_ms=5_000)
UNCHECKED = Reports(body_bytes_max=100_000, batch_bytes_max=1_000_000, batch_items_max=1000, keep_s=900, ledger_check_ms=0)


def reporting(world: World, settings: Reports = SETTINGS, **changes: Any) -> Reporting:
    parts: dict[str, Any] = {
        "store": world.balances, "catalog": world.catalog, "ledger": world.ledger, "prices": prices(),
        "provider_name": lambda name: ProviderName(name, name, "other"), "settings": settings,
        "tally": telemetry.Tally(), "clock": lambda: NOW, **changes,
    }  # fmt: skip
    return Reporting(**parts)


@dataclass(slots=True)
class Customer:
    """A customer with funds and meters, and short forms of what tests report."""

    world: World
    connection_id: str
    wallet_id: str
    merchant_id: str

    async def meter(self, *tiers: tuple[int, int], rate_type: RateType = "fixed", tier_type: TierType = "tokens_1m") -> str:
        made = await self.world.catalog.create_meter(
            self.merchant_id, name="m", slug=new_id("slug"), rate_type=rate_type, tier_type=tier_type,
            tiers=tuple(Tier(start=start, rate=rate) for start, rate in tiers or ((0, 2 * USD),)),
        )  # fmt: skip
        return made.version.slug

    def body(self, request_id: str, meter: str, tokens: int = 1000, **members: Any) -> dict[str, Any]:
        return {
            "request_id": request_id, "customer_id": self.connection_id, "meter_slug": meter, "input_tokens": tokens, **members
        }  # fmt: skip

    async def balance(self) -> int:
        return (await self.world.state(self.wallet_id)).balance_nanos


@pytest.fixture
async def customer(world: World) -> Customer:
    made = await world.catalog.create_connection(world.merchant_id)
    await world.funding.open_wallet(made.wallet_id)
    world.wallets.append(made.wallet_id)
    await world.funding.fund(world.merchant_id, made.wallet_id, 100 * USD, "test")
    return Customer(world, made.connection_id, made.wallet_id, world.merchant_id)


async def report(taker: Reporting, customer: Customer, *bodies: object) -> list[Any]:
    """The answered requests, or the codes of the refusals."""
    answers = await taker.report(customer.merchant_id, bodies)
    return [answer.code if isinstance(answer, LavaError) else orjson.loads(answer.body) for answer in answers]


def amounts(answers: Sequence[Any]) -> list[str]:
    return [answer["charge"]["amount"].rstrip("0").rstrip(".") for answer in answers]


async def test_tiers_are_graduated_and_a_report_over_a_boundary_shows_both(world: World, customer: Customer) -> None:
    """I30: 5M tokens at $5 to the first million and $3 from there on are $17."""
    meter = await customer.meter((0, 5 * USD), (1_000_000, 3 * USD), (10_000_000, 1 * USD))
    (answer,) = await report(reporting(world), customer, customer.body("a", meter, 5_000_000))
    assert answer["charge"]["amount"] == "17.0000000000"
    assert [(line["tokens"], line["cost"]) for line in answer["charge"]["breakdown"]] == [
        (1_000_000, "5.0000000000"), (4_000_000, "12.0000000000")
    ]  # fmt: skip
    assert await customer.balance() == 83 * USD


async def test_reports_of_one_moment_do_not_each_see_all_of_them(world: World, customer: Customer) -> None:
    """52, I30: same_timestamp_tier_positions, in one batch and from several gateways at once."""
    meter = await customer.meter((0, 0), (100, 0), (200, 1 * USD), tier_type="requests")
    bodies = [customer.body(f"r{n}", meter, 0) for n in range(150)]
    takers = [reporting(world) for _ in range(3)]
    one_batch = await report(takers[0], customer, *bodies)
    at_once = await asyncio.gather(
        *(report(takers[n % 3], customer, customer.body(f"s{n}", meter, 0)) for n in range(150)),
    )
    assert set(amounts(one_batch)) == {"0"}
    assert sorted(amounts([answer for (answer,) in at_once])) == ["0"] * 50 + ["1"] * 100
    await world.flush()
    positions = await world.fetch("SELECT position FROM request ORDER BY position")
    assert [row["position"] for row in positions] == list(range(300))
    await world.clean_audit()


async def test_the_same_id_twice_in_a_batch_is_one_debit(world: World, customer: Customer) -> None:
    """44, I11: duplicate_inside_one_batch."""
    meter = await customer.meter()
    body = customer.body("a", meter)
    first, second, other = await report(reporting(world), customer, body, dict(body), customer.body("b", meter))
    assert first == second and other["request_id"] == "b"
    assert (await world.state(customer.wallet_id)).wseq == 3  # funds, a, b


async def test_the_same_report_from_many_sides_at_once_is_one_debit(world: World, customer: Customer) -> None:
    """50, I10: settle_enqueued_twice."""
    meter = await customer.meter()
    takers = [reporting(world) for _ in range(4)]
    answers = await asyncio.gather(*(report(takers[n % 4], customer, customer.body("a", meter)) for n in range(40)))
    assert len({orjson.dumps(answer) for (answer,) in answers}) == 1
    assert (await world.state(customer.wallet_id)).wseq == 2


async def test_the_same_id_of_two_merchants_is_two_requests(world: World, customer: Customer) -> None:
    """45, 51: same_key_two_merchants_independent."""
    merchant = await world.catalog.create_merchant("other")
    made = await world.catalog.create_connection(merchant.merchant_id)
    await world.funding.open_wallet(made.wallet_id)
    other = Customer(world, made.connection_id, made.wallet_id, merchant.merchant_id)
    taker = reporting(world)
    for one, tokens in ((customer, 10), (other, 20)):
        (answer,) = await report(taker, one, one.body("same", await one.meter(), tokens))
        assert answer["model_usage"]["input_tokens"] == tokens
    await world.flush()
    rows = await world.fetch("SELECT merchant_id, request_key FROM request")
    assert {row["merchant_id"] for row in rows} == {customer.merchant_id, other.merchant_id}


class Losing(BalanceStore):
    """Applies reports and loses the answers, as a connection does that breaks under way."""

    losses = 2

    async def report(self, reports: Sequence[Report], keep_ms: int) -> list[Reported | Moved | LavaError]:
        replies = await super().report(reports, keep_ms)
        if self.losses:
            self.losses -= 1
            return [Ambiguous("lost") for _ in replies]
        return replies


async def test_an_answer_that_was_lost_is_asked_for_again_and_counts_once(world: World, customer: Customer) -> None:
    """27, I13: crash_between_claim_and_write: the id is claimed by the debit itself, so a retry can tell."""
    meter = await customer.meter()
    (answer,) = await report(reporting(world, store=Losing(world.hot)), customer, customer.body("a", meter))
    assert answer["status"] == "completed"
    (again,) = await report(reporting(world), customer, customer.body("a", meter))
    assert again == answer and (await world.state(customer.wallet_id)).wseq == 2


async def test_without_redis_nothing_is_acknowledged(world: World, customer: Customer) -> None:
    """41: redis_down_fails_closed_for_money."""
    meter = await customer.meter()
    await world.hot.stop()
    answers = await reporting(world).report(customer.merchant_id, [customer.body("a", meter), {}])
    assert [getattr(answer, "status", 200) for answer in answers] == [503, 400]
    assert (await world.state(customer.wallet_id)).wseq == 1


async def test_a_duplicate_does_not_prolong_what_is_remembered_of_a_report(world: World, customer: Customer) -> None:
    """34: dedupe_ttl_not_extended_by_duplicate."""
    meter, taker = await customer.meter(), reporting(world, UNCHECKED)
    await report(taker, customer, customer.body("a", meter))
    key = report_key(report_record(customer.merchant_id, "a"))
    await world.redis.pexpire(key, 50_000)
    assert await report(taker, customer, customer.body("a", meter), customer.body("a", meter, 5)) != []
    assert 0 < await world.redis.pttl(key) <= 50_000


async def test_a_refused_report_changes_nothing_and_claims_no_id(world: World, customer: Customer) -> None:
    """I12, I13: what is refused leaves the wallet and the id as they were."""
    meter = await customer.meter()
    markup = await customer.meter((0, 200_000), rate_type="percentage")
    taker = reporting(world)
    dear = await customer.meter((0, 10_000 * USD))
    before = await world.redis.dbsize(), await world.state(customer.wallet_id)
    codes = await report(
        taker, customer, customer.body("a", markup), customer.body("b", dear, 10**12), customer.body("c", meter, -1),
        customer.body("d", "no meter"),
    )  # fmt: skip
    assert codes == ["cost_required", "amount_out_of_bounds", "invalid_parameter", "meter_not_found"]
    assert (await world.redis.dbsize(), await world.state(customer.wallet_id)) == before
    answers = await report(taker, customer, *(customer.body(key, meter) for key in "abcd"))
    assert [answer["status"] for answer in answers] == ["completed"] * 4


async def test_a_duplicate_after_the_window_is_found_in_postgres_and_not_debited(world: World, customer: Customer) -> None:
    """35, 29, I10: duplicate_after_window_caught_by_pg; also after Redis has lost everything."""
    meter, taker = await customer.meter(), reporting(world)
    (first,) = await report(taker, customer, customer.body("a", meter))
    await world.flush()
    await world.redis.delete(report_key(report_record(customer.merchant_id, "a")))
    again, conflict = await report(taker, customer, customer.body("a", meter), customer.body("a", meter, 7))
    assert again == first and conflict == "request_id_conflict"
    assert (await world.state(customer.wallet_id)).wseq == 2
    await world.redis.flushall()
    await world.recover()
    assert await world.hot.wait_ready(5)
    assert await report(taker, customer, customer.body("a", meter)) == [first]
    assert (await world.state(customer.wallet_id)).wseq == 2
    await world.clean_audit()


async def test_a_look_up_of_old_ids_takes_no_longer_because_there_are_more(world: World) -> None:
    """35: by index before the tables' first ANALYZE too, when Postgres knows how large they are and nothing else."""
    async with world.pool.acquire() as db, db.transaction():
        await db.execute("INSERT INTO request_once SELECT 'mer_1', 'k-' || n, 'req_' || n FROM generate_series(1, 5000) AS n")
        await db.execute(
            """INSERT INTO request (request_id, merchant_id, wallet_id, status, outcome, provenance, provider, provider_key_type,
              endpoint, api, streamed, billed, usage, cost_nanos, charge_nanos, breakdown, tier_field, tier_units, position, flags,
              wseq, created_at, completed_at)
            SELECT 'req_' || n, 'mer_1', 'wal_1', 'completed', 'completed', 'reported', 'reported', 'stored', '', 'report', false,
              true, '{}', 0, 0, '{}', '', 0, 0, '', n, $1, $1 FROM generate_series(1, 5000) AS n""",
            NOW,
        )
        await db.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        await db.execute(f"PREPARE look_up (text[], text[]) AS {REPORTED}")
        plan = [row[0] for row in await db.fetch("EXPLAIN EXECUTE look_up ('{mer_1}', '{k-1}')")]
    assert not [line for line in plan if "Seq Scan" in line or "Hash Join" in line or "Merge Join" in line], plan


async def test_a_duplicate_that_nobody_knew_is_given_back_and_answered_with_the_first(world: World, customer: Customer) -> None:
    """35, 29, 33, I10: Postgres was not asked, so the flusher finds it; neighbours are kept, the money comes back."""
    meter, taker = await customer.meter(), reporting(world, UNCHECKED)
    (first,) = await report(taker, customer, customer.body("a", meter))
    await world.flush()
    await world.redis.delete(report_key(report_record(customer.merchant_id, "a")))
    await report(taker, customer, customer.body("a", meter), customer.body("b", meter))
    assert await customer.balance() == 100 * USD - 3 * 2_000_000
    await world.flush()
    assert await CreditApplier(world.catalog, world.funding).run_once() == 1
    assert await customer.balance() == 100 * USD - 2 * 2_000_000
    assert await report(taker, customer, customer.body("a", meter)) == [first]
    await world.flush()
    rows = await world.fetch("SELECT request_key FROM request ORDER BY request_id")
    assert [row["request_key"] for row in rows] == ["a", "b"]
    assert len(await world.fetch("SELECT 1 AS one FROM anomaly WHERE kind = 'second_debit'")) == 1
    await world.clean_audit()


class Away(LedgerStore):
    """A Postgres that does not answer."""

    async def reported(self, merchant_ids: Sequence[str], request_keys: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
        raise StoreError("away")


class Frozen(LedgerStore):
    async def reported(self, merchant_ids: Sequence[str], request_keys: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
        await asyncio.Event().wait()
        raise AssertionError


async def test_while_postgres_is_away_reports_go_on_and_a_repeat_is_pending(world: World, customer: Customer) -> None:
    """27, 28: what Redis has is acknowledged; a repeat whose row nobody can show is answered from its record."""
    meter = await customer.meter()
    away = reporting(world, ledger=Away(world.pool))
    (first,) = await report(away, customer, customer.body("a", meter))
    assert await report(away, customer, customer.body("a", meter)) == [first]  # its row is in the outbox
    await world.flush()
    (pending,) = await report(away, customer, customer.body("a", meter))
    assert pending == {**first, "status": "pending"}
    assert await report(away, customer, customer.body("a", meter, 5)) == ["request_id_conflict"]
    assert await report(reporting(world), customer, customer.body("a", meter)) == [first]
    assert (await world.state(customer.wallet_id)).wseq == 2


async def test_a_frozen_postgres_delays_a_report_once_and_within_bounds(world: World, customer: Customer) -> None:
    meter = await customer.meter()
    settings = Reports(body_bytes_max=1, batch_bytes_max=1, batch_items_max=1, keep_s=900, ledger_check_ms=50)
    taker = reporting(world, settings, ledger=Frozen(world.pool))
    async with asyncio.timeout(2):
        for n in range(50):
            (answer,) = await report(taker, customer, customer.body(f"r{n}", meter))
            assert answer["status"] == "completed"


class Dying(LedgerStore):
    """A Postgres whose connections die under way, in the ways in which the driver tells it."""

    def __init__(self, failures: list[BaseException]) -> None:
        self._failures = failures

    async def reported(self, merchant_ids: Sequence[str], request_keys: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
        raise self._failures.pop()


async def test_a_look_up_that_dies_in_any_way_holds_up_no_report(world: World, customer: Customer) -> None:
    """28: also where the driver cancels itself, reports are answered, and the next look-up is made."""
    meter = await customer.meter()
    for failure in (RuntimeError("internal"), asyncio.CancelledError(), StoreError("away")):
        failures: list[BaseException] = [failure]
        taker = reporting(world, ledger=Dying(failures))
        async with asyncio.timeout(5):
            answers = await asyncio.gather(
                *(report(taker, customer, customer.body(f"{type(failure).__name__}{n}", meter)) for n in range(5))
            )
        assert [answer["status"] for (answer,) in answers] == ["completed"] * 5
        assert failures == []


async def test_an_answer_is_what_postgres_will_show(world: World, customer: Customer) -> None:
    """I28, 53: the fresh answer, the outbox' and Postgres' are one; every row rates again to its amount."""
    fixed = await customer.meter((0, 3 * USD), (1_500, 1 * USD))
    minutes = await customer.meter((0, 7 * USD), tier_type="minutes")
    markup = await customer.meter((0, 200_000), rate_type="percentage")
    priced = {"provider": "test", "model": "m"}
    bodies = [
        customer.body("a", fixed, 2_000, metadata={"zz": "1", "b": "2"}, **priced),
        customer.body("b", minutes, 0, input_seconds=61.000001, output_seconds=3),
        customer.body("c", markup, 123_457, output_tokens=77, **priced),
        customer.body("d", markup, 1, cost="0.00000012345"),
        customer.body("e", fixed, 0, input_characters=5, output_characters=6, unknown=[1]),
    ]
    taker = reporting(world)
    fresh = await taker.report(customer.merchant_id, bodies)
    waiting = await taker.report(customer.merchant_id, bodies)
    await world.flush()
    stored = await taker.report(customer.merchant_id, bodies)
    for answers in zip(fresh, waiting, stored, strict=True):
        assert all(isinstance(answer, Answer) for answer in answers)
        assert len(set(answers)) == 1, answers
    report_ = await rerate(world.ledger, Rating(world.catalog, prices(), {}))
    assert report_.rows == 5 and report_.differing == 0, report_.differences
    await world.clean_audit()


async def test_a_changed_price_holds_from_the_next_report_on_and_not_for_a_repeat(world: World, customer: Customer) -> None:
    meter, taker = await customer.meter(), reporting(world)
    (first,) = await report(taker, customer, customer.body("a", meter))
    await world.pool.execute(
        "INSERT INTO meter_version (meter_id, name, rate_type, tier_type, token_basis, tiers, created_at)"
        " SELECT meter_id, name, rate_type, tier_type, token_basis, $2, v.created_at FROM meter_version v"
        " JOIN meter USING (meter_id) WHERE meter_slug = $1",
        meter, [[0, 4 * USD]],
    )  # fmt: skip
    taker.forget()
    again, fresh = await report(taker, customer, customer.body("a", meter), customer.body("b", meter))
    assert again == first and amounts([first, fresh]) == ["0.002", "0.004"]


async def test_a_tier_counter_never_passes_what_can_be_counted(world: World, customer: Customer) -> None:
    """I31: beyond 2^53 a counter would lie, so the report is refused."""
    meter, taker = await customer.meter((0, 0)), reporting(world)
    codes = []
    for n in range(5):
        bodies = [customer.body(f"{n}-{m}", meter, 10**12, output_tokens=10**12) for m in range(1000)]
        codes += [answer for answer in await report(taker, customer, *bodies) if isinstance(answer, str)]
    assert set(codes) == {"amount_out_of_bounds"} and len(codes) == 5000 - 4503
    counter = (await world.state(customer.wallet_id)).counters
    assert list(counter.values()) == [4503 * 2 * 10**12]


async def test_cycles_follow_the_business_clock(world: World, customer: Customer) -> None:
    meter = await customer.meter((0, 5 * USD), (1_000, 1 * USD))
    await world.pool.execute("UPDATE subscription SET status = 'cancelled'")  # without a plan, the calendar month is the cycle
    moments = iter([NOW, NOW, datetime.fromisoformat("2026-12-01T00:00:00+00:00")])
    taker = reporting(world, clock=lambda: next(moments))
    answers = [(await report(taker, customer, customer.body(key, meter, 1_000)))[0] for key in "abc"]
    assert amounts(answers) == ["0.005", "0.001", "0.005"]
