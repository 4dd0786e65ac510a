"""/dashboard: how the business does."""

from __future__ import annotations

from aiohttp import web

from lava_proxy.web.dashboard.frame import View


class Overview:
    """The first page."""

    def __init__(self, view: View) -> None:
        self._view = view

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/dashboard", self.page)]

    async def page(self, request: web.Request) -> web.StreamResponse:
        return self._view.page(request, "overview.html", "")
