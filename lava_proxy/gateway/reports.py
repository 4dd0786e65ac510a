"""POST /v1/requests and /v1/requests/batch over HTTP: credential, bounds, bodies in, answers out. billing/reporting.py decides."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

import orjson
import structlog

from lava_proxy import tasks
from lava_proxy.billing.reporting import Answer, Reporting
from lava_proxy.domain.errors import BadToken, CallerError, Forbidden, LavaError, StoreError
from lava_proxy.gateway.downstream import Downstream, Headers, Request
from lava_proxy.gateway.grants import Grants
from lava_proxy.gateway.headers import error_body
from lava_proxy.settings import Reports as ReportSettings
from lava_proxy.stores.ids import new_id
from lava_proxy.wire.forward_token import parse_credential

Route = Literal["single", "batch"]

_ROUTES: dict[bytes, Route] = {
    b"/v1/requests": "single",
    b"/v1/requests/": "single",
    b"/v1/requests/batch": "batch",
    b"/v1/requests/batch/": "batch",
}
_LINE_TYPES = (b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/x-jsonlines")
_HEADER_SAFE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_REASONS = {
    400: b"Bad Request", 401: b"Unauthorized", 403: b"Forbidden", 404: b"Not Found", 409: b"Conflict", 413: b"Content Too Large",
    500: b"Internal Server Error", 503: b"Service Unavailable",
}  # fmt: skip
_log = structlog.get_logger("reports")


def report_route(method: str, target: bytes) -> Route | None:
    """Which of the two a request is, if any."""
    if method != "POST" or not target.startswith(b"/v1/requests"):
        return None
    return _ROUTES.get(target.partition(b"?")[0])


class Reports:
    """What all report exchanges of a worker share."""

    def __init__(self, reporting: Reporting, grants: Grants, settings: ReportSettings, *, outbox_full: Callable[[], bool]) -> None:
        self._reporting = reporting
        self._grants = grants
        self._settings = settings
        self._outbox_full = outbox_full
        self._generation = grants.generation

    def start(self, client: Downstream, request: Request, route: Route) -> ReportExchange:
        """Begin; returns the exchange for the connection to hold."""
        exchange = ReportExchange(self, client, request, route)
        tasks.start("exchange-report", exchange.run())
        return exchange

    async def single(self, request: Request) -> Answer:
        """The one report of a request. Raises LavaError."""
        merchant_id = await self._admit(request, self._settings.body_bytes_max)
        try:
            value = orjson.loads(request.body())
        except orjson.JSONDecodeError as error:
            raise CallerError(f"The body is not JSON: {error}.", code="invalid_json") from None
        (answer,) = await self._reporting.report(merchant_id, [value])
        if isinstance(answer, LavaError):
            raise answer
        return answer

    async def batch(self, request: Request) -> list[Answer | LavaError]:
        """Each report of a batch, answered for itself, in order. Raises LavaError where nothing of the batch was looked at."""
        merchant_id = await self._admit(request, self._settings.batch_bytes_max)
        body, most = request.body(), self._settings.batch_items_max
        values = _lines(body, most) if _is_lines(request.headers) else _listed(body)
        if not 0 < len(values) <= most:
            raise CallerError(f"The batch has {len(values)} reports; accepted are 1 to {most:,}.", code="batch_size")
        return await self._reporting.report(merchant_id, values)

    def forget_connection(self, connection_id: str) -> None:
        """A connection's subscription has changed."""
        self._reporting.forget_connection(connection_id)

    async def _admit(self, request: Request, bytes_max: int) -> str:
        """Whose reports these are. Raises LavaError: 401, 403, 413, 503."""
        secret = _secret_key(request.headers)
        payer = self._grants.known(secret) or await self._grants.resolve(secret)
        if request.body_bytes > bytes_max:
            raise CallerError(f"The body is larger than {bytes_max:,} bytes.", code="body_too_large", status=413)
        if self._outbox_full():
            raise StoreError("The ledger is behind; reports wait until it has caught up.", code="outbox_full")
        if self._generation != self._grants.generation:
            self._generation = self._grants.generation
            self._reporting.forget()
        return payer.grant.merchant_id


class ReportExchange:
    """One request and its answer. What was read is debited, also when its client has gone meanwhile."""

    __slots__ = ("_client", "_request", "_route", "_shared")

    def __init__(self, shared: Reports, client: Downstream, request: Request, route: Route) -> None:
        self._shared = shared
        self._client: Downstream | None = client
        self._request = request
        self._route = route

    async def run(self) -> None:
        """Answer the request, whatever happens; then tell the connection."""
        request = self._request
        try:
            if self._route == "single":
                answer = await self._shared.single(request)
                self._write(200, answer.body, _header_id(answer))
            else:
                self._write(200, _results(await self._shared.batch(request)), new_id("req"))
        except LavaError as error:
            self._write_error(error)
        except Exception:
            _log.exception("A report failed", action="report_failed")
            self._write_error(LavaError("Something went wrong on our side; the same request may be sent again."))
        finally:
            request.body_parts = []
            client, self._client = self._client, None
            if client is not None:
                client.exchange_done(request.keep_alive)

    def _write(self, status: int, body: bytes, request_id: str, more: bytes = b"") -> None:
        client, request = self._client, self._request
        if client is None or client.transport is None:
            return
        if not request.keep_alive:
            more += b"connection: close\r\n"
        elif request.http10:
            more += b"connection: keep-alive\r\n"
        client.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nx-lava-request-id: %b\r\n"
            b"cache-control: no-store\r\nx-content-type-options: nosniff\r\n%b\r\n%b"
            % (status, b"OK" if status == 200 else _REASONS.get(status, b"Error"), len(body), request_id.encode(), more, body)
        )

    def _write_error(self, error: LavaError) -> None:
        more = b"retry-after: 1\r\n" if error.status in (429, 503) else b""
        if error.status == 401:
            more = b"www-authenticate: Bearer\r\n"
        self._write(error.status, error_body("openai", error.status, error.code, error.message), new_id("req"), more)

    # -- from the client (downstream.Exchange)

    def client_gone(self) -> None:
        self._client = None

    def client_writable(self, writable: bool) -> None:
        """An answer is written at one go; there is nothing to hold back."""


def _secret_key(headers: Headers) -> bytes:
    """The secret key of `Authorization: Bearer`, also out of a forward token. Raises BadToken or Forbidden."""
    credential = b""
    for name, value in headers:
        if len(name) == 13 and name.lower() == b"authorization":
            scheme, _, credential = value.strip().partition(b" ")
            if scheme.lower() != b"bearer":
                credential = b""
            break
    credential = credential.strip()
    if not credential:
        raise BadToken("No credential: send your secret key as `Authorization: Bearer aks_...`.")
    if credential.startswith(b"aks_") and b"." not in credential:
        return credential
    parsed = parse_credential(credential)
    if parsed.kind == "spend_key":
        raise Forbidden("A spend key only makes model calls; use a secret key (aks_...) here.")
    return parsed.secret_key.encode()


def _header_id(answer: Answer) -> str:
    """The caller's own id where a header line can carry it, else ours."""
    return answer.request_key if _HEADER_SAFE.fullmatch(answer.request_key) else answer.request_id


def _is_lines(headers: Headers) -> bool:
    for name, value in headers:
        if len(name) == 12 and name.lower() == b"content-type":
            return value.partition(b";")[0].strip().lower() in _LINE_TYPES
    return False


def _listed(body: bytes) -> list[object]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise CallerError(f"The body is not JSON: {error}.", code="invalid_json") from None
    items = value.get("requests") if isinstance(value, dict) else None
    if not isinstance(items, list):
        raise CallerError(
            'A batch is {"requests": [...]}, or one report a line with `Content-Type: application/x-ndjson`.', code="invalid_json"
        )
    return items


def _lines(body: bytes, most: int) -> list[object]:
    """One value a line; a line that is no JSON stands as its error."""
    values: list[object] = []
    for line in body.splitlines():
        if not line.strip():
            continue
        if len(values) > most:
            values.append(None)  # counted, not read: the batch is refused
            continue
        try:
            values.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            values.append(CallerError(f"The line is not JSON: {error}.", code="invalid_json"))
    return values


def _results(answers: Sequence[Answer | LavaError]) -> bytes:
    parts = []
    for answer in answers:
        if isinstance(answer, LavaError):
            facts = {"message": answer.message, "code": answer.code, "status": answer.status}
            parts.append(b'{"status":%d,"error":%b}' % (answer.status, orjson.dumps(facts)))
        else:
            parts.append(b'{"status":200,"request":%b}' % answer.body)
    return b'{"results":[%b]}' % b",".join(parts)
