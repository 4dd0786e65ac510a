"""The drift gauge: nothing while Redis and the ledger agree, the difference when they do not."""

from __future__ import annotations

from lava_proxy import telemetry
from lava_proxy.stores.balance_store import PARTITIONS, partition_of, tag
from lava_proxy.workers.drift import Drift
from tests.billing_world import World


async def _all_rounds(drift: Drift) -> int:
    return sum([await drift.run_once() for _ in range(PARTITIONS)])


async def test_drift_is_measured_a_partition_a_round(world: World) -> None:
    wallet_id = await world.wallet(1_000)
    await world.flush()
    drift = Drift(world.outbox, world.ledger)
    assert await _all_rounds(drift) == 1
    assert telemetry.DRIFT._value.get() == 0
    key = f"{tag(partition_of(wallet_id))}:w:{wallet_id}"
    await world.redis.hincrby(key, "fa", 7)
    assert await _all_rounds(drift) == 1
    assert telemetry.DRIFT._value.get() == 7
