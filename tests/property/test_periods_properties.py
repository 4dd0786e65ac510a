"""A subscription's periods tile time, in every zone, through month ends, leap days and changes of the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lava_proxy.domain.calendar import Interval, period, period_at

ZONES = (
    "UTC", "America/Sao_Paulo", "America/New_York", "Pacific/Kiritimati", "Pacific/Apia", "Australia/Lord_Howe", "Asia/Kathmandu",
    "Europe/Berlin", "Africa/Casablanca", "America/St_Johns", "Antarctica/Troll",
)  # fmt: skip
moments = st.datetimes(datetime(1970, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))
intervals = st.sampled_from(("day", "week", "month", "year"))
zones = st.sampled_from(ZONES).map(ZoneInfo)


@settings(max_examples=400, deadline=None)
@given(anchor=moments, interval=intervals, zone=zones, index=st.integers(0, 120))
@example(anchor=datetime(2024, 2, 29, 23, 30, tzinfo=UTC), interval="year", zone=ZoneInfo("Pacific/Kiritimati"), index=3)
def test_periods_tile_from_1970_to_2100_in_any_zone(anchor: datetime, interval: Interval, zone: ZoneInfo, index: int) -> None:
    """I23, 92, 93, 102: the end of one is the start of the next, and each moment is in exactly one."""
    if anchor.year + index > 2100 and interval == "year":
        index = 2100 - anchor.year
    this, following = period(anchor, interval, index, zone), period(anchor, interval, index + 1, zone)
    assert this.end == following.start and this.start < this.end
    assert period_at(anchor, interval, this.start, zone) == this
    assert period_at(anchor, interval, this.end - timedelta(microseconds=1), zone) == this
    assert period_at(anchor, interval, this.end, zone) == following


@settings(max_examples=200, deadline=None)
@given(anchor=moments, interval=st.sampled_from(("month", "year")), zone=zones, index=st.integers(1, 60))
def test_the_day_of_the_month_comes_back_after_a_short_month(
    anchor: datetime, interval: Interval, zone: ZoneInfo, index: int
) -> None:
    """I23, 83, 99, 100: clamping to a short month never sticks."""
    wanted, found = anchor.astimezone(zone), period(anchor, interval, index, zone).start.astimezone(zone)
    last_of_month = (found.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
    # A whole day can be missing from a zone's calendar (Apia, 30 December 2011): then the boundary is the next one's.
    assert found.day in (wanted.day, min(wanted.day, last_of_month.day)) or abs(found.day - wanted.day) == 1


def test_the_31st_is_billed_every_month_of_the_year() -> None:
    """83, 99: an anchor on the 31st has twelve periods a year, each from the last day where a month is shorter."""
    anchor = datetime(2026, 1, 31, tzinfo=UTC)
    days = [(period(anchor, "month", n).start.month, period(anchor, "month", n).start.day) for n in range(13)]
    assert days == [
        (1, 31), (2, 28), (3, 31), (4, 30), (5, 31), (6, 30), (7, 31), (8, 31), (9, 30), (10, 31), (11, 30), (12, 31), (1, 31),
    ]  # fmt: skip


@pytest.mark.parametrize(("year", "day"), [(2025, 28), (2026, 28), (2027, 28), (2028, 29), (2032, 29)])
def test_a_leap_day_anniversary_is_the_29th_again_in_leap_years(year: int, day: int) -> None:
    """102: neither a gap nor a day billed twice."""
    anchor = datetime(2024, 2, 29, 12, tzinfo=UTC)
    assert period(anchor, "year", year - 2024).start == datetime(year, 2, day, 12, tzinfo=UTC)


def test_periods_are_half_open_and_follow_the_customers_midnight() -> None:
    """92, 93: the first instant of a cycle is in it; a clock set forward makes a shorter day, not a gap."""
    zone = ZoneInfo("Europe/Berlin")
    anchor = datetime(2026, 3, 28, 23, tzinfo=UTC)  # midnight of the 29th, when the clock is set forward
    first, second = period(anchor, "day", 0, zone), period(anchor, "day", 1, zone)
    assert first.end - first.start == timedelta(hours=23) and second.end - second.start == timedelta(hours=24)
    assert period_at(anchor, "day", first.end, zone) == second
