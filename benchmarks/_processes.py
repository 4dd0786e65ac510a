"""Starting, pinning and reading processes through /proc (Linux only)."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def compiled(name: str) -> Path:
    """The program benchmarks/NAME.c, compiled when the source is newer. Raises SystemExit without a compiler."""
    source, program = FOLDER / f"{name}.c", FOLDER / "bin" / name
    if program.exists() and program.stat().st_mtime >= source.stat().st_mtime:
        return program
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise SystemExit("a C compiler is needed: apt-get install -y gcc libc6-dev")
    program.parent.mkdir(exist_ok=True)
    fresh = program.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, "-O2", "-o", str(fresh), str(source)], check=True)
    fresh.replace(program)
    return program


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Children started inside inherit the core. On a machine with one core: no pinning."""
    before = os.sched_getaffinity(0)
    if core in before:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin(pid: int, core: int) -> None:
    """Move every thread of a running process."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            os.sched_setaffinity(int(task.name), {core})


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.parent.name))
    found = [pid]
    for member in found:
        found.extend(parents.get(member, []))
    return found


def command_of(pid: int) -> str:
    """The command line or title; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def cpu_us(pids: list[int]) -> float:
    """User and system time of all their threads so far, in microseconds (schedstat counts nanoseconds; `time` in stat
    would count hundredths of a second)."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with suppress(OSError):
                total += int(task.read_text().split()[0])
    return total / 1000


def group_cpu_us(groups: dict[str, list[int]]) -> dict[str, float]:
    """CPU of each group so far. Postgres has a process a connection, so its group is its first process and what that has by now."""
    found = {name: family(pids[0]) if name == "postgres" and pids else pids for name, pids in groups.items()}
    return {name: cpu_us(pids) for name, pids in found.items()}


def memory_kb(pids: list[int]) -> int:
    """Proportional set size: shared pages count once, divided among those who share them."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total


def stop(process: subprocess.Popen[str], timeout_s: float = 20) -> None:
    """Ask, wait, then insist; the pipes are closed."""
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def machine() -> dict[str, Any]:
    """Where a report was made."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}
