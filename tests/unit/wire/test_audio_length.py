"""B2: the length of a recording from its headers, made by hand after the formats' specifications."""

from __future__ import annotations

import struct
from decimal import Decimal

import pytest

from lava_proxy.wire.audio_length import audio_seconds

RATE = 8_000


def wav(data_bytes: int, claimed: int | None = None) -> bytes:
    form = struct.pack("<HHIIHH", 1, 1, RATE, RATE * 2, 2, 16)
    size = data_bytes if claimed is None else claimed
    extra = b"LIST" + struct.pack("<I", 3) + b"abc\x00"
    return (
        b"RIFF\x00\x00\x00\x00WAVE"
        + b"fmt "
        + struct.pack("<I", 16)
        + form
        + extra
        + b"data"
        + struct.pack("<I", size)
        + b"\x01" * data_bytes
    )


def flac(samples: int) -> bytes:
    packed = (44_100 << 44) | (1 << 41) | (15 << 36) | samples
    return b"fLaC\x80\x00\x00\x22" + b"\x00" * 10 + packed.to_bytes(8, "big") + b"\x00" * 16


def ogg(kind: bytes, granule: int) -> bytes:
    def page(position: int, content: bytes) -> bytes:
        return b"OggS\x00\x00" + position.to_bytes(8, "little") + b"\x00" * 12 + b"\x01" + bytes([len(content)]) + content

    return page(0, kind) + page(granule, b"x" * 50)


OPUS = b"OpusHead\x01\x01" + struct.pack("<HIH", 312, 48_000, 0) + b"\x00"
VORBIS = b"\x01vorbis" + struct.pack("<IBI", 0, 2, 22_050) + b"\x00" * 14


def mp3(head: bytes, length: int, mark: bytes = b"") -> bytes:
    return head + b"\x00" * 32 + mark + b"\x00" * (length - len(head) - 32 - len(mark))


def mp4(duration: int, *, version: int = 0, before: bytes = b"") -> bytes:
    times = struct.pack(">IIII", 0, 0, 600, duration) if version == 0 else struct.pack(">QQIQ", 0, 0, 600, duration)
    header = bytes([version, 0, 0, 0]) + times + b"\x00" * 80
    movie = struct.pack(">I", 16 + len(header)) + b"moov" + struct.pack(">I", 8 + len(header)) + b"mvhd" + header
    return b"\x00\x00\x00\x10ftypM4A \x00\x00\x00\x00" + before + movie


MPEG1_128K = b"\xff\xfb\x90\x00"  # layer III, 44.1 kHz, 128 kbit/s
MPEG2_64K = b"\xff\xf3\x80\x00"  # 22.05 kHz, 64 kbit/s
ID3 = b"ID3\x04\x00\x00\x00\x00\x00\x14" + b"\x00" * 20


@pytest.mark.parametrize(
    "audio, seconds",
    [
        (wav(RATE * 4), "2"),
        (wav(RATE * 3, claimed=0xFFFFFFFF), "1.5"),
        (wav(RATE * 2, claimed=0), "1"),
        (wav(RATE * 2, claimed=10**9), "1"),
        (flac(44_100 * 90), "90"),
        (ogg(OPUS, 48_000 * 12 + 312), "12"),
        (ogg(VORBIS, 22_050 * 3), "3"),
        (mp3(MPEG1_128K, 16_000), "1"),
        (mp3(MPEG2_64K, 8_000), "1"),
        (ID3 + mp3(MPEG1_128K, 32_000), "2"),
        (mp3(MPEG1_128K, 16_000, b"Xing\x00\x00\x00\x01" + struct.pack(">I", 1_000)), "26.122449"),
        (mp4(600 * 61), "61"),
        (mp4(600 * 7, version=1, before=struct.pack(">I", 1_008) + b"mdat" + b"\x00" * 1_000), "7"),
    ],
)
def test_the_length_is_read(audio: bytes, seconds: str) -> None:
    """B2"""
    assert audio_seconds(audio) == Decimal(seconds)
    assert audio_seconds(memoryview(audio)) == Decimal(seconds)


@pytest.mark.parametrize(
    "audio",
    [
        b"",
        b"RIFF",
        b"\x1aE\xdf\xa3webm",
        b"\xff",
        b"ID3",
        b"hello",
        flac(0),
        wav(0),
        mp4(0),
        ogg(b"speex", 9),
        b"\xff\xff\xff\xff" * 9,
    ],
)
def test_what_cannot_be_read_has_no_length(audio: bytes) -> None:
    assert audio_seconds(audio) is None


@pytest.mark.parametrize("audio", [wav(64), flac(9), ogg(OPUS, 9_000), ID3 + mp3(MPEG1_128K, 400), mp4(600)])
def test_a_cut_or_spoiled_file_never_raises(audio: bytes) -> None:
    for position in range(len(audio)):
        audio_seconds(audio[:position])
        audio_seconds(audio[:position] + b"\xff" + audio[position + 1 :])
        audio_seconds(audio[:position] + b"\x00" + audio[position + 1 :])
