"""Static files, read once. Their addresses carry their content's hash: browsers keep them for ever."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from aiohttp import hdrs, web

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
}
_GZIP_LEVEL = 9


@dataclass(frozen=True, slots=True)
class Asset:
    """One file: `url` is its address; `packed` is its gzip form."""

    url: str
    media_type: str
    content: bytes
    packed: bytes


class Assets:
    """All files under `static/`, in memory."""

    def __init__(self) -> None:
        root = resources.files("lava_proxy.web").joinpath("static")
        self._assets = {name: _asset(name, file.read_bytes()) for name, file in _files(root, "")}
        self._by_url = {asset.url: asset for asset in self._assets.values()}

    def url(self, name: str) -> str:
        """The address of a file by its name under `static/`, such as "vendor/htmx.min.js"; KeyError for a name that is none."""
        return self._assets[name].url

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/static/{digest}/{name:.+}", self.file)]

    async def file(self, request: web.Request) -> web.Response:
        asset = self._by_url.get(request.path)
        if asset is None:
            raise web.HTTPNotFound
        headers = {
            hdrs.CONTENT_TYPE: asset.media_type,
            hdrs.CACHE_CONTROL: "public, max-age=31536000, immutable",
            hdrs.VARY: hdrs.ACCEPT_ENCODING,
        }
        if "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
            return web.Response(body=asset.packed, headers={**headers, hdrs.CONTENT_ENCODING: "gzip"})
        return web.Response(body=asset.content, headers=headers)


def _files(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        elif _suffix(entry.name) in _TYPES:
            yield prefix + entry.name, entry


def _asset(name: str, content: bytes) -> Asset:
    digest = hashlib.sha256(content).hexdigest()[:12]
    return Asset(f"/static/{digest}/{name}", _TYPES[_suffix(name)], content, gzip.compress(content, _GZIP_LEVEL, mtime=0))


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2]
