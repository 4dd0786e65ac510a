"""The tally's additions are what one-by-one observations would be."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from lava_proxy.telemetry import REQUESTS, Tally, _observe_all

_TIMES = [1, 200_000, 200_001, 1_000_000, 2_500_000_000, 9_000_000_000]
_BUCKETS = (0.0002, 0.001, 2.5)


def test_many_observations_at_once_equal_each_by_itself() -> None:
    texts = []
    for at_once in (True, False):
        registry = CollectorRegistry()
        histogram = Histogram("t", "t", buckets=_BUCKETS, registry=registry)
        if at_once:
            _observe_all(histogram, _TIMES)
        else:
            for nanoseconds in _TIMES:
                histogram.observe(nanoseconds / 1e9)
        lines = generate_latest(registry).decode().splitlines()
        texts.append([line for line in lines if "_created" not in line and "_sum" not in line])
    assert texts[0] == texts[1]


def test_a_tally_is_published_once() -> None:
    tally = Tally()
    before = REQUESTS.labels("tally-test", "completed")._value.get()
    tally.call("tally-test", "completed", "provider_final", 5, 4, 3, 2)
    tally.publish()
    tally.publish()
    assert REQUESTS.labels("tally-test", "completed")._value.get() - before == 1
