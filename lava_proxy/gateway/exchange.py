"""One exchange, top to bottom: head and body in, grant, hold, upstream, relay, settle. THE HOT PATH.

`run` is the story; the relay phase goes callback to callback (`on_head`, `on_body`, `on_end`) with no task switch a chunk.
A hold has one exit: `Charging.settle` in `_charged_call`'s end. Nothing here decides about money; billing does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import TYPE_CHECKING

import structlog

from lava_proxy import tasks, telemetry
from lava_proxy.billing.charging import Charging, Ending, Hold
from lava_proxy.domain.errors import CallerError, InsufficientFunds, LavaError, LimitExceeded, StoreError, UpstreamError
from lava_proxy.domain.usage import Outcome, Provenance, Reading
from lava_proxy.gateway import headers as hygiene
from lava_proxy.gateway.breaker import Breakers
from lava_proxy.gateway.downstream import Downstream, Request
from lava_proxy.gateway.grants import Grants, Payer
from lava_proxy.gateway.head_plans import HeadPlan, Route, Routes
from lava_proxy.gateway.routes import ModelRoute, Target
from lava_proxy.gateway.upstream import Headers, Origin, UpstreamConnection, UpstreamPool
from lava_proxy.providers import endings
from lava_proxy.providers.base import Call, Meter, Provider, Relay
from lava_proxy.providers.registry import Registry
from lava_proxy.settings import Settings
from lava_proxy.stores.balance_store import AlreadyCalled
from lava_proxy.stores.ids import new_id
from lava_proxy.wire import control_hop
from lava_proxy.wire.public_address import PEER_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable

_CONTROL_TIMEOUT_S = 30.0
_HOP = control_hop.HEADER.encode()
NEVER = 1 << 62  # bytes no stream reaches
_LOOK_BYTES_MIN = 2048
_LOOK_BYTES_MAX = 1 << 20
_DENSE_BYTES_PER_TOKEN = 3  # of a stream on the wire until a look has measured it: text alone has four, and a look comes early
_DRY_BYTES_MAX = 65_536  # a dry stream flows on to the end of its event, so far and
DRY_S = 3.0  # so long
_INSTEAD_BYTES_MAX = 65_536
_EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
_COMMENT_APIS = frozenset({"chat", "completions", "responses", "messages"})
_NOTHING = Reading(usage=None, provenance=Provenance.NONE)
_log = structlog.get_logger("exchange")


@dataclass(slots=True, kw_only=True)
class Context:
    """What all exchanges of a worker share; built once by the worker."""

    settings: Settings
    registry: Registry
    grants: Grants
    charging: Charging
    pool: UpstreamPool
    control: Origin
    control_hop: bytes = b""  # what the control process knows us by; empty where it listens on a Unix socket
    env_keys: dict[str, str]
    tally: telemetry.Tally
    outbox_full: Callable[[], bool]
    live: set[Exchange]
    routes: Routes
    breakers: Breakers = field(default_factory=lambda: Breakers(0, 1))


class Exchange:
    """One request and its answer. Owned by its client connection until `exchange_done`."""

    __slots__ = (
        "_body_done", "_breaker_key", "_broken", "_carries_events", "_commented_at", "_context", "_done", "_drained_bytes",
        "_dry_at", "_dry_bytes", "_ended_ns", "_first_byte_ns", "_framing", "_head_sent", "_hold", "_instead", "_is_early",
        "_is_lines", "_is_trial", "_look_at", "_loop", "_may_comment", "_out", "_relay", "_relayed", "_reply_keep_alive",
        "_sent_at", "_sent_ns", "_started_ns", "active", "client", "client_left", "connection", "deadline", "delivered",
        "leased_at", "meter", "outcome", "quiet_since", "request", "request_id", "status", "target",
    )  # fmt: skip

    def __init__(self, context: Context, client: Downstream, request: Request) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        self.client: Downstream | None = client
        self.request = request
        self.request_id = ""
        self.target: Target | None = None
        self.connection: UpstreamConnection | None = None
        self.meter: Meter | None = None
        self.status: int | None = None
        self.delivered = False
        self.client_left = False
        self.outcome = Outcome.COMPLETED
        self.active = False  # did bytes come from upstream since the last look of the sweeper
        self.quiet_since = 0.0
        self.deadline = 0.0  # of a drain after the client has gone; 0 = none
        self.leased_at = 0.0
        self._hold: Hold | None = None
        self._relay: Relay | None = None
        self._done: asyncio.Future[None] | None = None
        self._broken: UpstreamError | None = None
        self._head_sent = False
        self._body_done = False
        self._framing: hygiene.BodyMode = "none"
        self._reply_keep_alive = False
        self._drained_bytes = 0
        self._out: list[bytes] = []  # of the present read; empty between reads
        self._relayed = 0  # body bytes
        self._look_at = NEVER  # relayed bytes at which something other than relaying is due: see `_look`
        self._carries_events = False  # can an event of ours be written into this body
        self._is_lines = False  # and is an event of it a line of JSON
        self._dry_at = 0.0  # when the balance could not follow any more; 0 = it can
        self._dry_bytes = 0
        self._may_comment = False
        self._commented_at = 0.0
        self._is_early = False  # the head went out before the provider's, to carry comments
        self._instead: bytearray | None = None  # a body that came for an early head and is no event stream
        self._breaker_key = ("", 0)
        self._is_trial = False
        self._sent_at = 0.0
        self._started_ns = perf_counter_ns()
        self._sent_ns = 0
        self._first_byte_ns = 0
        self._ended_ns = 0

    def start(self) -> Exchange:
        """Begin; returns itself for the connection to hold."""
        tasks.start("exchange", self.run())
        return self

    # -- the story

    async def run(self) -> None:
        """Answer the request, whatever happens; then tell the connection."""
        request = self.request
        keep_alive = False
        try:
            route = self._find_route()
            if route is None:
                keep_alive = await self._to_control()
            else:
                self.target = route.target
                self.request_id = new_id("req")
                keep_alive = await self._charged_call(route)
        except LavaError as error:
            keep_alive = self._answer_error(error)
        except Exception:
            _log.exception("An exchange failed", action="exchange_failed", request_id=self.request_id)
            keep_alive = self._answer_error(LavaError("Something went wrong on our side; nothing more was charged."))
        finally:
            client, self.client = self.client, None
            if client is not None:
                if keep_alive:
                    client.exchange_done(request.keep_alive)
                elif self._head_sent and not self._body_done:
                    client.cut(is_framed=self._framing != "none")
                else:
                    client.exchange_done(False)
            # Let go of the body at once: an exception's frames may keep this object until the next collection.
            self._broken = self._hold = self.meter = None
            request.body_parts = []

    def _find_route(self) -> Route | None:
        """Where the request goes; None: to the control process."""
        request, routes = self.request, self._context.routes
        route = routes.find(request.method, request.target)
        if isinstance(route, ModelRoute):
            route, body = routes.choose(route, request.body())
            request.body_parts = [body]
        return route

    def _plan(self, route: Route) -> HeadPlan:
        return route.plan(self.request.headers)

    def _inspect(self, route: Route, plan: HeadPlan, payer: Payer) -> Call:
        """What the request asks for, and may its credential ask for that."""
        context, request, target = self._context, self.request, route.target
        provider = target.provider
        call = context.registry.family(provider).inspect(
            provider, request.method, target.path, target.query, plan.content_type, request.body()
        )
        if payer.rules is not None:
            context.grants.check(payer.rules, request.target, provider, call)
        return call

    async def _charged_call(self, route: Route) -> bool:
        """A provider call: grant, inspect, reserve, relay, settle. True when the connection can go on."""
        context = self._context
        plan = self._plan(route)
        payer = context.grants.known(plan.credential) or await context.grants.resolve(plan.credential)
        context.routes.keep(route, plan)
        key, key_type = self._provider_key(route.target.provider, payer)
        call = self._inspect(route, plan, payer)
        origin = route.origin
        self._breaker_key = (origin.host, origin.port)
        self._is_trial = context.breakers.admit(self._breaker_key, self._loop.time())
        try:
            return await self._admitted_call(route, plan, payer, call, key, key_type)
        finally:
            if self._is_trial:
                context.breakers.abandoned(self._breaker_key)

    async def _admitted_call(self, route: Route, plan: HeadPlan, payer: Payer, call: Call, key: str | None, key_type: str) -> bool:
        """What the breaker has let pass: reserve, relay, settle."""
        context, provider = self._context, route.target.provider
        if context.outbox_full():
            raise StoreError("The ledger is behind; new calls wait until it has caught up.", code="outbox_full")
        hold = await context.charging.reserve(
            self.request_id,
            payer.grant,
            provider,
            call,
            endpoint=route.endpoint,
            key_type=key_type,
            metadata=plan.metadata,
            idempotency_key=plan.idempotency_key,
            longest_s=context.settings.upstream.total_timeout_s,
        )
        self._hold = hold
        context.live.add(self)
        self.leased_at = self._loop.time()
        try:
            await self._relay_call(route, plan, hold.call, key)
        except BaseException as error:
            if self.outcome is Outcome.COMPLETED:
                self.outcome = Outcome.UPSTREAM_TIMEOUT if getattr(error, "status", 0) == 504 else Outcome.UPSTREAM_BROKEN
            raise
        finally:
            context.live.discard(self)
            await self._settle(hold)
        return self._body_done

    def _provider_key(self, provider: Provider, payer: Payer) -> tuple[str | None, str]:
        """The key to call with, and whose it is: the token's, the merchant's stored one, or the installation's."""
        if payer.grant.provider_key:
            return payer.grant.provider_key, "unmanaged"
        if provider.name in payer.stored_keys:
            return payer.stored_keys[provider.name], "stored"
        key = self._context.env_keys.get(provider.name)
        if key is None and provider.override is None and provider.auth != "none":
            names = " or ".join(provider.key_env) or "a provider_key in the token"
            raise CallerError(
                f"This server has no key for {provider.name}: store one under Keys in the dashboard or with `lava-proxy "
                f"provider-key set`, set {names}, or put a provider_key into the forward token.",
                code="provider_key_missing",
            )
        return key, "managed"

    async def _relay_call(self, route: Route, plan: HeadPlan, call: Call, key: str | None) -> None:
        """Send the request upstream and relay the answer to its end. Raises UpstreamError when it breaks."""
        context, origin = self._context, route.origin
        sends_body = bool(call.body) or self.request.method in ("POST", "PUT", "PATCH")
        self._may_comment = self._is_commentable(call)
        length, is_plain = len(call.body) if sends_body else None, call.spliced or self._may_comment
        head = plan.upstream_head(key, length, force_identity=is_plain, body=call.body)
        self._relay = context.registry.family(route.target.provider).relay(call) if call.spliced else None
        try:
            connection = context.pool.take_idle(origin) or await context.pool.acquire(origin)
        except UpstreamError:
            self._host_failed()
            raise
        if self.client_left:  # nothing has been sent, so nothing is owed
            context.pool.release(connection)
            self.outcome = Outcome.CLIENT_GONE
            return
        if self._broken is not None:  # stopped while it waited
            context.pool.release(connection)
            raise self._broken
        self._sent_ns = perf_counter_ns()
        await self._send(connection, head, call.body)
        if self._broken is not None:
            raise self._broken

    async def _send(self, connection: UpstreamConnection, head: bytes, body: bytes) -> None:
        """Send on a connection and wait until the answer has ended, one way or another."""
        self.connection = connection
        self._done = self._loop.create_future()
        self.quiet_since = self._sent_at = self._loop.time()
        connection.send(self, head, body, expects_body=self.request.method != "HEAD")
        if self.client is not None and not self.client.writable:
            connection.pause(True)
        try:
            await self._done
        finally:
            self.connection = None
            if connection.handler is self:
                connection.abort()
            else:
                connection.pause(False)
                self._context.pool.release(connection)

    async def _settle(self, hold: Hold) -> None:
        """The one exit of the hold."""
        self._ended_ns = self._ended_ns or perf_counter_ns()
        ending = self._ending()
        await self._context.charging.settle(hold, ending)
        if self._sent_ns:
            self._context.tally.observe(telemetry.OVERHEAD, self._sent_ns - self._started_ns)
        if self._first_byte_ns:
            self._context.tally.observe(telemetry.TTFB, self._first_byte_ns - self._sent_ns)

    def _ending(self) -> Ending:
        timings = {}
        if self._sent_ns:
            timings["overhead_us"] = (self._sent_ns - self._started_ns) // 1000
        if self._first_byte_ns:
            timings["ttfb_us"] = (self._first_byte_ns - self._sent_ns) // 1000
        if self._relayed:
            timings["delivered_bytes"] = self._relayed - self._drained_bytes
        if self._hold is not None and self._hold.clamped_to:
            timings["max_tokens_clamped_to"] = self._hold.clamped_to
        timings["total_us"] = ((self._ended_ns or perf_counter_ns()) - self._started_ns) // 1000
        outcome = self.outcome
        if outcome is Outcome.COMPLETED and (self.status or 0) >= 400:
            outcome = Outcome.PROVIDER_ERROR
        elif outcome is Outcome.COMPLETED and self.client_left:
            outcome = Outcome.CLIENT_GONE
        return Ending(
            reading=self.meter.reading() if self.meter is not None else _NOTHING,
            outcome=outcome,
            http_status=self.status,
            delivered=self.delivered,
            timings=timings,
        )

    async def checkpoint(self) -> None:
        """Keep what this call has used so far beside its hold, should this process die."""
        hold = self._hold
        if hold is None or hold.settled:
            return
        ending = self._ending()
        try:
            await self._context.charging.checkpoint(
                hold,
                Ending(reading=ending.reading, outcome=Outcome.ORPHANED, http_status=self.status, delivered=self.delivered),
            )
        except StoreError:
            _log.warning("A checkpoint was not written", action="checkpoint_failed", request_id=self.request_id)
        if not hold.settled and self._done is not None and not self._done.done():
            self._plan_look(hold)

    def _plan_look(self, hold: Hold) -> None:
        """After a look: when is the next one due, in bytes, or is the hold dry?"""
        if hold.is_dry:
            if not self._carries_events:
                self._stop_upstream(Outcome.BALANCE_EXHAUSTED)  # this framing has no event to say it: the connection is cut
                return
            self._dry_at = self._dry_at or self._loop.time()
            self._look_at = 0  # every chunk: at the end of an event the stream is ended
        elif hold.call.open_ended and hold.amount_nanos:
            room_nanos = hold.room_nanos
            if room_nanos <= 0:  # it could not be extended by as much as it should
                room_nanos = hold.amount_nanos - hold.used_nanos
            left = room_nanos * self._relayed // (2 * hold.used_nanos) if hold.used_nanos else _LOOK_BYTES_MAX
            self._look_at = self._relayed + min(max(left, _LOOK_BYTES_MIN), _LOOK_BYTES_MAX)

    def _look(self, data: bytes) -> bool:
        """The rare turns of a relayed chunk; True when it has been dealt with."""
        if self._instead is not None:
            if len(self._instead) < _INSTEAD_BYTES_MAX:
                self._instead += data
            return True
        hold = self._hold
        if hold is None:
            return False
        if hold.is_dry:
            return self._end_dry(hold, data)
        self._look_at = NEVER
        tasks.start("exchange-look", self.checkpoint())
        return False

    def _end_dry(self, hold: Hold, data: bytes) -> bool:
        """End the stream with its family's own error, at the end of an event; False while it is inside one."""
        client = self.client
        end = endings.whole_events(data, is_lines=self._is_lines) if self._carries_events else 0
        self._dry_bytes += len(data)
        if not end and self._dry_bytes < _DRY_BYTES_MAX and client is not None:
            return False
        if end and client is not None and client.transport is not None:
            self._put(data[:end])
            message = "The balance is used up; the answer ends here, and what was delivered has been charged."
            self._put_error(hold, InsufficientFunds.status, "balance_exhausted", message)
        self._stop_upstream(Outcome.BALANCE_EXHAUSTED)
        return True

    def _put_error(self, hold: Hold, status: int, code: str, message: str) -> None:
        """The body's last event and its end."""
        dialect = hygiene.dialect_of(self.target, self.request.headers, self.request.target)
        self._end_with(hold, hygiene.error_body(dialect, status, code, message))

    def _end_with(self, hold: Hold, error: bytes) -> None:
        dialect = hygiene.dialect_of(self.target, self.request.headers, self.request.target)
        self._put(endings.error_event(endings.style_of(hold.call.api, dialect, is_lines=self._is_lines), error))
        if self._framing == "chunked":
            self._out.append(b"0\r\n\r\n")
        if not self._reply_keep_alive:
            self.request.keep_alive = False
        self._body_done = True

    # -- what the host's breaker is told

    def _host_failed(self) -> None:
        hold = self._hold
        if hold is not None:
            self._is_trial = False
            self._context.breakers.failed(self._breaker_key, hold.provider.name, self._loop.time())

    def _host_answered(self) -> None:
        self._is_trial = False
        self._context.breakers.succeeded(self._breaker_key)

    # -- comments before the first byte

    def _is_commentable(self, call: Call) -> bool:
        if not self._context.settings.upstream.keepalive_comment_s or not call.stream or self.request.http10:
            return False
        target = self.target
        assert target is not None
        return call.api in _COMMENT_APIS or (call.api == "streamGenerateContent" and "alt=sse" in target.query)

    def _comment(self, now: float) -> None:
        """The provider is silent: show a load balancer that the connection lives. This commits the answer to 200."""
        client = self.client
        if client is None or client.transport is None or not client.writable:
            return
        self._commented_at = now
        if not self._head_sent:
            self._framing, self._reply_keep_alive = "chunked", self.request.keep_alive
            head = hygiene.response_head(
                200, b"OK", [_EVENT_STREAM], self.request_id, body="chunked", keep_alive=self.request.keep_alive
            )
            self._out.append(head)
            self._head_sent = self._is_early = self._carries_events = True
        self._put(endings.COMMENT)
        self.on_read_end()

    # -- from upstream (ResponseHandler)

    def on_head(self, status: int, reason: bytes, headers: Headers) -> None:
        self.active = True
        self._first_byte_ns = perf_counter_ns()
        self.status = status
        request, hold = self.request, self._hold
        length: int | None = None
        content_type = content_encoding = b""
        for name, value in headers:
            lowered = name.lower()
            if lowered == b"content-length":
                length = int(value)
            elif lowered == b"content-type":
                content_type = value
            elif lowered == b"content-encoding":
                content_encoding = value
        if hold is not None:
            self.delivered = 200 <= status < 300  # a redirect or an error is no answer that anybody bills
            if status < 500:
                self._host_answered()
            if hold.call.open_ended and self.delivered:
                self._look_at = max(hold.call.ceiling.output_tokens * _DENSE_BYTES_PER_TOKEN, _LOOK_BYTES_MIN)
            self.meter = self._context.registry.family(hold.provider).meter(
                hold.provider,
                hold.call,
                status,
                content_type.decode("latin-1"),
                content_encoding.decode("latin-1"),
                headers,
            )
            if status >= 400 or not content_type.lower().startswith(b"text/event-stream"):
                self._relay = None  # an error or a plain body has no chunk of ours in it
        if self._is_early:
            if not self.delivered or not endings.may_carry_event(content_type, content_encoding):
                self._instead, self._look_at, self._relay = bytearray(), 0, None
            return
        client = self.client
        if client is None or client.transport is None:
            return
        keep_alive = request.keep_alive
        if request.method == "HEAD" or status in (204, 304):
            self._framing = "none"
            if status == 204:
                length = None  # RFC 9110 8.6: never with 204
        elif length is not None and self._relay is None:
            self._framing = "length"
        elif request.http10:
            self._framing, keep_alive = "none", False
            length = None
        else:
            self._framing, length = "chunked", None
        self._reply_keep_alive = keep_alive
        self._carries_events = self._framing != "length" and endings.may_carry_event(content_type, content_encoding)
        self._is_lines = endings.carries_lines(content_type)
        if self.request_id:
            head = hygiene.response_head(
                status, reason, headers, self.request_id, body=self._framing, body_length=length, keep_alive=keep_alive
            )
        else:
            head = _control_head(status, reason, headers, self._framing, length, keep_alive)
        if request.http10 and keep_alive:
            head = head[:-2] + b"connection: keep-alive\r\n\r\n"  # 1.0 clients wait for the close unless told
        self._out.append(head)
        self._head_sent = True

    def on_body(self, data: bytes) -> None:
        self.active = True
        if self.meter is not None:
            self.meter.feed(data)
        if self._relay is not None:
            data = self._relay.feed(data)
            if not data:
                return
        self._relayed += len(data)
        if self._relayed > self._look_at and self._look(data):
            return
        client = self.client
        if client is None or client.transport is None:
            self._drained_bytes += len(data)
            if self._drained_bytes > self._context.settings.upstream.drain_bytes_max:
                self._stop_upstream(Outcome.CLIENT_GONE)
            return
        self._put(data)

    def _put(self, data: bytes) -> None:
        self._out.append(b"%x\r\n%b\r\n" % (len(data), data) if self._framing == "chunked" else data)

    def on_read_end(self) -> None:
        """What one read brought goes out as one write: head, pieces and end together cost one system call."""
        out = self._out
        if not out:
            return
        client = self.client
        if client is not None and client.transport is not None:
            client.transport.write(out[0] if len(out) == 1 else b"".join(out))
        out.clear()

    def on_end(self) -> None:
        self._ended_ns = perf_counter_ns()
        client, hold = self.client, self._hold
        if hold is not None and (self.status or 0) >= 500:
            if self._relayed:
                self._host_answered()
            else:
                self._host_failed()
        if self._instead is not None and hold is not None:
            if client is not None and client.transport is not None:
                self._end_with(hold, bytes(self._instead))
            self._body_done = True
            self._finish()
            return
        if client is not None and client.transport is not None:
            if self._relay is not None:
                rest = self._relay.finish()
                if rest:
                    self._put(rest)
            if self._framing == "chunked":
                self._out.append(b"0\r\n\r\n")
            if not self._reply_keep_alive:
                self.request.keep_alive = False
        self._body_done = True
        self._finish()

    def on_broken(self, error: UpstreamError) -> None:
        """Pass the break on honestly: what was held back flows, then the connection ends without the body's end."""
        if not self._first_byte_ns:
            self._host_failed()
        client = self.client
        if client is not None and client.transport is not None and self._relay is not None and self._head_sent:
            rest = self._relay.finish()
            if rest:
                self._put(rest)
        self.on_read_end()
        if self.outcome is Outcome.COMPLETED:
            self.outcome = Outcome.UPSTREAM_BROKEN
        self._broken = error
        self._finish()

    def upstream_writable(self, writable: bool) -> None:
        """Request bodies are bounded and already in memory; there is nothing to hold back."""

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _stop_upstream(self, outcome: Outcome) -> None:
        """Stop reading: cut upstream and settle what is known."""
        if self._done is not None and self._done.done():
            return  # it has just ended by itself
        self.outcome = outcome
        if self.connection is not None:
            self.connection.abort()
        self._finish()

    # -- from the client (downstream.Exchange)

    def client_gone(self) -> None:
        """The client closed: read on where the provider bills anyway or its usage comes last, else cancel upstream."""
        self.client = None
        if self._body_done:
            return  # it has been given everything
        self.client_left = True
        hold = self._hold
        if self.connection is None:
            return
        if hold is not None and (not hold.call.stream or hold.call.deferred or hold.provider.disconnect == "drain"):
            self.connection.pause(False)
            self.deadline = self._loop.time() + self._context.settings.upstream.drain_timeout_s
            return
        self._stop_upstream(Outcome.CLIENT_GONE)

    def client_writable(self, writable: bool) -> None:
        if self.connection is not None:
            self.connection.pause(not writable)

    @property
    def held_nanos(self) -> int:
        """What this call holds of its wallet now."""
        return self._hold.amount_nanos if self._hold is not None else 0

    # -- from the worker's timer

    def check(self, now: float) -> None:
        """One look of the sweeper: time-outs of the first byte, of silence, of a drain."""
        if self.active:
            self.active = False
            self.quiet_since = now
        hold = self._hold
        if self.connection is None:
            return
        if hold is None:
            if self.client is not None and not self.client.writable:
                self.quiet_since = now  # we hold a long answer back ourselves
            elif now - self.quiet_since > _CONTROL_TIMEOUT_S:
                self._broken = UpstreamError("The control process does not answer.", code="control_unavailable", status=503)
                self._stop_upstream(Outcome.UPSTREAM_TIMEOUT)
            return
        provider = hold.provider
        if self.deadline and now > self.deadline:
            self._stop_upstream(Outcome.CLIENT_GONE)
            return
        upstream = self._context.settings.upstream
        if self._dry_at and now - self._dry_at > DRY_S:
            self._stop_upstream(Outcome.BALANCE_EXHAUSTED)
            return
        if now - self._sent_at > upstream.total_timeout_s:
            self._broken = UpstreamError(
                f"The call took longer than {upstream.total_timeout_s} s.", code="upstream_timeout", status=504
            )
            self._stop_upstream(Outcome.UPSTREAM_TIMEOUT)
            return
        if self._may_comment and not self._first_byte_ns:
            if now - max(self._sent_at, self._commented_at) >= upstream.keepalive_comment_s:
                self._comment(now)
        limit_s = provider.idle_timeout_s if self._first_byte_ns else provider.ttfb_timeout_s
        client = self.client
        if client is not None and not client.writable:
            self.quiet_since = now  # we hold it back ourselves
        elif now - self.quiet_since > limit_s:
            self._broken = UpstreamError(f"{provider.name} sent nothing for {limit_s} s.", code="upstream_timeout", status=504)
            self._host_failed()
            self._stop_upstream(Outcome.UPSTREAM_TIMEOUT)

    def stop(self) -> None:
        """Our own shutdown: end the answer as it stands and settle it."""
        if self._body_done:
            return
        self._broken = UpstreamError("This server is stopping.", code="gateway_stopping", status=503)
        self._stop_upstream(Outcome.GATEWAY_STOPPED)

    # -- control plane and errors

    async def _to_control(self) -> bool:
        """Everything that is not the gateway's goes to the control process, over the same client."""
        context, request = self._context, self.request
        body = request.body()
        peer = self.client.transport.get_extra_info("peername") if self.client and self.client.transport else None
        head = _control_request_head(request, len(body), str(peer[0]) if isinstance(peer, tuple) and peer else "")
        if context.control_hop:
            head = head[:-2] + _HOP + b": " + context.control_hop + b"\r\n\r\n"
        try:
            connection = context.pool.take_idle(context.control) or await context.pool.acquire(context.control)
        except UpstreamError as error:
            raise StoreError("The control process does not answer; try again shortly.", code="control_unavailable") from error
        if self.client_left:
            context.pool.release(connection)
            return False
        context.live.add(self)
        try:
            await self._send(connection, head, body)
        finally:
            context.live.discard(self)
        if self._broken is not None and not self._head_sent:
            raise StoreError("The control process does not answer; try again shortly.", code="control_unavailable")
        return self._body_done

    def _answer_error(self, error: LavaError) -> bool:
        """Our own error in the caller's dialect; False when an answer has already begun (then the connection is cut)."""
        client = self.client
        if client is None or client.transport is None:
            return False
        if self._is_early and not self._relayed and not self._body_done and self._hold is not None:
            self._put_error(self._hold, error.status, error.code, error.message)
            self.on_read_end()
            return True
        if self._head_sent:
            return False
        request = self.request
        target = self.target
        dialect = hygiene.dialect_of(target, request.headers, request.target)
        body = hygiene.error_body(dialect, error.status, error.code, error.message)
        lines = [b"HTTP/1.1 %d %b" % (error.status, _REASONS.get(error.status, b"Error"))]
        lines.append(b"content-type: application/json")
        lines.append(b"content-length: %d" % len(body))
        lines.append(b"x-lava-request-id: " + (self.request_id or new_id("req")).encode())
        retry_after_s: int | None = getattr(error, "retry_after_s", 1)
        if error.status in (429, 503) and retry_after_s is not None:
            lines.append(b"retry-after: %d" % retry_after_s)
        if isinstance(error, LimitExceeded):
            lines += hygiene.limit_lines(error)
        elif isinstance(error, AlreadyCalled):
            lines += _first_call_lines(error)
        if not request.keep_alive:
            lines.append(b"connection: close")
        elif request.http10:
            lines.append(b"connection: keep-alive")
        client.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if request.method == "HEAD" else body))
        self._head_sent = self._body_done = True
        return True


_PEER_HEADER = PEER_HEADER.encode()
_REASONS = {
    400: b"Bad Request", 401: b"Unauthorized", 402: b"Payment Required", 403: b"Forbidden", 404: b"Not Found", 409: b"Conflict",
    413: b"Content Too Large", 429: b"Too Many Requests", 500: b"Internal Server Error", 501: b"Not Implemented",
    502: b"Bad Gateway", 503: b"Service Unavailable", 504: b"Gateway Timeout",
}  # fmt: skip


def _first_call_lines(error: AlreadyCalled) -> list[bytes]:
    """What is known of the call that had the idempotency key first; vendors' SDKs would try a 409 again by themselves."""
    lines = [b"x-should-retry: false", b"x-lava-first-request-id: " + error.first_id.encode()]
    lines.append(b"x-lava-first-status: " + error.first_status.encode())
    if error.charge is not None:
        lines.append(b"x-lava-first-charge: " + error.charge.encode())
    return lines


def _control_request_head(request: Request, body_length: int, peer: str) -> bytes:
    """The client's head as it came, without what belongs to one hop; who is connected, and that a gateway sent it, is our word."""
    lines = [b"%b %b HTTP/1.1" % (request.method.encode("ascii"), request.target)]
    if request.http10 and not any(name.lower() == b"host" for name, _ in request.headers):
        lines.append(b"host: localhost")  # 1.0 may come without one, as load balancers' health checks do
    for name, value in request.headers:
        lowered = name.lower()
        if lowered in hygiene.HOP_BY_HOP or lowered in (b"content-length", b"expect", _HOP, _PEER_HEADER.lower()):
            continue
        lines.append(name + b": " + value)
    lines.append(_PEER_HEADER + b": " + peer.encode("latin-1", "replace"))
    if body_length or request.method in ("POST", "PUT", "PATCH"):
        lines.append(b"content-length: %d" % body_length)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _control_head(
    status: int, reason: bytes, headers: Headers, framing: hygiene.BodyMode, length: int | None, keep_alive: bool
) -> bytes:
    lines = [b"HTTP/1.1 %d %b" % (status, reason)]
    for name, value in headers:
        lowered = name.lower()
        if lowered not in hygiene.HOP_BY_HOP and lowered != b"content-length":
            lines.append(name + b": " + value)
    if framing == "chunked":
        lines.append(b"transfer-encoding: chunked")
    elif length is not None:
        lines.append(b"content-length: %d" % length)
    lines.append(b"x-lava-request-id: " + new_id("req").encode())  # every answer has one, for support
    if not keep_alive:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"
