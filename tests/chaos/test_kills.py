"""`kill -9` of each process under load: afterwards the audit is clean, and no call is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.daemon import Daemon, running

_BODY = {"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": "Say hello."}]}
_CALLS = 120
_KILL_AFTER = 30


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    environment = {"LAVA_RESERVE_LEASE_S": "5", "LAVA_RESERVE_CHECKPOINT_S": "1"}
    with running(tmp_path, "--workers", "2", environment=environment) as started:
        yield started


async def _load(daemon: Daemon, strike: list[int]) -> Counter[str]:
    """Streamed calls, twelve at a time; after some, the strike. What became of each call, and the ids of whole answers."""
    outcomes: Counter[str] = Counter()
    gate = asyncio.Semaphore(12)
    finished = 0

    async with httpx.AsyncClient(timeout=60) as client:

        async def call() -> None:
            nonlocal finished
            async with gate:
                try:
                    response = await client.post(
                        daemon.base_url + "forward/openai/v1/chat/completions",
                        headers={"Authorization": f"Bearer {daemon.token('fixed')}", "x-sandbox-delay-ms": "3"},
                        json=_BODY,
                    )
                except httpx.HTTPError:
                    outcomes["cut"] += 1
                else:
                    whole = response.status_code == 200 and b"[DONE]" in response.content
                    outcomes["whole" if whole else str(response.status_code)] += 1
                finished += 1
                if finished == _KILL_AFTER:
                    for pid in strike:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)

        await asyncio.gather(*(call() for _ in range(_CALLS)))
    return outcomes


def _check(daemon: Daemon, outcomes: Counter[str], *, may_cut: bool = True) -> None:
    """Every whole answer is one row; nothing is charged twice; the money adds up."""
    assert outcomes["whole"] > _KILL_AFTER, outcomes
    if not may_cut:
        assert outcomes["whole"] == _CALLS, outcomes
    daemon.audit()
    rows = []
    cursor = ""
    while True:
        page = daemon.get(f"requests?limit=100{cursor}")
        rows += page["data"]
        if not page["has_more"]:
            break
        cursor = f"&cursor={page['next_cursor']}"
    ids = [row["request_id"] for row in rows]
    assert len(ids) == len(set(ids))
    # A worker killed between an answer's last byte and its settle leaves the row to the reaper, priced by its checkpoint.
    accounted = [row for row in rows if row["provenance"] == "provider_final" or row["outcome"] == "orphaned"]
    assert len(accounted) >= outcomes["whole"]
    charged = sum(int(row["charge"]["amount"].replace(".", "")) for row in rows)
    assert charged % 10 == 0
    assert 25_000_000_000 - daemon.balance_nanos() == charged // 10


def test_a_killed_gateway_worker_loses_and_doubles_nothing(daemon: Daemon) -> None:
    """F6, G1: holds of the dead worker are settled by the reaper from their checkpoints."""
    _check(daemon, asyncio.run(_load(daemon, [daemon.pid("gateway")])))


def test_a_killed_redis_loses_and_doubles_nothing(daemon: Daemon) -> None:
    """H8: its append-only file is replayed, the run is verified against Postgres, and settles are retried until then."""
    _check(daemon, asyncio.run(_load(daemon, [daemon.info["pids"]["redis"]])))


def test_a_killed_postgres_interrupts_no_call(daemon: Daemon) -> None:
    """G12: calls go on without Postgres; the outbox keeps their rows."""
    _check(daemon, asyncio.run(_load(daemon, [daemon.info["pids"]["postgres"]])), may_cut=False)


def test_a_killed_background_worker_interrupts_no_call(daemon: Daemon) -> None:
    _check(daemon, asyncio.run(_load(daemon, [daemon.pid("lava_proxy worker")])), may_cut=False)


def test_a_flusher_that_dies_between_commit_and_trim_flushes_once(tmp_path: Path) -> None:
    """G3: the mark is committed with the rows, so what is read again is not written again."""
    environment = {"LAVA_FAILPOINT": "flusher_after_commit"}
    with running(tmp_path, "--workers", "1", environment=environment) as started:
        outcomes = asyncio.run(_load(started, []))
        _check(started, outcomes, may_cut=False)


def test_everything_killed_at_once_comes_back_whole(tmp_path: Path) -> None:
    """The supervisor and all its children die by `kill -9`; the next start has all money."""
    with running(tmp_path, "--workers", "2", environment={"LAVA_RESERVE_LEASE_S": "5", "LAVA_RESERVE_CHECKPOINT_S": "1"}) as first:
        outcomes = asyncio.run(_load(first, [first.process.pid]))
        first.process.wait(60)
    assert outcomes["whole"] >= _KILL_AFTER
    with running(tmp_path, "--workers", "1", environment={"LAVA_RESERVE_LEASE_S": "5", "LAVA_RESERVE_CHECKPOINT_S": "1"}) as second:
        second.audit()
        assert second.balance_nanos() < 25_000_000_000
