"""stores/ids.py: ids sort by their milliseconds and carry them."""

from __future__ import annotations

import time

import pytest

from lava_proxy.stores.ids import at_ms, created_at, created_ms, hash_of, new_id, new_secret, ulid_of


def test_ids_are_unique_and_carry_their_moment() -> None:
    """40, L3: an id is made for one thing, never from the minute it happens in."""
    before = time.time_ns() // 1_000_000
    ids = [new_id("req") for _ in range(2_000)]
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == 2_000
    assert all(before <= created_ms(found) <= after for found in ids)
    assert [created_ms(found) for found in ids] == sorted(created_ms(found) for found in ids)
    assert created_at(ids[0]) == at_ms(created_ms(ids[0])) and created_at(ids[0]).microsecond % 1000 == 0


def test_ids_of_one_process_sort_as_they_were_made() -> None:
    """Pages go by id: two rows of one millisecond must not change places."""
    made = [new_id("req") for _ in range(20_000)]
    assert made == sorted(made) and len(set(made)) == len(made)


@pytest.mark.parametrize("strange", ["", "req_", "order-1", "req_" + "U" * 26])
def test_ids_of_others_have_no_moment(strange: str) -> None:
    with pytest.raises(ValueError, match="not an id"):
        created_ms(strange)


def test_secrets_are_long_and_only_their_hash_is_comparable() -> None:
    assert len({new_secret("aks_live_") for _ in range(10)}) == 10
    assert len(new_secret("aks_live_")) > 60
    assert hash_of("a") != hash_of("b") and len(hash_of("a")) == 32


def test_an_id_made_from_a_time_and_bytes_is_the_same_each_time() -> None:
    made = ulid_of("crd", 1_795_000_000_123, bytes(range(10)))
    assert made == ulid_of("crd", 1_795_000_000_123, bytes(range(10))) != ulid_of("crd", 1_795_000_000_123, bytes(10))
    assert (created_ms(made), len(made)) == (1_795_000_000_123, 30)
    assert created_ms(ulid_of("crd", 5, b"\xff" * 10)) == 5
