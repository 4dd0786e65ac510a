"""How long a recording is, read from its file's headers: WAV, FLAC, MP3, Ogg (Opus, Vorbis) and MP4/M4A.

Nothing is decoded. Sources: RIFF WAVE (Microsoft, 1994), RFC 9639 §8.2 (FLAC), ISO 11172-3 §2.4.1.3 and ID3v2.4 §3.1
(MP3), RFC 3533 §6 and RFC 7845 §5.1 (Ogg Opus), ISO 14496-12 §8.2.2 (MP4).
"""

from __future__ import annotations

from decimal import Decimal

SECONDS_MAX = 1_000_000
"""Longer than any file that a provider takes; a header that says more is nonsense."""

_UNKNOWN_BYTES = (0, 0xFFFFFFFF)  # of a WAV that was written to a pipe
_CHUNKS_MAX = 64
_TICK = Decimal("0.000001")

_MPEG1_KBITS = {
    1: (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_MPEG2_KBITS = {
    1: (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    3: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG1_HERTZ = (44_100, 48_000, 32_000)


def audio_seconds(audio: bytes | memoryview) -> Decimal | None:
    """The length in seconds, to the microsecond; None when the form is not known or its headers make no sense."""
    head = bytes(audio[:4096])
    fraction: tuple[int, int] | None = None
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        fraction = _wav(audio)
    elif head[:4] == b"fLaC":
        fraction = _flac(head)
    elif head[:4] == b"OggS":
        fraction = _ogg(head, bytes(audio[-65_536:]))
    elif head[4:8] == b"ftyp":
        fraction = _mp4(audio)
    elif head[:3] == b"ID3" or (head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE0 == 0xE0):
        fraction = _mp3(audio)
    if fraction is None or fraction[1] <= 0 or not 0 < fraction[0] <= fraction[1] * SECONDS_MAX:
        return None
    return (Decimal(fraction[0]) / fraction[1]).quantize(_TICK).normalize()


def _wav(audio: bytes | memoryview) -> tuple[int, int] | None:
    bytes_per_second, position = 0, 12
    for _ in range(_CHUNKS_MAX):
        head = bytes(audio[position : position + 24])
        if len(head) < 8:
            return None
        size = int.from_bytes(head[4:8], "little")
        if head[:4] == b"fmt ":
            bytes_per_second = int.from_bytes(head[16:20], "little")
        elif head[:4] == b"data":
            rest = len(audio) - position - 8
            return (rest if size in _UNKNOWN_BYTES else min(size, rest)), bytes_per_second
        position += 8 + size + (size & 1)
    return None


def _flac(head: bytes) -> tuple[int, int] | None:
    packed = int.from_bytes(head[18:26], "big")  # 20 bits Hz, 3 channels, 5 sample size, 36 samples
    samples = packed & ((1 << 36) - 1)
    return (samples, packed >> 44) if samples else None


def _ogg(head: bytes, tail: bytes) -> tuple[int, int] | None:
    last = tail.rfind(b"OggS")
    samples = int.from_bytes(tail[last + 6 : last + 14], "little")
    if last < 0 or samples >= 1 << 62:
        return None
    opus, vorbis = head.find(b"OpusHead"), head.find(b"\x01vorbis")
    if opus >= 0:
        return samples - int.from_bytes(head[opus + 10 : opus + 12], "little"), 48_000
    if vorbis >= 0:
        return samples, int.from_bytes(head[vorbis + 12 : vorbis + 16], "little")
    return None


def _mp3(audio: bytes | memoryview) -> tuple[int, int] | None:
    position = 0
    head = bytes(audio[:10])
    if head[:3] == b"ID3" and len(head) == 10:
        position = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    frame = bytes(audio[position : position + 256])
    if len(frame) < 4 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return None
    version, layer = frame[1] >> 3 & 3, 4 - (frame[1] >> 1 & 3)
    rate, hertz = frame[2] >> 4, frame[2] >> 2 & 3
    if version == 1 or layer == 4 or rate in (0, 15) or hertz == 3:
        return None
    kbits = (_MPEG1_KBITS if version == 3 else _MPEG2_KBITS)[layer][rate]
    frequency = _MPEG1_HERTZ[hertz] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 384 if layer == 1 else 1152 if layer == 2 or version == 3 else 576
    for mark in (b"Xing", b"Info"):  # the frame count of a variable bit rate
        found = frame.find(mark)
        if found >= 0 and len(frame) >= found + 12 and frame[found + 7] & 1:
            return int.from_bytes(frame[found + 8 : found + 12], "big") * samples, frequency
    return (len(audio) - position) * 8, kbits * 1000


def _mp4(audio: bytes | memoryview) -> tuple[int, int] | None:
    """The duration of the movie header, which stands at the start or the end of the file."""
    movie = _box(audio, 0, len(audio), b"moov")
    header = None if movie is None else _box(audio, movie[0], movie[1], b"mvhd")
    if header is None:
        return None
    body = bytes(audio[header[0] : header[0] + 32])
    if len(body) < 32:
        return None
    if body[0] == 1:
        return int.from_bytes(body[24:32], "big"), int.from_bytes(body[20:24], "big")
    return int.from_bytes(body[16:20], "big"), int.from_bytes(body[12:16], "big")


def _box(audio: bytes | memoryview, position: int, end: int, name: bytes) -> tuple[int, int] | None:
    for _ in range(_CHUNKS_MAX):
        head = bytes(audio[position : position + 16])
        if len(head) < 8 or position >= end:
            return None
        size, body = int.from_bytes(head[:4], "big"), position + 8
        if size == 1:
            size, body = int.from_bytes(head[8:16], "big"), position + 16
        elif size == 0:
            size = end - position
        if head[4:8] == name:
            return body, min(position + size, end)
        if size < 8:
            return None
        position += size
    return None
