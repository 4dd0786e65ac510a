"""How a control process on another host knows its gateways: a header whose value only holders of the master key can make."""

from __future__ import annotations

import hashlib
import hmac

HEADER = "x-lava-hop"
"""Never taken from a client and never sent to a provider."""


def hop_secret(master_key: str) -> str:
    """The header's value; the master key cannot be got back from it."""
    return hmac.new(master_key.encode(), b"lava-proxy: gateway to control", hashlib.sha256).hexdigest()
