"""Identifiers and secrets: `<prefix>_<ULID>`, sortable by creation; secrets are random and compared by hash."""

from __future__ import annotations

import hashlib
import secrets
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from random import getrandbits

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = tuple(a + b for a in _CROCKFORD for b in _CROCKFORD)
_TIME_LETTERS, _RANDOM_LETTERS = 10, 16
_VALUE = {letter: value for value, letter in enumerate(_CROCKFORD)}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_last_ms = -1
_last_text = ""
_last_bits = 0


def new_id(prefix: str) -> str:
    """A fresh id: 48 bits of milliseconds and 80 random bits, 26 Crockford letters (github.com/ulid/spec).

    Those that a process makes in one millisecond follow each other too, by a random step: what was made later is listed later.
    """
    global _last_ms, _last_text, _last_bits
    now_ms = time.time_ns() // 1_000_000
    if now_ms != _last_ms:
        _last_text = "".join(_CROCKFORD[(now_ms >> shift) & 31] for shift in range(45, -1, -5))
        _last_ms, _last_bits = now_ms, getrandbits(79)  # ids are names, not secrets: they need to be unique, not unguessable
    else:
        _last_bits += 1 + getrandbits(48)  # the bit left free above holds 2**31 of these
    low, high = _last_bits & 0xFFFFFFFFFF, _last_bits >> 40
    return (
        f"{prefix}_{_last_text}{_PAIRS[high >> 30]}{_PAIRS[high >> 20 & 1023]}{_PAIRS[high >> 10 & 1023]}{_PAIRS[high & 1023]}"
        f"{_PAIRS[low >> 30]}{_PAIRS[low >> 20 & 1023]}{_PAIRS[low >> 10 & 1023]}{_PAIRS[low & 1023]}"
    )


def ulid_of(prefix: str, milliseconds: int, randomness: bytes) -> str:
    """The id of a time and ten bytes: the same from the same, for ids that are made from another's."""
    assert len(randomness) == 10
    value = milliseconds << 80 | int.from_bytes(randomness)
    return f"{prefix}_" + "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


def created_ms(identifier: str) -> int:
    """Milliseconds since 1970 out of an id made by new_id. Raises ValueError for other ids."""
    text = identifier.rsplit("_", 1)[-1]
    try:
        return _time_of(text[:_TIME_LETTERS]) if len(text) == _TIME_LETTERS + _RANDOM_LETTERS else _time_of("-")
    except KeyError:
        raise ValueError(f"not an id with a time in it: {identifier[:60]!r}") from None


@lru_cache(maxsize=1024)
def _time_of(letters: str) -> int:
    """Of the ids made in one millisecond these letters are the same. Raises KeyError where they are none."""
    value = 0
    for letter in letters:
        value = value * 32 + _VALUE[letter]
    return value


def created_at(identifier: str) -> datetime:
    """The creation time of an id, aware UTC, exact to the millisecond."""
    return at_ms(created_ms(identifier))


@lru_cache(maxsize=1024)
def at_ms(milliseconds: int) -> datetime:
    """Aware UTC of milliseconds since 1970, without a float in between."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


def new_secret(prefix: str) -> str:
    """A secret of 40 random bytes: `aks_live_...`, `cons_live_...`."""
    return prefix + secrets.token_urlsafe(40)


def hash_of(secret: str) -> bytes:
    """What is stored of a secret. Plain SHA-256 suffices: the secrets are 320 random bits, not passwords."""
    return hashlib.sha256(secret.encode()).digest()
