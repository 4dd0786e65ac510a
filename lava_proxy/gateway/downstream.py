"""The server side: HTTP/1.1 requests in, with limits; answered in order, one exchange at a time on a connection.

llhttp (through httptools) parses, strictly: both length headers, odd lengths, bare CR, folded lines and bad names are its errors.
What it does not bound is bounded here: head, header count, body, pipelined requests, slow clients.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from lava_proxy.gateway.headers import error_body
from lava_proxy.settings import Http
from lava_proxy.stores.ids import new_id

Headers = list[tuple[bytes, bytes]]

_LOOKED_AT_LENGTHS = frozenset(map(len, (b"host", b"expect", b"content-length", b"transfer-encoding")))
_LINGER_S = 5.0  # after a refusal the rest of the request is read and dropped: a close at once would destroy the answer
_EARLY_BYTES_MAX = 65_536  # read of another protocol before the answer to the request for it is known
_ENDED = (0, "", "")  # as a failure that has been answered
_SMALL_BYTES_MAX = 4096  # pieces of a body that are kept as one: two bytes as an object of their own would take fifty
_FRAMING_FACTOR = 16  # bytes of chunk framing for one of body: a one-byte chunk takes five; above, it is extensions or trailers


class _Rejected(Exception):
    """Ends the parsing of a request that was refused; `Downstream._failed` says why."""


class Request:
    """One parsed request; complete when it is handed to an exchange."""

    __slots__ = ("body_bytes", "body_parts", "headers", "http10", "keep_alive", "method", "target", "upgrade")

    def __init__(self) -> None:
        self.method = ""
        self.target = b""
        self.headers: Headers = []
        self.body_parts: list[bytes | bytearray] = []
        self.body_bytes = 0
        self.keep_alive = True
        self.http10 = False
        self.upgrade = False  # does it ask for another protocol on its connection; it is then the last one there

    def body(self) -> bytes:
        """The whole body; the parts are dropped."""
        parts, self.body_parts = self.body_parts, []
        return parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)

    def add(self, data: bytes) -> None:
        """The next piece of the body."""
        self.body_bytes += len(data)
        parts = self.body_parts
        if len(data) > _SMALL_BYTES_MAX or not parts or (len(parts[-1]) > _SMALL_BYTES_MAX and isinstance(parts[-1], bytes)):
            parts.append(data)
            return
        last = parts[-1]
        if isinstance(last, bytes):
            last = parts[-1] = bytearray(last)
        last += data


class Exchange(Protocol):
    """What a connection needs from the exchange that it started."""

    def client_gone(self) -> None: ...
    def client_writable(self, writable: bool) -> None: ...


class Receiver(Protocol):
    """Who takes over what a client sends after a request to switch protocols."""

    def client_data(self, data: bytes) -> None: ...
    def client_eof(self) -> None: ...


class Connections:
    """What all connections of a worker share."""

    def __init__(self, http: Http, start_exchange: Callable[[Downstream, Request], Exchange]) -> None:
        self.http = http
        self.start_exchange = start_exchange
        self.open: set[Downstream] = set()
        self.stopping = False
        self.unread_bytes = 0  # of bodies whose end has not come: nobody has asked yet who sends them

    def make_room(self) -> None:
        """Give up the body that has been coming for longest: who sends slowly on many connections must not use up the memory."""
        reading = [connection for connection in self.open if connection.unread_bytes]
        min(reading, key=lambda connection: connection.body_since).give_up()

    def sweep(self, now: float) -> None:
        """Once a second: close what has been idle, slow or stalled for too long."""
        for connection in list(self.open):
            connection.check(now)

    def stop(self) -> None:
        """No new requests: idle connections close now, busy ones after their answer."""
        self.stopping = True
        for connection in list(self.open):
            connection.close_when_idle()


class Downstream(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_body_framing", "_continue_due", "_early", "_ended_reading", "_failed", "_framing_bytes", "_in_head", "_is_resumed",
        "_limits", "_loop", "_paused", "_receiver", "_request", "_shared", "_since", "_stalled_since", "_upgrade", "body_since",
        "exchange", "parser", "queue", "transport", "unread_bytes", "writable",
    )  # fmt: skip

    def __init__(self, shared: Connections) -> None:
        self._shared = shared
        self._limits = shared.http
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.parser = httptools.HttpRequestParser(self)
        self.queue: deque[Request] = deque()
        self.exchange: Exchange | None = None
        self.writable = True
        self._request: Request | None = None
        self._in_head = True
        self._framing_bytes = 0  # of the present request: all that is not body
        self._continue_due = False
        self._failed: tuple[int, str, str] | None = None
        self._ended_reading = False
        self._paused = False
        self._upgrade = False  # a request to switch protocols was the last one read
        self._early = b""  # what came behind it before anybody took it
        self._body_framing = b""  # of a request that has a body and asks for a protocol that is not spoken here
        self._is_resumed = False  # its body is being read
        self._receiver: Receiver | None = None
        self.unread_bytes = 0  # of the body that is coming
        self.body_since = 0.0
        self._since = self._loop.time()  # of the present wait: for a request, for its rest
        self._stalled_since = 0.0

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._shared.stopping or len(self._shared.open) >= self._limits.connections_max:
            self.transport.abort()
            return
        self._shared.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._shared.open.discard(self)
        self._body_ended()
        self.queue.clear()
        if self.exchange is not None:
            self.exchange.client_gone()

    def eof_received(self) -> bool:
        """Half-close: a client may close its sending side and still read the answer."""
        self._ended_reading = True
        if self._receiver is not None and self._failed is None:
            self._receiver.client_eof()
        return self.exchange is not None or bool(self.queue)

    def pause_writing(self) -> None:
        self.writable = False
        self._stalled_since = self._loop.time()
        if self.exchange is not None:
            self.exchange.client_writable(False)

    def resume_writing(self) -> None:
        self.writable = True
        if self.exchange is not None:
            self.exchange.client_writable(True)

    def data_received(self, data: bytes) -> None:
        if self._failed is not None or self._upgrade:
            if self._upgrade and self._failed is None:
                self._take(data)
            return
        if not self._in_head or (self._request is None and not self._framing_bytes):
            self._since = self._loop.time()  # a head has one deadline, however slowly its bytes trickle in
        self._framing_bytes += len(data)
        self._parse(data)
        if self._framing_bytes > self._limits.head_bytes_max:
            self._check_framing()
        if len(self.queue) > 1 and not self._paused and self.transport is not None and self._reads_too_far_ahead():
            self._paused = True
            self.transport.pause_reading()
        self._next()

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
            return
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _Rejected):
                raise (error.__context__ or error) from None
            return
        except httptools.HttpParserError as error:
            if not self._upgrade:
                self._reject(400, "malformed_http", f"This is not valid HTTP/1.1: {error}.")
            return
        if self._body_framing:
            self._resume(rest)
            return
        self._upgrade = True
        self._early = rest
        if self.queue:
            self.queue[-1].upgrade, self.queue[-1].keep_alive = True, False

    def _resume(self, rest: bytes) -> None:
        """Read the body of a request that offers another protocol, which is not taken up (RFC 9110 7.8): Java's client sends such.

        llhttp leaves everything behind the head to that protocol, so another parser is told how the body is framed. The connection
        ends with the answer: what follows the body may be meant for either protocol.
        """
        framing, self._body_framing, self._is_resumed = self._body_framing, b"", True
        self._framing_bytes = len(rest)
        self.parser = httptools.HttpRequestParser(self)
        self._parse(b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n" + framing + b"\r\n\r\n" + rest)

    def _check_framing(self) -> None:
        """Bound a head that does not end, and a body that is all chunk extensions or trailers."""
        head_bytes_max, request = self._limits.head_bytes_max, self._request
        if self._in_head or request is None:
            self._reject_head()
        elif self._framing_bytes > 2 * head_bytes_max + _FRAMING_FACTOR * request.body_bytes:
            self._reject(431, "head_too_large", "The request's chunk extensions or trailers are too large.")

    def _reads_too_far_ahead(self) -> bool:
        limits, queue = self._limits, self.queue
        return len(queue) > limits.pipeline_max or sum(request.body_bytes for request in queue) > limits.body_bytes_max

    # -- httptools callbacks

    def on_message_begin(self) -> None:
        if not self._is_resumed:
            self._request = Request()
            self._in_head = True

    def on_url(self, target: bytes) -> None:
        if not self._is_resumed:
            assert self._request is not None
            self._request.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._request
        if request is None or not self._in_head:
            return  # trailers (or the head that `_resume` makes): nothing of ours reads them
        request.headers.append((name, value))
        if len(request.headers) > self._limits.headers_max:
            self._reject(431, "too_many_headers", f"The request has more than {self._limits.headers_max} header lines.")
            raise _Rejected

    def on_headers_complete(self) -> None:
        request = self._request
        assert request is not None
        if self._is_resumed:
            return
        self._in_head = False
        if self._framing_bytes > self._limits.head_bytes_max and _head_bytes(request) > self._limits.head_bytes_max:
            self._reject_head()  # read at one go, so that its size is only seen now
            raise _Rejected
        parser = self.parser
        version = parser.get_http_version()
        request.method = parser.get_method().decode("ascii")
        request.keep_alive = parser.should_keep_alive()
        request.http10 = version == "1.0"
        if version != "1.1" and not request.http10:
            self._refuse_malformed("Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        if request.method == "CONNECT":
            self._reject(405, "method_not_allowed", "CONNECT is not offered here.")
            raise _Rejected
        hosts = 0
        expects = False
        length_line: tuple[bytes, bytes] | None = None
        body_framing = b""
        for line in request.headers:
            name, value = line
            if len(name) not in _LOOKED_AT_LENGTHS:
                continue
            lowered = name.lower()
            if lowered == b"host":
                hosts += 1
            elif lowered == b"content-length":
                length_line, body_framing = line, b"content-length: " + value
                if int(value) > self._limits.body_bytes_max:
                    self._refuse_body()
            elif lowered == b"expect":
                expects = value.strip().lower() == b"100-continue"
            elif lowered == b"transfer-encoding" and (request.http10 or value.strip().lower() != b"chunked"):
                # RFC 9112 6.1: 1.0 has no transfer codings; llhttp lets pass others before `chunked`, which we do not undo.
                self._refuse_malformed("The only transfer coding is chunked, and only in HTTP/1.1.")
            elif lowered == b"transfer-encoding":
                body_framing = b"transfer-encoding: chunked"
        if length_line is not None:
            # The body says it; without it the heads of like calls are equal, which `head_plans` uses.
            request.headers.remove(length_line)
        if hosts > 1 or (hosts == 0 and not request.http10):
            self._refuse_malformed("A request has exactly one Host header.")
        if parser.should_upgrade() and not is_upgrade(request):
            self._body_framing = body_framing
        if expects and not request.http10:
            self._continue_due = True  # said at once, or after the answers to the requests before this one
            self._say_continue()

    def on_body(self, data: bytes) -> None:
        request = self._request
        assert request is not None
        self._framing_bytes -= len(data)
        request.add(data)
        if request.body_bytes > self._limits.body_bytes_max:
            self._refuse_body()
        if not self.unread_bytes:
            self.body_since = self._loop.time()
        self.unread_bytes += len(data)
        self._shared.unread_bytes += len(data)
        while self._shared.unread_bytes > self._limits.unread_bodies_bytes_max:
            self._shared.make_room()
            if self._failed is not None:
                raise _Rejected

    def on_message_complete(self) -> None:
        assert self._request is not None
        if self._body_framing:
            return  # only its head: see `_resume`
        if self._is_resumed:
            self._is_resumed, self._upgrade, self._request.keep_alive = False, True, False
        self._body_ended()
        self.queue.append(self._request)
        self._request = None
        self._in_head = True
        self._framing_bytes = 0
        self._continue_due = False

    # -- order and endings

    def exchange_done(self, keep_alive: bool) -> None:
        """The answer has been written whole; go on with the next request or close."""
        self.exchange = None
        self._since = self._loop.time()
        if self.transport is None:
            return
        if not keep_alive or self._shared.stopping or (self._ended_reading and not self.queue):
            self.transport.close()
            return
        if self._paused and len(self.queue) <= self._limits.pipeline_max // 2 and not self._reads_too_far_ahead():
            self._paused = False
            self.transport.resume_reading()
        self._next()

    def cut(self, *, is_framed: bool) -> None:
        """Break the connection off: the honest end of an answer that cannot be completed.

        `is_framed`: the body's framing shows that its end is missing, so what was relayed may still flow. A body that ends with
        the connection would look whole; there only a reset tells.
        """
        self.exchange = None
        self._since = self._loop.time()
        if self.transport is None or self.transport.is_closing():
            return
        if is_framed:
            self.transport.close()
            return
        plain: socket.socket = self.transport.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    # -- another protocol

    @property
    def has_ended(self) -> bool:
        """Has the client closed its sending side?"""
        return self._ended_reading

    def switched(self, receiver: Receiver) -> bytes:
        """From here on what the client sends goes to `receiver`; what it has sent already is returned."""
        self._receiver, early, self._early = receiver, self._early, b""
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()
        return early

    def linger(self) -> None:
        """End the other protocol: nothing more is written, and what the client still sends is read and dropped for a while.

        A close at once, with bytes of the client unread, would destroy what was written last.
        """
        self.exchange = None
        self._since = self._loop.time()
        self._failed = _ENDED
        if self.transport is None or self.transport.is_closing():
            return
        if self._ended_reading:
            self.transport.close()
        else:
            self.transport.resume_reading()
            self.transport.write_eof()

    def _take(self, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver.client_data(data)
            return
        self._early += data
        if len(self._early) > _EARLY_BYTES_MAX and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def close_when_idle(self) -> None:
        if self.exchange is None and not self.queue and self.transport is not None:
            self.transport.close()

    def check(self, now: float) -> None:
        """One look of the sweeper."""
        limits, transport = self._limits, self.transport
        if transport is None:
            return
        if self.exchange is not None:
            if not self.writable and now - self._stalled_since > limits.write_stall_timeout_s:
                transport.abort()
            return
        waited = now - self._since
        if transport.is_closing():
            if waited > limits.write_stall_timeout_s:
                transport.abort()  # closed, but the client does not read the end of the answer
        elif self._failed is not None:
            if waited > _LINGER_S:
                transport.abort()
        elif self._request is not None:
            if waited > (limits.head_timeout_s if self._in_head else limits.body_timeout_s):
                self._reject(408, "request_timeout", "The request did not arrive in time.")
                self._next()
        elif waited > limits.idle_timeout_s:
            transport.close()

    def _next(self) -> None:
        if self.exchange is not None or self.transport is None:
            return
        if self.queue:
            self.exchange = self._shared.start_exchange(self, self.queue.popleft())
        elif self._failed is not None:
            self._answer_failed()
        else:
            self._say_continue()

    def _say_continue(self) -> None:
        """100 Continue, when it is due and no answer to an earlier request is."""
        if self._continue_due and self.exchange is None and not self.queue and self.transport is not None:
            self._continue_due = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _reject_head(self) -> None:
        self._reject(431, "head_too_large", f"The request head is larger than {self._limits.head_bytes_max} bytes.")

    def _refuse_body(self) -> None:
        self._reject(413, "body_too_large", f"The request body is larger than {self._limits.body_bytes_max} bytes.")
        raise _Rejected

    def _refuse_malformed(self, message: str) -> None:
        self._reject(400, "malformed_http", message)
        raise _Rejected

    def _reject(self, status: int, code: str, message: str) -> None:
        """Answer with an error after what is under way, then close: after a malformed request nothing can be trusted."""
        if self._failed is None:
            self._failed = (status, code, message)
            self._request = None
            self._body_ended()

    def _body_ended(self) -> None:
        """A body is whole, or nothing of it is kept."""
        self._shared.unread_bytes -= self.unread_bytes
        self.unread_bytes = 0

    def give_up(self) -> None:
        """Drop the body that is coming."""
        self._reject(408, "request_timeout", "The body came too slowly while many others were on their way.")
        self._next()

    def _answer_failed(self) -> None:
        transport = self.transport
        assert self._failed is not None and transport is not None
        if transport.is_closing():
            return
        status, code, message = self._failed
        body = error_body("openai", status, code, message)
        transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-lava-request-id: %b\r\n"
            b"connection: close\r\n\r\n%b" % (status, _REASONS[status], len(body), new_id("req").encode(), body)
        )
        self._since = self._loop.time()
        if self._ended_reading:
            transport.close()
            return
        if self._paused:
            self._paused = False
            transport.resume_reading()
        transport.write_eof()


_REASONS = {
    400: b"Bad Request", 405: b"Method Not Allowed", 408: b"Request Timeout", 413: b"Content Too Large",
    431: b"Request Header Fields Too Large",
}  # fmt: skip


def is_upgrade(request: Request) -> bool:
    """Does a request to switch protocols mean WebSocket? Others are answered as if they had not asked (RFC 9110 7.8)."""
    return (
        request.method == "GET"
        and not request.http10
        and any(name.lower() == b"upgrade" and b"websocket" in value.lower() for name, value in request.headers)
    )


def _head_bytes(request: Request) -> int:
    return len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
