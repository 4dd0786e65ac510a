"""`kill -9` of the worker that charges cards, again and again: the cents that were captured are the cents that were credited."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import asyncpg
import httpx2 as httpx

from lava_proxy import settings
from lava_proxy.cli_installation import installation
from lava_proxy.domain.plans import Overage, overage_document
from lava_proxy.stores import postgres
from tests.daemon import Daemon, running

USD = 1_000_000_000
_REPORT_TOKENS = 150_000  # $3 by the meter `fixed`
_OVERAGE = Overage(policy="charge", threshold_nanos=5 * USD)


def test_a_worker_killed_while_it_charges_takes_nothing_that_it_does_not_credit(tmp_path: Path) -> None:
    """56, 60, I24, I25, I27: twenty reports of $3 on $25, the worker killed eight times; then one more, at leisure."""
    with running(tmp_path, "--workers", "1") as daemon:
        card = daemon.cli("card", "add", "--customer", "sandbox-customer")
        assert card["last4"] == "4242"
        asyncio.run(_kill_and_look(daemon))
        daemon.audit()


async def _kill_and_look(daemon: Daemon) -> None:
    config = installation(settings.load({}), daemon.data_dir)
    pool = await postgres.connect(config.database_url, size_max=1)
    try:
        await pool.execute("UPDATE connection SET overage = $1", overage_document(_OVERAGE))
        async with httpx.AsyncClient(timeout=60) as client:
            for number in range(20):
                await _report(client, daemon, f"r{number}")
                if number % 2 and number > 3:
                    await asyncio.sleep(number % 5 * 0.1)
                    with contextlib.suppress(ProcessLookupError, AssertionError):
                        os.kill(daemon.pid("lava_proxy worker"), signal.SIGKILL)
            await _until(lambda: _is_even(pool, 35))
            began = time.monotonic()
            await _report(client, daemon, "last", 500_000)
            await _until(lambda: _is_even(pool, 45))
            assert time.monotonic() - began < 10, "a charge follows its debt within seconds"
    finally:
        await postgres.close(pool)


async def _report(client: httpx.AsyncClient, daemon: Daemon, name: str, tokens: int = _REPORT_TOKENS) -> None:
    body = {"request_id": name, "customer_id": "sandbox-customer", "meter_slug": "fixed", "input_tokens": tokens}
    response = await client.post(
        daemon.base_url + "requests", headers={"Authorization": f"Bearer {daemon.info['secret_key']}"}, json=body
    )
    assert response.status_code == 200, response.text


async def _is_even(pool: Any, owed_usd: int) -> bool:
    """Is what was owed charged, down to less than a threshold, with nothing open? Captured and credited never differ."""
    try:
        async with pool.acquire() as db, db.transaction(isolation="repeatable_read"):
            captured = await db.fetchval(
                "SELECT coalesce(sum((facts->>'captured')::bigint), 0)::bigint FROM sandbox_object WHERE kind = 'payment'"
            )
            credited = await db.fetchval("SELECT coalesce(sum(amount_nanos), 0)::bigint FROM credit WHERE reason = 'overage'")
            is_open = await db.fetchval("SELECT count(*) FROM charge WHERE state NOT IN ('succeeded', 'canceled')")
            debt = await db.fetchval("SELECT coalesce(sum(debt_nanos), 0)::bigint FROM wallet_state")
            unapplied = await db.fetchval("SELECT count(*) FROM credit WHERE applied_at IS NULL")
    except (OSError, asyncpg.PostgresError):
        return False
    assert credited <= captured * USD // 100 <= (owed_usd + 1) * USD
    is_paid = credited > (owed_usd - 5) * USD and debt < 5 * USD
    return is_paid and not is_open and not unapplied and credited == captured * USD // 100


async def _until(look: Any, timeout_s: int = 90) -> None:
    """Waits for other processes, so there is no event to await."""
    async with asyncio.timeout(timeout_s):
        while not await look():
            await asyncio.sleep(0.1)  # the pause between two looks, each a query; no result depends on how long it is
