"""A real gateway worker in this process, on real Redis and Postgres, between a fake provider and raw clients."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from lava_proxy import tasks
from lava_proxy.billing.funding import Funding
from lava_proxy.domain.catalog import PPM_PER_PERCENT, RateType, Tier
from lava_proxy.domain.money import NANOS_PER_USD
from lava_proxy.domain.prices import PriceBook
from lava_proxy.gateway.upstream import Origin
from lava_proxy.gateway.worker import GatewayWorker
from lava_proxy.providers.registry import load_registry
from lava_proxy.settings import Settings
from lava_proxy.stores.balance_store import BalanceStore, partition_of
from lava_proxy.stores.catalog_store import CatalogStore, Connection, Merchant, Meter
from lava_proxy.stores.hot_redis import HotRedis
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.postgres import Pool
from lava_proxy.stores.request_export import RequestExport, RequestFilter
from lava_proxy.wire.forward_token import mint
from lava_proxy.workers.audit import Audit
from lava_proxy.workers.flusher import Flusher
from lava_proxy.workers.recovery import Recovery
from tests.integration.gateway.fakes import Client, FakeProvider

CUSTOMER_NANOS = 25 * NANOS_PER_USD
MERCHANT_NANOS = 100 * NANOS_PER_USD
NANOS_PER_TOKEN = 20_000  # of the meter `fixed`: $20 a million tokens
CHAT = "/v1/forward/openai/v1/chat/completions"
PROVIDERS = ("openai", "anthropic", "google", "groq", "elevenlabs", "bedrock", "bedrock-mantle", "ollama")


class OwnWallets(LedgerStore):
    """A ledger whose audit looks at the given wallets only: the others were checked by their own tests."""

    def __init__(self, pool: Pool, wallets: set[str]) -> None:
        super().__init__(pool)
        self._wallets = wallets

    async def wallet_ids(self, part: int) -> list[str]:
        return sorted(wallet_id for wallet_id in self._wallets if partition_of(wallet_id) == part)


@dataclass(slots=True, kw_only=True)
class World:
    """What the gateways of all tests share."""

    settings: Settings
    prices: PriceBook
    redis_url: str
    database_url: str
    redis: Redis
    pool: Pool
    catalog: CatalogStore
    ledger: LedgerStore
    outbox: Outbox

    async def verify(self) -> None:
        """Let Redis serve, also when another test has emptied it."""
        await Recovery(self.outbox, self.ledger).run_once()

    async def flush(self) -> None:
        await Flusher(self.outbox, self.ledger, self.settings.flusher).flush_all()


@dataclass(slots=True, kw_only=True)
class Gateway:
    """One worker with its provider, its control plane, a merchant with $100 and a customer with $25."""

    world: World
    settings: Settings
    worker: GatewayWorker
    hot: HotRedis
    port: int
    provider: FakeProvider
    control: FakeProvider
    merchant: Merchant
    connection: Connection
    meter: Meter
    secret_key: str
    funding: Funding
    clients: list[Client] = field(default_factory=list)
    is_stopped: bool = False
    start_nanos: int = CUSTOMER_NANOS  # of the customer

    @property
    def token(self) -> str:
        return mint(self.secret_key, self.connection.connection_id, "fixed")

    @property
    def connections(self) -> Any:
        return self.worker._connections

    @property
    def exchanges(self) -> Any:
        return self.worker._context.live

    @property
    def pool(self) -> Any:
        return self.worker._pool

    def check(self, seconds_later: float) -> None:
        """The sweeper's look at every call and connection, as if it were so much later."""
        now = asyncio.get_running_loop().time() + seconds_later
        self.connections.sweep(now)
        for exchange in list(self.exchanges):
            exchange.check(now)

    async def client(self, **options: Any) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24, **options)
        client = Client(reader, writer)
        self.clients.append(client)
        return client

    def request(
        self,
        body: object = None,
        *,
        target: str = CHAT,
        method: str = "POST",
        token: str | None = "",
        headers: tuple[str, ...] = (),
        version: str = "HTTP/1.1",
    ) -> bytes:
        """A request's bytes; a small chat call unless told otherwise. `token` None: no credential."""
        if body is None:
            body = chat_request()
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"{method} {target} {version}", "Host: gateway.test", "Content-Type: application/json", *headers]
        if token is not None:
            lines.append(f"Authorization: Bearer {token or self.token}")
        if method == "POST" and not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines):
            lines.append(f"Content-Length: {len(raw)}")
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (raw if method == "POST" else b"")

    async def settled(self) -> None:
        """Until every call has been settled."""
        assert await tasks.drain("exchange", 10) == 0, "a call did not end"

    async def rows(self) -> list[dict[str, Any]]:
        """The request rows of this gateway's merchant, oldest first, once all calls have ended."""
        await self.settled()
        await self.world.flush()
        rows = await RequestExport(self.world.pool).page(self.merchant.merchant_id, RequestFilter(), before=None, limit=5000)
        return rows[::-1]

    async def row(self) -> dict[str, Any]:
        """The one row."""
        rows = await self.rows()
        assert len(rows) == 1, f"{len(rows)} rows"
        return rows[0]

    async def balance(self, wallet_id: str | None = None) -> int:
        """What a wallet has, held or not, in nano-USD; the customer's unless told otherwise."""
        wallet_id = wallet_id or self.connection.wallet_id
        states = await self.world.outbox.wallets(partition_of(wallet_id), [wallet_id])
        state = states[wallet_id]
        assert state is not None
        return state.balance_nanos

    async def fund(self, nanos: int) -> None:
        """Give the customer more."""
        await self.funding.fund(self.merchant.merchant_id, self.connection.wallet_id, nanos, "test")
        self.start_nanos += nanos

    async def stop(self) -> None:
        if not self.is_stopped:
            self.is_stopped = True
            await self.worker.stop()

    async def finish(self) -> None:
        """Every call has one row and one debit, no hold is open, the wallets are what the rows say; then close it all."""
        for client in self.clients:
            await client.close()
        try:
            rows = await self.rows()
            wallets = {self.merchant.wallet_id: MERCHANT_NANOS, self.connection.wallet_id: self.start_nanos}
            report = await Audit(self.world.outbox, OwnWallets(self.world.pool, set(wallets))).run()
            assert report.violations == []
            assert report.holds_open == 0
            for wallet_id, start_nanos in wallets.items():
                charged = sum(row["charge_nanos"] for row in rows if row["wallet_id"] == wallet_id)
                assert await self.balance(wallet_id) == start_nanos - charged
        finally:
            await self.stop()
            await self.hot.stop()
            await self.provider.stop()
            await self.control.stop()


def chat_request(stream: bool = False, **members: object) -> dict[str, Any]:
    """A small chat request."""
    body: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100}
    if stream:
        body["stream"] = True
    return {**body, **members}


async def start_gateway(
    world: World,
    folder: Path,
    *,
    adjust: Callable[[Settings], Settings] = lambda settings: settings,
    overrides: dict[str, str] | None = None,
    redis_url: str | None = None,
    catalog: CatalogStore | None = None,
    database_url: str | None = None,
    env_keys: dict[str, str] | None = None,
    control_hop: str = "",
) -> Gateway:
    """Compose and seed. `overrides` adds to or replaces the providers' addresses."""
    await world.verify()
    settings = adjust(world.settings)
    provider, control = FakeProvider(), FakeProvider()
    await provider.start()
    socket_path = str(folder / f"{new_id('c')[-12:]}.sock")
    await control.start(unix=socket_path)
    bases = {name: f"http://127.0.0.1:{provider.port}" for name in PROVIDERS}
    registry = load_registry(settings.providers_table, {**bases, **(overrides or {})})
    hot = HotRedis(redis_url or world.redis_url, timeout_s=settings.redis.timeout_s, connect_wait_s=settings.redis.connect_wait_s)
    await hot.start()
    assert redis_url is not None or await hot.wait_ready(5)
    worker = GatewayWorker(
        settings,
        registry=registry,
        prices=world.prices,
        redis=hot,
        outbox=world.outbox,
        catalog=catalog or world.catalog,
        ledger=world.ledger,
        database_url=database_url or world.database_url,
        control=Origin("control", 0, tls=False, guarded=False, unix=socket_path),
        control_hop=control_hop,
        env_keys=env_keys if env_keys is not None else {"openai": "sk-of-the-installation"},
    )
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    await worker.start(listening)
    seeding = hot
    if redis_url is not None:
        seeding = HotRedis(world.redis_url)
        await seeding.start()
        assert await seeding.wait_ready(5)
    funding = Funding(world.catalog, BalanceStore(seeding))
    merchant, connection, meter, secret_key = await _seed(world.catalog, funding)
    if seeding is not hot:
        await seeding.stop()
    return Gateway(
        world=world, settings=settings, worker=worker, hot=hot, port=listening.getsockname()[1], provider=provider,
        control=control, merchant=merchant, connection=connection, meter=meter, secret_key=secret_key, funding=funding,
    )  # fmt: skip


async def _seed(catalog: CatalogStore, funding: Funding) -> tuple[Merchant, Connection, Meter, str]:
    merchant = await catalog.create_merchant("Test")
    secret_key = await catalog.create_secret_key(merchant.merchant_id, "Test", live=False)
    connection = await catalog.create_connection(merchant.merchant_id, reference_id="customer-1")
    for wallet_id, nanos in ((merchant.wallet_id, MERCHANT_NANOS), (connection.wallet_id, CUSTOMER_NANOS)):
        await funding.open_wallet(wallet_id)
        await funding.fund(merchant.merchant_id, wallet_id, nanos, "test")
    meter = await _meter(catalog, merchant, "fixed", "fixed", 20 * NANOS_PER_USD)
    await _meter(catalog, merchant, "markup", "percentage", 20 * PPM_PER_PERCENT)
    return merchant, connection, meter, secret_key


async def _meter(catalog: CatalogStore, merchant: Merchant, slug: str, rate_type: RateType, rate: int) -> Meter:
    return await catalog.create_meter(
        merchant.merchant_id, name=slug, slug=slug, rate_type=rate_type, tier_type="tokens_1m", tiers=(Tier(start=0, rate=rate),)
    )


def with_http(**values: Any) -> Callable[[Settings], Settings]:
    return lambda settings: replace(settings, http=replace(settings.http, **values))


def with_upstream(**values: Any) -> Callable[[Settings], Settings]:
    return lambda settings: replace(settings, upstream=replace(settings.upstream, **values))
