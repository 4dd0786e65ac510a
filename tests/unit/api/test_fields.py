"""What bodies and query strings are made of: each piece takes what it says, refuses the rest by name, and gives plain values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_proxy.api.fields import (
    CustomerFilter,
    Email,
    Metadata,
    MetadataFilters,
    MeterFilter,
    Moment,
    Name,
    PageQuery,
    Phone,
    ReferenceId,
    Usd,
    Whole,
)
from lava_proxy.api.operations import Body, checked
from lava_proxy.domain.errors import CallerError
from lava_proxy.wire.texts import is_reference, split_name

ID = "req_01HZZZZZZZZZZZZZZZZZZZZZZZ"


class Everything(Body):
    name: Name | None = None
    reference_id: ReferenceId | None = None
    email: Email | None = None
    phone: Phone | None = None
    amount: Usd | None = None
    count: Whole | None = None
    at: Moment | None = None
    metadata: Metadata | None = None


class RequestsPage(PageQuery, CustomerFilter, MeterFilter):
    prefix: ClassVar[str] = "req"

    metadata_filters: MetadataFilters | None = None


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("name", "Ünï 中文 chat", "Ünï 中文 chat"),
        ("reference_id", "user-42", "user-42"),
        ("email", "ada@example.com", "ada@example.com"),
        ("phone", "+1 (415) 555-0123", "+14155550123"),
        ("phone", "+442079460958", "+442079460958"),
        ("amount", "25.00", 25_000_000_000),
        ("amount", "0.000000001", 1),
        ("amount", "9000000", 9_000_000 * 10**9),
        ("count", 0, 0),
        ("at", "2026-01-31T08:35:42Z", datetime(2026, 1, 31, 8, 35, 42, tzinfo=UTC)),
        ("at", "2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("at", "2026-01-31T00:00:00+05:30", datetime(2026, 1, 31, tzinfo=timezone(timedelta(hours=5, minutes=30)))),
        ("metadata", {"a": [1, {"b": Decimal("0.10")}], "\\u0000": "text"}, {"a": [1, {"b": Decimal("0.10")}], "\\u0000": "text"}),
        ("metadata", {}, {}),
    ],
)
def test_what_is_accepted_becomes_what_the_program_works_with(field: str, value: object, kept: object) -> None:
    assert getattr(checked(Everything, {field: value}), field) == kept


def test_a_time_keeps_the_offset_it_was_sent_with() -> None:
    """Days of a report are counted in it."""
    at = checked(Everything, {"at": "2026-01-31T00:00:00+05:30"}).at
    assert at is not None and at.utcoffset() == timedelta(hours=5, minutes=30)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("name", value) for value in ("", " ", "x" * 256, "a\nb", "a\0", "\ud800", 5, [], {})),
        *(("reference_id", value) for value in ("con_x", "", "a\tb")),
        *(("email", value) for value in ("a", "a@", "@b", "a@b@c", "a b@c", "x" * 251 + "@b.c", 1)),
        *(("phone", value) for value in ("4155550123", "+", "+1", "+999123", "+1415555012345678901", "+14155550123x5", "+१४", 1)),
        *(("amount", value) for value in ("-1", "1e-10", "0.0000000001", "9000000.01", "NaN", "1_0", "", 5, True, Decimal(5))),
        *(("count", value) for value in (-1, 2**53 + 1, 10**400, Decimal(1), "1", True)),
        *(("at", value) for value in ("", "now", "2026-13-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", 17)),
        *(("metadata", value) for value in ([], "{}", {"a": "\0"}, {"\0": 1}, {"\ud800": 1}, {"a": "x" * 16_384})),
        *(("metadata", {"a": number}) for number in (10**18, Decimal("1e999999999"), Decimal("1e-19"), Decimal("NaN"))),
    ],
)  # fmt: skip
def test_what_is_not_accepted_is_a_sentence_that_names_the_field(field: str, value: object) -> None:
    with pytest.raises(CallerError, match=f"{field} is .*: ") as caught:
        checked(Everything, {field: value})
    assert caught.value.code == "invalid_parameter" and len(caught.value.message) < 300


def test_metadata_nested_without_end_is_refused_without_following_it() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(CallerError, match="nested at most 16 deep"):
        checked(Everything, {"metadata": {"a": deep}})
    while deep:  # taken apart by hand: a chain so long is not freed by recursion
        deep = deep.pop("a")


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("Ada Lovelace", "Ada", "Lovelace"), ("Ada King Lovelace", "Ada King", "Lovelace"), ("Ada", "Ada", None), ("", None, None)],
)
def test_a_name_is_split_at_its_last_space(name: str, first: str | None, last: str | None) -> None:
    assert split_name(name) == (first, last)


def test_nothing_given_is_the_first_page_of_ten_without_filters() -> None:
    page = checked(RequestsPage, {"unknown": "ignored", "cursor": ""})
    assert (page.limit, page.cursor, page.customer, page.meter, page.metadata_filters) == (10, None, None, None, None)


@pytest.mark.parametrize(("text", "limit"), [("1", 1), ("007", 7), ("100", 100)])
def test_limits_from_one_to_a_hundred_are_accepted(text: str, limit: int) -> None:
    page = checked(RequestsPage, {"limit": text, "cursor": ID})
    assert (page.limit, page.cursor) == (limit, ID)


@pytest.mark.parametrize("text", ["0", "101", "", "ten", "1e1", "+5", " 5", "٣", "9" * 5000])
def test_other_limits_are_a_problem(text: str) -> None:
    with pytest.raises(CallerError, match=r"limit is .*: accepted is a whole number from 1 to 100\.") as caught:
        checked(RequestsPage, {"limit": text})
    assert len(caught.value.message) < 200


def test_one_filter_may_be_sent_under_both_names_with_one_value() -> None:
    page = checked(RequestsPage, {"customer_id": "a", "connection_id": "a", "product_id": "m"})
    assert (page.customer, page.meter) == ("a", "m")
    with pytest.raises(CallerError, match=r"meter_id and product_id.*customer_id and connection_id"):
        checked(RequestsPage, {"customer_id": "a", "connection_id": "b", "meter_id": "m", "product_id": "n"})


@pytest.mark.parametrize(("text", "filters"), [('[["a","b"],["a","b"],["c","d"]]', {"a": "b", "c": "d"}), ("[]", {})])
def test_metadata_filters_are_pairs(text: str, filters: dict[str, str]) -> None:
    assert checked(RequestsPage, {"metadata_filters": text}).metadata_filters == filters


@given(st.text(max_size=300))
def test_any_cursor_is_an_id_or_a_problem(text: str) -> None:
    try:
        page = checked(RequestsPage, {"cursor": text})
    except CallerError as error:
        assert "cursor is" in error.message
    else:
        assert page.cursor is None or is_reference(page.cursor)


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused_by_every_field(text: str) -> None:
    """Nothing a stranger sends makes a check fail otherwise."""
    for field in Everything.model_fields:
        try:
            checked(Everything, {field: text})
        except CallerError:
            continue
