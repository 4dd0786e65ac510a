"""The whole error tree. An error carries a stable snake_case code and its facts; the text is for people.

LavaError
├── CallerError          4xx, the caller can mend it: `status`, `code`, and a sentence
├── UpstreamError        the provider failed: refused, timed out, broke
└── StoreError           ours and transient: Redis or Postgres unreachable, recovering
"""

from __future__ import annotations


class LavaError(Exception):
    """Root of everything this program raises on purpose."""

    code = "internal_error"
    status = 500

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status


class CallerError(LavaError):
    """The caller can mend it: HTTP 4xx with a sentence that says what was wrong and what is accepted."""

    code = "bad_request"
    status = 400


class BadToken(CallerError):
    """Missing, malformed, unknown or revoked credential (401)."""

    code = "invalid_token"
    status = 401


class Forbidden(CallerError):
    """Known caller, but not allowed to do this (403)."""

    code = "forbidden"
    status = 403


class NotFound(CallerError):
    """No such thing of this merchant's (404)."""

    code = "not_found"
    status = 404


class Conflict(CallerError):
    """The id was used before with other content (409)."""

    code = "conflict"
    status = 409


class InsufficientFunds(CallerError):
    """The balance does not cover the most this call can cost (402); nothing was changed."""

    code = "insufficient_funds"
    status = 402


class LimitExceeded(CallerError):
    """A rate, count or spend limit of the credential (429; 402 for spend); nothing was counted.

    `limit` and `remaining` in the limit's own unit (spend: nano-USD); `retry_after_s` None: waiting does not help;
    `reset_s`: seconds since 1970, where the limit has an end.
    """

    code = "limit_exceeded"
    status = 429

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        limit: int = 0,
        remaining: int = 0,
        retry_after_s: int | None = None,
        reset_s: int | None = None,
    ) -> None:
        super().__init__(message, code=code, status=status)
        self.limit = limit
        self.remaining = remaining
        self.retry_after_s = retry_after_s
        self.reset_s = reset_s


class UpstreamError(LavaError):
    """The provider could not be reached, was too slow or broke before an answer (502, 504)."""

    code = "upstream_error"
    status = 502


class StoreError(LavaError):
    """Redis or Postgres cannot answer now; nothing was charged (503 with Retry-After)."""

    code = "billing_unavailable"
    status = 503
