"""The worker role, composed: recovery, flusher and everything that is done in the background. At its end one last flush."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

import structlog
from redis.exceptions import RedisError

from lava_proxy import tasks, telemetry
from lava_proxy.app.card_payments import open_card_payments, open_overage
from lava_proxy.app.open_stores import open_stores, prices_of, registry_of
from lava_proxy.app.process import collect_rarely, stop_event
from lava_proxy.app.run_config import RunConfig, business_clock
from lava_proxy.app.webhook_delivery import webhook_client_of
from lava_proxy.billing.funding import Funding
from lava_proxy.billing.rating import Rating
from lava_proxy.domain.errors import LavaError
from lava_proxy.settings import Settings
from lava_proxy.stores import postgres
from lava_proxy.stores.outbox import Outbox
from lava_proxy.workers.charger import Charger
from lava_proxy.workers.credit_applier import CreditApplier
from lava_proxy.workers.drift import Drift
from lava_proxy.workers.flusher import Flusher, Gathering, kill_self
from lava_proxy.workers.hold_reaper import HoldReaper
from lava_proxy.workers.lot_expirer import LotExpirer
from lava_proxy.workers.recovery import Recovery
from lava_proxy.workers.renewals import Renewals
from lava_proxy.workers.webhook_sender import WebhookSender

_WEBHOOK_PAUSE_S = 0.2  # how late an event may start when the queue was empty
_DRIFT_ROUND_S = 5.0  # a partition; all of them in about five minutes
_OUTAGES: tuple[type[Exception], ...] = (LavaError, RedisError, OSError, *postgres.Failures)
_log = structlog.get_logger("worker")


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

    gathering = Gathering()

    async def flush() -> int:
        rows = await flusher.run_once() if await leader.is_leader() else 0
        if pause_s := gathering.pause_s(rows, asyncio.get_running_loop().time(), is_behind=flusher.is_behind):
            await asyncio.sleep(pause_s)
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
    collect_rarely()
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
