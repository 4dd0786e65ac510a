"""Header hygiene both ways: the credential, what may go upstream, what comes back, errors in the caller's dialect.

Upstream gets everything that has a meaning there and nothing that is about this hop or about us: no credential of ours
in any header, no hop-by-hop header, no trace of the caller's address. Downstream gets the provider's headers as they
came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal
from urllib.parse import unquote

from lava_proxy.domain.errors import BadToken, CallerError, LimitExceeded
from lava_proxy.gateway.routes import Target
from lava_proxy.providers.base import AuthStyle

Headers = Sequence[tuple[bytes, bytes]]
Dialect = Literal["openai", "anthropic", "google", "aws"]
BodyMode = Literal["chunked", "length", "none"]

# RFC 9110 7.6.1, and the older names that are still seen.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
CREDENTIAL_HEADERS = (b"authorization", b"x-api-key", b"x-goog-api-key", b"xi-api-key", b"api-key")
# Written anew for each hop, or telling upstream who and where our caller is.
NOT_FOR_UPSTREAM = frozenset(
    {
        *HOP_BY_HOP,
        *CREDENTIAL_HEADERS,
        b"host",
        b"content-length",
        b"accept-encoding",
        b"expect",
        b"cookie",
        b"via",
        b"forwarded",
        b"x-real-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"true-client-ip",
        b"fastly-client-ip",
        b"fly-client-ip",
        b"cdn-loop",
        # What a call is and costs follows from its method.
        b"x-http-method-override",
        b"x-http-method",
        b"x-method-override",
    }
)
NOT_FOR_UPSTREAM_PREFIXES = (b"x-lava-", b"x-forwarded-", b"proxy-", b"cf-", b"x-envoy-")
# Alt-Svc speaks about the origin that sent it: downstream that would be us, and we do not speak HTTP/3.
NOT_FOR_CLIENT = frozenset({*HOP_BY_HOP, b"content-length", b"alt-svc", b"x-lava-request-id"})
CODINGS = frozenset({b"gzip", b"deflate", b"br", b"zstd", b"identity"})  # what the meter can read

AUTH_LINE: dict[AuthStyle, bytes] = {
    "bearer": b"authorization: Bearer ",
    "x-api-key": b"x-api-key: ",
    "x-goog-api-key": b"x-goog-api-key: ",
    "api-key": b"api-key: ",
    "xi-api-key": b"xi-api-key: ",
}

RETRY_AFTER_S_MAX = 60  # what the SDKs are willing to wait by themselves
IDEMPOTENCY_KEY_BYTES_MAX = 255
METADATA_PAIRS_MAX = 100
METADATA_CHARS_MAX = 255
METADATA_BYTES_MAX = 65_536
_METADATA_KEY = re.compile(r"[A-Za-z0-9_]{1,255}")
_GUARDED_BYTES_MIN = 8  # shorter credentials are not secrets, and would drop innocent headers


def credential_of(headers: Headers, target: Target | None) -> bytes:
    """The caller's credential: Authorization, then the providers' key headers, then the query's `key`.

    Raises BadToken when there is none, with a sentence that says where one may be.
    """
    found = {name: value for name, value in reversed(_credentials(headers)) if value}
    for name in CREDENTIAL_HEADERS:
        if name in found:
            return found[name]
    if target is not None and target.credential_from_query:
        return target.credential_from_query.encode("utf-8", "replace")
    raise BadToken("No credential: send a forward token as `Authorization: Bearer <token>`, x-api-key or x-goog-api-key.")


def refuse_unbuilt(headers: Headers) -> None:
    """Raises CallerError (501) for headers that ask for what is not built yet."""
    if any(name.lower() == b"x-lava-fallbacks" for name, _ in headers):
        raise CallerError(
            "x-lava-fallbacks is not built yet; repeat the call with the other provider's URL instead.",
            code="not_implemented",
            status=501,
        )


def _credentials(headers: Headers) -> list[tuple[bytes, bytes]]:
    found = []
    for name, value in headers:
        lower = name.lower()
        if lower in CREDENTIAL_HEADERS:
            value = value.strip()
            if lower == b"authorization":
                scheme, _, rest = value.partition(b" ")
                value = rest.strip() if scheme.lower() == b"bearer" else value if not rest else b""
            found.append((lower, value))
    return found


def upstream_head(
    method: str,
    target: Target,
    headers: Headers,
    provider_key: str | None,
    body_length: int | None,
    force_identity: bool,
) -> bytes:
    """The HTTP/1.1 request head for upstream, with the blank line.

    `body_length` None: no body. `force_identity`: we will change the response's bytes, so it must come uncoded; else
    the client's own Accept-Encoding as far as the meter can read it.
    """
    dropped = _nominated(headers)
    ours = [value for _, value in _credentials(headers)]
    if target.credential_from_query:
        ours.append(target.credential_from_query.encode("utf-8", "replace"))
    ours = [secret for secret in ours if len(secret) >= _GUARDED_BYTES_MIN]
    request_target = _without_secrets(target.request_target, ours)
    lines = [
        f"{method} {request_target} HTTP/1.1".encode("ascii"),
        b"host: " + target.host_header.encode("ascii"),
    ]
    coding = b"identity"
    for name, value in headers:
        lower = name.lower()
        if lower == b"accept-encoding" and not force_identity:
            coding = readable_codings(value)
        if lower in NOT_FOR_UPSTREAM or lower in dropped or lower.startswith(NOT_FOR_UPSTREAM_PREFIXES):
            continue
        if any(secret in value for secret in ours):
            continue  # our token, wherever else a client library repeats it
        lines.append(name + b": " + value)
    if provider_key is not None and target.provider.auth != "none":
        lines.append(AUTH_LINE[target.provider.auth] + provider_key.encode("ascii"))
    lines.append(b"accept-encoding: " + coding)
    if body_length is not None:
        lines.append(b"content-length: %d" % body_length)
    return _head(lines)


def _without_secrets(request_target: str, ours: list[bytes]) -> str:
    """The request target without the query parameters that repeat a credential of ours under another name."""
    secrets = [secret.decode("latin-1") for secret in ours]
    if "?" not in request_target or not any(secret in unquote(request_target) for secret in secrets):
        return request_target
    path, _, query = request_target.partition("?")
    kept = [param for param in query.split("&") if not any(secret in unquote(param) for secret in secrets)]
    return f"{path}?{'&'.join(kept)}" if kept else path


def response_head(
    status: int,
    reason: bytes,
    headers: Headers,
    request_id: str,
    *,
    body: BodyMode,
    body_length: int | None = None,
    keep_alive: bool = True,
) -> bytes:
    """The HTTP/1.1 response head for the client, with the blank line: the provider's headers, in order and case.

    `body`: "chunked"; "length" with `body_length`; "none" for 204, 304, answers to HEAD (`body_length` may then still
    say how long it would be) and bodies that end with the connection.
    """
    assert body != "length" or body_length is not None
    dropped = _nominated(headers)
    lines = [b"HTTP/1.1 %d %s" % (status, reason)]
    event_stream, seen = False, set()
    for name, value in headers:
        lower = name.lower()
        if lower in NOT_FOR_CLIENT or lower in dropped:
            continue
        seen.add(lower)
        if lower == b"content-type" and value.lower().startswith(b"text/event-stream"):
            event_stream = True
        lines.append(name + b": " + value)
    if event_stream:
        # Proxies in front of us must neither buffer nor recompress a stream.
        if b"x-accel-buffering" not in seen:
            lines.append(b"x-accel-buffering: no")
        if b"cache-control" not in seen:
            lines.append(b"cache-control: no-transform")
    lines.append(b"x-lava-request-id: " + request_id.encode("ascii"))
    if body == "chunked":
        lines.append(b"transfer-encoding: chunked")
    elif body_length is not None:
        lines.append(b"content-length: %d" % body_length)
    if not keep_alive:
        lines.append(b"connection: close")
    return _head(lines)


def _head(lines: list[bytes]) -> bytes:
    # The parser accepts no such bytes and tokens with them are refused: one here would be our own mistake.
    head = b"\r\n".join(lines)
    breaks = len(lines) - 1
    assert head.count(b"\n") == head.count(b"\r") == breaks and b"\0" not in head, "a header line with a line break"
    return head + b"\r\n\r\n"


def _nominated(headers: Headers) -> frozenset[bytes]:
    """The header names that Connection declares to be about this hop only."""
    names: set[bytes] = set()
    for name, value in headers:
        if name.lower() == b"connection":
            names.update(token.strip().lower() for token in value.split(b","))
    return frozenset(names)


@lru_cache(maxsize=256)
def readable_codings(accept_encoding: bytes) -> bytes:
    """The client's Accept-Encoding without the codings the meter cannot read; identity when none is left."""
    kept = [item.strip() for item in accept_encoding.split(b",")]
    kept = [item for item in kept if item.partition(b";")[0].strip().lower() in CODINGS]
    return b", ".join(kept) or b"identity"


def metadata_of(headers: Headers, query_metadata: str | None) -> dict[str, str]:
    """The request's metadata: the query's `metadata`, then x-lava-metadata (both JSON), then x-lava-metadata-<key>.

    Later ones win. Raises CallerError (400) that names what was wrong.
    """
    found: dict[str, str] = {}
    if query_metadata is not None:
        found.update(_metadata_object(query_metadata, "metadata"))
    singles: dict[str, str] = {}
    for name, value in headers:
        lower = name.lower()
        if lower == b"x-lava-metadata":
            found.update(_metadata_object(_header_text(value), "x-lava-metadata"))
        elif lower.startswith(b"x-lava-metadata-"):
            key = lower[len(b"x-lava-metadata-") :].decode("latin-1").replace("-", "_")
            singles[key] = _header_text(value)
    found.update(singles)
    check_metadata(found)
    return found


def idempotency_key_of(headers: Headers) -> bytes | None:
    """The caller's Idempotency-Key. Raises CallerError (400) when it is empty, too long or there are two."""
    found = [value.strip() for name, value in headers if name.lower() == b"idempotency-key"]
    if not found:
        return None
    if len(found) > 1 or not 1 <= len(found[0]) <= IDEMPOTENCY_KEY_BYTES_MAX:
        raise CallerError(
            f"Idempotency-Key must be one header of 1-{IDEMPOTENCY_KEY_BYTES_MAX} bytes.", code="invalid_idempotency_key"
        )
    return found[0]


def check_metadata(metadata: dict[str, str]) -> None:
    """Raises CallerError (400) when metadata breaks the limits: 100 pairs, keys of [A-Za-z0-9_], texts of 1-255."""
    if len(metadata) > METADATA_PAIRS_MAX:
        raise _bad_metadata(f"metadata has {len(metadata)} pairs; at most {METADATA_PAIRS_MAX} are accepted")
    for key, value in metadata.items():
        if not _METADATA_KEY.fullmatch(key):
            raise _bad_metadata(f"metadata key {key[:40]!r} must be 1-255 letters, digits or underscores")
        if not isinstance(value, str) or not 1 <= len(value) <= METADATA_CHARS_MAX:
            raise _bad_metadata(f"metadata value of {key[:40]!r} must be text of 1-{METADATA_CHARS_MAX} characters")


def _metadata_object(text: str, where: str) -> dict[str, str]:
    if len(text) > METADATA_BYTES_MAX:
        raise _bad_metadata(f"{where} is longer than {METADATA_BYTES_MAX} characters")
    try:
        value = json.loads(text)
        if not isinstance(value, dict) and "%" in text:
            value = json.loads(unquote(text))
    except (ValueError, RecursionError):
        raise _bad_metadata(f"{where} must be a JSON object of texts") from None
    if not isinstance(value, dict):
        raise _bad_metadata(f"{where} must be a JSON object of texts")
    return value


def _header_text(value: bytes) -> str:
    try:
        return value.decode("utf-8").strip()
    except UnicodeDecodeError:
        return value.decode("latin-1").strip()


def _bad_metadata(message: str) -> CallerError:
    return CallerError(message + ".", code="invalid_metadata")


OPENAI_TYPES = {400: "invalid_request_error", 401: "authentication_error", 402: "insufficient_quota",
                403: "permission_error", 404: "not_found_error", 409: "conflict_error",
                429: "rate_limit_error"}  # fmt: skip
ANTHROPIC_TYPES = {400: "invalid_request_error", 401: "authentication_error", 402: "billing_error",
                   403: "permission_error", 404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
                   503: "overloaded_error", 504: "timeout_error", 529: "overloaded_error"}  # fmt: skip
GOOGLE_STATUSES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 402: "FAILED_PRECONDITION",
                   403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ABORTED", 413: "INVALID_ARGUMENT",
                   429: "RESOURCE_EXHAUSTED", 501: "UNIMPLEMENTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE",
                   504: "DEADLINE_EXCEEDED"}  # fmt: skip

# The exceptions that the AWS SDKs know of bedrock-runtime; an unknown one would arrive without a type of its own.
AWS_EXCEPTIONS = {400: "ValidationException", 401: "AccessDeniedException", 402: "ServiceQuotaExceededException",
                  403: "AccessDeniedException", 404: "ResourceNotFoundException", 409: "ConflictException",
                  413: "ValidationException", 429: "ThrottlingException", 503: "ServiceUnavailableException",
                  504: "ModelTimeoutException"}  # fmt: skip


def error_body(dialect: Dialect, status: int, code: str, message: str) -> bytes:
    """Our own error as JSON the caller's SDK understands; always an object `error` with message, code and status.

    Google's SDKs want the number in `code` and a word in `status`; ours is in `details` there. AWS' SDKs read
    `message` and `__type` beside the object.
    """
    fallback = "api_error" if status >= 500 else "invalid_request_error"
    if dialect == "anthropic":
        kind = ANTHROPIC_TYPES.get(status, fallback)
        body: dict[str, object] = {
            "type": "error",
            "error": {"type": kind, "message": message, "code": code, "status": status},
        }
    elif dialect == "google":
        word = GOOGLE_STATUSES.get(status, "INTERNAL" if status >= 500 else "INVALID_ARGUMENT")
        reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": code, "domain": "lava-proxy"}
        body = {"error": {"code": status, "message": message, "status": word, "details": [reason]}}
    else:
        kind = OPENAI_TYPES.get(status, fallback)
        body = {"error": {"message": message, "type": kind, "code": code, "param": None, "status": status}}
        if dialect == "aws":
            fallback = "InternalServerException" if status >= 500 else "ValidationException"
            body = {"__type": AWS_EXCEPTIONS.get(status, fallback), "message": message, **body}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def limit_lines(error: LimitExceeded) -> list[bytes]:
    """The header lines of a refusal by a limit: what is allowed, what is left, when there is more (seconds since 1970).

    Where waiting is long or does not help, the vendors' SDKs are told not to try again by themselves.
    """
    lines = []
    if error.status == 429:
        lines += [b"x-ratelimit-limit: %d" % error.limit, b"x-ratelimit-remaining: %d" % error.remaining]
        if error.reset_s is not None:
            lines.append(b"x-ratelimit-reset: %d" % error.reset_s)
    if error.status != 429 or error.retry_after_s is None or error.retry_after_s > RETRY_AFTER_S_MAX:
        lines.append(b"x-should-retry: false")
    return lines


def dialect_of(target: Target | None, headers: Headers, raw_target: bytes = b"") -> Dialect:
    """Which vendor's SDK is probably listening: by the target, the route, the headers that only that vendor's SDK sends."""
    if target is not None:
        path = target.path
        if target.provider.family == "anthropic" or path.endswith("/messages") or "rawpredict" in path.lower():
            return "anthropic"
        if target.provider.family == "bedrock" and "/model/" in path:
            return "aws"
        if "/openai/" in path or path.endswith("/chat/completions"):
            return "openai"
        if target.provider.family in ("google", "vertex"):
            return "google"
        return "openai"
    names = {name.lower() for name, _ in headers}
    if b"anthropic-version" in names or raw_target.startswith(b"/v1/messages"):
        return "anthropic"
    return "google" if names & {b"x-goog-api-key", b"x-goog-api-client"} else "openai"
