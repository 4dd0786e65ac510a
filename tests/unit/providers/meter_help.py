"""Shared by the meter tests: a provider by name, a call by path, and a body read in given pieces."""

from __future__ import annotations

import json
from typing import Any

from lava_proxy.domain.usage import Reading
from lava_proxy.providers.base import Call, Provider
from lava_proxy.providers.model_apis import ModelApis

FAMILY = ModelApis()


def provider(name: str = "openai", **changes: Any) -> Provider:
    return Provider(name=name, family="openai", hosts=(), base="https://x.test", **changes)


def asked(
    path: str, body: bytes | dict[str, Any] = b"{}", *, of: str = "openai", query: str = "", content_type: str = "application/json"
) -> Call:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return FAMILY.inspect(provider(of), "POST", path, query, content_type, raw)


def read(
    call: Call,
    *pieces: bytes,
    of: str = "openai",
    status: int = 200,
    content_type: str = "application/json",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> Reading:
    meter = FAMILY.meter(provider(of), call, status, content_type, "", headers)
    for piece in pieces:
        meter.feed(piece)
    reading = meter.reading()
    assert meter.reading() == reading
    return reading


def form(**fields: str | bytes) -> tuple[bytes, str]:
    """(body, content type) of a form; bytes are files."""
    parts = []
    for name, value in fields.items():
        disposition = f'--b\r\nContent-Disposition: form-data; name="{name}"'
        if isinstance(value, bytes):
            parts.append(f'{disposition}; filename="f"\r\n\r\n'.encode() + value)
        else:
            parts.append(f"{disposition}\r\n\r\n{value}".encode())
    return b"\r\n".join(parts) + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"
