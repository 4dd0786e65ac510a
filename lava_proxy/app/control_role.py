"""The control role, composed: REST API, guides, dashboard, hosted checkout, metrics. Runs until SIGTERM, then ends in order."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from prometheus_client import REGISTRY, generate_latest

from lava_proxy import telemetry
from lava_proxy.api.application import OPENAPI_DOCUMENT, ApiDependencies, build_application
from lava_proxy.api.gateway_hop import only_gateways
from lava_proxy.api.processor_webhooks import ProcessorWebhooks
from lava_proxy.api.sandbox_bank import SandboxBank
from lava_proxy.app.card_payments import CardPayments, open_card_payments
from lava_proxy.app.hosted_checkout import HostedCheckout, open_hosted_checkout
from lava_proxy.app.open_stores import Stores, open_stores, prices_of, registry_of, vault_of
from lava_proxy.app.payment_services import payment_services
from lava_proxy.app.process import stop_event
from lava_proxy.app.run_config import RunConfig, business_clock
from lava_proxy.app.webhook_delivery import webhook_client_of
from lava_proxy.billing.funding import Funding
from lava_proxy.domain.errors import StoreError
from lava_proxy.domain.prices import PriceBook
from lava_proxy.notify.webhook_client import WebhookClient
from lava_proxy.providers.model_list import listed_models
from lava_proxy.providers.registry import Registry
from lava_proxy.settings import Settings
from lava_proxy.stores.audit_log import AuditLog
from lava_proxy.stores.dashboard_sessions import DashboardSessions
from lava_proxy.stores.merchant_stores import MerchantStores, open_merchant_stores
from lava_proxy.stores.open_calls import OpenCalls
from lava_proxy.stores.request_export import RequestExport
from lava_proxy.stores.usage_store import UsageStore
from lava_proxy.stores.verification_codes import VerificationCodes
from lava_proxy.web.dashboard.dashboard import DashboardDependencies
from lava_proxy.web.site import Site
from lava_proxy.wire.control_hop import hop_secret


async def run_control(config: RunConfig, settings: Settings) -> None:
    """The REST API and the status page, on the control socket and, for gateways on other hosts, by TCP."""
    stopping = stop_event()
    stores = await open_stores(config, settings, pool_max=8)
    environment = settings.environment
    webhook_client = webhook_client_of(config, settings)
    await webhook_client.open()
    clock = business_clock(config)
    funding = Funding(stores.catalog, stores.balances, clock)
    cards = open_card_payments(stores.pool, funding, config, settings)
    registry, prices = registry_of(config, settings), prices_of(settings)
    merchant_stores = open_merchant_stores(stores.pool, stores.redis, stores.catalog, vault_of(config), clock)
    hosted = open_hosted_checkout(
        cards, stores.catalog, merchant_stores, funding, stores.outbox, VerificationCodes(stores.redis), config, settings
    )

    async def home(request: web.Request) -> web.Response | None:
        return await site.home(request)

    if config.base_url:
        with suppress(StoreError):  # then links of commands name their path alone
            await DashboardSessions(stores.redis).set_address(config.base_url.removesuffix("v1/"))
    application = build_application(
        ApiDependencies(
            catalog=stores.catalog,
            ledger=stores.ledger,
            outbox=stores.outbox,
            merchant_stores=merchant_stores,
            funding=funding,
            payments=payment_services(cards, stores.pool, funding, config),
            usage=UsageStore(stores.pool),
            request_export=RequestExport(stores.pool),
            webhooks=stores.webhooks,
            webhook_client=webhook_client,
            price_version=prices.version,
            models=listed_models(registry),
            clock=clock,
            metrics=lambda: _exposition(environment),
            started_at=datetime.now(UTC),
            dev=config.dev,
            status_links={"API base": config.base_url},
            first_call=config.first_call,
            processor_routes=_processor_routes(cards),
            home=home,
            checkout_sessions=hosted.resource(),
        )
    )
    own_keys = settings.provider_keys({provider.name: provider.key_env for provider in registry.providers})
    dashboard = _dashboard_of(
        stores, merchant_stores, funding, config, cards, hosted, webhook_client, registry, prices, own_keys
    )  # fmt: skip
    site = Site(application[OPENAPI_DOCUMENT], dashboard, hosted.routes)
    application.add_routes(site.routes())
    if config.control_listen is not None:
        keys = (config.master_key, config.previous_master_key)
        application.middlewares.insert(0, only_gateways([hop_secret(key) for key in keys if key]))
    # The gateway has bounded the head already; aiohttp's own, smaller bounds would answer without our envelope.
    head_bytes_max = settings.http.head_bytes_max
    runner = web.AppRunner(
        application, access_log=None, shutdown_timeout=5, max_line_size=head_bytes_max, max_field_size=head_bytes_max
    )
    await runner.setup()
    if config.control_socket:
        with suppress(FileNotFoundError):
            os.unlink(config.control_socket)
        await web.UnixSite(runner, config.control_socket).start()
        os.chmod(config.control_socket, 0o600)
    if config.control_listen is not None:
        await web.TCPSite(runner, *config.control_listen).start()
    await stopping.wait()
    await runner.cleanup()
    await webhook_client.close()
    await hosted.close()
    await cards.close()
    await stores.close()


def _processor_routes(cards: CardPayments) -> list[web.RouteDef]:
    """What is served for the card processor: its notices, or the sandbox's bank."""
    if cards.processor is None:
        return []
    if cards.processor.name == "sandbox":
        return SandboxBank(cards.processor, cards.charges).routes()
    return ProcessorWebhooks(cards.processor, cards.charges, cards.cards).routes()


def _dashboard_of(
    stores: Stores,
    merchant_stores: MerchantStores,
    funding: Funding,
    config: RunConfig,
    cards: CardPayments,
    hosted: HostedCheckout,
    webhook_client: WebhookClient,
    registry: Registry,
    prices: PriceBook,
    own_keys: Collection[str],
) -> DashboardDependencies:
    """What the pages for merchants stand on. `own_keys`: the providers for which the installation has a key."""
    clock = business_clock(config)
    return DashboardDependencies(
        pool=stores.pool,
        catalog=stores.catalog,
        ledger=stores.ledger,
        outbox=stores.outbox,
        merchant_stores=merchant_stores,
        funding=funding,
        usage=UsageStore(stores.pool),
        request_export=RequestExport(stores.pool),
        webhooks=stores.webhooks,
        webhook_client=webhook_client,
        charges=cards.charges,
        charge_store=cards.store,
        checkout=hosted.checkout,
        checkouts=cards.checkouts,
        checkout_links=hosted.links,
        registry=registry,
        prices=prices,
        open_calls=OpenCalls(stores.redis),
        sessions=DashboardSessions(stores.redis),
        audit_log=AuditLog(stores.pool, clock),
        public_url=config.base_url.removesuffix("v1/"),
        clock=clock,
        own_keys=frozenset(own_keys),
        sandboxed=frozenset(config.sandboxed),
        command=config.command,
    )


def _exposition(environment: Any) -> bytes:
    if environment.get("PROMETHEUS_MULTIPROC_DIR"):
        return generate_latest(telemetry.exposition_registry(environment))
    return generate_latest(REGISTRY)
