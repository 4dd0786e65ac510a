"""billing/report_body.py: what a report may say, and that every problem of one is told at once."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest

from lava_proxy.billing.report_body import read_report
from lava_proxy.domain.errors import CallerError

GOOD: dict[str, Any] = {"request_id": "order 1", "customer_id": "con_1", "meter_slug": "chat"}


def test_the_least_report_is_an_id_a_customer_and_a_meter() -> None:
    read = read_report({**GOOD, "unknown": {"to": "us"}, "model": None, "metadata": {}})
    assert (read.request_key, read.customer_ref, read.meter_ref) == ("order 1", "con_1", "chat")
    assert (read.usage, read.metadata, read.model, read.provider) == ({}, None, None, None)


@pytest.mark.parametrize("customer", ["customer_id", "connection_id", "connection_secret"])
@pytest.mark.parametrize("meter", ["meter_slug", "meter_id", "product_secret", "meter_secret", "product_id"])
def test_customer_and_meter_have_the_names_of_every_generation(customer: str, meter: str) -> None:
    read = read_report({"request_id": "r", customer: "c", meter: "m"})
    assert (read.customer_ref, read.meter_ref) == ("c", "m")


def test_decimals_keep_their_digits_and_seconds_are_kept_to_the_microsecond() -> None:
    """53: no float decides about an amount."""
    body = b'{"request_id":"r","customer_id":"c","meter_id":"m","input_seconds":0.1,"output_seconds":2.5e-6,"input_tokens":10.0}'
    assert read_report(orjson.loads(body)).usage == {
        "input_tokens": 10, "input_seconds": Decimal("0.1"), "output_seconds": Decimal("0.000002")
    }  # fmt: skip
    assert read_report({**GOOD, "input_seconds": 0.1 + 0.2}).usage["input_seconds"] == Decimal("0.3")
    assert read_report({**GOOD, "input_seconds": 7.0, "cost": "0.0025"}).usage == {
        "input_seconds": 7, "provider_cost_usd": Decimal("0.0025")
    }  # fmt: skip
    assert type(read_report({**GOOD, "input_seconds": 7.0}).usage["input_seconds"]) is int


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_tokens", -1), ("input_tokens", 1.5), ("output_tokens", 10**12 + 1), ("input_characters", 1e300),
        ("output_characters", True), ("input_tokens", "12"), ("input_tokens", [1]), ("input_seconds", -0.5),
        ("output_seconds", 1e12), ("input_seconds", "1"), ("cost", "-1"), ("cost", "1e3"), ("cost", "9000001"), ("cost", True),
        ("cost", "0.0000000000000000000001"), ("model", ""), ("model", 5), ("model", "m" * 256), ("provider", ["openai"]),
        ("metadata", [1]), ("metadata", {"a b": "c"}), ("metadata", {"a": 1}), ("metadata", {"a": ""}),
        ("metadata", {"a": "x" * 256}), ("metadata", {"k" * 256: "v"}), ("metadata", {str(n): "v" for n in range(101)}),
        ("request_id", ""), ("request_id", "x" * 256), ("request_id", 7), ("request_id", "a\0b"), ("customer_id", ""),
        ("customer_id", 3), ("meter_slug", "m\0"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_name(name: str, value: object) -> None:
    """I31: usage is never negative; nothing huge, fractional or of another kind counts either."""
    with pytest.raises(CallerError) as refused:
        read_report({**GOOD, name: value})
    assert refused.value.code == "invalid_parameter" and refused.value.status == 400
    assert name in refused.value.message and "accepted" in refused.value.message


def test_all_problems_of_a_body_are_told_together() -> None:
    with pytest.raises(CallerError) as refused:
        read_report({"input_tokens": -5, "output_seconds": "x", "metadata": {"é": "v", "ok": 3}})
    message = refused.value.message
    for word in ("request_id", "customer_id", "meter_slug", "input_tokens is -5", "output_seconds is 'x'", "'é'", "metadata.ok"):
        assert word in message, message


@pytest.mark.parametrize("value", [None, [], "text", 3, True])
def test_what_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(CallerError) as refused:
        read_report(value)
    assert refused.value.code == "invalid_json"


def test_metadata_stands_in_the_order_in_which_it_is_stored() -> None:
    metadata = {"bb": "1", "a": "2", "B": "3", "ccc": "4"}
    assert list(read_report({**GOOD, "metadata": metadata}).metadata or {}) == ["B", "a", "bb", "ccc"]
