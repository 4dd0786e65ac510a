"""Acknowledged usage reports a second: POST /v1/requests, and /v1/requests/batch by 100.

Every report has an id of its own but for one in a hundred, which repeats an earlier one; a fifth goes to one hot wallet, the rest
to others by Zipf's law. `lava` runs whole: keys, prices, script, `appendfsync always`, flusher and audit; its gateway worker has
core 1, everything else (Redis, flusher, Postgres, load) core 0. `postgres_only` (benchmarks/postgres_only.py) is the plain way:
one insert and one update a report, its server on core 1 and its Postgres on core 0. After the load the outbox is drained, every
acknowledged id must have one row, and `lava-proxy audit` must be clean.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import _processes as processes
from benchmarks import gateway as calls
from lava_proxy.app.embedded import EmbeddedEngines
from lava_proxy.app.engine_sources import EngineOptions

TARGETS = {"single": 12_000, "batched": 30_000}  # acknowledged reports a second, at least
BATCH = 100
HOT_PERCENT = 20
DUPLICATE_PERCENT = 1
CONNECTIONS = {"single": 64, "batched": 8}
PATHS = {"single": "/v1/requests", "batched": "/v1/requests/batch"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much and how long, in seconds."""

    rounds: int = 3
    warm_up: float = 0.7
    window: float = 3.0
    wallets: int = 200
    most_per_s: int = 40_000  # so many reports are prepared for each second


QUICK = Plan(rounds=1, warm_up=0.3, window=0.7, wallets=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Something that takes reports."""

    name: str
    port: int
    key: str
    customers: list[str]
    groups: dict[str, list[int]]
    home: Path | None = None


def main() -> int:
    """Run, print a table (or JSON as the last line); 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="./lava bench reports", description=__doc__, formatter_class=calls._Verbatim)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line instead of the table")
    parser.add_argument("--quick", action="store_true", help="one short round: does it run? (numbers mean little)")
    parser.add_argument("--rounds", type=int, help="how many rounds (default 3)")
    parser.add_argument("--subjects", default="postgres_only,lava", help="comma-separated")
    options = parser.parse_args()
    plan = QUICK if options.quick else Plan()
    if options.rounds:
        plan = Plan(rounds=options.rounds, warm_up=plan.warm_up, window=plan.window, wallets=plan.wallets)
    report: dict[str, Any] = {"benchmark": "reports", "machine": processes.machine(), "rounds": plan.rounds, "batch": BATCH}
    for name, start in STARTERS.items():
        if name in options.subjects.split(","):
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lava-bench-")))
                report[name] = measured(start(stack, folder, plan), folder, plan)
    report["targets"] = judge(report)
    report["met"] = all(target["met"] for target in report["targets"].values())
    print(json.dumps(report) if options.json else table(report))
    return 0 if report["met"] else 1


# -- subjects


def start_lava(stack: ExitStack, folder: Path, plan: Plan) -> Subject:
    """`lava-proxy dev` with one gateway worker, and customers of its sandbox merchant."""
    home, port = folder / "lava", processes.free_port()
    program = str(Path(sys.executable).with_name("lava-proxy"))
    with processes.pinned(calls.LOAD_CORE), (folder / "lava.log").open("w") as log:
        child = subprocess.Popen(
            [program, "dev", "--json", "--workers", "1", "--port", str(port), "--data-dir", str(home)],
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    stack.callback(processes.stop, child)
    facts = calls.read_facts(child, folder / "lava.log")
    gateway, pids = int(facts["gateway_pids"][0]), processes.family(child.pid)
    processes.pin(gateway, calls.PROXY_CORE)
    redis, postgres = facts["pids"]["redis"], facts["pids"]["postgres"]
    groups = {"gateway": [gateway], "redis": [redis], "postgres": processes.family(postgres)}
    taken = {pid for group in groups.values() for pid in group}
    groups["worker_and_control"] = [pid for pid in pids if pid not in taken]
    customers = make_customers(home, plan.wallets)
    return Subject(name="lava", port=port, key=facts["secret_key"], customers=customers, groups=groups, home=home)


def make_customers(home: Path, count: int) -> list[str]:
    """Their ids; each starts with $100."""
    from lava_proxy.billing.funding import Funding
    from lava_proxy.cli_installation import merchant_of, with_stores

    async def work(stores: Any, settings: Any) -> list[str]:
        merchant, funding, found = await merchant_of(stores, None), Funding(stores.catalog, stores.balances), []
        for _ in range(count):
            made = await stores.catalog.create_connection(merchant.merchant_id)
            await funding.open_wallet(made.wallet_id)
            await funding.fund(merchant.merchant_id, made.wallet_id, 100_000_000_000, "benchmark")
            found.append(made.connection_id)
        return found

    return with_stores(home, work)


def start_postgres_only(stack: ExitStack, folder: Path, plan: Plan) -> Subject:
    """Its own PostgreSQL, durable as lava's, and one server process."""
    engines = EmbeddedEngines()
    with processes.pinned(calls.LOAD_CORE):
        started = engines.start(folder / "engines", EngineOptions(redis_url="redis://unused"))
    stack.callback(engines.stop)
    port = processes.free_port()
    with processes.pinned(calls.PROXY_CORE):
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.postgres_only", str(port), started.database_url, str(plan.wallets)],
            stdout=subprocess.PIPE, text=True, cwd=processes.FOLDER.parent,
        )  # fmt: skip
    stack.callback(processes.stop, child)
    assert child.stdout is not None
    if child.stdout.readline() != "ready\n":
        raise SystemExit("the server of postgres_only did not start")
    postgres = [pid for pid in processes.family(started.postgres_pid or 0) if pid]
    customers = [f"w{n}" for n in range(plan.wallets)]
    return Subject(
        name="postgres_only", port=port, key="none", customers=customers, groups={"server": [child.pid], "postgres": postgres}
    )


STARTERS = {"postgres_only": start_postgres_only, "lava": start_lava}


# -- load


def prepared(subject: Subject, kind: str, number: int, plan: Plan, file: Path) -> list[list[str]]:
    """Writes the requests of one run; the ids in each, in the order in which they are sent."""
    chance = random.Random(number)
    seconds = plan.warm_up + plan.window + 1
    customers = subject.customers
    weights = [1 / rank for rank in range(1, len(customers))]
    total = int(plan.most_per_s * seconds * (4 if kind == "batched" else 1))
    choices = chance.choices(customers[1:], weights, k=total)
    batch = BATCH if kind == "batched" else 1
    sent: list[list[str]] = []
    bodies: list[bytes] = []
    with file.open("wb") as out:
        for start in range(0, total, batch):
            ids, parts = [], []
            for n in range(start, min(start + batch, total)):
                if bodies and chance.randrange(100) < DUPLICATE_PERCENT:
                    earlier = chance.randrange(max(0, len(bodies) - 5000), len(bodies))
                    body = bodies[earlier]
                else:
                    customer = customers[0] if chance.randrange(100) < HOT_PERCENT else choices[n]
                    body = (
                        b'{"request_id":"%b-%d-%d","customer_id":"%b","meter_slug":"fixed","input_tokens":%d,"output_tokens":%d,'
                        b'"metadata":{"feature":"chat"}}'
                        % (kind.encode(), number, n, customer.encode(), chance.randrange(1, 50), chance.randrange(1, 50))
                    )
                    bodies.append(body)
                parts.append(body)
                ids.append(body[15 : body.index(b'"', 15)].decode())
            whole = parts[0] if batch == 1 else b'{"requests":[%b]}' % b",".join(parts)
            head = (
                f"POST {PATHS[kind]} HTTP/1.1\r\nhost: 127.0.0.1:{subject.port}\r\nauthorization: Bearer {subject.key}\r\n"
                f"user-agent: lava-benchmark\r\ncontent-type: application/json\r\ncontent-length: {len(whole)}\r\n\r\n"
            ).encode()
            out.write(b"%d\n%b%b" % (len(head) + len(whole), head, whole))
            sent.append(ids)
    return sent


def run(subject: Subject, kind: str, number: int, plan: Plan, folder: Path) -> dict[str, Any]:
    """One run's figures. Raises SystemExit on any answer but 200."""
    file = folder / f"{subject.name}-{kind}"
    sent = prepared(subject, kind, number, plan, file)
    command = [str(processes.compiled("load")), "each", str(subject.port), str(file), str(CONNECTIONS[kind])]
    with processes.pinned(calls.LOAD_CORE):
        child = subprocess.Popen([*command, str(plan.warm_up), str(plan.window)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        before = processes.group_cpu_us(subject.groups)
        if child.stdout.readline() != "end\n":
            raise SystemExit(f"the load on {subject.name} ended early")
        used = {name: us - before[name] for name, us in processes.group_cpu_us(subject.groups).items()}
        result: dict[str, Any] = json.loads(child.stdout.readline())
    finally:
        processes.stop(child)
        file.unlink()
    if result["all_errors"] or not result["requests"]:
        raise SystemExit(f"{subject.name}, {kind}: {result['all_errors']} errors, last status {result['last_status']}")
    reports = result["requests"] * (BATCH if kind == "batched" else 1)
    certain = sent[: max(0, result["answered"] - CONNECTIONS[kind])]
    return {
        "per_s": reports / result["seconds"],
        "p50_us": result["p50_us"],
        "p99_us": result["p99_us"],
        "cpu_us": {name: amount / reports for name, amount in used.items()},
        "ids_sent": len({one for ids in sent[: result["sent"]] for one in ids}),
        "ids_answered": len({one for ids in certain for one in ids}),
    }


def measured(subject: Subject, folder: Path, plan: Plan) -> dict[str, Any]:
    """Both kinds, some rounds; for lava the proof afterwards."""
    found: dict[str, Any] = {}
    sent = answered = 0
    for kind in PATHS:
        runs = []
        for number in range(plan.rounds):
            runs.append(run(subject, kind, number, plan, folder))
            print(f"{subject.name}, {kind}, round {number + 1}: {runs[-1]['per_s']:,.0f}/s", file=sys.stderr, flush=True)
        sent += sum(one["ids_sent"] for one in runs)
        answered += sum(one["ids_answered"] for one in runs)
        found[kind] = {
            "per_s": round(median(one["per_s"] for one in runs)),
            "p50_us": median(one["p50_us"] for one in runs),
            "p99_us": median(one["p99_us"] for one in runs),
            **{f"{name}_cpu_us": round(median(one["cpu_us"][name] for one in runs), 1) for name in subject.groups},
        }
    if subject.home is not None:
        found["books"] = books(subject.home, sent, answered)
    return found


def books(home: Path, sent: int, answered: int) -> dict[str, Any]:
    """After the outbox has drained: how long that took, what the audit says, and is each acknowledged id one row?"""
    program = str(Path(sys.executable).with_name("lava-proxy"))
    began = time.monotonic()
    while True:
        done = subprocess.run(
            [program, "audit", "--json", "--data-dir", str(home)], capture_output=True, text=True, check=False
        )  # fmt: skip
        audit = json.loads(done.stdout.splitlines()[-1])
        if not audit["outbox"]:
            break
        if time.monotonic() - began > 600:
            raise SystemExit(f"the outbox has not drained: {audit}")
        time.sleep(0.5)
    drained_s = round(time.monotonic() - began, 1)
    is_whole = answered <= audit["rows"] <= sent
    return {"drained_s": drained_s, "rows": audit["rows"], "violations": audit["violations"], "met": audit["met"] and is_whole}


# -- report


def judge(report: dict[str, Any]) -> dict[str, Any]:
    lava = report.get("lava")
    if lava is None:
        return {}
    targets: dict[str, Any] = {
        f"{kind}_per_s": {"at_least": least, "value": lava[kind]["per_s"], "met": lava[kind]["per_s"] >= least}
        for kind, least in TARGETS.items()
    }
    return {**targets, "books": {"met": lava["books"]["met"]}}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = []
    for name in STARTERS:
        for kind in PATHS if name in report else ():
            lines.append(f"{name:14} {kind:8} " + "  ".join(f"{key} {value:,}" for key, value in report[name][kind].items()))
    lines += [f"{name}: {target}" for name, target in report["targets"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
