"""An embedded engine as a child process: who it runs as, how it is started, asked, and stopped.

Engines die with the process that started them (PR_SET_PDEATHSIG), so a killed `dev` leaves nothing behind. The signal
fires when the *thread* that forked ends: start and restart them from the main thread.

PostgreSQL refuses uid 0. For root the server runs in a user namespace that shows uid 0 as `nobody`; no user is made, no
file changes hands. Where namespaces are denied (many containers) it is started as another user by setuid.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lava_proxy.app.engine_sources import (
    EngineError,
    EngineOptions,
    PgBinaries,
    clean_environment,
    copy_binaries,
    locate_postgres,
    run_tool,
)

DropMode = Literal["none", "userns", "setuid"]

PG_PORT = 5432  # only part of the socket's name: `.s.PGSQL.5432`
STOP_TIMEOUT_S = 20.0
POLL_S = 0.01
NAMESPACE_UID = 65534  # initdb looks its uid up in /etc/passwd; `nobody` is there on every Debian

# The order matters: become someone else, then ask for the death signal (a change of uid clears it), then check that the
# parent did not die in between, then become the engine. Plain Python because 3.11 has no os.unshare.
SHIM = """
import ctypes, os, signal, sys
parent, death_signal, drop, uid, gid = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
command = sys.argv[6:]
if drop == "userns":
    euid, egid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000) != 0:
        sys.exit("user namespaces are denied here: " + os.strerror(ctypes.get_errno()))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {euid} 1"), ("gid_map", f"{gid} {egid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
elif drop == "setuid":
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, death_signal, 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("the parent is gone")
os.execv(command[0], command)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """How a child sheds uid 0: not at all, in a namespace, or as another user."""

    mode: DropMode = "none"
    uid: int = 0
    gid: int = 0

    def wrap(self, command: list[str], death_signal: int) -> list[str]:
        """The command that becomes this user, ties its life to ours, and execs."""
        facts = [str(os.getpid()), str(int(death_signal)), self.mode, str(self.uid), str(self.gid)]
        return [sys.executable, "-I", "-S", "-c", SHIM, *facts, *command]


NAMESPACE_DROP = Drop(mode="userns", uid=NAMESPACE_UID, gid=NAMESPACE_UID)


def choose_drop(options: EngineOptions) -> Drop:
    """How Postgres will run. Raises EngineError when root has no way or the named user does not exist."""
    if os.geteuid() != 0:
        return Drop()
    if options.user is None and options.root_mode != "setuid":
        probe = run_tool(NAMESPACE_DROP.wrap(["/bin/true"], signal.SIGTERM))
        if probe.returncode == 0:
            return NAMESPACE_DROP
        if options.root_mode == "userns":
            raise EngineError(f"LAVA_EMBED_ROOT_MODE=userns: {probe.stderr.strip()}")
    for name in (options.user,) if options.user else ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid == 0:
                raise EngineError("LAVA_EMBED_USER: PostgreSQL does not run as root; name another user")
            return Drop(mode="setuid", uid=entry.pw_uid, gid=entry.pw_gid)
    raise EngineError(
        f"PostgreSQL does not run as root and there is no user {options.user or 'postgres or nobody'}: "
        "set LAVA_EMBED_USER, run as an ordinary user, or set LAVA_DATABASE_URL"
    )


class EngineProcess:
    """One engine: spawn, wait until it answers, stop. Subclasses say the command and how to ask."""

    name = ""
    stop_signal = signal.SIGTERM

    def __init__(self, log_path: Path, socket_path: Path, start_timeout_s: float) -> None:
        self.socket_path = socket_path
        self._log_path = log_path
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        """One question over the socket; OSError or False while it is not ready."""
        raise NotImplementedError

    def spawn(self) -> None:
        with self._log_path.open("ab") as log:
            # Its own session, or Ctrl-C at a terminal would stop the engines before the calls in flight are settled.
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
                start_new_session=True,
            )

    def _wait_until_alone(self, home: Path) -> None:
        """Until no process of an earlier run works in the data folder."""
        deadline = time.monotonic() + self._start_timeout_s
        while _somebody_works_in(home):
            if time.monotonic() > deadline:
                raise EngineError(f"processes of an earlier {self.name} still work in {home}")
            time.sleep(POLL_S)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            with suppress(OSError):
                if self.answers():
                    return
            if not self.alive():
                raise EngineError(f"{self.name} ended at start; the end of {self._log_path}:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                waited = f"{self.name} did not answer in {self._start_timeout_s:g} s"
                raise EngineError(f"{waited}; the end of {self._log_path}:\n{self._log_tail()}")
            time.sleep(POLL_S)

    def restart(self) -> int:
        if self.alive():
            self.ask_to_stop()
            self.wait_stopped()
        self.spawn()
        self.wait_ready()
        return self.pid

    def ask_to_stop(self) -> None:
        if self.alive():
            assert self._process is not None
            self._process.send_signal(self.stop_signal)

    def wait_stopped(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _log_tail(self) -> str:
        with suppress(OSError):
            return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-12:])
        return "(no log)"

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(self.socket_path))
            yield connection


class Valkey(EngineProcess):
    name = "redis"

    def __init__(self, binary: Path, home: Path, run_dir: Path, log_dir: Path, options: EngineOptions) -> None:
        super().__init__(log_dir / "redis.log", run_dir / "redis.sock", options.start_timeout_s)
        self._binary = binary
        self._home = home
        home.mkdir(exist_ok=True, mode=0o700)

    def command(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self._home),
            "daemonize": "no",
            # A debit that was answered must survive a power cut; and a full memory must refuse, not forget balances.
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        flags = [part for key, value in settings.items() for part in (f"--{key}", value)]
        return Drop().wrap([str(self._binary), *flags], signal.SIGTERM)

    def spawn(self) -> None:
        """Not beside a predecessor that is still shutting down: both would write the append-only file, and its last act is
        to remove the socket, by then ours."""
        self._wait_until_alone(self._home)
        super().spawn()

    def answers(self) -> bool:
        with self._connected() as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")  # -LOADING while it replays its file


class Postgres(EngineProcess):
    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": roll back, disconnect, write a checkpoint

    def __init__(self, data_dir: Path, run_dir: Path, log_dir: Path, options: EngineOptions) -> None:
        super().__init__(log_dir / "postgres.log", run_dir / f".s.PGSQL.{PG_PORT}", options.start_timeout_s)
        self._run_dir = run_dir
        self._home = data_dir / "pg"
        self._drop = choose_drop(options)
        pg = locate_postgres(options, _data_major(self._home))
        if self._drop.mode == "setuid":
            pg = self._open_to_user(pg, data_dir)
        self._pg = pg
        if not (self._home / "PG_VERSION").exists():
            self._create()
        self._own(self._home)
        self._own(run_dir, recurse=False)

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._run_dir),
            "unix_socket_permissions": "0700",
            "port": str(PG_PORT),
            "timezone": "UTC",
            "log_timezone": "UTC",
            "jit": "off",  # short statements only; compiling them costs more than running them
        }
        flags = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return self._drop.wrap([str(self._pg.bindir / "postgres"), "-D", str(self._home), *flags], signal.SIGINT)

    def spawn(self) -> None:
        self._clear_stale_pid_file()
        super().spawn()

    def answers(self) -> bool:
        """Speak the first message of the protocol (postgresql.org/docs/current/protocol-flow.html): an authentication
        answer means ready; an error means "the database system is starting up"."""
        startup = struct.pack("!i", 196608) + b"user\0lava\0database\0lava\0\0"
        with self._connected() as connection:
            connection.sendall(struct.pack("!i", len(startup) + 4) + startup)
            ready = connection.recv(1) == b"R"
            if ready:
                connection.sendall(b"X\0\0\0\4")
            return ready

    def wait_stopped(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)  # "immediate": children go too, WAL recovery at the next start
            super().wait_stopped()

    def _create(self) -> None:
        """initdb and CREATE DATABASE in a folder beside, then rename: no half-made folder passes for a whole one."""
        fresh = self._home.with_name("pg.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        self._own(fresh)
        # C.UTF-8 without the C library's tables, so that an upgrade of the system cannot reorder indexes; new in 17.
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if self._pg.major >= 17 else []
        self._tool("initdb", "-D", str(fresh), "-U", "lava", "--auth=trust", "-E", "UTF8", "--locale=C", *locale)
        self._tool("postgres", "--single", "-D", str(fresh), "postgres", stdin="CREATE DATABASE lava;\n")
        fresh.rename(self._home)

    def _tool(self, name: str, *arguments: str, stdin: str = "") -> None:
        done = run_tool(self._drop.wrap([str(self._pg.bindir / name), *arguments], signal.SIGTERM), stdin)
        if done.returncode != 0 or "ERROR:" in done.stderr:
            raise EngineError(f"{name} failed: {(done.stderr or done.stdout).strip()[-2000:]}")

    def _own(self, folder: Path, *, recurse: bool = True) -> None:
        """As root, give the folder to whom the server runs as (a namespace's `nobody` is uid 0 outside)."""
        uid, gid = (self._drop.uid, self._drop.gid) if self._drop.mode == "setuid" else (0, 0)
        if os.geteuid() != 0 or folder.stat().st_uid == uid:
            return
        os.chown(folder, uid, gid)
        if recurse:
            for parent, folders, files in os.walk(folder):
                for name in (*folders, *files):
                    os.chown(Path(parent) / name, uid, gid, follow_symlinks=False)

    def _open_to_user(self, pg: PgBinaries, data_dir: Path) -> PgBinaries:
        """Make binaries and data reachable for the other user: data_dir becomes passable, a wheel in a closed folder
        (a venv below /root) is copied into it. Raises EngineError when a parent is closed to that user."""
        data_dir.chmod(data_dir.stat().st_mode | 0o711)
        if run_tool(self._drop.wrap(["/usr/bin/test", "-x", str(data_dir)], signal.SIGTERM)).returncode != 0:
            raise EngineError(
                f"{data_dir} cannot be reached by uid {self._drop.uid}, and PostgreSQL does not run as root: choose a "
                "--data-dir outside root's home, run as an ordinary user, or set LAVA_DATABASE_URL"
            )
        probe = run_tool(self._drop.wrap([str(pg.bindir / "postgres"), "--version"], signal.SIGTERM))
        return pg if probe.returncode == 0 else copy_binaries(pg, data_dir)

    def _clear_stale_pid_file(self) -> None:
        """After a kill -9, orphaned backends may live on for a moment, and the pid in postmaster.pid may by now be
        another program's (always so in a new container): Postgres then refuses to start. We hold the folder's lock, so
        once nobody works in the data folder the file is stale for certain."""
        pid_file = self._home / "postmaster.pid"
        if pid_file.exists():
            self._wait_until_alone(self._home)
        if sys.platform == "linux":
            pid_file.unlink(missing_ok=True)


def _data_major(home: Path) -> int | None:
    try:
        return int((home / "PG_VERSION").read_text().strip())
    except (OSError, ValueError):
        return None


def _somebody_works_in(folder: Path) -> bool:
    """Is this some process' working directory, as its data folder is for every PostgreSQL process? Linux only."""
    wanted = os.path.realpath(folder)
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if os.readlink(entry) == wanted:
                return True
    return False
