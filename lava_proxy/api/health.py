"""Liveness, readiness and the scrape: GET /healthz, /readyz, /metrics. None needs a key; none tells of a merchant."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST

from lava_proxy.api.envelope import json_response
from lava_proxy.stores.engine_health import Health


class HealthPages:
    """The three addresses that machines ask."""

    def __init__(self, health: Health, metrics: Callable[[], bytes], price_version: str) -> None:
        self._health = health
        self._metrics = metrics
        self._price_version = price_version

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/healthz", self.alive), web.get("/readyz", self.ready), web.get("/metrics", self.exposition)]

    async def alive(self, request: web.Request) -> web.Response:
        """This process answers; nothing else is asked."""
        return json_response({"status": "ok"})

    async def ready(self, request: web.Request) -> web.Response:
        """200 while calls can be billed, also when Postgres is away; else 503."""
        report = await self._health.report()
        headers: dict[str, str] = {} if report.is_ready else {hdrs.RETRY_AFTER: "1"}
        body = report.as_dict() | {"price_version": self._price_version}
        return json_response(body, 200 if report.is_ready else 503, headers)

    async def exposition(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})
