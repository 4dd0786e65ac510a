"""One gateway worker: builds the shared context, accepts connections on the listening socket, sweeps, drains."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from datetime import UTC, datetime

import asyncpg
import structlog

from lava_proxy import tasks, telemetry
from lava_proxy.billing.charging import Charging
from lava_proxy.billing.reporting import ProviderName, Reporting
from lava_proxy.domain.prices import PriceBook
from lava_proxy.gateway.breaker import Breakers
from lava_proxy.gateway.downstream import Connections, Downstream, Request, is_upgrade
from lava_proxy.gateway.exchange import Context, Exchange
from lava_proxy.gateway.grants import Grants
from lava_proxy.gateway.head_plans import Routes
from lava_proxy.gateway.refusals import Refusals
from lava_proxy.gateway.reports import ReportExchange, Reports, report_route
from lava_proxy.gateway.upstream import Origin, UpstreamPool
from lava_proxy.gateway.websocket import WebSocketExchange
from lava_proxy.providers.registry import Registry
from lava_proxy.settings import Settings
from lava_proxy.stores.balance_store import BalanceStore
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.hot_redis import HotRedis
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.outbox import Outbox

_SWEEP_S = 1.0
LISTENER_PING_S = 10.0  # how often the catalogue's connection is asked whether it still is one
_LISTENER_ANSWER_S = 3.0
_log = structlog.get_logger("gateway")


class GatewayWorker:
    """Owns every connection of one process. `start`, then `stop` (drains)."""

    def __init__(
        self,
        settings: Settings,
        *,
        registry: Registry,
        prices: PriceBook,
        redis: HotRedis,
        outbox: Outbox,
        catalog: CatalogStore,
        ledger: LedgerStore,
        database_url: str,
        control: Origin,
        env_keys: dict[str, str],
        control_hop: str = "",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._redis = redis
        self._outbox = outbox
        self._database_url = database_url
        self._loop = asyncio.get_running_loop()
        self.tally = telemetry.Tally()
        self._grants = Grants(catalog, settings.cache, clock)
        self._outbox_full = False
        self._broken_providers: set[str] = set()
        self._pool = UpstreamPool(settings.upstream)
        self._refusals = Refusals(outbox)
        self._context = Context(
            settings=settings,
            registry=registry,
            grants=self._grants,
            charging=Charging(BalanceStore(redis), prices, settings.reserve, self.tally, clock, self._refusals.note),
            pool=self._pool,
            control=control,
            control_hop=control_hop.encode(),
            env_keys=env_keys,
            tally=self.tally,
            outbox_full=lambda: self._outbox_full,
            live=set(),
            routes=Routes(registry),
            breakers=Breakers(settings.upstream.breaker_failures_max, settings.upstream.breaker_open_s),
        )
        self._reports = Reports(
            Reporting(
                BalanceStore(redis), catalog, ledger, prices, _names_of(registry), settings.reports, self.tally, clock
            ),
            self._grants,
            settings.reports,
            outbox_full=lambda: self._outbox_full,
        )  # fmt: skip
        self._connections = Connections(settings.http, self._begin)
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._checkpointer: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None

    def _begin(self, connection: Downstream, request: Request) -> Exchange | ReportExchange:
        if request.upgrade and is_upgrade(request):
            return WebSocketExchange(self._context, connection, request).start()
        route = report_route(request.method, request.target)
        if route is not None:
            return self._reports.start(connection, request, route)
        return Exchange(self._context, connection, request).start()

    async def start(self, listening: socket.socket) -> None:
        """Serve on a bound socket."""
        self._listener = tasks.start("catalogue-listener", self._listen())
        self._checkpointer = tasks.start("checkpointer", self._checkpoint())
        self._server = await self._loop.create_server(lambda: Downstream(self._connections), sock=listening, backlog=4096)
        self._sweep()

    async def stop(self) -> None:
        """Stop accepting, let running answers end (bounded), settle them all, publish the last figures."""
        if self._server is not None:
            self._server.close()
        self._connections.stop()
        timeout_s = self._settings.upstream.stop_timeout_s
        if await tasks.drain("exchange", timeout_s):
            for exchange in list(self._context.live):
                exchange.stop()
            left = await tasks.drain("exchange", timeout_s)
            if left:
                _log.error("Calls were left to the reaper", action="drain_incomplete", calls=left)
        if self._sweeper is not None:
            self._sweeper.cancel()
        await tasks.stop(self._checkpointer, self._listener)
        await self._refusals.stop()
        self._pool.close()
        self.tally.publish()

    def _sweep(self) -> None:
        """The worker's one timer: time-outs, pools, gauges."""
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)  # first, so that a fault below cannot end the sweeping
        now = self._loop.time()
        self._connections.sweep(now)
        for exchange in list(self._context.live):
            exchange.check(now)
        self._pool.sweep(now)
        self.tally.publish()
        telemetry.OPEN_STREAMS.set(len(self._context.live))
        telemetry.HOLDS_NANOS.set(sum(exchange.held_nanos for exchange in self._context.live))
        used, idle = self._pool.counts()
        telemetry.UPSTREAM_CONNECTIONS.labels("used").set(used)
        telemetry.UPSTREAM_CONNECTIONS.labels("idle").set(idle)
        states = self._context.breakers.states(now)
        for name in self._broken_providers | states.keys():
            telemetry.BREAKER.labels(name).set(states.get(name, 0))
        self._broken_providers = set(states)

    async def _checkpoint(self) -> None:
        """Refresh leases: streams every checkpoint_s with what they have used, other calls when a third of the lease is over."""
        reserve = self._settings.reserve
        while True:
            await asyncio.sleep(reserve.checkpoint_s)
            now = self._loop.time()
            due = [
                exchange for exchange in self._context.live if exchange.delivered or now - exchange.leased_at > reserve.lease_s / 3
            ]
            for exchange in due:
                exchange.leased_at = now
            for start in range(0, len(due), 32):
                await asyncio.gather(*(self._checkpoint_one(exchange) for exchange in due[start : start + 32]))
            await self._look_at_outbox()

    @staticmethod
    async def _checkpoint_one(exchange: Exchange) -> None:
        """One stream that cannot be priced must not cost the others their leases."""
        try:
            await exchange.checkpoint()
        except Exception:
            _log.exception("A checkpoint failed", action="checkpoint_failed", request_id=exchange.request_id)

    async def _look_at_outbox(self) -> None:
        try:
            length = await self._outbox.length()
        except Exception:  # Redis away: the hot leg fails closed by itself
            return
        self._outbox_full = length > self._settings.redis.outbox_entries_max

    def _forget(self, payload: object) -> None:
        """What changed: a table's name, or a connection's subscription."""
        kind, _, connection_id = str(payload).partition(":")
        if kind == "connection" and connection_id:
            self._grants.forget_connection(connection_id)
            self._reports.forget_connection(connection_id)
        else:
            self._grants.forget()

    async def _listen(self) -> None:
        """Drop what is remembered of the catalogue when it changes; keep it while Postgres is away."""
        while True:
            lost = asyncio.Event()
            try:
                connection = await asyncpg.connect(self._database_url, timeout=5)
            except (OSError, asyncpg.PostgresError, TimeoutError):
                await asyncio.sleep(1)
                continue
            try:
                connection.add_termination_listener(lambda *_, lost=lost: lost.set())
                await connection.add_listener("catalogue", lambda *heard: self._forget(heard[-1]))
                self._grants.forget()  # changes made while nobody listened
                while not await _ended_within(lost, LISTENER_PING_S):
                    # A connection that only listens is what firewalls drop without a word: then revoked keys would go on working.
                    await connection.execute("SELECT 1", timeout=_LISTENER_ANSWER_S)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                pass
            finally:
                if not connection.is_closed():
                    connection.terminate()
            await asyncio.sleep(0.2)


async def _ended_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _names_of(registry: Registry) -> Callable[[str], ProviderName]:
    """How a report's provider is written in rows, prices and metrics: any of a known one's names means that one."""

    def names(name: str) -> ProviderName:
        found = registry.by_name(name.lower())
        return (
            ProviderName(name, name, "other")
            if found is None
            else ProviderName(found.name, found.price_id or found.name, found.name)
        )

    return names
