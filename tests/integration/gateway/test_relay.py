"""The relay: the provider's bytes reach the client as they are, at once, and nobody else's."""

from __future__ import annotations

import asyncio
import gzip
import random
import socket

import pytest

from tests.integration.gateway.conftest import StartGateway
from tests.integration.gateway.fakes import Call, Client, Headers, chat_body, chat_events, event, usage_event
from tests.integration.gateway.harness import NANOS_PER_TOKEN, Gateway, chat_request, with_http, with_upstream

JSON: Headers = [(b"content-type", b"application/json")]


async def test_a_call_is_relayed_and_charged_by_its_usage(gateway: Gateway) -> None:
    body = chat_body(prompt_tokens=10, completion_tokens=5)
    gateway.provider.answer = lambda call: call.answer(body)
    client = await gateway.client()
    client.send(gateway.request())
    response = await client.response()
    assert (response.status, response.body, response.complete) == (200, body, True)
    row = await gateway.row()
    assert row["charge_nanos"] == 15 * NANOS_PER_TOKEN
    assert (row["outcome"], row["provenance"]) == ("completed", "provider_final")
    assert row["request_id"].encode() == response.header(b"x-lava-request-id")


# -- bytes


@pytest.mark.parametrize("framing", ["chunked", "length", "until the connection closes"])
@pytest.mark.parametrize("seed", range(3))
async def test_the_body_arrives_as_it_was_sent_however_it_is_framed(gateway: Gateway, framing: str, seed: int) -> None:
    """I1: bytes are not decoded on the way; pieces may split a character."""
    chance = random.Random(seed)
    body = chat_body(text="Zürich 東京 🎉 " * 200)
    pieces, rest = [], body
    while rest:
        size = chance.randint(1, 300)
        pieces.append(rest[:size])
        rest = rest[size:]

    def answer(call: Call) -> None:
        if framing == "chunked":
            call.begin(headers=JSON)
        elif framing == "length":
            call.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body))
        else:
            call.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        for piece in pieces:
            call.chunk(piece) if framing == "chunked" else call.write(piece)
        call.end(b"X-Trailer: dropped\r\n") if framing == "chunked" else None
        if framing == "until the connection closes":
            call.close()

    gateway.provider.answer = answer
    client = await gateway.client()
    for _ in range(2):
        client.send(gateway.request())
        response = await client.response()
        assert (response.body, response.complete) == (body, True)
    assert [row["charge_nanos"] for row in await gateway.rows()] == [15 * NANOS_PER_TOKEN] * 2


async def test_a_compressed_body_is_passed_on_compressed_and_still_metered(gateway: Gateway) -> None:
    """J1: content-length and content-encoding stay true to the bytes."""
    body = gzip.compress(chat_body())
    gateway.provider.answer = lambda call: call.answer(body, headers=[*JSON, (b"Content-Encoding", b"gzip")])
    client = await gateway.client()
    client.send(gateway.request(headers=("Accept-Encoding: gzip, x-unknown",)))
    response = await client.response()
    assert (response.body, response.header(b"content-encoding")) == (body, b"gzip")
    assert response.header(b"content-length") == b"%d" % len(body)
    assert gateway.provider.calls[0].header(b"accept-encoding") == b"gzip"
    assert (await gateway.row())["charge_nanos"] == 15 * NANOS_PER_TOKEN


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_leaves_the_connection_usable(gateway: Gateway, status: int) -> None:
    gateway.provider.answer = lambda call: call.write(b"HTTP/1.1 %d Nothing\r\nx-seen: 1\r\n\r\n" % status)
    client = await gateway.client()
    for _ in range(2):
        client.send(gateway.request(method="GET", target="/v1/forward/openai/v1/models"))
        response = await client.response("GET")
        assert (response.status, response.header(b"x-seen"), response.header(b"transfer-encoding")) == (status, b"1", None)
    assert gateway.provider.connections_made == 1


async def test_response_headers_are_kept_and_those_of_the_hop_are_dropped(gateway: Gateway) -> None:
    """J5: hop-by-hop headers, and those that Connection names, end at the gateway."""
    kept = [(b"X-RateLimit-Remaining", b"7"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2"), (b"openai-version", b"2020-10-01")]
    hop = [(b"Connection", b"keep-alive, X-Private"), (b"X-Private", b"1"), (b"Keep-Alive", b"timeout=5")]
    gateway.provider.answer = lambda call: call.answer(chat_body(), headers=[*JSON, *kept, *hop])
    client = await gateway.client()
    client.send(gateway.request())
    response = await client.response()
    assert [pair for pair in response.headers if pair in kept] == kept
    names = {name.lower() for name, _ in response.headers}
    assert not names & {b"connection", b"x-private", b"keep-alive"}


async def test_what_is_said_about_the_status_is_kept(gateway: Gateway) -> None:
    gateway.provider.answer = lambda call: call.answer(b"{}", status=418, reason=b"I'm a teapot")
    client = await gateway.client()
    client.send(gateway.request())
    response = await client.response()
    assert (response.status, response.reason) == (418, b"I'm a teapot")


# -- time


async def test_the_first_chunk_goes_out_before_the_second_exists(gateway: Gateway) -> None:
    """I6, I9: nothing is buffered; I15: and no chunk waits for the next one, the last not for the end."""
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=True)))
    call = await gateway.provider.next_call()
    call.begin()
    response = await client.head()
    assert response.status == 200
    events = chat_events(words=3)
    for sent in events[:-2]:
        call.chunk(sent)
        assert await client.chunk() == sent
    call.chunk(events[-2])
    call.chunk(events[-1])
    assert await client.chunk() == events[-1]
    call.end()
    assert await client.chunk() == b""


async def test_a_chunk_is_passed_on_without_the_chunk_that_follows_it(start: StartGateway) -> None:
    """I15: also where the usage chunk is not looked for (Google, which reports usage by itself)."""
    gateway = await start()
    client = await gateway.client()
    target = "/v1/forward/google/v1beta/models/gemini-2.0-flash:streamGenerateContent?alt=sse"
    client.send(gateway.request({"contents": []}, target=target))
    call = await gateway.provider.next_call()
    call.begin()
    await client.head()
    for piece in (b"data: {", b"}\r", b"\n\r\n", b": a comment\r\n\r\n"):
        call.chunk(piece)
        assert await client.chunk() == piece
    call.end()
    assert await client.chunk() == b""


async def test_interim_answers_of_the_provider_do_not_end_the_call(gateway: Gateway) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"

    def answer(call: Call) -> None:
        call.write(interim)
        call.answer(chat_body())

    gateway.provider.answer = answer
    client = await gateway.client()
    client.send(gateway.request())
    response = await client.response()
    assert (response.status, response.body, response.header(b"link")) == (200, chat_body(), None)


async def test_an_answer_may_come_while_the_request_is_still_being_sent(gateway: Gateway) -> None:
    await gateway.fund(10**11)
    gateway.provider.answers_at_head = True
    gateway.provider.answer = lambda call: call.answer(b'{"error":{"message":"too large"}}', status=413)
    client = await gateway.client()
    client.send(gateway.request(chat_request(padding="a" * 8_000_000)))
    response = await client.response()
    assert (response.status, response.complete) == (413, True)
    assert (await gateway.row())["charge_nanos"] == 0
    side = gateway.provider.calls[0].side
    assert side.transport is not None
    side.transport.resume_reading()
    await gateway.provider.nobody()  # the rest of that request must not lead the next one
    gateway.provider.answers_at_head = False
    gateway.provider.answer = lambda call: call.answer(chat_body())
    client.send(gateway.request())
    assert (await client.response()).status == 200


# -- size and number


async def test_a_single_line_of_5_mb_is_relayed_and_metered(gateway: Gateway) -> None:
    """I3, I4: a line has no bound on its way through."""
    line = event({"choices": [{"index": 0, "delta": {"image": "A" * 5_000_000}}]})
    events = [line, *chat_events()]
    gateway.provider.answer = lambda call: call.stream(events)
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=True)))
    response = await client.response()
    assert response.body == b"".join(events[:-2] + events[-1:])
    row = await gateway.row()
    assert (row["charge_nanos"], row["provenance"]) == (15 * NANOS_PER_TOKEN, "provider_final")


async def test_concurrent_streams_do_not_mix(gateway: Gateway) -> None:
    """I13: each of a thousand streams, on connections used again and again, carries its own payload."""
    streams = 1000
    arrived: list[Call] = []
    everyone = asyncio.Event()

    def answer(call: Call) -> None:
        arrived.append(call)
        if len(arrived) == streams:
            everyone.set()

    gateway.provider.answer = answer
    events = chat_events(words=3)

    async def one(number: int) -> None:
        client = await gateway.client()
        client.send(gateway.request(chat_request(stream=True, user=f"user-{number:04d}"), token=token))
        response = await client.response()
        mark = b"user-%04d" % number
        assert response.complete and response.body.count(mark) == 4 and response.body.count(b"user-") == 4
        gateway.clients.remove(client)
        await client.close()

    token = gateway.token
    await gateway.fund(10**12)  # room for a thousand holds
    running = [asyncio.ensure_future(one(number)) for number in range(streams)]
    await asyncio.wait_for(everyone.wait(), 60)
    marks = [call.json()["user"] for call in arrived]
    for call in arrived:
        call.begin()
    random.Random(1).shuffle(arrived)
    for step in range(4):
        for call in arrived:
            call.chunk(event({"choices": [{"index": 0, "delta": {"content": call.json()["user"]}}], "model": "m", "step": step}))
        await asyncio.sleep(0)
    for call in arrived:
        call.chunk(events[-2])
        call.chunk(events[-1])
        call.end()
    await asyncio.gather(*running)
    assert len(set(marks)) == streams
    rows = await gateway.rows()
    assert sum(row["charge_nanos"] for row in rows) == streams * 15 * NANOS_PER_TOKEN


async def test_a_client_that_does_not_read_stops_the_provider_and_resumes_it(gateway: Gateway) -> None:
    """K12: what a slow client has not read is not kept in memory; nothing is lost when it goes on."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", gateway.port))
    reader, writer = await asyncio.open_connection(sock=plain, limit=2**16)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    client = Client(reader, writer)
    gateway.clients.append(client)
    client.send(gateway.request(chat_request(stream=True)))
    call = await gateway.provider.next_call()
    call.begin()
    filler = event({"choices": [{"index": 0, "delta": {"content": "x" * 60_000}}], "model": "m"})
    sent = 0
    transport = call.side.transport
    assert transport is not None
    while sent < 60_000_000 and transport.get_write_buffer_size() < 2_000_000:
        call.chunk(filler)
        sent += len(filler)
        await asyncio.sleep(0)
    [exchange] = gateway.exchanges
    for _ in range(50):
        await asyncio.sleep(0)
    assert transport.get_write_buffer_size() > 1_000_000, "the provider was read on"
    held = exchange.client.transport.get_write_buffer_size()
    assert held < 1_000_000
    gateway.check(seconds_later=110)  # the provider's silence is ours: not its time-out
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    for last in (usage_event(10, 5), b"data: [DONE]\n\n"):
        call.chunk(last)
    call.end()
    response = await client.response()
    assert response.complete and len(response.body) == sent + len(b"data: [DONE]\n\n")
    assert (await gateway.row())["provenance"] == "provider_final"


async def test_a_client_that_reads_nothing_for_too_long_is_cut_off(start: StartGateway) -> None:
    gateway = await start(adjust=with_http(write_stall_timeout_s=30))
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", gateway.port))
    reader, writer = await asyncio.open_connection(sock=plain)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    gateway.clients.append(Client(reader, writer))
    writer.write(gateway.request())
    call = await gateway.provider.next_call()
    call.answer(chat_body(text="x" * 8_000_000))
    connection = next(iter(gateway.connections.open))
    while connection.writable:
        await asyncio.sleep(0)
    gateway.check(seconds_later=29)
    assert connection.transport is not None
    gateway.check(seconds_later=31)
    await gateway.settled()
    await asyncio.sleep(0)
    assert not gateway.connections.open
    assert (await gateway.row())["charge_nanos"] == 15 * NANOS_PER_TOKEN


async def test_an_answer_that_its_client_never_fetches_does_not_hold_the_connection_for_ever(start: StartGateway) -> None:
    gateway = await start(adjust=with_http(write_stall_timeout_s=30))
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", gateway.port))
    reader, writer = await asyncio.open_connection(sock=plain)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    gateway.clients.append(Client(reader, writer))
    writer.write(gateway.request(headers=("Connection: close",)))
    connection = next(iter(gateway.connections.open))
    call = await gateway.provider.next_call()
    call.begin(headers=JSON)
    while connection.transport is not None and not connection.transport.get_write_buffer_size():
        call.chunk(b" " * 30_000)
        await asyncio.sleep(0)
    call.chunk(chat_body())
    call.end()
    await gateway.settled()
    assert connection.transport is not None and connection.transport.is_closing()
    gateway.check(seconds_later=31)
    await asyncio.sleep(0)
    assert not gateway.connections.open


# -- the pool


async def test_connections_to_the_provider_are_used_again(gateway: Gateway) -> None:
    gateway.provider.answer = lambda call: call.answer(chat_body())
    for _ in range(5):
        client = await gateway.client()
        client.send(gateway.request())
        assert (await client.response()).status == 200
        await gateway.settled()
    assert gateway.provider.connections_made == 1


async def test_a_pooled_connection_that_the_provider_has_closed_is_not_used(gateway: Gateway) -> None:
    """J8, J9: a stale connection is dropped before anything is sent on it."""
    client = await gateway.client()
    for _ in range(3):
        client.send(gateway.request())
        call = await gateway.provider.next_call()
        call.answer(chat_body())
        assert (await client.response()).status == 200
        await gateway.settled()
        call.close()
        await gateway.provider.nobody()
        while gateway.pool.counts() != (0, 0):
            await asyncio.sleep(0)
    assert len(gateway.provider.calls) == 3


async def test_a_request_is_never_sent_twice(gateway: Gateway) -> None:
    """J10: the provider may have begun to work (and to bill), so a broken connection is the caller's to retry."""
    client = await gateway.client()
    client.send(gateway.request())
    (await gateway.provider.next_call()).answer(chat_body())
    assert (await client.response()).status == 200
    await gateway.settled()
    client.send(gateway.request())
    (await gateway.provider.next_call()).reset()  # the pooled connection dies with the request on it
    response = await client.response()
    assert (response.status, response.error_code) == (502, "upstream_closed")
    assert len(gateway.provider.calls) == 2
    assert [row["charge_nanos"] for row in await gateway.rows()] == [15 * NANOS_PER_TOKEN, 0]


async def test_a_connection_that_says_something_unasked_is_dropped(gateway: Gateway) -> None:
    client = await gateway.client()
    client.send(gateway.request())
    call = await gateway.provider.next_call()
    call.answer(chat_body())
    assert (await client.response()).status == 200
    await gateway.settled()
    call.answer(chat_body(text="for nobody"))
    await call.gone()
    client.send(gateway.request())
    (await gateway.provider.next_call()).answer(chat_body(text="for me"))
    assert b"for me" in (await client.response()).body


@pytest.mark.parametrize("cut", [1, 20, 60])
async def test_a_second_answer_behind_the_first_never_answers_the_next_caller(gateway: Gateway, cut: int) -> None:
    """I13: also when only its beginning came along with the first one."""
    unasked = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 4\r\n\r\nevil"
    client = await gateway.client()
    client.send(gateway.request())
    call = await gateway.provider.next_call()
    body = chat_body()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    call.write(head + body + unasked[:cut])
    assert (await client.response()).body == body
    await call.gone()
    client.send(gateway.request())
    (await gateway.provider.next_call()).answer(chat_body(text="mine"))
    assert b"mine" in (await client.response()).body


async def test_a_provider_that_asks_to_close_is_not_pooled(gateway: Gateway) -> None:
    gateway.provider.answer = lambda call: call.answer(chat_body(), headers=[*JSON, (b"Connection", b"close")])
    client = await gateway.client()
    for _ in range(2):
        client.send(gateway.request())
        assert (await client.response()).status == 200
        await gateway.provider.nobody()
    assert gateway.provider.connections_made == 2


async def test_a_full_pool_is_a_503_and_the_hold_is_gone(start: StartGateway) -> None:
    """H2: waiting for the pool is its own error, not the provider's."""
    gateway = await start(adjust=with_upstream(pool_per_host_max=1, pool_wait_s=0.05))
    first, second = await gateway.client(), await gateway.client()
    first.send(gateway.request())
    call = await gateway.provider.next_call()
    second.send(gateway.request())
    refused = await second.response()
    assert (refused.status, refused.error_code, refused.header(b"retry-after")) == (503, "pool_exhausted", b"1")
    call.answer(chat_body())
    assert (await first.response()).status == 200
    assert len(gateway.provider.calls) == 1


async def test_a_call_that_waits_for_the_pool_gets_the_next_free_connection(start: StartGateway) -> None:
    gateway = await start(adjust=with_upstream(pool_per_host_max=1))
    first, second = await gateway.client(), await gateway.client()
    first.send(gateway.request())
    call = await gateway.provider.next_call()
    second.send(gateway.request())
    while not any(host.waiters for host in gateway.pool._hosts.values()):
        await asyncio.sleep(0)
    call.answer(chat_body())
    (await gateway.provider.next_call()).answer(chat_body())
    assert (await first.response()).status == (await second.response()).status == 200
    assert gateway.provider.connections_made == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"NOT HTTP AT ALL\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nx: a\rb\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 300_000,
    ],
    ids=["not http", "both lengths", "two lengths", "bare CR", "switching protocols", "endless head"],
)
async def test_an_answer_that_is_not_http_is_a_502(gateway: Gateway, answer: bytes) -> None:
    gateway.provider.answer = lambda call: call.write(answer)
    client = await gateway.client()
    client.send(gateway.request())
    response = await client.response()
    assert (response.status, response.error_code) == (502, "upstream_malformed")
    row = await gateway.row()
    assert (row["charge_nanos"], row["outcome"], row["status"]) == (0, "upstream_broken", "error")
    await gateway.provider.nobody()


# -- the control plane


async def test_other_paths_go_to_the_control_plane_and_come_back(gateway: Gateway) -> None:
    gateway.control.answer = lambda call: call.answer(call.body or b"{}", headers=[(b"x-from", b"control")])
    client = await gateway.client()
    client.send(gateway.request({"name": "x"}, target="/v1/meters"))
    response = await client.response()
    assert (response.status, response.body, response.header(b"x-from")) == (200, b'{"name": "x"}', b"control")
    assert gateway.control.calls[0].header(b"authorization") == b"Bearer " + gateway.token.encode()
    assert await gateway.rows() == []


async def test_a_control_plane_that_is_away_is_a_503(gateway: Gateway) -> None:
    gateway.control.answer = lambda call: call.reset()
    client = await gateway.client()
    client.send(gateway.request(method="GET", target="/v1/meters"))
    response = await client.response("GET")
    assert (response.status, response.error_code, response.header(b"retry-after")) == (503, "control_unavailable", b"1")


async def test_a_long_answer_of_the_control_plane_streams(gateway: Gateway) -> None:
    """An export reaches the client as it is made, however long it takes."""
    calls: list[Call] = []

    def begin(call: Call) -> None:
        calls.append(call)
        call.begin(headers=[(b"content-type", b"text/csv; charset=utf-8")])
        call.chunk(b"request_id\r\n")

    gateway.control.answer = begin
    client = await gateway.client()
    client.send(gateway.request(method="GET", target="/v1/requests/export"))
    assert b"request_id\r\n" in await asyncio.wait_for(client.reader.readuntil(b"request_id\r\n"), 5)
    calls[0].chunk(b"req_1\r\n")
    await asyncio.wait_for(client.reader.readuntil(b"req_1\r\n"), 5)
    calls[0].end()
    assert await asyncio.wait_for(client.reader.readuntil(b"0\r\n\r\n"), 5)


async def test_a_slow_reader_of_a_long_answer_of_the_control_plane_is_waited_for(gateway: Gateway) -> None:
    """The control process is quiet because we hold it back: that is no reason to cut the answer."""
    size = 8_000_000

    def answer(call: Call) -> None:
        call.begin(headers=[(b"content-type", b"text/csv; charset=utf-8")])
        call.chunk(b"x" * size)
        call.end()

    gateway.control.answer = answer
    receive = socket.socket()
    receive.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    receive.setblocking(False)
    await asyncio.get_running_loop().sock_connect(receive, ("127.0.0.1", gateway.port))
    reader, writer = await asyncio.open_connection(sock=receive, limit=2**16)
    client = Client(reader, writer)
    gateway.clients.append(client)
    client.send(gateway.request(method="GET", target="/v1/requests/export"))
    async with asyncio.timeout(10):
        while not any(exchange.client is not None and not exchange.client.writable for exchange in gateway.exchanges):
            await asyncio.sleep(0.01)
    gateway.check(seconds_later=0)  # takes note of what has moved so far
    gateway.check(seconds_later=gateway.settings.http.write_stall_timeout_s - 1)
    response = await asyncio.wait_for(client.response(), 30)
    assert (response.status, len(response.body), response.complete) == (200, size, True)
