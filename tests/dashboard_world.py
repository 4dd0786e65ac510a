"""The control plane with its pages over real stores, and browsers (cookie jars) that are signed in to it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from aiohttp import CookieJar, web
from aiohttp.test_utils import TestClient, TestServer

from lava_proxy import settings
from lava_proxy.api.application import OPENAPI_DOCUMENT, build_application
from lava_proxy.billing.charges import Charges
from lava_proxy.billing.checkout_links import CheckoutLinks
from lava_proxy.billing.funding import Funding
from lava_proxy.payments.sandbox import SandboxProcessor
from lava_proxy.providers.prices_source import load_price_book
from lava_proxy.providers.registry import load_registry
from lava_proxy.stores.audit_log import AuditLog
from lava_proxy.stores.charge_store import ChargeStore
from lava_proxy.stores.dashboard_sessions import DashboardSessions
from lava_proxy.stores.merchant_stores import open_merchant_stores
from lava_proxy.stores.open_calls import OpenCalls
from lava_proxy.stores.request_export import RequestExport
from lava_proxy.stores.usage_store import UsageStore
from lava_proxy.web.dashboard.dashboard import DashboardDependencies
from lava_proxy.web.site import Site
from tests.checkout_world import CheckoutWorld, made_checkout
from tests.integration.api_world import Shop, Stores, dependencies

PUBLIC_URL = "https://lava.example/"


@dataclass(slots=True, kw_only=True)
class Browser:
    """Somebody's browser: it keeps cookies, and sends the token of the page it was on."""

    client: TestClient[Any, Any]
    csrf: str = ""

    async def get(self, path: str, status: int = 200, **headers: str) -> str:
        """The page's text."""
        async with self.client.get(path, headers=headers, allow_redirects=False) as answer:
            text = await answer.text()
            assert answer.status == status, f"{path}: {answer.status} {text[-800:]}"
        return text

    async def post(self, path: str, form: dict[str, Any] | None = None, *, csrf: str | None = None, **headers: str) -> Any:
        """The answer, not followed; its text has been read."""
        fields = {"csrf": self.csrf if csrf is None else csrf, **(form or {})}
        async with self.client.post(path, data=fields, headers=headers, allow_redirects=False) as answer:
            await answer.text()
            return answer


def token_of(page: str) -> str:
    """The session's token that a page of the dashboard carries."""
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    return found[1] if found else ""


@dataclass(slots=True, kw_only=True)
class DashboardWorld:
    """A running control plane with pages."""

    stores: Stores
    server: TestServer
    sessions: DashboardSessions
    site: Site
    audit_log: AuditLog
    deps: DashboardDependencies
    selling: CheckoutWorld
    now: datetime

    @asynccontextmanager
    async def browser(self, shop: Shop | None = None) -> AsyncIterator[Browser]:
        """A browser; signed in when a shop is given."""
        client: TestClient[Any, Any] = TestClient(self.server, cookie_jar=CookieJar(unsafe=True))
        try:
            found = Browser(client=client)
            if shop is not None:
                assert (await found.post("/dashboard/sign-in", {"secret_key": shop.key})).status == 303
                found.csrf = token_of(await found.get("/dashboard"))
            yield found
        finally:
            await client.session.close()


@asynccontextmanager
async def dashboard_world(
    stores: Stores, *, clock: Callable[[], datetime] | None = None, **changes: Any
) -> AsyncIterator[DashboardWorld]:
    """`clock` is business time, the world's time of sessions can be moved by `world.now`."""
    business = clock or (lambda: datetime.now(UTC))
    world: DashboardWorld

    def now() -> datetime:
        return world.now

    selling = made_checkout(stores, Funding(stores.catalog, stores.balances, business), cast(Any, business))
    loaded, charge_store = settings.load({}), ChargeStore(stores.pool)
    processor = SandboxProcessor(stores.pool, clock=business, base_url=PUBLIC_URL)
    funding = Funding(stores.catalog, stores.balances, business)
    deps = DashboardDependencies(
        **{
            "pool": stores.pool,
            "catalog": stores.catalog,
            "ledger": stores.ledger,
            "outbox": stores.outbox,
            "merchant_stores": open_merchant_stores(stores.pool, stores.redis, stores.catalog, stores.vault, business),
            "funding": funding,
            "usage": UsageStore(stores.pool),
            "request_export": RequestExport(stores.pool),
            "webhooks": stores.webhooks,
            "webhook_client": stores.webhook_client,
            "charges": Charges(charge_store, processor, funding, business, adjust=funding.adjust),
            "charge_store": charge_store,
            "checkout": selling.checkout,
            "checkouts": selling.store,
            "checkout_links": CheckoutLinks(selling.store, selling.email, None),
            "registry": load_registry(loaded.providers_table),
            "prices": load_price_book(),
            "open_calls": OpenCalls(stores.redis),
            "sessions": DashboardSessions(stores.redis, now),
            "audit_log": AuditLog(stores.pool, business),
            "public_url": PUBLIC_URL.replace("https", "http"),
            "clock": business,
            **changes,
        }
    )

    async def home(request: web.Request) -> web.Response | None:
        return await site.home(request)

    application: web.Application = build_application(dependencies(stores, clock=business, home=home))
    site = Site(application[OPENAPI_DOCUMENT], deps)
    application.add_routes(site.routes())
    server = TestServer(application)
    world = DashboardWorld(
        stores=stores,
        server=server,
        sessions=deps.sessions,
        site=site,
        audit_log=deps.audit_log,
        deps=deps,
        selling=selling,
        now=datetime.now(UTC),
    )
    await server.start_server()
    try:
        yield world
    finally:
        await server.close()
