"""Overage on a card world: customers with policies and plans, calls that draw on them, and the worker, all by one clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from lava_proxy.billing.cards import Cards
from lava_proxy.billing.charges import Charges
from lava_proxy.billing.overage import OverageDesk
from lava_proxy.billing.subscriptions import Subscriptions
from lava_proxy.domain.catalog import Tier
from lava_proxy.domain.errors import InsufficientFunds
from lava_proxy.domain.plans import Overage, Terms, overage_document
from lava_proxy.stores.billing_terms import BillingTerms
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.overage_store import OverageStore
from lava_proxy.stores.plan_store import PlanStore
from lava_proxy.workers.overage import OverageWorker
from tests.billing_world import World
from tests.card_world import GOOD, CardWorld, Kind, card_world

USD = 1_000_000_000
CHARGE = Overage(policy="charge", limit_nanos=50 * USD, threshold_nanos=10 * USD, increment_nanos=USD)
AUTO = Overage(policy="auto_top_up")


@dataclass(frozen=True, slots=True)
class Customer:
    wallet_id: str
    person_id: str
    connection_id: str


@dataclass(slots=True)
class OverageWorld:
    """The worker and what it works on."""

    world: World
    cards: CardWorld
    store: OverageStore
    outbox: Outbox
    meter_id: str

    @property
    def clock(self) -> Any:
        return self.cards.clock

    def worker(self, charges: Charges | None = None) -> OverageWorker:
        desk = OverageDesk(self.store, self.cards.store, charges or self.cards.charges, self.outbox, self.clock)
        return OverageWorker(self.store, desk, self.outbox, self.clock)

    async def customer(self, overage: Overage | None = CHARGE, *, card: str | None = GOOD, funds: int = 0) -> Customer:
        """A new customer of this policy whose line has been opened."""
        wallet_id, person_id = await self.cards.payer(card)
        rows = await self.world.fetch("SELECT connection_id FROM connection WHERE wallet_id = $1", wallet_id)
        made = Customer(wallet_id, person_id, rows[0]["connection_id"])
        await self.world.pool.execute("UPDATE subscription SET status = 'cancelled' WHERE wallet_id = $1", wallet_id)
        if funds:
            await self.world.funding.fund(self.world.merchant_id, wallet_id, funds, "test")
        await self.set_policy(made, overage)
        return made

    async def set_policy(self, customer: Customer, overage: Overage | None) -> None:
        document = None if overage is None else overage_document(overage)
        await self.world.pool.execute(
            "UPDATE connection SET overage = $2 WHERE connection_id = $1", customer.connection_id, document
        )
        await self.settle()

    async def subscribe(self, customer: Customer, *, credit: int, bundle: tuple[int, int] | None = None) -> str:
        """Put a customer on a plan that is linked to the meter, with its first credit; the bundle costs and gives so many USD."""
        plan_id, bundle_id, now = new_id("sc"), new_id("cb"), self.clock()
        pool, merchant_id = self.world.pool, self.world.merchant_id
        await pool.execute(
            """INSERT INTO plan (plan_id, merchant_id, name, period_amount_nanos, included_credit_nanos, billing_interval,
            rollover_type, bundle_rollover_type, created_at) VALUES ($1, $2, 'Pro', $3, $4, 'month', 'none', 'full', $5)""",
            plan_id, merchant_id, 100 * USD, credit * USD, now,
        )  # fmt: skip
        await pool.execute("INSERT INTO plan_meter VALUES ($1, $2)", plan_id, self.meter_id)
        if bundle is not None:
            await pool.execute(
                "INSERT INTO credit_bundle VALUES ($1, $2, 'Extra', $3, $4, $5)",
                bundle_id, plan_id, bundle[0] * USD, bundle[1] * USD, now,
            )  # fmt: skip
        terms = Terms(
            plan_id=plan_id, name="Pro", period_amount_nanos=100 * USD, included_credit_nanos=credit * USD, billing_interval="month"
        )
        subscription_id = new_id("sub")
        await pool.execute(
            """INSERT INTO subscription (subscription_id, merchant_id, connection_id, wallet_id, plan_id, terms, status,
            auto_top_up_bundle_id, time_zone, anchor_at, cycle_index, cycle_start_at, cycle_end_at, due_at, started_at)
            VALUES ($1, $2, $3, $4, $5, $6, 'active', $7, 'UTC', $8, 0, $8, $9, $9, $8)""",
            subscription_id, merchant_id, customer.connection_id, customer.wallet_id, plan_id, terms.document(),
            bundle_id if bundle else None, now, now + timedelta(days=30),
        )  # fmt: skip
        await self.world.funding.renew_cycle(
            merchant_id, customer.wallet_id, f"ren_{subscription_id}", grant_nanos=credit * USD, ends=frozenset(), reason="plan"
        )
        await self.settle()
        return subscription_id

    async def renew(self, customer: Customer) -> None:
        """The next cycle begins."""
        await self.world.pool.execute(
            """UPDATE subscription SET cycle_index = cycle_index + 1, cycle_start_at = $2, cycle_end_at = $3
            WHERE wallet_id = $1 AND status <> 'cancelled'""",
            customer.wallet_id, self.clock(), self.clock() + timedelta(days=30),
        )  # fmt: skip

    async def terms(self, customer: Customer) -> BillingTerms:
        return await self.world.catalog.billing_terms(customer.connection_id, self.meter_id)

    async def call(self, customer: Customer, nanos: int, *, flush: bool = True) -> bool:
        """A call that costs so much, as a gateway makes it; False when it was refused. Then the ledger has it."""
        terms, request_id = await self.terms(customer), new_id("req")
        try:
            await self.world.reserve(
                customer.wallet_id, nanos, request_id, overdraft_nanos=terms.overdraft_nanos, plan_linked=terms.plan_linked
            )
        except InsufficientFunds:
            if terms.tops_up and terms.plan_linked:
                await self.outbox.note_refused({customer.wallet_id: nanos})
            return False
        await self.world.settle(customer.wallet_id, request_id, nanos)
        if flush:
            await self.world.flush()
        return True

    async def settle(self, *, workers: int = 1) -> None:
        """Let the worker look until nothing is due now, with the flusher beside it."""
        for _ in range(20):
            await self.world.flush()
            done = await asyncio.gather(*(self.worker().run_once() for _ in range(workers)))
            if not any(done):
                return
        raise AssertionError("the worker does not come to rest")

    async def advance(self, by: timedelta) -> None:
        self.clock.advance(by)
        await self.settle()

    async def debt(self, customer: Customer) -> int:
        return (await self.world.state(customer.wallet_id)).debt

    async def charged(self, customer: Customer) -> list[tuple[str, int, str]]:
        """(purpose, cents, state) of its charges, oldest first."""
        found = await self.cards.store.charges(customer.wallet_id)
        return [(charge.purpose, charge.amount_cents, charge.state) for charge in reversed(found)]

    async def status(self, customer: Customer) -> tuple[str, str]:
        """The connection's status, and why it is limited."""
        rows = await self.world.fetch(
            """SELECT status, coalesce(limited_reason, '') AS reason FROM connection LEFT JOIN overage_line USING (wallet_id)
            WHERE wallet_id = $1""",
            customer.wallet_id,
        )
        return rows[0]["status"], rows[0]["reason"]

    async def is_even(self, *customers: Customer) -> int:
        """I25: what was taken is what was credited in funds (overage and top-ups only); the cents."""
        taken = await self.cards.taken_cents()
        credited = 0
        for customer in customers:
            rows = await self.world.fetch(
                "SELECT amount_nanos FROM credit WHERE wallet_id = $1 AND reason IN ('overage', 'top_up')", customer.wallet_id
            )
            credited += sum(row["amount_nanos"] for row in rows)
        assert credited == taken * USD // 100
        return taken


@asynccontextmanager
async def overage_world(world: World, kind: Kind = "sandbox") -> AsyncIterator[OverageWorld]:
    """Overage over a billing world."""
    async with card_world(world, kind) as cards:
        yield await made_of(world, cards)


async def made_of(world: World, cards: CardWorld) -> OverageWorld:
    plans = PlanStore(world.pool, cards.clock)
    effects = Subscriptions(plans, world.funding, cards.clock).effects()
    cards.charges = Charges(
        cards.store, cards.processor, world.funding, cards.clock, effects | {"auto_top_up": effects["bundle"]}
    )  # fmt: skip
    cards.cards = Cards(cards.store, cards.processor, cards.charges, cards.clock)
    meter = await world.catalog.create_meter(
        world.merchant_id, name="m", slug=new_id("slug"), rate_type="fixed", tier_type="requests", tiers=(Tier(start=0, rate=USD),)
    )
    return OverageWorld(world, cards, OverageStore(world.pool), Outbox(world.redis, cards.clock), meter.meter_id)
