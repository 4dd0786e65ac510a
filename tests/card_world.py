"""Card payments on a billing world: the sandbox or the Stripe adapter on a fake Stripe, one clock for all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from lava_proxy.billing.cards import Cards
from lava_proxy.billing.charges import Charges
from lava_proxy.payments.processor import CardDetails, Payment, Processor
from lava_proxy.payments.sandbox import SandboxProcessor
from lava_proxy.payments.stripe import StripeProcessor
from lava_proxy.stores.charge_store import Charge, ChargeStore, PaymentMethod
from lava_proxy.workers.charger import Charger
from tests.billing_world import World
from tests.fake_stripe import FakeStripe, fake_stripe

GOOD, REFUSED, LATER, POOR, HOLDER = (
    "4242424242424242",
    "4000000000000002",
    "4000000000000341",
    "4000000000009995",
    "4000002500003155",
)
Kind = Literal["sandbox", "stripe"]
_phones = iter(range(10_000, 99_999))


@dataclass(slots=True)
class Clock:
    """Business time of a test; the fake Stripe's goes with it."""

    now: datetime
    fake: FakeStripe | None = None

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> None:
        self.now += by
        if self.fake is not None:
            self.fake.now_s = int(self.now.timestamp())


@dataclass(slots=True)
class CardWorld:
    """Everything that charges cards, and short forms of what tests do with it."""

    world: World
    clock: Clock
    processor: Processor
    fake: FakeStripe | None
    store: ChargeStore
    charges: Charges
    cards: Cards
    transitions: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def charger(self) -> Charger:
        return Charger(self.store, self.charges, self.clock)

    async def payer(self, number: str | None = GOOD) -> tuple[str, str]:
        """A new customer's (wallet, person), with a card."""
        wallet_id = await self.world.wallet()
        person_id = await self.store.person_of_phone(f"+1415555{next(_phones)}", self.clock())
        await self.store.link_wallet(wallet_id, person_id)
        if number is not None:
            await self.add_card(person_id, number)
        return wallet_id, person_id

    async def add_card(self, person_id: str, number: str) -> PaymentMethod:
        if self.fake is None:
            return await self.cards.add(person_id, CardDetails(number=number, expiry_month=12, expiry_year=2034))
        setup = await self.cards.begin(person_id)
        self.fake.finish_setup(setup.setup_ref, number)
        saved = await self.cards.finish(person_id, setup.setup_ref)
        assert saved is not None
        return saved

    async def open(self, wallet_id: str, amount_cents: int = 2500, **options: Any) -> Charge:
        options = {"purpose": "top_up", "merchant_id": self.world.merchant_id} | options
        return await self.charges.open(wallet_id=wallet_id, amount_cents=amount_cents, **options)

    async def pay(self, wallet_id: str, amount_cents: int = 2500, **options: Any) -> Charge:
        """Open and advance."""
        return await self.charges.advance((await self.open(wallet_id, amount_cents, **options)).charge_id)

    async def authenticate(self, payment_ref: str, *, approve: bool) -> None:
        if self.fake is None:
            await self.processor.authenticate(payment_ref, approve=approve)
        else:
            self.fake.authenticate(payment_ref, approve=approve)

    async def taken_cents(self) -> int:
        """What the processor took, all in all: the oracle."""
        if self.fake is not None:
            return sum(self.fake.taken_cents.values())
        rows = await self.world.fetch("SELECT facts FROM sandbox_object WHERE kind = 'payment'")
        return sum(row["facts"]["captured"] for row in rows)

    async def payments(self) -> list[Payment]:
        return await self.processor.payments_of_day(self.clock().date())

    async def ordered_nanos(self, wallet_id: str) -> int:
        """What Postgres was ordered to credit."""
        rows = await self.world.fetch(
            "SELECT coalesce(sum(amount_nanos), 0)::bigint AS nanos FROM credit WHERE wallet_id = $1 AND kind = 'credit'", wallet_id
        )
        return int(rows[0]["nanos"])

    async def run(self, *, rounds: int = 12, step: timedelta = timedelta(minutes=5)) -> None:
        """The worker, for an hour."""
        for _ in range(rounds):
            await self.charger.run_once()
            self.clock.advance(step)
        await self.charger.run_once()

    async def send(self, event: dict[str, Any]) -> bool:
        """One of the fake's events, as the endpoint takes it."""
        import json

        assert self.fake is not None
        body = json.dumps(event).encode()
        parsed = self.processor.event(body, self.fake.signature(body))
        await self.cards.take_event(parsed)
        return await self.charges.take_event(parsed)


@asynccontextmanager
async def card_world(world: World, kind: Kind) -> AsyncIterator[CardWorld]:
    """Card payments over one of the processors."""
    store = ChargeStore(world.pool)
    if kind == "sandbox":
        clock = Clock(datetime(2026, 11, 20, 12, tzinfo=UTC))
        yield _made(world, clock, SandboxProcessor(world.pool, clock=clock, base_url="http://x"), None, store)
        return
    async with fake_stripe() as fake:
        clock = Clock(datetime.fromtimestamp(fake.now_s, UTC), fake)
        processor = StripeProcessor(
            "sk_test_x",
            webhook_secrets=("whsec_older", fake.webhook_secret),
            api_base=fake.base_url,
            timeout_s=5,
            now_s=lambda: float(fake.now_s),
        )
        try:
            yield _made(world, clock, processor, fake, store)
        finally:
            await processor.close()


def _made(world: World, clock: Clock, processor: Processor, fake: FakeStripe | None, store: ChargeStore) -> CardWorld:
    transitions: list[tuple[str, str, str]] = []

    async def note(db: Any, charge: Charge, old: str, new: str) -> None:
        transitions.append((charge.charge_id, old, new))

    charges = Charges(store, processor, world.funding, clock, on_transition=note)
    return CardWorld(
        world, clock, processor, fake, store, charges, Cards(store, processor, charges, clock), transitions
    )  # fmt: skip
