"""Content codings: every coding, every split, several members, garbage, bombs."""

from __future__ import annotations

import gzip
import zlib

import brotli
import pytest
import zstandard

from lava_proxy.wire.content_coding import DECODED_BYTES_MAX, decoder

TEXT = b'data: {"usage":{"prompt_tokens":12}}\n\n' * 40


def _raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


ENCODED = {
    "gzip": gzip.compress(TEXT),
    "x-gzip": gzip.compress(TEXT),
    "deflate": zlib.compress(TEXT),
    "deflate raw": _raw_deflate(TEXT),
    "br": brotli.compress(TEXT),
    "zstd": _zstd(TEXT),
    "gzip members": b"".join(gzip.compress(TEXT[start : start + 100]) for start in range(0, len(TEXT), 100)),
    "zstd frames": b"".join(_zstd(TEXT[start : start + 100]) for start in range(0, len(TEXT), 100)),
    "gzip, br": brotli.compress(gzip.compress(TEXT)),
}


@pytest.mark.parametrize("name", ENCODED)
def test_every_coding_decodes_in_any_split(name: str) -> None:
    """J3: one zstd frame an event and multi-member gzip included."""
    encoded = ENCODED[name]
    coding = name if "," in name else name.split()[0]
    for step in (1, 2, 3, 17, len(encoded)):
        decoding = decoder(coding)
        assert decoding is not None
        pieces = [decoding.decode(encoded[start : start + step]) for start in range(0, len(encoded), step)]
        assert b"".join(pieces) == TEXT
        assert not decoding.broken


def test_a_flush_point_gives_its_bytes_at_once() -> None:
    compressor = zlib.compressobj(wbits=31)
    decoding = decoder("gzip")
    assert decoding is not None
    for part in (b"[{1}", b",{2}", b"]"):
        assert decoding.decode(compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH)) == part


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "snappy"])
def test_garbage_stops_the_decoder_and_raises_nothing(coding: str) -> None:
    decoding = decoder(coding)
    assert decoding is not None
    decoding.decode(b"\xfenot encoded at all" * 20)
    assert decoding.broken
    assert decoding.decode(gzip.compress(b"x")) == b""


def test_what_was_decoded_before_the_garbage_is_kept() -> None:
    decoding = decoder("gzip")
    assert decoding is not None
    assert decoding.decode(gzip.compress(TEXT) + b"garbage") == TEXT


@pytest.mark.parametrize(
    "coding, bomb",
    [
        ("gzip", gzip.compress(bytes(64 << 20), 1)),
        ("br", brotli.compress(bytes(64 << 20), quality=1)),
        ("zstd", _zstd(bytes(64 << 20))),
    ],
)
def test_a_bomb_is_cut_short(coding: str, bomb: bytes) -> None:
    decoding = decoder(coding)
    assert decoding is not None
    assert len(decoding.decode(bomb)) <= DECODED_BYTES_MAX + (8 << 20)
    assert decoding.broken


def test_plain_bytes_need_no_decoder() -> None:
    assert decoder("") is None
    assert decoder("identity") is None
