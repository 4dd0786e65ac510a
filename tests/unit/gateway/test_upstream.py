"""Upstream connections and their pool: against a transport of the test's own, and against sockets where it is about connecting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from lava_proxy import settings
from lava_proxy.domain.errors import StoreError, UpstreamError
from lava_proxy.gateway.upstream import Headers, Origin, UpstreamConnection, UpstreamPool
from tests.unit.gateway.fake_transport import FakeTransport

ORIGIN = Origin("provider.test", 443)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Recorder:
    """A response handler that writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[object] = []
        self.body = b""

    def on_head(self, status: int, reason: bytes, headers: Headers) -> None:
        self.said.append(status)

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_end(self) -> None:
        self.said.append("end")

    def on_broken(self, error: UpstreamError) -> None:
        self.said.append(error.code)

    def on_read_end(self) -> None:
        pass

    def upstream_writable(self, writable: bool) -> None:
        pass


def connected() -> tuple[UpstreamConnection, FakeTransport]:
    connection = UpstreamConnection(ORIGIN, lambda _: None)
    transport = FakeTransport()
    connection.connection_made(transport)
    return connection, transport


def sent(expects_body: bool = True) -> tuple[UpstreamConnection, FakeTransport, Recorder]:
    connection, transport = connected()
    recorder = Recorder()
    connection.send(recorder, b"GET / HTTP/1.1\r\n\r\n", b"", expects_body=expects_body)
    return connection, transport, recorder


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nX-T: 1\r\n\r\n", b"abcd"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_an_answer_is_read_in_any_pieces(answer: bytes, body: bytes, step: int) -> None:
    connection, _, recorder = sent()
    for start in range(0, len(answer), step):
        connection.data_received(answer[start : start + step])
    assert recorder.said[-1] == "end" and recorder.body == body
    assert connection.broken is answer.startswith(b"HTTP/1.0")


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    connection, _, recorder = sent()
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nhello")
    assert recorder.said == [200]
    connection.connection_lost(None)
    assert recorder.said == [200, "end"] and recorder.body == b"hello"


def test_a_body_without_a_length_that_is_reset_is_broken() -> None:
    connection, _, recorder = sent()
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nhello")
    connection.connection_lost(ConnectionResetError())
    assert recorder.said == [200, "upstream_closed"]


@pytest.mark.parametrize("upto", range(1, len(OK)))
def test_a_close_before_the_end_is_a_break_at_every_byte(upto: int) -> None:
    """D1."""
    connection, _, recorder = sent()
    connection.data_received(OK[:upto])
    connection.connection_lost(None)
    assert recorder.said[-1] == "upstream_closed"


def test_an_answer_to_head_ends_with_its_head() -> None:
    connection, transport, recorder = sent(expects_body=False)
    connection.data_received(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
    assert recorder.said == [200, "end"] and transport.closing


def test_bytes_on_an_idle_connection_end_it() -> None:
    connection, transport = connected()
    connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert transport.aborted and connection.broken


@pytest.mark.parametrize("behind", [OK, b"H", b"HTTP/1.1 200 OK\r\n", b"garbage"])
def test_an_answer_behind_an_answer_spoils_the_connection(behind: bytes) -> None:
    """I13."""
    connection, _, recorder = sent()
    connection.data_received(OK + behind)
    assert recorder.said == [200, "end"] and recorder.body == b"ok"
    assert connection.broken


def test_after_an_abort_the_handler_hears_nothing() -> None:
    connection, transport, recorder = sent()
    connection.abort()
    connection.data_received(OK)
    connection.connection_lost(None)
    assert recorder.said == [] and transport.aborted


# -- the pool


class Listener:
    def __init__(self) -> None:
        self.accepted: list[asyncio.Transport] = []
        self.arrived = asyncio.Event()
        self.port = 0

    def protocol(self) -> asyncio.Protocol:
        listener = self

        class Side(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                listener.accepted.append(transport)  # type: ignore[arg-type]
                listener.arrived.set()

        return Side()


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    listener = Listener()
    server = await asyncio.get_running_loop().create_server(listener.protocol, "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    yield listener
    server.close()
    for transport in listener.accepted:
        transport.abort()


def pool_of(**values: float) -> UpstreamPool:
    return UpstreamPool(replace(settings.load({}).upstream, **values))  # type: ignore[arg-type]


def plain(port: int, *, guarded: bool = False) -> Origin:
    return Origin("127.0.0.1", port, tls=False, guarded=guarded)


async def test_a_released_connection_is_the_next_one_taken(listener: Listener) -> None:
    pool = pool_of()
    origin = plain(listener.port)
    first, second = await pool.acquire(origin), await pool.acquire(origin)
    assert pool.counts() == (2, 0)
    pool.release(first)
    pool.release(second)
    assert pool.counts() == (0, 2)
    assert pool.take_idle(origin) is second, "newest first"
    pool.release(second)
    pool.close()


async def test_idle_connections_are_closed_after_a_while(listener: Listener) -> None:
    pool = pool_of(pool_idle_s=30)
    connection = await pool.acquire(plain(listener.port))
    pool.release(connection)
    now = asyncio.get_running_loop().time()
    pool.sweep(now + 29)
    assert pool.counts() == (0, 1)
    pool.sweep(now + 31)
    assert pool.take_idle(connection.origin) is None
    while pool.counts() != (0, 0):
        await asyncio.sleep(0)


async def test_a_connection_that_was_lost_frees_its_place(listener: Listener) -> None:
    pool = pool_of(pool_per_host_max=1)
    origin = plain(listener.port)
    await pool.acquire(origin)
    waiting = asyncio.ensure_future(pool.acquire(origin))
    await listener.arrived.wait()
    listener.accepted[0].abort()
    second = await asyncio.wait_for(waiting, 5)
    assert pool.counts() == (1, 0)
    second.abort()
    while pool.counts() != (0, 0):
        await asyncio.sleep(0)


async def test_a_full_pool_refuses_after_its_patience(listener: Listener) -> None:
    pool = pool_of(pool_per_host_max=1, pool_wait_s=0.01)
    connection = await pool.acquire(plain(listener.port))
    with pytest.raises(StoreError) as refused:
        await pool.acquire(plain(listener.port))
    assert (refused.value.code, refused.value.status) == ("pool_exhausted", 503)
    connection.abort()


async def test_a_refused_connect_is_counted_out_again() -> None:
    pool = pool_of()
    for _ in range(3):
        with pytest.raises(UpstreamError) as error:
            await pool.acquire(plain(1))
        assert (error.value.code, error.value.status) == ("upstream_unreachable", 502)
    assert pool.counts() == (0, 0)


async def test_a_connection_whose_request_was_not_sent_whole_is_not_pooled() -> None:
    pool = pool_of()
    connection, transport = connected()
    transport.unsent_bytes = 10
    pool.release(connection)
    assert transport.aborted


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_guarded_name_must_not_lead_to_a_private_address(listener: Listener, host: str) -> None:
    """Trust boundary: the address connected to is checked, whatever the name is."""
    pool = pool_of()
    with pytest.raises(UpstreamError) as error:
        await pool.acquire(Origin(host, listener.port, tls=False, guarded=True))
    assert error.value.code == "upstream_address_refused"
    assert listener.accepted == []
    assert pool.counts() == (0, 0)


async def test_a_name_that_does_not_exist_is_a_502() -> None:
    with pytest.raises(UpstreamError) as error:
        await pool_of().acquire(Origin("does-not-exist.invalid", 80, tls=False, guarded=True))
    assert error.value.status == 502


async def test_an_error_without_words_is_told_by_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """K5: an empty sentence tells an operator nothing."""
    pool = pool_of()

    async def refuse(*given: object, **options: object) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(pool, "_connect_tcp", refuse)
    with pytest.raises(UpstreamError, match="ConnectionResetError"):
        await pool.acquire(plain(1))
