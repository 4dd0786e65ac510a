"""Gateway, control and worker as processes of their own: all they share is the engines and the master key."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from lava_proxy.stores.vault import new_master_key
from tests.daemon import until
from tests.engines import running_engines

_MODULE = [sys.executable, "-m", "lava_proxy"]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def _ask(url: str, key: str = "", **headers: str) -> tuple[int, Any]:
    """Status and body; 0 while nobody listens."""
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        with urlopen(Request(url, headers=headers), timeout=30) as response:
            return response.status, response.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()
    except (URLError, OSError):
        return 0, b""


@contextmanager
def _process(role: str, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as file:
        # whoever runs the tests may be under nohup, which children inherit and we respect
        default = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
        process = subprocess.Popen([*_MODULE, role], env=environment, stdout=file, stderr=file, preexec_fn=default)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_a_fleet_of_single_roles_serves_and_control_answers_only_its_gateways(tmp_path: Path) -> None:
    """J6: the control process' own port opens nothing that a gateway would not, whatever header is sent to it."""
    gateway_port, control_port = _free_port(), _free_port()
    with running_engines() as engines:
        common = {
            **{name: value for name, value in os.environ.items() if not name.startswith("LAVA_")},
            "LAVA_REDIS_URL": engines.redis_url,
            "LAVA_DATABASE_URL": engines.database_url,
            "LAVA_MASTER_KEY": new_master_key(),
        }

        def cli(*arguments: str) -> dict[str, Any]:
            done = subprocess.run([*_MODULE, *arguments], capture_output=True, text=True, env=common, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return found

        cli("migrate")
        of_control = common | {"LAVA_CONTROL_PORT": str(control_port)}
        of_gateway = common | {"LAVA_PORT": str(gateway_port), "LAVA_CONTROL_URL": f"http://localhost:{control_port}"}
        with (
            _process("worker", common, tmp_path / "worker.log") as worker,
            _process("control", of_control, tmp_path / "control.log") as control,
            _process("gateway", of_gateway, tmp_path / "gateway.log") as gateway,
        ):
            base = f"http://127.0.0.1:{gateway_port}"
            until(lambda: _ask(f"{base}/readyz")[0] == 200 or None, "a fleet that is ready")
            key = cli("merchant", "create", "--name", "Fleet", "--funds", "1.00")["secret_key"]
            status, body = _ask(f"{base}/v1/wallet", key)
            assert (status, json.loads(body)["balance"]) == (200, "1.00")
            direct = f"http://127.0.0.1:{control_port}"
            for headers in ({}, {"X-Lava-Hop": ""}, {"X-Lava-Hop": "forged"}, {"X-Lava-Hop": common["LAVA_MASTER_KEY"]}):
                status, body = _ask(f"{direct}/v1/wallet", key, **headers)
                assert (status, json.loads(body)["error"]["code"]) == (403, "not_from_a_gateway")
            assert [_ask(f"{direct}/{path}")[0] for path in ("healthz", "readyz", "metrics")] == [200, 200, 200]
            control.kill()
            control.wait()
            status, body = _ask(f"{base}/v1/wallet", key)
            assert (status, json.loads(body)["error"]["code"]) == (503, "control_unavailable")
            for process in (gateway, worker):
                process.send_signal(signal.SIGHUP)  # as when a terminal closes: an orderly end
                assert process.wait(60) == 0


def test_a_role_without_a_way_to_its_control_process_says_what_to_set() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LAVA_")}
    environment |= {"LAVA_REDIS_URL": "redis://x", "LAVA_DATABASE_URL": "postgresql://x", "LAVA_MASTER_KEY": new_master_key()}
    for role, wrong, named in (
        ("gateway", {}, "LAVA_CONTROL_URL"),
        ("control", {}, "LAVA_CONTROL_HOST"),
        ("gateway", {"LAVA_CONTROL_URL": "control:8081"}, "LAVA_CONTROL_URL"),
    ):
        done = subprocess.run([*_MODULE, role], capture_output=True, text=True, env=environment | wrong, timeout=60, check=False)
        assert done.returncode == 1 and named in done.stderr
