"""WebSocket sessions: an upgrade is an exchange until the provider's 101, then bytes are relayed untouched both ways.

Before the 101 all is as for any call (grant, inspect, reserve, relay of an error), and an answer that is no 101 costs nothing.
After it a copy of the provider's bytes is read as frames, its messages are metered, and the hold follows what is used: looked at
after each report of usage, after a number of bytes, and by the worker's timer. The session is one row. When the balance cannot
follow, a Realtime `error` event and a CLOSE are put in between two messages; these are the only bytes that we ever write.
A client whose connection ends without a CLOSE is gone: the provider is disconnected too, and what was under way is estimated.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from time import perf_counter_ns
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote

from lava_proxy import tasks
from lava_proxy.domain.errors import CallerError, InsufficientFunds, StoreError
from lava_proxy.domain.usage import Outcome
from lava_proxy.gateway import headers as hygiene
from lava_proxy.gateway.downstream import Request
from lava_proxy.gateway.exchange import DRY_S, NEVER, Exchange
from lava_proxy.gateway.head_plans import HeadPlan, Route
from lava_proxy.gateway.routes import FORWARD
from lava_proxy.providers.gemini_live import LiveMeter
from lava_proxy.providers.session_meter import SessionMeter
from lava_proxy.providers.websocket_sessions import LIVE, REALTIME, session_call, session_meter
from lava_proxy.stores.ids import new_id
from lava_proxy.wire.websocket_frames import CLOSE, FrameReader, close_frame, text_frame

if TYPE_CHECKING:
    from lava_proxy.billing.charging import Ending, Hold
    from lava_proxy.gateway.downstream import Downstream
    from lava_proxy.gateway.exchange import Context
    from lava_proxy.gateway.grants import Payer
    from lava_proxy.gateway.upstream import Headers, UpstreamConnection
    from lava_proxy.providers.base import Call

CREDENTIAL_PROTOCOL = b"openai-insecure-api-key."
"""A browser cannot set headers, so OpenAI takes the key as a subprotocol:
https://platform.openai.com/docs/guides/realtime-websocket."""

_GOING_AWAY, _INVALID, _POLICY, _TOO_BIG = 1001, 1007, 1008, 1009
_CLOSING_S = 10.0  # a client that has said goodbye and left waits so long for the provider's answer
_SCHEME = re.compile(rb"(?i)(?<=[=/])ws(s?)(?=:/|%3a)")
_REALTIME_ROUTE = b"/v1/realtime"
_SETUP_BYTES_MAX = 1 << 20
_UPGRADE_LINES = b"connection: Upgrade\r\nupgrade: websocket\r\n\r\n"


class UpgradePlan(HeadPlan):
    """A head plan whose upstream head asks for the upgrade. Its key is never the same again, so it is not remembered."""

    __slots__ = ()

    def __init__(self, method: str, route: Route, headers: Headers) -> None:
        super().__init__(method, route.target, session_headers(headers))
        self.is_kept = True

    def upstream_head(self, key: str | None, body_length: int | None, *, force_identity: bool, body: bytes = b"") -> bytes:
        return super().upstream_head(key, None, force_identity=True)[:-2] + _UPGRADE_LINES


def session_headers(headers: Headers) -> Headers:
    """The client's headers with a credential among its subprotocols made an Authorization, if there is no other.

    Sec-WebSocket-Extensions is left out: a provider that agreed on permessage-deflate would send frames that depend on all
    frames before them, and usage could only be read by decompressing every byte of audio.
    """
    kept: Headers = []
    tokens: list[bytes] = []
    for name, value in headers:
        lower = name.lower()
        if lower == b"sec-websocket-extensions":
            continue
        if lower == b"sec-websocket-protocol":
            offered = [item.strip() for item in value.split(b",")]
            tokens += [item[len(CREDENTIAL_PROTOCOL) :] for item in offered if item.startswith(CREDENTIAL_PROTOCOL)]
            value = b", ".join(item for item in offered if item and not item.startswith(CREDENTIAL_PROTOCOL))
            if not value:
                continue
        kept.append((name, value))
    if tokens and not any(name.lower() in hygiene.CREDENTIAL_HEADERS for name, _ in headers):
        kept.append((b"authorization", b"Bearer " + tokens[0]))
    return kept


class WebSocketExchange(Exchange):
    """A session; a plain exchange until `on_switched`."""

    __slots__ = (
        "_admitted_at", "_awaits_setup", "_credential", "_down", "_is_asking", "_is_looking", "_is_open", "_is_timed", "_payer",
        "_session_model", "_setup", "_up",
    )  # fmt: skip

    def __init__(self, context: Context, client: Downstream, request: Request) -> None:
        super().__init__(context, client, request)
        self._is_open = False  # between the 101 and the end
        self._down = FrameReader(context.settings.upstream.websocket_message_bytes_max)
        self._up = FrameReader(0)
        self._is_looking = False
        self._is_timed = False
        self._payer: Payer | None = None
        self._credential = b""
        self._admitted_at = 0  # the generation of what is remembered of the catalogue, when the credential was last found good
        self._is_asking = False
        self._session_model: str | None = None  # as the provider names it
        self._awaits_setup = False
        self._setup = bytearray()  # of the client, held back until it has named the model

    # -- before the 101

    def _find_route(self) -> Route | None:
        context, target = self._context, _SCHEME.sub(rb"http\1", self.request.target, count=1)
        path, _, query = target.partition(b"?")
        if path.rstrip(b"/") == _REALTIME_ROUTE:
            target = self._by_model(query.decode("latin-1"))
        route = context.routes.find("GET", target)
        return route if isinstance(route, Route) else None

    def _by_model(self, query: str) -> bytes:
        """The provider's own URL for a model route: the query's model chooses it."""
        params = parse_qsl(query, keep_blank_values=True)
        model = dict(params).get("model", "")
        found = self._context.registry.by_model(model) if model else None
        if found is None:
            raise CallerError(
                f"/v1/realtime chooses the provider by ?model=, and no provider here is known for {model[:100]!r}: write "
                f"<provider>/<model>, or call {FORWARD}/<provider>/v1/realtime.",
                code="forward_model_invalid" if model else "model_required",
            )
        provider, name = found
        kept = "&".join(f"{quote(key)}={quote(name if key == 'model' else value)}" for key, value in params)
        return f"{FORWARD}/{provider.name}/v1/realtime?{kept}".encode()

    def _plan(self, route: Route) -> HeadPlan:
        return UpgradePlan("GET", route, self.request.headers)

    def _inspect(self, route: Route, plan: HeadPlan, payer: Payer) -> Call:
        context, target = self._context, route.target
        call = session_call(target.provider, target.path, target.query, context.settings.reserve.output_tokens_default)
        self._payer, self._credential, self._admitted_at = payer, plan.credential, context.grants.generation
        self._awaits_setup = call.api == LIVE
        if payer.rules is not None:
            # Which model it is may only come with the client's first message, and is checked then.
            asked = replace(call, model=None, billable=False) if self._awaits_setup else call
            context.grants.check(payer.rules, self.request.target, target.provider, asked)
        return call

    async def _send(self, connection: UpstreamConnection, head: bytes, body: bytes) -> None:
        if self.target is not None:
            connection.tunnel = self
        await super()._send(connection, head, body)

    def on_head(self, status: int, reason: bytes, headers: Headers) -> None:
        """No 101: an ordinary answer, relayed as such and never billed."""
        if self.connection is not None:
            self.connection.tunnel = None
        super().on_head(status, reason, headers)
        self.delivered, self.meter, self._look_at = False, None, NEVER

    # -- the 101 (upstream.Tunnel)

    def on_switched(self, reason: bytes, headers: Headers) -> None:
        client, hold, target = self.client, self._hold, self.target
        assert hold is not None and target is not None
        self.active, self.status, self.delivered = True, 101, True
        self._first_byte_ns = perf_counter_ns()
        self._host_answered()
        if client is None or client.transport is None:
            self._stop_upstream(Outcome.CLIENT_GONE)
            return
        self.meter = session_meter(hold.call, target.query)
        self._is_open = self._head_sent = self._carries_events = True
        self._framing = "none"
        self._watch_time()
        self._plan_look(hold)
        head = hygiene.response_head(101, reason, headers, self.request_id, body="none")
        client.transport.write(head[:-2] + _UPGRADE_LINES)
        self._up = FrameReader(_SETUP_BYTES_MAX if self._awaits_setup else 0)
        if early := client.switched(self):
            self.client_data(early)
        if client.has_ended:
            self.client_eof()

    def upstream_data(self, data: bytes) -> None:
        """Relay first; the copy is read while the bytes travel."""
        if not self._is_open:
            return
        self.active = True
        self._relayed += len(data)
        client, hold, meter = self.client, self._hold, self.meter
        assert hold is not None and isinstance(meter, SessionMeter)
        if client is not None and client.transport is not None:
            client.transport.write(data)
        reports, was_broken = meter.reports, self._down.is_broken
        for message in self._down.feed(data):
            if message.opcode == CLOSE:
                continue
            if message.is_whole:
                meter.feed(message.payload)
            else:
                meter.skipped(message.payload)
            if self._session_model != meter.model and not self._awaits_setup:
                self._model_named(meter.model)
        if self._down.is_broken and not was_broken:
            meter.lost()
        if not self._is_open:
            return
        if hold.is_dry:
            self._end_when_possible()
        elif self._relayed > self._look_at or meter.reports != reports:
            self._look_soon()

    def upstream_lost(self) -> None:
        if not self._is_open:
            return
        has_closed = self._down.has_closed or self._up.has_closed
        self._end(Outcome.COMPLETED if has_closed else Outcome.UPSTREAM_BROKEN)

    def upstream_writable(self, writable: bool) -> None:
        client = self.client
        if not self._is_open or client is None or client.transport is None:
            return
        if writable:
            client.transport.resume_reading()
        else:
            client.transport.pause_reading()

    # -- from the client (downstream.Receiver)

    def client_data(self, data: bytes) -> None:
        if not self._is_open:
            return
        self.active = True
        if self._awaits_setup:
            self._setup_data(data)
            return
        self._up.feed(data)
        self._to_provider(data)

    def client_eof(self) -> None:
        """The client has closed its sending side. Behind its CLOSE the provider's is waited for; without one it is gone.

        RFC 6455 knows no half-open session, and most transports to providers (TLS) could not pass it on.
        """
        if not self._is_open:
            return
        if self._up.has_closed:
            self.deadline = self._loop.time() + _CLOSING_S
        else:
            self._client_left()

    def client_gone(self) -> None:
        if self._is_open:
            self.client = None
            self._client_left()
            return
        super().client_gone()
        if not self._body_done and self.connection is not None:
            self._stop_upstream(Outcome.CLIENT_GONE)  # there is nothing to drain: no usage comes before the session has begun

    def _client_left(self) -> None:
        has_closed = self._down.has_closed or self._up.has_closed
        self.client_left = not has_closed
        self._end(Outcome.COMPLETED if has_closed else Outcome.CLIENT_GONE)

    def _to_provider(self, data: bytes) -> None:
        transport = self.connection.transport if self.connection is not None else None
        if transport is not None and not transport.is_closing():
            transport.write(data)

    # -- which model it is

    def _setup_data(self, data: bytes) -> None:
        """Hold the client's bytes back until its first message has named a model that may be called."""
        meter, hold = self.meter, self._hold
        assert isinstance(meter, LiveMeter) and hold is not None
        self._setup += data
        messages = [message for message in self._up.feed(data) if message.opcode != CLOSE]
        if not messages and not self._up.is_broken and not self._up.has_closed and len(self._setup) <= _SETUP_BYTES_MAX:
            return
        self._awaits_setup = False
        self._up.keep_no_more()
        if not messages and self._up.has_closed:
            self._release_setup()  # it says goodbye before it has said anything
            return
        model = meter.setup(messages[0].payload) if messages and messages[0].is_whole else None
        if model is None:
            message = 'The first message of a session is {"setup": {"model": "models/..."}}.'
            self._refuse(_TOO_BIG if len(self._setup) > _SETUP_BYTES_MAX else _INVALID, "model_required", message)
            return
        self._session_model = model
        hold.call = replace(hold.call, model=model)
        refused = self._refusal(hold, model)
        if refused is not None:
            self._refuse(_POLICY, refused.code, refused.message)
            return
        self._watch_time()
        self._release_setup()

    def _release_setup(self) -> None:
        self._to_provider(bytes(self._setup))
        self._setup.clear()

    def _model_named(self, model: str | None) -> None:
        """The first name is the provider's own for what was asked for; another one later is a change, and is checked."""
        is_change, self._session_model = self._session_model is not None, model
        hold = self._hold
        assert hold is not None
        if is_change and model is not None:
            refused = self._refusal(hold, model)
            if refused is not None:
                self._refuse(_POLICY, refused.code, refused.message)
        self._watch_time()

    def _refusal(self, hold: Hold, model: str) -> CallerError | None:
        """Why this session may not use a model; None when it may."""
        context, payer = self._context, self._payer
        assert payer is not None
        if payer.rules is not None:
            try:
                context.grants.check(payer.rules, self.request.target, hold.provider, replace(hold.call, model=model))
            except CallerError as refused:
                return refused
        if hold.needs_cost and context.charging.price_of(hold, model) is None:
            return CallerError(f"The model {model[:60]!r} has no price here.", code="model_not_priced")
        return None

    def _watch_time(self) -> None:
        """Is the time connected what this session is charged by: by its meter, or by its model's price (audio by the hour)?"""
        hold, meter = self._hold, self.meter
        assert hold is not None
        named = meter.model if isinstance(meter, SessionMeter) else None
        price = self._context.charging.price_of(hold, named) or self._context.charging.price_of(hold, hold.call.model)
        by_meter = hold.grant.meter is not None and hold.grant.meter.tier_type == "minutes"
        self._is_timed = by_meter or (price is not None and "audio_seconds" in price.quoted)

    def _ending(self) -> Ending:
        if self._is_timed and isinstance(self.meter, SessionMeter):
            self.meter.lasted(((self._ended_ns or perf_counter_ns()) - self._first_byte_ns) // 1000)
        return super()._ending()

    # -- the money

    def _look_soon(self) -> None:
        self._look_at = NEVER
        if not self._is_looking:
            self._is_looking = True
            tasks.start("exchange-look", self._look_now())

    async def _look_now(self) -> None:
        try:
            await self.checkpoint()
        finally:
            self._is_looking = False

    def _plan_look(self, hold: Hold) -> None:
        super()._plan_look(hold)
        if hold.is_dry and self._is_open:
            self._end_when_possible()

    def _end_when_possible(self) -> None:
        """A session in want of money ends between two messages; `check` ends it anyhow when there is no such place."""
        if self._down.is_at_message_end:
            self._end_dry_session()

    def _end_dry_session(self) -> None:
        message = "The balance is used up; the session ends here, and what was used has been charged."
        self._say_goodbye(Outcome.BALANCE_EXHAUSTED, _POLICY, InsufficientFunds.status, "balance_exhausted", message)

    # -- ends

    def check(self, now: float) -> None:
        """One look of the sweeper. A session has no longest time: it ends when both sides are silent, or with its credential."""
        if not self._is_open:
            super().check(now)
            return
        self._check_credential()
        if self.active:
            self.active = False
            self.quiet_since = now
        idle_s = self._context.settings.upstream.websocket_idle_timeout_s
        if self.deadline and now > self.deadline:
            self._end(Outcome.COMPLETED)
        elif self._dry_at and now - self._dry_at > DRY_S:
            self._end_dry_session()
        elif now - self.quiet_since > idle_s:
            message = f"Nothing came from either side for {idle_s} s."
            self._say_goodbye(Outcome.UPSTREAM_TIMEOUT, _GOING_AWAY, 408, "session_idle", message)

    def _check_credential(self) -> None:
        """A call ends by what it began with; a session could go on for hours after its key was revoked."""
        payer, grants = self._payer, self._context.grants
        expired = grants.has_expired(payer.rules) if payer is not None and payer.rules is not None else None
        if expired is not None:
            self._refuse(_POLICY, expired.code, expired.message)
        elif grants.generation != self._admitted_at and not self._is_asking:
            self._is_asking = True
            tasks.start("exchange-admission", self._admit_again(grants.generation))

    async def _admit_again(self, generation: int) -> None:
        try:
            await self._context.grants.resolve(self._credential)
        except StoreError:
            return  # nobody knows: asked again at the next look
        except CallerError as refused:
            if self._is_open:
                self._refuse(_POLICY, refused.code, refused.message)
        finally:
            self._is_asking = False
        self._admitted_at = generation

    def stop(self) -> None:
        if not self._is_open:
            super().stop()
            return
        self._say_goodbye(Outcome.GATEWAY_STOPPED, _GOING_AWAY, 503, "gateway_stopping", "This server is stopping.")

    def _refuse(self, close_code: int, code: str, message: str) -> None:
        self._say_goodbye(Outcome.GATEWAY_STOPPED, close_code, 400, code, message)

    def _say_goodbye(self, outcome: Outcome, close_code: int, status: int, code: str, message: str) -> None:
        """End both sides from here, as far as the frames under way allow: an event that says why, and CLOSE."""
        hold, client = self._hold, self.client
        if client is not None and client.transport is not None and not self._down.has_closed:
            words = b""
            if self._down.is_at_message_end and hold is not None and hold.call.api == REALTIME:
                words = text_frame(error_event(status, code, message))
            if self._down.is_at_frame_end:
                client.transport.write(words + close_frame(close_code, f"{code}: {message}"))
        if self._up.is_at_frame_end and not self._up.has_closed and not self._setup:
            self._to_provider(close_frame(1000, "", mask=os.urandom(4)))
        self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        """The one end of an open session: both connections close, then it is settled."""
        if self.outcome is Outcome.COMPLETED:
            self.outcome = outcome
        self._is_open, self._body_done = False, True
        self._ended_ns = perf_counter_ns()
        client, self.client = self.client, None
        if client is not None:
            client.linger()
        if self.connection is not None:
            self.connection.tunnel = None
            transport = self.connection.transport
            if transport is not None and transport.get_write_buffer_size():
                self.connection.abort()  # it does not read any more: nothing would ever end a polite close
        self._finish()


def error_event(status: int, code: str, message: str) -> bytes:
    """Our own error as OpenAI's Realtime API says errors."""
    kind = hygiene.OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"type": kind, "code": code, "message": message, "param": None, "event_id": None}
    return json.dumps({"type": "error", "event_id": new_id("event"), "error": error}).encode()
