"""GET /: a page for people that says how this installation does. No merchant's data, no script, no sign-in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from importlib import resources

from aiohttp import hdrs, web
from jinja2 import Environment, PackageLoader, StrictUndefined

from lava_proxy.api.formats import timestamp
from lava_proxy.stores.engine_health import Health

Home = Callable[[web.Request], Awaitable[web.Response | None]]
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class StatusPage:
    """Rendered on the server from one template; the stylesheet is read once."""

    def __init__(
        self,
        health: Health,
        *,
        started_at: datetime,
        price_version: str,
        links: Mapping[str, str],
        first_call: str | None,
        home: Home | None = None,
    ) -> None:
        """`links`: label -> address or any short fact; `first_call`: a command to paste, shown as it is.

        `home` may answer instead: the signed-in are led to their dashboard.
        """
        self._health = health
        self._home = home
        self._facts = {"Running since": timestamp(started_at), "Price list": price_version}
        self._links = dict(links)
        self._first_call = first_call
        environment = Environment(
            loader=PackageLoader("lava_proxy.api"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self._template = environment.get_template("status.html")
        self._stylesheet = resources.files("lava_proxy.api").joinpath("templates/status.css").read_bytes()

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/", self.page), web.get("/static/status.css", self.stylesheet)]

    async def page(self, request: web.Request) -> web.Response:
        elsewhere = await self._home(request) if self._home is not None else None
        if elsewhere is not None:
            return elsewhere
        report = await self._health.report()
        text = self._template.render(report=report, facts=self._facts, links=self._links, first_call=self._first_call)
        return web.Response(text=text, content_type="text/html", headers=_HEADERS)

    async def stylesheet(self, request: web.Request) -> web.Response:
        headers = {hdrs.CACHE_CONTROL: "public, max-age=300"}
        return web.Response(body=self._stylesheet, content_type="text/css", charset="utf-8", headers=headers)
