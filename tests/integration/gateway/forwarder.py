"""A loopback port in front of an engine, so that a test can cut the engine off or let it hang, and bring it back."""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qs, urlsplit

_PORT_OF_POSTGRES = 5432


class _Leg(asyncio.Protocol):
    def __init__(self, owner: Forwarder) -> None:
        self._owner = owner
        self.transport: asyncio.Transport | None = None
        self.peer: _Leg | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._owner.legs.add(self)

    def data_received(self, data: bytes) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.write(data)
        else:
            self.early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._owner.legs.discard(self)
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.abort()


class _Front(_Leg):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._owner.starting.append(asyncio.ensure_future(self._join()))

    async def _join(self) -> None:
        loop = asyncio.get_running_loop()
        _, back = await loop.create_unix_connection(lambda: _Leg(self._owner), self._owner.path)
        back.peer = self
        self.peer = back
        if self.transport is None:
            back.transport.abort()  # type: ignore[union-attr]
            return
        for data in self.early:
            back.transport.write(data)  # type: ignore[union-attr]


class Forwarder:
    """Relays a loopback port to a Unix socket."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.legs: set[_Leg] = set()
        self.starting: list[asyncio.Future[None]] = []
        self.port = 0
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen (on the same port as before)."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Front(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Break all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await asyncio.gather(*self.starting)
        for leg in list(self.legs):
            if leg.transport is not None:
                leg.transport.abort()
        while self.legs:
            await asyncio.sleep(0)

    def hang(self) -> None:
        """Relay nothing any more, but stay connected."""
        for leg in self.legs:
            if leg.transport is not None:
                leg.transport.pause_reading()


def redis_forwarder(redis_url: str) -> Forwarder:
    """In front of an embedded Redis."""
    return Forwarder(urlsplit(redis_url).path)


def postgres_forwarder(database_url: str) -> Forwarder:
    """In front of an embedded Postgres."""
    options = parse_qs(urlsplit(database_url).query)
    port = options.get("port", [str(_PORT_OF_POSTGRES)])[0]
    return Forwarder(f"{options['host'][0]}/.s.PGSQL.{port}")


def through(forwarder: Forwarder, database_url: str) -> str:
    """The database's URL through the forwarder."""
    address = urlsplit(database_url)
    options = parse_qs(address.query)
    user = address.username or options.get("user", ["postgres"])[0]
    return f"postgresql://{user}@127.0.0.1:{forwarder.port}{address.path}?sslmode=disable"
