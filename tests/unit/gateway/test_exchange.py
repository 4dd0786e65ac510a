"""The exchange's relay without sockets: how an answer is framed, written and ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lava_proxy import settings
from lava_proxy.domain.errors import UpstreamError
from lava_proxy.domain.usage import Outcome
from lava_proxy.gateway import exchange as exchange_module
from lava_proxy.gateway.downstream import Request
from lava_proxy.gateway.exchange import Context, Exchange
from lava_proxy.gateway.head_plans import Routes
from tests.unit.gateway.fake_registry import REGISTRY
from tests.unit.gateway.fake_transport import FakeTransport

LENGTH = (b"Content-Length", b"2")


def context_of() -> Context:
    nothing: Any = None
    return Context(
        settings=settings.load({}), registry=REGISTRY, grants=nothing, charging=nothing, pool=nothing, control=nothing,  # type: ignore[arg-type]
        env_keys={}, tally=nothing, outbox_full=lambda: False, live=set(), routes=Routes(nothing),
    )  # fmt: skip


def exchange_of(*, method: str = "POST", http10: bool = False, keep_alive: bool = True) -> tuple[Exchange, FakeTransport]:
    request = Request()
    request.method, request.http10, request.keep_alive = method, http10, keep_alive
    transport = FakeTransport()
    client: Any = SimpleNamespace(transport=transport, writable=True)
    exchange = Exchange(context_of(), client, request)
    exchange.request_id = "req_1"
    return exchange, transport


# method, status, has a length, HTTP/1.0, keep-alive -> transfer-encoding, content-length, connection
FRAMINGS = [
    ("POST", 200, True, False, True, None, b"2", None),
    ("POST", 200, False, False, True, b"chunked", None, None),
    ("POST", 200, False, False, False, b"chunked", None, b"close"),
    ("POST", 200, True, True, False, None, b"2", b"close"),
    ("POST", 200, True, True, True, None, b"2", b"keep-alive"),
    ("POST", 200, False, True, True, None, None, b"close"),
    ("HEAD", 200, True, False, True, None, b"2", None),
    ("HEAD", 200, False, False, True, None, None, None),
    ("POST", 204, True, False, True, None, None, None),
    ("GET", 304, True, False, True, None, b"2", None),
]


@pytest.mark.parametrize(("method", "status", "has_length", "http10", "keep_alive", "coding", "length", "connection"), FRAMINGS)
async def test_the_answers_framing_suits_the_client(
    method: str, status: int, has_length: bool, http10: bool, keep_alive: bool, coding: bytes, length: bytes, connection: bytes
) -> None:
    exchange, transport = exchange_of(method=method, http10=http10, keep_alive=keep_alive)
    exchange.on_head(status, b"OK", [LENGTH] if has_length else [])
    exchange.on_read_end()
    lines = dict(line.lower().split(b": ") for line in transport.written.split(b"\r\n")[1:-2])
    assert transport.written.endswith(b"\r\n\r\n")
    assert (lines.get(b"transfer-encoding"), lines.get(b"content-length"), lines.get(b"connection")) == (coding, length, connection)
    exchange.on_end()
    exchange.on_read_end()
    assert transport.written.endswith(b"0\r\n\r\n") is (coding is not None)
    assert exchange.request.keep_alive is (connection != b"close")


async def test_chunks_are_framed_anew_and_what_one_read_brought_is_one_write() -> None:
    exchange, transport = exchange_of()
    writes: list[bytes] = []
    transport.write = writes.append  # type: ignore[method-assign,assignment]
    exchange.on_head(200, b"OK", [])
    exchange.on_body(b"a" * 16)
    exchange.on_body(b"bc")
    exchange.on_read_end()
    exchange.on_read_end()
    assert len(writes) == 1 and writes[0].endswith(b"\r\n\r\n10\r\n" + b"a" * 16 + b"\r\n2\r\nbc\r\n")
    exchange.on_end()
    exchange.on_read_end()
    assert writes[1:] == [b"0\r\n\r\n"]


async def test_a_break_flushes_what_came_and_never_writes_the_end() -> None:
    """D1, D9."""
    exchange, transport = exchange_of()
    exchange.on_head(200, b"OK", [])
    exchange.on_body(b"hello")
    exchange.on_broken(UpstreamError("broken"))
    assert transport.written.endswith(b"5\r\nhello\r\n")
    assert exchange.outcome is Outcome.UPSTREAM_BROKEN


async def test_a_stop_does_not_touch_an_answer_that_has_just_ended() -> None:
    """G2."""
    exchange, _ = exchange_of()
    exchange.on_head(200, b"OK", [LENGTH])
    exchange.on_body(b"ok")
    exchange.on_end()
    exchange.stop()
    exchange.client_gone()
    assert exchange.outcome is Outcome.COMPLETED and not exchange.client_left and exchange._broken is None


async def test_a_client_that_has_gone_is_not_written_to() -> None:
    exchange, transport = exchange_of()
    exchange.on_head(200, b"OK", [])
    exchange.client_gone()
    exchange.on_body(b"hello")
    exchange.on_end()
    exchange.on_read_end()
    assert transport.written == b"" and exchange.client_left


def test_an_http_1_0_request_without_a_host_gets_one_for_the_control_process() -> None:
    request = Request()
    request.method, request.target, request.http10 = "GET", b"/healthz", True
    assert b"\r\nhost: localhost\r\n" in exchange_module._control_request_head(request, 0, "203.0.113.9")


def test_the_control_process_hears_from_us_alone_who_is_connected() -> None:
    request = Request()
    request.method, request.target = "POST", b"/embed/checkout/css_1/phone"
    request.headers = [(b"x-lava-peer", b"10.0.0.1"), (b"X-Forwarded-For", b"10.0.0.2")]
    head = exchange_module._control_request_head(request, 0, "203.0.113.9")
    assert b"10.0.0.1" not in head and b"\r\nX-Lava-Peer: 203.0.113.9\r\n" in head and b"X-Forwarded-For: 10.0.0.2" in head
