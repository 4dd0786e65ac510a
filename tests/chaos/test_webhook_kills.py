"""`kill -9` of the process that sends webhooks, in the middle of sending: nothing is lost, and repeats have the same id."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import httpx2 as httpx

from tests.daemon import Daemon, running
from tests.webhook_receiver import Receiver, running_receiver

_BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello."}]}
_CALLS = 40


def test_a_worker_killed_while_it_delivers_delivers_again_with_the_same_id(tmp_path: Path) -> None:
    """Also the balance of the last call arrives, in the end, and every signature is right."""
    environment = {"LAVA_WEBHOOKS_TIMEOUT_S": "1", "LAVA_WEBHOOKS_LEASE_S": "2"}
    with running(tmp_path, "--workers", "1", environment=environment) as daemon:
        asyncio.run(_kill_and_look(daemon))


async def _kill_and_look(daemon: Daemon) -> None:
    async with running_receiver() as receiver, httpx.AsyncClient(timeout=60) as client:
        headers = {"Authorization": f"Bearer {daemon.info['secret_key']}"}
        made = (await client.post(daemon.base_url + "webhooks", headers=headers, json={"name": "w", "url": receiver.url})).json()
        receiver.always = "hang"
        await _call(client, daemon)
        await _until(lambda: receiver.received)  # it is being sent ...
        os.kill(daemon.pid("lava_proxy worker"), signal.SIGKILL)  # ... by somebody who is no more
        receiver.always = 200
        receiver.released.set()
        for number in range(_CALLS):
            await _call(client, daemon)
            if number == _CALLS // 2:
                with contextlib.suppress(ProcessLookupError, AssertionError):
                    os.kill(daemon.pid("lava_proxy worker"), signal.SIGKILL)
        balance = await asyncio.to_thread(daemon.balance_nanos)
        text = f"{balance // 1_000_000_000}.{balance % 1_000_000_000:09d}0"
        await _until(lambda: any(one.body["data"]["balance"] == text for one in receiver.received))
        _check(receiver, made["webhook_secret"])


def _check(receiver: Receiver, secret: str) -> None:
    assert all(one.is_signed_with(secret) for one in receiver.received)
    first = receiver.ids()[0]
    assert receiver.ids().count(first) >= 2  # what was cut off came again
    bodies: dict[str, bytes] = {}
    for one in receiver.received:
        assert bodies.setdefault(one.body["id"], one.raw) == one.raw
    sequences = list(dict.fromkeys(one.body["sequence"] for one in receiver.received))
    assert sequences == sorted(sequences)


async def _call(client: httpx.AsyncClient, daemon: Daemon) -> None:
    response = await client.post(
        daemon.base_url + "forward/openai/v1/chat/completions",
        headers={"Authorization": f"Bearer {daemon.token('fixed')}"},
        json=_BODY,
    )
    assert response.status_code == 200


async def _until(look: Any, timeout_s: int = 40) -> None:
    """Waits for other processes, so there is no event to await."""
    async with asyncio.timeout(timeout_s):
        while not look():
            await asyncio.sleep(0.05)
