"""billing/reporting.py: what is written of a report is spelled as it ever was, though it is put together from parts."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from lava_proxy import telemetry
from lava_proxy.billing import reporting
from lava_proxy.billing.report_body import read_report
from lava_proxy.billing.reporting import ProviderName, Reporting
from lava_proxy.billing.rows import breakdown_text, packed
from lava_proxy.domain import fees
from lava_proxy.domain.catalog import Grant, MeterVersion, Tier
from lava_proxy.domain.usage import Usage
from lava_proxy.settings import Reports
from tests.charging_world import prices

SETTINGS = Reports(body_bytes_max=1, batch_bytes_max=1, batch_items_max=1, keep_s=1, ledger_check_ms=0)
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def meter(*tiers: tuple[int, int]) -> MeterVersion:
    return MeterVersion(
        version_id=1, meter_id="met_1", slug="s", name="n", rate_type="fixed", tier_type="tokens_1m",
        tiers=tuple(Tier(start=start, rate=rate) for start, rate in tiers),
    )  # fmt: skip


def taker() -> Reporting:
    nothing: Any = None
    return Reporting(
        nothing,
        nothing,
        nothing,
        prices(),
        lambda name: ProviderName(name, name, "other"),
        SETTINGS,
        telemetry.Tally(),
        lambda: NOW,
    )


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"input_tokens": 3, "output_tokens": 0, "metadata": {"b": "x", "a": 'é"\x1f'}},
        {"model": "m", "provider": 'a "b"', "input_seconds": 1.25, "cost": "0.0100"},
    ],
)
def test_a_fingerprint_is_the_one_that_earlier_releases_made(members: dict[str, Any]) -> None:
    """45, 51: it is kept in Redis and Postgres, and a repeat is compared with it however long afterwards."""
    said = read_report({"request_id": "r", "customer_id": "c", "meter_slug": "m", **members})
    grant = Grant(merchant_id="mer_1", wallet_id="wal_1", connection_id="con_1", meter=meter((0, 1)))
    content = packed(["con_1", "met_1", said.usage, said.metadata, said.model, said.provider or "reported"])
    found = taker()._item(said, grant, NOW, "2026-11")
    assert found.fingerprint == hashlib.blake2b(content, digest_size=12).hexdigest()


@pytest.mark.parametrize("tiers", [((0, 2_000_000_000),), ((0, 5_000_000_000), (10, 3))])
@pytest.mark.parametrize("tokens", [0, 7, 25])
def test_a_breakdown_is_spelled_in_one_way(tiers: tuple[tuple[int, int], ...], tokens: int) -> None:
    """I28: re-rating compares what is stored."""
    charge = fees.charge(meter(*tiers), Usage({"input_tokens": tokens, "seconds": Decimal(1)}), None, 0)
    assert reporting._breakdown(charge, None) == breakdown_text(charge, None).encode()
