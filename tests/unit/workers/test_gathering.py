"""workers/flusher.py: how long a flusher waits for more rows."""

from __future__ import annotations

from lava_proxy.workers.flusher import Gathering


def test_few_rows_are_flushed_soon_and_many_together() -> None:
    """B4: five hundred rows a second stay in small batches, also after a burst; thousands go together."""
    gathering = Gathering()
    now_ms, pauses = 0, []
    for rows, took_ms in [(15, 30), (900, 30), (100, 200), (15, 30), (150, 30), (1_100, 200), (1_100, 200)]:
        now_ms += took_ms
        pauses.append(gathering.pause_s(rows, now_ms / 1000, is_behind=False))
    few, many = Gathering().pause_s(1, 0, is_behind=False), Gathering().pause_s(1_000, 0, is_behind=False)
    assert 0 < few < many
    assert pauses == [few, many, few, few, many, many, many]


def test_a_backlog_and_an_empty_outbox_are_not_waited_for() -> None:
    gathering = Gathering()
    assert gathering.pause_s(0, 1, is_behind=False) == gathering.pause_s(125, 2, is_behind=True) == 0
