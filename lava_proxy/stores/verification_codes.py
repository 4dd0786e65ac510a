"""Codes that prove a phone, and how many may be sent: in Redis, for minutes and hours."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from lava_proxy.domain.errors import StoreError

CODE_VALID_S = 600
TRIES_MAX = 5
_SALT_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """At most `count` of something called `name` in `window_s` seconds."""

    name: str
    count: int
    window_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A code that is waited for. `tries`: how many were made, this one included; `matches`: was it the right one?"""

    phone: str
    tries: int
    matches: bool
    is_remote: bool  # the provider made it and knows it; `matches` says nothing


class VerificationCodes:
    """One pending code for each name (a visit to a session). Raises StoreError when Redis cannot answer."""

    def __init__(self, redis: Redis) -> None:
        # redis-py's annotations allow text where this client, made without decode_responses, always answers bytes.
        self._redis: Any = redis

    async def admit(self, bounds: Sequence[Bound]) -> int | None:
        """Count one sending against each bound; None when all allow it, else how many seconds the first does not."""
        for bound in bounds:
            key = f"verify:count:{_named(bound.name)}:{bound.window_s}"
            async with _Redis():
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.incr(key)
                    pipe.expire(key, bound.window_s, nx=True)
                    pipe.ttl(key)
                    counted, _, left_s = await pipe.execute()
            if counted > bound.count:
                return max(1, int(left_s))
        return None

    async def put(self, name: str, phone: str, code: str | None) -> None:
        """Wait for a code (None: one that the provider has made); it takes the place of an earlier one."""
        salt = secrets.token_bytes(_SALT_BYTES)
        digest = None if code is None else _digest(salt, code).hex()
        value = orjson.dumps({"phone": phone, "salt": salt.hex(), "digest": digest})
        async with _Redis():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.set(_key(name), value, ex=CODE_VALID_S)
                pipe.delete(_tries_key(name))
                await pipe.execute()

    async def phone(self, name: str) -> str | None:
        """Where the pending code went; None without one."""
        async with _Redis():
            value = await self._redis.get(_key(name))
        return None if value is None else str(orjson.loads(value)["phone"])

    async def guess(self, name: str, code: str) -> Pending | None:
        """Count a try and compare; None when no code is pending. The count comes first, so tries at once are all counted."""
        async with _Redis():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.incr(_tries_key(name))
                pipe.expire(_tries_key(name), CODE_VALID_S)
                pipe.get(_key(name))
                tries, _, value = await pipe.execute()
        if value is None:
            return None
        facts = orjson.loads(value)
        is_remote = facts["digest"] is None
        wanted = bytes.fromhex(facts["digest"] or "")
        matches = not is_remote and hmac.compare_digest(_digest(bytes.fromhex(facts["salt"]), code), wanted)
        return Pending(phone=facts["phone"], tries=int(tries), matches=matches, is_remote=is_remote)

    async def drop(self, name: str) -> bool:
        """Use a code up; False when somebody else has."""
        async with _Redis():
            return bool(await self._redis.delete(_key(name)))


class _Redis:
    """Translates Redis' failures."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RedisError | OSError | TimeoutError):
            raise StoreError(f"Redis cannot answer: {type(error).__name__}", code="verification_unavailable") from error


def _digest(salt: bytes, code: str) -> bytes:
    return hashlib.sha256(salt + code.encode()).digest()


def _named(name: str) -> str:
    """Phones and addresses are not written down as they are."""
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _key(name: str) -> str:
    return f"verify:code:{_named(name)}"


def _tries_key(name: str) -> str:
    return f"verify:tries:{_named(name)}"
