"""Which time a usage question covers and how it is cut: buckets in the time zone (UTC offset) of the start. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Literal

BucketName = Literal["day", "hour", "15m"]
BUCKET_LENGTHS: dict[str, timedelta] = {"day": timedelta(days=1), "hour": timedelta(hours=1), "15m": timedelta(minutes=15)}
BUCKET_DAYS_MAX: dict[str, int] = {"day": 400, "hour": 32, "15m": 8}
"""How long a window may be, by the bucket it is cut into."""

QUARTER = timedelta(minutes=15)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_YEARS = range(2000, 3000)
# A `+` that was not percent-encoded arrives as a space: 2026-01-01T00:00:00 02:00.
_LOST_PLUS = re.compile(r"(\d{4}-?\d{2}-?\d{2}[T ]\d{2}(?::?\d{2}){1,2}(?:[.,]\d+)?) (\d{2}:?\d{2})", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A time as a caller wrote it; `is_date`: only the day was given, so `at` is its first instant (`at` has the offset)."""

    at: datetime
    is_date: bool = False
    has_offset: bool = True

    @property
    def after(self) -> datetime:
        """The first instant that is no longer this moment: of the next day, second or millisecond, by what was written."""
        if self.is_date:
            return self.at + timedelta(days=1)
        if self.at.microsecond:
            return self.at.replace(microsecond=self.at.microsecond // 1000 * 1000) + timedelta(milliseconds=1)
        return self.at + timedelta(seconds=1)


def parse_moment(text: str) -> Moment:
    """An ISO 8601 date or time; without an offset it is UTC. Raises ValueError with what is accepted."""
    text = text.strip()
    lost = _LOST_PLUS.fullmatch(text)
    if lost:
        text = f"{lost[1]}+{lost[2]}"
    try:
        at = datetime.fromisoformat(text.upper())
    except ValueError:
        raise ValueError("accepted is an ISO 8601 time such as 2026-01-31T00:00:00+01:00") from None
    if at.year not in _YEARS:
        raise ValueError(f"accepted are the years {_YEARS[0]} to {_YEARS[-1]}")
    offset = at.utcoffset()
    if offset is not None and offset % QUARTER:
        raise ValueError("accepted are UTC offsets of whole quarter hours")
    return Moment(
        at=at if offset is not None else at.replace(tzinfo=UTC),
        is_date=bool(_DATE.fullmatch(text)),
        has_offset=offset is not None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageWindow:
    """From `start` until before `end`, aware, `end` > `start`; cut into buckets that begin at midnight of the offset of `start`."""

    start: datetime
    end: datetime
    bucket: BucketName = "day"

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError("a window ends after its start")

    @property
    def origin(self) -> datetime:
        """Midnight before the start, in its zone: where buckets are counted from."""
        return self.start.replace(hour=0, minute=0, second=0, microsecond=0)

    @property
    def length(self) -> timedelta:
        """Of a bucket."""
        return BUCKET_LENGTHS[self.bucket]

    def first_instants(self) -> list[datetime]:
        """Of each bucket that the window touches, in the zone of the start; they tile."""
        number = (self.start - self.origin) // self.length
        found = []
        while (first := self.origin + number * self.length) < self.end:
            found.append(first)
            number += 1
        return found

    def rolled(self) -> tuple[datetime, datetime]:
        """The whole quarter hours within, which rollups know; empty (first >= second) when there is none."""
        return _ceil(self.start), _floor(self.end)


def window_of(start: Moment, end: Moment | None, *, now: datetime, bucket: BucketName = "day") -> UsageWindow:
    """The window of a question; `end` is inclusive, now when absent. Raises ValueError with a sentence's rest.

    An end that is not past is extended to its quarter hour, in which nothing more has happened yet.
    """
    if end is not None and not end.has_offset:
        # A day or time without a zone is meant in that of the start.
        end = Moment(at=end.at.replace(tzinfo=start.at.tzinfo), is_date=end.is_date)
    after = end.after if end is not None else _floor(max(now, start.at)) + QUARTER
    if after <= start.at:
        raise ValueError("end is before start")
    if after > now:
        after = _ceil(after)
    days = BUCKET_DAYS_MAX[bucket]
    if after - start.at > timedelta(days=days, minutes=15):
        raise ValueError(f"from start to end are more than {days} days, the most that is answered in buckets of one {bucket}")
    offset = start.at.utcoffset()
    assert offset is not None
    zone = timezone(offset) if offset else UTC
    return UsageWindow(start=start.at.astimezone(zone), end=after.astimezone(zone), bucket=bucket)


def iso(at: datetime) -> str:
    """To the second, with its offset: 2026-01-31T00:00:00+05:45, or ...Z."""
    text = at.replace(microsecond=0).isoformat()
    return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text


def _floor(at: datetime) -> datetime:
    return at - (at - _EPOCH) % QUARTER


def _ceil(at: datetime) -> datetime:
    return at + -(at - _EPOCH) % QUARTER
