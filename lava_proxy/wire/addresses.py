"""Which network addresses are public: what a provider's or a receiver's name may resolve to."""

from __future__ import annotations

import ipaddress

_METADATA = tuple(  # where clouds tell a machine its own secrets (RFC 3927, RFC 4291; AWS on IPv6; Alibaba; a host of Azure)
    ipaddress.ip_network(text)
    for text in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "100.100.100.200/32", "168.63.129.16/32")
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address
# What has been given out as global (RFC 4291 2.4). Outside of it lie other forms that carry an IPv4 address (RFC 8215, RFC 6145,
# the old `::a.b.c.d`) and the site-local ones, which Python's tables take for global.
_GLOBAL6 = ipaddress.ip_network("2000::/3")
_PROTOCOLS = ipaddress.ip_network("192.0.0.0/24")  # also where Python's tables are older than RFC 8190


def is_public(address: str) -> bool:
    """Is this a global unicast address? IPv6 forms that carry an IPv4 address are judged by that one; other text is not public."""
    found = _judged(address)
    if found is None or not found.is_global or found.is_multicast or found in _PROTOCOLS:
        return False
    return (found.version == 4 or found in _GLOBAL6) and not any(found in network for network in _METADATA)


def is_metadata(address: str) -> bool:
    """Is this link-local, or another address at which clouds give their machines' secrets? IPv6 forms as in `is_public`."""
    found = _judged(address)
    return found is not None and any(found in network for network in _METADATA)


def _judged(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that one stands for; None for text that is none."""
    try:
        found = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo is not None else None)
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return inner
    return found


def is_literal(host: str) -> bool:
    """Is the host an IP address itself, so that nothing will be resolved?"""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
