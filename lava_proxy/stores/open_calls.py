"""A merchant's calls that run at this moment, read from their holds: Postgres learns of a call when it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from lava_proxy.domain.errors import StoreError
from lava_proxy.stores.balance_store import PARTITIONS, tag
from lava_proxy.stores.ids import created_at

_LOOK_AT_MAX = 200  # holds a partition: a look costs Redis about a microsecond a hold
# The newest leases first: those are the calls that live. A hold's row follows its seventh field, so a plain search is enough to
# leave the calls of others where they are.
_SCRIPT = """
local found = {}
for _, id in ipairs(redis.call('ZREVRANGE', KEYS[1], 0, tonumber(ARGV[3]) - 1)) do
  local record = redis.call('GET', ARGV[1] .. id)
  if record and string.find(record, ARGV[2], 1, true) then found[#found + 1] = { id, record } end
end
return found
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCall:
    """A call under way. `held_nanos`: what is set aside for it; usage is that of its last checkpoint."""

    request_id: str
    connection_id: str | None
    meter_id: str | None
    provider: str
    model: str | None
    endpoint: str
    streamed: bool
    held_nanos: int
    input_tokens: int
    output_tokens: int
    started_at: datetime


class OpenCalls:
    """Reads only. Raises StoreError when Redis cannot answer."""

    def __init__(self, redis: Redis) -> None:
        # redis-py's annotations allow text where this client, made without decode_responses, always answers bytes.
        self._redis: Any = redis

    async def of_merchant(self, merchant_id: str, limit: int, wanted: Callable[[OpenCall], bool] | None = None) -> list[OpenCall]:
        """At most `limit`, newest first; with thousands open at once, not all are looked at."""
        needle = f'"merchant_id":"{merchant_id}"'
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for part in range(PARTITIONS):
                    pipe.eval(_SCRIPT, 1, f"{tag(part)}:x", f"{tag(part)}:h:", needle, _LOOK_AT_MAX)
                parts = await pipe.execute()
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis cannot answer: {type(error).__name__}") from error
        calls = [call for part in parts for identifier, record in part if (call := _call(identifier.decode(), record)) is not None]
        chosen = [call for call in calls if wanted is None or wanted(call)]
        return sorted(chosen, key=lambda call: call.request_id, reverse=True)[:limit]


def _call(request_id: str, record: bytes) -> OpenCall | None:
    """None for a hold that has just ended."""
    if not record.startswith(b"H|"):
        return None
    _, plan, funds, _, _, _, _, text = record.split(b"|", 7)
    row = orjson.loads(text)
    usage = orjson.loads(row["usage"])
    try:
        started_at = created_at(request_id)
    except ValueError:  # a hold of somebody else's making
        return None
    return OpenCall(
        request_id=request_id,
        connection_id=row["connection_id"],
        meter_id=row["meter_id"],
        provider=row["provider"],
        model=row["model"],
        endpoint=row["endpoint"],
        streamed=row["streamed"],
        held_nanos=int(plan) + int(funds),
        input_tokens=usage.get("input_tokens", 0),
        output_tokens=usage.get("output_tokens", 0),
        started_at=started_at,
    )
