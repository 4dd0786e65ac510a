"""How long it takes to renew subscriptions that are all due at once: half of them free, half charged at the sandbox processor.

Seeds customers, cards and due subscriptions by SQL into embedded engines, then renews them with one worker, and again (after a
cycle) with two at once. Each free cycle is one row; each paid one a charge with all its states, its credit ordered, and applied to
the wallet. At the end the counts must say that every subscription was renewed once a cycle and paid once a cycle.

The statements that Postgres was sent are counted too (BEGIN and COMMIT among them): they do not depend on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks._control_plane import engine_options
from lava_proxy.app.embedded import EmbeddedEngines
from lava_proxy.billing.charges import Charges
from lava_proxy.billing.funding import Funding
from lava_proxy.billing.subscriptions import Subscriptions
from lava_proxy.domain.plans import Terms
from lava_proxy.payments.sandbox import SandboxProcessor
from lava_proxy.stores import outbox as outbox_module
from lava_proxy.stores import postgres
from lava_proxy.stores.balance_store import PARTITIONS, BalanceStore, partition_of
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.charge_store import ChargeStore
from lava_proxy.stores.hot_redis import HotRedis
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.plan_store import PlanStore
from lava_proxy.stores.vault import Vault, new_master_key
from lava_proxy.workers.recovery import Recovery
from lava_proxy.workers.renewals import Renewals

SECONDS_MAX = 60.0
STATEMENTS_MAX = 25.0  # a paid renewal, those of free ones and of batches included; with the processor's own in the sandbox
SUBSCRIPTIONS = 10_000
START = datetime(2026, 1, 1, tzinfo=UTC)
USD = 1_000_000_000
# A worker process has a pool of this size (app/worker_role.py).
_POOL = 6

# Customer n: wallet, connection, person, card, subscription; every second one on the paid plan.
_SEED = """
WITH made AS (SELECT n, lpad(n::text, 26, '0') AS id FROM generate_series(1, $2::int) n),
w AS (INSERT INTO wallet SELECT 'wal_' || id, $1, ($5::int[])[n], $4 FROM made RETURNING 1),
c AS (INSERT INTO connection (connection_id, merchant_id, wallet_id, secret_hash, secret_sealed, contact, created_at)
  SELECT 'con_' || id, $1, 'wal_' || id, decode(md5(id), 'hex'), '\\x00', '{}', $4 FROM made RETURNING 1),
p AS (INSERT INTO person SELECT 'per_' || id, '+1' || id, NULL, $4 FROM made RETURNING 1),
l AS (INSERT INTO wallet_person SELECT 'wal_' || id, 'per_' || id FROM made RETURNING 1),
r AS (INSERT INTO processor_customer SELECT 'per_' || id, 'sandbox', 'cus_' || id FROM made RETURNING 1),
o AS (INSERT INTO sandbox_object (object_ref, kind, customer_ref, facts, created_at)
  SELECT 'cus_' || id, 'customer', 'cus_' || id, '{}'::jsonb, $4 FROM made
  UNION ALL SELECT 'pm_' || id, 'method', 'cus_' || id, jsonb_build_object('brand', 'visa', 'last4', '4242', 'month', 12, 'year',
    2040, 'behaviour', 'pays', 'is_detached', false), $4 FROM made RETURNING 1),
m AS (INSERT INTO payment_method (payment_method_id, person_id, processor, processor_ref, brand, last4, expiry_month, expiry_year,
    is_default, created_at)
  SELECT 'pmt_' || id, 'per_' || id, 'sandbox', 'pm_' || id, 'visa', '4242', 12, 2040, true, $4 FROM made RETURNING 1)
INSERT INTO subscription (subscription_id, merchant_id, connection_id, wallet_id, plan_id, terms, status, time_zone, anchor_at,
  cycle_index, cycle_start_at, cycle_end_at, due_at, started_at)
SELECT 'sub_' || id, $1, 'con_' || id, 'wal_' || id, t.terms->>'plan_id', t.terms, 'active', 'UTC', $4, 0, $4,
  $4 + interval '1 month', $4 + interval '1 month', $4
FROM made, LATERAL (SELECT ($3::jsonb)->(n % 2) AS terms) t"""


class _Counter:
    """Statements sent, in all."""

    def __init__(self) -> None:
        self.statements = 0

    def __call__(self, query: Any) -> None:
        self.statements += 1


class _Clock:
    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


async def measure(data_dir: Path, subscriptions: int) -> dict[str, Any]:
    """Seconds of a run with one worker and of one with two, on a database of their own."""
    owner = EmbeddedEngines()
    running = owner.start(data_dir, engine_options())
    clock, counter = _Clock(START), _Counter()
    pools, hots = [], []
    try:
        await postgres.migrate(running.database_url)
        redis = outbox_module.connect(running.redis_url)
        worlds = []
        for _ in range(2):
            pool = await postgres.connect(running.database_url, size_max=_POOL, on_query=counter)
            pools.append(pool)
            if not hots:
                await Recovery(Outbox(redis), LedgerStore(pool)).run_once()
            hot = HotRedis(running.redis_url)
            hots.append(hot)
            await hot.start()
            assert await hot.wait_ready(30)
            worlds.append(_renewals(pool, BalanceStore(hot), clock))
        await _seed(pools[0], clock, subscriptions)
        for start in range(0, subscriptions, 500):
            await asyncio.gather(
                *(BalanceStore(hots[0]).open_wallet(_wallet(n)) for n in range(start + 1, min(start + 500, subscriptions) + 1))
            )
        found: dict[str, Any] = {"subscriptions": subscriptions, "cpus": os.cpu_count(), "python": platform.python_version()}
        for cycle, workers in ((1, 1), (2, 2)):
            clock.now = START.replace(month=1 + cycle) + timedelta(hours=1)
            counter.statements = 0
            began = time.perf_counter()
            await asyncio.gather(*(_until_done(renewals) for renewals in worlds[:workers]))
            found[f"seconds_{workers}_workers"] = round(time.perf_counter() - began, 2)
            found[f"statements_{workers}_workers"] = round(counter.statements / ((subscriptions + 1) // 2), 1)
            await _check(pools[0], subscriptions, cycle)
        is_quick = found["seconds_1_workers"] <= SECONDS_MAX * subscriptions / SUBSCRIPTIONS
        found["met"] = is_quick and found["statements_1_workers"] <= STATEMENTS_MAX
        await redis.aclose()
        return found
    finally:
        for hot in hots:
            await hot.stop()
        for pool in pools:
            await postgres.close(pool)
        owner.stop()


def _renewals(pool: postgres.Pool, balances: BalanceStore, clock: _Clock) -> Renewals:
    catalog = CatalogStore(pool, Vault(new_master_key()), clock)
    funding = Funding(catalog, balances, clock)
    plans = Subscriptions(PlanStore(pool, clock), funding, clock)
    charges = Charges(
        ChargeStore(pool), SandboxProcessor(pool, clock=clock), funding, clock, plans.effects(), on_transition=plans.on_transition
    )
    return Renewals(plans, charges)


async def _until_done(renewals: Renewals) -> None:
    while await renewals.run_once():
        pass


async def _seed(pool: postgres.Pool, clock: _Clock, subscriptions: int) -> None:
    merchant = await CatalogStore(pool, Vault(new_master_key()), clock).create_merchant("bench")
    plans = PlanStore(pool, clock)
    free = await plans.default_plan(merchant.merchant_id)
    assert free is not None
    terms = Terms(
        plan_id="", name="paid", period_amount_nanos=25 * USD, included_credit_nanos=25 * USD, billing_interval="month"
    )  # fmt: skip
    paid = await plans.create_plan(merchant.merchant_id, terms, overage=None, meter_ids=(), bundles=())
    parts = [partition_of(_wallet(n)) for n in range(1, subscriptions + 1)]
    assert max(parts) < PARTITIONS
    both = [free.terms.document(), paid.terms.document()]
    await pool.execute(_SEED, merchant.merchant_id, subscriptions, both, START, parts)
    await pool.execute("ANALYZE")


def _wallet(number: int) -> str:
    return f"wal_{number:026d}"


async def _check(pool: postgres.Pool, subscriptions: int, cycle: int) -> None:
    """Every one renewed once a cycle, every paid one charged and credited once a cycle."""
    paid = (subscriptions + 1) // 2
    row = await pool.fetchrow(
        """SELECT (SELECT count(*) FROM subscription_period) AS periods, (SELECT count(*) FROM credit) AS orders,
        (SELECT count(*) FROM charge WHERE state = 'succeeded') AS charges,
        (SELECT sum((facts->>'captured')::bigint) FROM sandbox_object WHERE kind = 'payment') AS cents,
        (SELECT count(*) FROM subscription WHERE cycle_index = $1) AS renewed""",
        cycle,
    )
    expected = (subscriptions * cycle, paid * cycle, paid * cycle, 2500 * paid * cycle, subscriptions)
    assert tuple(row.values()) == expected, (tuple(row.values()), expected)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="./lava bench renewals", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--subscriptions", type=int, default=SUBSCRIPTIONS, help="how many are due at once (default: 10,000)")
    parser.add_argument("--json", action="store_true", help="only the last line, one object")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lava-bench-"))
    try:
        found = asyncio.run(measure(folder, options.subscriptions))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not options.json:
        print(f"{found['subscriptions']:,} due subscriptions, half of them paid, on {found['cpus']} processors")
        for name, workers in (("one worker ", 1), ("two at once", 2)):
            seconds, statements = found[f"seconds_{workers}_workers"], found[f"statements_{workers}_workers"]
            print(f"  {name}   {seconds:8.2f} s, {statements} statements a paid renewal")
    print(json.dumps(found))
    sys.exit(0 if found["met"] else 1)


if __name__ == "__main__":
    main()
