"""Refunds of bundles and cycles: what is left of their credit goes back, what was used is owed only where it is claimed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from lava_proxy.billing.charges import cycle_credit_id
from lava_proxy.domain.errors import StoreError
from lava_proxy.domain.money import NANOS_PER_USD
from lava_proxy.payments.processor import Dispute, Refund
from lava_proxy.stores.catalog_store import Connection
from tests.billing_world import World
from tests.plan_world import PlanWorld, plan_world


@pytest.fixture
async def plans(world: World) -> AsyncIterator[PlanWorld]:
    async with plan_world(world) as made:
        yield made


async def money(plans: PlanWorld, customer: Connection) -> tuple[dict[str, str], int]:
    """(class -> dollars that remain in it, debt in cents), once everything ordered has been applied; the books are even."""
    await plans.apply()
    await plans.world.flush()
    await plans.world.clean_audit()
    return await plans.lots(customer), (await plans.world.state(customer.wallet_id)).debt // (NANOS_PER_USD // 100)


async def with_bundle(plans: PlanWorld, used_usd: int = 0, funds_usd: int = 0) -> tuple[Connection, Any]:
    """A customer who has bought a bundle of $10 for $8 and used some of it; and its charge."""
    plan = await plans.plan(0, bundles=1)
    customer = await plans.customer()
    await plans.subscriptions.change_unpaid(customer, plan)
    charge = await plans.buy_bundle(customer, plan.bundles[0])
    if funds_usd:
        await plans.funding.fund(customer.merchant_id, customer.wallet_id, funds_usd * NANOS_PER_USD, "test")
    if used_usd:
        await plans.use(customer, used_usd)
    await plans.world.flush()
    return customer, charge


@pytest.mark.parametrize(
    ("used", "cents", "claims", "left", "debt"),
    [
        (0, None, False, {}, 0),  # all of $10 goes for the $8
        (0, 400, False, {"bundle": "5"}, 0),  # in the refund's share
        (4, None, False, {}, 0),  # what is left
        (10, None, False, {}, 0),
        (8, 400, False, {}, 0),
        (4, None, True, {}, 200),  # and $2 of the $8 are missing
        (10, None, True, {}, 800),
        (0, None, True, {}, 0),
        (7, 400, True, {}, 100),
    ],
)
async def test_a_bundles_refund_takes_what_is_left_of_its_credit_and_what_was_used_only_where_it_is_claimed(
    plans: PlanWorld, used: int, cents: int | None, claims: bool, left: dict[str, str], debt: int
) -> None:
    """75, I25: for the money that a card gets back."""
    customer, charge = await with_bundle(plans, used)
    back = await plans.charges.refund(charge.charge_id, cents, "unhappy", claims_used=claims)
    assert (back.state, back.clawed_cents) == ("done", cents or 800)
    assert await money(plans, customer) == (left, debt)
    await plans.charges.sync_refunds(charge.charge_id)
    assert await money(plans, customer) == (left, debt)


async def test_funds_and_another_bundle_are_left_alone_by_a_bundles_refund(plans: PlanWorld) -> None:
    """75, I20: only the credit that the charge bought."""
    customer, charge = await with_bundle(plans, 7, funds_usd=30)
    plan = await plans.plans.plan(customer.merchant_id, (await plans.on(customer)).terms.plan_id)
    assert plan is not None
    plans.clock.advance(timedelta(seconds=1))
    await plans.buy_bundle(customer, plan.bundles[0])
    await plans.charges.refund(charge.charge_id, None, "unhappy")
    assert await money(plans, customer) == ({"bundle": "10", "funds": "30"}, 0)


async def test_refunds_in_one_moment_take_no_credit_twice(plans: PlanWorld) -> None:
    """75, I20: the second knows what the first has ordered, applied or not."""
    customer, charge = await with_bundle(plans, 4, funds_usd=5)
    for refund_id in ("ref_a", "ref_b"):
        await plans.charges.refund(charge.charge_id, 400, "unhappy", refund_id=refund_id)
    taken = {row.refund_id: row.lot_nanos // NANOS_PER_USD for row in await plans.store.refunds(charge.charge_id)}
    assert taken == {"ref_a": 5, "ref_b": 1}
    assert await money(plans, customer) == ({"funds": "5"}, 0)


async def test_a_refund_while_redis_is_away_is_finished_by_the_worker(plans: PlanWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """54: the card has its money; what is left of the credit is taken once that can be said."""
    customer, charge = await with_bundle(plans, 4)

    async def away(wallet_id: str, lot_id: str) -> int:
        raise StoreError("Redis cannot answer")

    with monkeypatch.context() as patched:
        patched.setattr(plans.funding, "left_of_lot", away)
        assert (await plans.charges.refund(charge.charge_id, None, "unhappy")).state == "requested"
    assert await money(plans, customer) == ({"bundle": "6"}, 0)
    plans.clock.advance(timedelta(minutes=2))
    await plans.charges_again()
    assert await money(plans, customer) == ({}, 0)
    (row,) = await plans.store.refunds(charge.charge_id)
    assert (row.state, row.clawed_cents) == ("done", 800)


async def test_what_an_open_call_may_still_use_stays_and_is_charged_by_it(plans: PlanWorld) -> None:
    customer, charge = await with_bundle(plans)
    nanos = 3 * NANOS_PER_USD
    request_id = await plans.world.reserve(customer.wallet_id, nanos, plan_linked=True, at=plans.clock())
    await plans.charges.refund(charge.charge_id, None, "unhappy")
    await plans.apply()
    assert await plans.lots(customer) == {"bundle": "3"}
    await plans.world.settle(customer.wallet_id, request_id, nanos, plan_linked=True, at=plans.clock())
    assert await money(plans, customer) == ({}, 0)


async def test_a_cycles_refund_takes_the_credit_that_it_granted_not_the_customers_funds(plans: PlanWorld) -> None:
    """75: a plan's charge is no funds; the subscription goes on."""
    plan, customer = await plans.plan(20), await plans.customer()
    charge = await plans.buy(customer, plan)
    await plans.funding.fund(customer.merchant_id, customer.wallet_id, 5 * NANOS_PER_USD, "test")
    await plans.use(customer, 15)
    await plans.world.flush()
    assert (await plans.charges.refund(charge.charge_id, None, "unhappy")).clawed_cents == 2000
    assert await money(plans, customer) == ({"funds": "5"}, 0)
    assert (await plans.on(customer)).status == "active"


async def test_a_renewals_refund_takes_the_credit_of_its_own_cycle(plans: PlanWorld) -> None:
    """75, I20: what rolled over from the cycle before was paid by that one."""
    plan, customer = await plans.plan(20, rollover_type="full"), await plans.customer()
    await plans.buy(customer, plan)
    await plans.use(customer, 12)
    await plans.end_of_cycle(customer)
    await plans.renew()
    subscription = await plans.on(customer)
    charge = (await plans.store.charges(customer.wallet_id))[0]
    assert charge.purpose == "subscription_renewal"
    assert await plans.store.cycles_of(charge) == [(subscription.subscription_id, subscription.cycle.start)]
    assert cycle_credit_id(subscription.subscription_id, subscription.cycle.start) in {
        row["credit_id"] for row in await plans.world.fetch("SELECT credit_id FROM credit")
    }
    await plans.charges.refund(charge.charge_id, None, "unhappy")
    assert await money(plans, customer) == ({"cycle": "8"}, 0)


async def test_a_refund_that_fails_at_the_bank_gives_everything_back_as_it_was(
    plans: PlanWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """75: credit as credit, debt as debt."""
    customer, charge = await with_bundle(plans, 4)
    before = await money(plans, customer)
    await plans.charges.refund(charge.charge_id, None, "unhappy", refund_id="ref_a", claims_used=True)
    assert await money(plans, customer) == ({}, 200)
    processor = plans.charges._processor
    made = await processor.refunds(charge.processor_ref)

    async def failed(payment_ref: str) -> list[Refund]:
        return [replace(one, status="failed") for one in made]

    monkeypatch.setattr(processor, "refunds", failed)
    await plans.charges.sync_refunds(charge.charge_id)
    assert await money(plans, customer) == before == ({"bundle": "6"}, 0)
    (row,) = await plans.store.refunds(charge.charge_id)
    assert (row.state, row.clawed_cents, row.lot_nanos, row.funds_nanos) == ("failed", 0, 0, 0)


async def test_a_dispute_claims_what_was_used(plans: PlanWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """75: the bank takes the money back without being asked."""
    customer, charge = await with_bundle(plans, 10)

    async def disputes(payment_ref: str) -> list[Dispute]:
        return [Dispute(dispute_ref="dp_1", payment_ref=payment_ref, amount_cents=800, status="lost")]

    monkeypatch.setattr(plans.charges._processor, "disputes", disputes)
    await plans.charges.sync_refunds(charge.charge_id)
    assert await money(plans, customer) == ({}, 800)
