"""`kill -9` of each process under a load of reports: every acknowledged one is in the ledger exactly once, the audit is clean."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.daemon import Daemon, running, until

_REPORTS = 400
_KILL_AFTER = 100
_TOKENS = 10
_NANOS = _TOKENS * 20_000
_TRIES_MAX = 60


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running(tmp_path, "--workers", "2") as started:
        yield started


async def _load(daemon: Daemon, strike: list[int], *, patient: bool = True) -> set[str]:
    """Reports, each repeated until it is acknowledged, some alone and some in batches; the ids that were."""
    acknowledged: set[str] = set()
    gate = asyncio.Semaphore(12)
    struck = False

    def body(request_id: str) -> dict[str, Any]:
        return {
            "request_id": request_id, "customer_id": daemon.info["connection_id"], "meter_slug": "fixed", "input_tokens": _TOKENS
        }  # fmt: skip

    async with httpx.AsyncClient(timeout=20, headers={"Authorization": f"Bearer {daemon.info['secret_key']}"}) as client:

        async def send(ids: list[str]) -> None:
            nonlocal struck
            async with gate:
                for _ in range(_TRIES_MAX if patient else 1):
                    with contextlib.suppress(httpx.HTTPError):
                        if len(ids) == 1:
                            response = await client.post(daemon.base_url + "requests", json=body(ids[0]))
                            done = {ids[0]} if response.status_code == 200 else set()
                        else:
                            response = await client.post(
                                daemon.base_url + "requests/batch", json={"requests": [body(one) for one in ids]}
                            )
                            results = response.json()["results"] if response.status_code == 200 else []
                            done = {one for one, result in zip(ids, results, strict=False) if result["status"] == 200}
                        acknowledged.update(done)
                        if done == set(ids):
                            break
                    await asyncio.sleep(0.25)
                if len(acknowledged) >= _KILL_AFTER and not struck:
                    struck = True
                    for pid in strike:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)

        groups = []
        for n in range(_REPORTS // 20):  # ten alone, then ten together
            groups += [[f"one-{n}-{m}"] for m in range(10)] + [[f"many-{n}-{m}" for m in range(10)]]
        await asyncio.gather(*(send(group) for group in groups))
    return acknowledged


def _check(daemon: Daemon, acknowledged: set[str]) -> None:
    """Every acknowledged id has one row, none has two, and the balance is what the rows say."""
    assert len(acknowledged) >= _KILL_AFTER
    daemon.audit()
    rows: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = daemon.get(f"requests?limit=100{cursor}")
        rows += page["data"]
        if not page["has_more"]:
            break
        cursor = f"&cursor={page['next_cursor']}"
    ids = [row["request_id"] for row in rows]
    assert len(ids) == len(set(ids)), "an id has two rows"
    assert acknowledged <= set(ids), "an acknowledged report is missing"
    spent = len(ids) * _NANOS

    def balanced() -> bool | None:
        """A debit that is given back (Redis had lost its id, Postgres not yet had it) is credited within seconds."""
        return True if 25_000_000_000 - daemon.balance_nanos() == spent else None

    until(balanced, f"a balance that has paid {len(ids)} reports")


def test_a_killed_gateway_worker_loses_and_doubles_no_report(daemon: Daemon) -> None:
    """27, I10, I13: what it had acknowledged is in Redis; what it had not is sent again under the same id."""
    _check(daemon, asyncio.run(_load(daemon, [daemon.pid("gateway")])))


def test_a_killed_redis_loses_and_doubles_no_report(daemon: Daemon) -> None:
    """28, I10, I32: an acknowledged report is in its append-only file."""
    _check(daemon, asyncio.run(_load(daemon, [daemon.info["pids"]["redis"]])))


def test_a_killed_postgres_stops_no_report(daemon: Daemon) -> None:
    """29, I33: reports go on without the last word about ids, which is spoken when it is back."""
    acknowledged = asyncio.run(_load(daemon, [daemon.info["pids"]["postgres"]]))
    assert len(acknowledged) == _REPORTS
    _check(daemon, acknowledged)


def test_a_killed_background_worker_stops_no_report(daemon: Daemon) -> None:
    """I33: the outbox waits for the next one."""
    acknowledged = asyncio.run(_load(daemon, [daemon.pid("lava_proxy worker")]))
    assert len(acknowledged) == _REPORTS
    _check(daemon, acknowledged)


def test_all_killed_at_once_keeps_every_acknowledged_report(tmp_path: Path) -> None:
    """I10, I13: the supervisor and its children die together; the next start has each acknowledged report, and takes the rest."""
    with running(tmp_path, "--workers", "2") as first:
        acknowledged = asyncio.run(_load(first, [first.process.pid], patient=False))
        first.process.wait(60)
    with running(tmp_path, "--workers", "1") as second:
        acknowledged |= asyncio.run(_load(second, []))
        _check(second, acknowledged)
