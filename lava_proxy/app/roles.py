"""The three roles, composed: gateway worker, control process, background worker. Each runs until SIGTERM, then ends in order."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
import uvloop
from aiohttp import web
from redis.asyncio import Redis
from redis.exceptions import RedisError

from lava_proxy import tasks, telemetry
from lava_proxy.api.application import OPENAPI_DOCUMENT, ApiDependencies, build_application
from lava_proxy.api.gateway_hop import only_gateways
from lava_proxy.app.card_payments import CardPayments, open_card_payments, open_overage
from lava_proxy.app.hosted_checkout import HostedCheckout, open_hosted_checkout
from lava_proxy.app.run_config import RunConfig, business_clock, control_address
from lava_proxy.billing.funding import Funding
from lava_proxy.billing.rating import Rating
from lava_proxy.domain.errors import LavaError, StoreError
from lava_proxy.domain.prices import PriceBook
from lava_proxy.gateway.upstream import Origin
from lava_proxy.gateway.worker import GatewayWorker
from lava_proxy.notify.webhook_client import WebhookClient
from lava_proxy.providers.model_list import listed_models
from lava_proxy.providers.prices_source import load_price_book
from lava_proxy.providers.registry import Registry, load_registry
from lava_proxy.settings import Settings
from lava_proxy.stores import outbox as outbox_module
from lava_proxy.stores import postgres
from lava_proxy.stores.audit_log import AuditLog
from lava_proxy.stores.balance_store import BalanceStore
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.dashboard_sessions import DashboardSessions
from lava_proxy.stores.hot_redis import HotRedis
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.merchant_stores import MerchantStores, open_merchant_stores
from lava_proxy.stores.open_calls import OpenCalls
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.request_export import RequestExport
from lava_proxy.stores.usage_store import UsageStore
from lava_proxy.stores.vault import Vault
from lava_proxy.stores.verification_codes import VerificationCodes
from lava_proxy.stores.webhook_store import WebhookStore
from lava_proxy.web.dashboard.dashboard import DashboardDependencies
from lava_proxy.web.site import Site
from lava_proxy.wire.control_hop import hop_secret
from lava_proxy.workers.charger import Charger
from lava_proxy.workers.credit_applier import CreditApplier
from lava_proxy.workers.drift import Drift
from lava_proxy.workers.flusher import Flusher, kill_self
from lava_proxy.workers.hold_reaper import HoldReaper
from lava_proxy.workers.lot_expirer import LotExpirer
from lava_proxy.workers.recovery import Recovery
from lava_proxy.workers.renewals import Renewals
from lava_proxy.workers.webhook_sender import WebhookSender

_PR_SET_PDEATHSIG = 1
_SMALL_BATCH_ROWS = 500
_GATHER_S = 0.03
_WEBHOOK_PAUSE_S = 0.2  # how late an event may start when the queue was empty
_DRIFT_ROUND_S = 5.0  # a partition; all of them in about five minutes
_OUTAGES: tuple[type[Exception], ...] = (LavaError, RedisError, OSError, *postgres.Failures)
_log = structlog.get_logger("roles")


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores every role builds the same way."""

    redis: Redis
    hot: HotRedis
    outbox: Outbox
    balances: BalanceStore
    pool: postgres.Pool
    catalog: CatalogStore
    ledger: LedgerStore
    webhooks: WebhookStore

    async def close(self) -> None:
        await self.hot.stop()
        await self.redis.aclose()
        await postgres.close(self.pool)


async def open_stores(config: RunConfig, settings: Settings, *, pool_max: int, require_verified: bool = True) -> Stores:
    """Connect to both engines; Postgres must answer, Redis may come later."""
    redis = outbox_module.connect(config.redis_url)
    hot = HotRedis(
        config.redis_url,
        timeout_s=settings.redis.timeout_s,
        connect_wait_s=settings.redis.connect_wait_s,
        require_verified=require_verified,
    )
    await hot.start()
    pool = await postgres.connect(config.database_url, size_max=pool_max)
    vault = vault_of(config)
    return Stores(
        redis,
        hot,
        Outbox(redis, business_clock(config)),
        BalanceStore(hot),
        pool,
        CatalogStore(pool, vault, business_clock(config)),
        LedgerStore(pool),
        WebhookStore(pool, vault),
    )


def vault_of(config: RunConfig) -> Vault:
    return Vault(config.master_key, (config.previous_master_key,))


def registry_of(config: RunConfig, settings: Settings) -> Registry:
    return load_registry(
        settings.providers_table, config.overrides, default_output_tokens_max=settings.reserve.output_tokens_default
    )


def prices_of(settings: Settings) -> PriceBook:
    return load_price_book(settings.prices_table.get("price", []))


def webhook_client_of(config: RunConfig, settings: Settings) -> WebhookClient:
    """Signs with the world's time, whatever a test clock says: receivers refuse signatures that are old."""
    return WebhookClient(
        timeout_s=settings.webhooks.timeout_s,
        connections_max=settings.webhooks.concurrency_max,
        allow_private=bool(settings.webhooks.allow_private) or config.dev,
        clock=lambda: datetime.now(UTC),
    )


def run_role(main: Coroutine[Any, Any, None], *, supervised: bool) -> None:
    """Run a role on uvloop; a supervised one dies with its supervisor, at once.

    No drain then: the engines die with the supervisor too, so there is nothing to settle into, and a successor on the same
    port and folder must not meet us. What was under way is settled by its checkpoints.
    """
    if supervised:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        uvloop.run(main)
    except LavaError as error:
        print(f"lava-proxy: {error.message}", file=sys.stderr)
        raise SystemExit(1) from error


def stop_event() -> asyncio.Event:
    """Set by SIGTERM or SIGINT, and by SIGHUP (the terminal closes) where nohup does not ask to ignore it."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, event.set)
    return event


def _collect_rarely() -> None:
    """What lives for ever need not be looked at again, and calls make few cycles: collecting every 700 objects costs 8 % of a
    gateway's CPU, and a flusher, whose batches are many thousand objects at once, a fifth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def run_gateway(config: RunConfig, settings: Settings, listening: socket.socket) -> None:
    """One gateway worker on a bound socket."""
    stopping = stop_event()
    stores = await open_stores(config, settings, pool_max=4)
    registry = registry_of(config, settings)
    worker = GatewayWorker(
        settings,
        registry=registry,
        prices=prices_of(settings),
        redis=stores.hot,
        outbox=stores.outbox,
        catalog=stores.catalog,
        ledger=stores.ledger,
        database_url=config.database_url,
        control=_control_origin(config),
        control_hop=hop_secret(config.master_key) if config.control_url else "",
        env_keys=settings.provider_keys({p.name: p.key_env for p in registry.providers}),
        clock=business_clock(config),
    )
    await worker.start(listening)
    _collect_rarely()
    await stopping.wait()
    await worker.stop()
    await stores.close()


def _control_origin(config: RunConfig) -> Origin:
    """Where a gateway sends what is not its own."""
    if not config.control_url:
        return Origin("control", 0, tls=False, guarded=False, unix=config.control_socket)
    host, port, tls = control_address(config.control_url)
    return Origin(host, port, tls=tls, guarded=False)


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
        with suppress(StoreError):  # then a link names its path alone
            await DashboardSessions(stores.redis).set_address(config.base_url.removesuffix("v1/"))
    application = build_application(
        ApiDependencies(
            catalog=stores.catalog,
            ledger=stores.ledger,
            outbox=stores.outbox,
            merchant_stores=merchant_stores,
            funding=funding,
            payments=cards.services(stores.pool, funding, config),
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
            processor_routes=cards.routes(),
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
    from prometheus_client import REGISTRY, generate_latest

    if environment.get("PROMETHEUS_MULTIPROC_DIR"):
        return generate_latest(telemetry.exposition_registry(environment))
    return generate_latest(REGISTRY)


async def run_worker(config: RunConfig, settings: Settings) -> None:
    """Recovery, flusher, reaper, credits, gauges; at the end one last flush."""
    stopping = stop_event()
    stores = await open_stores(config, settings, pool_max=6)
    registry = registry_of(config, settings)
    rating = Rating(stores.catalog, prices_of(settings), {p.name: p.price_id or p.name for p in registry.providers})
    failpoint = kill_self if settings.environment.get("LAVA_FAILPOINT") == "flusher_after_commit" else None
    flusher = Flusher(stores.outbox, stores.ledger, settings.flusher, after_commit=failpoint)
    leader = postgres.Leader(config.database_url)
    reaper = HoldReaper(stores.outbox, stores.balances, rating, settings.reserve.keep_s)
    funding = Funding(stores.catalog, stores.balances, business_clock(config))
    applier = CreditApplier(stores.catalog, funding)
    expirer = LotExpirer(stores.catalog, stores.balances, business_clock(config))
    cards = open_card_payments(stores.pool, funding, config, settings)
    renewals = Renewals(cards.subscriptions, cards.charges)
    charger = Charger(cards.store, cards.charges, business_clock(config))
    overage = open_overage(stores.pool, cards, stores.outbox, business_clock(config))
    recovery = Recovery(stores.outbox, stores.ledger, business_clock(config))
    drift = Drift(stores.outbox, stores.ledger)
    webhook_client = webhook_client_of(config, settings)
    await webhook_client.open()
    sender = WebhookSender(
        stores.webhooks, webhook_client, settings.webhooks, clock=business_clock(config), jitter=lambda: random.randint(0, 1000)
    )

    async def flush() -> int:
        rows = await flusher.run_once() if await leader.is_leader() else 0
        if 0 < rows < _SMALL_BATCH_ROWS:
            await asyncio.sleep(_GATHER_S)  # a transaction costs as much as some hundred rows
        return rows

    async def send() -> int:
        done = await sender.run_once()
        if not done:
            await asyncio.sleep(_WEBHOOK_PAUSE_S)
        return done

    async def recover() -> int:
        return await recovery.run_once() if await leader.is_leader() else 0

    async def partitions() -> int:
        async with stores.pool.acquire() as connection:
            return await postgres.ensure_partitions(connection, datetime.now(UTC))

    async def lead(work: Callable[[], Awaitable[int]]) -> int:
        return await work() if stores.hot.is_ready and await leader.is_leader() else 0

    running = [
        tasks.start("recovery", _every(0.1, recover)),
        tasks.start("flusher", _every(0.0, flush)),
        tasks.start("reaper", _every(1.0, lambda: lead(reaper.run_once))),
        tasks.start("credit-applier", _every(1.0, lambda: lead(applier.run_once))),
        tasks.start("charger", _every(1.0, lambda: lead(charger.run_once))),
        tasks.start("renewals", _every(1.0, lambda: lead(renewals.run_once))),
        tasks.start("overage", _every(0.25, lambda: lead(overage.run_once))),
        tasks.start("lot-expirer", _every(1.0, lambda: lead(expirer.run_once))),
        tasks.start("drift", _every(_DRIFT_ROUND_S, lambda: lead(drift.run_once))),
        tasks.start("webhook-sender", _every(0.0, send)),
        tasks.start("webhook-gauges", _every(5.0, sender.measure)),
        tasks.start("webhook-prune", _every(3600.0, sender.prune)),
        tasks.start("gauges", _every(1.0, lambda: _gauges(stores.outbox))),
        tasks.start("partitions", _every(3600.0, partitions)),
    ]
    _collect_rarely()
    await stopping.wait()
    await tasks.stop(*running)
    await sender.drain()
    await webhook_client.close()
    with suppress(*_OUTAGES):
        if await leader.is_leader():
            await Flusher(stores.outbox, stores.ledger, settings.flusher).flush_all()
    await leader.close()
    await cards.close()
    await stores.close()


async def _every(pause_s: float, work: Callable[[], Awaitable[int]]) -> None:
    """Run for ever; an outage of an engine is logged once a change and retried."""
    failing = ""
    task = asyncio.current_task()
    assert task is not None
    while not task.cancelling():  # a driver may also swallow the cancellation that stops us
        try:
            done = await work()
            failing = ""
        except _OUTAGES as error:
            text = f"{type(error).__name__}: {error}"
            if text != failing:
                _log.warning("A worker waits for an engine", action="worker_waits", error=text[:300])
            failing = text
            await asyncio.sleep(max(pause_s, 0.25))
            continue
        except asyncio.CancelledError:
            # A driver may let its own cancellation out when its connection dies; only ours ends the worker.
            if task.cancelling():
                raise
            await asyncio.sleep(max(pause_s, 0.25))
            continue
        except Exception:  # a worker that died quietly would stop the ledger: say it, and go on
            _log.exception("A worker's round failed", action="worker_failed")
            await asyncio.sleep(max(pause_s, 1.0))
            continue
        if pause_s or not done:
            await asyncio.sleep(pause_s if pause_s else 0.002)


async def _gauges(outbox: Outbox) -> int:
    telemetry.OUTBOX_ENTRIES.set(await outbox.length())
    oldest = await outbox.oldest_ms()
    now_ms = await outbox.now_ms()
    telemetry.OUTBOX_LAG.set((now_ms - oldest) / 1000 if oldest is not None else 0)
    count, earliest = await outbox.hold_figures()
    telemetry.HOLDS_OPEN.set(count)
    telemetry.HOLD_OLDEST.set(max(0, now_ms - earliest) / 1000 if earliest is not None else 0)
    return 0
