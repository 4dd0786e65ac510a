"""All pages, put together; added to the control plane's application beside the REST API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, cast

from aiohttp import web

from lava_proxy.domain.errors import LavaError
from lava_proxy.web.api_reference import ApiReference
from lava_proxy.web.assets import Assets
from lava_proxy.web.dashboard.dashboard import Dashboard, DashboardDependencies
from lava_proxy.web.docs import Docs
from lava_proxy.web.pages import Pages

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """The pages for people. `api_document` is the API's OpenAPI document, for its reference; `dashboard`: what that needs."""

    def __init__(self, api_document: Mapping[str, Any], dashboard: DashboardDependencies | None = None) -> None:
        self._assets = Assets()
        self._pages = Pages(self._assets)
        self._reference = ApiReference(self._pages, api_document)
        self._dashboard = Dashboard(self._pages, dashboard) if dashboard is not None else None

    def routes(self) -> list[web.RouteDef]:
        # The reference before the guides, whose pattern would take its address.
        dashboard = self._dashboard.routes() if self._dashboard is not None else []
        guarded = [*self._reference.routes(), *Docs(self._pages).routes(), *dashboard]
        return [*self._assets.routes(), *self._guarded(guarded)]

    async def home(self, request: web.Request) -> web.Response | None:
        """Where `/` leads the signed-in; None for everybody else."""
        if self._dashboard is None or not await self._dashboard.is_signed_in(request):
            return None
        return web.Response(status=303, headers={"Location": "/dashboard", "Cache-Control": "no-store"})

    def _guarded(self, routes: Iterable[web.RouteDef]) -> list[web.RouteDef]:
        """The same routes, whose refusals are pages: the API's error envelope is for programs."""
        return [web.route(route.method, route.path, self._told(cast(Handler, route.handler))) for route in routes]

    def _told(self, handler: Handler) -> Handler:
        async def run(request: web.Request) -> web.StreamResponse:
            try:
                return await handler(request)
            except LavaError as error:
                response = self._failure(request, error.status, error.message)
                if error.status in (429, 503):
                    response.headers["Retry-After"] = str(getattr(error, "retry_after_s", None) or 1)
                return response
            except web.HTTPNotFound:
                return self._failure(request, 404, "There is nothing at this address.")

        return run

    def _failure(self, request: web.Request, status: int, sentence: str) -> web.Response:
        return self._pages.page(request, "failure.html", {"status": status, "sentence": sentence}, status=status)
