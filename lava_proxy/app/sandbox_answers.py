"""What the sandbox provider says in any shape: the answer to a prompt, its tokens, and a reply before it is sent."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

DELAY_MS_DEFAULT = 10
CHARS_PER_TOKEN = 4
CLOSING = (
    "This is the lava-proxy sandbox: no provider was called and nobody was charged real money. "
    "Point the same request at a real model by adding a provider key."
)


class BadRequest(Exception):
    """The request cannot be read; answered with 400 in the family's shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """What the x-sandbox-* headers ask for."""

    delay_s: float = DELAY_MS_DEFAULT / 1000
    words: int | None = None
    status: int | None = None
    cut_after: int | None = None
    stall: bool = False
    error_event: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model says to one request, and what it counts."""

    model: str
    words: tuple[str, ...]  # joined they are the text
    input_tokens: int
    output_tokens: int
    truncated: bool  # max tokens reached
    seed: str  # 64 hex digits, the hash of the request
    created_s: int

    @property
    def text(self) -> str:
        return "".join(self.words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A response before it is sent: one JSON body, or chunks and the family's error event."""

    body: Json | None = None
    chunks: tuple[bytes, ...] = ()
    error_event: bytes = b""
    content_type: str = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict)


def tokens(text: str) -> int:
    """Four characters a token, rounded up."""
    return -(-len(text) // CHARS_PER_TOKEN)


def texts(node: object) -> Iterator[str]:
    """Every text of a prompt in any of the shapes, in order."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, list):
        for item in node:
            yield from texts(item)
    elif isinstance(node, dict):
        for key in ("system", "systemInstruction", "instructions", "text", "content", "parts", "output"):
            if key in node:
                yield from texts(node[key])


def answer(model: str, prompt: object, max_tokens: object, raw: bytes, words_wanted: int | None) -> Answer:
    """The deterministic answer. `prompt` is the list of messages or a text; `max_tokens` None for no limit."""
    parts = list(texts(prompt))
    said = " ".join((parts[-1] if parts else "").split())
    text = f'You said: "{said[:160]}". {CLOSING}'
    if words_wanted is not None:
        text = " ".join(itertools.islice(itertools.cycle(text.split()), words_wanted))
    limit = max_tokens if isinstance(max_tokens, int) and not isinstance(max_tokens, bool) and max_tokens > 0 else None
    whole = text
    if limit is not None:
        text = text[: limit * CHARS_PER_TOKEN]
    pieces = text.split(" ")
    words = tuple([piece + " " for piece in pieces[:-1]] + pieces[-1:])
    return Answer(
        model=model,
        words=tuple(word for word in words if word),
        input_tokens=sum(tokens(part) for part in parts) or 1,
        output_tokens=tokens(text),
        truncated=len(text) < len(whole),
        seed=hashlib.sha256(raw).hexdigest(),
        created_s=int(time.time()),
    )


def sse(payload: Json, *, event: str | None = None, newline: bytes = b"\n") -> bytes:
    """One server-sent event."""
    head = b"event: " + event.encode() + newline if event else b""
    return head + b"data: " + dumps(payload) + newline + newline


def dumps(payload: object) -> bytes:
    """Compact JSON."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()


def model_of(body: Json) -> str:
    """The model that a body names. Raises BadRequest when it names none."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("you must provide a model parameter")
    return model


def embedding(text: str, dimensions: int) -> list[float]:
    """A unit vector that depends on the text alone."""
    digest = hashlib.shake_256(text.encode()).digest(dimensions)
    raw = [byte - 127.5 for byte in digest]
    length = math.sqrt(sum(value * value for value in raw))
    return [round(value / length, 8) for value in raw]
