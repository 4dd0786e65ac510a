"""How often a key may ask the REST API: a thousand times a minute, told in X-RateLimit headers on every answer."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from lava_proxy.api.authentication import caller_hash
from lava_proxy.api.envelope import Handler
from lava_proxy.domain.errors import LimitExceeded
from lava_proxy.stores.call_counts import WINDOW_S, CallCounts

REQUESTS_PER_MINUTE = 1000
_HEADERS: web.RequestKey[dict[str, str]] = web.RequestKey("rate_limit_headers", dict[str, str])


def rate_limit(counts: CallCounts, limit: int = REQUESTS_PER_MINUTE, clock: Callable[[], float] = time.time) -> Middleware:
    """A middleware behind `authentication`. Raises LimitExceeded (429) above the limit.

    When the counters cannot be read the request is let through, without headers: nothing is charged here.
    """

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        caller = caller_hash(request)
        if caller is None:
            return await handler(request)
        now_s = int(clock())
        counted = await counts.count(caller, now_s)
        if counted is None:
            return await handler(request)
        reset_s = (now_s // WINDOW_S + 1) * WINDOW_S
        request[_HEADERS] = {
            "X-RateLimit-Limit": str(limit),
            "X-RateLimit-Remaining": str(max(0, limit - counted)),
            "X-RateLimit-Reset": str(reset_s),
        }
        if counted > limit:
            raise LimitExceeded(
                f"More than {limit} requests in a minute with this key; the next minute starts in {reset_s - now_s} s.",
                code="rate_limited", limit=limit, retry_after_s=reset_s - now_s, reset_s=reset_s,
            )  # fmt: skip
        return await handler(request)

    return count


async def add_rate_limit_headers(request: web.Request, response: web.StreamResponse) -> None:
    """For every answer, refusals included, to a request that was counted."""
    response.headers.update(request.get(_HEADERS, {}))
