"""Whatever happens in whatever order, each period is granted once and each cent taken buys something (I22, I25)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lava_proxy.domain.errors import CallerError
from lava_proxy.stores import postgres
from lava_proxy.stores.customer_store import CustomerStore
from tests.billing_world import billing_world
from tests.card_world import GOOD, POOR
from tests.engines import RunningEngines, flush_redis, fresh_database
from tests.plan_world import PlanWorld, plan_world

USD = 1_000_000_000
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("renew"), st.integers(1, 3)),
        st.tuples(st.just("buy"), st.integers(0, 2)),
        st.tuples(st.just("change"), st.integers(0, 3)),
        st.tuples(st.just("cancel"), st.just(0)),
        st.tuples(st.just("bundle"), st.integers(0, 2)),
        st.tuples(st.just("card"), st.sampled_from((0, 1))),
        st.tuples(st.just("wait"), st.sampled_from((1, 12, 24 * 8, 24 * 31, 24 * 95))),
        st.tuples(st.just("use"), st.integers(1, 30)),
    ),
    min_size=4,
    max_size=14,
)


async def test_any_interleaving_grants_each_period_once(engines: RunningEngines) -> None:
    """I22, I25, 77, 88, 101, 105: renewals by several workers, starts, upgrades, downgrades, cancellations, bundles, bad cards."""
    async with fresh_database(engines.database_url) as database_url:
        await postgres.migrate(database_url)
        await flush_redis(engines.redis_url)
        async with billing_world(engines.redis_url, database_url) as world, plan_world(world) as sold:
            plans = [
                await sold.plan(usd, bundles=1, rollover_type=kind) for usd, kind in ((10, "none"), (25, "full"), (60, "none"))
            ]
            default = await sold.plans.default_plan(world.merchant_id)
            loop = asyncio.get_running_loop()

            @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
            @given(steps=_STEPS)
            def stories(steps: list[tuple[str, int]]) -> None:
                asyncio.run_coroutine_threadsafe(story(sold, [*plans, default], steps), loop).result(120)

            await asyncio.to_thread(stories)
            await world.clean_audit()


async def story(sold: PlanWorld, plans: list[Any], steps: list[tuple[str, int]]) -> None:
    customer = await sold.customer()
    before = await sold.taken_cents()
    for step, number in steps:
        try:
            await take(sold, customer, plans, step, number)
        except CallerError:
            pass  # refused: not on a plan, not covered, to be paid elsewhere
    await sold.apply()
    await balanced(sold, customer, await sold.taken_cents() - before)
    await CustomerStore(sold.world.pool, sold.clock).delete(customer.merchant_id, customer.connection_id)  # out of the next story


async def take(sold: PlanWorld, customer: Any, plans: list[Any], step: str, number: int) -> None:
    if step == "renew":
        await asyncio.gather(*(sold.renewals.run_once(batch=1) for _ in range(number)))
        await sold.apply()
    elif step == "buy":
        await sold.buy(customer, plans[number])
    elif step == "change":
        await sold.subscriptions.change_unpaid(customer, plans[number])
    elif step == "cancel":
        found = await sold.plans.live_subscription(customer.connection_id)
        if found is not None:
            await sold.subscriptions.cancel(customer.merchant_id, found.subscription_id)
    elif step == "bundle":
        await sold.buy_bundle(customer, plans[number].bundles[0])
    elif step == "card":
        await sold.add_card(customer, (GOOD, POOR)[number])
    elif step == "wait":
        sold.clock.advance(timedelta(hours=number))
        await sold.charges_again()
    else:
        await sold.use(customer, number)


async def balanced(sold: PlanWorld, customer: Any, taken_cents: int) -> None:
    """Each period has one order of at most its grant; what was taken is what periods, bundles and funds say was paid."""
    rows = await sold.world.fetch("SELECT * FROM credit WHERE wallet_id = $1", customer.wallet_id)
    orders = {row["credit_id"]: row["amount_nanos"] for row in rows}
    granted = sum(amount for name, amount in orders.items() if name.startswith("ren_"))
    periods = await sold.periods(customer)
    assert granted == sum(period["granted_nanos"] for period in periods)
    charges = await sold.world.fetch(
        "SELECT charge_id, purpose, captured_cents FROM charge WHERE wallet_id = $1 AND state = 'succeeded'", customer.wallet_id
    )
    assert sum(charge["captured_cents"] for charge in charges) == taken_cents
    bought = {period["charge_id"] for period in periods}
    for charge in charges:
        name = charge["charge_id"]
        uses = [name in bought, f"bun_{name}" in orders, orders.get(f"unu_{name}") == charge["captured_cents"] * 10_000_000]
        assert sum(uses) == 1, (charge, uses)
    starts = [(period["subscription_id"], period["start_at"]) for period in periods]
    assert len(set(starts)) == len(starts)
    paid = sum(charge["captured_cents"] for charge in charges) * 10_000_000
    assert granted <= paid  # these plans grant what they cost
