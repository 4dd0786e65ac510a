"""The usage chunk that we ask for and the client did not: splice the option in, take the one chunk out.

OpenAI's chat and completions streams carry usage only with `stream_options.include_usage`; it then comes as one chunk
with `choices: []`. Everything else of request and response stays byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lava_proxy.wire import json_scan
from lava_proxy.wire.sse import BOUNDARY, parse_event

HELD_BYTES_MAX = 16 << 10
"""An unfinished event is held back up to this size: a usage chunk is about 500 bytes."""

_OPTION = b'"stream_options":{"include_usage":true}'
_NULL_OPTIONS = re.compile(rb'"stream_options"(\s*:\s*)null')
_OPTIONS = re.compile(rb'"stream_options"\s*:\s*\{')
_REFUSED = re.compile(rb'("stream_options"\s*:\s*\{[^{}]*?"include_usage"\s*:\s*)(?:false|null)')

_EMPTY_LIST = re.compile(rb"\[\s*\]")
_HAS_CHOICE = re.compile(rb'(?:^|[\r\n])data:[^\r\n]*?"choices"\s*:\s*\[\s*[^\s\]]')
_CR, _LF = b"\r\n"


def ask_for_usage(body: bytes, document: Mapping[str, Any]) -> bytes | None:
    """The body with `stream_options.include_usage: true`; None when it is there already or cannot be put in safely.

    `document` is the parsed body, an object that is not empty.
    """
    if "stream_options" not in document:
        brace = body.index(b"{") + 1
        return body[:brace] + _OPTION + b"," + body[brace:]
    options = document["stream_options"]
    if options is None:
        spliced = _NULL_OPTIONS.sub(_OPTION, body, count=1)
    elif not isinstance(options, dict) or options.get("include_usage") is True:
        return None
    elif "include_usage" in options:
        spliced = _REFUSED.sub(rb"\1true", body, count=1)
    else:
        comma = b"," if options else b""
        spliced = _OPTIONS.sub(lambda match: match[0] + b'"include_usage":true' + comma, body, count=1)
    # The first match may stand elsewhere (in a tool's schema, say): only the intended change is accepted.
    intended = {**document, "stream_options": {**(options or {}), "include_usage": True}}
    return spliced if json_scan.loads(spliced) == intended else None


class UsageChunkFilter:
    """Drops the first chunk with usage and no choices, whole; all other bytes pass, as soon as they may."""

    __slots__ = ("_after_cr", "_drop_lf", "_held", "_is_done", "_is_flowing", "_is_fresh", "_sent")

    def __init__(self) -> None:
        self._held = b""  # an unfinished event that may still be the one
        self._sent = b""  # the last bytes of an unfinished event that flows: its end may be split
        self._is_flowing = False
        self._is_done = False
        self._is_fresh = True
        self._after_cr = False  # an event ended in CR at the very end of the bytes: an LF may belong to it
        self._drop_lf = False

    def feed(self, data: bytes) -> bytes:
        """The bytes that may go to the client now."""
        if self._is_done and not self._drop_lf:
            return data
        if not data:
            return b""
        if self._is_fresh and not self._is_stream(data):
            return data
        prefix = b""
        if self._after_cr:
            self._after_cr = False
            if data[0] == _LF:
                prefix, data = (b"" if self._drop_lf else b"\n"), data[1:]
            self._drop_lf = False
            if self._is_done or not data:
                return prefix + data
        if not self._held and not self._is_flowing and data.endswith(b"\n\n") and _EMPTY_LIST.search(data) is None:
            return prefix + data
        return prefix + self._filter(data)

    def finish(self) -> bytes:
        """What was held back; an unfinished last event that is the usage chunk is dropped too."""
        held, self._held = self._held, b""
        if held and not self._is_done and _is_usage_chunk(held):
            self._is_done = True
            return b""
        return held

    def _is_stream(self, data: bytes) -> bool:
        """A body that is no event stream (JSON, something encoded) passes whole."""
        first = data.lstrip(b" \t\r\n\xef\xbb\xbf")[:1]
        if first:
            self._is_fresh = False
            self._is_done = first not in (b"d", b"e", b"i", b"r", b":")
        return not self._is_done

    def _filter(self, data: bytes) -> bytes:
        # What was already sent of a flowing event is looked at again for its end, but not sent again.
        out = bytearray()
        skip = len(self._sent)
        data = self._sent + self._held + data
        self._held = self._sent = b""
        start = 0
        for boundary in BOUNDARY.finditer(data):
            end = boundary.end()
            if end <= skip:
                continue
            if not self._is_flowing and _is_usage_chunk(data[start:end]):
                self._is_done = True
                self._drop_lf = self._after_cr = end == len(data) and data[-1] == _CR
                return bytes(out + data[end:])
            out += data[max(start, skip) : end]
            self._is_flowing = False
            start = end
            skip = 0
        rest = data[start:]
        if not rest:
            self._after_cr = data[-1] == _CR
        elif self._is_flowing or len(rest) > HELD_BYTES_MAX or _HAS_CHOICE.search(rest):
            out += data[max(start, skip) :]
            self._is_flowing = True
            self._sent = rest[-3:]
        else:
            self._held = rest
        return bytes(out)


def _is_usage_chunk(event: bytes) -> bool:
    if _EMPTY_LIST.search(event) is None or b'"usage"' not in event:
        return False
    _, data = parse_event(event)
    chunk = json_scan.loads(data)
    return isinstance(chunk, dict) and chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict)
