"""Makes a row keepable: Postgres refuses NUL in text, lone surrogates and numbers out of range, and one such row would stop all.

Models, metadata and usage come from strangers. A flush that Postgres refuses is repeated with every row repaired; values of
ordinary rows come out as they were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

_INT8_MAX = 2**63 - 1
_INT2_MAX = 2**15 - 1
_NUMERIC_DIGITS_MAX = 1000  # jsonb keeps more, but no true quantity has so many
_JSON_FIELDS = frozenset({"usage", "breakdown", "metadata", "timings"})


def repaired(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with U+FFFD for what text cannot hold, integers within their column, JSON that jsonb accepts."""
    return {name: _field(name, value) for name, value in row.items()}


def _field(name: str, value: Any) -> Any:
    if name in _JSON_FIELDS and isinstance(value, str):
        return _json(value)
    if isinstance(value, int) and not isinstance(value, bool):
        most = _INT2_MAX if name == "http_status" else _INT8_MAX
        return max(-most, min(value, most))
    return _plain(value)


def _json(text: str) -> str:
    try:
        return json.dumps(_plain(json.loads(text, parse_float=Decimal, strict=False)), ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return "{}"


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, Decimal):
        return str(value)[:_NUMERIC_DIGITS_MAX]  # as text: a float would change its digits
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 10**_NUMERIC_DIGITS_MAX else str(value)[:_NUMERIC_DIGITS_MAX]
    if isinstance(value, float):
        return str(value)
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
