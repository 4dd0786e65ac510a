"""domain/webhooks.py: names and the schedule of tries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from lava_proxy.domain.webhooks import RETRY_DELAYS_S, TRY_WINDOW, Attempt, event_name, newest_name, next_try

START = datetime(2026, 11, 23, tzinfo=UTC)


def test_names_translate_both_ways() -> None:
    assert event_name("customer.wallet.balance.updated", "connection") == "connection.wallet.balance.updated"
    assert event_name("customer.created", "customer") == "customer.created"
    assert event_name("webhook.test", "connection") == "webhook.test"
    assert newest_name("connection.deleted") == newest_name("customer.deleted") == "customer.deleted"


@pytest.mark.parametrize("jitter", [0, 500, 1000])
def test_tries_go_from_five_seconds_to_the_end_of_the_third_day(jitter: int) -> None:
    now, at = START, []
    for tries in range(1, 100):
        again = next_try(START, now, tries, jitter)
        if again is None:
            break
        at.append(again)
        now = again
    assert timedelta(seconds=4.5) <= at[0] - START <= timedelta(seconds=5.5)
    assert at[-1] == START + TRY_WINDOW
    assert len(at) in (11, 12)
    gaps = [later - earlier for earlier, later in pairwise([START, *at])]
    assert gaps[:9] == sorted(gaps[:9])


def test_jitter_moves_a_delay_by_a_tenth_at_most() -> None:
    for tries, delay_s in enumerate(RETRY_DELAYS_S, 1):
        delay = timedelta(seconds=delay_s)
        assert next_try(START, START, tries, 500) == START + delay
        assert next_try(START, START, tries, 0) == START + delay * 9 / 10
        assert next_try(START, START, tries, 1000) == START + delay * 11 / 10


@pytest.mark.parametrize(
    ("status", "delivered"), [(200, True), (204, True), (299, True), (301, False), (410, False), (500, False), (None, False)]
)
def test_only_a_status_of_the_two_hundreds_is_delivered(status: int | None, delivered: bool) -> None:
    attempt = Attempt(status=status, error=None, excerpt="", duration_ms=1)
    assert (attempt.is_delivered, attempt.is_gone) == (delivered, status == 410)
