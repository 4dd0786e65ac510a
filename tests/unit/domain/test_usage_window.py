"""domain/usage_window.py: windows are cut into buckets that tile, in any zone, and times are read as callers write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_proxy.domain.usage_window import BUCKET_LENGTHS, BucketName, Moment, UsageWindow, iso, parse_moment, window_of

NOW = datetime(2026, 11, 23, 12, 7, 30, tzinfo=UTC)
offsets = st.integers(-56, 56).map(lambda quarters: timezone(timedelta(minutes=15 * quarters)))
starts = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=offsets)
lengths = st.timedeltas(timedelta(milliseconds=1), timedelta(days=7))


@given(starts, lengths, st.sampled_from(["day", "hour", "15m"]))
def test_buckets_tile_the_window_in_any_zone(start: datetime, length: timedelta, bucket: BucketName) -> None:
    """I23: no gap, no overlap, the first holds the start, the last the end; days begin at midnight of the start's offset."""
    window = UsageWindow(start=start, end=start + length, bucket=bucket)
    firsts = window.first_instants()
    step = BUCKET_LENGTHS[bucket]
    assert all(b - a == step for a, b in pairwise(firsts))
    assert firsts[0] <= start < firsts[0] + step
    assert firsts[-1] < window.end <= firsts[-1] + step
    assert all(first.utcoffset() == start.utcoffset() for first in firsts)
    assert all((first - firsts[0].replace(hour=0, minute=0, second=0, microsecond=0)) % step == timedelta(0) for first in firsts)
    if bucket == "day":
        assert all((first.hour, first.minute, first.second) == (0, 0, 0) for first in firsts)


@given(starts, lengths)
def test_the_rolled_part_lies_within_on_quarter_hours(start: datetime, length: timedelta) -> None:
    window = UsageWindow(start=start, end=start + length)
    first, after = window.rolled()
    for edge in (first, after):
        assert edge.astimezone(UTC).minute % 15 == 0 and (edge.second, edge.microsecond) == (0, 0)
    assert start <= first < start + timedelta(minutes=15)
    assert window.end - timedelta(minutes=15) < after <= window.end


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-01-15T10:30:00Z", datetime(2026, 1, 15, 10, 30, tzinfo=UTC)),
        ("2026-01-15t10:30:00z", datetime(2026, 1, 15, 10, 30, tzinfo=UTC)),
        ("2026-01-15", datetime(2026, 1, 15, tzinfo=UTC)),
        ("2026-01-15T10:30:00", datetime(2026, 1, 15, 10, 30, tzinfo=UTC)),
        ("2026-01-15T10:30:00+05:45", datetime(2026, 1, 15, 4, 45, tzinfo=UTC)),
        ("2026-01-15T10:30:00 05:45", datetime(2026, 1, 15, 4, 45, tzinfo=UTC)),
        ("2026-01-15 10:30 02:00", datetime(2026, 1, 15, 8, 30, tzinfo=UTC)),
        ("2026-01-15 10:30:00", datetime(2026, 1, 15, 10, 30, tzinfo=UTC)),
        ("2026-01-15 10:30", datetime(2026, 1, 15, 10, 30, tzinfo=UTC)),
        ("2026-01-15T10:30:00.123-0330", datetime(2026, 1, 15, 14, 0, 0, 123_000, tzinfo=UTC)),
    ],
)
def test_times_are_read_as_callers_write_them(text: str, at: datetime) -> None:
    """53: also with a plus that a query string has turned into a space."""
    assert parse_moment(text).at == at


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2026-13-01", "1795000000", "2026-01-15T10:30:00+00:07", "0001-01-01T00:00:00+14:00", "9999-12-31", "\0"],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="accepted"):
        parse_moment(text)


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_a_value_error(text: str) -> None:
    try:
        moment = parse_moment(text)
    except ValueError:
        return
    assert moment.after > moment.at


@pytest.mark.parametrize(
    ("start", "end", "first", "after"),
    [
        # An end is inclusive: to the day, the second or the millisecond that was written.
        ("2026-01-15", "2026-01-16", "2026-01-15T00:00:00Z", "2026-01-17T00:00:00Z"),
        ("2026-01-15", "2026-01-16T23:59:59Z", "2026-01-15T00:00:00Z", "2026-01-17T00:00:00Z"),
        ("2026-01-15", "2026-01-16T23:59:59.999Z", "2026-01-15T00:00:00Z", "2026-01-17T00:00:00Z"),
        ("2026-01-15T08:00:00Z", "2026-01-15T08:00:00Z", "2026-01-15T08:00:00Z", "2026-01-15T08:00:01Z"),
        # A day without a zone is one of the start's zone.
        ("2026-01-15T00:00:00+05:45", "2026-01-15", "2026-01-15T00:00:00+05:45", "2026-01-16T00:00:00+05:45"),
        # The default end is now, to the end of its quarter hour.
        ("2026-11-23", None, "2026-11-23T00:00:00Z", "2026-11-23T12:15:00Z"),
        ("2026-11-24", None, "2026-11-24T00:00:00Z", "2026-11-24T00:15:00Z"),
    ],
)
def test_a_window_goes_from_its_start_to_the_last_moment_of_its_end(start: str, end: str | None, first: str, after: str) -> None:
    """91: the same time twice is that one second."""
    window = window_of(parse_moment(start), parse_moment(end) if end else None, now=NOW)
    assert (iso(window.start), iso(window.end)) == (first, after)


@pytest.mark.parametrize("at", ["2026-11-23T23:59:59.900Z", "2026-11-23T23:45:00Z", "2026-11-23T00:00:00Z"])
def test_until_now_never_reaches_into_tomorrow(at: str) -> None:
    window = window_of(parse_moment("2026-11-20"), None, now=parse_moment(at).at)
    assert [iso(first)[:10] for first in window.first_instants()] == ["2026-11-20", "2026-11-21", "2026-11-22", "2026-11-23"]


@pytest.mark.parametrize(
    ("start", "end", "bucket", "says"),
    [
        ("2026-01-15T00:00:01Z", "2026-01-15T00:00:00Z", "day", "end is before start"),
        ("2024-01-01", "2026-01-01", "day", "400 days"),
        ("2026-01-01", "2026-03-01", "hour", "32 days"),
        ("2026-01-01", "2026-01-31", "15m", "8 days"),
    ],
)
def test_windows_that_end_early_or_are_too_long_are_refused(start: str, end: str, bucket: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        window_of(parse_moment(start), parse_moment(end), now=NOW, bucket=bucket)


def test_a_window_ends_after_its_start() -> None:
    with pytest.raises(ValueError, match="ends after"):
        UsageWindow(start=NOW, end=NOW)
    assert Moment(at=NOW).after == NOW + timedelta(seconds=1)
