"""Streamed JSON arrays and lines, in any split."""

from __future__ import annotations

import json

import pytest

from lava_proxy.wire.json_stream import ArrayElements, LineBuffer, split_lines

ARRAY = '[{"a":"x]}\\"[{"},\r\n{"b":[1,{"c":"\\\\"}]}\r\n,\r\n7,"s",[{"d":"日"}]]'.encode()
ELEMENTS = [{"a": 'x]}"[{'}, {"b": [1, {"c": "\\"}]}, [{"d": "日"}]]


def test_elements_come_out_at_every_split() -> None:
    """A20: brackets and quotes inside strings, escapes at the edge, scalars between."""
    for cut in range(len(ARRAY) + 1):
        elements = ArrayElements()
        found = elements.feed(ARRAY[:cut]) + elements.feed(ARRAY[cut:])
        assert [json.loads(element) for element in found] == ELEMENTS
        assert elements.closed


def test_elements_come_out_byte_by_byte_and_as_soon_as_they_end() -> None:
    elements = ArrayElements()
    found: list[tuple[int, object]] = []
    for position in range(len(ARRAY)):
        found += [(position, json.loads(element)) for element in elements.feed(ARRAY[position : position + 1])]
    assert [value for _, value in found] == ELEMENTS
    assert found[0][0] == ARRAY.index(b"},\r\n")


def test_an_unfinished_array_is_not_closed_and_bytes_after_the_end_are_ignored() -> None:
    elements = ArrayElements()
    assert elements.feed(b'[{"a":1},{"b"') == [b'{"a":1}']
    assert not elements.closed
    assert elements.feed(b":2}] trailing {") == [b'{"b":2}']
    assert elements.closed
    assert elements.feed(b'{"c":3}') == []


@pytest.mark.parametrize("step", [1000, 50_000])
def test_a_huge_element_is_cut_in_the_middle_and_the_next_is_whole(step: int) -> None:
    """I3: an inline image does not grow memory."""
    elements = ArrayElements(element_bytes_max=100_000)
    body = b'[{"model":"m","data":"' + b"A" * 400_000 + b'","usageMetadata":{"n":1}},{"b":2}]'
    found: list[bytes] = []
    for start in range(0, len(body), step):
        found += elements.feed(body[start : start + step])
        assert len(elements._buffer) <= 100_000 + step
    assert found[0].startswith(b'{"model":"m"') and found[0].endswith(b'"usageMetadata":{"n":1}}')
    assert len(found[0]) < 200_000
    assert found[1] == b'{"b":2}'


def test_garbage_does_not_raise() -> None:
    elements = ArrayElements()
    for piece in (b"[}}}]", b"\xff\x00", b'"'):
        elements.feed(piece)


def test_lines_come_out_at_every_split() -> None:
    """A20"""
    body = b'{"a":1}\r\n\n{"b":2}\n{"c":3}'
    for cut in range(len(body) + 1):
        lines = LineBuffer(batch_bytes=1)
        blocks = lines.feed(body[:cut]) + lines.feed(body[cut:])
        assert [line.strip() for line in split_lines(blocks) if line.strip()] == [b'{"a":1}', b'{"b":2}']
        assert lines.rest == b'{"c":3}'


def test_a_huge_line_is_cut_in_the_middle_and_the_next_is_whole() -> None:
    """I3"""
    lines = LineBuffer(event_bytes_max=100_000)
    body = b'{"a":"' + b"x" * 400_000 + b'","done":true}\n{"b":2}\n'
    found = b""
    for start in range(0, len(body), 1000):
        found += lines.feed(body[start : start + 1000])
        assert len(lines._buffer) <= 110_000
    first, second, _ = split_lines(found + lines.take())
    assert first.startswith(b'{"a":"x') and first.endswith(b'"done":true}') and len(first) < 200_000
    assert second == b'{"b":2}'
