"""Is a webhook ours? For receivers: the signature over the bytes that came, in constant time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from lava_proxy.client.errors import LavaClientError
from lava_proxy.wire.signature import PLAIN_HEADER, TIMESTAMPED_HEADER, verify_plain, verify_timestamped


class InvalidSignature(LavaClientError):
    """The body was not signed with this secret, or was signed too long ago."""


def verify_webhook(body: bytes, headers: Mapping[str, str], secret: str, *, now: int | None = None) -> dict[str, Any]:
    """The event in a webhook's raw body: {"event", "id", "created_at", "sequence", "data"}. Raises InvalidSignature.

    Give the bytes as they came: JSON that was read and written again has another signature. Where the header with a time is there
    it must be right and at most five minutes old, so that a recorded delivery cannot be played back later. `now` is in seconds
    since 1970.
    """
    found = {name.lower(): value for name, value in headers.items()}
    timed, plain = found.get(TIMESTAMPED_HEADER.lower()), found.get(PLAIN_HEADER.lower())
    if timed is not None:
        is_ours = verify_timestamped(secret, body, timed, int(time.time()) if now is None else now)
    else:
        is_ours = plain is not None and verify_plain(secret, body, plain)
    if not is_ours:
        raise InvalidSignature("The webhook was not signed with this secret, or was signed too long ago.")
    event: dict[str, Any] = json.loads(body)
    return event
