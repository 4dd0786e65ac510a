"""domain/limits.py: cycles tile, JSON forms round-trip, and what is not accepted is named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_proxy.domain.errors import CallerError
from lava_proxy.domain.limits import Cycle, Limits, cycle_end, cycle_id, limits_document, parse_limits

moments = st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))


@pytest.mark.parametrize(
    ("cycle", "name", "end"),
    [
        ("daily", "d2026-12-31", datetime(2027, 1, 1, tzinfo=UTC)),
        ("weekly", "w2026-53", datetime(2027, 1, 4, tzinfo=UTC)),
        ("monthly", "m2026-12", datetime(2027, 1, 1, tzinfo=UTC)),
        ("total", "t", None),
    ],
)
def test_a_cycle_has_a_name_and_an_end(cycle: Cycle, name: str, end: datetime | None) -> None:
    at = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert (cycle_id(cycle, at), cycle_end(cycle, at)) == (name, end)


@given(moments, st.sampled_from(["daily", "weekly", "monthly"]))
def test_cycles_tile(at: datetime, cycle: Any) -> None:
    """I23: the name holds until the end, where the next begins."""
    end = cycle_end(cycle, at)
    assert end is not None and end > at
    assert cycle_id(cycle, end - timedelta(microseconds=1)) == cycle_id(cycle, at) != cycle_id(cycle, end)


counts = st.none() | st.integers(1, 10**9)


@given(counts, counts, counts, counts, counts, st.none() | st.integers(0, 9_000_000 * 10**9), st.sampled_from(get_args(Cycle)))
def test_limits_survive_their_json_form(
    rpm: int | None, burst: int | None, tpm: int | None, calls: int | None, count: int | None, spend: int | None, cycle: Cycle
) -> None:
    limits = Limits(
        requests_per_minute=rpm, request_burst=burst if rpm else None, tokens_per_minute=tpm, concurrent_calls=calls,
        request_count=count, request_cycle=cycle if count is not None else "monthly", spend_nanos=spend,
        spend_cycle=cycle if spend is not None else "monthly",
    )  # fmt: skip
    assert parse_limits(limits_document(limits)) == limits


def test_the_wires_form_is_read_and_null_is_no_limit() -> None:
    document = {
        "spend_limit": {"amount": "25.00", "cycle": "daily"}, "request_limit": None, "rate_limit": {"rpm": 60}, "name": "other",
    }  # fmt: skip
    found = parse_limits(document)
    assert found == Limits(spend_nanos=25 * 10**9, spend_cycle="daily", requests_per_minute=60)
    assert limits_document(found)["spend_limit"] == {"amount": "25.00", "cycle": "daily"}


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ({"spend_limit": {"amount": 25, "cycle": "daily"}}, "spend_limit.amount"),
        ({"spend_limit": {"amount": "-1", "cycle": "daily"}}, "spend_limit.amount"),
        ({"spend_limit": {"amount": "1.00", "cycle": "hourly"}}, "spend_limit.cycle"),
        ({"spend_limit": {"amount": "1.00"}}, "spend_limit.cycle"),
        ({"spend_limit": "1.00"}, "spend_limit"),
        ({"request_limit": {"count": 0, "cycle": "daily"}}, "request_limit.count"),
        ({"request_limit": {"count": True, "cycle": "daily"}}, "request_limit.count"),
        ({"rate_limit": {"rpm": 10**9 + 1}}, "rate_limit.rpm"),
        ({"rate_limit": {"rpm": 1, "burst": "2"}}, "rate_limit.burst"),
        ({"rate_limit": {"rps": 1}}, "rate_limit"),
        ({"token_limit": {}}, "token_limit.tpm"),
        ({"concurrency_limit": -1}, "concurrency_limit"),
    ],
)
def test_what_is_not_accepted_is_named(document: dict[str, Any], word: str) -> None:
    with pytest.raises(CallerError, match=word):
        parse_limits(document)
