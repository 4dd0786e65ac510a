"""A report's row on its way through the outbox: only what differs from one report to the next, between separators.

Reports are many and alike: as JSON objects (what calls send, and reports of earlier releases) their rows were three times as
long, and every step of a report's way paid for it. The first part is the same for all reports of a customer by a meter, so that
who writes it and who reads it may remember it. Texts that strangers choose are JSON, which never holds a separator.
"""

from __future__ import annotations

from typing import Any

import orjson

ENDPOINT = "POST /v1/requests"
API = "report"
KEY_TYPE = "stored"  # the merchant's own key: it has paid its provider

_MARK = b"R1\x1f"
_SAME: dict[str, Any] = {
    "provider_key_type": KEY_TYPE, "endpoint": ENDPOINT, "api": API, "streamed": False, "status": "completed",
    "outcome": "completed", "provenance": "reported", "response_id": None, "http_status": None, "billed": True,
    "price_model": None, "service_tier": None, "timings": None,
}  # fmt: skip


def is_report_row(row: bytes) -> bool:
    """Is this row written here, and not a JSON object?"""
    return row.startswith(_MARK)


def report_start(
    *, merchant_id: str, connection_id: str, meter_id: str, meter_version: int, provider: bytes, tier_field: str
) -> bytes:
    """The first part: what reports of a customer by a meter have in common. `provider` is JSON."""
    return b"%b%b\x1f%b\x1f%b\x1f%d\x1f%b\x1f%b" % (
        _MARK, merchant_id.encode(), connection_id.encode(), meter_id.encode(), meter_version, provider, tier_field.encode(),
    )  # fmt: skip


def report_row(
    start: bytes,
    *,
    request_key: bytes,
    fingerprint: str,
    model: bytes,
    usage: bytes,
    metadata: bytes,
    cost_nanos: int,
    breakdown: bytes,
    price_version: bytes,
    priced_at_ms: int,
    units: int,
) -> bytes:
    """The whole row. Bytes are JSON; empty where there is no model, metadata or price version."""
    return b"%b\x1e%b\x1f%b\x1f%b\x1f%b\x1f%b\x1f%d\x1f%b\x1f%b\x1f%d\x1f%d" % (
        start, request_key, fingerprint.encode(), model, usage, metadata, cost_nanos, breakdown, price_version, priced_at_ms, units,
    )  # fmt: skip


def start_fields(start: bytes) -> list[bytes]:
    """Of a first part: merchant id, connection id, meter id, meter version, provider (JSON), tier field."""
    return start.split(b"\x1f")[1:]


def row_fields(row: bytes) -> tuple[bytes, list[bytes]]:
    """The first part, and the others in the order of `report_row`."""
    start, _, rest = row.partition(b"\x1e")
    return start, rest.split(b"\x1f")


def text_of(json: bytes) -> bytes | None:
    """The UTF-8 of a JSON text; None of an empty field."""
    if not json:
        return None
    if b"\\" not in json:
        return json[1:-1]
    text: str = orjson.loads(json)
    return text.encode()


def row_of(row: bytes) -> dict[str, Any]:
    """Any outbox row as a mapping. A report's has what a call's has, its JSON parts as text too."""
    if not row.startswith(_MARK):
        found: dict[str, Any] = orjson.loads(row)
        return found
    start, (request_key, fingerprint, model, usage, metadata, cost, breakdown, price_version, priced_at, units) = row_fields(row)
    merchant_id, connection_id, meter_id, meter_version, provider, tier_field = start_fields(start)
    return _SAME | {
        "merchant_id": merchant_id.decode(),
        "connection_id": connection_id.decode(),
        "meter_id": meter_id.decode(),
        "meter_version": int(meter_version),
        "provider": orjson.loads(provider),
        "tier_field": tier_field.decode(),
        "request_key": orjson.loads(request_key),
        "fingerprint": fingerprint.decode(),
        "model": orjson.loads(model) if model else None,
        "usage": usage.decode(),
        "metadata": metadata.decode() or None,
        "cost_nanos": int(cost),
        "breakdown": breakdown.decode(),
        "price_version": orjson.loads(price_version) if price_version else None,
        "priced_at_ms": int(priced_at),
        "tier_units": int(units),
    }
