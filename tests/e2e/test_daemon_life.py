"""Starting, stopping, starting again; the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

from tests.daemon import Daemon, running, until


def _call(daemon: Daemon) -> str:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello."}]}
    request = Request(
        daemon.base_url + "forward/openai/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {daemon.token('fixed')}", "Content-Type": "application/json"},
    )
    with urlopen(request, timeout=30) as response:
        return str(response.headers["x-lava-request-id"])


def test_a_second_start_keeps_all_data_and_the_same_keys(tmp_path: Path) -> None:
    with running(tmp_path, "--workers", "1") as first:
        request_id = _call(first)
        balance = first.balance_nanos()
        keys = {name: first.info[name] for name in ("secret_key", "connection_secret", "forward_token", "self_forward_token")}
    assert first.process.returncode == 0
    with running(tmp_path, "--workers", "1") as second:
        assert {name: second.info[name] for name in keys} == keys
        assert second.balance_nanos() == balance
        assert second.row(request_id)["request_id"] == request_id
        second.audit()


def test_health_metrics_and_status_page_answer(daemon: Daemon) -> None:
    root = daemon.base_url.removesuffix("v1/")
    _call(daemon)
    for path, expected in (("healthz", b"ok"), ("readyz", b"ok"), ("", b"lava-proxy"), ("metrics", b"lava_requests_total")):

        def look(path: str = path, expected: bytes = expected) -> bool | None:
            with urlopen(root + path, timeout=30) as response:
                assert response.status == 200
                assert response.headers["x-lava-request-id"].startswith("req_")
                return expected in response.read() or None  # a worker publishes its figures once a second

        until(look, f"{expected!r} at /{path}")


def test_merchants_are_created_and_kept_apart_from_the_command_line(daemon: Daemon) -> None:
    made = daemon.cli("merchant", "create", "--name", "Second", "--funds", "5.00")
    assert made["secret_key"].startswith("aks_live_")
    assert daemon.get("wallet", made["secret_key"])["balance"] == "5.00"
    assert daemon.get("customers", made["secret_key"])["data"] == []


def test_token_inspect_hides_secrets(daemon: Daemon) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lava_proxy", "token", "inspect", daemon.token("fixed")], capture_output=True, text=True, check=True
    )
    shown = json.loads(done.stdout)
    assert shown["customer"] == daemon.info["connection_id"]
    assert shown["meter"] == "fixed"
    assert daemon.info["secret_key"] not in done.stdout
