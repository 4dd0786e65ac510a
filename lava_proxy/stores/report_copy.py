"""Reports of a flush as PostgreSQL's binary COPY, made straight from their outbox rows.

Most of a report's row is that of the report before: what belongs to a customer and a meter is made once, and a row is then a few
joined pieces. Through the driver's encoders, value by value, a row of 37 columns with its ledger lines cost four times as much.
The format: postgresql.org/docs/current/sql-copy.html, "Binary Format".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

import orjson

from lava_proxy.stores.ids import created_ms
from lava_proxy.stores.outbox import OutboxEntry
from lava_proxy.stores.report_rows import API, ENDPOINT, KEY_TYPE, row_fields, start_fields, text_of

REQUEST_COLUMNS = (
    "cost_nanos", "charge_nanos", "tier_units", "position", "wseq", "created_at", "completed_at", "priced_at",
    "request_id", "wallet_id", "flags", "request_key", "fingerprint", "model", "usage", "breakdown", "metadata", "price_version",
    "merchant_id", "connection_id", "meter_id", "meter_version", "provider", "tier_field",
    "status", "outcome", "provenance", "provider_key_type", "endpoint", "api", "streamed", "billed",
    "response_id", "http_status", "service_tier", "timings", "spend_key_id",
)  # fmt: skip
ENTRY_COLUMNS = (
    "part", "epoch", "pseq", "wseq", "amount_nanos", "balance_nanos", "plan_nanos", "funds_nanos", "position", "debt_nanos", "at",
    "pinned_nanos", "request_id", "wallet_id", "flags", "kind", "lot_key", "opened_wseq",
)  # fmt: skip
LEG_COLUMNS = ("wseq", "amount_nanos", "at", "wallet_id", "account")

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_LENGTH = Struct(">i")
_LENGTHS = [_LENGTH.pack(n) for n in range(2048)]
_REQUEST = Struct(">h" + "iq" * 8)
_ENTRY = Struct(">hih" + "iq" * 11)
_LEG = Struct(">h" + "iq" * 3)
_VERSION = Struct(">iq")
_EPOCH_US = 946_684_800_000_000  # Postgres counts from 2000
_JSONB = b"\x01"
_CACHE_MAX = 4096
_BUCKET_MS = 15 * 60 * 1000
_TOKENS = frozenset({"input_tokens", "output_tokens"})


def _text(value: bytes | None) -> bytes:
    if value is None:
        return _NULL
    size = len(value)
    return (_LENGTHS[size] if size < 2048 else _LENGTH.pack(size)) + value


_SAME = b"".join(
    _text(value)
    for value in (
        b"completed", b"completed", b"reported", KEY_TYPE.encode(), ENDPOINT.encode(), API.encode(), b"\0", b"\1",
        None, None, None, None, None,
    )
)  # fmt: skip
_ENTRY_END = _text(b"settle") + _NULL + _NULL


@dataclass(slots=True)
class _Start:
    """What reports of one customer by one meter have in common, ready to be written."""

    merchant_id: str
    connection_id: str
    meter_id: str
    provider: str
    columns: bytes
    revenue: bytes
    cost: bytes
    paid: bytes


@dataclass(slots=True)
class Copied:
    """Reports as COPY data, and what they add to the rollups: facts with plain sums, and entries that must be read one by one."""

    requests: bytes
    entries: bytes
    legs: bytes
    facts: dict[tuple[Any, ...], list[int]]  # see UsageRollup.add
    other: list[OutboxEntry]


class ReportCopy:
    """Remembers what reports have in common."""

    def __init__(self) -> None:
        self._starts: dict[bytes, _Start] = {}
        self._wallets: dict[str, tuple[bytes, bytes]] = {}  # the id as a column; with its account, the end of its leg

    def copied(self, entries: Sequence[OutboxEntry], fresh: Sequence[bool]) -> Copied:
        """The data of entries whose rows are report rows; a request only where `fresh`, ledger lines always.

        Raises ValueError or struct.error where a value does not fit its column.
        """
        requests, lines, legs = [_HEADER], [_HEADER], [_HEADER]
        sums: dict[tuple[bytes, bytes, int], list[int]] = {}
        other: list[OutboxEntry] = []
        for entry, is_fresh in zip(entries, fresh, strict=True):
            first, (key, fingerprint, model, usage, metadata, cost_text, breakdown, version, priced_ms, units) = row_fields(
                entry.raw
            )
            start = self._starts.get(first) or self._start(first)
            wallet, own = self._wallets.get(entry.wallet_id) or self._wallet(entry.wallet_id)
            request_id, flags = _text(entry.request_id.encode()), _text(entry.flags.encode())
            amount, wseq, at = entry.amount_nanos, entry.wseq, entry.at_ms * 1000 - _EPOCH_US
            cost = int(cost_text)
            lines.append(_ENTRY.pack(
                18, 2, entry.part, 8, entry.epoch, 8, entry.pseq, 8, wseq, 8, amount, 8, entry.balance_nanos, 8, entry.plan_nanos,
                8, entry.funds_nanos, 8, entry.position, 8, entry.debt_nanos, 8, at, 8, entry.pinned_nanos,
            ) + request_id + wallet + flags + _ENTRY_END)  # fmt: skip
            legs.append(
                _LEG.pack(5, 8, wseq, 8, amount, 8, at) + own + _LEG.pack(5, 8, wseq, 8, -amount, 8, at) + wallet + start.revenue
            )
            if cost and is_fresh:  # of a double it was paid once
                legs.append(_LEG.pack(5, 8, wseq, 8, -cost, 8, at) + wallet + start.cost)
                legs.append(_LEG.pack(5, 8, wseq, 8, cost, 8, at) + wallet + start.paid)
            if not is_fresh:
                continue
            created = created_ms(entry.request_id)
            requests.append(b"".join((
                _REQUEST.pack(
                    37, 8, cost, 8, -amount, 8, int(units), 8, entry.position, 8, wseq, 8, created * 1000 - _EPOCH_US, 8, at,
                    8, int(priced_ms) * 1000 - _EPOCH_US,
                ),
                request_id, wallet, flags, _text(text_of(key)), _text(fingerprint), _text(text_of(model)), _text(_JSONB + usage),
                _text(_JSONB + breakdown), _text(_JSONB + metadata) if metadata else _NULL, _text(text_of(version)), start.columns,
            )))  # fmt: skip
            counts = None if cost else orjson.loads(usage)
            if counts is None or not _TOKENS >= counts.keys():
                other.append(entry)
                continue
            place = (first, model, created // _BUCKET_MS)
            known = sums.get(place)
            if known is None:
                known = sums[place] = [0, 0, 0, 0]
            known[0] += 1
            known[1] += counts.get("input_tokens", 0)
            known[2] += counts.get("output_tokens", 0)
            known[3] -= amount
        for data in (requests, lines, legs):
            data.append(_TRAILER)
        facts: dict[tuple[Any, ...], list[int]] = {}
        for place, counted in sums.items():
            fact = self._fact(*place)  # also of another version of the meter, or another cycle
            known = facts.get(fact)
            facts[fact] = counted if known is None else [a + b for a, b in zip(known, counted, strict=True)]
        return Copied(b"".join(requests) if len(requests) > 2 else b"", b"".join(lines), b"".join(legs), facts, other)

    def once(self, row: bytes) -> tuple[str, str]:
        """Of a report's row: the merchant's id, and the id that the merchant chose."""
        first, _, rest = row.partition(b"\x1e")
        start = self._starts.get(first) or self._start(first)
        return start.merchant_id, (text_of(rest[: rest.index(b"\x1f")]) or b"").decode()

    def _start(self, first: bytes) -> _Start:
        merchant_id, connection_id, meter_id, version, provider, tier_field = start_fields(first)
        name = text_of(provider) or b""
        merchant = b"merchant:" + merchant_id
        made = _Start(
            merchant_id.decode(),
            connection_id.decode(),
            meter_id.decode(),
            name.decode(),
            b"".join((
                _text(merchant_id), _text(connection_id), _text(meter_id), _VERSION.pack(8, int(version)), _text(name),
                _text(tier_field), _SAME,
            )),
            _text(merchant + b":revenue"),
            _text(merchant + b":provider_cost"),
            _text(b"provider:" + name),
        )  # fmt: skip
        if len(self._starts) >= _CACHE_MAX:
            self._starts.clear()
        self._starts[first] = made
        return made

    def _wallet(self, wallet_id: str) -> tuple[bytes, bytes]:
        column = _text(wallet_id.encode())
        if len(self._wallets) >= _CACHE_MAX:
            self._wallets.clear()
        made = self._wallets[wallet_id] = (column, column + _text(b"wallet:" + wallet_id.encode()))
        return made

    def _fact(self, first: bytes, model: bytes, bucket: int) -> tuple[Any, ...]:
        start = self._starts.get(first) or self._start(first)
        name = text_of(model) or b""
        return start.merchant_id, bucket, start.connection_id, start.meter_id, start.provider, name.decode()
