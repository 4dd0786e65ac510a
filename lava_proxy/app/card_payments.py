"""Composes card payments from settings: which processor, and what works on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aiohttp import web

from lava_proxy.api.payments import PaymentServices
from lava_proxy.api.processor_webhooks import ProcessorWebhooks
from lava_proxy.api.sandbox_bank import SandboxBank
from lava_proxy.app.run_config import RunConfig, business_clock
from lava_proxy.billing.accounts import Accounts
from lava_proxy.billing.cards import Cards
from lava_proxy.billing.charges import Charges
from lava_proxy.billing.funding import Funding
from lava_proxy.billing.overage import OverageDesk
from lava_proxy.billing.subscriptions import Subscriptions
from lava_proxy.domain.errors import CallerError
from lava_proxy.payments.processor import Processor
from lava_proxy.payments.sandbox import SandboxProcessor
from lava_proxy.settings import Settings
from lava_proxy.stores.account_store import AccountStore
from lava_proxy.stores.charge_store import ChargeStore
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.overage_store import OverageStore
from lava_proxy.stores.plan_store import PlanStore
from lava_proxy.stores.postgres import Pool
from lava_proxy.workers.overage import OverageWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class CardPayments:
    """The processor and what works on it."""

    processor: Processor | None
    store: ChargeStore
    charges: Charges
    cards: Cards
    plans: PlanStore
    subscriptions: Subscriptions
    clock: Callable[[], datetime]

    def routes(self) -> list[web.RouteDef]:
        """What the control process serves for the processor: its notices, or the sandbox's bank."""
        if self.processor is None:
            return []
        if self.processor.name == "sandbox":
            return SandboxBank(self.processor, self.charges).routes()
        return ProcessorWebhooks(self.processor, self.charges, self.cards).routes()

    def services(self, pool: Pool, funding: Funding, config: RunConfig) -> PaymentServices:
        """What the REST API works with."""
        accounts = AccountStore(pool)
        return PaymentServices(
            charges=self.charges,
            charge_store=self.store,
            cards=self.cards,
            accounts=Accounts(accounts, funding, self.charges, business_clock(config)),
            account_store=accounts,
            public_url=config.base_url.removesuffix("v1/") or "http://127.0.0.1/",
        )

    async def close(self) -> None:
        if self.processor is not None:
            await self.processor.close()


def open_card_payments(pool: Pool, funding: Funding, config: RunConfig, settings: Settings) -> CardPayments:
    """Card payments on these stores; without a processor they answer `payments_disabled`. Raises CallerError for bad settings."""
    processor, clock, store = processor_of(pool, config, settings), business_clock(config), ChargeStore(pool)
    plans = PlanStore(pool, clock)
    subscriptions = Subscriptions(plans, funding, clock)
    charges = Charges(
        store,
        processor,
        funding,
        clock,
        subscriptions.effects(),
        on_transition=subscriptions.on_transition,
    )
    return CardPayments(
        processor=processor,
        store=store,
        charges=charges,
        cards=Cards(store, processor, charges, clock),
        plans=plans,
        subscriptions=subscriptions,
        clock=clock,
    )


def open_overage(pool: Pool, cards: CardPayments, outbox: Outbox, clock: Callable[[], datetime]) -> OverageWorker:
    """The worker that charges these cards for usage beyond the credit."""
    store = OverageStore(pool)
    return OverageWorker(store, OverageDesk(store, cards.store, cards.charges, outbox, clock), outbox, clock)


def processor_of(pool: Any, config: RunConfig, settings: Settings) -> Processor | None:
    """By `[payments] processor`: play money is never a default outside `dev`."""
    account, chosen = settings.stripe_account(), settings.payments.processor
    if chosen == "auto":
        chosen = "stripe" if account is not None else "sandbox" if config.dev else "none"
    if chosen == "none":
        return None
    if chosen == "sandbox":
        base_url = config.base_url.removesuffix("v1/")
        return SandboxProcessor(pool, clock=business_clock(config), base_url=base_url)
    if account is None:
        raise CallerError("[payments] processor is stripe: set LAVA_STRIPE_SECRET_KEY (and LAVA_STRIPE_WEBHOOK_SECRET).")
    try:
        from lava_proxy.payments.stripe import StripeProcessor

        return StripeProcessor(
            account.secret_key,
            webhook_secrets=account.webhook_secrets,
            api_base=account.api_base,
            timeout_s=settings.payments.timeout_s,
        )
    except ModuleNotFoundError as error:
        raise CallerError("Stripe needs its SDK: install lava-proxy[stripe].") from error
