"""Redis, Postgres and the outbox: what a call meets when one of them is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from lava_proxy.gateway import worker as worker_module
from lava_proxy.settings import Settings
from lava_proxy.stores import postgres
from lava_proxy.stores.catalog_store import CatalogStore
from tests.integration.gateway.conftest import StartGateway
from tests.integration.gateway.fakes import Call, chat_body, chat_events
from tests.integration.gateway.forwarder import Forwarder, postgres_forwarder, redis_forwarder, through
from tests.integration.gateway.harness import NANOS_PER_TOKEN, Gateway, World, chat_request


def quick_redis(settings: Settings) -> Settings:
    return replace(settings, redis=replace(settings.redis, timeout_s=0.2, connect_wait_s=0.2))  # type: ignore[arg-type]


def answering(call: Call) -> None:
    call.answer(chat_body())


@pytest.fixture
async def redis_port(world: World) -> AsyncIterator[Forwarder]:
    forwarder = redis_forwarder(world.redis_url)
    await forwarder.open()
    yield forwarder
    await forwarder.cut()


@pytest.fixture
async def postgres_port(world: World) -> AsyncIterator[Forwarder]:
    forwarder = postgres_forwarder(world.database_url)
    await forwarder.open()
    yield forwarder
    await forwarder.cut()


async def test_without_redis_calls_are_refused_within_two_seconds_and_nothing_is_forwarded(start: StartGateway) -> None:
    """H1, H6: fail closed, in a bounded time."""
    gateway = await start(redis_url="redis://127.0.0.1:1")
    began = asyncio.get_running_loop().time()
    clients = [await gateway.client() for _ in range(20)]
    for client in clients:
        client.send(gateway.request())
    for client in clients:
        response = await client.response()
        assert (response.status, response.error_code, response.header(b"retry-after")) == (503, "billing_unavailable", b"1")
    assert asyncio.get_running_loop().time() - began < 2
    assert gateway.provider.connections_made == 0


async def test_a_redis_that_hangs_refuses_calls_and_leaves_no_hold_behind(redis_port: Forwarder, start: StartGateway) -> None:
    """H1, F2: a reserve without an answer may have been made; its hold is ended when Redis is back."""
    gateway = await start(redis_url=f"redis://127.0.0.1:{redis_port.port}", adjust=quick_redis)
    gateway.provider.answer = answering
    client = await gateway.client()
    client.send(gateway.request())
    assert (await client.response()).status == 200
    await gateway.settled()
    redis_port.hang()
    client.send(gateway.request())
    response = await client.response()
    assert (response.status, response.header(b"retry-after")) == (503, b"1")
    assert len(gateway.provider.calls) == 1
    await gateway.settled()  # reconnected meanwhile
    client.send(gateway.request())
    assert (await client.response()).status == 200


async def test_a_call_under_way_when_redis_goes_is_settled_when_it_is_back(redis_port: Forwarder, start: StartGateway) -> None:
    """F11: the settle is repeated until it is answered; the client has its answer meanwhile."""
    gateway = await start(redis_url=f"redis://127.0.0.1:{redis_port.port}", adjust=quick_redis)
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=True)))
    call = await gateway.provider.next_call()
    await redis_port.cut()
    events = chat_events()
    call.stream(events)
    assert (await client.response()).complete
    other = await gateway.client()
    other.send(gateway.request())
    assert (await other.response()).status == 503
    await redis_port.open()
    assert (await gateway.row())["charge_nanos"] == 15 * NANOS_PER_TOKEN


async def test_without_postgres_known_callers_go_on_and_unknown_ones_get_a_503(
    postgres_port: Forwarder, start: StartGateway, world: World
) -> None:
    """G7, H: Postgres is not on the path of a call whose credential is known."""
    url = through(postgres_port, world.database_url)
    pool = await postgres.connect(url, size_max=2)
    gateway = await start(catalog=CatalogStore(pool, world.catalog._vault), database_url=url)
    gateway.provider.answer = answering
    try:
        client = await gateway.client()
        client.send(gateway.request())
        assert (await client.response()).status == 200
        await postgres_port.cut()
        for _ in range(3):
            client.send(gateway.request())
            assert (await client.response()).status == 200
        client.send(gateway.request(token=gateway.secret_key))
        response = await client.response()
        assert (response.status, response.error_code, response.header(b"retry-after")) == (503, "database_unavailable", b"1")
        assert len(gateway.provider.calls) == 4
        await postgres_port.open()
        client.send(gateway.request(token=gateway.secret_key, body=chat_request(model="gpt-4o-mini")))
        assert (await client.response()).status == 200
    finally:
        pool.terminate()


async def test_a_revoked_key_is_refused_on_a_running_worker(gateway: Gateway, world: World) -> None:
    """Within a second: the catalogue says so, nobody waits for a cache to expire."""
    gateway.provider.answer = answering
    client = await gateway.client()
    client.send(gateway.request())
    assert (await client.response()).status == 200
    [key] = await world.catalog.secret_keys(gateway.merchant.merchant_id)
    grants = gateway.worker._grants
    generation = grants._generation
    assert await world.catalog.revoke_secret_key(key["secret_key_id"])
    async with asyncio.timeout(1):
        while grants._generation == generation:
            await asyncio.sleep(0)
    client.send(gateway.request())
    response = await client.response()
    assert (response.status, response.error_code) == (401, "invalid_secret_key")
    assert len(gateway.provider.calls) == 1


async def test_a_change_that_was_missed_is_seen_after_the_listener_is_back(
    postgres_port: Forwarder, start: StartGateway, world: World
) -> None:
    url = through(postgres_port, world.database_url)
    gateway = await start(database_url=url)
    gateway.provider.answer = answering
    client = await gateway.client()
    client.send(gateway.request())
    assert (await client.response()).status == 200
    await postgres_port.cut()  # the listener only; the catalogue itself stays reachable
    [key] = await world.catalog.secret_keys(gateway.merchant.merchant_id)
    assert await world.catalog.revoke_secret_key(key["secret_key_id"])
    generation = gateway.worker._grants._generation
    await postgres_port.open()
    async with asyncio.timeout(3):
        while gateway.worker._grants._generation == generation:
            await asyncio.sleep(0.01)
    client.send(gateway.request())
    assert (await client.response()).status == 401


async def test_a_listener_whose_connection_was_dropped_without_a_word_is_noticed_and_what_it_missed_is_seen(
    postgres_port: Forwarder, start: StartGateway, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H1: firewalls drop idle connections silently; a key that was revoked meanwhile must not work for ever."""
    monkeypatch.setattr(worker_module, "LISTENER_PING_S", 0.05)
    monkeypatch.setattr(worker_module, "_LISTENER_ANSWER_S", 0.2)
    gateway = await start(database_url=through(postgres_port, world.database_url))
    gateway.provider.answer = answering
    client = await gateway.client()
    client.send(gateway.request())
    assert (await client.response()).status == 200
    grants = gateway.worker._grants
    postgres_port.hang()  # the connections that are; new ones work
    [key] = await world.catalog.secret_keys(gateway.merchant.merchant_id)
    generation = grants.generation
    assert await world.catalog.revoke_secret_key(key["secret_key_id"])
    async with asyncio.timeout(10):
        while grants.generation == generation:
            await asyncio.sleep(0.01)
    client.send(gateway.request())
    assert (await client.response()).status == 401


async def test_a_full_outbox_refuses_new_calls_before_the_provider_is_contacted(start: StartGateway) -> None:
    """G12: the bound is visible, and nothing is dropped."""
    gateway = await start(adjust=lambda settings: replace(settings, redis=replace(settings.redis, outbox_entries_max=1)))
    gateway.provider.answer = answering
    client = await gateway.client()
    for _ in range(3):
        client.send(gateway.request())
        assert (await client.response()).status == 200
    await gateway.settled()
    await gateway.worker._look_at_outbox()
    client.send(gateway.request())
    response = await client.response()
    assert (response.status, response.error_code, response.header(b"retry-after")) == (503, "outbox_full", b"1")
    assert len(gateway.provider.calls) == 3
    assert len(await gateway.rows()) == 3  # flushed
    await gateway.worker._look_at_outbox()
    client.send(gateway.request())
    assert (await client.response()).status == 200
