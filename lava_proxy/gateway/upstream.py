"""The client side: HTTP/1.1 connections to providers and to the control process, pooled, with the address guard.

A connection hands its response to a `ResponseHandler`, callback to callback. A pooled connection that has died is dropped before
use; once request bytes have been written nothing is ever sent again, because a provider may already be working (and billing).
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import httptools

from lava_proxy.domain.errors import StoreError, UpstreamError
from lava_proxy.settings import Upstream as UpstreamSettings
from lava_proxy.wire.addresses import is_public

Headers = list[tuple[bytes, bytes]]

_RESOLVED_S = 30.0  # how long a name's addresses are kept
_TRUSTED_IDLE_S = 0.5  # a connection idle for longer is asked for news before a call is sent on it
_HEAD_BYTES_MAX = 262_144  # a response head larger than this is not an API's


class ResponseHandler(Protocol):
    """Who receives a response."""

    def on_head(self, status: int, reason: bytes, headers: Headers) -> None: ...
    def on_body(self, data: bytes) -> None: ...
    def on_end(self) -> None: ...
    def on_read_end(self) -> None: ...
    def on_broken(self, error: UpstreamError) -> None: ...
    def upstream_writable(self, writable: bool) -> None: ...


class Tunnel(Protocol):
    """Who takes a connection over once the provider has switched protocols; what it hears replaces the handler's calls."""

    def on_switched(self, reason: bytes, headers: Headers) -> None: ...
    def upstream_data(self, data: bytes) -> None: ...
    def upstream_lost(self) -> None: ...
    def upstream_writable(self, writable: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Origin:
    """Where to connect: a host and port, TLS or not, or a Unix socket path. `guarded`: private addresses are refused."""

    host: str
    port: int
    tls: bool = True
    guarded: bool = True
    unix: str | None = None


class UpstreamConnection(asyncio.Protocol):
    """One keep-alive connection; serves one exchange at a time."""

    __slots__ = (
        "_body_open", "_head_bytes", "_head_done", "_headers", "_informational", "_no_body", "_parser", "_reason", "_switching",
        "broken", "closed", "counted", "handler", "idle_since", "on_closed", "origin", "transport", "tunnel",
    )  # fmt: skip

    def __init__(self, origin: Origin, on_closed: Callable[[UpstreamConnection], None]) -> None:
        self.origin = origin
        self.on_closed = on_closed
        self.transport: asyncio.Transport | None = None
        self.handler: ResponseHandler | None = None
        self.closed = False
        self.broken = False
        self.counted = False  # by its pool, once it was connected
        self.idle_since = 0.0
        self.tunnel: Tunnel | None = None  # set by whoever sends a request to switch protocols
        self._switching: tuple[bytes, Headers] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._reset()

    def _reset(self) -> None:
        self._headers: Headers = []
        self._reason = b""
        self._head_done = False
        self._head_bytes = 0
        self._informational = False
        self._no_body = False
        self._body_open = False

    # -- what the exchange calls

    def send(self, handler: ResponseHandler, head: bytes, body: bytes, *, expects_body: bool) -> None:
        """Write a request; the response goes to `handler`. `expects_body` is False for HEAD."""
        assert self.transport is not None and self.handler is None
        self._reset()
        self._no_body = not expects_body
        self.handler = handler
        if len(body) <= 65536:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)

    def has_news(self) -> bool:
        """Has the kernel something that we have not read (an end, a reset, bytes nobody asked for)? One system call."""
        assert self.transport is not None
        plain = self.transport.get_extra_info("socket")
        if plain is None or plain.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(plain.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
        return bool(poll.poll(0))

    def abort(self) -> None:
        """Cut the connection; the handler (or the tunnel) hears nothing more."""
        self.handler = self.tunnel = None
        self.broken = True
        if self.transport is not None:
            self.transport.abort()

    def pause(self, paused: bool) -> None:
        """Back-pressure from the client."""
        if self.transport is None or self.closed:
            return
        if paused:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        if (receiver := self.handler or self.tunnel) is not None:
            receiver.upstream_writable(False)

    def resume_writing(self) -> None:
        if (receiver := self.handler or self.tunnel) is not None:
            receiver.upstream_writable(True)

    def data_received(self, data: bytes) -> None:
        handler = self.handler
        if handler is None:
            if self.tunnel is not None:
                self.tunnel.upstream_data(data)
                return
            # Bytes nobody asked for on an idle connection: it cannot be trusted any more.
            self.abort()
            return
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._switch(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
            if cause is not None:
                self._fail("internal error")
                raise cause from None
            self._fail(f"The provider's answer is not HTTP: {error}")
        if not self._head_done and self._head_bytes > _HEAD_BYTES_MAX:
            self._fail("The provider's response head is too large.")
        handler.on_read_end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        handler, self.handler = self.handler, None
        self.on_closed(self)
        if handler is None:
            if self.tunnel is not None:
                self.tunnel.upstream_lost()
            return
        if exc is None and self._body_open and self._ends_with_connection():
            handler.on_end()
            handler.on_read_end()
            return
        handler.on_broken(
            UpstreamError("The provider closed the connection before its answer was complete.", code="upstream_closed")
        )

    def _fail(self, message: str) -> None:
        handler, self.handler = self.handler, None
        self.broken = True
        if self.transport is not None:
            self.transport.abort()
        if handler is not None:
            handler.on_broken(UpstreamError(message, code="upstream_malformed"))

    def _switch(self, rest: bytes) -> None:
        """From here on the bytes are the tunnel's; without one, nobody has asked for this."""
        switching, tunnel = self._switching, self.tunnel
        if switching is None or tunnel is None:
            self._fail("The provider switched protocols.")
            return
        self.handler = None
        self.broken = True  # as a connection for calls
        tunnel.on_switched(*switching)
        if rest:
            tunnel.upstream_data(rest)

    def _ends_with_connection(self) -> bool:
        """Has the body under way neither a length nor chunks, so that the connection's end is its end?"""
        return not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._headers)

    # -- httptools callbacks

    def on_message_begin(self) -> None:
        if self.handler is None:
            self.broken = True  # a response nobody asked for, behind one that was: never pooled, it would answer somebody else

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_done:  # trailers come here too, and are dropped
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self._informational = True
            if status == 101:
                self._switching = (self._reason, self._headers)
            return
        self._head_done = True
        self._body_open = True
        handler = self.handler
        if handler is None:
            return
        handler.on_head(status, self._reason, self._headers)
        if self._no_body and self.handler is not None:
            # llhttp cannot know that this answers a HEAD and would wait for a body.
            self.handler = None
            self.broken = True
            handler.on_end()
            if self.transport is not None:
                self.transport.close()

    def on_body(self, data: bytes) -> None:
        if self.handler is not None:
            self.handler.on_body(data)

    def on_message_complete(self) -> None:
        if self._informational:
            no_body = self._no_body
            self._reset()
            self._no_body = no_body
            return
        self._body_open = False
        handler, self.handler = self.handler, None
        if not self._parser.should_keep_alive():
            self.broken = True
        if handler is not None:
            handler.on_end()


class _Host:
    __slots__ = ("idle", "open", "waiters")

    def __init__(self) -> None:
        self.idle: deque[UpstreamConnection] = deque()
        self.open = 0
        self.waiters: deque[asyncio.Future[None]] = deque()


class UpstreamPool:
    """Connections by origin, newest first. One owner: the gateway worker."""

    def __init__(self, settings: UpstreamSettings, tls_context: ssl.SSLContext | None = None) -> None:
        self._settings = settings
        self._tls = tls_context or ssl.create_default_context()
        self._hosts: dict[Origin, _Host] = {}
        self._names: dict[tuple[str, int, bool], tuple[float, list[str]]] = {}
        self._loop = asyncio.get_running_loop()

    def take_idle(self, origin: Origin) -> UpstreamConnection | None:
        """A live pooled connection, or None; never waits."""
        host = self._hosts.get(origin)
        while host is not None and host.idle:
            connection = host.idle.pop()
            if not connection.closed and connection.transport is not None and not connection.transport.is_closing():
                if self._loop.time() - connection.idle_since > _TRUSTED_IDLE_S and connection.has_news():
                    connection.abort()  # an end that the loop has not read yet: nothing was sent, so another one serves
                    continue
                return connection
        return None

    async def acquire(self, origin: Origin) -> UpstreamConnection:
        """A connection ready to send on. Raises UpstreamError (502, 504) or StoreError (503 when the pool stays full)."""
        connection = self.take_idle(origin)
        if connection is not None:
            return connection
        host = self._hosts.setdefault(origin, _Host())
        while host.open >= self._settings.pool_per_host_max:
            await self._wait(host)
            connection = self.take_idle(origin)
            if connection is not None:
                return connection
        host.open += 1
        try:
            connection = await self._connect(origin)
        except BaseException:
            self._one_less(host)
            raise
        if connection.closed:
            self._one_less(host)
            raise UpstreamError(f"{origin.host} closed a new connection at once.", code="upstream_closed")
        connection.counted = True
        return connection

    def release(self, connection: UpstreamConnection) -> None:
        """Give a connection back after its response has ended."""
        transport = connection.transport
        if connection.closed or transport is None or transport.is_closing():
            return
        if connection.broken:
            transport.close()
            return
        if transport.get_write_buffer_size():
            transport.abort()  # answered before it had read all of the request: the rest would lead the next one
            return
        host = self._hosts[connection.origin]
        connection.idle_since = self._loop.time()
        host.idle.append(connection)
        self._wake(host)

    def sweep(self, now: float) -> None:
        """Close connections idle for too long: oldest first."""
        for host in self._hosts.values():
            while host.idle and now - host.idle[0].idle_since > self._settings.pool_idle_s:
                stale = host.idle.popleft()
                if stale.transport is not None:
                    stale.transport.close()

    def counts(self) -> tuple[int, int]:
        """Connections in use and idle."""
        idle = sum(len(host.idle) for host in self._hosts.values())
        return sum(host.open for host in self._hosts.values()) - idle, idle

    def close(self) -> None:
        for host in self._hosts.values():
            for connection in host.idle:
                if connection.transport is not None:
                    connection.transport.close()
            host.idle.clear()

    async def _wait(self, host: _Host) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        host.waiters.append(waiter)
        try:
            async with asyncio.timeout(self._settings.pool_wait_s):
                await waiter
        except TimeoutError:
            if waiter.done() and not waiter.cancelled():
                self._wake(host)  # woken too late: the next one's turn
            raise StoreError("Too many calls to this provider are under way; try again shortly.", code="pool_exhausted") from None

    @staticmethod
    def _wake(host: _Host) -> None:
        while host.waiters:
            waiter = host.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _one_less(self, host: _Host) -> None:
        host.open -= 1
        self._wake(host)

    def _closed(self, connection: UpstreamConnection) -> None:
        if not connection.counted:
            return  # `acquire` counts those that never served
        host = self._hosts[connection.origin]
        try:
            host.idle.remove(connection)
        except ValueError:
            pass
        self._one_less(host)

    async def _connect(self, origin: Origin) -> UpstreamConnection:
        def factory() -> UpstreamConnection:
            return UpstreamConnection(origin, self._closed)

        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                if origin.unix is not None:
                    return (await self._loop.create_unix_connection(factory, origin.unix))[1]
                return await self._connect_tcp(origin, factory)
        except TimeoutError:
            raise UpstreamError(
                f"Connecting to {origin.host} took longer than {self._settings.connect_timeout_s} s.",
                code="upstream_timeout",
                status=504,
            ) from None
        except (OSError, ssl.SSLError) as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise UpstreamError(f"{origin.host} cannot be reached ({reason}).", code="upstream_unreachable") from error

    async def _connect_tcp(self, origin: Origin, factory: Callable[[], UpstreamConnection]) -> UpstreamConnection:
        last: OSError | None = None
        for address in await self._addresses(origin):
            try:
                _, connection = await self._loop.create_connection(
                    factory, address, origin.port, ssl=self._tls if origin.tls else None,
                    server_hostname=origin.host if origin.tls else None,
                )  # fmt: skip
                return connection
            except OSError as error:
                last = error
        raise last or OSError("no address")

    async def _addresses(self, origin: Origin) -> list[str]:
        """A name's addresses; where guarded, the check is on what is connected to, so rebinding a name gains nothing."""
        key = (origin.host, origin.port, origin.guarded)
        known = self._names.get(key)
        if known is not None and known[0] > self._loop.time():
            return known[1]
        found = await self._loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if origin.guarded and not all(is_public(address) for address in addresses):
            raise UpstreamError(
                f"{origin.host} resolves to an address that is not public; only a provider with an override may be private.",
                code="upstream_address_refused",
            )
        if len(self._names) > 10_000:
            self._names.clear()
        self._names[key] = (self._loop.time() + _RESOLVED_S, addresses)
        return addresses
