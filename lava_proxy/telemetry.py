"""Every Prometheus metric, declared once. Names and labels: README "Metrics".

Counters of the hot path are plain dict adds (`Tally`), published once a second; a prometheus child costs several times as much.
Several processes share one folder (PROMETHEUS_MULTIPROC_DIR), made by the supervisor, read by the control process.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import multiprocess as _multiprocess

_SHORT = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5)
_LONG = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

REQUESTS = Counter("lava_requests_total", "Gateway calls ended", ["provider", "outcome"])
OVERHEAD = Histogram(
    "lava_request_overhead_seconds", "From the request's last byte to its first byte sent upstream", buckets=_SHORT
)
TTFB = Histogram("lava_upstream_ttfb_seconds", "From sending upstream to the provider's first byte", buckets=_LONG)
OPEN_STREAMS = Gauge("lava_open_streams", "Responses being relayed", multiprocess_mode="livesum")
TOKENS = Counter("lava_tokens_total", "Tokens as reported or estimated", ["provider", "direction"])
CHARGED = Counter("lava_charged_nanos_total", "Charged to wallets, nano-USD")
COST = Counter("lava_cost_nanos_total", "Provider cost, nano-USD")
PROVENANCE = Counter("lava_provenance_total", "Where usage came from", ["source"])
UNPRICED = Counter("lava_unpriced_total", "Calls of models without a price")
USAGE_CHARGE_ZERO = Counter("lava_usage_seen_charge_zero_total", "Billable usage whose charge came out as zero")
OVERSHOOT = Counter("lava_overshoot_nanos_total", "Charged above the hold, nano-USD")
HOLDS_OPEN = Gauge("lava_holds_open", "Open holds", multiprocess_mode="livemostrecent")
HOLDS_NANOS = Gauge("lava_holds_nanos", "Sum of open holds of this installation's workers, nano-USD", multiprocess_mode="livesum")
HOLD_OLDEST = Gauge("lava_hold_oldest_seconds", "How far the oldest hold's lease is overdue", multiprocess_mode="livemostrecent")
REAPED = Counter("lava_reaped_total", "Holds ended by the reaper", ["policy"])
SETTLE_SECONDS = Histogram("lava_settle_seconds", "A settle, retries included", buckets=_SHORT)
SCRIPT_SECONDS = Histogram("lava_script_seconds", "One operation of the money script", ["script"], buckets=_SHORT)
OUTBOX_ENTRIES = Gauge("lava_outbox_entries", "Outbox rows not yet in Postgres", multiprocess_mode="livemostrecent")
OUTBOX_LAG = Gauge("lava_outbox_lag_seconds", "Age of the oldest row not yet in Postgres", multiprocess_mode="livemostrecent")
DRIFT = Gauge("lava_ledger_drift_nanos", "Redis minus Postgres at the last audit, nano-USD", multiprocess_mode="livemostrecent")
UPSTREAM_CONNECTIONS = Gauge("lava_upstream_connections", "Connections to providers", ["state"], multiprocess_mode="livesum")
BREAKER = Gauge("lava_breaker_state", "0 closed, 1 half open, 2 open", ["provider"], multiprocess_mode="max")
SCRIPT_RESERVE = SCRIPT_SECONDS.labels("reserve")
SCRIPT_REPORT = SCRIPT_SECONDS.labels("report")
ANOMALIES = Counter("lava_usage_anomalies_total", "Usage that contradicted itself and was clamped in the cost")
WEBHOOK_DELIVERIES = Counter("lava_webhook_deliveries_total", "Tries of outgoing webhooks", ["outcome"])
WEBHOOKS_DISABLED = Counter("lava_webhooks_disabled_total", "Webhook endpoints disabled for their answers", ["reason"])
WEBHOOKS_PENDING = Gauge("lava_webhook_pending", "Deliveries not yet accepted", multiprocess_mode="livemostrecent")
WEBHOOK_OLDEST = Gauge("lava_webhook_oldest_seconds", "Age of the oldest of them", multiprocess_mode="livemostrecent")


class Tally:
    """Sums kept in dicts on the hot path and added to their metrics by `publish`, once a second and at the end."""

    def __init__(self) -> None:
        self._sums: dict[tuple[Counter, tuple[str, ...]], int] = defaultdict(int)
        self._calls: dict[tuple[str, str, str], list[int]] = {}
        self._times: dict[Histogram, list[int]] = {}

    def add(self, counter: Counter, amount: int = 1, *labels: str) -> None:
        self._sums[counter, labels] += amount

    def call(
        self, provider: str, outcome: str, provenance: str, charged: int, cost: int, input_tokens: int, output_tokens: int
    ) -> None:
        """One ended call: what each call adds to seven counters."""
        key = (provider, outcome, provenance)
        sums = self._calls.get(key)
        if sums is None:
            sums = self._calls[key] = [0, 0, 0, 0, 0]
        sums[0] += 1
        sums[1] += charged
        sums[2] += cost
        sums[3] += input_tokens
        sums[4] += output_tokens

    def observe(self, histogram: Histogram, nanoseconds: int) -> None:
        """One duration, kept as it is until `publish`."""
        times = self._times.get(histogram)
        if times is None:
            times = self._times[histogram] = []
        times.append(nanoseconds)

    def publish(self) -> None:
        """Add what was gathered to the metrics."""
        calls, self._calls = self._calls, {}
        for (provider, outcome, provenance), (count, charged, cost, input_tokens, output_tokens) in calls.items():
            REQUESTS.labels(provider, outcome).inc(count)
            PROVENANCE.labels(provenance).inc(count)
            CHARGED.inc(charged)
            COST.inc(cost)
            TOKENS.labels(provider, "input").inc(max(input_tokens, 0))
            TOKENS.labels(provider, "output").inc(max(output_tokens, 0))
        sums, self._sums = self._sums, defaultdict(int)
        for (counter, labels), amount in sums.items():
            (counter.labels(*labels) if labels else counter).inc(amount)
        durations, self._times = self._times, {}
        for histogram, times in durations.items():
            _observe_all(histogram, times)


def _observe_all(histogram: Histogram, times: list[int]) -> None:
    """Many observations as one addition a bucket: `observe` one by one would cost the hot path what the tally saves."""
    bounds = histogram._upper_bounds
    counts = [0] * len(bounds)
    for nanoseconds in times:
        counts[bisect_left(bounds, nanoseconds / 1e9)] += 1
    for bucket, count in zip(histogram._buckets, counts, strict=True):
        if count:
            bucket.inc(count)
    histogram._sum.inc(sum(times) / 1e9)


def exposition_registry(environment: Mapping[str, str]) -> CollectorRegistry:
    """A registry that merges all processes' metrics for one scrape."""
    registry = CollectorRegistry()
    _multiprocess.MultiProcessCollector(registry, path=environment.get("PROMETHEUS_MULTIPROC_DIR"))  # type: ignore[no-untyped-call]
    return registry
