"""One-time codes that a signed-in person gives to a program on their machine, which exchanges one for a secret key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from lava_proxy.domain.errors import StoreError
from lava_proxy.stores.ids import hash_of, new_secret

VALID_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Who signed in, for which merchant."""

    merchant_id: str
    account_id: str


class LoginCodes:
    """Codes in Redis, by their hashes. Raises StoreError when Redis cannot answer."""

    def __init__(self, redis: Redis) -> None:
        # redis-py's annotations allow text where this client, made without decode_responses, always answers bytes.
        self._redis: Any = redis

    async def create(self, login: Login) -> str:
        """A fresh code, good once and for a minute."""
        code = new_secret("lac_")
        value = orjson.dumps({"merchant_id": login.merchant_id, "account_id": login.account_id})
        try:
            await self._redis.set(_key(code), value, ex=VALID_S)
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis cannot answer: {type(error).__name__}") from error
        return code

    async def take(self, code: str) -> Login | None:
        """Whose code it is, this once; None when it is unknown, used or too old."""
        try:
            value = await self._redis.getdel(_key(code))
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis cannot answer: {type(error).__name__}") from error
        return None if value is None else Login(**orjson.loads(value))


def _key(code: str) -> str:
    return f"login:{hash_of(code).hex()}"
