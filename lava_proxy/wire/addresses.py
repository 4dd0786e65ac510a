"""Which network addresses are public: what a provider's or a receiver's name may resolve to."""

from __future__ import annotations

import ipaddress

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last four bytes are an IPv4 address
# What has been given out as global (RFC 4291 2.4). Outside of it lie other forms that carry an IPv4 address (RFC 8215, RFC 6145,
# the old `::a.b.c.d`) and the site-local ones, which Python's tables take for global.
_GLOBAL6 = ipaddress.ip_network("2000::/3")
# Reserved for protocols, also where Python's tables are older than RFC 8190; and where a host of Azure answers its guests.
_NEVER = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "168.63.129.16/32")))


def is_public(address: str) -> bool:
    """Is this a global unicast address? IPv6 forms that carry an IPv4 address are judged by that one; other text is not public."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo is not None else None)
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is None:
            return found in _GLOBAL6 and found.is_global
        found = inner
    return found.is_global and not found.is_multicast and not any(found in network for network in _NEVER)


def is_literal(host: str) -> bool:
    """Is the host an IP address itself, so that nothing will be resolved?"""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
