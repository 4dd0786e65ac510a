"""What a call through the gateway costs: CPU a request and a streamed chunk, added latency, memory a stream.

Subjects, run in turn for several rounds: `direct` (no proxy), `nginx` (plain, benchmarks/nginx.conf), `lava` (keys,
price, reserve, settle, ledger: everything on). The proxy under test has core 1 to itself; the provider (upstream.c),
the load (load.c), Redis, Postgres and the control process share core 0. Each round: 1,000 held streams; 64 connections
at full speed; an open loop at a fixed rate. CPU is user+sys of all threads, from /proc/PID/task/*/schedstat.

    cpu_us_per_request     full speed; the process that proxies (for lava the gateway worker; beside it stand redis_,
                           postgres_ and control_cpu_us_per_request: control process, flusher, supervisor)
    cpu_us_per_chunk       1,000 streams; what opening and ending a stream costs is spread over its chunks
    added_p50_us, _p99_us  open loop, counted from the planned time, minus `direct` of the same round
    kb_per_stream          proportional memory with 1,000 streams open minus before, first round, fresh process
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import _processes as processes

LOAD_CORE, PROXY_CORE = 0, 1
CONNECTIONS = 64
BODY_BYTES = 933
START_TIMEOUT_S = 90
DIRECT_PATH = "/v1/chat/completions"
LAVA_PATH = "/v1/forward/openai/v1/chat/completions"

# At most. Ratios to nginx in the same run hold on any machine; the rest are absolute.
TARGETS = {
    "cpu_us_per_request_vs_nginx": 3.0,
    "cpu_us_per_chunk_vs_nginx": 1.4,
    "added_p99_us": 1_000.0,
    "kb_per_stream": 16.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long everything takes, in seconds, and how much of it."""

    rounds: int = 5
    closed: tuple[float, float] = (1.0, 3.0)  # warm-up, window
    open_loop: tuple[float, float] = (0.5, 4.0)
    streams: tuple[float, float] = (2.5, 4.0)
    rate: int = 500
    stream_count: int = 1_000
    chunks: int = 100  # a stream: 5 s at 20 chunks a second
    interval_ms: int = 50


QUICK = Plan(rounds=1, closed=(0.3, 0.7), open_loop=(0.3, 0.7), streams=(1.5, 1.0), stream_count=200, chunks=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Something to send the load to. Groups name the processes whose CPU is counted apart."""

    name: str
    port: int
    requests: dict[str, Path]  # "plain", "stream" -> file with a whole request
    proxy: list[int] = field(default_factory=list)
    groups: dict[str, list[int]] = field(default_factory=dict)


def main() -> int:
    """Run, print a table (or JSON as the last line); 1 when a target is missed or a subject fails."""
    options = parse_arguments()
    raise_open_files()
    plan = QUICK if options.quick else Plan()
    if options.rounds:
        plan = Plan(**{**{name: getattr(plan, name) for name in plan.__slots__}, "rounds": options.rounds})
    wanted = options.subjects.split(",")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lava-bench-")))
        upstream_port = stack.enter_context(running_upstream(plan))
        subjects: list[Subject] = []
        for name, start in STARTERS.items():
            if name in wanted or name == "direct":
                subject = start(stack, folder, upstream_port)
                if subject is not None:
                    subjects.append(subject)
        runs = run_rounds(subjects, plan, say=lambda text: print(text, file=sys.stderr, flush=True))
    report = summarise(runs, plan)
    if not options.json:
        print(table(report))
    if options.save:
        Path(options.save).write_text(json.dumps(report, indent=2) + "\n")
    if options.json:
        print(json.dumps(report))
    return 0 if report["met"] else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./lava bench gateway", description=__doc__, formatter_class=_Verbatim)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line instead of the table")
    parser.add_argument("--quick", action="store_true", help="one short round: does it run? (numbers mean little)")
    parser.add_argument("--rounds", type=int, help="how many rounds (default 5)")
    parser.add_argument("--subjects", default="nginx,lava", help="comma-separated; direct always runs")
    parser.add_argument("--save", metavar="FILE", help="also write the report to this file")
    return parser.parse_args()


class _Verbatim(argparse.RawDescriptionHelpFormatter):
    """The docstring as it stands."""


def raise_open_files() -> None:
    """1,000 streams are 2,000 sockets in a proxy; children inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else 65536, hard))


# --- subjects -------------------------------------------------------------------------------------------------------


@contextmanager
def running_upstream(plan: Plan) -> Iterator[int]:
    """The canned provider on the load's core; its port."""
    port = processes.free_port()
    command = [str(processes.compiled("upstream")), str(port), str(plan.chunks), str(plan.interval_ms)]
    with processes.pinned(LOAD_CORE):
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise SystemExit("the upstream did not start")
        yield port
    finally:
        processes.stop(child)


def start_direct(stack: ExitStack, folder: Path, upstream_port: int) -> Subject:
    """No proxy: what every other subject's latency is compared with."""
    return Subject(name="direct", port=upstream_port, requests=write_requests(folder, "direct", upstream_port))


def start_nginx(stack: ExitStack, folder: Path, upstream_port: int) -> Subject | None:
    """nginx with one worker; None when it is not installed."""
    program = shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")
    if program is None:
        print("nginx is not installed, so its rows are missing: apt-get install -y nginx", file=sys.stderr)
        return None
    port, home = processes.free_port(), folder / "nginx"
    home.mkdir()
    text = (processes.FOLDER / "nginx.conf").read_text()
    facts = {"DIR": home, "PORT": port, "UPSTREAM": upstream_port, "USER": "user root;" if os.geteuid() == 0 else ""}
    for name, value in facts.items():
        text = text.replace(f"@{name}@", str(value))
    (home / "nginx.conf").write_text(text)
    with processes.pinned(PROXY_CORE):
        child = subprocess.Popen(
            [program, "-p", str(home), "-e", str(home / "nginx.log"), "-c", str(home / "nginx.conf")], text=True
        )
    stack.callback(processes.stop, child)
    wait_for_port(port, child)
    pids = wait_for_worker(child)
    return Subject(name="nginx", port=port, requests=write_requests(folder, "nginx", port), proxy=pids)


def start_lava(stack: ExitStack, folder: Path, upstream_port: int) -> Subject | None:
    """`lava-proxy dev` with one gateway worker and its engines, on a folder of its own."""
    home, port = folder / "lava", processes.free_port()
    command = [
        *(str(Path(sys.executable).with_name("lava-proxy")), "dev", "--json", "--workers", "1", "--port", str(port)),
        *("--provider", f"openai=http://127.0.0.1:{upstream_port}", "--data-dir", str(home)),
    ]
    with processes.pinned(LOAD_CORE), (folder / "lava.log").open("w") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    stack.callback(processes.stop, child)
    facts = read_facts(child, folder / "lava.log")
    requests = write_requests(folder, "lava", port, path=LAVA_PATH, token=rich_token(home, facts))
    pids = processes.family(child.pid)
    redis = [pid for pid in pids if "valkey-server" in processes.command_of(pid).split(" -")[0]]
    redis += [pid for pid in pids if "redis-server" in processes.command_of(pid).split(" -")[0]]
    postgres = [pid for pid in pids if processes.command_of(pid).split(" ")[0].rpartition("/")[2].startswith("postgres")]
    proxy = [pid for pid in pids if pid not in redis and pid not in postgres]
    subject = Subject(name="lava", port=port, requests=requests, proxy=proxy)
    gateway = find_gateway(subject, facts)
    processes.pin(gateway, PROXY_CORE)
    control = [pid for pid in proxy if pid != gateway]
    groups = {"gateway": [gateway], "control": control, "redis": redis, "postgres": postgres}
    return Subject(name="lava", port=port, requests=requests, proxy=[gateway], groups=groups)


def rich_token(home: Path, facts: dict[str, Any]) -> str:
    """A forward token of a customer who can pay for a whole run; the sandbox's own has $25."""
    program = str(Path(sys.executable).with_name("lava-proxy"))
    made = json.loads(
        subprocess.run(
            [program, "customer", "create", "--funds", "1000000", "--data-dir", str(home)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    members = {"secret_key": facts["secret_key"], "customer_id": made["connection_id"], "meter_slug": "fixed"}
    return base64.b64encode(json.dumps(members).encode()).decode()


STARTERS: dict[str, Callable[[ExitStack, Path, int], Subject | None]] = {
    "direct": start_direct,
    "nginx": start_nginx,
    "lava": start_lava,
}


def read_facts(child: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """The JSON line that `dev --json` prints when it is ready."""
    assert child.stdout is not None
    for line in child.stdout:
        try:
            facts = json.loads(line)
        except ValueError:
            continue
        if isinstance(facts, dict) and "base_url" in facts:
            return facts
    raise SystemExit(f"lava-proxy dev did not start:\n{log.read_text()[-3000:]}")


def find_gateway(subject: Subject, facts: dict[str, Any]) -> int:
    """The gateway worker: named by the daemon, or else the process that a burst of requests keeps busiest."""
    named = facts.get("gateway_pids")
    if isinstance(named, list) and named:
        return int(named[0])
    before = {pid: processes.cpu_us([pid]) for pid in subject.proxy}
    run_load(subject, "closed", CONNECTIONS, (0.2, 0.8))
    return max(subject.proxy, key=lambda pid: processes.cpu_us([pid]) - before[pid])


def wait_for_port(port: int, child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if child.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{child.args!r} did not start") from None
            time.sleep(0.02)


def wait_for_worker(master: subprocess.Popen[str]) -> list[int]:
    """The process and its worker: nginx listens before it forks, and counted without its worker it would cost nothing."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while len(pids := processes.family(master.pid)) < 2:
        if master.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{master.args!r} has started no worker")
        time.sleep(0.02)
    return pids


def write_requests(folder: Path, name: str, port: int, path: str = DIRECT_PATH, token: str = "benchmark") -> dict[str, Path]:
    """Two files with whole requests of the same body size: a plain call and a stream."""
    files = {}
    for kind, extra in (("plain", {}), ("stream", {"stream": True, "stream_options": {"include_usage": True}})):
        fixed: dict[str, Any] = {"model": "gpt-4o-mini", "max_tokens": 128, **extra}
        message = {"role": "user", "content": ""}
        length = len(compact({**fixed, "messages": [message]}))
        message["content"] = ("why is the sky blue? " * 60)[: BODY_BYTES - length]
        body = compact({**fixed, "messages": [message]})
        head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {token}\r\n"
            "accept: application/json\r\nuser-agent: lava-benchmark\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        files[kind] = folder / f"{name}.{kind}"
        files[kind].write_bytes(head.encode() + body)
    return files


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# --- runs -----------------------------------------------------------------------------------------------------------

Run = dict[str, Any]


def run_rounds(subjects: list[Subject], plan: Plan, say: Callable[[str], None]) -> dict[str, list[Run]]:
    """Every subject's runs, by name; interleaved, so that a slow minute hits all alike."""
    runs: dict[str, list[Run]] = {subject.name: [] for subject in subjects}
    for number in range(plan.rounds):
        for subject in subjects:
            run: Run = {}
            if subject.proxy:
                run_load(subject, "closed", 4, (0.0, 0.2))  # connections, caches and code paths are warm
                run["streams"] = run_load(subject, "streams", plan.stream_count, plan.streams)
                run["closed"] = run_load(subject, "closed", CONNECTIONS, plan.closed)
            run["open"] = run_load(subject, "open", CONNECTIONS, plan.open_loop, plan.rate)
            runs[subject.name].append(run)
            say(f"round {number + 1} of {plan.rounds}: {subject.name} done")
    return runs


def run_load(subject: Subject, mode: str, connections: int, times: tuple[float, float], rate: int = 0) -> Run:
    """One load: its own report, plus CPU of the subject's processes over the window. Raises SystemExit on any error."""
    request = subject.requests["stream" if mode == "streams" else "plain"]
    numbers = [str(connections), str(times[0]), str(times[1]), *([str(rate)] if rate else [])]
    command = [str(processes.compiled("load")), mode, str(subject.port), str(request), *numbers]
    groups = {"proxy": subject.proxy, **subject.groups}
    idle_kb = processes.memory_kb(subject.groups.get("gateway", subject.proxy))
    with processes.pinned(LOAD_CORE):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        before = processes.group_cpu_us(groups)
        if child.stdout.readline() != "end\n":
            raise SystemExit(f"the load on {subject.name} ended early")
        used = {name: us - before[name] for name, us in processes.group_cpu_us(groups).items()}
        busy_kb = processes.memory_kb(subject.groups.get("gateway", subject.proxy))
        result: Run = json.loads(child.stdout.readline())
    finally:
        processes.stop(child)
    if result["all_errors"] or not (result["requests"] or result["chunks"]):
        raise SystemExit(f"{subject.name}, {mode}: {result['all_errors']} errors, last status {result['last_status']}")
    return {**result, "cpu_us": used, "idle_kb": idle_kb, "busy_kb": busy_kb, "connections": connections}


# --- report ---------------------------------------------------------------------------------------------------------


def summarise(runs: dict[str, list[Run]], plan: Plan) -> dict[str, Any]:
    """Medians over the rounds, and the targets."""
    report: dict[str, Any] = {
        "benchmark": "gateway",
        "rounds": plan.rounds,
        "quick": plan == QUICK,
        "machine": processes.machine(),
    }
    direct = runs["direct"]
    report["direct"] = {f"p{n}_us": median(run["open"][f"p{n}_us"] for run in direct) for n in (50, 99)}
    for name in ("nginx", "lava"):
        if name in runs:
            report[name] = summarise_subject(runs[name], direct)
    report["targets"] = judge(report)
    report["met"] = all(target["met"] for target in report["targets"].values())
    return report


def summarise_subject(runs: list[Run], direct: list[Run]) -> dict[str, Any]:
    def per(mode: str, unit: str, group: str) -> float:
        return round(float(median(run[mode]["cpu_us"][group] / run[mode][unit] for run in runs)), 2)

    def added(key: str) -> float:
        return float(median(run["open"][key] - base["open"][key] for run, base in zip(runs, direct, strict=True)))

    first = runs[0]["streams"]
    summary: dict[str, Any] = {
        "cpu_us_per_request": per("closed", "requests", "proxy"),
        "cpu_us_per_chunk": per("streams", "chunks", "proxy"),
        "added_p50_us": added("p50_us"),
        "added_p99_us": added("p99_us"),
        "kb_per_stream": round((first["busy_kb"] - first["idle_kb"]) / first["connections"], 2),
        "requests_per_s": round(median(run["closed"]["requests"] / run["closed"]["seconds"] for run in runs)),
        "first_event_p50_us": median(run["streams"]["p50_us"] for run in runs),
    }
    for group in runs[0]["closed"]["cpu_us"]:
        if group != "proxy":
            summary[f"{group}_cpu_us_per_request"] = per("closed", "requests", group)
            summary[f"{group}_cpu_us_per_chunk"] = per("streams", "chunks", group)
    return summary


def judge(report: dict[str, Any]) -> dict[str, Any]:
    """Each target with its value; those that need a subject that did not run are left out."""
    lava, nginx = report.get("lava"), report.get("nginx")
    targets = {}
    for name, at_most in TARGETS.items():
        key, versus, _ = name.partition("_vs_")
        if lava is None or (versus and nginx is None):
            continue
        value = round(lava[key] / nginx[key] if nginx is not None and versus else lava[key], 2)
        targets[name] = {"at_most": at_most, "value": value, "met": value <= at_most}
    return targets


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    names = [name for name in ("nginx", "lava") if name in report]
    keys = list(dict.fromkeys(key for name in names for key in report[name]))
    lines = [f"direct: p50 {report['direct']['p50_us']} us, p99 {report['direct']['p99_us']} us", ""]
    lines.append(f"{'':34}" + "".join(f"{name:>12}" for name in names))
    for key in keys:
        lines.append(f"{key:34}" + "".join(f"{report[name].get(key, ''):>12}" for name in names))
    lines.append("")
    for name, target in report["targets"].items():
        verdict = "met" if target["met"] else "MISSED"
        lines.append(f"target {name}: {target['value']} (at most {target['at_most']}) {verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
