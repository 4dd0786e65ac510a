"""Composes card payments from settings: which processor, and what works on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lava_proxy.app.run_config import RunConfig, business_clock
from lava_proxy.billing.cards import Cards
from lava_proxy.billing.charges import Charges
from lava_proxy.billing.checkout_progress import CheckoutProgress
from lava_proxy.billing.funding import Funding
from lava_proxy.billing.overage import OverageDesk
from lava_proxy.billing.subscriptions import Subscriptions
from lava_proxy.domain.errors import CallerError
from lava_proxy.payments.processor import Processor
from lava_proxy.payments.sandbox import SandboxProcessor
from lava_proxy.settings import Settings
from lava_proxy.stores.charge_store import Charge, ChargeStore
from lava_proxy.stores.checkout_store import CheckoutStore
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.overage_store import OverageStore
from lava_proxy.stores.plan_store import PlanStore
from lava_proxy.stores.postgres import Pool
from lava_proxy.stores.vault import Vault
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
    checkouts: CheckoutStore
    progress: CheckoutProgress

    async def close(self) -> None:
        if self.processor is not None:
            await self.processor.close()


def open_card_payments(pool: Pool, funding: Funding, config: RunConfig, settings: Settings) -> CardPayments:
    """Card payments on these stores; without a processor they answer `payments_disabled`. Raises CallerError for bad settings."""
    processor, clock, store = processor_of(pool, config, settings), business_clock(config), ChargeStore(pool)
    plans = PlanStore(pool, clock)
    subscriptions = Subscriptions(plans, funding, clock)
    checkouts = CheckoutStore(pool, Vault(config.master_key, (config.previous_master_key,)), clock)
    progress = CheckoutProgress(checkouts, clock)

    async def on_transition(db: Any, charge: Charge, old: str, new: str) -> None:
        await subscriptions.on_transition(db, charge, old, new)
        await progress.on_transition(db, charge, old, new)

    charges = Charges(
        store,
        processor,
        funding,
        clock,
        subscriptions.effects(),
        on_transition=on_transition,
    )
    return CardPayments(
        processor=processor,
        store=store,
        charges=charges,
        cards=Cards(store, processor, charges, clock),
        plans=plans,
        subscriptions=subscriptions,
        clock=clock,
        checkouts=checkouts,
        progress=progress,
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
