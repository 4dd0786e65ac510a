"""The circuit breaker, with a clock of the test's own."""

from __future__ import annotations

import pytest

from lava_proxy.gateway.breaker import Breakers, ProviderUnavailable

HOST = ("api.example", 443)
OTHER = ("other.example", 443)


def broken(failures: int = 3) -> Breakers:
    breakers = Breakers(3, 10)
    for _ in range(failures):
        breakers.admit(HOST, 100.0)
        breakers.failed(HOST, "example", 100.0)
    return breakers


def test_failures_in_a_row_open_it_for_this_host_only() -> None:
    breakers = broken()
    with pytest.raises(ProviderUnavailable) as refused:
        breakers.admit(HOST, 104.5)
    assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (503, "provider_unavailable", 6)
    assert breakers.admit(OTHER, 104.5) is False
    assert breakers.states(104.5) == {"example": 2}


def test_a_success_in_between_starts_the_count_again() -> None:
    breakers = broken(2)
    breakers.succeeded(HOST)
    breakers.failed(HOST, "example", 100.0)
    breakers.failed(HOST, "example", 100.0)
    assert breakers.admit(HOST, 100.0) is False


def test_when_its_time_is_over_one_call_tries() -> None:
    breakers = broken()
    assert breakers.state(HOST, 110.0) == "half_open"
    assert breakers.admit(HOST, 110.0) is True
    with pytest.raises(ProviderUnavailable):
        breakers.admit(HOST, 110.0)


def test_a_trial_that_succeeds_closes_it() -> None:
    breakers = broken()
    breakers.admit(HOST, 110.0)
    breakers.succeeded(HOST)
    assert breakers.admit(HOST, 110.0) is False
    assert breakers.states(110.0) == {}


def test_a_trial_that_fails_opens_it_again() -> None:
    breakers = broken()
    breakers.admit(HOST, 110.0)
    breakers.failed(HOST, "example", 111.0)
    with pytest.raises(ProviderUnavailable):
        breakers.admit(HOST, 120.9)
    assert breakers.admit(HOST, 121.0) is True


def test_a_trial_that_tells_nothing_lets_the_next_call_try() -> None:
    breakers = broken()
    breakers.admit(HOST, 110.0)
    breakers.abandoned(HOST)
    assert breakers.admit(HOST, 110.0) is True


def test_failures_of_calls_that_were_under_way_do_not_prolong_it() -> None:
    breakers = broken()
    breakers.failed(HOST, "example", 109.0)
    assert breakers.admit(HOST, 110.0) is True


def test_zero_switches_it_off() -> None:
    breakers = Breakers(0, 10)
    for _ in range(100):
        breakers.failed(HOST, "example", 100.0)
    assert breakers.admit(HOST, 100.0) is False
