"""Incremental decoders for content codings, for a reader on the side: garbage stops them, nothing is ever raised.

Flush points give their bytes at once (Google flushes gzip after each streamed element). A body may consist of several
gzip members or zstd frames, one an event (RFC 9110 §8.4, RFC 1952 §2.2, RFC 8878 §3.1).
"""

from __future__ import annotations

import zlib
from typing import Any, Protocol

import brotli
import zstandard

DECODED_BYTES_MAX = 16 << 20
"""Most bytes one call may decode to: a network read is some hundred kB at most, and honest JSON shrinks less than
100-fold."""

WINDOW_BYTES_MAX = 8 << 20
"""Largest zstd window (RFC 9659 §3 limits it to 8 MB for content coding)."""

_NOT_ENCODED = frozenset({"", "identity", "none", "utf-8", "utf8", "chunked", "8bit", "binary"})
"""What servers write of bodies that are not encoded: `none` switches a host's own compression off, the others are mistakes that
every client overlooks."""

_STEP_BYTES = 1 << 20
_ZSTD_SLICE_BYTES = 256  # four bytes may mean 128 kB (a run), so the sum is looked at often


class Decoder(Protocol):
    """Turns encoded bytes into plain ones, in any split."""

    broken: bool

    def decode(self, data: bytes) -> bytes:
        """What these bytes add; b"" for ever after the encoding broke (`broken` is then true)."""


class _Unknown:
    __slots__ = ("broken",)

    def __init__(self) -> None:
        self.broken = True

    def decode(self, data: bytes) -> bytes:
        return b""


class _Zlib:
    """gzip (wbits 31) and deflate (15, or -15 for the raw form that some servers send)."""

    __slots__ = ("_fresh", "_inner", "_seen", "_wbits", "broken")

    def __init__(self, wbits: int) -> None:
        self.broken = False
        self._wbits = wbits
        self._inner = zlib.decompressobj(wbits)
        self._fresh = True
        self._seen = b""  # the bytes of a deflate head that may turn out to be raw

    def decode(self, data: bytes) -> bytes:
        if self.broken:
            return b""
        out: list[bytes] = []
        size = 0
        more = bool(data)
        while more:
            if self._inner.eof:
                self._inner = zlib.decompressobj(self._wbits)
            try:
                piece = self._inner.decompress(data, _STEP_BYTES)
            except zlib.error:
                if self._wbits != 15 or not self._fresh:
                    self.broken = True
                    break
                self._fresh = False
                self._wbits = -15
                self._inner = zlib.decompressobj(-15)
                data = self._seen + data
                continue
            if self._fresh and len(self._seen) < 2:
                self._seen += data
            self._fresh = self._fresh and not piece
            out.append(piece)
            size += len(piece)
            if size > DECODED_BYTES_MAX:
                self.broken = True
                break
            data = self._inner.unused_data if self._inner.eof else self._inner.unconsumed_tail
            more = bool(data) or len(piece) == _STEP_BYTES  # a full step may have more to give
        return b"".join(out)


class _Brotli:
    __slots__ = ("_inner", "broken")

    def __init__(self) -> None:
        self.broken = False
        self._inner: Any = brotli.Decompressor()

    def decode(self, data: bytes) -> bytes:
        if self.broken:
            return b""
        out: list[bytes] = []
        size = 0
        try:
            while True:
                piece = self._inner.process(data, output_buffer_limit=_STEP_BYTES)
                data = b""
                out.append(piece)
                size += len(piece)
                if self._inner.can_accept_more_data() or self._inner.is_finished():
                    break
                if size > DECODED_BYTES_MAX:
                    self.broken = True
                    break
        except brotli.error:
            self.broken = True
        return b"".join(out)


class _Zstd:
    __slots__ = ("_context", "_inner", "broken")

    def __init__(self) -> None:
        self.broken = False
        self._context = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
        self._inner = self._context.decompressobj()

    def decode(self, data: bytes) -> bytes:
        if self.broken:
            return b""
        out: list[bytes] = []
        size = 0
        try:
            while data:
                if self._inner.eof:
                    self._inner = self._context.decompressobj()
                piece = self._inner.decompress(data[:_ZSTD_SLICE_BYTES])
                data = self._inner.unused_data + data[_ZSTD_SLICE_BYTES:]
                out.append(piece)
                size += len(piece)
                if size > DECODED_BYTES_MAX:
                    self.broken = True
                    break
        except zstandard.ZstdError:
            self.broken = True
        return b"".join(out)


class _Stack:
    """Several codings, as in `gzip, br`: the last named was applied last and comes off first."""

    __slots__ = ("_decoders",)

    def __init__(self, decoders: list[Decoder]) -> None:
        self._decoders = decoders

    @property
    def broken(self) -> bool:
        return any(decoder.broken for decoder in self._decoders)

    @broken.setter
    def broken(self, value: bool) -> None:
        raise AttributeError("broken is derived")

    def decode(self, data: bytes) -> bytes:
        for decoder in self._decoders:
            data = decoder.decode(data)
        return data


def decoder(content_encoding: str) -> Decoder | None:
    """A fresh decoder for a Content-Encoding header's value; None when the bytes are plain.

    An unknown coding gives a decoder that yields nothing: what cannot be read is not guessed at.
    """
    names = [name.strip().lower() for name in content_encoding.split(",")]
    decoders = [_make(name) for name in reversed(names) if name not in _NOT_ENCODED]
    if not decoders:
        return None
    return decoders[0] if len(decoders) == 1 else _Stack(decoders)


def _make(name: str) -> Decoder:
    if name in ("gzip", "x-gzip"):
        return _Zlib(31)
    if name == "deflate":
        return _Zlib(15)
    if name == "br":
        return _Brotli()
    if name == "zstd":
        return _Zstd()
    return _Unknown()
