"""The dashboard, put together: every family of pages, and what they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import hdrs, web

from lava_proxy.billing.charges import Charges
from lava_proxy.billing.checkout import Checkout
from lava_proxy.billing.checkout_links import CheckoutLinks
from lava_proxy.billing.funding import Funding
from lava_proxy.domain.errors import LavaError, NotFound
from lava_proxy.domain.prices import PriceBook
from lava_proxy.notify.webhook_client import WebhookClient
from lava_proxy.providers.registry import Registry
from lava_proxy.stores.audit_log import AuditLog
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.charge_store import ChargeStore
from lava_proxy.stores.checkout_store import CheckoutStore
from lava_proxy.stores.dashboard_sessions import DashboardSessions
from lava_proxy.stores.dashboard_store import DashboardStore
from lava_proxy.stores.engine_health import Health
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.merchant_stores import MerchantStores
from lava_proxy.stores.open_calls import OpenCalls
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.postgres import Pool
from lava_proxy.stores.request_export import RequestExport
from lava_proxy.stores.usage_store import UsageStore
from lava_proxy.stores.webhook_store import WebhookStore
from lava_proxy.web.dashboard.audit_page import AuditPage
from lava_proxy.web.dashboard.connect import Connect
from lava_proxy.web.dashboard.first_steps import FirstSteps
from lava_proxy.web.dashboard.frame import Guard, View
from lava_proxy.web.dashboard.overview import Overview
from lava_proxy.web.dashboard.request_pages import RequestPages
from lava_proxy.web.dashboard.selling import Family, selling_families
from lava_proxy.web.dashboard.sign_in import SignIn
from lava_proxy.web.pages import Pages


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardDependencies:
    """What the dashboard needs. `public_url` is where browsers find this installation; `clock` is business time.

    `own_keys`: providers for which the installation has a key; `sandboxed`: those for which it answers itself. `command` makes of
    arguments a command of this program to paste on the server.
    """

    pool: Pool
    catalog: CatalogStore
    ledger: LedgerStore
    outbox: Outbox
    merchant_stores: MerchantStores
    funding: Funding
    usage: UsageStore
    request_export: RequestExport
    open_calls: OpenCalls
    webhooks: WebhookStore
    webhook_client: WebhookClient
    charges: Charges
    charge_store: ChargeStore
    checkout: Checkout
    checkouts: CheckoutStore
    checkout_links: CheckoutLinks
    registry: Registry
    prices: PriceBook
    sessions: DashboardSessions
    audit_log: AuditLog
    public_url: str
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    own_keys: frozenset[str] = frozenset()
    sandboxed: frozenset[str] = frozenset()
    command: Callable[[str], str] = "lava-proxy {}".format


class Dashboard:
    """All of its pages."""

    def __init__(self, pages: Pages, deps: DashboardDependencies) -> None:
        stores = deps.merchant_stores
        view, store = View(pages), DashboardStore(deps.pool)
        self._guard = Guard(deps.sessions, deps.catalog, stores.secret_keys, deps.public_url)
        self._sign_in = SignIn(
            pages, view, self._guard, deps.sessions, stores.secret_keys, stores.call_counts, deps.audit_log, store, deps.command
        )  # fmt: skip
        steps = FirstSteps(view, store, deps.registry, own_keys=deps.own_keys, sandboxed=deps.sandboxed)
        self._families: tuple[Family, ...] = (
            self._sign_in,
            steps,
            Overview(view, deps.usage, store, Health(deps.outbox, deps.ledger), steps, deps.clock),
            RequestPages(view, deps.catalog, deps.ledger, deps.request_export, deps.open_calls, store, deps.clock),
            AuditPage(view, deps.audit_log),
            Connect(view, stores.login_codes, deps.audit_log),
            *selling_families(view, deps),
        )

    def routes(self) -> list[web.RouteDef]:
        """The few that are open to everybody, and all others behind the guard."""
        return [
            *self._sign_in.open_routes(),
            *self._guard.protect([route for family in self._families for route in family.routes()]),
            *self._guard.protect([web.get("/dashboard/{rest:.*}", self._nothing)]),
        ]

    async def _nothing(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["rest"]:
            raise NotFound("There is no such page.")
        return web.Response(status=303, headers={hdrs.LOCATION: "/dashboard"})

    async def is_signed_in(self, request: web.Request) -> bool:
        """False also while the stores cannot say."""
        try:
            return await self._guard.session(request) is not None
        except LavaError:
            return False
