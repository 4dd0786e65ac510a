"""How often somebody has asked in the present minute, shared by all processes. A convenience bound, not a ledger."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

WINDOW_S = 60
_WAIT_S = 0.25
_PAUSE_S = 5.0


class CallCounts:
    """Counters of fixed minutes in Redis."""

    def __init__(self, redis: Redis) -> None:
        # redis-py's annotations allow text where this client, made without decode_responses, always answers bytes.
        self._redis: Any = redis
        self._asleep_until = 0.0

    async def count(self, name: str, now_s: int) -> int | None:
        """Count one call of `name` at `now_s` (seconds since 1970): how many the minute has now.

        None when Redis does not say so within a quarter second; it is then not asked again for some seconds.
        """
        loop = asyncio.get_running_loop()
        if loop.time() < self._asleep_until:
            return None
        key = f"calls:{name}:{now_s // WINDOW_S}"
        try:
            async with asyncio.timeout(_WAIT_S), self._redis.pipeline(transaction=False) as pipe:
                pipe.incr(key)
                pipe.expire(key, 2 * WINDOW_S)
                counted, _ = await pipe.execute()
        except (RedisError, OSError, TimeoutError):
            self._asleep_until = loop.time() + _PAUSE_S
            return None
        return int(counted)

    async def read(self, name: str, now_s: int) -> int:
        """How many calls of `name` the minute has; 0 when Redis does not say."""
        try:
            async with asyncio.timeout(_WAIT_S):
                return int(await self._redis.get(f"calls:{name}:{now_s // WINDOW_S}") or 0)
        except (RedisError, OSError, TimeoutError):
            return 0
