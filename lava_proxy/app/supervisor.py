"""The parent of `dev` and `serve`: engines (dev), sockets, children; restarts what dies; ends everything in order.

It holds one SO_REUSEPORT socket a gateway worker, so that a killed worker's queued connections wait for its successor instead of
being refused. Order of ending: gateways (stop accepting, finish, settle), control, worker (last flush), engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import structlog
from prometheus_client.multiprocess import mark_process_dead

from lava_proxy.app import sandbox
from lava_proxy.app.card_payments import open_card_payments
from lava_proxy.app.embedded import EmbeddedEngines
from lava_proxy.app.engine_sources import ROOT_MODES, EngineError, EngineOptions
from lava_proxy.app.open_stores import open_stores, registry_of
from lava_proxy.app.run_config import RunConfig, parse_overrides
from lava_proxy.app.run_folder import RunFolder
from lava_proxy.billing.funding import Funding
from lava_proxy.domain.errors import CallerError, LavaError
from lava_proxy.settings import Settings
from lava_proxy.stores import postgres
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.dashboard_sessions import DashboardSessions
from lava_proxy.stores.dashboard_store import DashboardStore
from lava_proxy.stores.vault import Vault

_READY_TIMEOUT_S = 45.0
_POLL_S = 0.1
_STOP_MARGIN_S = 15
_SANDBOX_PROVIDERS = ("openai", "anthropic", "google")
_log = structlog.get_logger("supervisor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Of the command line."""

    host: str
    port: int
    workers: int
    data_dir: Path
    providers: tuple[str, ...] = ()
    as_json: bool = False
    clock_file: str | None = None


class _Child:
    """One supervised process; `command` makes it again."""

    def __init__(self, name: str, command: Callable[[], subprocess.Popen[str]], on_death: Callable[[int], None]) -> None:
        self.name = name
        self._command = command
        self._on_death = on_death
        self.process = command()
        self._started = time.monotonic()
        self._delay_s = 0.0
        self._retry_at = 0.0

    def keep(self) -> None:
        """Restart it when it has died: at once, and with growing pauses when it keeps dying young."""
        if self.process.poll() is None:
            return
        now = time.monotonic()
        if self._retry_at == 0.0:
            young = now - self._started < 5
            self._delay_s = min(max(self._delay_s * 2, 0.2), 5.0) if young else 0.0
            self._retry_at = now + self._delay_s
            self._on_death(self.process.pid)
            _log.error("A process died", action="child_died", child=self.name, status=self.process.returncode)
        if now >= self._retry_at:
            self._retry_at = 0.0
            self._started = now
            self.process = self._command()

    def stop(self, timeout_s: float) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            _log.error("A process did not stop in time", action="child_killed", child=self.name)
            self.process.kill()
            self.process.wait()


class Supervisor:
    """Runs one installation on one machine until a signal."""

    def __init__(self, options: Options, settings: Settings) -> None:
        self._options = options
        self._settings = settings
        self._engines = EmbeddedEngines()
        self._children: list[_Child] = []
        self._sockets: list[socket.socket] = []
        self._stopping = False
        self._run_folder: RunFolder | None = None

    # -- dev

    def run_dev(self) -> int:
        """Embedded engines, sandbox, everything on one port."""
        self._on_signals()
        options = self._options
        data_dir = options.data_dir
        environment = self._settings.environment
        asked = environment.get("LAVA_EMBED_ROOT_MODE", "auto")
        root_mode = next((mode for mode in ROOT_MODES if mode == asked), None)
        if root_mode is None:
            raise CallerError(f"LAVA_EMBED_ROOT_MODE must be auto, userns or setuid, not {asked!r}.")
        engines = self._engines.start(
            data_dir,
            EngineOptions(
                redis_url=environment.get("LAVA_REDIS_URL") or None,
                database_url=environment.get("LAVA_DATABASE_URL") or None,
                redis_bin=environment.get("LAVA_REDIS_BIN"),
                pg_bindir=environment.get("LAVA_PG_BINDIR"),
                user=environment.get("LAVA_EMBED_USER"),
                root_mode=root_mode,
                search_path=environment.get("PATH", os.defpath),
            ),
        )
        try:
            secrets = sandbox.load_secrets(data_dir)
            if environment.get("LAVA_MASTER_KEY"):
                secrets.master_key = environment["LAVA_MASTER_KEY"]
            self._bind()
            config = RunConfig(
                redis_url=engines.redis_url,
                database_url=engines.database_url,
                master_key=secrets.master_key,
                control_socket=str(engines.run_dir / "control.sock"),
                base_url=self._base_url(),
                overrides=parse_overrides(options.providers),
                dev=True,
                clock_file=options.clock_file,
                first_call=FIRST_CALL.format(base_url=self._base_url(), forward_token=secrets.forward_token()),
                program=environment.get("LAVA_PROGRAM", "lava-proxy"),
                data_dir="" if data_dir == Path(".lava") else str(data_dir),
            )
            asyncio.run(_migrate(config))
            config = self._with_sandbox(config)
            sandbox.write_private(
                data_dir / "daemon.json",
                {"pid": os.getpid(), "config": config.to_json()},
            )
            self._start_children(config)
            summary = asyncio.run(_seed(config, self._settings, secrets, data_dir))
            if self._wait_ready():
                self._announce(summary, config)
            self._watch()
        finally:
            self._stop()
            (data_dir / "daemon.json").unlink(missing_ok=True)
            self._engines.stop()
        return 0

    def _with_sandbox(self, config: RunConfig) -> RunConfig:
        """Route the providers without a key to the built-in sandbox provider."""
        registry = registry_of(config, self._settings)
        keys = self._settings.provider_keys({p.name: p.key_env for p in registry.providers})
        overridden = {provider.name for provider in registry.providers if provider.override is not None}
        missing = [name for name in _SANDBOX_PROVIDERS if name not in keys and name not in overridden]
        if not missing:
            return config
        listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        listening.set_inheritable(True)
        port = listening.getsockname()[1]
        self._sockets.append(listening)
        self._spawn("sandbox", config, ["sandbox-provider", "--fd", str(listening.fileno())], [listening.fileno()])
        overrides = {**config.overrides, **{name: f"http://127.0.0.1:{port}" for name in missing}}
        return replace(config, overrides=overrides, sandboxed=tuple(missing))

    # -- serve

    def run_serve(self, config: RunConfig) -> int:
        """The same against given engines; no seeding."""
        self._on_signals()
        try:
            self._bind()
            config = replace(
                config,
                base_url=config.base_url or self._base_url(),
                control_socket=config.control_socket or f"{self._private_dir()}/control.sock",
            )
            is_new = asyncio.run(_migrate(config))
            self._start_children(config)
            if not self._wait_ready():
                return 0
            url = config.base_url.removesuffix("v1/")
            if self._options.as_json:
                print(json.dumps({"base_url": config.base_url, "dashboard_url": url}), flush=True)
            else:
                print(f"lava-proxy serves {config.base_url} (status page: {url})", flush=True)
                command = config.command('merchant create --name "My company"' if is_new else "dashboard link")
                print((_FIRST_MERCHANT if is_new else _SIGN_IN).format(url=url, command=command), flush=True)
            self._watch()
        finally:
            self._stop()
        return 0

    # -- both

    def _on_signals(self) -> None:
        def stop(number: int, frame: Any) -> None:
            if self._stopping:
                raise KeyboardInterrupt
            self._stopping = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it means nothing
            signal.signal(signal.SIGHUP, stop)  # the terminal closes: end in order, as for SIGTERM

    def _bind(self) -> None:
        """One listening socket a worker; port 0 takes a free one."""
        host, port = self._options.host, self._options.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        for _ in range(self._options.workers):
            bound = socket.socket(family, socket.SOCK_STREAM)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if not self._sockets and port:
                # Without SO_REUSEPORT the first bind fails when somebody else has the port, as it should.
                probe = socket.socket(family, socket.SOCK_STREAM)
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError as error:
                    raise CallerError(f"{host}:{port} cannot be used ({error.strerror}); choose another with --port.") from error
                finally:
                    probe.close()
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                bound.bind((host, port))
            except OSError as error:
                raise CallerError(f"{host}:{port} cannot be used ({error.strerror}); choose another with --port.") from error
            port = bound.getsockname()[1]
            bound.set_inheritable(True)
            self._sockets.append(bound)
        self._gateway_sockets = list(self._sockets)
        self._port = port

    def _base_url(self) -> str:
        host = self._options.host
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{shown}:{self._port}/v1/"

    def _private_dir(self) -> str:
        """Of this run: the processes' metrics, and `serve`'s control socket."""
        if self._run_folder is None:
            self._run_folder = RunFolder()
        return str(self._run_folder.path)

    def _start_children(self, config: RunConfig) -> None:
        self._spawn("worker", config, ["worker"], [])
        self._spawn("control", config, ["control"], [])
        for number, bound in enumerate(self._gateway_sockets):
            self._spawn(f"gateway-{number}", config, ["gateway", "--fd", str(bound.fileno())], [bound.fileno()])

    def _spawn(self, name: str, config: RunConfig, arguments: list[str], descriptors: list[int]) -> None:
        def start() -> subprocess.Popen[str]:
            environment = dict(self._settings.environment)
            environment["PROMETHEUS_MULTIPROC_DIR"] = self._private_dir()
            process = subprocess.Popen(
                [sys.executable, "-m", "lava_proxy", *arguments, "--supervised"],
                stdin=subprocess.PIPE,
                stdout=sys.stderr,
                pass_fds=descriptors,
                start_new_session=True,
                env=environment,
                text=True,
            )
            assert process.stdin is not None
            process.stdin.write(config.to_json())
            process.stdin.close()
            return process

        self._children.append(_Child(name, start, self._forget_gauges))

    def _forget_gauges(self, pid: int) -> None:
        """A dead process has no open streams or connections any more."""
        mark_process_dead(pid, self._private_dir())  # type: ignore[no-untyped-call]

    def _wait_ready(self) -> bool:
        """Until /readyz answers 200 through a gateway worker; False when a signal came first."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        host = self._base_url().split("//", 1)[1].rsplit(":", 1)[0].strip("[]")
        last = "no answer"
        while time.monotonic() < deadline and not self._stopping:
            for child in self._children:
                child.keep()
            with contextlib.suppress(OSError):
                connection = HTTPConnection(host, self._port, timeout=2)
                try:
                    connection.request("GET", "/readyz")
                    response = connection.getresponse()
                    last = f"{response.status} {response.read().decode()[:300]}"
                    if response.status == 200:
                        return not self._stopping
                finally:
                    connection.close()
            time.sleep(0.03)
        if not self._stopping:
            raise LavaError(f"The server did not become ready in {_READY_TIMEOUT_S:.0f} s; the last answer was: {last}")
        return False

    def _announce(self, summary: dict[str, Any], config: RunConfig) -> None:
        summary["pids"] = {child.name: child.process.pid for child in self._children} | {
            name: pid
            for name, pid in (
                ("redis", self._engines.engines().redis_pid),
                ("postgres", self._engines.engines().postgres_pid),
            )
            if pid
        }
        summary["gateway_pids"] = [child.process.pid for child in self._children if child.name.startswith("gateway")]
        if self._options.as_json:
            print(json.dumps(summary), flush=True)
            return
        routed = [name for name in _SANDBOX_PROVIDERS if "127.0.0.1" in config.overrides.get(name, "")]
        answering = f"{', '.join(routed)} answer from the built-in sandbox provider (no key is set)." if routed else ""
        link_command = config.command("dashboard link")
        print(_BANNER.format(**summary, sandbox=answering, first_call=config.first_call, link_command=link_command), flush=True)

    def _watch(self) -> None:
        """Until a signal: keep engines and children alive."""
        while not self._stopping:
            for name in self._engines.poll():
                _log.error("An engine died and is started again", action="engine_died", engine=name)
                try:
                    if name == "redis":
                        self._engines.restart_redis()
                    else:
                        self._engines.restart_postgres()
                except EngineError as error:  # calls wait or go on without it; the next look tries again
                    _log.error("An engine did not come back", action="engine_lost", engine=name, error=str(error)[:500])
            for child in self._children:
                child.keep()
            time.sleep(_POLL_S)

    def _stop(self) -> None:
        self._stopping = True
        gateways = [child for child in self._children if child.name.startswith("gateway")]
        for child in gateways:
            if child.process.poll() is None:
                child.process.terminate()
        for bound in self._sockets:
            bound.close()
        for child in gateways:
            child.stop(2 * self._settings.upstream.stop_timeout_s + _STOP_MARGIN_S)
        for child in reversed([child for child in self._children if child not in gateways]):
            child.stop(_STOP_MARGIN_S)
        if self._run_folder is not None:
            self._run_folder.remove()


FIRST_CALL = """\
curl -N {base_url}forward/openai/v1/chat/completions \\
  -H "Authorization: Bearer {forward_token}" \\
  -H "Content-Type: application/json" \\
  -d '{{"model":"gpt-4o-mini","stream":true,"messages":[{{"role":"user","content":"Say hello."}}]}}'"""

_BANNER = """
lava-proxy is ready. A first metered call:

{first_call}

What it cost:

curl {base_url}requests -H "Authorization: Bearer {secret_key}"

  secret key          {secret_key}
  customer            {connection_id}  ($25.00 to start with; meter "fixed": $0.02 per 1K tokens)
  self forward token  {self_forward_token}
  dashboard           {dashboard_link}
                      (signs in once, within an hour; another: {link_command})
  {sandbox}
"""


_FIRST_MERCHANT = """
There is no merchant yet. In another terminal, with the same LAVA_ variables, this makes the first one; it prints a secret key
and a link that signs your browser in to the dashboard, which leads on from there:

  {command}
"""

_SIGN_IN = """
Dashboard: {url}dashboard, by a secret key or by the link that this prints in another terminal with the same LAVA_ variables:

  {command}
"""


async def _migrate(config: RunConfig) -> bool:
    """Bring the database up to date; is there no merchant in it yet?"""
    await postgres.migrate(config.database_url)
    pool = await postgres.connect(config.database_url, size_max=1)
    try:
        await CatalogStore(pool, Vault(config.master_key, (config.previous_master_key,))).check_master_key()
        return not await DashboardStore(pool).has_merchant()
    finally:
        await pool.close()


async def _seed(config: RunConfig, settings: Settings, secrets: sandbox.Secrets, data_dir: Path) -> dict[str, Any]:
    """What `dev` prints. Whatever goes wrong is told in a sentence: nobody who tries this out can do anything with a traceback."""
    try:
        return await _seeded(config, settings, secrets, data_dir)
    except LavaError as error:
        raise LavaError(f"The sandbox could not be set up: {error.message}") from error
    except Exception as error:
        said = f"{type(error).__name__}: {error}".rstrip(".")
        raise LavaError(
            f"The sandbox could not be set up ({said}). Its data is in {data_dir}; --data-dir names another place."
        ) from error


async def _seeded(config: RunConfig, settings: Settings, secrets: sandbox.Secrets, data_dir: Path) -> dict[str, Any]:
    stores = await open_stores(config, settings, pool_max=2)
    try:
        if not await stores.hot.wait_ready(_READY_TIMEOUT_S):
            raise LavaError("Redis was not verified against Postgres in time; see the worker's log lines above.")
        funding = Funding(stores.catalog, stores.balances, stores.catalog.clock)
        summary = await sandbox.seed(stores.catalog, funding, secrets, data_dir, config.base_url)
        cards = open_card_payments(stores.pool, funding, config, settings)
        try:
            await sandbox.seed_card(cards, summary["merchant_id"], stores.catalog)
        finally:
            await cards.close()
        code = await DashboardSessions(stores.redis).create_link(summary["merchant_id"])
        return summary | {"dashboard_link": f"{summary['dashboard_url']}dashboard/enter/{code}"}
    finally:
        await stores.close()
