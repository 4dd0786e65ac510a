"""Stored requests as a file: lines of CSV or of JSON, the same from the API and from the dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from lava_proxy.billing.request_object import request_object
from lava_proxy.billing.rows import json_text
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.references import MeterVersions
from lava_proxy.wire.csv_lines import csv_line

MEDIA_TYPES = {"csv": "text/csv; charset=utf-8", "ndjson": "application/x-ndjson"}
_UNITS = ("tokens", "characters", "seconds")
_COLUMNS = (
    "request_id", "created_at", "timestamp", "status", "outcome", "provenance", "customer_id", "meter_id", "meter_slug",
    "provider", "provider_key_type", "model", "endpoint", "http_status", "streamed", "billed", "service_tier", "response_id",
    *(f"{side}_{unit}" for unit in _UNITS for side in ("input", "output", "total")), "cost", "charge", "metadata",
)  # fmt: skip


class RequestFile:
    """Makes the parts of a file. Raises StoreError when a row's meter cannot be read."""

    def __init__(self, catalog: CatalogStore) -> None:
        self._versions = MeterVersions(catalog)

    def head(self, file_format: str) -> bytes:
        """What stands before the first row; nothing for lines of JSON."""
        return csv_line(_COLUMNS).encode() if file_format == "csv" else b""

    async def lines(self, rows: list[dict[str, Any]], file_format: str) -> bytes:
        """Rows of the table `request`, a line each."""
        objects = [request_object(row, await self._versions.get(row["meter_version"])) for row in rows]
        if file_format == "ndjson":
            return "".join(json_text(found) + "\n" for found in objects).encode()
        return "".join(csv_line(_cells(found)) for found in objects).encode()


def _cells(found: Mapping[str, Any]) -> list[object]:
    """A Request object as the cells of _COLUMNS."""
    flat = {
        **found,
        **found["model_usage"],
        "charge": found["charge"]["amount"],
        "metadata": json_text(found["metadata"]) if found["metadata"] else None,
    }
    return [format(value, "f") if isinstance(value := flat.get(name), Decimal) else value for name in _COLUMNS]
