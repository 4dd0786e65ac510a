"""The control plane's web application, put together: every route, and the middlewares from the outside in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from lava_proxy.api.audit import Audit
from lava_proxy.api.auth_callback import AuthCallback
from lava_proxy.api.authentication import authentication
from lava_proxy.api.checkout_sessions import CheckoutSessions
from lava_proxy.api.connections import Connections
from lava_proxy.api.customer_accounts import CustomerAccounts
from lava_proxy.api.customers import Customers
from lava_proxy.api.envelope import BODY_BYTES_MAX, add_common_headers, answer_errors, bound_body
from lava_proxy.api.exports import Exports
from lava_proxy.api.gateway_operations import routes_of_gateway
from lava_proxy.api.health import HealthPages
from lava_proxy.api.idempotency import idempotency
from lava_proxy.api.meters import Meters
from lava_proxy.api.models import Models
from lava_proxy.api.openapi import OpenApi
from lava_proxy.api.operations import Operation, routes_of
from lava_proxy.api.payments import PaymentServices
from lava_proxy.api.plans import Plans
from lava_proxy.api.rate_limit import REQUESTS_PER_MINUTE, add_rate_limit_headers, rate_limit
from lava_proxy.api.requests import Requests
from lava_proxy.api.secret_keys import SecretKeys
from lava_proxy.api.spend_keys import SpendKeys
from lava_proxy.api.status_page import Home, StatusPage
from lava_proxy.api.subscriptions import SubscriptionResource
from lava_proxy.api.unbuilt import unbuilt_routes
from lava_proxy.api.usage import Usage
from lava_proxy.api.wallet import Wallet
from lava_proxy.api.wallet_keys import WalletKeys
from lava_proxy.api.webhooks import Webhooks
from lava_proxy.billing.funding import Funding
from lava_proxy.billing.subscriptions import Subscriptions
from lava_proxy.notify.webhook_client import WebhookClient
from lava_proxy.providers.model_list import ListedModel
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.engine_health import REMEMBER_S, Health
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.merchant_stores import MerchantStores
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.request_export import RequestExport
from lava_proxy.stores.usage_store import UsageStore
from lava_proxy.stores.webhook_store import WebhookStore

OPENAPI_DOCUMENT: web.AppKey[Mapping[str, Any]] = web.AppKey("openapi_document", Mapping[str, Any])
"""Where the application keeps its description, for the page that shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiDependencies:
    """What the API needs. `metrics` returns the exposition text; `clock` is business time.

    `status_links` (label -> address) and, with `dev`, `first_call` (a command to paste) are shown on the status page, which
    anybody who reaches the port can read.
    """

    catalog: CatalogStore
    ledger: LedgerStore
    outbox: Outbox
    merchant_stores: MerchantStores
    funding: Funding
    usage: UsageStore
    request_export: RequestExport
    webhooks: WebhookStore
    webhook_client: WebhookClient
    payments: PaymentServices
    price_version: str
    metrics: Callable[[], bytes]
    started_at: datetime
    models: Sequence[ListedModel] = ()
    dev: bool = False
    status_links: Mapping[str, str] = field(default_factory=dict)
    first_call: str | None = field(default=None, repr=False)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    health_remember_s: float = REMEMBER_S
    requests_per_minute: int = REQUESTS_PER_MINUTE
    home: Home | None = None  # where `/` leads a visitor, None for the status page
    checkout_sessions: CheckoutSessions | None = None
    processor_routes: Sequence[web.RouteDef] = ()  # of the card processor that is set up: its notices, or its test bank


def build_application(deps: ApiDependencies) -> web.Application:
    """The application; it opens and closes nothing of what it was given."""
    stores = deps.merchant_stores
    application = web.Application(
        client_max_size=BODY_BYTES_MAX,
        middlewares=[
            answer_errors,
            bound_body,
            authentication(deps.catalog),
            rate_limit(stores.call_counts, deps.requests_per_minute),
            idempotency(stores.idempotent_answers),
        ],
    )
    application.on_response_prepare.append(add_common_headers)
    application.on_response_prepare.append(add_rate_limit_headers)
    health = Health(deps.outbox, deps.ledger, remember_s=deps.health_remember_s)
    status_page = StatusPage(
        health,
        started_at=deps.started_at,
        price_version=deps.price_version,
        links=deps.status_links,
        first_call=deps.first_call if deps.dev else None,
        home=deps.home,
    )
    operations = operations_of(deps)
    openapi = OpenApi(operations)
    application[OPENAPI_DOCUMENT] = openapi.value
    for routes in (
        routes_of([*operations, *openapi.operations()]),
        HealthPages(health, deps.metrics, deps.price_version).routes(),
        status_page.routes(),
        deps.processor_routes,
        routes_of_gateway(),
        unbuilt_routes(),
    ):
        application.add_routes(routes)
    return application


def operations_of(deps: ApiDependencies) -> list[Operation]:
    """Every operation of the REST API, in the order in which the OpenAPI document shows them."""
    catalog, outbox, clock, stores = deps.catalog, deps.outbox, deps.clock, deps.merchant_stores
    audit = Audit(stores.audit_log, stores.secret_keys)
    subscriptions = SubscriptionResource(catalog, stores.plans, Subscriptions(stores.plans, deps.funding, clock), outbox, audit)
    resources = (
        Exports(catalog, deps.request_export),  # before /v1/requests/{request}
        Requests(catalog, deps.ledger, deps.request_export, outbox),
        Usage(catalog, deps.usage, clock),
        Customers(catalog, stores.customers, outbox, deps.funding, stores.plans, subscriptions, audit),
        Connections(catalog, stores.customers, outbox, clock, stores.plans, subscriptions, audit),
        Plans(stores.plans, audit),
        subscriptions,
        Meters(catalog, stores.meters, audit),
        SpendKeys(catalog, outbox, clock, audit),
        SecretKeys(stores.secret_keys, audit),
        WalletKeys(),
        Models(deps.models, clock),
        Wallet(outbox, deps.payments),
        CustomerAccounts(catalog, outbox, deps.payments, audit),
        Webhooks(deps.webhooks, deps.webhook_client, clock, audit),
        AuthCallback(catalog, stores.login_codes, stores.secret_keys),
    )
    hosted = [] if deps.checkout_sessions is None else deps.checkout_sessions.operations()
    return [*(operation for resource in resources for operation in resource.operations()), *hosted]
