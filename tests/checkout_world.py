"""A hosted checkout on a billing world: real stores, the sandbox or a fake Stripe, codes that are kept instead of sent."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lava_proxy.api.checkout_sessions import CheckoutSessions
from lava_proxy.billing.cards import Cards
from lava_proxy.billing.charges import Charges
from lava_proxy.billing.checkout import Checkout, Visit
from lava_proxy.billing.checkout_links import CheckoutLinks
from lava_proxy.billing.checkout_progress import CheckoutProgress
from lava_proxy.billing.funding import Funding
from lava_proxy.billing.subscriptions import Subscriptions
from lava_proxy.billing.verification import Verification
from lava_proxy.domain.checkout import CheckoutSession, Mode
from lava_proxy.domain.plans import Plan, Terms
from lava_proxy.payments.processor import CardDetails, Processor
from lava_proxy.payments.sandbox import SandboxProcessor
from lava_proxy.stores.call_counts import CallCounts
from lava_proxy.stores.charge_store import Charge, ChargeStore
from lava_proxy.stores.checkout_store import CheckoutStore
from lava_proxy.stores.customer_store import CustomerStore
from lava_proxy.stores.plan_store import BundleDraft, PlanStore
from lava_proxy.stores.vault import Vault, new_master_key
from lava_proxy.stores.verification_codes import VerificationCodes
from lava_proxy.web.checkout import CardForm, CheckoutPages
from lava_proxy.web.site import Site
from tests.billing_world import World
from tests.card_world import GOOD, Clock

USD = 1_000_000_000
ORIGIN = "https://shop.example"
RETURN = "http://x/returned"


@dataclass(slots=True)
class KeptSms:
    """Messages that went nowhere."""

    makes_codes: bool = False
    sent: list[tuple[str, str | None]] = field(default_factory=list)

    async def start(self, phone: str, code: str | None) -> None:
        self.sent.append((phone, code))

    async def check(self, phone: str, code: str) -> bool:
        return code == "424242"

    async def close(self) -> None: ...


@dataclass(slots=True)
class KeptEmail:
    sent: list[tuple[str, str, str, str | None]] = field(default_factory=list)

    async def send(self, to: str, subject: str, text: str, html: str | None = None) -> None:
        self.sent.append((to, subject, text, html))


@dataclass(slots=True, kw_only=True)
class CheckoutWorld:
    """Everything a checkout works on, and short forms of what a customer does."""

    world: World
    clock: Clock
    processor: Processor
    store: CheckoutStore
    plans: PlanStore
    subscriptions: Subscriptions
    charge_store: ChargeStore
    charges: Charges
    sms: KeptSms
    email: KeptEmail
    checkout: Checkout

    async def plan(self, cents: int = 2500, bundles: bool = False) -> Plan:
        terms = Terms(
            plan_id="", name="Pro", period_amount_nanos=cents * USD // 100, included_credit_nanos=cents * USD // 100,
            billing_interval="month",
        )  # fmt: skip
        drafts = [BundleDraft(name="Extra", cost_nanos=10 * USD, credit_nanos=12 * USD)] if bundles else []
        return await self.plans.create_plan(self.world.merchant_id, terms, overage=None, meter_ids=[], bundles=drafts)

    async def session(self, mode: Mode = "onboarding", **more: Any) -> CheckoutSession:
        return await self.checkout.create(self.world.merchant_id, mode, origin_url=ORIGIN, is_test=True, **more)

    async def again(self, session: CheckoutSession) -> CheckoutSession:
        """The session as it stands now."""
        return await self.checkout.session(session.secret)

    async def verified(self, session: CheckoutSession, visit: Visit, phone: str = "+14155550100") -> CheckoutSession:
        await self.checkout.send_code(session, visit, phone)
        await self.checkout.check_code(session, visit, self.sms.sent[-1][1] or "")
        return await self.again(session)

    async def ready(
        self, session: CheckoutSession, visit: Visit, *, phone: str = "+14155550100", cents: int | None = 2500, card: str = GOOD
    ) -> CheckoutSession:
        """Proved, an amount chosen where one is, a card stored: at the review."""
        session = await self.verified(session, visit, phone)
        if cents is not None and session.lets_choose_amount:
            await self.checkout.choose_amount(session, visit, cents)
        await self.checkout.add_card(session, visit, CardDetails(number=card, expiry_month=12, expiry_year=2034))
        return await self.again(session)

    async def step(self, session: CheckoutSession, visit: Visit | None) -> str:
        return (await self.checkout.view(await self.again(session), visit)).step

    async def events(self) -> list[str]:
        rows = await self.world.fetch("SELECT type FROM event ORDER BY ordinal")
        return [row["type"] for row in rows if not row["type"].startswith("subscription")]

    @asynccontextmanager
    async def served(self, **options: Any) -> AsyncIterator[TestClient[Any, Any]]:
        """The pages on loopback."""

        def pages(pages: Any) -> list[web.RouteDef]:
            values: dict[str, Any] = {"card_form": None, "public_url": None, "dev": False} | options
            counts = CallCounts(self.world.redis)
            return CheckoutPages(pages, self.checkout, self.store, counts, clock=self.clock, **values).routes()

        from lava_proxy.api.envelope import answer_errors

        application = web.Application(middlewares=[answer_errors])
        application.add_routes(Site({"info": {}, "paths": {}}, checkout=pages).routes())
        async with TestClient(TestServer(application)) as client:
            yield client

    def resource(self) -> CheckoutSessions:
        return CheckoutSessions(self.checkout, self.store, self.world.catalog, CheckoutLinks(self.store, self.email, None))


@asynccontextmanager
async def checkout_world(world: World, *, sms: KeptSms | None = None) -> AsyncIterator[CheckoutWorld]:
    """A checkout over the sandbox processor."""
    yield made_checkout(world, world.funding, Clock(datetime(2026, 11, 20, 12, tzinfo=UTC)), sms)


def made_checkout(
    world: Any,
    funding: Funding,
    clock: Clock,
    sms: KeptSms | None = None,
    processor: Processor | None = None,
    vault: Vault | None = None,
) -> CheckoutWorld:
    """A checkout over the stores of a world: its pool, redis, catalog and outbox."""
    processor = processor or SandboxProcessor(world.pool, clock=clock, base_url="http://x")
    plans, charge_store = PlanStore(world.pool, clock), ChargeStore(world.pool)
    subscriptions = Subscriptions(plans, funding, clock)
    store = CheckoutStore(world.pool, vault or Vault(new_master_key()), clock)
    progress = CheckoutProgress(store, clock)

    async def on_transition(db: Any, charge: Charge, old: str, new: str) -> None:
        await subscriptions.on_transition(db, charge, old, new)
        await progress.on_transition(db, charge, old, new)

    charges = Charges(charge_store, processor, funding, clock, subscriptions.effects(), on_transition=on_transition)
    kept = sms or KeptSms()
    checkout = Checkout(
        store=store,
        catalog=world.catalog,
        customers=CustomerStore(world.pool),
        plans=plans,
        subscriptions=subscriptions,
        funding=funding,
        charge_store=charge_store,
        charges=charges,
        cards=Cards(charge_store, processor, charges, clock),
        processor=processor,
        verification=Verification(VerificationCodes(world.redis), kept),
        progress=progress,
        outbox=world.outbox,
        clock=clock,
    )
    return CheckoutWorld(
        world=world, clock=clock, processor=processor, store=store, plans=plans, subscriptions=subscriptions,
        charge_store=charge_store, charges=charges, sms=kept, email=KeptEmail(), checkout=checkout,
    )  # fmt: skip


def visit_of(html: str) -> str:
    """The visit's token out of a page."""
    found = re.search(r'data-visit="([^"]+)"', html)
    assert found is not None
    return found.group(1)


def step_of(html: str) -> str:
    found = re.search(r'data-step="([a-z]+)"', html)
    assert found is not None, html
    return found.group(1)


def own_headers(client: TestClient[Any, Any], visit: str, **more: str) -> Mapping[str, str]:
    """What the page's own script sends."""
    return {"Origin": f"http://{client.host}:{client.port}", "X-Lava-Visit": visit, **more}


__all__ = ["CardForm", "CheckoutWorld", "KeptSms", "checkout_world", "own_headers", "step_of", "visit_of"]
