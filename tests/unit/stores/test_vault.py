"""stores/vault.py: what is sealed can be opened here, in its place, with its key, and nowhere else."""

from __future__ import annotations

import base64

import pytest

from lava_proxy.stores.vault import Vault, new_master_key


def test_a_secret_comes_back_and_looks_different_each_time() -> None:
    vault = Vault(new_master_key())
    sealed = [vault.seal("sk-geheim-ü", "provider_key:mer_1:openai") for _ in range(2)]
    assert [vault.open(box, "provider_key:mer_1:openai") for box in sealed] == ["sk-geheim-ü"] * 2
    assert sealed[0] != sealed[1] and b"geheim" not in sealed[0]


def test_a_sealed_secret_cannot_be_moved_to_another_row() -> None:
    vault = Vault(new_master_key())
    with pytest.raises(ValueError, match="cannot be opened"):
        vault.open(vault.seal("s", "connection:con_1"), "connection:con_2")


def test_another_key_a_changed_byte_and_another_version_are_refused() -> None:
    vault = Vault(new_master_key())
    sealed = vault.seal("s", "x")
    with pytest.raises(ValueError, match="LAVA_MASTER_KEY differs"):
        Vault(new_master_key()).open(sealed, "x")
    with pytest.raises(ValueError, match="cannot be opened"):
        vault.open(sealed[:-1] + bytes([sealed[-1] ^ 1]), "x")
    with pytest.raises(ValueError, match="version"):
        vault.open(b"\x02" + sealed[1:], "x")


@pytest.mark.parametrize("key", ["", "short", base64.b64encode(b"x" * 31).decode(), "not base64 at all!" * 3])
def test_a_master_key_of_another_size_is_refused_with_the_way_to_make_one(key: str) -> None:
    with pytest.raises(ValueError, match="openssl rand -base64 32"):
        Vault(key)


def test_while_keys_are_rotated_the_old_one_opens_and_the_new_one_seals() -> None:
    old, new = new_master_key(), new_master_key()
    sealed = Vault(old).seal("s", "x")
    both = Vault(new, (old, ""))
    assert (both.open(sealed, "x"), both.is_current(sealed, "x")) == ("s", False)
    anew = both.seal("s", "x")
    assert (Vault(new).open(anew, "x"), both.is_current(anew, "x"), both.is_current(anew, "y")) == ("s", True, False)
    with pytest.raises(ValueError, match="LAVA_MASTER_KEY_PREVIOUS must be 32"):
        Vault(new, ("short",))
