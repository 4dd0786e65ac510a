"""The real daemon as a subprocess: started from the command line as a user does, stopped by SIGTERM."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

_START_TIMEOUT_S = 60
_PROVIDER_KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY")


@dataclass(kw_only=True)
class Daemon:
    """A running `lava-proxy dev`; `info` is its --json line."""

    process: subprocess.Popen[str]
    data_dir: Path
    info: dict[str, Any]
    log_path: Path
    environment: dict[str, str] = field(repr=False)
    _last_audit: str = field(default="", repr=False)

    @property
    def base_url(self) -> str:
        return str(self.info["base_url"])

    def token(self, meter: str) -> str:
        return str(self.info["meters"][meter]["forward_token"])

    def get(self, path: str, key: str | None = None) -> Any:
        """GET on the control plane as the merchant; numbers with a point arrive as Decimal."""
        request = Request(self.base_url + path, headers={"Authorization": f"Bearer {key or self.info['secret_key']}"})
        with urlopen(request, timeout=30) as response:
            return json.loads(response.read(), parse_float=Decimal)

    def balance_nanos(self, connection_id: str | None = None) -> int:
        """The customer's live balance."""
        text = self.get(f"customers/{connection_id or self.info['connection_id']}")["balance"]
        nanos = Decimal(text) * 1_000_000_000
        assert nanos == nanos.to_integral_value()
        return int(nanos)

    def row(self, request_id: str) -> dict[str, Any]:
        """A request's row, waited for until it has been flushed."""
        return until(lambda: self._row(request_id), f"a row of {request_id}")

    def _row(self, request_id: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self.get(f"requests/{request_id}")
            return found
        except HTTPError as error:
            if error.code == 404:
                return None
            raise

    def cli(self, *arguments: str) -> Any:
        """A command against this daemon; its JSON."""
        done = subprocess.run(
            [sys.executable, "-m", "lava_proxy", *arguments, "--data-dir", str(self.data_dir)],
            capture_output=True, text=True, timeout=120, env=self.environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stdout} {done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])

    def cli_token(self, connection_id: str, meter: str) -> str:
        """A forward token of the sandbox merchant for a customer and a meter."""
        members = {"secret_key": self.info["secret_key"], "customer_id": connection_id, "meter_slug": meter}
        return base64.b64encode(json.dumps(members).encode()).decode()

    def audit(self) -> dict[str, Any]:
        """The audit's report after the outbox has been flushed; fails on any violation."""
        try:
            report = until(self._settled_audit, "an empty outbox and no open holds", timeout_s=90)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._last_audit}\n{self.log_path.read_text()[-4000:]}") from error
        assert report["violations"] == []
        return report

    def _settled_audit(self) -> dict[str, Any] | None:
        done = subprocess.run(
            [sys.executable, "-m", "lava_proxy", "audit", "--json", "--data-dir", str(self.data_dir)],
            capture_output=True, text=True, timeout=120, env=self.environment, check=False,
        )  # fmt: skip
        self._last_audit = done.stdout + done.stderr
        if not done.stdout:
            return None  # an engine is just being restarted
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return report if not report["outbox"] and not report["holds_open"] else None

    def pid(self, name: str) -> int:
        """The present pid of one of the daemon's processes, by its role on the command line."""
        pids = [pid for pid, line in children(self.process.pid).items() if name in line]
        assert pids, f"no {name} among {children(self.process.pid)}"
        return pids[0]

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(120)


def children(parent: int) -> dict[int, str]:
    """All descendants of a process: pid -> command line."""
    lines: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                lines[int(entry.name)] = (int(status[1]), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    found: dict[int, str] = {}
    frontier = {parent}
    while frontier:
        frontier = {pid for pid, (ppid, _) in lines.items() if ppid in frontier and pid not in found}
        found.update({pid: lines[pid][1] for pid in frontier})
    return found


def until(look: Callable[[], Any], what: str, timeout_s: int = 30) -> Any:
    """What `look` returns once it is not None; polls another process, so there is nothing to await."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s} s for {what}")


@contextlib.contextmanager
def running(data_dir: Path, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[Daemon]:
    """`lava-proxy dev --json` on a free port; stopped at the end."""
    daemon = start(data_dir, *arguments, environment=environment)
    try:
        yield daemon
    finally:
        daemon.stop()


def start(data_dir: Path, *arguments: str, environment: dict[str, str] | None = None) -> Daemon:
    data_dir.mkdir(parents=True, exist_ok=True)
    environ = {name: value for name, value in os.environ.items() if name not in _PROVIDER_KEYS}
    environ.update(environment or {})
    log_path = data_dir / "daemon.log"
    with log_path.open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lava_proxy", "dev", "--json", "--port", "0", "--data-dir", str(data_dir), *arguments],
            stdout=subprocess.PIPE, stderr=log, text=True, env=environ,
        )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait(30)
        raise AssertionError(f"the daemon did not start: {log_path.read_text()[-3000:]}")
    return Daemon(process=process, data_dir=data_dir, info=json.loads(line), log_path=log_path, environment=environ)
