"""Billing calendar: the cycle of a connection without a plan, and a subscription's periods, which tile time.

A subscription's period n begins n intervals after its anchor, counted on the calendar of its zone: a month after 31 January is
28 February, and the month after that 31 March, since each boundary is counted from the anchor and never from the one before.
"""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Literal

Interval = Literal["day", "week", "month", "year"]

_MONTHS_PER_YEAR = 12
_DAYS: dict[str, int] = {"day": 1, "week": 7}
# Shorter than any period of its kind, a clock set forward included, so that an index found with it is never too small.
_SHORTEST: dict[str, timedelta] = {
    "day": timedelta(hours=20),
    "week": timedelta(days=6, hours=20),
    "month": timedelta(days=27, hours=20),
    "year": timedelta(days=364, hours=20),
}


def month_cycle_id(at: datetime) -> str:
    """The UTC calendar month of an aware time, such as "2026-11": the tier cycle of a connection without a plan."""
    assert at.tzinfo is not None
    utc = at.astimezone(UTC)
    return f"{utc.year:04d}-{utc.month:02d}"


def previous_month_cycle_id(at: datetime) -> str:
    """The UTC calendar month before that of an aware time: calls of it may still be open, of older ones none is."""
    assert at.tzinfo is not None
    utc = at.astimezone(UTC)
    return month_cycle_id(utc.replace(day=1) - timedelta(days=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """Half-open: `start` belongs to it, `end` to the next. Both are aware UTC; `end` of n is `start` of n + 1."""

    index: int
    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        assert self.start < self.end, "a period has a length"


def period(anchor: datetime, interval: Interval, index: int, zone: tzinfo = UTC) -> Period:
    """The period with an index, from 0: the one that begins at the anchor (an aware time)."""
    assert index >= 0
    return Period(index=index, start=_boundary(anchor, interval, index, zone), end=_boundary(anchor, interval, index + 1, zone))


def period_at(anchor: datetime, interval: Interval, at: datetime, zone: tzinfo = UTC) -> Period:
    """The period that an aware time, not before the anchor, is in."""
    assert at >= anchor
    low, high = 0, (at - anchor) // _SHORTEST[interval] + 1
    while high - low > 1:  # boundary(low) <= at < boundary(high)
        middle = (low + high) // 2
        if _boundary(anchor, interval, middle, zone) <= at:
            low = middle
        else:
            high = middle
    return period(anchor, interval, low, zone)


def _boundary(anchor: datetime, interval: Interval, index: int, zone: tzinfo) -> datetime:
    if index == 0:
        return anchor.astimezone(UTC)
    local = anchor.astimezone(zone)
    day = _moved(local.date(), interval, index)
    # A time that a clock set forward leaves out means the same distance from midnight before the change (PEP 495, fold=0).
    return datetime.combine(day, local.time(), tzinfo=zone).astimezone(UTC)


def _moved(day: date, interval: Interval, count: int) -> date:
    if interval in _DAYS:
        return day + timedelta(days=_DAYS[interval] * count)
    months = day.year * _MONTHS_PER_YEAR + day.month - 1 + count * (_MONTHS_PER_YEAR if interval == "year" else 1)
    year, month = months // _MONTHS_PER_YEAR, months % _MONTHS_PER_YEAR + 1
    return date(year, month, min(day.day, calendar.monthrange(year, month)[1]))
