"""The hot leg to Redis: hiredis' parser on a plain transport, many calls in flight, what waits in one tick goes as one script call.

A client library costs several times what the whole proxy does (redis-py 150-300 µs for two script calls, this 2-8 µs), so the
script calls of the data plane go through here; everything else uses redis-py.

One connection a process. After each connect it loads the script and asks whether Redis' present run has been verified against
Postgres (workers/recovery.py writes VERIFIED_KEY); until then, and while disconnected, calls fail closed within a bound.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis
import structlog

from lava_proxy import tasks
from lava_proxy.domain.errors import StoreError

VERIFIED_KEY = "lava:verified_run"
SCRIPT = resources.files("lava_proxy.stores").joinpath("lua/money.lua").read_text()
# The same script for calls that only resolve holds: it may run when Redis is over its memory bound, so that money held can
# still be settled; a reserve is refused then (Redis answers OOM before the script writes).
SCRIPT_RESOLVING = "#!lua flags=allow-oom\n" + SCRIPT
_RESOLVING_LETTERS = (b"S", b"L")


def _sha(script: str) -> bytes:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest().encode()


SCRIPT_SHA = _sha(SCRIPT)
SCRIPT_RESOLVING_SHA = _sha(SCRIPT_RESOLVING)

# Of a script call: 32 operations of five keys each. Measured: larger ones only lengthen everyone's wait.
_BATCH_KEYS_MAX = 160
_log = structlog.get_logger("hot_redis")

Reply = list[Any]
_Waiting = tuple[list[bytes], list[bytes], "asyncio.Future[Reply]"]


class NotSent(StoreError):
    """Redis was unreachable before the call was sent: it certainly changed nothing."""


class _NotVerified(NotSent):
    """Connected, but this run of Redis may not serve yet."""


class Ambiguous(StoreError):
    """The connection ended after the call was sent: it may or may not have been applied."""


class _Connection(asyncio.Protocol):
    """RESP over one transport; replies resolve the waiting callbacks in order."""

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self._reader = hiredis.Reader()
        self._on_lost = on_lost
        self.transport: asyncio.Transport | None = None
        self.waiting: deque[tuple[float, Callable[[Any], None]]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        waiting = self.waiting
        while True:
            reply = reader.gets()
            if reply is False:
                return
            waiting.popleft()[1](reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        lost = Ambiguous("The connection to Redis was lost during the call.")
        waiting, self.waiting = self.waiting, deque()
        for _, resolve in waiting:
            resolve(lost)
        self._on_lost()

    def send(self, packed: bytes, now: float, resolve: Callable[[Any], None]) -> None:
        assert self.transport is not None
        self.waiting.append((now, resolve))
        self.transport.write(packed)


class HotRedis:
    """Runs money-script operations: `run(keys, args)` resolves to that operation's reply array."""

    def __init__(self, url: str, *, timeout_s: float = 2.0, connect_wait_s: float = 1.0, require_verified: bool = True) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._connect_wait_s = connect_wait_s
        self._require_verified = require_verified
        self._connection: _Connection | None = None
        self._ready = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._queue: list[_Waiting] = []
        self._lost = asyncio.Event()
        self._closed = False
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Begin to connect; returns at once. `wait_ready` waits."""
        self._keeper = tasks.start("hot-redis-keeper", self._keep())
        self._sweep()

    async def wait_ready(self, timeout_s: float) -> bool:
        """True once connected, loaded and verified; False after the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError:
            return False
        return True

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    async def stop(self) -> None:
        """Close the connection; waiting calls fail."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        await tasks.stop(self._keeper)
        if self._connection is not None and self._connection.transport is not None:
            self._connection.transport.close()

    async def run(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """One operation of the money script: its keys, its letter and arguments.

        Raises NotSent when Redis stays unreachable for connect_wait_s, Ambiguous when the connection ends under way.
        """
        if not self._ready.is_set() and not await self.wait_ready(self._connect_wait_s):
            raise NotSent("The billing store cannot be reached; nothing was charged.")
        future: asyncio.Future[Reply] = self._loop.create_future()
        if not self._queue:
            self._loop.call_soon(self._flush)
        self._queue.append((keys, args, future))
        return await future

    async def run_all(self, operations: Sequence[tuple[list[bytes], list[bytes]]]) -> list[Reply | StoreError]:
        """Many operations at once, (keys, args) each; each one's reply, or why it has none, in order."""
        if not self._ready.is_set() and not await self.wait_ready(self._connect_wait_s):
            return [NotSent("The billing store cannot be reached; nothing was charged.") for _ in operations]
        if not self._queue:
            self._loop.call_soon(self._flush)
        futures: list[asyncio.Future[Reply]] = []
        for keys, args in operations:
            future: asyncio.Future[Reply] = self._loop.create_future()
            self._queue.append((keys, args, future))
            futures.append(future)
        replies: list[Reply | StoreError] = []
        for future in futures:
            try:
                replies.append(await future)
            except StoreError as error:
                replies.append(error)
        return replies

    def _flush(self) -> None:
        """Send what this tick gathered, at most _BATCH_KEYS_MAX keys a script call (or one operation that has more)."""
        queue, self._queue = self._queue, []
        connection = self._connection
        if connection is None or connection.transport is None or not self._ready.is_set():
            error = NotSent("The billing store cannot be reached; nothing was charged.")
            for _, _, future in queue:
                if not future.done():
                    future.set_exception(error)
            return
        if len(queue) == 1:
            self._send(connection, _sha_for(queue[0]), queue)
            return
        for sha in (SCRIPT_RESOLVING_SHA, SCRIPT_SHA):
            same = [waiting for waiting in queue if _sha_for(waiting) is sha]
            batch: list[_Waiting] = []
            keys = 0
            for waiting in same:
                keys += len(waiting[0])
                if keys > _BATCH_KEYS_MAX and batch:
                    self._send(connection, sha, batch)
                    batch, keys = [], len(waiting[0])
                batch.append(waiting)
            if batch:
                self._send(connection, sha, batch)

    def _send(self, connection: _Connection, sha: bytes, batch: list[_Waiting], *, reloaded: bool = False) -> None:
        words: list[bytes] = [b"EVALSHA", sha, b"%d" % sum([len(keys) for keys, _, _ in batch])]
        for keys, _, _ in batch:
            words += keys
        words.append(b"%d" % len(batch))
        for _, args, _ in batch:
            words += args
        connection.send(_pack(words), self._loop.time(), partial(self._answered, connection, sha, batch, reloaded))

    def _answered(self, connection: _Connection, sha: bytes, batch: list[_Waiting], reloaded: bool, reply: Any) -> None:
        """Hand out the replies. A script that Redis has forgotten certainly did not run: load it and send the batch once more."""
        text = str(reply) if isinstance(reply, hiredis.ReplyError) else ""
        if text.startswith("NOSCRIPT") and not reloaded and connection.transport is not None:
            for script in (SCRIPT, SCRIPT_RESOLVING):
                connection.send(_pack(("SCRIPT", "LOAD", script)), self._loop.time(), _ignore)
            self._send(connection, sha, batch, reloaded=True)
            return
        _resolve(batch, reply)
        if text.startswith("READONLY") and connection.transport is not None:
            connection.transport.abort()  # a replica now: the address may lead to the new primary

    async def _keep(self) -> None:
        """Connect, load, verify, wait for loss; for ever."""
        delay_s, said = 0.02, ""
        while not self._closed:
            try:
                await self._connect()
            except (OSError, hiredis.HiredisError, StoreError, TimeoutError) as error:
                text = str(error) or type(error).__name__
                if text != said:  # once a reason, not once an attempt
                    # Every start waits a moment for the verification; that is no warning.
                    say = _log.info if isinstance(error, _NotVerified) else _log.warning
                    say("Waiting for Redis", action="redis_waits", error=text)
                    said = text
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, 0.5)
                continue
            delay_s, said = 0.02, ""
            self._ready.set()
            await self._lost.wait()
            self._ready.clear()

    async def _connect(self) -> None:
        self._lost.clear()
        address = urlsplit(self._url)
        options = parse_qs(address.query)
        database = options.get("db", [address.path.strip("/") if address.scheme != "unix" else "0"])[0] or "0"

        def made() -> _Connection:
            return _Connection(self._on_lost)

        async with asyncio.timeout(self._timeout_s):
            if address.scheme == "unix":
                _, connection = await self._loop.create_unix_connection(made, address.path)
            else:
                tls = True if address.scheme == "rediss" else None
                _, connection = await self._loop.create_connection(
                    made, address.hostname or "127.0.0.1", address.port or 6379, ssl=tls
                )
        self._connection = connection
        try:
            if address.password:
                user = [unquote(address.username)] if address.username else []
                await self._command(connection, "AUTH", *user, unquote(address.password))
            if database != "0":
                await self._command(connection, "SELECT", database)
            if self._require_verified and not await self._is_verified(connection):
                raise _NotVerified("This run of Redis has not been verified against Postgres yet.")
            for script in (SCRIPT, SCRIPT_RESOLVING):
                await self._command(connection, "SCRIPT", "LOAD", script)
        except BaseException:
            if connection.transport is not None:
                connection.transport.close()
            raise

    def _on_lost(self) -> None:
        self._ready.clear()  # at once, so that calls wait for the reconnect instead of being refused
        self._lost.set()

    async def _is_verified(self, connection: _Connection) -> bool:
        """Has this very run of Redis been checked against Postgres?"""
        server = await self._command(connection, "INFO", "server")
        run_id = next(line.split(b":", 1)[1] for line in server.splitlines() if line.startswith(b"run_id:"))
        return bool(await self._command(connection, "GET", VERIFIED_KEY) == run_id)

    async def _command(self, connection: _Connection, *words: str) -> Any:
        if connection.transport is None:
            raise NotSent("The connection to Redis is closed.")
        future: asyncio.Future[Any] = self._loop.create_future()

        def resolve(reply: Any) -> None:
            if future.done():
                return
            if isinstance(reply, Exception):
                future.set_exception(StoreError(str(reply)))
            else:
                future.set_result(reply)

        connection.send(_pack(words), self._loop.time(), resolve)
        async with asyncio.timeout(self._timeout_s):
            return await future

    def _sweep(self) -> None:
        """Cut a connection whose oldest call has waited too long; its calls fail as ambiguous."""
        connection = self._connection
        if connection is not None and connection.transport is not None and connection.waiting:
            if self._loop.time() - connection.waiting[0][0] > self._timeout_s:
                _log.error("Redis does not answer", action="redis_timeout", waiting=len(connection.waiting))
                connection.transport.abort()
        if not self._closed:
            self._sweeper = self._loop.call_later(0.25, self._sweep)


def _pack(words: Sequence[str | bytes]) -> bytes:
    packed: bytes = hiredis.pack_command(tuple(words))  # type: ignore[arg-type]  # its stub admits only 1-tuples
    return packed


def _sha_for(waiting: _Waiting) -> bytes:
    return SCRIPT_RESOLVING_SHA if waiting[1][0] in _RESOLVING_LETTERS else SCRIPT_SHA


def _ignore(reply: Any) -> None:
    """A reload that failed shows in the call that needs it."""


def _resolve(batch: list[_Waiting], reply: Any) -> None:
    if isinstance(reply, Exception):
        for _, _, future in batch:
            if not future.done():
                future.set_exception(_translated(reply))
        return
    for (_, _, future), answer in zip(batch, reply, strict=True):
        if not future.done():
            future.set_result(answer)


def _translated(error: Exception) -> StoreError:
    """An error reply means the script did not run (OOM, LOADING, NOSCRIPT, READONLY); a lost connection is ambiguous."""
    if isinstance(error, StoreError):
        return error
    return NotSent(f"The billing store refused the call: {str(error)[:200]}")
