"""Tolerant JSON: decimals as written, fragments, strange strings."""

from __future__ import annotations

from decimal import Decimal

from lava_proxy.wire import json_scan


def test_fractions_come_out_as_written() -> None:
    raw = b'{"usage":{"cost":0.5},"x":{"usage":{"cost":0.00765091690000000051}}}'
    document = json_scan.loads(raw)
    assert json_scan.exact(raw, "usage", document["x"]["usage"]) == {"cost": Decimal("0.00765091690000000051")}
    assert json_scan.exact(raw, "usage", document["usage"]) == {"cost": Decimal("0.5")}


def test_text_that_talks_about_usage_is_not_usage() -> None:
    raw = b'{"content":"say \\"usage\\": {\\"prompt_tokens\\": 9}", "usage": {"prompt_tokens": 1}} trailing'
    assert list(json_scan.objects_named(raw, "usage")) == [{"prompt_tokens": 1}]


def test_an_object_that_is_cut_short_is_not_found() -> None:
    assert list(json_scan.objects_named(b'{"usage": {"prompt_tokens": 1', "usage")) == []


def test_lone_surrogates_and_control_characters_are_read_and_nonsense_is_none() -> None:
    assert json_scan.loads(b'{"a":"\\ud83d"}') == {"a": "\ud83d"}
    assert json_scan.loads(b'{"a":"\x01"}') == {"a": "\x01"}
    for raw in (b"", b"{", b"nonsense", b"[" * 100_000, b"\xff"):
        assert json_scan.loads(raw) is None
