"""Recorded provider responses against the meters: the usage must come out, whatever the splits of the bytes.

The recordings are read in place from `../shared/recordings` beside the repository; without that folder the tests skip.
"""

from __future__ import annotations

import base64
import json
import random
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from lava_proxy.domain.usage import Provenance, Reading
from lava_proxy.providers.base import Call, Provider
from lava_proxy.providers.endpoints import MEDIA_APIS
from lava_proxy.providers.estimate import estimate
from lava_proxy.providers.registry import Registry, load_registry
from lava_proxy.providers.usage_chunk import UsageChunkFilter
from lava_proxy.wire.sse import parse_event, split_events

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = ROOT.parent / "shared" / "recordings"
PATHS = sorted(RECORDINGS.glob("*.json"))

EVERY_OFFSET_BODY_BYTES_MAX = 2048
BYTE_BY_BYTE_BODY_BYTES_MAX = 16 << 10
RANDOM_SPLITS = 5


@dataclass(frozen=True)
class Recording:
    name: str
    provider: str
    api: str
    stream: bool
    method: str
    path: str
    query: str
    host: str
    request_type: str
    request_body: bytes
    status: int
    content_type: str
    content_encoding: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    expected: dict[str, Any] | None


def _load(path: Path) -> Recording:
    # The expected decimals are compared as written, so they are not read as floats.
    recorded = json.loads(path.read_text(), parse_float=Decimal)
    request, response = recorded["request"], recorded["response"]
    url = urlsplit(request["url"])
    headers = {key.lower(): value for key, value in response["headers"].items()}
    request_headers = {key.lower(): value for key, value in request["headers"].items()}
    body = request.get("body") or ""
    return Recording(
        name=path.stem,
        provider=recorded["provider"],
        api=recorded["api"],
        stream=recorded["stream"],
        method=request["method"],
        path=url.path,
        query=url.query,
        host=url.hostname or "",
        request_type=request_headers.get("content-type", ""),
        request_body=base64.b64decode(request["body_base64"]) if "body_base64" in request else body.encode(),
        status=response["status"],
        content_type=headers.get("content-type", ""),
        content_encoding=headers.get("content-encoding", ""),
        headers=tuple((key.encode(), value.encode()) for key, value in response["headers"].items()),
        body=base64.b64decode(response["body_base64"]),
        expected=recorded["usage_expected"],
    )


ALL = [_load(path) for path in PATHS]
pytestmark = pytest.mark.skipif(not PATHS, reason=f"RECORDINGS MISSING: {RECORDINGS} has none; nothing was checked")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry(tomllib.loads((ROOT / "config" / "providers.toml").read_text()))


@pytest.fixture(scope="module", autouse=True)
def _counts_by_api() -> Iterator[None]:
    yield
    counts = Counter((recording.provider, recording.api) for recording in ALL)
    print(f"\n{len(ALL)} recordings checked")
    for (provider, api), count in sorted(counts.items()):
        print(f"  {provider:16} {api:28} {count}")


def _inspected(registry: Registry, recording: Recording) -> tuple[Provider, Call]:
    provider = registry.by_host(recording.host) or registry.by_name(recording.provider)
    assert provider is not None
    call = registry.family(provider).inspect(
        provider,
        recording.method,
        recording.path,
        recording.query,
        recording.request_type,
        recording.request_body,
    )
    return provider, call


def _read(registry: Registry, recording: Recording, pieces: list[bytes]) -> Reading:
    provider, call = _inspected(registry, recording)
    family = registry.family(provider)
    meter = family.meter(provider, call, recording.status, recording.content_type, recording.content_encoding, recording.headers)
    for piece in pieces:
        meter.feed(piece)
    return meter.reading()


def _split(body: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(body)]
    return [body[start:end] for start, end in pairwise(edges)]


def _assert_as_recorded(recording: Recording, reading: Reading) -> None:
    if recording.expected is None:
        # Nothing to know from the response: what is then billed is the request's own quantity, or an estimate.
        assert reading.provenance in (Provenance.NONE, Provenance.ESTIMATED)
        return
    assert reading.usage is not None
    assert dict(reading.usage.units) == recording.expected
    if recording.api in ("moderations", "count-tokens"):
        assert reading.provenance is Provenance.NONE
    else:
        assert reading.provenance is Provenance.PROVIDER_FINAL
        assert reading.terminal


@pytest.mark.parametrize("recording", ALL, ids=lambda recording: recording.name)
def test_usage_comes_out_of_the_whole_body(registry: Registry, recording: Recording) -> None:
    """A1, A3, A14, A22: what the provider reported, for each API, streamed or not."""
    _assert_as_recorded(recording, _read(registry, recording, [recording.body]))


@pytest.mark.parametrize("recording", ALL, ids=lambda recording: recording.name)
def test_usage_and_text_do_not_depend_on_the_splits(registry: Registry, recording: Recording) -> None:
    """A20, I1, I2: random pieces, and byte by byte."""
    whole = _read(registry, recording, [recording.body])
    random_source = random.Random(recording.name)
    if len(recording.body) <= BYTE_BY_BYTE_BODY_BYTES_MAX:
        every_byte = [bytes([byte]) for byte in recording.body]
        assert _read(registry, recording, every_byte) == whole
    for _ in range(RANDOM_SPLITS):
        cuts = sorted(random_source.randrange(len(recording.body) + 1) for _ in range(random_source.choice((1, 5, 60))))
        assert _read(registry, recording, _split(recording.body, cuts)) == whole


@pytest.mark.parametrize(
    "recording",
    [recording for recording in ALL if len(recording.body) <= EVERY_OFFSET_BODY_BYTES_MAX],
    ids=lambda recording: recording.name,
)
def test_usage_comes_out_of_small_bodies_split_at_every_offset(registry: Registry, recording: Recording) -> None:
    """A20: no offset loses an event."""
    whole = _read(registry, recording, [recording.body])
    for cut in range(1, len(recording.body)):
        assert _read(registry, recording, [recording.body[:cut], recording.body[cut:]]) == whole


@pytest.mark.parametrize("recording", [recording for recording in ALL if recording.stream], ids=lambda recording: recording.name)
def test_a_cut_stream_never_raises_and_never_says_final_without_its_usage(registry: Registry, recording: Recording) -> None:
    """D1: whatever the byte at which a provider dies, the reading is honest."""
    random_source = random.Random(recording.name)
    for cut in [0, 1, *(random_source.randrange(len(recording.body)) for _ in range(20))]:
        reading = _read(registry, recording, [recording.body[:cut]])
        if reading.provenance is Provenance.PROVIDER_FINAL:
            assert reading.usage is not None
        if reading.usage is not None:
            assert reading.usage.input_tokens >= 0


def _is_usage_only(event: bytes) -> bool:
    try:
        chunk = json.loads(parse_event(event)[1])
    except ValueError:
        return False
    return isinstance(chunk, dict) and chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict)


WITH_USAGE_CHUNK = [
    recording for recording in ALL if recording.stream and any(_is_usage_only(event) for event in split_events(recording.body))
]


@pytest.mark.parametrize("recording", WITH_USAGE_CHUNK, ids=lambda recording: recording.name)
def test_the_filter_takes_out_exactly_the_usage_chunk_at_any_split(recording: Recording) -> None:
    """I14: output == input minus that one event, every split of small bodies and random ones of large."""
    body = recording.body
    chunk = next(event for event in split_events(body) if _is_usage_only(event)) + b"\n\n"
    assert body.count(chunk) == 1
    wanted = body.replace(chunk, b"")
    random_source = random.Random(recording.name)
    small = len(body) <= EVERY_OFFSET_BODY_BYTES_MAX * 2
    splits = [[cut] for cut in range(1, len(body))] if small else []
    splits += [[random_source.randrange(len(body)) for _ in range(40)] for _ in range(20)]
    for cuts in splits:
        filtered = UsageChunkFilter()
        out = b"".join(filtered.feed(piece) for piece in _split(body, cuts)) + filtered.finish()
        assert out == wanted


@pytest.mark.parametrize(
    "recording",
    [r for r in ALL if r.stream and r.api in ("chat", "completions", "chat-v1") and r.request_body[:1] == b"{"],
    ids=lambda recording: recording.name,
)
def test_a_stream_request_without_the_option_gets_it_and_nothing_else(registry: Registry, recording: Recording) -> None:
    """I14: only where the provider's stanza says so, and the rest of the body stays byte for byte."""
    document = json.loads(recording.request_body)
    document.pop("stream_options", None)
    bare = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    provider, call = _inspected(registry, replace(recording, request_body=bare))
    is_old_azure = "api-version=2024-02-01" in recording.query
    speaks_openai = recording.path.endswith("/completions")
    assert call.spliced == (provider.include_usage and speaks_openai and not is_old_azure)
    if call.spliced:
        assert call.body.replace(b'"stream_options":{"include_usage":true},', b"", 1) == bare
    else:
        assert call.body == bare


@pytest.mark.parametrize("recording", ALL, ids=lambda recording: recording.name)
def test_the_ceiling_covers_what_the_call_used(registry: Registry, recording: Recording) -> None:
    """E10: a hold is sized by the ceiling, so a text call never uses more; what tools and media add is allowed for."""
    _, call = _inspected(registry, recording)
    reading = _read(registry, recording, [recording.body])
    if reading.usage is None or not call.billable or call.api == "responses_retrieve":
        return
    assert call.ceiling.output_tokens >= reading.usage.output_tokens
    if call.api in MEDIA_APIS:
        for unit in ("input_characters", "audio_seconds", "images", "pages_processed", "search_units"):
            assert call.ceiling.units.get(unit, 0) >= reading.usage.units.get(unit, 0)


@pytest.mark.parametrize("recording", ALL, ids=lambda recording: recording.name)
def test_every_billable_call_has_a_ceiling_so_that_something_is_held(registry: Registry, recording: Recording) -> None:
    """B1: speech, images and the like too, not only tokens."""
    _, call = _inspected(registry, recording)
    if call.billable and call.api != "responses_retrieve":
        assert any(value > 0 for value in call.ceiling.units.values())


@pytest.mark.parametrize("recording", ALL, ids=lambda recording: recording.name)
def test_a_host_belongs_to_the_stanza_that_the_recording_names(registry: Registry, recording: Recording) -> None:
    """A local server's host is in no stanza; it is reached by its name."""
    by_name = registry.by_name(recording.provider)
    assert by_name is not None
    is_local = recording.host in ("localhost", "127.0.0.1")
    assert registry.by_host(recording.host) is (None if is_local else by_name)


@pytest.mark.parametrize(
    "recording",
    [r for r in ALL if r.status == 200 and r.expected is None and r.api in ("speech", "rerank", "complete")],
    ids=lambda recording: recording.name,
)
def test_what_the_response_does_not_say_is_estimated_and_never_nothing(registry: Registry, recording: Recording) -> None:
    """B1: the characters that were to be spoken, the documents that were ranked, the text that was generated."""
    provider, call = _inspected(registry, recording)
    guessed = estimate(provider, call, _read(registry, recording, [recording.body]))
    assert any(value > 0 for value in guessed.units.values())
    if recording.api == "speech":
        assert guessed.units["input_characters"] == len(json.loads(recording.request_body)["input"])
