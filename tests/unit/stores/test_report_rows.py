"""stores/report_rows.py: a report's row says what a call's row says, whatever its texts are."""

from __future__ import annotations

import orjson
import pytest

from lava_proxy.stores.report_rows import is_report_row, report_row, report_start, row_fields, row_of, start_fields, text_of

ODD = 'a"b\\c\x1e\x1f\x7f|,é\u2028🙂'


def start(provider: str = "openai") -> bytes:
    return report_start(
        merchant_id="mer_1",
        connection_id="con_1",
        meter_id="met_1",
        meter_version=7,
        provider=orjson.dumps(provider),
        tier_field="t:m:c",
    )


def row(text: str, **changes: bytes) -> bytes:
    parts = {
        "model": orjson.dumps(text), "usage": b'{"input_tokens":3,"provider_cost_usd":0.10}', "metadata": orjson.dumps({"k": text}),
        "breakdown": b'{"charge":[[0,1,3,4]],"cost":[]}', "price_version": orjson.dumps(text), **changes,
    }  # fmt: skip
    return report_row(
        start(text), request_key=orjson.dumps(text), fingerprint="f", cost_nanos=5, priced_at_ms=1_700_000_000_123, units=3, **parts
    )


@pytest.mark.parametrize("text", ["plain", ODD, "R1", '"merchant_id":"mer_2"'])
def test_a_report_row_reads_as_it_was_written_whatever_its_texts_are(text: str) -> None:
    """I28, G12: separators, quotes and backslashes of strangers stay theirs; digits of JSON parts stay as they were."""
    found = row_of(row(text))
    assert found == {
        "merchant_id": "mer_1", "connection_id": "con_1", "meter_id": "met_1", "meter_version": 7, "provider": text,
        "tier_field": "t:m:c", "request_key": text, "fingerprint": "f", "model": text,
        "usage": '{"input_tokens":3,"provider_cost_usd":0.10}', "metadata": found["metadata"], "cost_nanos": 5,
        "breakdown": '{"charge":[[0,1,3,4]],"cost":[]}', "price_version": text, "priced_at_ms": 1_700_000_000_123, "tier_units": 3,
        "provider_key_type": "stored", "endpoint": "POST /v1/requests", "api": "report", "streamed": False, "status": "completed",
        "outcome": "completed", "provenance": "reported", "response_id": None, "http_status": None, "billed": True,
        "price_model": None, "service_tier": None, "timings": None,
    }  # fmt: skip
    assert orjson.loads(found["metadata"]) == {"k": text}
    first, (request_key, *_) = row_fields(row(text))
    assert start_fields(first)[0] == b"mer_1"
    assert text_of(request_key) == text.encode()


def test_what_a_report_does_not_say_is_none() -> None:
    """A row without model, metadata and price version."""
    found = row_of(row("x", model=b"", metadata=b"", price_version=b""))
    assert (found["model"], found["metadata"], found["price_version"]) == (None, None, None)


def test_rows_of_calls_and_of_earlier_releases_are_json() -> None:
    """G12: what waits in an outbox while the program is renewed is still read."""
    assert is_report_row(row("x"))
    assert not is_report_row(b'{"merchant_id":"R1"}')
    assert row_of(b'{"merchant_id":"mer_1","usage":"{}"}') == {"merchant_id": "mer_1", "usage": "{}"}
