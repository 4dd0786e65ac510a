"""Plans on a billing world: the sandbox processor, one business clock, and what tests do with customers on plans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from lava_proxy.billing.cards import Cards
from lava_proxy.billing.charges import Charges
from lava_proxy.billing.funding import Funding
from lava_proxy.billing.subscriptions import Subscriptions
from lava_proxy.domain.money import NANOS_PER_USD
from lava_proxy.domain.plans import Bundle, Plan, Subscription, Terms
from lava_proxy.payments.processor import CardDetails
from lava_proxy.payments.sandbox import SandboxProcessor
from lava_proxy.stores.catalog_store import CatalogStore, Connection
from lava_proxy.stores.charge_store import Charge, ChargeStore, Purpose
from lava_proxy.stores.plan_store import BundleDraft, PlanStore
from lava_proxy.stores.vault import Vault, new_master_key
from lava_proxy.workers.charger import Charger
from lava_proxy.workers.credit_applier import CreditApplier
from lava_proxy.workers.renewals import Renewals
from tests.billing_world import World
from tests.card_world import GOOD, Clock

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
_phones = iter(range(10_000, 99_999))
_LOTS = {"p:400": "cycle", "p:450": "bundle", "f:500": "funds"}


@dataclass(slots=True)
class PlanWorld:
    """Everything that sells plans."""

    world: World
    clock: Clock
    catalog: CatalogStore
    funding: Funding
    plans: PlanStore
    store: ChargeStore
    charges: Charges
    cards: Cards
    subscriptions: Subscriptions

    @property
    def renewals(self) -> Renewals:
        return Renewals(self.subscriptions, self.charges)

    async def plan(self, usd: int, credit_usd: int | None = None, *, bundles: int = 0, **facts: Any) -> Plan:
        """A plan of so many dollars a cycle; `bundles` of $10 for $8."""
        options = {name: facts.pop(name) for name in ("meter_ids",) if name in facts}
        facts = {"billing_interval": "month", "name": f"${usd}"} | facts
        terms = Terms(
            plan_id="", period_amount_nanos=usd * NANOS_PER_USD,
            included_credit_nanos=(usd if credit_usd is None else credit_usd) * NANOS_PER_USD, **facts,
        )  # fmt: skip
        draft = BundleDraft(name="more", cost_nanos=8 * NANOS_PER_USD, credit_nanos=10 * NANOS_PER_USD)
        return await self.plans.create_plan(
            self.world.merchant_id, terms, overage=None, meter_ids=options.get("meter_ids", ()), bundles=[draft] * bundles
        )

    async def customer(self, card: str | None = GOOD) -> Connection:
        """A new customer, on the default plan, with a card."""
        made = await self.catalog.create_connection(self.world.merchant_id)
        await self.funding.open_wallet(made.wallet_id)
        self.world.wallets.append(made.wallet_id)
        person_id = await self.store.person_of_phone(f"+1415444{next(_phones)}", self.clock())
        await self.store.link_wallet(made.wallet_id, person_id)
        if card is not None:
            await self.add_card(made, card)
        return made

    async def add_card(self, customer: Connection, number: str) -> None:
        person_id = await self.store.wallet_person(customer.wallet_id)
        assert person_id is not None
        await self.cards.add(person_id, CardDetails(number=number, expiry_month=12, expiry_year=2044))

    async def buy(self, customer: Connection, plan: Plan) -> Charge:
        """Start or upgrade to a paid plan as a checkout does it, and give the credit."""
        change = await self.subscriptions.quote(customer.connection_id, plan)
        purpose: Purpose = "subscription_start" if change.kind == "start" else "plan_upgrade"
        charge = await self.pay(
            customer, purpose, change.amount_cents, self.subscriptions.subject_of_change(customer, plan)
        )  # fmt: skip
        await self.apply()
        return charge

    async def buy_bundle(self, customer: Connection, bundle: Bundle) -> Charge:
        subject = self.subscriptions.subject_of_bundle(customer.connection_id, bundle)
        charge = await self.pay(customer, "bundle", bundle.cost_nanos // 10_000_000, subject)
        await self.apply()
        return charge

    async def pay(self, customer: Connection, purpose: Purpose, cents: int, subject: dict[str, Any]) -> Charge:
        charge = await self.charges.open(
            wallet_id=customer.wallet_id, merchant_id=customer.merchant_id, purpose=purpose, amount_cents=cents, subject=subject,
            on_session=True,
        )  # fmt: skip
        return await self.charges.advance(charge.charge_id)

    async def on(self, customer: Connection) -> Subscription:
        """The customer's live subscription."""
        found = await self.plans.live_subscription(customer.connection_id)
        assert found is not None
        return found

    async def apply(self) -> None:
        await CreditApplier(self.catalog, self.funding).run_once()

    async def renew(self) -> int:
        """One round of the renewals and of the applier."""
        seen = await self.renewals.run_once()
        await self.apply()
        return seen

    async def work(self, rounds: int, step: timedelta) -> None:
        """The worker for a while: charges that are to be tried again, and renewals."""
        for _ in range(rounds):
            self.clock.advance(step)
            await self.charges_again()
            await self.renew()

    async def charges_again(self) -> None:
        """The charger, once."""
        await Charger(self.store, self.charges, self.clock).run_once()

    async def end_of_cycle(self, customer: Connection) -> None:
        """The first instant of the customer's next cycle."""
        self.clock.now = (await self.on(customer)).cycle.end

    async def use(self, customer: Connection, usd: int, *, linked: bool = True) -> None:
        """A call that costs so much."""
        nanos = usd * NANOS_PER_USD
        request_id = await self.world.reserve(customer.wallet_id, nanos, plan_linked=linked, at=self.clock())
        await self.world.settle(customer.wallet_id, request_id, nanos, plan_linked=linked, at=self.clock())

    async def lots(self, customer: Connection) -> dict[str, str]:
        """Class -> dollars that remain in it, as they stand now."""
        state = (await self.world.state(customer.wallet_id)).at(self.clock())
        found: dict[str, int] = {}
        for key, left in state.lots.items():
            name = _LOTS.get(key[:5], "pin")
            found[name] = found.get(name, 0) + left
        return {name: _usd(nanos) for name, nanos in sorted(found.items())}

    async def taken_cents(self) -> int:
        """What the processor took, all in all."""
        rows = await self.world.fetch("SELECT facts FROM sandbox_object WHERE kind = 'payment'")
        return sum(row["facts"]["captured"] for row in rows)

    async def periods(self, customer: Connection) -> list[dict[str, Any]]:
        """The cycles that have begun, oldest first, those of the default plan left out."""
        return await self.world.fetch(
            """SELECT p.* FROM subscription_period p JOIN subscription s USING (subscription_id)
            WHERE s.connection_id = $1 AND p.plan_id NOT IN (SELECT plan_id FROM plan WHERE is_default) ORDER BY p.start_at""",
            customer.connection_id,
        )

    async def events(self) -> list[str]:
        """The names of the subscriptions' events, oldest first."""
        rows = await self.world.fetch("SELECT type FROM event WHERE type LIKE 'subscription.%' ORDER BY ordinal")
        return [row["type"].removeprefix("subscription.") for row in rows]


def _usd(nanos: int) -> str:
    whole, rest = divmod(nanos, NANOS_PER_USD)
    return f"{whole}.{rest:09d}".rstrip("0").rstrip(".")


@asynccontextmanager
async def plan_world(world: World, now: datetime = NOON) -> AsyncIterator[PlanWorld]:
    """Plans over a world, at a moment."""
    clock = Clock(now)
    catalog = CatalogStore(world.pool, Vault(new_master_key()), clock)
    funding = Funding(catalog, world.balances, clock)
    plans, store = PlanStore(world.pool, clock), ChargeStore(world.pool)
    subscriptions = Subscriptions(plans, funding, clock)
    processor = SandboxProcessor(world.pool, clock=clock, base_url="http://x")
    charges = Charges(
        store, processor, funding, clock, subscriptions.effects(), on_transition=subscriptions.on_transition, adjust=funding.adjust
    )
    cards = Cards(store, processor, charges, clock)
    yield PlanWorld(world, clock, catalog, funding, plans, store, charges, cards, subscriptions)
