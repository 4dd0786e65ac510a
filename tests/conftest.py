"""Fixtures for everyone: real engines once a process, a database of one's own, the folder of recordings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.engines import RunningEngines, flush_redis, fresh_database, running_engines

REPOSITORY = Path(__file__).resolve().parent.parent
RECORDINGS = REPOSITORY.parent / "shared" / "recordings"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--all-mutations`: every place instead of a few drawn ones (tests/conformance/test_mutations.py)."""
    parser.addoption("--all-mutations", action="store_true", help="cut recorded streams at every event, not at a few")


@pytest.fixture(scope="session")
def engines() -> Iterator[RunningEngines]:
    """Valkey and PostgreSQL, started when the first test asks."""
    with running_engines() as started:
        yield started


@pytest.fixture
async def redis_url(engines: RunningEngines) -> str:
    """An empty Redis. The server is shared with the other tests of this process, one after the other."""
    await flush_redis(engines.redis_url)
    return engines.redis_url


@pytest.fixture(scope="module")
async def database_url(engines: RunningEngines) -> AsyncIterator[str]:
    """An empty database of this test module's own; tests that fill it clean up or use names of their own."""
    async with fresh_database(engines.database_url) as url:
        yield url


@pytest.fixture
async def empty_database_url(engines: RunningEngines) -> AsyncIterator[str]:
    """An empty database for one test."""
    async with fresh_database(engines.database_url) as url:
        yield url


@pytest.fixture(scope="session")
def recordings_dir() -> Path:
    """The recorded provider responses beside the repository; a loud skip when they are not there."""
    if not RECORDINGS.is_dir():
        pytest.skip("no recordings: the folder ../shared/recordings is missing, so nothing is proved about providers")
    return RECORDINGS
