"""What reading a copy of a stream costs: µs of CPU a chunk fed to the meter, by family, plain and gzip.

In process, no network: a stream of chunks of about 220 bytes as each family sends them (usage at its end) is fed chunk by chunk to
the meter that the gateway would use, and read once at its end. The best of several rounds counts: the others were disturbed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
import zlib
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns, process_time_ns
from typing import Any

from lava_proxy.domain.usage import Provenance
from lava_proxy.providers.registry import Registry, load_registry

ROOT = Path(__file__).resolve().parents[1]
CHUNK_BYTES = 220
TARGET_US = 3.0  # of a plain chunk
CHUNKS, ROUNDS = 20_000, 7
QUICK_CHUNKS, QUICK_ROUNDS = 2_000, 3


@dataclass(frozen=True, slots=True)
class Stream:
    """One family's stream: where it is asked for and what comes back."""

    provider: str
    path: str
    request: dict[str, Any]
    chunks: list[bytes]
    tokens: int


def _event(payload: object, name: str = "", end: str = "\n\n") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(payload, separators=(',', ':'))}{end}".encode()


def _padded(make: Any) -> bytes:
    """The event with as much text as makes it CHUNK_BYTES long."""
    room = CHUNK_BYTES - len(make(""))
    chunk: bytes = make(("some words of an answer " * 10)[: max(room, 1)])
    return chunk


def _chat(chunks: int) -> Stream:
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini", "usage": None}

    def delta(text: str) -> bytes:
        return _event({**base, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})

    usage = {"prompt_tokens": 10, "completion_tokens": chunks, "total_tokens": 10 + chunks}
    end = [_event({**base, "choices": [], "usage": usage}), b"data: [DONE]\n\n"]
    return Stream("openai", "/v1/chat/completions", _REQUEST, [_padded(delta)] * chunks + end, chunks)


def _messages(chunks: int) -> Stream:
    def delta(text: str) -> bytes:
        block = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        return _event(block, "content_block_delta")

    message = {"id": "msg_1", "model": "claude-sonnet-4-5", "usage": {"input_tokens": 10, "output_tokens": 1}}
    start = [_event({"type": "message_start", "message": message}, "message_start")]
    last = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": chunks}}
    end = [_event(last, "message_delta"), _event({"type": "message_stop"}, "message_stop")]
    return Stream("anthropic", "/v1/messages", _REQUEST, start + [_padded(delta)] * chunks + end, chunks)


def _gemini(chunks: int) -> Stream:
    def piece(text: str, tokens: int = 5, **members: object) -> bytes:
        usage = {"promptTokenCount": 10, "candidatesTokenCount": tokens, "totalTokenCount": 10 + tokens}
        candidate = {"content": {"parts": [{"text": text}]}, **members}
        return _event({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.5-flash"}, end="\r\n\r\n")

    path = "/v1beta/models/gemini-2.5-flash:streamGenerateContent"
    return Stream("google", path, {"contents": []}, [_padded(piece)] * chunks + [piece("", chunks, finishReason="STOP")], chunks)


def _responses(chunks: int) -> Stream:
    def delta(text: str) -> bytes:
        kind = "response.output_text.delta"
        return _event({"type": kind, "sequence_number": 7, "item_id": "msg_1", "output_index": 0, "delta": text}, kind)

    response = {"id": "resp_1", "object": "response", "model": "gpt-5", "status": "in_progress", "output": [], "usage": None}
    usage = {"input_tokens": 10, "output_tokens": chunks, "total_tokens": 10 + chunks}
    done = {"type": "response.completed", "response": {**response, "status": "completed", "usage": usage}}
    start = [_event({"type": "response.created", "response": response}, "response.created")]
    return Stream(
        "openai", "/v1/responses", _REQUEST, start + [_padded(delta)] * chunks + [_event(done, "response.completed")], chunks
    )


_REQUEST = {"model": "m", "stream": True, "max_tokens": 100, "messages": [], "input": "x"}
STREAMS = {"openai_chat": _chat, "anthropic": _messages, "gemini": _gemini, "responses": _responses}


def compressed(chunks: list[bytes]) -> list[bytes]:
    """The chunks as gzip, each flushed, as servers send streams."""
    packer = zlib.compressobj(wbits=31)
    pieces = [packer.compress(chunk) + packer.flush(zlib.Z_SYNC_FLUSH) for chunk in chunks]
    return [*pieces, packer.flush()]


def measure(registry: Registry, stream: Stream, coding: str, rounds: int) -> float:
    """µs of CPU a chunk, the best of the rounds. Raises AssertionError when the meter does not read what was sent."""
    provider = registry.by_name(stream.provider)
    assert provider is not None
    family = registry.family(provider)
    call = family.inspect(provider, "POST", stream.path, "alt=sse", "application/json", json.dumps(stream.request).encode())
    chunks = compressed(stream.chunks) if coding else stream.chunks
    best = 0
    for _ in range(rounds):
        meter = family.meter(provider, call, 200, "text/event-stream", coding)
        feed = meter.feed
        began_ns = process_time_ns()
        for chunk in chunks:
            feed(chunk)
        reading = meter.reading()
        spent_ns = process_time_ns() - began_ns
        assert reading.provenance is Provenance.PROVIDER_FINAL and reading.usage is not None
        assert reading.usage.output_tokens == stream.tokens
        best = spent_ns if not best else min(best, spent_ns)
    return best / len(chunks) / 1000


def run(chunks: int, rounds: int) -> dict[str, Any]:
    """The report: µs a chunk by family and coding, and whether the plain ones meet the target."""
    registry = load_registry(tomllib.loads((ROOT / "config" / "providers.toml").read_text()))
    report: dict[str, Any] = {"chunk_bytes": CHUNK_BYTES, "chunks": chunks, "us_per_chunk": {}}
    for name, make in STREAMS.items():
        stream = make(chunks)
        report["us_per_chunk"][name] = round(measure(registry, stream, "", rounds), 3)
        report["us_per_chunk"][f"{name}_gzip"] = round(measure(registry, stream, "gzip", rounds), 3)
    worst = max(report["us_per_chunk"][name] for name in STREAMS)
    report["targets"] = {"us_per_plain_chunk": {"at_most": TARGET_US, "value": worst, "met": worst <= TARGET_US}}
    report["met"] = worst <= TARGET_US
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="./lava bench meter", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--quick", action="store_true", help="a short run: does it work")
    options = parser.parse_args()
    began_ns = perf_counter_ns()
    report = run(QUICK_CHUNKS, QUICK_ROUNDS) if options.quick else run(CHUNKS, ROUNDS)
    report["seconds"] = (perf_counter_ns() - began_ns) // 1_000_000 / 1000
    if options.json:
        print(json.dumps(report))
        return
    for name, spent_us in report["us_per_chunk"].items():
        print(f"{name:<20} {spent_us:6.2f} µs a chunk")
    print(f"target: at most {TARGET_US} µs a plain chunk: {'met' if report['met'] else 'not met'}")


if __name__ == "__main__":
    sys.exit(main())
