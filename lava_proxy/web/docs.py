"""GET /docs and /docs/{guide}: the Markdown guides of `web/guides` as pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources

from aiohttp import web
from markdown_it import MarkdownIt
from markupsafe import Markup

from lava_proxy.web.pages import Pages

_HEADING = re.compile(r"<h([23])>(.*?)</h\1>")
_TAG = re.compile(r"<[^>]+>")
_FILE_LINK = re.compile(r'href="[0-9]{2}-([a-z0-9-]+)\.md(#[^"]*)?"')  # how guides name each other, so that files link too


@dataclass(frozen=True, slots=True)
class Guide:
    """One page: `slug` is its address under /docs; `sections` are (anchor, title) of its second-level headings."""

    slug: str
    title: str
    html: Markup
    sections: tuple[tuple[str, str], ...]


class Docs:
    """The guides, read and rendered once. Their files are named NN-slug.md; the number is their order."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        folder = resources.files("lava_proxy.web").joinpath("guides")
        names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".md"))
        markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
        guides = [_guide(name, folder.joinpath(name).read_text(), markdown) for name in names]
        self._guides = {guide.slug: guide for guide in guides}

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/docs", self.index), web.get("/docs/{guide}", self.one)]

    async def index(self, request: web.Request) -> web.Response:
        """The first guide is the way in."""
        return self._answer(request, next(iter(self._guides.values())))

    async def one(self, request: web.Request) -> web.Response:
        guide = self._guides.get(request.match_info["guide"])
        if guide is None:
            raise web.HTTPNotFound
        return self._answer(request, guide)

    def _answer(self, request: web.Request, guide: Guide) -> web.Response:
        return self._pages.page(request, "docs.html", {"guide": guide, "guides": list(self._guides.values())})


def _guide(name: str, text: str, markdown: MarkdownIt) -> Guide:
    slug = name.partition("-")[2].removesuffix(".md")
    html, sections = _with_anchors(_FILE_LINK.sub(r'href="/docs/\1\2"', markdown.render(text)))
    title = text.lstrip().partition("\n")[0].lstrip("# ").strip()
    return Guide(slug, title, Markup(html), sections)


def _with_anchors(html: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Headings get ids, so that a section can be linked to."""
    sections: list[tuple[str, str]] = []
    seen: set[str] = set()

    def anchored(match: re.Match[str]) -> str:
        level, inner = match.group(1), match.group(2)
        title = _TAG.sub("", inner)
        anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        while anchor in seen:
            anchor += "-"
        seen.add(anchor)
        if level == "2":
            sections.append((anchor, title))
        return f'<h{level} id="{anchor}">{inner}</h{level}>'

    return _HEADING.sub(anchored, html), tuple((anchor, str(Markup(title).unescape())) for anchor, title in sections)
