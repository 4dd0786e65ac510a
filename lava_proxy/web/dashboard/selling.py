"""What a merchant sells and to whom: these families of pages, put together from what the dashboard was given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from aiohttp import web

from lava_proxy.billing.subscriptions import Subscriptions
from lava_proxy.stores.account_store import AccountStore
from lava_proxy.stores.customer_directory import CustomerDirectory
from lava_proxy.stores.dashboard_store import DashboardStore
from lava_proxy.stores.merchant_settings import MerchantSettings
from lava_proxy.stores.provider_key_store import ProviderKeyStore
from lava_proxy.stores.wallet_history import WalletHistory
from lava_proxy.web.dashboard.acts import Acts
from lava_proxy.web.dashboard.branding_form import BrandingForm
from lava_proxy.web.dashboard.customers import Customers
from lava_proxy.web.dashboard.frame import View
from lava_proxy.web.dashboard.keys import Keys
from lava_proxy.web.dashboard.meters import Meters
from lava_proxy.web.dashboard.offers import Offers
from lava_proxy.web.dashboard.plans import Plans
from lava_proxy.web.dashboard.settings import Settings
from lava_proxy.web.dashboard.tokens import Tokens
from lava_proxy.web.dashboard.webhooks import Webhooks

if TYPE_CHECKING:
    from lava_proxy.web.dashboard.dashboard import DashboardDependencies


class Family(Protocol):
    """Pages that belong together."""

    def routes(self) -> list[web.RouteDef]: ...


def selling_families(view: View, deps: DashboardDependencies) -> tuple[Family, ...]:
    """Customers, meters, plans, keys, webhooks, settings."""
    stores, plans = deps.merchant_stores, deps.merchant_stores.plans
    acts = Acts(deps.audit_log, plans, deps.clock)
    return (
        Customers(
            view,
            acts,
            catalog=deps.catalog,
            customers=stores.customers,
            directory=CustomerDirectory(deps.pool),
            history=WalletHistory(deps.pool),
            plans=plans,
            charge_store=deps.charge_store,
            charges=deps.charges,
            funding=deps.funding,
            accounts=AccountStore(deps.pool),
            outbox=deps.outbox,
            usage=deps.usage,
        ),
        Meters(view, acts, catalog=deps.catalog, meters=stores.meters, registry=deps.registry, prices=deps.prices),
        Plans(
            view,
            acts,
            plans=plans,
            subscriptions=Subscriptions(plans, deps.funding, deps.clock),
            catalog=deps.catalog,
            store=DashboardStore(deps.pool),
        ),
        Offers(
            view,
            acts,
            checkout=deps.checkout,
            store=deps.checkouts,
            links=deps.checkout_links,
            catalog=deps.catalog,
            plans=plans,
            public_url=deps.public_url,
        ),
        BrandingForm(view, acts, store=deps.checkouts),
        Tokens(view, deps.catalog, ProviderKeyStore(deps.pool), deps.public_url, deps.own_keys | deps.sandboxed),
        Keys(
            view,
            acts,
            catalog=deps.catalog,
            secret_keys=stores.secret_keys,
            provider_keys=ProviderKeyStore(deps.pool),
            outbox=deps.outbox,
            registry=deps.registry,
        ),
        Webhooks(view, acts, store=deps.webhooks, client=deps.webhook_client),
        Settings(view, acts, settings=MerchantSettings(deps.pool), plans=plans, catalog=deps.catalog, registry=deps.registry),
    )
