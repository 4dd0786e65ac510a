"""When the client tries again, and after how long. Pure.

429 and 503 changed nothing at the server, and say when to come back. A POST carries an Idempotency-Key and a report its request_id,
so that it may be sent again after an answer was lost; a DELETE may not, for the second one would be told 404.
"""

from __future__ import annotations

from collections.abc import Mapping

from lava_proxy.client.errors import error_facts

RETRIES_MAX = 3
WAIT_S_MAX = 60
"""A longer Retry-After is not waited for: the error is raised at once."""
_BACKOFF_MS = 500
_RUNNING = "idempotency_running"


def wait_after_answer(status: int, headers: Mapping[str, str], body: bytes, retries: int, jitter: int) -> int | None:
    """Milliseconds until the next try, None where there is none. `jitter`: a random integer of 0 to 1000."""
    is_first_still_running = status == 409 and (error_facts(body) or ("",))[0] == _RUNNING
    if status not in (429, 503) and not is_first_still_running:
        return None
    text = headers.get("retry-after", "")
    if not text.isascii() or not text.isdigit():
        return wait_after_failure(retries, jitter)
    seconds = int(text[:9])
    return seconds * 1000 + jitter // 4 if seconds <= WAIT_S_MAX else None


def wait_after_failure(retries: int, jitter: int) -> int:
    """Milliseconds: half a second, doubled with each retry, up to a quarter more or less."""
    return int((_BACKOFF_MS << retries) * (750 + jitter // 2)) // 1000


def may_repeat(method: str, has_connected: bool) -> bool:
    """May a request be sent again of which no answer came?"""
    return method != "DELETE" or not has_connected
