"""What an overage policy means at the gateway: the line that calls may go down, and the wake of an automatic bundle."""

from __future__ import annotations

import asyncio
from typing import Any

from lava_proxy import tasks
from lava_proxy.stores.ids import new_id
from tests.integration.gateway.fakes import chat_body
from tests.integration.gateway.harness import NANOS_PER_TOKEN, Gateway, chat_request


async def set_line(gateway: Gateway, policy: str, overdraft_nanos: int) -> None:
    """As the worker does; then until the gateway has heard of it."""
    await gateway.world.pool.execute(
        "INSERT INTO overage_line VALUES ($1, $2, 1, 0, $3, '') ON CONFLICT (wallet_id) DO UPDATE SET overdraft_nanos = $3",
        gateway.connection.wallet_id, policy, overdraft_nanos,
    )  # fmt: skip
    async with asyncio.timeout(5):
        while any(payer.grant.wallet_id == gateway.connection.wallet_id for payer in gateway.worker._grants._known.values()):
            await asyncio.sleep(0.01)  # a notice of Postgres: there is no event to await


async def post(gateway: Gateway, tokens: int) -> Any:
    gateway.provider.answer = lambda call: call.answer(chat_body())
    client = await gateway.client()
    client.send(gateway.request(chat_request(max_tokens=tokens)))
    response = await client.response()
    await gateway.settled()
    return response


async def test_calls_go_on_down_the_line_at_the_meters_own_rate_and_no_further(gateway: Gateway) -> None:
    """I14: beyond the credit a call costs what it costs within; at the end of the line it is refused."""
    assert (await post(gateway, 100)).status == 200
    (within,) = await gateway.rows()
    await gateway.funding.adjust(
        gateway.merchant.merchant_id, gateway.connection.wallet_id, new_id("adj"), -await gateway.balance(), "test"
    )
    gateway.start_nanos = within["charge_nanos"]
    assert (await post(gateway, 100)).status == 402
    await set_line(gateway, "charge", 2 * within["charge_nanos"] + 2000 * NANOS_PER_TOKEN)
    assert (await post(gateway, 100)).status == 200
    beyond = (await gateway.rows())[-1]
    assert (beyond["charge_nanos"], beyond["flags"]) == (within["charge_nanos"], "d")
    assert await gateway.balance() == -within["charge_nanos"]
    assert (await post(gateway, 100_000)).status == 402
    await set_line(gateway, "charge", 0)
    assert (await post(gateway, 1)).status == 402


async def test_a_refused_call_wakes_the_purchase_of_a_bundle_off_its_path(gateway: Gateway) -> None:
    """57: many refusals are one wallet to look at, with the least that was missing; without such a policy nothing is noted."""
    assert (await post(gateway, 100_000_000)).status == 402
    await tasks.drain("refusals", 5)
    assert await gateway.world.outbox.refused_wallets(10) == {}
    pool, merchant_id, plan_id = gateway.world.pool, gateway.merchant.merchant_id, new_id("sc")
    await pool.execute("UPDATE subscription SET status = 'cancelled' WHERE connection_id = $1", gateway.connection.connection_id)
    await pool.execute(
        """INSERT INTO plan (plan_id, merchant_id, name, period_amount_nanos, included_credit_nanos, billing_interval,
        rollover_type, bundle_rollover_type, created_at) VALUES ($1, $2, 'Pro', 0, 0, 'month', 'none', 'full', now())""",
        plan_id, merchant_id,
    )  # fmt: skip
    await pool.execute("INSERT INTO plan_meter VALUES ($1, $2)", plan_id, gateway.meter.meter_id)
    await pool.execute(
        """INSERT INTO subscription (subscription_id, merchant_id, connection_id, wallet_id, plan_id, terms, status,
        time_zone, anchor_at, cycle_index, cycle_start_at, cycle_end_at, due_at, started_at)
        VALUES ($1, $2, $3, $4, $5, '{}', 'active', 'UTC', now(), 0, now(), now() + '1 day', now() + '1 day', now())""",
        new_id("sub"), merchant_id, gateway.connection.connection_id, gateway.connection.wallet_id, plan_id,
    )  # fmt: skip
    await set_line(gateway, "auto_top_up", 0)
    for tokens in (100_000_000, 2_000_000, 50_000_000):
        assert (await post(gateway, tokens)).status == 402
    await tasks.drain("refusals", 5)
    found = await gateway.world.outbox.refused_wallets(10)
    await gateway.world.outbox.forget_refused(list(found))
    assert list(found) == [gateway.connection.wallet_id]
    assert 2_000_000 * NANOS_PER_TOKEN <= found[gateway.connection.wallet_id] < 2_010_000 * NANOS_PER_TOKEN
