"""How a page is made: templates, the icons and formats they use, and the headers that protect every page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any

from aiohttp import hdrs, web
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lava_proxy.domain.money import format_usd
from lava_proxy.web.assets import Assets

THEME_COOKIE = "lava_theme"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'{action}; base-uri 'none'; frame-src 'self'; frame-ancestors {ancestors}"
)


class Pages:
    """Renders templates of `web/templates`. Every page gets `asset`, `icon`, `usd`, `when`, `theme` and what the caller gives."""

    def __init__(self, assets: Assets) -> None:
        self._environment = Environment(
            loader=PackageLoader("lava_proxy.web"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self._environment.globals.update(asset=assets.url, icon=icon, pairs=pairs)
        self._environment.filters.update(usd=usd, money=money, when=when, number=number)

    def text(self, template: str, **values: Any) -> str:
        """A template as text; a name it misses is an error."""
        return self._environment.get_template(template).render(values)

    def page(
        self,
        request: web.Request,
        template: str,
        values: Mapping[str, Any],
        *,
        status: int = 200,
        frame_ancestors: str = "'none'",
        form_target: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> web.Response:
        """A page as an answer. `frame_ancestors` is the one origin that may embed it, where one may; `form_target` another
        origin to which its forms may lead.
        """
        text = self.text(template, theme=theme_of(request), path=request.path, **values)
        found = {
            "Content-Security-Policy": _POLICY.format(ancestors=frame_ancestors, action=form_target and f" {form_target}"),
            "Referrer-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
            hdrs.CACHE_CONTROL: "no-store",
            **(headers or {}),
        }
        return web.Response(text=text, status=status, content_type="text/html", headers=found)


def theme_of(request: web.Request) -> str:
    """light, dark or auto: what the visitor chose, else what the device says (decided by the page's script)."""
    chosen = request.cookies.get(THEME_COOKIE, "auto")
    return chosen if chosen in ("light", "dark") else "auto"


@cache
def icon(name: str, label: str = "") -> Markup:
    """An inline icon of `web/icons`; with a label it speaks, without one it is decoration. FileNotFoundError if there is none."""
    paths = resources.files("lava_proxy.web").joinpath(f"icons/{name}.svg").read_text()
    said = Markup('role="img" aria-label="{}"').format(label) if label else Markup('aria-hidden="true"')
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="icon" width="20" height="20" viewBox="0 0 24 24" fill="none" '
        'stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round" {}>{}</svg>'
    ).format(said, Markup(paths))


def usd(nanos: int | None, places: int = 2) -> str:
    """Dollars with at least `places` places and no digit lost; a dash for what is not known."""
    if nanos is None:
        return "–"
    whole, _, fraction = format_usd(abs(nanos), 9).partition(".")
    fraction = fraction.rstrip("0").ljust(places, "0")
    return f"{'-' if nanos < 0 else ''}${int(whole):,}.{fraction}" if fraction else f"{'-' if nanos < 0 else ''}${int(whole):,}"


def money(nanos: int | None) -> str:
    """Dollars to read in a list: cents from $1 on, six places below it, rounded."""
    if nanos is None:
        return "–"
    sign = "-" if nanos < 0 else ""
    if 0 < abs(nanos) < 500:
        return f"{sign}<$0.000001"
    places = 2 if not nanos or abs(nanos) >= 1_000_000_000 else 6
    whole, _, fraction = format_usd(abs(nanos), places).partition(".")
    return f"{sign}${int(whole):,}.{fraction}"


def pairs(values: Iterable[str]) -> list[tuple[str, str]]:
    """Choices whose text is their value."""
    return [(value, value) for value in values]


def number(value: int | None) -> str:
    """Digits in groups of three; a dash for what is not known."""
    return "–" if value is None else f"{value:,}"


def when(at: datetime | None) -> Markup:
    """A <time> that a script shows in the reader's own zone; UTC without one."""
    if at is None:
        return Markup("–")
    utc = at.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        utc.isoformat().replace("+00:00", "Z"), utc.strftime("%Y-%m-%d %H:%M:%S UTC")
    )
