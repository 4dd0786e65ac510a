"""The HTTP edge: what a client may send in which pieces, and what is refused before anything reaches a provider."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lava_proxy import tasks
from tests.integration.gateway.conftest import StartGateway
from tests.integration.gateway.fakes import Call, Response, chat_body
from tests.integration.gateway.harness import CHAT, Gateway, chat_request, with_http

BODY = chat_body()


def answering(call: Call) -> None:
    call.answer(BODY)


def answering_by_model(call: Call) -> None:
    call.answer(BODY.replace(b"Hello.", call.json()["model"].encode()))


def control_answer(call: Call) -> None:
    call.answer(b'{"from":"control","path":"%b"}' % call.target.encode())


async def exchange_of(gateway: Gateway, data: bytes, method: str = "POST") -> Response:
    client = await gateway.client()
    client.send(data)
    return await client.response(method)


# -- limits


async def test_a_head_that_is_too_large_is_refused(start: StartGateway) -> None:
    gateway = await start(adjust=with_http(head_bytes_max=4096))
    response = await exchange_of(gateway, gateway.request(headers=(f"X-Large: {'a' * 5000}",)))
    assert (response.status, response.error_code) == (431, "head_too_large")
    assert response.header(b"x-lava-request-id") is not None
    assert gateway.provider.connections_made == 0


async def test_a_head_without_an_end_is_refused_at_the_bound(start: StartGateway) -> None:
    gateway = await start(adjust=with_http(head_bytes_max=4096))
    client = await gateway.client()
    client.send(b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: a\r\nX-Endless: ")
    for _ in range(5):
        client.send(b"a" * 1000)
    response = await client.response()
    assert response.status == 431
    assert await client.closed() == b""


async def test_too_many_headers_are_refused(start: StartGateway) -> None:
    gateway = await start(adjust=with_http(headers_max=20))
    response = await exchange_of(gateway, gateway.request(headers=tuple(f"X-{i}: 1" for i in range(30))))
    assert (response.status, response.error_code) == (431, "too_many_headers")
    assert gateway.provider.connections_made == 0


async def test_a_body_announced_too_long_is_refused_before_it_is_sent(start: StartGateway) -> None:
    gateway = await start(adjust=with_http(body_bytes_max=1000))
    client = await gateway.client()
    client.send(gateway.request(b"", headers=("Content-Length: 1001", "Expect: 100-continue")))
    response = await client.response()
    assert (response.status, response.error_code, response.interim) == (413, "body_too_large", [])
    assert await client.closed() == b""


async def test_a_chunked_body_is_refused_as_soon_as_it_passes_the_bound(start: StartGateway) -> None:
    gateway = await start(adjust=with_http(body_bytes_max=1000))
    client = await gateway.client()
    client.send(gateway.request(b"", headers=("Transfer-Encoding: chunked",)))
    for _ in range(3):
        client.send(b"1f4\r\n" + b"a" * 500 + b"\r\n")
    response = await client.response()
    assert response.status == 413
    assert gateway.provider.connections_made == 0


async def test_the_refusal_arrives_although_the_client_is_still_sending(start: StartGateway) -> None:
    gateway = await start(adjust=with_http(body_bytes_max=1000))
    client = await gateway.client()
    client.send(gateway.request(b"", headers=("Content-Length: 3000000",)) + b"a" * 3_000_000)
    response = await client.response()
    assert (response.status, response.complete) == (413, True)


async def test_a_refused_client_that_stays_is_cut_off(start: StartGateway) -> None:
    gateway = await start(adjust=with_http(body_bytes_max=1000))
    client = await gateway.client()
    client.send(gateway.request(b"", headers=("Content-Length: 3000",)))
    assert (await client.response()).status == 413
    gateway.check(seconds_later=6)
    assert await client.closed() == b""
    await asyncio.sleep(0)
    assert not gateway.connections.open


async def test_endless_trailers_are_refused(start: StartGateway) -> None:
    gateway = await start(adjust=with_http(head_bytes_max=1024))
    client = await gateway.client()
    client.send(gateway.request(b"", headers=("Transfer-Encoding: chunked",)) + b"1\r\n{\r\n0\r\nX-Endless: ")
    for _ in range(6):
        client.send(b"a" * 1000)
    assert (await client.response()).status == 431


async def test_a_head_that_trickles_in_is_timed_from_its_first_byte(gateway: Gateway) -> None:
    client = await gateway.client()
    data = gateway.request()
    client.send(data[:20])
    await _arrived(gateway, 20)
    gateway.check(seconds_later=9)
    assert not client.reader.at_eof()
    client.send(data[20:40])
    await _arrived(gateway, 40)
    gateway.check(seconds_later=11)
    response = await client.response()
    assert (response.status, response.error_code) == (408, "request_timeout")
    assert await client.closed() == b""
    assert gateway.provider.connections_made == 0


async def test_a_body_that_stops_arriving_times_out(gateway: Gateway) -> None:
    client = await gateway.client()
    data = gateway.request()
    client.send(data[:-5])
    await _arrived(gateway, 1)
    gateway.check(seconds_later=59)
    assert not client.reader.at_eof()
    gateway.check(seconds_later=61)
    assert (await client.response()).status == 408


async def test_an_idle_connection_is_closed_without_a_word(gateway: Gateway) -> None:
    gateway.provider.answer = answering
    client = await gateway.client()
    client.send(gateway.request())
    await client.response()
    await gateway.settled()
    gateway.check(seconds_later=74)
    client.send(gateway.request())
    assert (await client.response()).status == 200
    await gateway.settled()
    gateway.check(seconds_later=76)
    assert await client.closed() == b""


async def test_a_connection_above_the_bound_is_closed_at_once(start: StartGateway) -> None:
    gateway = await start(adjust=with_http(connections_max=2))
    gateway.provider.answer = answering
    first, second = await gateway.client(), await gateway.client()
    for client in (first, second):
        client.send(gateway.request())
        assert (await client.response()).status == 200
    third = await gateway.client()
    assert await third.closed() == b""
    first.send(gateway.request())
    assert (await first.response()).status == 200


async def _arrived(gateway: Gateway, framing_bytes: int) -> None:
    """Until the one connection has read so much of a head, or all of it and some body."""
    while True:
        for connection in gateway.connections.open:
            if connection._framing_bytes >= framing_bytes and (framing_bytes > 1 or not connection._in_head):
                return
        await asyncio.sleep(0)


# -- framing


@pytest.mark.parametrize(
    "seed", [pytest.param(None, id="byte by byte"), *(pytest.param(seed, id=f"split {seed}") for seed in range(5))]
)
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_request_may_come_in_any_pieces(gateway: Gateway, seed: int | None, is_chunked: bool) -> None:
    gateway.provider.answer = answering
    body = gateway.request(chat_request(padding="ä" * 100)).partition(b"\r\n\r\n")[2]
    data = gateway.request(body)
    chance = random.Random(seed)
    if is_chunked:
        data = gateway.request(b"", headers=("Transfer-Encoding: chunked",))
        rest = body
        while rest:
            size = chance.randint(1, 40)
            data += b"%X;ext=1\r\n%b\r\n" % (len(rest[:size]), rest[:size])
            rest = rest[size:]
        data += b"0\r\nX-Trailer: dropped\r\n\r\n"
    client = await gateway.client()
    while data:
        size = 1 if seed is None else chance.randint(1, 200)
        client.send(data[:size])
        await asyncio.sleep(0)
        data = data[size:]
    assert (await client.response()).status == 200
    [call] = gateway.provider.calls
    assert call.body == body
    assert call.header(b"content-length") == b"%d" % len(body)
    assert call.header(b"transfer-encoding") is None and call.header(b"x-trailer") is None


async def test_expect_100_continue_is_answered_before_the_body_comes(gateway: Gateway) -> None:
    gateway.provider.answer = answering
    client = await gateway.client()
    head, blank, body = gateway.request(headers=("Expect: 100-continue",)).partition(b"\r\n\r\n")
    client.send(head + blank)
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(body)
    assert (await client.response()).status == 200
    assert gateway.provider.calls[0].header(b"expect") is None


async def test_100_continue_of_a_pipelined_request_comes_after_the_answer_before_it(gateway: Gateway) -> None:
    gateway.provider.answer = answering
    client = await gateway.client()
    head, blank, body = gateway.request(headers=("Expect: 100-continue",)).partition(b"\r\n\r\n")
    client.send(gateway.request() + head + blank)
    first = await client.response()
    assert (first.status, first.interim) == (200, [])
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(body)
    assert (await client.response()).status == 200


async def test_pipelined_requests_are_answered_in_order(gateway: Gateway) -> None:
    calls: list[Call] = []
    gateway.provider.answer = calls.append
    gateway.control.answer = control_answer
    client = await gateway.client()
    client.send(
        gateway.request(chat_request(model="gpt-4o"))
        + gateway.request(method="GET", target="/v1/meters")
        + gateway.request(chat_request(model="gpt-4o-mini"))
        + gateway.request(method="GET", target="/health")
    )
    gateway.provider.answer = answering_by_model
    responses = [await client.response() for _ in range(4)]
    assert [response.status for response in responses] == [200] * 4
    assert responses[0].json()["choices"][0]["message"]["content"] == "gpt-4o"
    assert responses[1].json() == {"from": "control", "path": "/v1/meters"}
    assert responses[2].json()["choices"][0]["message"]["content"] == "gpt-4o-mini"
    assert responses[3].json() == {"from": "control", "path": "/health"}
    assert len(await gateway.rows()) == 2


async def test_many_more_pipelined_requests_than_are_read_ahead_are_all_answered(start: StartGateway) -> None:
    gateway = await start(adjust=with_http(pipeline_max=4))
    gateway.provider.answer = answering
    client = await gateway.client()
    client.send(gateway.request() * 60)
    for _ in range(60):
        assert (await client.response()).status == 200
    assert len(await gateway.rows()) == 60


async def test_an_http_1_0_client_gets_an_answer_that_ends_with_the_connection(gateway: Gateway) -> None:
    gateway.provider.answer = lambda call: call.stream([b"data: a\n\n", b"data: b\n\n"])
    client = await gateway.client()
    client.send(gateway.request(chat_request(stream=True), version="HTTP/1.0"))
    response = await client.response()
    assert (response.status, response.body) == (200, b"data: a\n\ndata: b\n\n")
    assert response.header(b"transfer-encoding") is None
    assert response.header(b"connection") == b"close"


async def test_an_http_1_0_client_that_asks_for_keep_alive_gets_it(gateway: Gateway) -> None:
    gateway.provider.answer = answering
    client = await gateway.client()
    for _ in range(2):
        client.send(gateway.request(version="HTTP/1.0", headers=("Connection: keep-alive",)))
        response = await client.response()
        assert response.header(b"connection") == b"keep-alive"
        assert response.body == BODY


async def test_an_http_1_0_client_without_a_host_header_is_served(gateway: Gateway) -> None:
    gateway.provider.answer = answering
    client = await gateway.client()
    client.send(gateway.request(version="HTTP/1.0").replace(b"Host: gateway.test\r\n", b""))
    assert (await client.response()).status == 200
    assert await client.closed() == b""


async def test_connection_close_is_honoured(gateway: Gateway) -> None:
    gateway.provider.answer = answering
    client = await gateway.client()
    client.send(gateway.request(headers=("Connection: close",)))
    response = await client.response()
    assert (response.body, response.header(b"connection")) == (BODY, b"close")
    assert await client.closed() == b""


async def test_head_is_answered_without_a_body(gateway: Gateway) -> None:
    gateway.provider.answer = lambda call: call.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n")
    client = await gateway.client()
    for _ in range(2):
        client.send(gateway.request(method="HEAD", target="/v1/forward/openai/v1/models"))
        response = await client.response("HEAD")
        assert (response.status, response.header(b"content-length")) == (200, b"1234")
    assert [call.method for call in gateway.provider.calls] == ["HEAD", "HEAD"]


async def test_head_after_an_interim_answer_has_no_body_either(gateway: Gateway) -> None:
    gateway.provider.answer = lambda call: call.write(
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"
    )
    response = await exchange_of(gateway, gateway.request(method="HEAD", target="/v1/forward/openai/v1/models"), "HEAD")
    assert response.status == 200


async def test_a_client_may_close_its_sending_side_and_still_read_the_answer(gateway: Gateway) -> None:
    client = await gateway.client()
    client.send(gateway.request())
    client.half_close()
    call = await gateway.provider.next_call()
    call.answer(BODY)
    response = await client.response()
    assert (response.body, response.complete) == (BODY, True)
    assert await client.closed() == b""
    assert (await gateway.row())["outcome"] == "completed"


async def test_a_request_cut_short_by_its_client_reaches_nobody(gateway: Gateway) -> None:
    client = await gateway.client()
    client.send(gateway.request()[:-3])
    client.half_close()
    assert await client.closed() == b""
    assert gateway.provider.connections_made == 0


async def test_an_upgrade_to_what_we_do_not_speak_is_not_taken_up(gateway: Gateway) -> None:
    """RFC 9110 7.8: the request is answered as it is, and the connection ends."""
    gateway.provider.answer = lambda call: call.answer(b'{"data":[]}')
    client = await gateway.client()
    headers = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    client.send(gateway.request(method="GET", target="/v1/forward/openai/v1/models", headers=headers) + b"PRI * HTTP/2.0")
    response = await client.response()
    assert (response.status, response.header(b"connection")) == (200, b"close")
    assert await client.closed() == b""
    assert gateway.provider.calls[0].header(b"upgrade") is None


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("step", [0, 1, 7])
async def test_a_call_that_offers_another_protocol_keeps_its_body(gateway: Gateway, is_chunked: bool, step: int) -> None:
    """RFC 9110 7.8: Java's client offers h2c with its calls by plain HTTP; they go on as if it had not, and nothing behind them."""
    gateway.provider.answer = lambda call: call.answer(chat_body())
    plain = gateway.request()
    head, _, body = plain.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    lines += [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"]
    lines.append(b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % len(body))
    framed = b"%x\r\n%b\r\n0\r\nX-T: 1\r\n\r\n" % (len(body), body) if is_chunked else body
    sent = b"\r\n".join(lines) + b"\r\n\r\n" + framed + b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    client = await gateway.client()
    for start in range(0, len(sent), step or len(sent)):
        client.send(sent[start : start + (step or len(sent))])
        await asyncio.sleep(0)
    response = await client.response()
    assert (response.status, response.body, response.header(b"connection")) == (200, chat_body(), b"close")
    assert await client.closed() == b""
    [call] = gateway.provider.calls
    assert call.body == body and call.header(b"upgrade") is None and call.header(b"http2-settings") is None
    assert gateway.control.connections_made == 0


async def test_a_body_too_large_behind_another_protocols_offer_is_refused(start: StartGateway) -> None:
    gateway = await start(adjust=with_http(body_bytes_max=1000))
    headers = ("Connection: Upgrade", "Upgrade: h2c", "Transfer-Encoding: chunked")
    client = await gateway.client()
    head = gateway.request(method="POST", headers=headers).partition(b"\r\n\r\n")[0]
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    client.send(b"\r\n".join(lines) + b"\r\n\r\n" + b"200\r\n" + b"x" * 512 + b"\r\n200\r\n" + b"x" * 512)
    assert (await client.response()).status == 413
    assert gateway.provider.connections_made == 0


async def test_a_tunnel_is_not_offered(gateway: Gateway) -> None:
    response = await exchange_of(gateway, b"CONNECT api.openai.com:443 HTTP/1.1\r\nHost: api.openai.com\r\n\r\n")
    assert response.status == 405
    assert gateway.control.connections_made == gateway.provider.connections_made == 0


MALFORMED = {
    "bare CR in a value": (b"X-A: a\rb: c\r\n", b""),
    "folded line": (b"X-A: a\r\n b\r\n", b""),
    "bad header name": (b"X(A): a\r\n", b""),
    "space before the colon": (b"X-A : a\r\n", b""),
    "empty header name": (b": a\r\n", b""),
    "NUL in a value": (b"X-A: a\0b\r\n", b""),
    "control character in a value": (b"X-A: a\x01b\r\n", b""),
    "LF instead of CRLF": (b"X-A: a\n", b""),
    "both length headers": (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "both length headers, the other way": (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
    "two lengths": (b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello"),
    "two different lengths": (b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!"),
    "signed length": (b"Content-Length: +5\r\n", b"hello"),
    "list of lengths": (b"Content-Length: 5,5\r\n", b"hello"),
    "hex length": (b"Content-Length: 0x5\r\n", b"hello"),
    "empty length": (b"Content-Length: \r\n", b"hello"),
    "overflowing length": (b"Content-Length: 18446744073709551621\r\n", b"hello"),
    "unknown transfer coding": (b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
    "identity transfer coding": (b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n"),
    "compressed transfer coding": (b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "chunked not last": (b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n"),
    "chunked twice": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "signed chunk size": (b"Transfer-Encoding: chunked\r\n", b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk longer than its size": (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello!\r\n0\r\n\r\n"),
    "chunk line without CR": (b"Transfer-Encoding: chunked\r\n", b"5\nhello\r\n0\r\n\r\n"),
    "two hosts": (b"Host: other.test\r\nContent-Length: 0\r\n", b""),
}


@pytest.mark.parametrize(("lines", "body"), MALFORMED.values(), ids=MALFORMED)
async def test_what_could_be_smuggling_is_refused_and_nothing_is_forwarded(gateway: Gateway, lines: bytes, body: bytes) -> None:
    gateway.provider.answer = answering
    gateway.control.answer = control_answer
    head = b"POST %b HTTP/1.1\r\nHost: a.test\r\nAuthorization: Bearer %b\r\n" % (CHAT.encode(), gateway.token.encode())
    client = await gateway.client()
    client.send(head + lines + b"\r\n" + body + b"GET /v1/smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    response = await client.response()
    assert (response.status, response.error_code) == (400, "malformed_http")
    assert await client.closed() == b""
    assert gateway.provider.connections_made == gateway.control.connections_made == 0


@pytest.mark.parametrize(
    "start_line",
    [
        b"POST /v1/x HTTP/1.1\n", b"POST /v1/x\0 HTTP/1.1\r\n", b" POST /v1/x HTTP/1.1\r\n", b"POST  HTTP/1.1\r\n",
        b"POST /\xff HTTP/1.1\r\n",
        b"POST /v1/x HTTP/1.2\r\n", b"POST /v1/x HTTP/2.0\r\n", b"POST /v1/x HTTP/0.9\r\n", b"NONSENSE /v1/x HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n", b"\x16\x03\x01\x02\x00", b"GET /\r\n", b"POST /v1/x HTTP/1.1\r\n Host: folded\r\n",
    ],
)  # fmt: skip
async def test_a_malformed_request_line_is_refused(gateway: Gateway, start_line: bytes) -> None:
    response = await exchange_of(gateway, start_line + b"Host: a\r\n\r\n")
    assert response.status == 400
    assert gateway.control.connections_made == 0


async def test_a_transfer_coding_in_http_1_0_is_refused(gateway: Gateway) -> None:
    data = gateway.request(b"", version="HTTP/1.0", headers=("Transfer-Encoding: chunked",)) + b"0\r\n\r\n"
    assert (await exchange_of(gateway, data)).status == 400


async def test_a_request_without_a_host_is_refused(gateway: Gateway) -> None:
    response = await exchange_of(gateway, gateway.request().replace(b"Host: gateway.test\r\n", b""))
    assert (response.status, response.error_code) == (400, "malformed_http")
    assert gateway.provider.connections_made == 0


async def test_a_good_request_before_a_malformed_one_is_answered_first(gateway: Gateway) -> None:
    gateway.provider.answer = answering
    client = await gateway.client()
    client.send(gateway.request() + b"GET / HTTP/1.1\r\nbad(name: 1\r\n\r\n")
    assert (await client.response()).status == 200
    assert (await client.response()).status == 400
    assert await client.closed() == b""


async def test_every_error_carries_a_request_id(gateway: Gateway) -> None:
    for data in (gateway.request(token=None), gateway.request(target="/v1/forward?u=ftp://x"), b"GET / HTTP/1.1\r\n\r\n"):
        response = await exchange_of(gateway, data)
        identifier = response.header(b"x-lava-request-id")
        assert identifier is not None and identifier.startswith(b"req_") and len(identifier) == 30


# -- fuzz


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[str, int, bytes]]:
    kinds = st.sampled_from(["insert", "replace", "delete", "repeat"])
    pieces = st.one_of(
        st.binary(min_size=1, max_size=3),
        st.sampled_from([b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b",", b"\r\n\r\n", b"chunked", b"Content-Length: 3\r\n"]),
        st.sampled_from([b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"Host: b\r\n"]),
    )
    return draw(st.lists(st.tuples(kinds, st.integers(0, 10**6), pieces), min_size=1, max_size=4))


def mutate(data: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, piece in changes:
        at = place % (len(data) + 1)
        if kind == "insert":
            data = data[:at] + piece + data[at:]
        elif kind == "replace":
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == "delete":
            data = data[:at] + data[at + len(piece) :]
        else:
            data = data[:at] + data[at : at + 40] + data[at:]
    return data


async def test_mutated_requests_neither_break_the_worker_nor_reach_a_provider_twice(gateway: Gateway) -> None:
    gateway.provider.answer = answering
    gateway.control.answer = control_answer
    faults: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: faults.append(context))

    async def try_one(changes: list[tuple[str, int, bytes]], split: int) -> None:
        data = mutate(gateway.request(), changes)
        calls = len(gateway.provider.calls)
        client = await gateway.client()
        client.send(data[: split % len(data)])
        await asyncio.sleep(0)
        client.send(data[split % len(data) :])
        client.half_close()
        await client.closed()
        await client.close()
        gateway.clients.clear()
        assert await tasks.drain("exchange", 10) == 0
        assert faults == []
        assert len(gateway.provider.calls) <= calls + 1
        good = await exchange_of(gateway, gateway.request())
        assert (good.status, good.body) == (200, BODY)
        await gateway.clients.pop().close()

    examples: list[tuple[list[tuple[str, int, bytes]], int]] = []

    @settings(max_examples=400, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(changes=mutations(), split=st.integers(0, 10**6))
    def collect(changes: list[tuple[str, int, bytes]], split: int) -> None:
        examples.append((changes, split))

    collect()  # hypothesis calls synchronously; the examples are run in the loop that is running
    try:
        for changes, split in examples:
            try:
                await try_one(changes, split)
            except AssertionError as error:
                raise AssertionError(f"after {changes!r} split at {split}: {mutate(gateway.request(), changes)!r}") from error
    finally:
        loop.set_exception_handler(None)


async def test_a_control_process_on_another_host_gets_our_word_and_never_a_clients(start: StartGateway) -> None:
    """J6: what says that a gateway sent a request cannot come from outside, nor does it go to a provider."""
    forged = ("X-Lava-Hop: forged", "x-lava-hop: again")
    for hop in ("", "of-our-own"):
        gateway = await start(control_hop=hop)
        gateway.control.answer = control_answer
        gateway.provider.answer = answering
        client = await gateway.client()
        client.send(gateway.request(method="GET", target="/v1/meters", headers=forged))
        assert (await client.response("GET")).status == 200
        (asked,) = gateway.control.calls
        assert [value for name, value in asked.headers if name.lower() == b"x-lava-hop"] == ([hop.encode()] if hop else [])
        client.send(gateway.request(headers=forged))
        assert (await client.response()).status == 200
        assert gateway.provider.calls[0].header(b"x-lava-hop") is None
