"""Valkey and PostgreSQL as child processes on Unix sockets: real engines for `dev` and the tests, nothing to install.

One code path everywhere: the rest of the program only ever sees two URLs; production replaces them. `engine_sources` finds the
programs, `engine_process` runs one of them; here both are started on a data folder that nobody else holds.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lava_proxy.app.engine_process import PG_PORT, EngineProcess, Postgres, Valkey
from lava_proxy.app.engine_sources import EngineError, EngineOptions, locate_redis

SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un.sun_path is 108 bytes with its terminator (unix(7))


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
        self._redis: Valkey | None = None
        self._postgres: Postgres | None = None
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
            self._redis = Valkey(locate_redis(options), data_dir / "redis", run_dir, log_dir, options)
            self._redis.spawn()
        if options.database_url is None:
            self._postgres = Postgres(data_dir, run_dir, log_dir, options)
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
        children: list[EngineProcess | None] = [self._redis, self._postgres]
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
        children: list[EngineProcess | None] = [self._postgres, self._redis]
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
