"""Real Valkey and PostgreSQL for the tests: one pair a process (so one a parallel worker), in a temporary folder.

Starting takes 0.7 s and happens only when a test asks. The engines carry a death signal, so even `kill -9` of pytest
leaves no process behind; the folder is removed at the end, also after Ctrl-C.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import redis.asyncio

from lava_proxy.app.embedded import EmbeddedEngines, Engines
from lava_proxy.app.engine_sources import EngineOptions

_numbers = itertools.count(1)


def options_from_environment() -> EngineOptions:
    """The same variables that the product reads, so that a test run can be pointed at other binaries."""
    return EngineOptions(
        redis_bin=os.environ.get("LAVA_REDIS_BIN"),
        pg_bindir=os.environ.get("LAVA_PG_BINDIR"),
        user=os.environ.get("LAVA_EMBED_USER"),
        root_mode="setuid" if os.environ.get("LAVA_EMBED_ROOT_MODE") == "setuid" else "auto",
        search_path=os.environ.get("PATH", os.defpath),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEngines:
    """The running pair."""

    engines: Engines
    owner: EmbeddedEngines
    data_dir: Path

    @property
    def redis_url(self) -> str:
        return self.engines.redis_url

    @property
    def database_url(self) -> str:
        """The maintenance database; tests take one of their own from `fresh_database`."""
        return self.engines.database_url


@contextmanager
def running_engines() -> Iterator[RunningEngines]:
    """Both engines in a new temporary folder; stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="lava-test-"))
    owner = EmbeddedEngines()
    try:
        engines = owner.start(folder, options_from_environment())
        yield RunningEngines(engines=engines, owner=owner, data_dir=folder)
    finally:
        owner.stop()
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def fresh_database(maintenance_url: str) -> AsyncIterator[str]:
    """The URL of a new, empty database; dropped at the end, connections or not. About 40 ms."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    connection = await asyncpg.connect(maintenance_url)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
        yield with_database(maintenance_url, name)
    finally:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await connection.close()


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def flush_redis(url: str) -> None:
    """Empty the whole server: keys, scripts and functions."""
    client = redis.asyncio.Redis.from_url(url)
    try:
        await client.flushall()
        await client.script_flush()
        await client.function_flush()
    finally:
        await client.aclose()
