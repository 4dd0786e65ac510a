"""What the resources about cards and money, and the commands for the same, work with."""

from __future__ import annotations

from lava_proxy.api.payments import PaymentServices
from lava_proxy.app.card_payments import CardPayments
from lava_proxy.app.run_config import RunConfig, business_clock
from lava_proxy.billing.accounts import Accounts
from lava_proxy.billing.funding import Funding
from lava_proxy.stores.account_store import AccountStore
from lava_proxy.stores.postgres import Pool


def payment_services(cards: CardPayments, pool: Pool, funding: Funding, config: RunConfig) -> PaymentServices:
    """On the stores of these card payments."""
    accounts = AccountStore(pool)
    return PaymentServices(
        charges=cards.charges,
        charge_store=cards.store,
        cards=cards.cards,
        accounts=Accounts(accounts, funding, cards.charges, business_clock(config)),
        account_store=accounts,
        public_url=config.base_url.removesuffix("v1/") or "http://127.0.0.1/",
    )
