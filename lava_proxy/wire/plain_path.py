"""A URL's path as servers may take it, which are kinder than the text: what a check looks at, never what is sent."""

from __future__ import annotations

import re
from urllib.parse import unquote

_DECODINGS_MAX = 3
_PARAMETERS = re.compile(r";[^/\\]*")
_SLASHES = re.compile(r"[/\\]+")
_END = re.compile(r"[?#\0]")
_DOT_SEGMENT = re.compile(r"(?:^|[/\\])\.{1,2}(?:[/\\;]|$)")


def plain_path(path: str) -> str:
    """Without escapes, segments' parameters, doubled slashes, space at its end and what a later decoding would cut off."""
    return _SLASHES.sub("/", _PARAMETERS.sub("", _END.split(_decoded(path), maxsplit=1)[0])).rstrip("/ \t\r\n.")


def has_dot_segment(path: str) -> bool:
    """Is there a `.` or `..` in it, however it is written? A server may leave the folder that a path seems to be in."""
    return _DOT_SEGMENT.search(_decoded(path)) is not None


def _decoded(path: str) -> str:
    for _ in range(_DECODINGS_MAX):
        path, before = unquote(path), path
        if path == before:
            break
    return path
