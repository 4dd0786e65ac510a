"""What a request's head says about where our pages are and who is at them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

# Where proxies of ours can be. Python's `is_private` also counts documentation networks.
_INSIDE = tuple(
    ipaddress.ip_network(text)
    for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7", "fe80::/10")
)

PEER_HEADER = "X-Lava-Peer"
"""The gateway's word for the address it was connected from; what a client sends under this name is dropped there."""


def base_url(headers: Mapping[str, str], host: str, public_url: str | None) -> str:
    """Where our pages are, ending in /: as configured, else what the browser used, https where the proxy before us says so."""
    if public_url is not None:
        return public_url
    is_https = headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower() == "https"
    return f"{'https' if is_https else 'http'}://{host}/"


def client_address(headers: Mapping[str, str]) -> str:
    """Who asks, for counting: the peer, or what a proxy on a private address says of its peer (the last of X-Forwarded-For)."""
    peer = headers.get(PEER_HEADER, "")
    forwarded = headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
    if forwarded and _is_inside(peer):
        return forwarded[:64]
    return peer[:64]


def _is_inside(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in _INSIDE)
