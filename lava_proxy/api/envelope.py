"""What every answer has in common: JSON bodies, the error envelope, the headers that belong on all of them."""

from __future__ import annotations

import re
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
import structlog
from aiohttp import hdrs, web

from lava_proxy.billing.rows import json_text
from lava_proxy.domain.errors import CallerError, LavaError, LimitExceeded

BODY_BYTES_MAX = 1_048_576

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Anything that could be a key, a token or a password: long runs of the letters they are made of. Ids go with them.
_SECRET_LIKE = re.compile(r"[A-Za-z0-9_+/=-]{20,}")
_MESSAGE_CHARS_MAX = 300
_FRAMES_MAX = 8
_log = structlog.get_logger("api")


def json_response(value: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer; Decimals become numbers with the digits they have."""
    return web.Response(body=json_text(value).encode(), status=status, content_type="application/json", headers=headers)


def error_response(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """{"error": {"message", "code", "status"}}; a busy answer says when to come back, a 401 how to sign in (RFC 9110 11.6.1)."""
    extra = dict(headers or {})
    if status in (429, 503):
        extra.setdefault(hdrs.RETRY_AFTER, "1")
    if status == 401:
        extra.setdefault(hdrs.WWW_AUTHENTICATE, "Bearer")
    return json_response({"error": {"message": message, "code": code, "status": status}}, status, extra)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns whatever a handler raises into the envelope. The outermost middleware, so nothing leaves without a body."""
    try:
        return await handler(request)
    except LimitExceeded as error:
        after: dict[str, str] = {} if error.retry_after_s is None else {hdrs.RETRY_AFTER: str(error.retry_after_s)}
        return error_response(error.status, error.code, error.message, after)
    except LavaError as error:
        return error_response(error.status, error.code, error.message)
    except web.HTTPException as error:
        return _of_http(request, error)
    except web.RequestPayloadError:  # what came is not coded as its Content-Encoding says, or broke off
        message = "The body cannot be read: it is broken, or not of its Content-Encoding."
        return error_response(400, "invalid_body", message, {hdrs.CONNECTION: "close"})  # aiohttp gives this connection up
    except Exception as error:  # the last resort: the caller learns nothing of our insides
        _log_failure(request, error)
        return error_response(500, "internal_error", "Something failed here; nothing was changed by reading.")


@web.middleware
async def bound_body(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses an announced body that is too large before any of it is read; aiohttp bounds one of unknown length."""
    if (request.content_length or 0) > BODY_BYTES_MAX:
        raise web.HTTPRequestEntityTooLarge(BODY_BYTES_MAX, request.content_length or 0)
    return await handler(request)


async def add_common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """For every answer: not sniffed, not cached unless it says so, and no word about what software this is."""
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
    response.headers[hdrs.SERVER] = "lava-proxy"


async def read_object(request: web.Request) -> dict[str, Any]:
    """The JSON object in a request's body. Raises CallerError for anything else, 413 (of aiohttp) above BODY_BYTES_MAX."""
    body = await request.read()
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise CallerError(f"The body is not JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise CallerError("The body must be a JSON object.", code="invalid_json")
    return value


def _of_http(request: web.Request, error: web.HTTPException) -> web.Response:
    """aiohttp's own refusals in the envelope."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        accepted = ", ".join(sorted(error.allowed_methods))
        message = f"{request.method[:20]} is not accepted at this path; accepted: {accepted}."
        return error_response(405, "method_not_allowed", message, {hdrs.ALLOW: accepted})
    if error.status == 404:
        return error_response(404, "not_found", f"There is nothing at {request.method[:20]} {request.path[:200]}.")
    if error.status == 413:
        message = f"The body is larger than the accepted {BODY_BYTES_MAX} bytes."
        # The rest of the body is not read, so the connection cannot be used again.
        return error_response(413, "request_too_large", message, {hdrs.CONNECTION: "close"})
    code = "bad_request" if error.status < 500 else "internal_error"
    return error_response(error.status, code, f"{error.reason}.")


def _log_failure(request: web.Request, error: Exception) -> None:
    """Type, place and a message without anything secret-like. The route is named by its pattern: paths can carry secrets."""
    route = request.match_info.route.resource
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES_MAX:]
    _log.error(
        "A request failed unexpectedly",
        action="api_request_failed",
        method=request.method,
        route=route.canonical if route is not None else None,
        error=type(error).__name__,
        message=_SECRET_LIKE.sub("[...]", str(error))[:_MESSAGE_CHARS_MAX],
        frames=[f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames],
    )
