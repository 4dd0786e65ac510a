"""Read JSON from bytes that may be strange, cut or huge, with decimals kept exactly as they were written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import orjson

OBJECT_BYTES_MAX = 256 << 10
"""How far a scanned object may reach; a usage object is a few hundred bytes, a compaction one some kilobytes."""

_exact_decoder = json.JSONDecoder(parse_float=Decimal, parse_constant=lambda _: None, strict=False)


def loads(raw: bytes | bytearray) -> Any:
    """The JSON value, or None when the bytes are not JSON.

    Lone surrogates and raw control characters are accepted (models emit them). Fractions are floats here: see `exact`.
    """
    try:
        return orjson.loads(raw)
    except ValueError:
        pass
    try:
        return json.loads(raw.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return None


def exact(raw: bytes | bytearray, key: str, value: dict[str, Any]) -> dict[str, Any]:
    """`value`, which is `loads(raw)`'s object under `key` somewhere, with its fractions as exact Decimals.

    The document is not decoded a second time: only the objects named `key` are, until one equals `value`.
    """
    if not _has_float(value):
        return value
    for candidate in objects_named(raw, key):
        if _floated(candidate) == value:
            return candidate
    decimals: dict[str, Any] = _decimalled(value)
    return decimals


def objects_named(raw: bytes | bytearray, key: str) -> Iterator[dict[str, Any]]:
    """The complete objects that stand as value of `key`, last first, at any depth, outside of strings; Decimals exact.

    Inside a JSON string the quotes of a key are escaped, so text that talks about `"usage": {` is not found.
    """
    yield from _values_named(raw, key, rb"\{")


def lists_named(raw: bytes | bytearray, key: str) -> Iterator[list[Any]]:
    """As `objects_named`, the complete arrays."""
    yield from _values_named(raw, key, rb"\[")


def _values_named(raw: bytes | bytearray, key: str, opening: bytes) -> Iterator[Any]:
    pattern = re.compile(rb'"' + re.escape(key.encode()) + rb'"\s*:\s*(?=' + opening + rb")")
    for start in reversed([match.end() for match in pattern.finditer(raw)]):
        text = bytes(raw[start : start + OBJECT_BYTES_MAX]).decode("utf-8", "replace")
        try:
            value, _ = _exact_decoder.raw_decode(text)
        except (ValueError, RecursionError):
            continue
        yield value


def string_named(raw: bytes | bytearray, key: str) -> str | None:
    """The first plain string value of `key` at any depth, or None."""
    match = re.search(rb'"' + re.escape(key.encode()) + rb'"\s*:\s*"([^"\\]+)"', raw)
    return None if match is None else match[1].decode("utf-8", "replace")


def _has_float(value: Any) -> bool:
    if isinstance(value, float):
        return True
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for member in members:
        kind = type(member)
        if kind is float or ((kind is dict or kind is list) and _has_float(member)):
            return True
    return False


def _floated(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _floated(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_floated(item) for item in value]
    return float(value) if isinstance(value, Decimal) else value


def _decimalled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _decimalled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decimalled(item) for item in value]
    return Decimal(repr(value)) if isinstance(value, float) else value
