"""Downstream without a socket: what one connection does with bytes, order and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from lava_proxy import settings
from lava_proxy.gateway.downstream import Connections, Downstream, Request
from tests.unit.gateway.fake_transport import FakeTransport

GET = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"


class FakeExchange:
    def __init__(self, request: Request) -> None:
        self.request = request
        self.is_gone = False
        self.writable: list[bool] = []

    def client_gone(self) -> None:
        self.is_gone = True

    def client_writable(self, writable: bool) -> None:
        self.writable.append(writable)


class Bench:
    """One connection; its exchanges end when the test says so."""

    def __init__(self, **limits: int) -> None:
        self.started: list[FakeExchange] = []
        http = replace(settings.load({}).http, **limits)
        self.shared = Connections(http, self._start)
        self.connection, self.transport = self.connect()

    def connect(self) -> tuple[Downstream, FakeTransport]:
        connection, transport = Downstream(self.shared), FakeTransport()
        connection.connection_made(transport)
        return connection, transport

    def _start(self, connection: Downstream, request: Request) -> FakeExchange:
        self.started.append(FakeExchange(request))
        return self.started[-1]

    def feed(self, data: bytes) -> None:
        self.connection.data_received(data)

    def later(self, seconds: float) -> None:
        self.shared.sweep(asyncio.get_running_loop().time() + seconds)

    @property
    def status(self) -> int:
        return int(self.transport.written.split(b" ")[1])


@pytest.fixture
async def bench() -> Callable[..., Bench]:
    return Bench


async def test_one_exchange_runs_at_a_time_and_the_others_wait_in_order(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.feed(b"".join(GET % number for number in range(3)))
    assert [exchange.request.target for exchange in b.started] == [b"/0"]
    for number in (1, 2):
        b.connection.exchange_done(True)
        assert b.started[-1].request.target == b"/%d" % number
    b.connection.exchange_done(True)
    assert b.connection.exchange is None and not b.transport.closing


async def test_reading_stops_at_the_pipeline_bound_and_goes_on_below_it(bench: Callable[..., Bench]) -> None:
    b = bench(pipeline_max=4)
    b.feed(b"".join(GET % number for number in range(8)))
    assert not b.transport.is_reading_now
    while len(b.started) < 8:
        b.connection.exchange_done(True)
    assert b.transport.is_reading_now


async def test_reading_stops_when_the_waiting_bodies_together_pass_the_bound_of_one(bench: Callable[..., Bench]) -> None:
    b = bench(body_bytes_max=1000)
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 600\r\n\r\n" + b"x" * 600
    b.feed(post)
    b.feed(post)
    assert b.transport.is_reading_now
    b.feed(post)
    assert not b.transport.is_reading_now
    while len(b.started) < 3:
        b.connection.exchange_done(True)
    b.connection.exchange_done(True)
    assert b.transport.is_reading_now


async def test_bodies_on_their_way_together_stay_within_their_bound(bench: Callable[..., Bench]) -> None:
    """Who has not been asked for a credential yet can fill no memory: the body that has been coming for longest is given up."""
    b = bench(unread_bodies_bytes_max=2500)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1500\r\n\r\n"
    slow = [b.connect() for _ in range(4)]
    for number, (connection, _) in enumerate(slow):
        connection.data_received(head + b"x" * 600)
        connection.body_since = float(number)
    assert b.shared.unread_bytes == 2400
    b.feed(head + b"x" * 1500)
    assert [exchange.request.body_bytes for exchange in b.started] == [1500], "who comes whole and at once is served"
    refused = [transport.written.startswith(b"HTTP/1.1 408") for _, transport in slow]
    assert refused == [True, True, True, False] and b.shared.unread_bytes == 600
    slow[3][0].connection_lost(None)
    assert b.shared.unread_bytes == 0
    connection, transport = b.connect()
    connection.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n" + b"x" * 2600)
    assert transport.written.startswith(b"HTTP/1.1 408") and b.shared.unread_bytes == 0


@pytest.mark.parametrize("size", [1, 2, 4096, 4097, 10_000])
async def test_a_body_in_small_pieces_takes_no_more_than_its_bytes(bench: Callable[..., Bench], size: int) -> None:
    b = bench()
    body = bytes(number % 251 for number in range(20_000))
    b.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for start in range(0, len(body), size):
        piece = body[start : start + size]
        b.feed(b"%x\r\n%b\r\n" % (len(piece), piece))
    assert b.connection._request is not None and len(b.connection._request.body_parts) <= -(-len(body) // 4096)
    b.feed(b"0\r\n\r\n")
    assert b.started[0].request.body() == body and b.shared.unread_bytes == 0


async def test_a_closed_connection_tells_its_exchange_and_forgets_what_waited(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.feed(GET % 0 + GET % 1)
    b.connection.connection_lost(None)
    assert b.started[0].is_gone and len(b.started) == 1
    b.connection.exchange_done(True)
    assert len(b.started) == 1
    assert b.connection not in b.shared.open


async def test_back_pressure_reaches_the_exchange(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.feed(GET % 0)
    b.connection.pause_writing()
    b.connection.resume_writing()
    assert b.started[0].writable == [False, True]


async def test_a_refusal_ends_the_sending_side_and_reads_on_for_a_while(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.feed(b"nonsense\r\n\r\n")
    assert b.status == 400 and b.transport.eof and not b.transport.closing
    b.feed(GET % 0)
    assert b.started == []
    b.later(4)
    assert not b.transport.closing
    b.later(6)
    assert b.transport.aborted


async def test_a_refused_client_that_has_closed_its_side_is_closed_at_once(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.feed(b"nonsense\r\n\r\n")
    assert b.connection.eof_received() is False


async def test_headers_after_a_refused_one_in_the_same_read_do_no_harm(bench: Callable[..., Bench]) -> None:
    """The refusal is made while the parser is at work on the rest of the same bytes."""
    b = bench(headers_max=5)
    b.feed(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 50 + b"\r\n" + GET % 1)
    assert b.status == 431 and b.started == []


async def test_a_whole_head_in_one_read_is_measured_too(bench: Callable[..., Bench]) -> None:
    b = bench(head_bytes_max=1000)
    b.feed(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 1000 + b"\r\n\r\n")
    assert b.status == 431 and b.started == []


async def test_a_body_in_the_same_read_as_its_head_is_not_counted_as_head(bench: Callable[..., Bench]) -> None:
    b = bench(head_bytes_max=1000)
    b.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000)
    assert len(b.started) == 1 and b.started[0].request.body() == b"x" * 5000


async def test_a_body_in_tiny_chunks_is_not_taken_for_an_attack(bench: Callable[..., Bench]) -> None:
    b = bench(head_bytes_max=1000)
    b.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(3000):
        b.feed(b"1\r\nx\r\n")
    b.feed(b"0\r\n\r\n")
    assert b.started[0].request.body() == b"x" * 3000


async def test_endless_chunk_extensions_are_refused(bench: Callable[..., Bench]) -> None:
    b = bench(head_bytes_max=1000)
    b.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;")
    for _ in range(30):
        b.feed(b"x" * 100)
    assert b.status == 431


async def test_a_trickling_head_does_not_win_time_by_trickling(bench: Callable[..., Bench]) -> None:
    b = bench(head_timeout_s=10)
    now = asyncio.get_running_loop().time()
    b.feed(b"GET / HT")
    b.shared.sweep(now + 9)
    b.feed(b"TP/1.1\r\nHo")
    b.shared.sweep(now + 10.5)
    assert b.status == 408


async def test_a_stop_closes_idle_connections_and_ends_busy_ones_after_their_answer(bench: Callable[..., Bench]) -> None:
    b = bench()
    idle, idle_transport = b.connect()
    b.feed(GET % 0 + GET % 1)
    b.shared.stop()
    assert idle_transport.closing and not b.transport.closing and idle.exchange is None
    b.connection.exchange_done(True)
    assert b.transport.closing and len(b.started) == 1
    _, late = b.connect()
    assert late.aborted


async def test_a_cut_answer_is_flushed_where_its_framing_shows_the_cut(bench: Callable[..., Bench]) -> None:
    """D9: what was relayed is not thrown away."""
    b = bench()
    b.feed(GET % 0)
    b.connection.cut(is_framed=True)
    assert b.transport.closing and not b.transport.aborted
    b.later(200)
    assert b.transport.aborted
