"""stores/row_repair.py: ordinary rows come out as they were, impossible ones keepable."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_proxy.stores.row_repair import repaired


def test_an_ordinary_row_is_not_changed() -> None:
    row = {
        "model": "gpt-5.4", "http_status": 200, "cost_nanos": 12, "usage": '{"input_tokens":3,"note":"\\u00e9 \\\\u0000"}',
        "metadata": None, "billed": True, "tier_units": 0,
    }  # fmt: skip
    found = repaired(row)
    assert json.loads(found.pop("usage")) == json.loads(str(row.pop("usage")))
    assert found == row


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model", "a\0b", "a\ufffdb"),
        ("model", "a\ud800", "a?"),
        ("http_status", 99_999, 32_767),
        ("cost_nanos", 2**70, 2**63 - 1),
        ("usage", "{", "{}"),
        ("metadata", '{"a":"\\u0000"}', '{"a":"\ufffd"}'),
        ("usage", '{"a":1e999999}', '{"a":"1E+999999"}'),
    ],
)
def test_what_postgres_refuses_is_replaced(name: str, value: Any, expected: Any) -> None:
    assert repaired({name: value}) == {name: expected}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=json_values, text=st.text(st.characters(codec=None)))
def test_whatever_comes_in_what_comes_out_is_clean_text_and_json(value: Any, text: str) -> None:
    found = repaired({"usage": json.dumps(value), "model": text})
    for kept in found.values():
        assert "\0" not in kept
        assert kept.encode().decode() == kept
    assert "\\u0000" not in json.dumps(json.loads(found["usage"]))
