"""Shutdown: what runs ends, nothing new begins, everything is settled."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.gateway.conftest import StartGateway
from tests.integration.gateway.fakes import chat_body, chat_events
from tests.integration.gateway.harness import NANOS_PER_TOKEN, Gateway, chat_request, with_upstream


async def test_idle_connections_close_at_once_and_new_ones_are_refused(gateway: Gateway) -> None:
    gateway.provider.answer = lambda call: call.answer(chat_body())
    idle, fresh = await gateway.client(), await gateway.client()
    idle.send(gateway.request())
    assert (await idle.response()).status == 200
    fresh.send(b"")
    await gateway.settled()
    await gateway.stop()
    assert await idle.closed() == b""
    assert await fresh.closed() == b""
    with pytest.raises(ConnectionError):
        await gateway.client()


async def test_a_running_stream_ends_before_the_worker_does(gateway: Gateway) -> None:
    """G1, G2: stop accepting, finish, settle; the row is there when stop returns."""
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=True)))
    call = await gateway.provider.next_call()
    call.begin()
    await client.head()
    stopping = asyncio.ensure_future(gateway.stop())
    await asyncio.sleep(0)
    client.send(gateway.request())  # too late
    events = chat_events()
    for sent in events:
        call.chunk(sent)
    call.end()
    while await client.chunk():
        pass
    assert await client.closed() == b""
    await stopping
    row = await gateway.row()
    assert (row["outcome"], row["charge_nanos"]) == ("completed", 15 * NANOS_PER_TOKEN)
    assert len(gateway.provider.calls) == 1
    await gateway.provider.nobody()


async def test_a_stream_longer_than_the_patience_is_cut_and_settled(start: StartGateway) -> None:
    """G1: as gateway_stopped, with what was delivered."""
    gateway = await start(adjust=with_upstream(stop_timeout_s=0.05))
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=True)))
    call = await gateway.provider.next_call()
    call.begin()
    await client.head()
    sent = chat_events(words=6)[:6]
    for piece in sent:
        call.chunk(piece)
        assert await client.chunk() == piece
    await gateway.stop()
    await call.gone()
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.chunk()
    row = await gateway.row()
    assert (row["outcome"], row["status"], row["provenance"]) == ("gateway_stopped", "error", "estimated")
    assert row["charge_nanos"] > 0


async def test_calls_that_have_no_answer_yet_get_a_503_when_the_patience_ends(start: StartGateway) -> None:
    gateway = await start(adjust=with_upstream(stop_timeout_s=0.05, pool_per_host_max=1))
    sent, waiting = await gateway.client(), await gateway.client()
    sent.send(gateway.request())
    call = await gateway.provider.next_call()
    waiting.send(gateway.request())
    while not any(host.waiters for host in gateway.pool._hosts.values()):
        await asyncio.sleep(0)
    await gateway.stop()
    await call.gone()
    for client in (sent, waiting):
        response = await client.response()
        assert (response.status, response.error_code) == (503, "gateway_stopping")
    assert [row["outcome"] for row in await gateway.rows()] == ["gateway_stopped"] * 2
    assert len(gateway.provider.calls) == 1


async def test_many_calls_under_way_are_all_settled(gateway: Gateway) -> None:
    """G1: nothing is lost with M calls unsettled."""
    await gateway.fund(10**12)
    for _ in range(50):
        client = await gateway.client()
        client.send(gateway.request())
    calls = [await gateway.provider.next_call() for _ in range(50)]
    stopping = asyncio.ensure_future(gateway.stop())
    for call in calls:
        call.answer(chat_body())
        await asyncio.sleep(0)
    await stopping
    assert [row["charge_nanos"] for row in await gateway.rows()] == [15 * NANOS_PER_TOKEN] * 50
