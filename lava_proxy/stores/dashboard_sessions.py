"""People's sessions with the dashboard, and the one-time links that begin one. In Redis, under the hashes of their secrets.

A session ends after 12 hours without use and after 7 days whatever happens; its merchant may end all of them at once. Times are
the world's, not business time: a test clock that jumps a month must not sign anybody out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from lava_proxy.domain.errors import StoreError
from lava_proxy.stores.ids import hash_of, new_secret

IDLE_S = 12 * 3600
LIFE_S = 7 * 86_400
LINK_S = 3600
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_ADDRESS_KEY = "dashboard:address"
_REFRESH_S = 300  # how stale the last use may be before it is written again


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardSession:
    """Whose session it is and how it began: with the secret key `secret_key_id`, or, without one, with a one-time link."""

    session_id: str
    merchant_id: str
    secret_key_id: str | None
    key_hint: str | None
    csrf: str = field(repr=False)
    created_ms: int
    seen_ms: int


class DashboardSessions:
    """Makes, finds and ends sessions. Raises StoreError when Redis cannot answer."""

    def __init__(self, redis: Redis, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        # redis-py's annotations allow text where this client, made without decode_responses, always answers bytes.
        self._redis: Any = redis
        self._clock = clock

    async def begin(self, merchant_id: str, *, secret_key_id: str | None = None, key_hint: str | None = None) -> str:
        """A fresh session's token, which only its cookie holds."""
        token, now_ms = new_secret("lds_"), self._now_ms()
        session = DashboardSession(
            session_id="ses_" + hash_of(token).hex()[:16], merchant_id=merchant_id, secret_key_id=secret_key_id,
            key_hint=key_hint, csrf=new_secret("csrf_"), created_ms=now_ms, seen_ms=now_ms,
        )  # fmt: skip
        await self._ask(self._redis.set(_session_key(token), orjson.dumps(asdict(session)), ex=IDLE_S))
        return token

    async def find(self, token: str) -> DashboardSession | None:
        """The living session of a token, its use noted; None for one that is unknown or has ended."""
        key = _session_key(token)
        value = await self._ask(self._redis.get(key))
        if value is None:
            return None
        session, now_ms = DashboardSession(**orjson.loads(value)), self._now_ms()
        ended_ms = int(await self._ask(self._redis.get(_ended_key(session.merchant_id))) or -1)
        if (
            now_ms - session.seen_ms >= 1000 * IDLE_S
            or now_ms - session.created_ms >= 1000 * LIFE_S
            or session.created_ms <= ended_ms
        ):
            await self._ask(self._redis.delete(key))
            return None
        if now_ms - session.seen_ms >= 1000 * _REFRESH_S:
            session = replace(session, seen_ms=now_ms)
            # Only where it still is: a sign-out meanwhile must not be undone.
            await self._ask(self._redis.set(key, orjson.dumps(asdict(session)), ex=IDLE_S, xx=True))
        return session

    async def end(self, token: str) -> None:
        """Nothing where there is none."""
        await self._ask(self._redis.delete(_session_key(token)))

    async def end_all(self, merchant_id: str) -> None:
        """Every session of the merchant that has begun by now, and its unused links."""
        await self._ask(self._redis.set(_ended_key(merchant_id), self._now_ms(), ex=LIFE_S + IDLE_S))

    async def create_link(self, merchant_id: str) -> str:
        """A code that signs in once, within an hour: /dashboard/enter/{code}."""
        code = new_secret("ldl_")
        value = orjson.dumps({"merchant_id": merchant_id, "created_ms": self._now_ms()})
        await self._ask(self._redis.set(_link_key(code), value, ex=LINK_S))
        return code

    async def take_link(self, code: str) -> str | None:
        """Whose link it is, this once; None for one that is unknown, used or too old."""
        value = await self._ask(self._redis.getdel(_link_key(code)))
        if value is None:
            return None
        link = orjson.loads(value)
        ended_ms = int(await self._ask(self._redis.get(_ended_key(link["merchant_id"]))) or -1)
        is_old = self._now_ms() - link["created_ms"] >= 1000 * LINK_S or link["created_ms"] <= ended_ms
        return None if is_old else str(link["merchant_id"])

    async def set_address(self, address: str) -> None:
        """Remember where browsers find this installation, for commands that are run beside it; it ends with a slash."""
        await self._ask(self._redis.set(_ADDRESS_KEY, address))

    async def address(self) -> str | None:
        """Where the server that started last is found; None when none has said."""
        value = await self._ask(self._redis.get(_ADDRESS_KEY))
        return None if value is None else str(value, "utf-8")

    def _now_ms(self) -> int:
        return (self._clock() - _EPOCH) // _MILLISECOND

    async def _ask(self, command: Any) -> Any:
        try:
            return await command
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis cannot answer: {type(error).__name__}") from error


def _session_key(token: str) -> str:
    return f"dashboard:session:{hash_of(token).hex()}"


def _link_key(code: str) -> str:
    return f"dashboard:link:{hash_of(code).hex()}"


def _ended_key(merchant_id: str) -> str:
    return f"dashboard:ended:{merchant_id}"
