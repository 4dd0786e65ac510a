"""billing/rating.py: a stored row, priced again from nothing but itself, gives the stored amount."""

from __future__ import annotations

import random

import pytest

from lava_proxy.domain.usage import Outcome, token_usage
from tests.billing_world import World
from tests.charging_world import NOW, USD, Till, call, done
from tests.charging_world import till as make_till


@pytest.fixture
def till(world: World) -> Till:
    return make_till(world)


async def test_every_row_of_a_random_history_rates_again_to_its_amount(till: Till) -> None:
    """I28: usage, meter version, moment and tier position are all there; so are the breakdown's sums."""
    rng = random.Random(5)
    wallet_id = await till.world.wallet(1_000 * USD)
    meters = [
        await till.fixed((0, 7 * USD), (500, 3 * USD)),
        await till.percentage(),
        await till.fixed((0, 50), tier_type="requests"),
        None,
    ]
    for _ in range(40):
        ending = done(
            rng.randrange(300), rng.randrange(300), model=rng.choice(["m", "m-dated"]),
            outcome=rng.choice([Outcome.COMPLETED, Outcome.CLIENT_GONE]), status=rng.choice([200, 200, 500]),
        )  # fmt: skip
        await till.charge(till.grant(wallet_id, rng.choice(meters)), ending, key_type=rng.choice(["managed", "unmanaged"]))
    await till.world.flush()
    rows = await till.world.fetch("SELECT * FROM request ORDER BY wseq")
    for row in rows:
        charge, cost = await till.rating.rate(
            meter_version=row["meter_version"], usage=row["usage"], provider=row["provider"],
            model=row["breakdown"].get("model") or row["model"], service_tier=row["service_tier"], at=row["priced_at"],
            position=row["position"], byok=row["provider_key_type"] == "unmanaged", billed=row["billed"],
        )  # fmt: skip
        assert charge.amount_nanos == row["charge_nanos"]
        assert [[line.tier.start, line.tier.rate, line.units, line.cost_nanos] for line in charge.breakdown] == row[
            "breakdown"
        ].get("charge", [])
        if row["billed"] and cost is not None:
            assert cost.nanos == row["cost_nanos"]
    assert len(rows) == 40 and sum(row["charge_nanos"] for row in rows) > 0


async def test_a_row_whose_price_is_gone_rates_to_nothing_instead_of_failing(till: Till) -> None:
    """B6: workers that re-rate must not die of it."""
    meter = await till.percentage()
    usage = dict(token_usage(5, 5).units)
    for version in (meter.version_id, None):
        charge, cost = await till.rating.rate(
            meter_version=version, usage=usage, provider="test", model="gone", service_tier=None, at=NOW, position=0,
            byok=False, billed=True,
        )  # fmt: skip
        assert (charge.amount_nanos, cost) == (0, None)


async def test_old_rows_keep_the_meter_version_they_were_charged_by(till: Till) -> None:
    """96: a new version of the price does not reach back."""
    wallet_id = await till.world.wallet(USD)
    meter = await till.fixed()
    await till.charge(till.grant(wallet_id, meter), done(), call())
    await till.world.pool.execute(
        """INSERT INTO meter_version (meter_id, name, rate_type, tier_type, token_basis, tiers, created_at)
        SELECT meter_id, name, rate_type, tier_type, token_basis, '[[0, 1]]', now() FROM meter_version"""
    )
    row = await till.row()
    charge, _ = await till.rating.rate(
        meter_version=row["meter_version"], usage=row["usage"], provider="test", model="m", service_tier=None, at=row["priced_at"],
        position=0, byok=False, billed=True,
    )  # fmt: skip
    assert charge.amount_nanos == row["charge_nanos"] == 300_000
