"""Answers to reports that were debited just now: the request object as bytes, of which most never changes.

A report's answer is thirty members, and all but a dozen values are those of the report before. So the object is written once with
markers where those values stand, cut there, and from then on only joined. `request_object` stays the one description of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any

from lava_proxy.billing.request_object import request_object, timestamp
from lava_proxy.billing.rows import packed
from lava_proxy.domain.catalog import Grant, MeterVersion
from lava_proxy.domain.fees import Charge
from lava_proxy.domain.money import format_usd

_TEMPLATES_MAX = 4096
_TOKENS = frozenset({"input_tokens", "output_tokens"})


@dataclass(slots=True)  # not frozen: made for every report
class Changing:
    """The values of an answer that differ from one report to the next; JSON where they are bytes."""

    request_key: bytes
    metadata: bytes
    flags: str
    input_tokens: int
    output_tokens: int
    units: int
    charge_nanos: int
    created_s: int  # since 1970
    completed_s: int

    def texts(self) -> tuple[bytes, ...]:
        """As they stand in the answer, in the order of `_cut`."""
        return (
            self.request_key,
            self.metadata,
            b'"%b"' % self.flags.encode(),
            b"%d" % self.input_tokens,
            b"%d" % self.output_tokens,
            b"%d" % (self.input_tokens + self.output_tokens),
            b"%d" % self.units,
            format_usd(self.charge_nanos).encode(),
            _instant(self.created_s),
            _instant(self.completed_s),
        )


# Two sets of markers, none a part of another. What a merchant named may look like a marker of one of them, but then the two
# answers are not cut alike.
_MARKERS = (
    Changing(b'"@key@"', b'{"@1":"@"}', "@flags@", 311_111_111_111_111, 422_222_222_222_222, 833_333_333_333_333,
             644_444_444_444_444_441, 1_000_000_001, 1_100_000_002),
    Changing(b'"#key#"', b'{"#2":"#"}', "#flags#", 355_555_555_555_555, 466_666_666_666_666, 877_777_777_777_777,
             688_888_888_888_888_889, 1_200_000_003, 1_300_000_004),
)  # fmt: skip


class _Template:
    """An answer cut at its changing values."""

    def __init__(self, pieces: Sequence[bytes], order: Sequence[int]) -> None:
        self._format = b"%b".join(piece.replace(b"%", b"%%") for piece in pieces)
        self._arrange = itemgetter(*order)

    def body(self, values: Changing) -> bytes:
        found: bytes = self._format % self._arrange(values.texts())
        return found


class ReportAnswers:
    """Templates by what stays the same."""

    def __init__(self) -> None:
        self._templates: dict[tuple[Any, ...], tuple[Grant, _Template | None]] = {}

    def template(
        self, grant: Grant, meter: MeterVersion, provider: str, model: str | None, usage: Mapping[str, Any], charge: Charge
    ) -> _Template | None:
        """For a completed report without a provider's cost; None where its answer depends on values in other ways."""
        if (
            len(charge.breakdown) != 1
            or meter.tier_type != "tokens_1m"
            or meter.rate_type != "fixed"
            or not _TOKENS >= usage.keys()
        ):
            return None
        tier = charge.breakdown[0].tier
        # The grant is kept beside its template, so that its address cannot come to mean another one.
        key = (id(grant), provider, model, tier.start, tier.rate, *usage)
        found = self._templates.get(key)
        if found is None:
            if len(self._templates) >= _TEMPLATES_MAX:
                self._templates.clear()
            first, second = (_cut(_row(marks, grant, meter, provider, model, usage, charge), meter, marks) for marks in _MARKERS)
            found = self._templates[key] = (grant, _Template(*first) if first == second else None)
        return found[1]


def reported_row(
    grant: Grant, meter: MeterVersion, *, provider: str, model: str | None, cost_nanos: int, price_version: str | None
) -> dict[str, Any]:
    """What the row of every completed report of a kind has, as it will be read from Postgres; see `request_object`."""
    return {
        "connection_id": grant.connection_id,
        "meter_id": meter.meter_id,
        "meter_version": meter.version_id,
        "status": "completed",
        "outcome": "completed",
        "provenance": "reported",
        "provider": provider,
        "provider_key_type": "stored",
        "model": model,
        "endpoint": "POST /v1/requests",
        "api": "report",
        "streamed": False,
        "response_id": None,
        "http_status": None,
        "billed": True,
        "cost_nanos": cost_nanos,
        "price_version": price_version,
        "service_tier": None,
        "timings": None,
        "spend_key_id": None,
    }


def _row(
    marks: Changing, grant: Grant, meter: MeterVersion, provider: str, model: str | None, usage: Mapping[str, Any], charge: Charge
) -> dict[str, Any]:
    tier = charge.breakdown[0].tier
    amounts = {"input_tokens": marks.input_tokens, "output_tokens": marks.output_tokens}
    return reported_row(grant, meter, provider=provider, model=model, cost_nanos=0, price_version=None) | {
        "request_key": marks.request_key.decode().strip('"'),
        "usage": {name: amounts[name] for name in usage},
        "charge_nanos": marks.charge_nanos,
        "breakdown": {"charge": [(tier.start, tier.rate, marks.units, marks.charge_nanos)]},
        "flags": marks.flags,
        "metadata": {marks.metadata[2:4].decode(): marks.metadata[7:8].decode()},
        "created_at": datetime.fromtimestamp(marks.created_s, UTC),
        "completed_at": datetime.fromtimestamp(marks.completed_s, UTC),
    }


def _cut(row: Mapping[str, Any], meter: MeterVersion, marks: Changing) -> tuple[list[bytes], list[int]]:
    """What lies between the markers, and which of `marks.texts()` each of them is."""
    texts = marks.texts()
    parts = re.split(b"(" + b"|".join(re.escape(text) for text in texts) + b")", packed(request_object(row, meter)))
    return parts[0::2], [texts.index(part) for part in parts[1::2]]


@lru_cache(maxsize=1024)
def _instant(seconds: int) -> bytes:
    return timestamp(datetime.fromtimestamp(seconds, UTC)).encode()
