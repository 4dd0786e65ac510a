"""Recorded responses changed in ways that a provider may change them: what is read of them must not change with it.

The recordings are read in place (see test_meters.py) and changed in memory. `--all-mutations` cuts them at every event; without it
a few places of each are drawn by the recording's name.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import brotli
import pytest
import zstandard

from lava_proxy.domain.usage import Provenance, Reading
from lava_proxy.providers.registry import Registry
from lava_proxy.wire.content_coding import decoder
from tests.conformance.test_meters import ALL, PATHS, RECORDINGS, Recording, _inspected, _read, registry

__all__ = ["registry"]

pytestmark = pytest.mark.skipif(not PATHS, reason=f"RECORDINGS MISSING: {RECORDINGS} has none; nothing was checked")

CUTS = 12
"""Places at which a stream is cut in the short form."""

OPTIONAL = frozenset(
    {"system_fingerprint", "created", "created_at", "obfuscation", "logprobs", "index", "native_finish_reason", "provider",
     "object", "stop_sequence", "safetyRatings", "avgLogprobs", "citations", "parallel_tool_calls", "user", "store", "truncation"}
)  # fmt: skip
"""Members that some answers of an API have and others lack, and that no count depends on."""

UNKNOWN = b'event: thing.new\ndata: {"type":"thing.new","object":"thing","index":3,"n":[{"text":5}]}\n\n'


def _plain(recording: Recording) -> Recording:
    """Without its content coding."""
    decoding = decoder(recording.content_encoding)
    if decoding is None:
        return recording
    return replace(recording, body=decoding.decode(recording.body), content_encoding="")


def _is_sse(recording: Recording) -> bool:
    return recording.status == 200 and "event-stream" in recording.content_type


def _newlines(body: bytes) -> bytes:
    return body.replace(b"\r\n", b"\n")


PLAIN = [_plain(recording) for recording in ALL]
SSE = [replace(recording, body=_newlines(recording.body)) for recording in PLAIN if _is_sse(recording)]
JSON = [recording for recording in PLAIN if recording.status == 200 and recording.body[:1] in (b"{", b"[")]
WITH_USAGE = [recording for recording in PLAIN if recording.expected is not None]


def _same(registry: Registry, recording: Recording, changed: Recording) -> None:
    before, after = _read(registry, recording, [recording.body]), _read(registry, changed, [changed.body])
    assert (after.usage, after.provenance, after.error) == (before.usage, before.provenance, before.error)


def _ids(recordings: list[Recording]) -> Any:
    return pytest.mark.parametrize("recording", recordings, ids=lambda recording: recording.name)


REFRAMINGS: dict[str, Callable[[bytes], bytes]] = {
    "crlf": lambda body: body.replace(b"\n", b"\r\n"),
    "cr": lambda body: body.replace(b"\n", b"\r"),
    "bom": lambda body: b"\xef\xbb\xbf" + body,
    "comments": lambda body: b": x\n\n" + body.replace(b"\n\n", b"\n\n: keep-alive\n\n"),
    "fields": lambda body: body.replace(b"data: ", b"id: 1\nretry: 10\ndata: "),
    "no blank": lambda body: body.replace(b"data: ", b"data:").replace(b"event: ", b"event:"),
    "no last blank line": lambda body: body.rstrip(b"\n"),
    "unknown events": lambda body: UNKNOWN + body.replace(b"\n\n", b"\n\n" + UNKNOWN, 3),
}


@_ids(SSE)
def test_an_event_stream_framed_otherwise_is_read_alike(registry: Registry, recording: Recording) -> None:
    """A20: all that the format allows, and events that nobody knows."""
    for name, change in REFRAMINGS.items():
        try:
            _same(registry, recording, replace(recording, body=change(recording.body)))
        except AssertionError as error:
            raise AssertionError(name) from error


@_ids([recording for recording in PLAIN if recording.status == 200])
def test_an_answer_encoded_otherwise_is_read_alike(registry: Registry, recording: Recording) -> None:
    """A20: each coding, whole, and flushed or begun anew at each event."""
    pieces = [piece + b"\n\n" for piece in recording.body.split(b"\n\n")]
    pieces[-1] = pieces[-1][:-2]
    if len(pieces) > 200:  # a coding's start for each of thousands of events is slow, and shows nothing more
        pieces = [b"".join(pieces[start : start + 50]) for start in range(0, len(pieces), 50)]
    for coding, body in _encoded(recording.body, pieces):
        _same(registry, recording, replace(recording, body=body, content_encoding=coding))


def _encoded(body: bytes, pieces: list[bytes]) -> Iterator[tuple[str, bytes]]:
    yield "deflate", zlib.compress(body, 1)
    yield "br", brotli.compress(body, quality=1)
    yield "gzip", b"".join(gzip.compress(piece, 1) for piece in pieces)
    flushing = zlib.compressobj(1, zlib.DEFLATED, 31)
    yield "x-gzip", b"".join(flushing.compress(piece) + flushing.flush(zlib.Z_SYNC_FLUSH) for piece in pieces) + flushing.flush()
    streaming = brotli.Compressor(quality=1)
    yield "br", b"".join(streaming.process(piece) + streaming.flush() for piece in pieces) + streaming.finish()
    yield "zstd", b"".join(zstandard.ZstdCompressor(level=1).compress(piece) for piece in pieces)


def _rewritten(body: bytes, change: Callable[[Any], Any]) -> bytes:
    """The same body with each JSON value in it changed and written anew: a document, an array, or the data of events."""
    if body[:1] in (b"{", b"["):
        try:
            return json.dumps(change(json.loads(body)), separators=(",", ":")).encode()
        except ValueError:  # lines of JSON
            return b"\n".join(_line(line, change) for line in body.split(b"\n"))
    return b"\n".join(
        b"data: " + _line(line[5:].strip(), change) if line.startswith(b"data:") else line for line in _newlines(body).split(b"\n")
    )


def _line(line: bytes, change: Callable[[Any], Any]) -> bytes:
    try:
        return json.dumps(change(json.loads(line)), separators=(",", ":")).encode()
    except ValueError:
        return line


def _mapped(value: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    if isinstance(value, dict):
        return change({key: _mapped(item, change) for key, item in value.items()})
    return [_mapped(item, change) for item in value] if isinstance(value, list) else value


REWRITINGS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "keys reversed": lambda members: {key: members[key] for key in reversed(members)},
    "keys sorted": lambda members: {key: members[key] for key in sorted(members)},
    "unknown members": lambda members: {"x_new": [{"y": None}], **members, "x_note": 'see "usage": {"total_tokens": 7}'},
    "optional ones dropped": lambda members: {key: item for key, item in members.items() if key not in OPTIONAL},
    "optional ones null": lambda members: {**members, **dict.fromkeys(OPTIONAL - {"object", "index"} - set(members))},
}


@_ids([*SSE, *JSON])
def test_an_answer_written_otherwise_is_read_alike(registry: Registry, recording: Recording) -> None:
    """A10, A13: the order of members means nothing, unknown ones are passed over, and none that is optional is needed."""
    if b"data: {" in recording.body and b"\ndata:" in recording.body.replace(b"\n\n", b""):
        multi = [event for event in recording.body.split(b"\n\n") if event.count(b"data:") > 1]
        if multi:
            return  # its data is spread over several lines
    plain = replace(recording, body=_rewritten(recording.body, lambda value: value))
    for name, change in REWRITINGS.items():
        if name == "optional ones dropped" and "perplexity" in recording.name:
            continue  # the `object` of its last event is what says that it is the last
        if name == "optional ones dropped" and recording.api == "assistants-runs":
            continue  # `object` tells a run from a step of it
        body = _rewritten(recording.body, lambda value, change=change: _mapped(value, change))
        try:
            _same(registry, plain, replace(recording, body=body))
        except AssertionError as error:
            raise AssertionError(name) from error


@pytest.mark.parametrize(
    "named", ["x-model-2031-01-01", "ft:x-model:org::id", "us.vendor.x-model-v1:0", "vendor/x-model:free", "модель", "", None]
)
def test_whatever_the_model_is_called_the_usage_is_the_same(registry: Registry, named: str | None) -> None:
    """B6: names are for prices; no count depends on one."""

    def renamed(members: dict[str, Any]) -> dict[str, Any]:
        return {key: named if key in ("model", "modelVersion", "model_id") else item for key, item in members.items()}

    for recording in [*SSE, *JSON]:
        body = _rewritten(recording.body, lambda value: _mapped(value, renamed))
        if b"data:" in recording.body and any(event.count(b"data:") > 1 for event in recording.body.split(b"\n\n")):
            continue
        plain = replace(recording, body=_rewritten(recording.body, lambda value: value))
        before, after = _read(registry, plain, [plain.body]), _read(registry, recording, [body])
        # An advisor's share is known by its model's name.
        units = {key: value for key, value in (before.usage.units if before.usage else {}).items() if key != "other_models"}
        found = {key: value for key, value in (after.usage.units if after.usage else {}).items() if key != "other_models"}
        assert (recording.name, found) == (recording.name, units)


def _boundaries(recording: Recording) -> list[int]:
    """Where one event ends and the next begins; for what is no stream of text, at up to 1,000 places."""
    body = recording.body
    ends = [end + 2 for end in range(len(body) - 2) if body[end : end + 2] == b"\n\n"] if _is_sse(recording) else []
    return ends or list(range(1, len(body), len(body) // 1_000 + 1))


def _is_honest(recording: Recording, cut: int, reading: Reading) -> bool:
    """Either it does not call its word the last one, or it is."""
    if reading.provenance is not Provenance.PROVIDER_FINAL:
        return True
    return reading.usage is not None and dict(reading.usage.units) == recording.expected


@_ids([recording for recording in PLAIN if recording.status == 200])
def test_an_answer_cut_between_or_within_its_events_is_never_billed_as_if_it_had_ended(
    registry: Registry, recording: Recording, request: pytest.FixtureRequest
) -> None:
    """C2, D1: before its usage nothing is the provider's last word, behind it everything is; and nothing raises."""
    if recording.expected is None or recording.api in ("moderations", "count-tokens"):
        return
    recording = replace(recording, body=_newlines(recording.body)) if _is_sse(recording) else recording
    if _header_tells(registry, recording):
        return
    cuts = _boundaries(recording)
    random_source = random.Random(recording.name)
    within = [random_source.randrange(len(recording.body)) for _ in range(CUTS)]
    within += [len(recording.body) - back for back in range(1, min(len(recording.body), 600), 23)]  # where usage stands
    if not request.config.getoption("--all-mutations", default=False):
        cuts = [*cuts[-4:], *(random_source.choice(cuts) for _ in range(CUTS))]
    for cut in {*cuts, *within}:
        reading = _read(registry, recording, [recording.body[:cut]])
        assert _is_honest(recording, cut, reading), (cut, recording.body[max(cut - 60, 0) : cut], reading.usage)


def _header_tells(registry: Registry, recording: Recording) -> bool:
    """Is the usage told in the response's head, before any of its body?"""
    _inspected(registry, recording)
    return _read(registry, recording, [b""]).usage is not None
