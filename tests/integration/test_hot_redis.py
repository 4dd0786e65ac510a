"""stores/hot_redis.py: coalescing, lost replies, and every way in which Redis can be away; each call ends within a bound."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from lava_proxy.domain.errors import Conflict, InsufficientFunds, NotFound, StoreError
from lava_proxy.stores.balance_store import BalanceStore, Held, Settled, partition_of, tag
from lava_proxy.stores.hot_redis import VERIFIED_KEY, Ambiguous, HotRedis, NotSent
from tests.billing_world import KEEP_MS, LEASE_MS, make_ready, scratch_redis

TIMEOUT_S = 0.5
WALLET = "wal_1"


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[tuple[HotRedis, BalanceStore]]:
    """A hot leg with short bounds, ready."""
    hot = HotRedis(url, timeout_s=TIMEOUT_S, connect_wait_s=0.3, **{"require_verified": False, **options})
    await hot.start()
    try:
        assert await hot.wait_ready(5)
        yield hot, BalanceStore(hot)
    finally:
        await hot.stop()


@asynccontextmanager
async def plain(url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(url)
    try:
        yield client
    finally:
        await client.aclose()


async def prepared(url: str, store: BalanceStore, funds: int, wallet_id: str = WALLET) -> None:
    """A ready partition and a wallet with funds."""
    async with plain(url) as client:
        await make_ready(client)
    await store.open_wallet(wallet_id)
    await store.credit(wallet_id, f"crd_{wallet_id}", funds, lot_key=f"f:500:99999999999:1:{wallet_id}", row=b"{}", keep_ms=KEEP_MS)


async def reserve(store: BalanceStore, request_id: str, amount: int = 1, wallet_id: str = WALLET) -> Held:
    return await store.reserve(wallet_id, request_id, amount, row=b"{}", lease_ms=LEASE_MS)


async def settle(store: BalanceStore, request_id: str, charge: int = 1, wallet_id: str = WALLET, **options: Any) -> Settled:
    found = await store.settle(wallet_id, request_id, charge, row=b"{}", keep_ms=KEEP_MS, **options)
    assert isinstance(found, Settled)
    return found


async def wallet(url: str, wallet_id: str = WALLET) -> dict[str, int]:
    async with plain(url) as client:
        row = await client.hgetall(f"{tag(partition_of(wallet_id))}:w:{wallet_id}")
    return {key.decode(): int(value) for key, value in row.items() if key != b"lots"}


# -- races


async def test_two_hundred_reserves_through_two_gateways_admit_exactly_what_is_there(redis_url: str) -> None:
    """I16, E1, 9, 10: 37 on the balance, 200 askers on two connections at once, 37 admitted."""
    async with connected(redis_url) as (_, one), connected(redis_url) as (_, other):
        await prepared(redis_url, one, 37)
        calls = [reserve((one, other)[n % 2], f"req_{n}") for n in range(200)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(reply, Held) for reply in found) == 37
        assert sum(isinstance(reply, InsufficientFunds) for reply in found) == 163
        assert await wallet(redis_url) | {"seq": 1} == {
            "seq": 1, "pa": 0, "fa": 0, "ph": 0, "fh": 37, "debt": 0, "settled": 0, "credited": 37,
        }  # fmt: skip


async def test_one_call_end_to_end_leaves_exact_sums_under_concurrency(redis_url: str) -> None:
    """8, E7, F7: hundreds of whole calls at once on one wallet; the settle replaces the hold and never adds to it."""
    async with connected(redis_url) as (_, store):
        await prepared(redis_url, store, 10_000)

        async def call(n: int) -> None:
            await reserve(store, f"req_{n}", 20)
            await settle(store, f"req_{n}", n % 30)

        await asyncio.gather(*(call(n) for n in range(300)))
        spent = sum(n % 30 for n in range(300))
        found = await wallet(redis_url)
        assert (found["fa"], found["fh"], found["settled"]) == (10_000 - spent, 0, spent)


# -- batches


async def test_many_operations_of_many_wallets_go_as_few_script_calls(redis_url: str) -> None:
    """H7: what waits in one tick goes together, at most 32 an EVALSHA, without a timer."""
    async with connected(redis_url) as (_, store), plain(redis_url) as client:
        for n in range(8):
            await prepared(redis_url, store, 1_000, f"wal_{n}")
        await client.config_resetstat()
        found = await asyncio.gather(*(reserve(store, f"req_{n}", 3, f"wal_{n % 8}") for n in range(100)))
        assert found == [Held(0, 3, 0)] * 100
        stats = await client.info("commandstats")
        assert stats["cmdstat_evalsha"]["calls"] == 4


async def test_a_poisoned_operation_does_not_hurt_its_neighbours(redis_url: str) -> None:
    """A wallet key of a foreign type fails alone; the others of its batch are applied and answered."""
    async with connected(redis_url) as (_, store), plain(redis_url) as client:
        await prepared(redis_url, store, 100)
        await prepared(redis_url, store, 100, "wal_2")
        await client.set(f"{tag(partition_of('wal_bad'))}:w:wal_bad", "not a hash")
        first, poisoned, unknown, second = await asyncio.gather(
            reserve(store, "req_1", 10),
            reserve(store, "req_2", 10, "wal_bad"),
            reserve(store, "req_3", 10, "wal_unknown"),
            reserve(store, "req_4", 10, "wal_2"),
            return_exceptions=True,
        )
        assert (first, second) == (Held(0, 10, 0), Held(0, 10, 0))
        assert isinstance(poisoned, Ambiguous) and isinstance(unknown, NotFound)
        assert (await wallet(redis_url))["fh"] == (await wallet(redis_url, "wal_2"))["fh"] == 10


async def test_duplicates_inside_one_batch_are_applied_once(redis_url: str) -> None:
    """44, 50, I10: the same reserve twice, the same settle three times, in one script call."""
    async with connected(redis_url) as (_, store):
        await prepared(redis_url, store, 100)
        held = await asyncio.gather(reserve(store, "req_1", 10), reserve(store, "req_1", 10))
        assert held == [Held(0, 10, 0)] * 2
        ended = await asyncio.gather(*(settle(store, "req_1", charge) for charge in (4, 4, 9)))
        assert [reply.repeated for reply in ended] == [False, True, True]
        assert {reply.charge_nanos for reply in ended} == {4}
        found = await wallet(redis_url)
        assert (found["fa"], found["fh"], found["settled"]) == (96, 0, 4)
        other = store.reserve(WALLET, "req_2", 5, row=b"{}", lease_ms=1, fingerprint="a")
        same_id = store.reserve(WALLET, "req_2", 5, row=b"{}", lease_ms=1, fingerprint="b")
        first, second = await asyncio.gather(other, same_id, return_exceptions=True)
        assert isinstance(first, Held) and isinstance(second, Conflict)


# -- lost replies


class DroppingProxy:
    """Relays bytes to a Unix socket; while `drops`, the next reply is swallowed and the connection cut."""

    def __init__(self, upstream: str, path: Path) -> None:
        self._upstream = upstream
        self.path = path
        self.drops = False

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._relay, str(self.path))

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(self._upstream)

        async def back() -> None:
            while reply := await up_reader.read(65536):
                if self.drops:
                    self.drops = False
                    break
                writer.write(reply)
            writer.close()

        backwards = asyncio.get_running_loop().create_task(back())
        with suppress(ConnectionError):
            while request := await reader.read(65536):
                up_writer.write(request)
        up_writer.close()
        await backwards


async def test_a_lost_reply_and_its_retry_apply_once(redis_url: str, tmp_path: Path) -> None:
    """2, F2: the reply is dropped after EVALSHA; the caller learns that it does not know; the retry changes nothing more."""
    proxy = DroppingProxy(redis_url.removeprefix("unix://").partition("?")[0], tmp_path / "proxy.sock")
    await proxy.start()
    async with connected(f"unix://{proxy.path}") as (hot, store):
        await prepared(redis_url, store, 100)
        proxy.drops = True
        with pytest.raises(Ambiguous):
            await reserve(store, "req_1", 10)
        assert await hot.wait_ready(2)
        assert (await wallet(redis_url))["fh"] == 10
        assert await reserve(store, "req_1", 10) == Held(0, 10, 0)
        proxy.drops = True
        with pytest.raises(Ambiguous):
            await settle(store, "req_1", 7)
        assert await hot.wait_ready(2)
        assert await settle(store, "req_1", 7) == Settled(7, repeated=True)
        found = await wallet(redis_url)
        assert (found["fa"], found["fh"], found["settled"], found["seq"]) == (93, 0, 7, 2)
    await proxy.stop()


# -- outages


async def test_a_paused_redis_gives_bounded_refusals_and_works_again_when_it_wakes() -> None:
    """H1, H6, 41: first calls end as ambiguous within the timeout, later ones are refused fast, nobody is let through."""
    with scratch_redis() as server:
        async with connected(server.url) as (hot, store):
            await prepared(server.url, store, 100)
            server.signal(signal.SIGSTOP)
            started = time.monotonic()
            with pytest.raises(Ambiguous):
                await reserve(store, "req_1", 10)
            assert time.monotonic() - started < TIMEOUT_S + 0.6
            started = time.monotonic()
            found = await asyncio.gather(*(reserve(store, f"req_{n}", 1) for n in range(2, 20)), return_exceptions=True)
            assert time.monotonic() - started < 1.0
            assert {type(reply) for reply in found} == {NotSent}
            assert not hot.is_ready
            server.signal(signal.SIGCONT)
            assert await hot.wait_ready(5)
            assert await reserve(store, "req_30", 5) == Held(0, 5, 0)
            # What was under way may have been applied; it holds at most what was asked for, and its id can be ended.
            assert (await wallet(server.url))["fh"] in (5, 15)
            with suppress(NotFound):
                await settle(store, "req_1", 0, mode="held")
            assert (await wallet(server.url))["fh"] == 5


async def test_a_redis_that_died_is_refused_and_found_again_when_it_is_back() -> None:
    """H1: a restart is met by waiting for a moment, not by failing every call."""
    with scratch_redis("--appendonly", "yes", "--appendfsync", "always") as server:
        async with connected(server.url) as (hot, store):
            await prepared(server.url, store, 100)
            await reserve(store, "req_1", 10)
            server.stop()
            with pytest.raises(StoreError):
                await reserve(store, "req_2", 10)
            server.start()
            assert await hot.wait_ready(5)
            assert (await wallet(server.url))["fh"] == 10
            assert (await settle(store, "req_1", 4)).balance_nanos == 96


async def test_out_of_memory_refuses_reserves_and_still_settles() -> None:
    """I12: a full Redis takes no new hold and changes nothing for it, but money held can be resolved."""
    with scratch_redis("--maxmemory-policy", "noeviction") as server:
        async with connected(server.url) as (_, store), plain(server.url) as client:
            await prepared(server.url, store, 100)
            await reserve(store, "req_1", 10)
            await client.config_set("maxmemory", 1)
            before = await wallet(server.url)
            refused, ended, renewed = await asyncio.gather(
                reserve(store, "req_2", 10), settle(store, "req_1", 4), store.lease(WALLET, "req_9", lease_ms=1, row=b"{}"),
                return_exceptions=True,
            )  # fmt: skip
            assert isinstance(refused, NotSent)
            assert isinstance(ended, Settled) and ended.balance_nanos == 96
            assert renewed is False
            with pytest.raises(NotSent):
                await reserve(store, "req_3", 10)
            found = await wallet(server.url)
            assert before["fh"] == 10 and (found["fh"], found["fa"]) == (0, 96)
            await client.config_set("maxmemory", 0)
            assert await reserve(store, "req_4", 10) == Held(0, 10, 0)


async def test_a_redis_that_forgot_the_scripts_gets_them_again(redis_url: str) -> None:
    """NOSCRIPT means that nothing ran: load, repeat, and nobody notices."""
    async with connected(redis_url) as (_, store), plain(redis_url) as client:
        await prepared(redis_url, store, 100)
        await client.script_flush()
        held = await asyncio.gather(*(reserve(store, f"req_{n}", 1) for n in range(40)))
        assert held == [Held(0, 1, 0)] * 40
        await client.script_flush()
        assert (await settle(store, "req_0", 1)).wseq == 2


async def test_a_run_of_redis_that_nobody_verified_serves_nobody(redis_url: str) -> None:
    """I34, H8: calls are refused until the run is checked against the ledger, then served without a restart."""
    hot = HotRedis(redis_url, timeout_s=TIMEOUT_S, connect_wait_s=0.05)
    await hot.start()
    try:
        assert not await hot.wait_ready(0.2)
        store = BalanceStore(hot)
        with pytest.raises(NotSent):
            await reserve(store, "req_1")
        async with plain(redis_url) as client:
            await client.set(VERIFIED_KEY, "some_other_run")
            assert not await hot.wait_ready(0.6)
            await client.set(VERIFIED_KEY, (await client.info("server"))["run_id"])
        assert await hot.wait_ready(2)
    finally:
        await hot.stop()


async def test_a_stopped_leg_refuses(redis_url: str) -> None:
    """After stop no call hangs."""
    async with connected(redis_url) as (_, store):
        await prepared(redis_url, store, 5)
    with pytest.raises(StoreError):
        await asyncio.wait_for(reserve(store, "req_1"), 2)
