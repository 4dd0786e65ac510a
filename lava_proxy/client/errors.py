"""What the client raises: one class for each kind of answer that a program treats differently."""

from __future__ import annotations

import json


class LavaClientError(Exception):
    """Root of everything that the client raises on purpose."""


class ConnectionFailed(LavaClientError):
    """No answer came, after all tries; whether the server did what was asked is not known."""


class LavaApiError(LavaClientError):
    """An answer of 400 or more: `status`, the stable snake_case `code`, the sentence in `message`."""

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.message = message
        self.status = status
        self.code = code


class InvalidRequestError(LavaApiError):
    """400, 413: the request was not understood; the message names every problem."""


class AuthenticationError(LavaApiError):
    """401: no key, or one that is not known."""


class InsufficientFundsError(LavaApiError):
    """402: the balance or the key's spend limit does not cover it; nothing was done."""


class NotAllowedError(LavaApiError):
    """403: this key may not do this."""


class NotFoundError(LavaApiError):
    """404: no such thing of yours."""


class ConflictError(LavaApiError):
    """409: in conflict with what is there."""


class RateLimitError(LavaApiError):
    """429, after all tries."""


class UnavailableError(LavaApiError):
    """5xx; 503 after all tries."""


_CLASSES: dict[int, type[LavaApiError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    402: InsufficientFundsError,
    403: NotAllowedError,
    404: NotFoundError,
    409: ConflictError,
    413: InvalidRequestError,
    429: RateLimitError,
}


def api_error(status: int, body: bytes) -> LavaApiError:
    """The error in an answer; one that is not in our envelope (a proxy's page) shows its beginning."""
    kind = _CLASSES.get(status, UnavailableError if status >= 500 else LavaApiError)
    facts = error_facts(body)
    if facts is None:
        return kind(body[:200].decode("utf-8", "replace") or "The answer has no body.", status=status, code="unknown")
    return kind(facts[1], status=status, code=facts[0])


def error_facts(body: bytes) -> tuple[str, str] | None:
    """(code, message) of our envelope, None for other bodies."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
