"""workers/flusher.py: outbox to Postgres exactly once, whatever dies in between, and never stopped by one row."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from lava_proxy.domain.errors import StoreError
from lava_proxy.settings import Flusher as FlusherSettings
from lava_proxy.stores import postgres
from lava_proxy.stores.balance_store import partition_of, tag
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.ledger_store import Fenced
from lava_proxy.stores.outbox import OutboxEntry
from lava_proxy.workers.credit_applier import CreditApplier
from tests.billing_world import World


class Killed(Exception):
    """Stands for the death of the process."""


async def life(world: World, calls: int, wallets: int = 5) -> list[str]:
    """Calls over several wallets; their ids."""
    made = [await world.wallet(1_000_000) for _ in range(wallets)]
    return [await world.call(made[n % wallets], n + 1) for n in range(calls)]


async def sums(world: World) -> tuple[int, int, int]:
    """Rows, distinct ids, nanos charged."""
    row = (
        await world.fetch(
            "SELECT count(*) n, count(DISTINCT request_id) ids, coalesce(sum(charge_nanos), 0)::bigint AS z FROM request"
        )
    )[0]
    return row["n"], row["ids"], row["z"]


async def test_rows_are_written_exactly_once_however_often_the_flusher_dies(world: World) -> None:
    """I33, G3, 28: killed after COMMIT and before the trim, again and again; or before COMMIT; each time a fresh one goes on."""
    ids = await life(world, 60)
    rng = random.Random(3)
    settings = FlusherSettings(batch_rows_max=9, idle_wait_ms=20)

    def die() -> None:
        raise Killed

    deaths = 0
    while await world.outbox.length():
        if rng.random() < 0.3:
            # Dies between reading and COMMIT: nothing was written.
            await world.outbox.read(await world.ledger.marks(), 9, None)
            continue
        try:
            await world.flusher(settings=settings, after_commit=die if rng.random() < 0.7 else None).run_once(wait=False)
        except Killed:
            deaths += 1
    assert deaths > 3
    assert await sums(world) == (60, 60, sum(range(1, 61)))
    assert {row["request_id"] for row in await world.fetch("SELECT request_id FROM request")} == set(ids)
    assert await world.fetch("SELECT * FROM anomaly") == []
    await world.clean_audit()


async def test_what_a_dead_flusher_committed_and_did_not_trim_is_trimmed_by_the_next(world: World) -> None:
    """I32: no entry stays behind in a partition that sees no more calls, so unflushed is what the stream's length says."""
    await life(world, 3, wallets=1)

    def die() -> None:
        raise Killed

    with pytest.raises(Killed):
        await world.flusher(after_commit=die).flush_all()
    assert await world.outbox.length() > 0
    assert await world.flush() == 0
    assert await world.outbox.length() == 0


async def test_a_second_flusher_is_fenced_and_then_takes_part(world: World) -> None:
    """31: two flushers at once; what one has read, the other cannot write again."""
    slow, quick = world.flusher(), world.flusher()
    await life(world, 1, wallets=1)
    assert await slow.run_once(wait=False) > 0  # both know the marks now
    assert await quick.run_once(wait=False) == 0
    await world.call(world.wallets[-1], 5)
    assert await quick.run_once(wait=False) == 1
    await world.call(world.wallets[-1], 6)
    with pytest.raises(Fenced):
        await slow.run_once(wait=False)
    assert await slow.run_once(wait=False) == 1
    assert await sums(world) == (2 + 1, 3, 1 + 5 + 6)
    await world.clean_audit()


async def test_two_flushers_racing_write_every_row_once(world: World) -> None:
    """31, 43: with calls still coming in."""
    wallet_id = await world.wallet(1_000_000)

    async def flush() -> None:
        flusher = world.flusher(settings=FlusherSettings(batch_rows_max=5, idle_wait_ms=20))
        while not done.is_set() or await world.outbox.length():
            try:
                await flusher.run_once(wait=False)
            except Fenced:
                continue
            await asyncio.sleep(0)

    done = asyncio.Event()
    racing = asyncio.gather(flush(), flush())
    await asyncio.gather(*(world.call(wallet_id, n) for n in range(1, 81)))
    done.set()
    await asyncio.wait_for(racing, 20)
    assert await sums(world) == (80, 80, sum(range(1, 81)))
    await world.clean_audit()


async def test_a_backlog_larger_than_a_batch_is_written_whole_and_every_partition_has_its_turn(world: World) -> None:
    """G4, G12: nothing beyond the first rows of a batch is dropped, and a busy partition does not starve the others."""
    wallets = [await world.wallet(1_000_000) for _ in range(12)]
    await world.flush()
    for n in range(5):
        await asyncio.gather(*(world.call(wallet_id, n + 1) for wallet_id in wallets))
    flusher = world.flusher(settings=FlusherSettings(batch_rows_max=8, idle_wait_ms=20))
    parts: set[int] = set()
    rounds = 0
    while await flusher.run_once(wait=False):
        rounds += 1
        if rounds <= 3:
            parts = {row["part"] for row in await world.fetch("SELECT DISTINCT part FROM ledger_entry WHERE kind = 'settle'")}
            await world.call(wallets[0], 1)
    distinct = {partition_of(wallet_id) for wallet_id in wallets}
    assert len(parts) >= min(len(distinct), 8)
    assert (await sums(world))[:2] == (63, 63)
    await world.clean_audit()


async def test_a_flush_knows_when_a_busy_wallet_has_more(world: World) -> None:
    """G4: the rows of one partition that a read may have are not all that waits there; a pause then would make a queue for ever."""
    await life(world, 6, wallets=1)
    flusher = world.flusher(settings=FlusherSettings(batch_rows_max=16, idle_wait_ms=20))
    seen = []
    while rows := await flusher.run_once(wait=False):
        seen.append((rows, flusher.is_behind))
    assert all(is_behind == (rows == 2) for rows, is_behind in seen) and {is_behind for _, is_behind in seen} == {True, False}, seen


async def test_what_was_read_beyond_a_batch_is_kept_for_the_next_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """G4, I33: under a backlog no row is read twice; after a failure all is read again from the marks."""
    await life(world, 20, wallets=20)
    flusher, seen = world.flusher(settings=FlusherSettings(batch_rows_max=8, idle_wait_ms=20)), []
    read = world.outbox.read

    async def spied(*args: Any) -> list[OutboxEntry]:
        found = await read(*args)
        seen.extend((entry.part, entry.pseq) for entry in found)
        return found

    monkeypatch.setattr(world.outbox, "read", spied)
    assert await flusher.run_once(wait=False) == 8
    assert len(seen) > 8
    # another takes nearly all of what is left, and so some of what this one keeps, however wallets share partitions
    assert 0 < await world.flusher(settings=FlusherSettings(batch_rows_max=11, idle_wait_ms=20)).run_once(wait=False) < 12
    with pytest.raises(Fenced):
        await flusher.run_once(wait=False)
    seen.clear()
    await flusher.flush_all()
    assert len(seen) == len(set(seen))
    assert (await sums(world))[:2] == (20, 20)
    await world.clean_audit()


async def test_a_second_debit_that_redis_forgot_is_reversed_and_its_neighbours_are_kept(world: World) -> None:
    """33, 29, 35, I10: Postgres is the last word about an id; fresh rows of the same batch are written."""
    wallet_id = await world.wallet(1_000)
    again = await world.call(wallet_id, 40)
    await world.flush()
    await world.redis.delete(f"{tag(partition_of(wallet_id))}:h:{again}")
    first = await world.call(wallet_id, 1)
    assert (await world.settle(wallet_id, again, 30)).flags == "l"
    last = await world.call(wallet_id, 2)
    await world.flush()
    assert {row["request_id"]: row["charge_nanos"] for row in await world.fetch("SELECT * FROM request")} == {
        again: 40,
        first: 1,
        last: 2,
    }
    anomaly = (await world.fetch("SELECT * FROM anomaly"))[0]
    assert (anomaly["kind"], anomaly["request_id"], anomaly["facts"]["amount_nanos"]) == ("second_debit", again, -30)
    assert (await world.state(wallet_id)).balance_nanos == 1_000 - 40 - 1 - 30 - 2
    await world.clean_audit()
    assert await CreditApplier(world.catalog, world.funding).run_once() == 1
    assert await CreditApplier(world.catalog, world.funding).run_once() == 0
    assert (await world.state(wallet_id)).balance_nanos == 1_000 - 40 - 1 - 2
    await world.flush()
    assert await world.catalog.open_credits(10) == []
    await world.clean_audit()


@pytest.mark.parametrize("charge", [30, 0])
async def test_a_second_debit_leaves_the_tier_counter_as_it_was(world: World, charge: int) -> None:
    """33, 52, I10: also where its tier is free; and whatever Redis loses before the units have been given back."""
    wallet_id, field = await world.wallet(1_000), "t:prd_1:2026-11"
    again = await world.call(wallet_id, charge, 100, tier_field=field, units=7)
    await world.flush()
    assert (await world.state(wallet_id)).counters == {field: 7}
    await world.redis.delete(f"{tag(partition_of(wallet_id))}:h:{again}")
    assert (await world.settle(wallet_id, again, charge, tier_field=field, units=7)).flags == "l"
    await world.flush()
    assert (await world.state(wallet_id)).counters == {field: 14}
    assert await world.ledger.counters(wallet_id, "2026-10") == {field: 14}  # what a Redis that is rebuilt now must have
    for applied in (1, 0):
        assert await CreditApplier(world.catalog, world.funding).run_once() == applied
        await world.flush()
        assert (await world.state(wallet_id)).counters == {field: 7}
    assert await world.ledger.counters(wallet_id, "2026-10") == {field: 7}
    assert (await world.state(wallet_id)).balance_nanos == 1_000 - charge
    assert await world.catalog.open_credits(10) == []
    await world.clean_audit()


async def test_the_same_id_twice_in_one_batch_is_charged_once(world: World) -> None:
    """44, I10: both debits reach Postgres in one transaction."""
    wallet_id = await world.wallet(1_000)
    request_id = await world.call(wallet_id, 40)
    await world.redis.delete(f"{tag(partition_of(wallet_id))}:h:{request_id}")
    await world.settle(wallet_id, request_id, 40)
    await world.flush()
    assert (await sums(world)) == (1, 1, 40)
    assert len(await world.fetch("SELECT * FROM anomaly")) == 1
    await CreditApplier(world.catalog, world.funding).run_once()
    assert (await world.state(wallet_id)).balance_nanos == 960
    await world.flush()
    await world.clean_audit()


@pytest.mark.parametrize("same_batch", [False, True])
async def test_a_report_under_a_running_calls_id_makes_the_call_no_cheaper(world: World, same_batch: bool) -> None:
    """I10: the id stands in the answer's head, so it can be reported while the call runs; both are charged, each once."""
    wallet_id = await world.wallet(1_000)
    call_id = await world.reserve(wallet_id, 400)
    await world.settle(wallet_id, new_id("req"), 1, mode="late", changes={"request_key": call_id, "fingerprint": "f"})
    if not same_batch:
        await world.flush()
    await world.settle(wallet_id, call_id, 400)
    await world.flush()
    await world.redis.delete(f"{tag(partition_of(wallet_id))}:h:{call_id}")
    assert (await sums(world)) == (2, 2, 401)
    assert await world.fetch("SELECT * FROM anomaly") == []
    await world.settle(wallet_id, call_id, 400, mode="late")  # Redis had forgotten it
    await world.flush()
    await CreditApplier(world.catalog, world.funding).run_once()
    assert (await world.state(wallet_id)).balance_nanos == 1_000 - 401
    await world.flush()
    await world.clean_audit()


async def test_a_report_named_like_a_job_does_not_make_the_job_free(world: World) -> None:
    """I10: what a job is called here is no report's to take."""
    wallet_id = await world.wallet(1_000)
    job = {"once_key": "job/openai/resp_1"}
    await world.settle(wallet_id, new_id("req"), 1, mode="late", changes={"request_key": "job/openai/resp_1", "fingerprint": "f"})
    await world.flush()
    for _ in range(2):
        call_id = await world.reserve(wallet_id, 300)
        await world.settle(wallet_id, call_id, 300, changes=job)
        await world.flush()
    assert (await sums(world)) == (3, 3, 301), "the second look at the job is given back, and has a row of its own"
    await CreditApplier(world.catalog, world.funding).run_once()
    assert (await world.state(wallet_id)).balance_nanos == 1_000 - 301
    await world.flush()
    await world.clean_audit()


async def test_decimals_of_the_usage_arrive_digit_by_digit(world: World) -> None:
    """A2, 53: 30.70 s stays 30.70, a cost keeps all its places, big counts stay whole."""
    wallet_id = await world.wallet(1_000)
    usage = '{"audio_seconds":30.70,"provider_cost_usd":0.00000000012345678901,"input_tokens":9007199254740993}'
    await world.call(wallet_id, 1, changes={"usage": usage, "priced_at_ms": 1_795_000_000_123})
    await world.flush()
    row = (await world.fetch("SELECT usage, priced_at FROM request"))[0]
    assert row["usage"] == {
        "audio_seconds": Decimal("30.70"),
        "provider_cost_usd": Decimal("0.00000000012345678901"),
        "input_tokens": 9007199254740993,
    }
    assert str(row["usage"]["audio_seconds"]) == "30.70"
    assert row["priced_at"].microsecond == 123_000


async def test_rows_lie_in_the_partition_of_their_month(world: World) -> None:
    """The month of the request's id decides; what has no partition goes to the default one, and later runs live with it."""
    wallet_id = await world.wallet(1_000)
    now = datetime.now(UTC)
    await world.call(wallet_id, 1)
    old = "req_" + "0" * 26  # 1970
    await world.settle(wallet_id, old, 2)
    await world.flush()
    where = {
        row["request_id"] == old: row["t"]
        for row in await world.fetch("SELECT request_id, tableoid::regclass::text AS t FROM request")
    }
    assert where == {False: f"request_{now:%Y_%m}", True: "request_default"}
    async with world.pool.acquire() as connection:
        # 1970-01 cannot be split off: its row lies in the default partition. The other months can.
        made = await postgres.ensure_partitions(connection, datetime(1970, 1, 1, tzinfo=UTC))
        assert made == 3 * 4 - 1
        assert await postgres.ensure_partitions(connection, now) == 0
    await world.clean_audit()


async def test_postgres_goes_away_and_comes_back_and_nothing_is_missing(world: World) -> None:
    """G7, G10: calls go on meanwhile; the outbox keeps them; one transaction is all or nothing."""
    wallet_id = await world.wallet(1_000)
    flusher = world.flusher()
    await flusher.flush_all()
    name = world.database_url.partition("?")[0].rpartition("/")[2]
    admin = await asyncpg.connect(world.database_url.replace(f"/{name}", "/postgres"))
    try:
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        for n in range(4):
            await world.call(wallet_id, n)
            with pytest.raises(StoreError):
                await flusher.run_once(wait=False)
        assert await world.outbox.length() == 4
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    finally:
        await admin.close()
    assert await flusher.flush_all() == 4
    assert await sums(world) == (4, 4, 6)
    await world.clean_audit()


@pytest.mark.parametrize(
    "poison",
    [
        {"model": "gpt\0"},
        {"metadata": '{"note":"a\\u0000b"}'},
        {"metadata": '{"note":"\\\\u0000 is text"}'},
        {"metadata": '{"note":"\\ud800"}'},
        {"usage": '{"x":1e999999999}'},
        {"usage": "{not json"},
        {"cost_nanos": 2**64 - 1},
        {"tier_units": 2**64 - 1},
        {"http_status": 99_999},
        {"response_id": "\0"},
    ],
    ids=str,
)
async def test_one_row_that_postgres_refuses_does_not_stop_the_others(world: World, poison: dict[str, Any]) -> None:
    """G6, G8: a model name with a NUL, a number beyond its column: repaired, written, charged; the flusher goes on."""
    wallet_id = await world.wallet(1_000)
    before = await world.call(wallet_id, 1)
    bad = await world.call(wallet_id, 2, changes={"cost_nanos": 0, **poison})
    after = await world.call(wallet_id, 3)
    await world.flush()
    rows = {row["request_id"]: row["charge_nanos"] for row in await world.fetch("SELECT * FROM request")}
    assert rows == {before: 1, bad: 2, after: 3}
    await world.clean_audit()


async def test_a_refused_credit_does_not_hold_up_the_others(world: World) -> None:
    """A credit above what a wallet can hold stays open; those behind it are applied."""
    full, other = await world.wallet(9_000_000_000_000_000), await world.wallet()
    await world.flush()
    too_much, fine = new_id("crd"), new_id("crd")
    for credit_id, wallet_id in ((too_much, full), (fine, other)):
        await world.pool.execute(
            "INSERT INTO credit VALUES ($1, $2, 5, $3, 'test', now())", credit_id, wallet_id, f"f:500:99999999999:1:{credit_id}"
        )
    assert await CreditApplier(world.catalog, world.funding).run_once() == 1
    assert (await world.state(other)).balance_nanos == 5
    await world.flush()
    assert [credit.credit_id for credit in await world.catalog.open_credits(10)] == [too_much]


async def test_orders_that_are_refused_for_ever_do_not_hide_those_behind_them(world: World) -> None:
    """Also when there are more of them than the applier reads at a time."""
    full, other = await world.wallet(9_000_000_000_000_000), await world.wallet()
    await world.flush()
    too_much, fine = [new_id("crd") for _ in range(4)], new_id("crd")
    for credit_id, wallet_id in ((one, other if one == fine else full) for one in (*too_much, fine)):
        await world.pool.execute(
            "INSERT INTO credit VALUES ($1, $2, 5, $3, 'test', now())", credit_id, wallet_id, f"f:500:99999999999:1:{credit_id}"
        )
    applier = CreditApplier(world.catalog, world.funding, batch=2)
    assert await applier.run_once() == 1
    assert (await world.state(other)).balance_nanos == 5
    await world.flush()
    assert [credit.credit_id for credit in await world.catalog.open_credits(10)] == too_much
    assert await applier.run_once() == 0
