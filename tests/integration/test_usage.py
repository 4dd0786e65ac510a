"""stores/usage_rollup.py and stores/usage_store.py: usage adds up to the ledger, however it was flushed, filtered and cut."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from lava_proxy.domain.usage_window import UsageWindow
from lava_proxy.settings import Flusher as FlusherSettings
from lava_proxy.stores.balance_store import partition_of, tag
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.usage_rollup import MEASURES, ROLLUPS
from lava_proxy.stores.usage_store import UsageFilter, UsageStore, UsageSums
from tests.billing_world import World

FIRST = datetime(2026, 11, 20, tzinfo=UTC)
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def id_at(at: datetime) -> str:
    """A request id that was made at a time."""
    ms = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    return "req_" + "".join(_CROCKFORD[(ms >> shift) & 31] for shift in range(45, -1, -5)) + new_id("req")[-16:]


def window(start: datetime, end: datetime, bucket: Any = "day") -> UsageWindow:
    return UsageWindow(start=start, end=end, bucket=bucket)


async def meters(world: World) -> dict[str, tuple[str, int]]:
    """A fixed and a percentage meter: name -> (id, version)."""
    found = {}
    for name, sql in (("fixed", "fixed"), ("percentage", "percentage")):
        meter_id = new_id("prd")
        await world.pool.execute(
            "INSERT INTO meter VALUES ($1, $2, $3, $4, ''::bytea, NULL, now())",
            meter_id, world.merchant_id, meter_id, meter_id.encode(),
        )  # fmt: skip
        version = await world.pool.fetchval(
            "INSERT INTO meter_version (meter_id, name, rate_type, tier_type, token_basis, tiers, created_at)"
            " VALUES ($1, 'm', $2, 'tokens_1m', 'input+output', '[[0, 1]]', now()) RETURNING version_id",
            meter_id, sql,
        )  # fmt: skip
        found[name] = (meter_id, version)
    return found


async def random_calls(world: World, rng: random.Random, count: int) -> None:
    """Calls of three days by three customers and the merchant itself, with everything that makes them count differently."""
    wallets = [await world.wallet(10**12) for _ in range(3)]
    customers = {wallet_id: new_id("con") for wallet_id in wallets[1:]}  # the first has none: the merchant's own calls
    made = await meters(world)
    for _ in range(count):
        wallet_id = rng.choice(wallets)
        meter_id, version = rng.choice([(None, None), *made.values()]) if wallet_id in customers else (None, None)
        changes = {
            "connection_id": customers.get(wallet_id),
            "meter_id": meter_id,
            "meter_version": version,
            "model": rng.choice(["a", "b", None, "long" * 60]),
            "provider": rng.choice(["openai", "anthropic"]),
            "provider_key_type": rng.choice(["managed", "unmanaged"]),
            "status": rng.choice(["completed", "completed", "error"]),
            "outcome": rng.choice(["completed", "provider_error"]),
            "provenance": rng.choice(["provider_final", "estimated"]),
            "billed": rng.random() < 0.8,
            "http_status": rng.choice([200, 404, 500, None]),
            "api": rng.choice(["chat", "speech", "transcription"]),
            "cost_nanos": rng.choice([0, 7, 4_500_001]),
            "metadata": rng.choice([None, '{"feature":"chat"}', '{"feature":"search","team":"red"}']),
            "usage": rng.choice(
                [
                    "{}",
                    '{"input_tokens":1000,"output_tokens":500}',
                    '{"input_characters":12,"output_characters":3}',
                    '{"audio_seconds":30.7000005}',
                    '{"input_seconds":1.5,"output_seconds":2,"audio_seconds":9}',
                    '{"input_tokens":-4,"output_tokens":true,"audio_seconds":"x"}',
                    '{"input_tokens":1e300,"output_tokens":12345678901234567890123,"x":1.5}',
                    '{"input_tokens":2.9,"output_tokens":99999999999999999999}',
                    '{"other_models":{"m":{"input_tokens":4}}}',
                ]
            ),
        }
        at = FIRST + timedelta(milliseconds=rng.randrange(3 * 86_400_000))
        await world.settle(wallet_id, id_at(at), rng.choice([0, 1, 999_999_937]), changes=changes)


async def rollups(world: World) -> dict[str, list[dict[str, Any]]]:
    """All of them as they stand."""
    return {
        table: await world.fetch(f"SELECT {', '.join((*key, *MEASURES))} FROM {table} ORDER BY {', '.join(key)}")
        for table, key in ROLLUPS.items()
    }


class Killed(Exception):
    """Stands for the death of the process."""


def die() -> None:
    raise Killed


@pytest.mark.parametrize("seed", range(3))
async def test_rollups_are_the_sums_of_the_requests_however_often_the_flusher_dies(world: World, seed: int) -> None:
    """32, I33: kept batch by batch by flushers that die, they are what a rebuild makes of the rows, measure by measure."""
    rng = random.Random(seed)
    await random_calls(world, rng, 150)
    deaths = 0
    while await world.outbox.length():
        flusher = world.flusher(
            settings=FlusherSettings(batch_rows_max=rng.choice([3, 16, 40]), idle_wait_ms=20),
            after_commit=die if rng.random() < 0.5 else None,
        )
        try:
            await flusher.run_once(wait=False)
        except Killed:
            deaths += 1
    assert deaths
    kept = await rollups(world)
    for table in kept:
        assert sum(row["requests"] for row in kept[table]) == 150, table
    assert await UsageStore(world.pool).rebuild() == 150
    assert await rollups(world) == kept
    await world.clean_audit()


@pytest.mark.parametrize("seed", range(2))
async def test_any_window_filter_and_group_gives_the_sums_of_its_rows(world: World, seed: int) -> None:
    """32: whichever of the rollups answers, and however ragged the window's ends."""
    rng = random.Random(100 + seed)
    await random_calls(world, rng, 150)
    await world.flush()
    rows = await world.fetch("SELECT * FROM usage_fact")
    store = UsageStore(world.pool)
    some = rng.choice([row for row in rows if row["connection_id"]])
    for _ in range(25):
        zone = timezone(timedelta(minutes=15 * rng.randint(-56, 56)))
        start = (FIRST + timedelta(milliseconds=rng.randrange(3 * 86_400_000))).astimezone(zone)
        if rng.random() < 0.5:
            start = start.replace(hour=0, minute=0, second=0, microsecond=0)
        length = rng.choice([timedelta(seconds=1), timedelta(minutes=20), timedelta(hours=7), timedelta(days=1), timedelta(days=3)])
        asked = window(start, start + length, rng.choice(["day", "hour", "15m"]))
        filters = UsageFilter(
            connection_id=rng.choice([None, some["connection_id"]]),
            meter_id=rng.choice([None, None, some["meter_id"]]),
            metadata=rng.choice([{}, {}, {"feature": "chat"}]),
        )
        inside = [row for row in rows if start <= row["created_at"] < asked.end and matches(row, filters)]
        assert await store.totals(world.merchant_id, asked, filters) == added(inside)
        expected: dict[datetime, list[dict[str, Any]]] = {first: [] for first in asked.first_instants()}
        for row in inside:
            expected[max(first for first in expected if first <= row["created_at"])].append(row)
        assert dict(await store.series(world.merchant_id, asked, filters)) == {at: added(of) for at, of in expected.items()}
        for dimension, column in (
            ("customer", "connection_id"), ("meter", "meter_id"), ("model", "model"), ("provider", "provider"),
        ):  # fmt: skip
            found = await store.top(world.merchant_id, asked, dimension, 1000, filters)  # type: ignore[arg-type]
            assert dict(found) == grouped(inside, lambda row, column=column: row[column])
            assert [sums.charge_nanos for _, sums in found] == sorted((s.charge_nanos for _, s in found), reverse=True)
        by_team = await store.top_metadata(world.merchant_id, asked, "team", 1000, filters)
        assert dict(by_team) == grouped(inside, lambda row: (row["metadata"] or {}).get("team", ""))
        for share in ("outcome", "provenance"):
            every = [row for row in rows if start <= row["created_at"] < asked.end]
            assert await store.shares(world.merchant_id, asked, share) == grouped(every, lambda row, of=share: row[of])  # type: ignore[arg-type]


def matches(row: dict[str, Any], filters: UsageFilter) -> bool:
    return (
        filters.connection_id in (None, row["connection_id"])
        and filters.meter_id in (None, row["meter_id"])
        and filters.metadata.items() <= (row["metadata"] or {}).items()
    )


def added(rows: Iterable[dict[str, Any]]) -> UsageSums:
    return sum((UsageSums(**{name: int(row[name]) for name in MEASURES}) for row in rows), UsageSums())


def grouped(rows: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], str]) -> dict[str, UsageSums]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return {value: added(of) for value, of in found.items()}


async def test_a_second_debit_that_is_reversed_counts_once(world: World) -> None:
    """32, I10: rollups count the rows that were kept."""
    wallet_id = await world.wallet(1_000)
    request_id = await world.call(wallet_id, 40)
    await world.flush()
    await world.redis.delete(f"{tag(partition_of(wallet_id))}:h:{request_id}")
    await world.settle(wallet_id, request_id, 30)
    await world.flush()
    found = await world.fetch("SELECT requests, charge_nanos FROM usage_by_meter")
    assert found == [{"requests": 1, "charge_nanos": 40}]
    await world.clean_audit()


async def test_absurd_usage_never_stops_the_flusher(world: World) -> None:
    """G6, 112: counts beyond any truth are cut, sums stay within their columns, negative ones count nothing."""
    wallet_id = await world.wallet(1_000)
    at = id_at(FIRST)
    huge = {"usage": '{"input_tokens":99999999999999999999999,"output_tokens":-5}', "cost_nanos": 2**63 - 1}
    for n in range(6):
        await world.settle(wallet_id, at[:-1] + str(n), 1, changes=huge)
    await world.flush()
    (row,) = await world.fetch("SELECT requests, input_tokens, output_tokens, cost_nanos, charge_nanos FROM usage_by_meter")
    assert row == {
        "requests": 6, "input_tokens": 6 * 10**12, "output_tokens": 0, "cost_nanos": 6 * 900_000 * 10**9, "charge_nanos": 6,
    }  # fmt: skip
    await world.pool.execute("UPDATE usage_by_meter SET cost_nanos = $1", 2**63 - 1)
    await world.settle(wallet_id, at[:-1] + "9", 1, changes=huge)
    await world.flush()
    assert await world.pool.fetchval("SELECT requests FROM usage_by_meter") == 7


async def test_names_that_the_provider_did_not_know_make_no_rows(world: World) -> None:
    """A caller can invent any number of models; what fails for its name counts under none."""
    wallet_id = await world.wallet(1_000)
    for n in range(5):
        changes = {"model": f"nonsense-{n}", "status": "error", "billed": False, "http_status": 404}
        await world.settle(wallet_id, id_at(FIRST), 0, changes=changes)
    await world.settle(wallet_id, id_at(FIRST), 0, changes={"model": "x" * 1000, "status": "error", "http_status": 500})
    await world.flush()
    found = await world.fetch("SELECT model, requests, errors FROM usage_by_model ORDER BY 1")
    assert found == [{"model": "", "requests": 5, "errors": 5}, {"model": "x" * 128, "requests": 1, "errors": 1}]


async def test_the_audit_names_a_rollup_that_is_not_the_sum_of_its_requests(world: World) -> None:
    """32: too much, too little, or nothing at all."""
    wallet_id = await world.wallet(1_000)
    await world.settle(wallet_id, id_at(FIRST), 5)
    await world.flush()
    await world.clean_audit()
    await world.pool.execute("UPDATE usage_by_model SET charge_nanos = charge_nanos + 1")
    await world.pool.execute("DELETE FROM usage_by_customer_day")
    report = await world.audit()
    assert [(found["invariant"], found["where"].split()[0]) for found in report.violations] == [
        ("32", "usage_by_customer_day"),
        ("32", "usage_by_model"),
    ]
    assert await UsageStore(world.pool).rebuild() == 1
    await world.clean_audit()


async def test_a_rebuild_while_calls_are_flushed_loses_and_doubles_nothing(world: World) -> None:
    """32: flushes wait for it, or it for them."""
    wallet_id = await world.wallet(1_000_000)
    store = UsageStore(world.pool)
    flusher = world.flusher(settings=FlusherSettings(batch_rows_max=4, idle_wait_ms=20))
    for n in range(40):
        await world.settle(wallet_id, id_at(FIRST + timedelta(minutes=n)), n)

    async def flush() -> None:
        while await flusher.run_once(wait=False):
            await asyncio.sleep(0)

    async def rebuild() -> None:
        for _ in range(5):
            await store.rebuild()

    await asyncio.gather(flush(), rebuild())
    await flusher.flush_all()
    await world.clean_audit()
    assert (await store.totals(world.merchant_id, window(FIRST, FIRST + timedelta(days=1)))).charge_nanos == sum(range(40))


async def test_another_merchants_usage_is_not_counted(world: World) -> None:
    wallet_id = await world.wallet(1_000)
    await world.settle(wallet_id, id_at(FIRST), 5)
    await world.flush()
    assert await UsageStore(world.pool).totals("mer_other", window(FIRST, FIRST + timedelta(days=1))) == UsageSums()


async def test_rows_written_before_there_were_rollups_are_counted_by_the_migration(world: World) -> None:
    """The migration's own statement: what it finds is what flushing would have added."""
    await random_calls(world, random.Random(9), 40)
    await world.flush()
    kept = await rollups(world)
    for table in ROLLUPS:
        await world.pool.execute(f"DELETE FROM {table}")
    await world.pool.execute("SELECT rebuild_usage()")
    assert await rollups(world) == kept
    assert kept["usage_by_meter"]
