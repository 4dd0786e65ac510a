"""api/queries.py: every reader returns a value or notes a problem that names the field; problems are raised together."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import MultiDict

from lava_proxy.api.queries import Page, Query, is_reference
from lava_proxy.domain.errors import CallerError

ID = "req_01HZZZZZZZZZZZZZZZZZZZZZZZ"


def query(**values: str) -> Query:
    return Query(MultiDict(values))


def test_nothing_given_is_the_first_page_of_ten_without_filters() -> None:
    found = query()
    assert found.page("req") == Page(None, 10)
    assert found.metadata_filters() == {} and found.text("customer_id", "connection_id") is None
    found.check()


@pytest.mark.parametrize(("text", "limit"), [("1", 1), ("007", 7), ("100", 100)])
def test_limits_from_one_to_a_hundred_are_accepted(text: str, limit: int) -> None:
    found = query(limit=text, cursor=ID)
    assert found.page("req") == Page(ID, limit)
    found.check()


@pytest.mark.parametrize("text", ["0", "101", "", "ten", "1e1", "+5", " 5", "٣", "9" * 5000])
def test_other_limits_are_a_problem(text: str) -> None:
    found = query(limit=text)
    found.page("req")
    with pytest.raises(CallerError, match=r"limit is .*; accepted is a whole number from 1 to 100\.") as caught:
        found.check()
    assert len(caught.value.message) < 200


def test_one_filter_may_be_sent_under_both_names_with_one_value() -> None:
    assert query(customer_id="a", connection_id="a").text("customer_id", "connection_id") == "a"


@given(st.text(max_size=300))
def test_any_cursor_is_an_id_or_a_problem(text: str) -> None:
    found = query(cursor=text)
    page = found.page("req")
    assert page.before is None or is_reference(page.before)
    assert bool(text) == (page.before is not None or bool(found.problems))


@given(st.text(max_size=60))
def test_any_text_of_filters_is_read_or_a_problem(text: str) -> None:
    found = query(metadata_filters=text)
    filters = found.metadata_filters()
    assert found.problems or isinstance(filters, dict)


@given(st.dictionaries(st.from_regex(r"\A[A-Za-z0-9_]{1,10}\Z"), st.text(min_size=1, max_size=20), max_size=8))
def test_pairs_that_metadata_can_have_come_back(pairs: dict[str, str]) -> None:
    found = query(metadata_filters=json.dumps([[key, value] for key, value in pairs.items()]))
    if any("\0" in value for value in pairs.values()):
        assert found.metadata_filters() == {} and found.problems
    else:
        assert found.metadata_filters() == pairs and not found.problems


def test_the_same_pair_twice_is_one() -> None:
    found = query(metadata_filters='[["a","1"],["a","1"]]')
    assert found.metadata_filters() == {"a": "1"} and not found.problems


def test_deep_nesting_is_a_problem_and_no_crash() -> None:
    found = query(metadata_filters="[" * 100_000)
    assert found.metadata_filters() == {} and found.problems


@pytest.mark.parametrize("text", ["", "x" * 256, "a\0b", "a\nb", "\ud800"])
def test_text_that_no_id_can_be_is_not_a_reference(text: str) -> None:
    assert not is_reference(text)


def test_a_reference_may_have_spaces_and_any_script() -> None:
    assert is_reference("Zoë at 株式会社")
