"""`lava-proxy serve` against engines of one's own, entered from the command line as its operator does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from lava_proxy.app import sandbox_provider
from lava_proxy.stores.vault import new_master_key
from tests.engines import RunningEngines, running_engines

_MODULE = [sys.executable, "-m", "lava_proxy"]


@pytest.fixture(scope="module")
def own_engines() -> Iterator[RunningEngines]:
    """A pair of its own: serve owns the whole Redis and its database."""
    with running_engines() as started:
        yield started


@pytest.fixture(scope="module")
def provider_url() -> Iterator[str]:
    """The sandbox provider on a thread of its own."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    servers: list[Any] = []

    async def start() -> None:
        servers.append(await sandbox_provider.serve())
        ready.set()

    def run() -> None:
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(servers[0].close())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    yield servers[0].base_url
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)


def test_an_operator_serves_from_an_empty_installation_to_a_charged_call(
    own_engines: RunningEngines, provider_url: str, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "LAVA_REDIS_URL": own_engines.redis_url,
        "LAVA_DATABASE_URL": own_engines.database_url,
        "LAVA_MASTER_KEY": new_master_key(),
        "LAVA_PORT": "0",
        "LAVA_WORKERS": "1",
    }

    def cli(*arguments: str, stdin: str | None = None) -> dict[str, Any]:
        done = subprocess.run(
            [*_MODULE, *arguments], capture_output=True, text=True, env=environment, input=stdin, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    with (tmp_path / "serve.log").open("w") as log:
        server = subprocess.Popen(
            [*_MODULE, "serve", "--json", "--provider", f"openai={provider_url}"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line, (tmp_path / "serve.log").read_text()
        base_url = json.loads(line)["base_url"]
        merchant = cli("merchant", "create", "--name", "Mine", "--funds", "5.00")
        cli("meter", "create", "--name", "Tokens", "--tier", "20")
        customer = cli("customer", "create", "--funds", "1.00", "--reference-id", "user-42")
        cli("provider-key", "set", "--provider", "openai", stdin="sk-a-stored-key-of-the-merchant\n")
        token = cli("token", "mint", "--secret-key", merchant["secret_key"], "--customer", "user-42", "--meter", "tokens")[
            "forward_token"
        ]
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello."}]}
        call = Request(
            base_url + "forward/openai/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        with urlopen(call, timeout=30) as response:
            usage = json.load(response)["usage"]
            request_id = response.headers["x-lava-request-id"]
        ask = Request(f"{base_url}requests/{request_id}", headers={"Authorization": f"Bearer {merchant['secret_key']}"})
        with urlopen(ask, timeout=30) as response:
            row = json.load(response)
        assert row["customer_id"] == customer["customer_id"]
        assert row["provider_key_type"] == "stored"
        assert row["charge"]["amount"] == f"0.{usage['total_tokens'] * 20_000 * 10:010d}"
        assert cli("rebuild", "--json")["wallets"] == 2
        assert cli("rebuild", "--rollups", "--json")["met"] is True
        with urlopen(Request(f"{base_url}customers/user-42", headers=dict(ask.header_items())), timeout=30) as response:
            assert json.load(response)["balance"] == f"0.{1_000_000_000 - usage['total_tokens'] * 20_000:09d}0"
        assert cli("audit", "--json")["violations"] == []
        again = cli("audit", "--rerate", "--since", "2020-01-01", "--json")
        assert (again["met"], again["rows"], again["charge_nanos_again"]) == (True, 1, usage["total_tokens"] * 20_000)
        assert cli("keys", "rotate")["provider_key"] == {"resealed": 0, "already": 1}
        assert cli("customer", "limit", "user-42", "--requests", "1/total")["request_limit"] == {"count": 1, "cycle": "total"}
        made = cli("spend-key", "create", "--name", "Team", "--model", "gpt-4o*", "--spend", "1.00/daily", "--concurrency", "2",
                   "--requests", "1/total")  # fmt: skip
        assert (made["spend_limit"], made["allowed_models"]) == ({"amount": "1.00", "cycle": "daily"}, ["gpt-4o*"])
        bearer = {"Authorization": f"Bearer {made['key']}", "Content-Type": "application/json"}
        short = Request(base_url + "chat/completions", data=json.dumps(body).encode(), headers=bearer)
        with urlopen(short, timeout=30) as response:
            assert response.status == 200
        with pytest.raises(HTTPError) as refused, urlopen(short, timeout=30):
            pass
        assert refused.value.code == 429
        refused.value.close()
        with urlopen(Request(base_url + "models", headers=bearer), timeout=30) as response:
            assert all(item["id"].startswith("gpt-4o") for item in json.load(response)["data"])
        shown = Request(f"{base_url}spend_keys/{made['spend_key_id']}", headers=dict(ask.header_items()))
        with urlopen(shown, timeout=30) as response:
            counted = json.load(response)
        assert counted["total_requests"] == 1 and counted["current_spend"] == counted["total_spend"] != "0.0000000000"
        assert cli("audit", "--json")["violations"] == []
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
        assert server.stdout is not None
        server.stdout.close()


def test_serve_without_its_settings_names_them() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LAVA_")}
    done = subprocess.run([*_MODULE, "serve"], capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 1
    for name in ("LAVA_REDIS_URL", "LAVA_DATABASE_URL", "LAVA_MASTER_KEY"):
        assert name in done.stderr
