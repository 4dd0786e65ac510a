"""What every family's reader shares: the state read so far, and numbers taken safely from strange JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from math import isfinite
from typing import Any, ClassVar, Self

from lava_proxy.domain.usage import Provenance, Reading, UnitValue, Usage
from lava_proxy.wire import json_scan

COUNT_MAX = 10**12
"""A count above this is noise, not usage: the largest contexts are a few million tokens."""

SAMPLE_BYTES = 4096
"""Of a response's generated text, kept to count its tokens should the response not report them; the rest counts alike."""

_STRING = rb'\s*:\s*"((?:[^"\\]++|\\.)*+)"'


def text_values(*keys: str) -> re.Pattern[bytes]:
    """A pattern whose group 1 is the raw JSON string under any of these keys (regular expressions)."""
    return re.compile(b'"(?:' + b"|".join(key.encode() for key in keys) + b')"' + _STRING, re.DOTALL)


def text_bytes(pattern: re.Pattern[bytes], raw: bytes, sample: bytearray | None = None) -> int:
    """About how many UTF-8 bytes of text the matched JSON strings hold once unescaped.

    `sample` takes the strings as they stand, until it holds SAMPLE_BYTES.
    """
    total = 0
    values = pattern.findall(raw)
    for value in values:
        total += len(value)
        if b"\\" in value:
            # A short escape is two bytes for one, a \\uXXXX six for about three.
            total -= value.count(b"\\") + 2 * value.count(b"\\u")
    if values and sample is not None and len(sample) < SAMPLE_BYTES:
        for value in values:
            sample += value[: SAMPLE_BYTES - len(sample)]
    return total


def escaped_text_bytes(raw: bytes) -> int:
    """`text_bytes` of one string's inside, or of many put together."""
    return len(raw) - raw.count(b"\\") - 2 * raw.count(b"\\u")


class UsageReader:
    """The state of one response and how a family's events and documents change it.

    A family's reader overrides `concerns`, `event` and `document`. An unfinished event or document is looked at early with
    a shallow copy of the reader, so attributes are replaced and never changed in place.
    """

    text: ClassVar[re.Pattern[bytes]]  # group 1: generated text in stream events, as a raw JSON string
    document_text: ClassVar[re.Pattern[bytes] | None] = None  # in whole documents; None: as in events
    usage_key: ClassVar[str] = "usage"
    counted_mark: ClassVar[bytes] = b""  # bytes that stand once for each item (image) of a document of any size
    is_plain_text: ClassVar[bool] = False  # may the body be the generated text itself (subtitles)

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.final = False  # the usage is the provider's last word
        self.model: str | None = None
        self.response_id: str | None = None
        self.service_tier: str | None = None
        self.terminal = False
        self.error = False
        self.facts: tuple[tuple[str, str], ...] = ()
        self.deferred = False
        self.unseen: tuple[str, ...] = ()
        self.header_usage: Usage | None = None  # what the response's head reports, used where its body does not
        self.asked = Usage()  # what the request counts, used where neither does
        self.marks = 0  # occurrences of `counted_mark` in a document too large to keep

    def copied(self) -> Self:
        """A shallow copy; copy.copy takes six times as long."""
        cls = type(self)
        other = cls.__new__(cls)
        other.__dict__.update(self.__dict__)
        return other

    def concerns(self, block: bytes) -> bool:
        """A cheap test on raw bytes: can these events say more than text? May be true too often, never too seldom."""
        raise NotImplementedError

    def wants_the_last_only(self, block: bytes) -> bool:
        """Do these events, which concern the reader, do so only by a cumulative usage, and is all the rest of them text?"""
        return False

    def event(self, name: str, data: bytes) -> bool:
        """Read one stream event or array element. False: it is no generated text (an error, an end mark)."""
        raise NotImplementedError

    def document(self, document: Mapping[str, Any], raw: bytes) -> None:
        """Read a whole JSON body."""
        raise NotImplementedError

    def read_usage(self, raw_usage: Mapping[str, Any]) -> Usage | None:
        """The family's usage object in our units; None when it counts nothing."""
        raise NotImplementedError

    def settle(self) -> None:
        """Called before a reading: work that only the last of many events needs. May be called often."""

    def fragment(self, raw: bytes, *, is_final: bool) -> None:
        """Read what is left of a document or event too large to keep: head and tail windows, no longer JSON."""
        for raw_usage in json_scan.objects_named(raw, self.usage_key):
            usage = self.read_usage(raw_usage)
            if usage is not None:
                self.usage, self.final = usage, is_final
                break
        self.identify(json_scan.string_named(raw, "model"), json_scan.string_named(raw, "id"))

    def identify(self, model: object, response_id: object, service_tier: object = None) -> None:
        """The first non-empty model and id stand; the service tier is the latest one named."""
        if self.model is None and isinstance(model, str) and model:
            self.model = model[:256]
        if self.response_id is None and isinstance(response_id, str) and response_id:
            self.response_id = response_id[:256]
        if isinstance(service_tier, str) and service_tier:
            self.service_tier = service_tier[:64]

    def reading(self, output_text_bytes: int, output_text_sample: bytes = b"") -> Reading:
        """The state as a value."""
        usage = self.usage
        if usage is None and self.header_usage is not None:
            usage, provenance = self.header_usage, Provenance.PROVIDER_FINAL
        elif usage is None and self.asked.units and not self.error:
            usage, provenance = self.asked, Provenance.ESTIMATED
        elif usage is None:
            provenance = Provenance.NONE
        elif self.final or self.terminal:
            provenance = Provenance.PROVIDER_FINAL
        else:
            provenance = Provenance.PROVIDER_PARTIAL
        return Reading(
            usage=usage,
            provenance=provenance,
            model=self.model,
            response_id=self.response_id,
            service_tier=self.service_tier,
            terminal=self.terminal,
            error=self.error,
            output_text_bytes=output_text_bytes,
            output_text_sample=output_text_sample,
            facts=self.facts,
            deferred=self.deferred,
            unseen=self.unseen,
        )


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Mapping[str, Any]]:
    """The objects of a list; [] for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def count_or_none(value: object) -> int | None:
    """A non-negative integer, also when written as 3.0; None for everything else."""
    if type(value) is int:
        return value if 0 <= value <= COUNT_MAX else None
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, float | Decimal):
        # Bounded before it is converted: Decimal("1e999999999") is a small text and a huge integer.
        if not isfinite(value) or not 0 <= value <= COUNT_MAX or value != int(value):
            return None
        value = int(value)
    if isinstance(value, int) and 0 <= value <= COUNT_MAX:
        return value
    return None


def count(source: Mapping[str, Any], *names: str) -> int:
    """The first of the named counts that is more than 0, else 0."""
    get = source.get
    for name in names:
        raw = get(name)
        if raw and (value := count_or_none(raw)):
            return value
    return 0


def amount(value: object) -> Decimal | None:
    """A positive number (dollars, seconds) as it was written; None for everything else, zero included."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    number = Decimal(value)
    if not number.is_finite() or number <= 0 or not -30 <= number.adjusted() <= 12:
        return None
    return number


def seconds(value: object) -> int | Decimal | None:
    """A positive length of time: an int stays one, a fraction becomes the Decimal that was written."""
    if isinstance(value, float) and isfinite(value):
        value = Decimal(repr(value))
    number = amount(value)
    return value if isinstance(value, int) and number is not None else number


def present(**units: UnitValue | None) -> dict[str, UnitValue]:
    """Only the units that were really reported: no zeros, no Nones, no empty mappings."""
    return {name: value for name, value in units.items() if value}
