"""wire/addresses.py: what may be connected to on somebody else's word."""

from __future__ import annotations

import pytest

from lava_proxy.wire.addresses import is_literal, is_public


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "64:ff9b::101:101", "::ffff:8.8.8.8"])
def test_global_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "255.255.255.255",
        "224.0.0.1", "ff0e::1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a00:1::1", "192.0.2.1",
        "64:ff9b:1::7f00:1", "::7f00:1", "::ffff:0:7f00:1", "fec0::1", "5f00::1", "2001:db8::1", "192.0.0.8", "168.63.129.16",
        "::ffff:168.63.129.16", "not an address", "",
    ],
)  # fmt: skip
def test_private_local_and_disguised_addresses_are_not(address: str) -> None:
    assert not is_public(address)


def test_a_literal_is_an_address_and_a_name_is_not() -> None:
    assert is_literal("127.0.0.1") and is_literal("[::1]") and is_literal("::1")
    assert not is_literal("localhost") and not is_literal("2130706433")
