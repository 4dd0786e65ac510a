"""Plans on real stores with play money: starts, changes, renewals and ends, by an injected clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import asyncpg
import pytest

from lava_proxy.domain.catalog import Tier
from lava_proxy.domain.errors import Conflict, InsufficientFunds, NotFound
from lava_proxy.gateway.grants import Grants
from lava_proxy.settings import Cache
from lava_proxy.stores.customer_store import CustomerStore
from lava_proxy.stores.plan_store import BundleDraft
from lava_proxy.wire.forward_token import mint
from tests.billing_world import World
from tests.card_world import GOOD, HOLDER, POOR
from tests.plan_world import NOON, PlanWorld, plan_world

USD = 1_000_000_000
HALF_OF_NOVEMBER = timedelta(days=15)  # of the 30 days from 24 November to 24 December


@pytest.fixture
async def sold(world: World) -> AsyncIterator[PlanWorld]:
    async with plan_world(world) as made:
        yield made
        await world.clean_audit()
        await world.flush()
        await world.clean_audit()


async def listen(sold: PlanWorld) -> None:
    """An endpoint, so that events are written."""
    await sold.world.pool.execute(
        """INSERT INTO webhook (webhook_id, merchant_id, name, url, vocabulary, status, created_at)
        VALUES ('wh_1', $1, 'x', 'http://127.0.0.1:1', 'customer', 'active', now())""",
        sold.world.merchant_id,
    )


async def test_a_new_customer_starts_on_the_free_plan_and_a_paid_one_grants_its_credit(sold: PlanWorld) -> None:
    """97: top-ups stay where they are; the subscription is the same one, on another plan."""
    customer = await sold.customer()
    free = await sold.on(customer)
    assert (free.terms.name, free.terms.is_free, free.cycle.start) == ("Free", True, NOON)
    await sold.funding.fund(customer.merchant_id, customer.wallet_id, 5 * USD, "test")
    plan = await sold.plan(25)
    with pytest.raises(Conflict) as unpaid:
        await sold.subscriptions.change_unpaid(customer, plan)
    assert unpaid.value.code == "payment_required"
    charge = await sold.buy(customer, plan)
    assert (charge.state, charge.captured_cents) == ("succeeded", 2500)
    now = await sold.on(customer)
    assert (now.subscription_id, now.terms.plan_id, now.pending) == (free.subscription_id, plan.plan_id, None)
    assert now.cycle.start == NOON + timedelta(seconds=1)  # later than the free plan's, which names another cycle
    assert await sold.lots(customer) == {"cycle": "25", "funds": "5"}


async def test_credit_that_was_paid_for_is_there_with_the_answer(sold: PlanWorld) -> None:
    """97: starts, bundles, renewals and payments that buy nothing, without waiting for the applier."""
    customer, plan = await sold.customer(), await sold.plan(25, bundles=1)
    subject = sold.subscriptions.subject_of_change(customer, plan)
    await sold.pay(customer, "subscription_start", 2500, subject)
    assert await sold.lots(customer) == {"cycle": "25"}
    bundle = plan.bundles[0]
    await sold.pay(customer, "bundle", 800, sold.subscriptions.subject_of_bundle(customer.connection_id, bundle))
    assert await sold.lots(customer) == {"cycle": "25", "bundle": "10"}
    await sold.pay(customer, "plan_upgrade", 2500, subject)
    assert await sold.lots(customer) == {"cycle": "25", "bundle": "10", "funds": "25"}
    await sold.use(customer, 5)
    await sold.end_of_cycle(customer)
    assert await sold.renewals.run_once() == 1
    assert await sold.lots(customer) == {"cycle": "25", "bundle": "10", "funds": "25"}


@pytest.mark.parametrize(("rollover", "second", "third"), [("full", "35", "60"), ("none", "25", "25")])
async def test_what_is_left_rolls_over_or_ends(sold: PlanWorld, rollover: Any, second: str, third: str) -> None:
    """I21, 78, 79, 84: 25 - 15 = 10, and the next cycle has 35 or 25; the same again a cycle later."""
    customer = await sold.customer()
    await sold.buy(customer, await sold.plan(25, rollover_type=rollover))
    await sold.use(customer, 15)
    assert await sold.lots(customer) == {"cycle": "10"}
    for expected in (second, third):
        await sold.end_of_cycle(customer)
        assert await sold.renew() == 1
        assert await sold.lots(customer) == {"cycle": expected}
    assert await sold.taken_cents() == 7500


async def test_many_workers_renew_each_cycle_once_and_charge_it_once(sold: PlanWorld) -> None:
    """I22, 77, 85, 86, 88: paid and free ones, workers at once and again; one charge, one grant, one period."""
    plan, free = await sold.plan(25), await sold.customer()
    customers = [await sold.customer() for _ in range(4)]
    for customer in customers:
        await sold.buy(customer, plan)
    await sold.end_of_cycle(customers[0])
    for _ in range(2):
        await asyncio.gather(*(sold.renewals.run_once(batch=2) for _ in range(3)))
        await sold.apply()
    assert await sold.taken_cents() == 8 * 2500
    for customer in customers:
        assert await sold.lots(customer) == {"cycle": "25"}
        assert [period["period_index"] for period in await sold.periods(customer)] == [0, 1]
    renewed = await sold.on(free)
    assert renewed.cycle.index == 1 and await sold.renew() == 0
    assert await sold.world.fetch("SELECT 1 FROM credit WHERE wallet_id = $1", free.wallet_id) == []


async def test_cycles_that_were_missed_are_not_made_up_for(sold: PlanWorld) -> None:
    """I22, 105, 104: after a long absence one cycle is paid and granted, the one that runs now; none before its time."""
    customer = await sold.customer()
    await sold.buy(customer, await sold.plan(25, rollover_type="full"))
    anchor = (await sold.on(customer)).anchor_at
    sold.clock.now = (await sold.on(customer)).cycle.end - timedelta(microseconds=1)
    assert await sold.renew() == 0
    sold.clock.now = anchor + timedelta(days=200)
    await sold.renew()
    found = await sold.on(customer)
    assert found.cycle.start <= sold.clock() < found.cycle.end and found.cycle.start.day == anchor.day
    assert await sold.renew() == 0
    assert (await sold.taken_cents(), await sold.lots(customer)) == (5000, {"cycle": "50"})


async def test_an_anchor_on_the_31st_comes_back_to_it(world: World) -> None:
    """I23, 83, 99, 100: 31 January, 28 February, 31 March: each cycle begins where the last one ends."""
    async with plan_world(world, datetime(2027, 1, 31, 12, tzinfo=UTC)) as sold:
        customer = await sold.customer()
        await sold.buy(customer, await sold.plan(25))
        ends = []
        for _ in range(4):
            await sold.end_of_cycle(customer)
            await sold.renew()
            ends.append((await sold.on(customer)).cycle.end)
        assert [(end.month, end.day) for end in ends] == [(3, 31), (4, 30), (5, 31), (6, 30)]
        periods = await sold.periods(customer)
        assert all(one["end_at"] == two["start_at"] for one, two in pairwise(periods))
        assert await sold.taken_cents() == 5 * 2500


async def test_an_upgrade_costs_the_difference_and_grants_it_at_once(sold: PlanWorld) -> None:
    """95, 101, 103: on the same day the whole old price counts, half a cycle later half of it; never more credit than was paid."""
    basic, plus = await sold.plan(20), await sold.plan(50)
    customer, later = await sold.customer(), await sold.customer()
    for one in (customer, later):
        await sold.buy(one, basic)
    await sold.use(customer, 20)
    same_day = await sold.subscriptions.quote(customer.connection_id, plus)
    start = (await sold.on(customer)).cycle.start
    assert (same_day.kind, same_day.amount_cents, same_day.grant_nanos) == ("upgrade", 3000, 30 * USD)
    await sold.buy(customer, plus)
    assert await sold.lots(customer) == {"cycle": "30"}  # $20 were used; $50 were paid, and $50 granted
    sold.clock.now = start + HALF_OF_NOVEMBER
    charge = await sold.buy(later, plus)
    assert (charge.captured_cents, await sold.lots(later)) == (4000, {"cycle": "60"})  # 20 unused, and 50 - 10
    found = await sold.on(later)
    assert (found.anchor_at, found.cycle.index, found.terms.name) == (sold.clock(), 0, "$50")
    # The old cycle's lot ends with the old cycle, the new one's with the new.
    sold.clock.now = start.replace(month=12)
    assert await sold.lots(later) == {"cycle": "40"}
    await sold.end_of_cycle(later)
    await sold.renew()
    assert await sold.lots(later) == {"cycle": "50"}


async def test_a_difference_below_what_a_card_takes_is_rounded_up_and_the_rest_is_funds(sold: PlanWorld) -> None:
    """103: a difference of 20 cents is charged as $0.50, which is the least that a card can be charged."""
    basic = await sold.plan(20)
    customer = await sold.customer()
    await sold.buy(customer, basic)
    dearer = replace(basic.terms, name="dearer", period_amount_nanos=basic.terms.period_amount_nanos + 200_000_000)
    plan = await sold.plans.create_plan(customer.merchant_id, dearer, overage=None, meter_ids=(), bundles=())
    change = await sold.subscriptions.quote(customer.connection_id, plan)
    assert (change.kind, change.amount_cents, change.leftover_nanos) == ("upgrade", 50, 300_000_000)
    await sold.buy(customer, plan)
    assert await sold.lots(customer) == {"cycle": "20", "funds": "0.3"}


async def test_a_plan_change_during_open_calls_loses_and_doubles_nothing(sold: PlanWorld) -> None:
    """13: calls that run over an upgrade, a renewal and a cancellation are charged once, from what they held."""
    basic, plus = await sold.plan(20), await sold.plan(50)
    customer = await sold.customer()
    await sold.buy(customer, basic)
    held = await sold.world.reserve(customer.wallet_id, 15 * USD, plan_linked=True, at=sold.clock())
    await sold.buy(customer, plus)
    await sold.world.settle(customer.wallet_id, held, 10 * USD, plan_linked=True, at=sold.clock())
    assert await sold.lots(customer) == {"cycle": "40"}
    held = await sold.world.reserve(customer.wallet_id, 40 * USD, plan_linked=True, at=sold.clock())
    await sold.end_of_cycle(customer)
    await sold.renew()
    await sold.world.settle(customer.wallet_id, held, 30 * USD, plan_linked=True, at=sold.clock())
    assert await sold.lots(customer) == {"cycle": "50"}
    held = await sold.world.reserve(customer.wallet_id, 20 * USD, plan_linked=True, at=sold.clock())
    await sold.subscriptions.cancel(customer.merchant_id, (await sold.on(customer)).subscription_id)
    await sold.end_of_cycle(customer)
    await sold.renew()
    await sold.world.settle(customer.wallet_id, held, 20 * USD, plan_linked=True, at=sold.clock())
    assert await sold.lots(customer) == {}
    state = await sold.world.state(customer.wallet_id)
    assert (state.balance_nanos, state.settled) == (0, 60 * USD)


async def test_editing_a_plan_touches_no_lot_and_counts_from_the_next_cycle(sold: PlanWorld) -> None:
    """96: neither balances nor running cycles change with the catalogue; deleting a plan ends nobody's."""
    plan = await sold.plan(25, rollover_type="full")
    customer = await sold.customer()
    await sold.buy(customer, plan)
    await sold.use(customer, 5)
    edited = replace(plan, terms=replace(plan.terms, name="other", included_credit_nanos=10 * USD, rollover_type="none"))
    await sold.plans.update_plan(edited, meter_ids=None, bundles=None)
    assert (await sold.on(customer)).terms == replace(plan.terms)
    assert await sold.lots(customer) == {"cycle": "20"}
    await sold.plans.archive_plan(customer.merchant_id, plan.plan_id)
    await sold.end_of_cycle(customer)
    await sold.renew()  # sold as rolling over, renewed as edited
    assert await sold.lots(customer) == {"cycle": "30"}
    assert (await sold.on(customer)).terms.name == "other"
    await sold.end_of_cycle(customer)
    await sold.renew()
    assert await sold.lots(customer) == {"cycle": "10"}


async def test_a_downgrade_waits_for_the_cycles_end_and_can_be_taken_back(sold: PlanWorld) -> None:
    """101: no money goes either way before it; the cheaper plan's cycle begins where the dearer one's ends."""
    basic, plus = await sold.plan(20), await sold.plan(50)
    customer = await sold.customer()
    await sold.buy(customer, plus)
    for plan, pending in ((basic, {"type": "downgrade", "plan_id": basic.plan_id}), (plus, None), (basic, "again")):
        changed = await sold.subscriptions.change_unpaid(customer, plan)
        if pending != "again":
            assert changed.pending == pending and changed.terms.plan_id == plus.plan_id
    end = (await sold.on(customer)).cycle.end
    await sold.end_of_cycle(customer)
    await sold.renew()
    found = await sold.on(customer)
    assert (found.terms.plan_id, found.cycle.start, found.cycle.index, found.pending) == (basic.plan_id, end, 0, None)
    assert (await sold.taken_cents(), await sold.lots(customer)) == (7000, {"cycle": "20"})
    default = await sold.plans.default_plan(customer.merchant_id)
    assert default is not None
    await sold.subscriptions.change_unpaid(customer, default)
    await sold.end_of_cycle(customer)
    await sold.renew()
    assert (await sold.on(customer)).terms.is_free and await sold.taken_cents() == 7000


async def test_a_cancelled_plan_runs_to_its_end_and_a_free_one_ends_at_once(sold: PlanWorld) -> None:
    """97: the cycle's credit ends with the plan, bundles and top-ups stay; cancelling again changes nothing."""
    plan = await sold.plan(25, bundles=1, rollover_type="full")
    customer, free = await sold.customer(), await sold.customer(None)
    await sold.funding.fund(customer.merchant_id, customer.wallet_id, 3 * USD, "test")
    await sold.buy(customer, plan)
    await sold.buy_bundle(customer, plan.bundles[0])
    found = await sold.on(customer)
    for _ in range(2):
        pending = await sold.subscriptions.cancel(customer.merchant_id, found.subscription_id)
        assert (pending.status, pending.pending) == ("active", {"type": "cancellation"})
    assert await sold.lots(customer) == {"bundle": "10", "cycle": "25", "funds": "3"}
    await sold.end_of_cycle(customer)
    await sold.renew()
    assert await sold.plans.live_subscription(customer.connection_id) is None
    assert await sold.lots(customer) == {"bundle": "10", "funds": "3"} and await sold.taken_cents() == 3300
    ended = await sold.plans.subscription(customer.merchant_id, found.subscription_id)
    assert ended is not None and ended.cancelled_at == found.cycle.end
    on_free = await sold.on(free)
    assert (await sold.subscriptions.cancel(free.merchant_id, on_free.subscription_id)).status == "cancelled"
    with pytest.raises(Conflict):
        await sold.subscriptions.set_auto_top_up(free.merchant_id, on_free.subscription_id, None)
    # Coming back is a new subscription; the bundles can be spent again.
    await sold.buy(customer, plan)
    assert (await sold.on(customer)).subscription_id != found.subscription_id
    assert await sold.lots(customer) == {"bundle": "10", "cycle": "25", "funds": "3"}


async def test_bundles_follow_their_own_rollover(sold: PlanWorld) -> None:
    """I17, 79, 82: cycle credit is used first; bundles carry over or end with the cycle they were bought in."""
    for rollover, left in (("full", {"bundle": "10", "cycle": "25"}), ("none", {"cycle": "25"})):
        plan = await sold.plan(25, bundles=1, bundle_rollover_type=rollover)
        customer = await sold.customer()
        await sold.buy(customer, plan)
        await sold.buy_bundle(customer, plan.bundles[0])
        await sold.use(customer, 20)
        assert await sold.lots(customer) == {"bundle": "10", "cycle": "5"}
        await sold.end_of_cycle(customer)
        await sold.renew()
        assert await sold.lots(customer) == left


async def test_nothing_of_an_ended_cycle_can_be_spent_before_it_is_renewed(sold: PlanWorld) -> None:
    """I20, 80, 92, 106: the first instant of the next cycle finds no credit of the last, with no worker having run."""
    customer = await sold.customer()
    await sold.buy(customer, await sold.plan(25))
    await sold.end_of_cycle(customer)
    sold.clock.advance(timedelta(microseconds=-1))
    await sold.use(customer, 5)
    await sold.end_of_cycle(customer)
    with pytest.raises(InsufficientFunds):
        await sold.use(customer, 1)
    await sold.renew()
    await sold.use(customer, 25)
    assert await sold.lots(customer) == {}


async def test_a_debt_survives_changes_of_plan(sold: PlanWorld) -> None:
    """81: plan credit neither pays a debt nor hides it."""
    customer = await sold.customer()
    request_id = await sold.world.reserve(customer.wallet_id, 4 * USD, overdraft_nanos=5 * USD, at=sold.clock())
    await sold.world.settle(customer.wallet_id, request_id, 4 * USD, overdraft_nanos=5 * USD, at=sold.clock())
    await sold.buy(customer, await sold.plan(20))
    await sold.buy(customer, await sold.plan(50))
    await sold.end_of_cycle(customer)
    await sold.renew()
    state = await sold.world.state(customer.wallet_id)
    assert (state.debt, await sold.lots(customer)) == (4 * USD, {"cycle": "50"})


async def test_a_declined_renewal_is_past_due_and_a_new_card_goes_on_with_it(sold: PlanWorld) -> None:
    """I26: nothing is granted meanwhile; paid two days late, the cycle is the one that began on its day."""
    customer = await sold.customer()
    await sold.buy(customer, await sold.plan(25))
    end = (await sold.on(customer)).cycle.end
    await sold.add_card(customer, POOR)
    await sold.end_of_cycle(customer)
    await sold.renew()
    assert ((await sold.on(customer)).status, await sold.lots(customer)) == ("past_due", {})
    await sold.work(16, timedelta(hours=3))
    assert await sold.taken_cents() == 2500
    await sold.add_card(customer, GOOD)
    await sold.work(1, timedelta(minutes=1))
    found = await sold.on(customer)
    assert (found.status, found.cycle.start, await sold.lots(customer)) == ("active", end, {"cycle": "25"})
    assert await sold.taken_cents() == 5000


@pytest.mark.parametrize("card", [POOR, HOLDER, None])
async def test_a_cycle_that_nobody_pays_for_two_weeks_ends_the_subscription(sold: PlanWorld, card: str | None) -> None:
    """58: declined, waiting for its holder, or without a card: cancelled after 14 days, and not tried after that."""
    customer = await sold.customer()
    await sold.buy(customer, await sold.plan(25))
    person_id = await sold.store.wallet_person(customer.wallet_id)
    assert person_id is not None
    if card is None:
        for method in await sold.cards.list(person_id):
            await sold.cards.remove(person_id, method.payment_method_id)
    else:
        await sold.add_card(customer, card)
    await sold.end_of_cycle(customer)
    await sold.renew()
    assert (await sold.on(customer)).status == "past_due"
    await sold.work(28, timedelta(hours=11))
    assert (await sold.on(customer)).status == "past_due"
    await sold.work(4, timedelta(hours=11))
    assert await sold.plans.live_subscription(customer.connection_id) is None
    await sold.add_card(customer, GOOD)
    await sold.work(6, timedelta(hours=11))
    assert (await sold.taken_cents(), await sold.lots(customer)) == (2500, {})


async def test_money_for_what_cannot_be_had_any_more_becomes_funds(sold: PlanWorld) -> None:
    """I25: a renewal paid after an upgrade, a second start, a bundle after the end: paid is paid."""
    plan, plus = await sold.plan(25, bundles=1), await sold.plan(50)
    customer = await sold.customer()
    subject = sold.subscriptions.subject_of_change(customer, plan)
    await sold.buy(customer, plan)
    await sold.pay(customer, "subscription_start", 2500, subject)  # a second tab
    await sold.apply()
    assert await sold.lots(customer) == {"cycle": "25", "funds": "25"}
    await sold.end_of_cycle(customer)
    _, (due,) = await sold.subscriptions.advance_due(10)
    late = await sold.charges.open(
        wallet_id=customer.wallet_id, merchant_id=customer.merchant_id, purpose="subscription_renewal",
        amount_cents=due.amount_cents, key=due.key, subject=due.subject,
    )  # fmt: skip
    async with sold.plans.transaction() as db:  # the upgrade is captured first, by a processor that was asked earlier
        now = await sold.subscriptions._locked(db, customer.merchant_id, due.subscription.subscription_id)
        await sold.subscriptions._begin_plan(db, customer, plus.terms, now, await _start(sold, customer, plus), "UTC")
    assert (await sold.charges.advance(late.charge_id)).state == "succeeded"
    await sold.apply()
    assert await sold.lots(customer) == {"cycle": "50", "funds": "50"}
    await sold.subscriptions.cancel(customer.merchant_id, due.subscription.subscription_id)
    await sold.end_of_cycle(customer)
    await sold.renew()
    await sold.buy_bundle(customer, plan.bundles[0])
    assert await sold.lots(customer) == {"funds": "58"}


async def _start(sold: PlanWorld, customer: Any, plan: Any) -> Any:
    return await sold.subscriptions.quote(customer.connection_id, plan)


async def test_a_deleted_customer_is_neither_renewed_nor_charged(sold: PlanWorld) -> None:
    customer = await sold.customer()
    await sold.buy(customer, await sold.plan(25))
    await sold.end_of_cycle(customer)
    assert await CustomerStore(sold.world.pool, sold.clock).delete(customer.merchant_id, customer.connection_id)
    assert await sold.renew() == 0 and await sold.taken_cents() == 2500
    with pytest.raises(NotFound):
        await sold.subscriptions.change_unpaid(customer, await sold.plan(0))


async def test_every_transition_is_told_once(sold: PlanWorld) -> None:
    """Created, renewed, changed, cancelled: in the transaction of each; a free plan's months are not told."""
    await listen(sold)
    basic, plus = await sold.plan(20), await sold.plan(50)
    customer = await sold.customer()
    await sold.end_of_cycle(customer)
    await sold.renew()
    assert await sold.events() == []
    await sold.buy(customer, basic)
    await sold.buy(customer, plus)
    await sold.end_of_cycle(customer)
    await asyncio.gather(*(sold.renewals.run_once() for _ in range(2)))
    found = await sold.on(customer)
    for _ in range(2):
        await sold.subscriptions.cancel(customer.merchant_id, found.subscription_id)
    await sold.end_of_cycle(customer)
    await sold.renew()
    assert await sold.events() == ["created", "changed", "renewed", "changed", "cancelled"]
    rows = await sold.world.fetch("SELECT facts, customer FROM event WHERE type LIKE 'subscription.%' ORDER BY ordinal")
    assert rows[-2]["facts"]["subscription"]["pending_change"] == "cancellation"
    assert rows[-2]["customer"]["subscription"]["plan_id"] == plus.plan_id
    assert rows[-1]["facts"]["subscription"]["status"] == "cancelled" and rows[-1]["customer"]["subscription"] is None


async def test_a_renewal_that_was_not_paid_is_told_with_what_has_changed(sold: PlanWorld) -> None:
    """The status stays `active` while the card is tried, so the event says the other half, as the subscription itself does."""
    await listen(sold)
    customer = await sold.customer()
    await sold.buy(customer, await sold.plan(25))
    await sold.add_card(customer, POOR)
    await sold.end_of_cycle(customer)
    await sold.renew()
    await sold.add_card(customer, GOOD)
    await sold.work(1, timedelta(minutes=1))
    assert await sold.events() == ["created", "changed", "renewed"]
    rows = await sold.world.fetch("SELECT facts FROM event WHERE type LIKE 'subscription.%' ORDER BY ordinal")
    told = [row["facts"]["subscription"] for row in rows]
    assert [(one["status"], one["is_past_due"]) for one in told] == [("active", False), ("active", True), ("active", False)]


async def test_an_automatic_top_up_is_a_bundle_of_the_plan(sold: PlanWorld) -> None:
    """The plan's own choice at first, then the customer's; a bundle that is deleted is bought no more."""
    plan, other = await sold.plan(25, bundles=2), await sold.plan(30, bundles=1)
    first, second = (bundle.credit_bundle_id for bundle in plan.bundles)
    plan = await sold.plans.update_plan(replace(plan, default_auto_top_up_bundle_id=first), meter_ids=None, bundles=None)
    customer = await sold.customer()
    await sold.buy(customer, plan)
    found = await sold.on(customer)
    assert found.auto_top_up_bundle_id == first
    with pytest.raises(NotFound):
        await sold.subscriptions.set_auto_top_up(
            customer.merchant_id, found.subscription_id, other.bundles[0].credit_bundle_id
        )  # fmt: skip
    await sold.subscriptions.set_auto_top_up(customer.merchant_id, found.subscription_id, second)
    await sold.end_of_cycle(customer)
    await sold.renew()
    assert (await sold.on(customer)).auto_top_up_bundle_id == second
    gone = BundleDraft(credit_bundle_id=second, name="x", cost_nanos=USD, credit_nanos=USD, is_deleted=True)
    await sold.plans.update_plan(plan, meter_ids=None, bundles=[gone])
    assert (await sold.on(customer)).auto_top_up_bundle_id is None


async def test_a_grant_knows_the_cycle_and_whether_the_meter_draws_on_the_plan(sold: PlanWorld) -> None:
    """82: only linked meters do; a renewal drops what a gateway knows of that customer, and of no other."""
    meters = [
        await sold.world.catalog.create_meter(
            sold.world.merchant_id, name=slug, slug=slug, rate_type="fixed", tier_type="requests", tiers=(Tier(start=0, rate=USD),)
        )
        for slug in ("linked", "other")
    ]
    plan = await sold.plan(25, meter_ids=[meters[0].meter_id])
    made = [await sold.world.catalog.create_connection(sold.world.merchant_id) for _ in range(2)]
    customer, neighbour = made
    key = await sold.world.catalog.create_secret_key(sold.world.merchant_id, "x")
    grants = Grants(sold.world.catalog, Cache(grants_max=10, unknown_s=1), sold.clock)
    await sold.plans._execute("UPDATE subscription SET plan_id = $2 WHERE connection_id = $1", customer.connection_id, plan.plan_id)
    credentials = {
        (name, slug): mint(key, one.connection_id, slug, None, None).encode()
        for name, one in (("customer", customer), ("neighbour", neighbour))
        for slug in ("linked", "other")
    }
    found = {pair: (await grants.resolve(credential)).grant for pair, credential in credentials.items()}
    assert [found["customer", slug].plan_linked for slug in ("linked", "other")] == [True, False]
    assert not found["neighbour", "linked"].plan_linked
    cycle = (await sold.on(customer)).cycle_id
    assert {found["customer", slug].cycle_id for slug in ("linked", "other")} == {cycle}
    grants.forget_connection(customer.connection_id)
    assert [grants.known(credential) is None for credential in credentials.values()] == [True, True, False, False]


async def test_the_notice_of_a_renewal_names_its_connection_only(sold: PlanWorld) -> None:
    customer = await sold.customer()
    heard: list[str] = []
    listener = await asyncpg.connect(sold.world.database_url)
    try:
        await listener.add_listener("catalogue", lambda *said: heard.append(said[-1]))
        await sold.end_of_cycle(customer)
        await sold.renew()
        await listener.fetchval("SELECT 1")
        await asyncio.sleep(0)
        assert heard == [f"connection:{customer.connection_id}"]
    finally:
        await listener.close()
