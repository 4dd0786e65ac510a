"""Composes the hosted checkout: its pages, what sends codes and links, and what decides about money."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from redis.asyncio import Redis

from lava_proxy.api.checkout_sessions import CheckoutSessions
from lava_proxy.app.card_payments import CardPayments, open_card_payments
from lava_proxy.app.run_config import RunConfig, business_clock
from lava_proxy.billing.checkout import Checkout
from lava_proxy.billing.checkout_links import CheckoutLinks, page_url
from lava_proxy.billing.funding import Funding
from lava_proxy.billing.verification import Verification
from lava_proxy.domain.checkout import Mode, origin_of
from lava_proxy.domain.errors import CallerError
from lava_proxy.notify.email import ConsoleEmail, EmailSender, SmtpEmail
from lava_proxy.notify.sms import ConsoleSms, PhoneVerifier, TwilioVerify
from lava_proxy.settings import Settings
from lava_proxy.stores.balance_store import BalanceStore
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.checkout_store import CheckoutStore
from lava_proxy.stores.merchant_stores import MerchantStores, open_merchant_stores
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.postgres import Pool
from lava_proxy.stores.vault import Vault
from lava_proxy.stores.verification_codes import VerificationCodes
from lava_proxy.web.checkout import CardForm, CheckoutPages
from lava_proxy.web.pages import Pages


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedCheckout:
    """The checkout and how it reaches people."""

    checkout: Checkout
    store: CheckoutStore
    links: CheckoutLinks
    public_url: str | None
    sms: PhoneVerifier | None
    card_form: CardForm
    config: RunConfig
    catalog: CatalogStore
    merchant_stores: MerchantStores

    def resource(self) -> CheckoutSessions:
        """The REST resource."""
        return CheckoutSessions(self.checkout, self.store, self.catalog, self.links)

    def routes(self, pages: Pages) -> Sequence[web.RouteDef]:
        """The pages for people."""
        return CheckoutPages(
            pages,
            self.checkout,
            self.store,
            self.merchant_stores.call_counts,
            card_form=self.card_form,
            public_url=self.public_url,
            dev=self.config.dev,
            clock=business_clock(self.config),
        ).routes()

    async def close(self) -> None:
        if self.sms is not None:
            await self.sms.close()


def open_hosted_checkout(
    cards: CardPayments,
    catalog: CatalogStore,
    merchant_stores: MerchantStores,
    funding: Funding,
    outbox: Outbox,
    codes: VerificationCodes,
    config: RunConfig,
    settings: Settings,
) -> HostedCheckout:
    """Over stores that the caller closes. Raises CallerError for settings that cannot be."""
    sms, clock = sms_of(config, settings), business_clock(config)
    checkout = Checkout(
        store=cards.checkouts,
        catalog=catalog,
        customers=merchant_stores.customers,
        plans=cards.plans,
        subscriptions=cards.subscriptions,
        funding=funding,
        charge_store=cards.store,
        charges=cards.charges,
        cards=cards.cards,
        processor=cards.processor,
        verification=Verification(codes, sms),
        progress=cards.progress,
        outbox=outbox,
        clock=clock,
    )
    account = settings.stripe_account()
    is_stripe = cards.processor is not None and cards.processor.name == "stripe" and account is not None
    form = CardForm(script_url=account.js_url, key=account.publishable_key) if is_stripe and account is not None else CardForm()
    return HostedCheckout(
        checkout=checkout, store=cards.checkouts, sms=sms, public_url=settings.public_url(),
        links=CheckoutLinks(cards.checkouts, email_of(config, settings), settings.public_url()),
        card_form=form, config=config, catalog=catalog, merchant_stores=merchant_stores,
    )  # fmt: skip


async def make_link(
    pool: Pool,
    redis: Redis,
    catalog: CatalogStore,
    balances: BalanceStore,
    outbox: Outbox,
    config: RunConfig,
    settings: Settings,
    *,
    merchant_id: str,
    plan_id: str | None,
    customer: str | None,
    email: str | None,
    origin_url: str | None,
) -> dict[str, Any]:
    """A checkout's id and link, sent by e-mail where an address is given. For the command line."""
    clock = business_clock(config)
    funding = Funding(catalog, balances, clock)
    cards = open_card_payments(pool, funding, config, settings)
    vault = Vault(config.master_key, (config.previous_master_key,))
    merchant_stores = open_merchant_stores(pool, redis, catalog, vault, clock)
    hosted = open_hosted_checkout(cards, catalog, merchant_stores, funding, outbox, VerificationCodes(redis), config, settings)
    try:
        base = hosted.public_url or config.base_url.removesuffix("v1/")
        try:
            origin_of(origin_url or base)
        except ValueError as error:
            raise CallerError(f"--origin: {error}.", code="invalid_parameter") from None
        if email is not None:
            hosted.links.check_can_send()
        mode: Mode = "subscription" if plan_id is not None else "topup" if customer is not None else "onboarding"
        session = await hosted.checkout.create(
            merchant_id, mode, origin_url=origin_url or base, is_test=config.dev, customer=customer, plan_id=plan_id
        )
        if email is not None:
            await hosted.links.send(session, email, base)
        url = page_url(base, session)
        return {"checkout_session_id": session.checkout_session_id, "url": url, "checkout_mode": mode, "sent_to": email}
    finally:
        await hosted.close()
        await cards.close()


def sms_of(config: RunConfig, settings: Settings) -> PhoneVerifier | None:
    """Twilio where it is set up; in `dev` the log; else nothing: codes are never logged in production."""
    account = settings.twilio_account()
    if account is not None:
        return TwilioVerify(account.account_sid, account.auth_token, account.service_sid, base_url=account.api_base)
    return ConsoleSms() if config.dev else None


def email_of(config: RunConfig, settings: Settings) -> EmailSender | None:
    """The mail server that is set up; in `dev` the log; else nothing."""
    url, sender = settings.environment.get("LAVA_SMTP_URL", ""), settings.environment.get("LAVA_EMAIL_FROM", "")
    if not url:
        return ConsoleEmail() if config.dev else None
    try:
        return SmtpEmail(url, sender)
    except ValueError as error:
        raise CallerError(f"{error}.", code="bad_setting") from error
