"""The benchmark programs run, end by themselves and measure what they say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import _processes as processes
from benchmarks import dashboard, gateway, meter, renewals, usage

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing: apt-get install -y gcc libc6-dev"),
]


def test_the_provider_answers_889_bytes_or_a_stream_with_usage() -> None:
    with gateway.running_upstream(gateway.QUICK) as port:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        with closing(urllib.request.urlopen(url, data=b'{"model":"m"}')) as response:
            body = response.read()
        assert len(body) == 889 and json.loads(body)["usage"]["total_tokens"] == 276
        with closing(urllib.request.urlopen(url, data=b'{"stream":true}')) as response:
            events = response.read().decode().split("\n\n")[:-1]
    assert len(events) == gateway.QUICK.chunks + 2 and events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["usage"]["completion_tokens"] == gateway.QUICK.chunks
    assert 200 <= len(events[0]) <= 240


def test_the_open_loop_keeps_its_rate_and_the_streams_their_pace(tmp_path: Path) -> None:
    with gateway.running_upstream(gateway.QUICK) as port:
        subject = gateway.Subject(name="direct", port=port, requests=gateway.write_requests(tmp_path, "direct", port))
        opened = gateway.run_load(subject, "open", 8, (0.2, 1.0), 300)
        held = gateway.run_load(subject, "streams", 100, (1.2, 1.0))
    assert abs(opened["requests"] - 300) <= 30 and opened["all_errors"] == 0
    assert 0 < opened["p50_us"] <= opened["p99_us"] <= opened["max_us"]
    assert 1_400 <= held["chunks"] <= 2_600  # 100 streams, 20 chunks a second, and a pause to ask again


def test_a_subject_that_answers_with_errors_ends_the_benchmark(tmp_path: Path) -> None:
    with gateway.running_upstream(gateway.QUICK) as port:
        requests = gateway.write_requests(tmp_path, "dead", port)
    with pytest.raises(SystemExit):
        gateway.run_load(gateway.Subject(name="dead", port=port, requests=requests), "closed", 1, (0.0, 0.1))


@pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None,
    reason="nginx is missing: apt-get install -y nginx",
)
def test_a_quick_run_against_nginx_reports_every_number() -> None:
    command = [sys.executable, "-m", "benchmarks.gateway", "--quick", "--json", "--subjects", "nginx"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["met"] is True and "targets" in report
    nginx = report["nginx"]
    for key in ("cpu_us_per_request", "cpu_us_per_chunk", "kb_per_stream", "requests_per_s"):
        assert nginx[key] > 0, key
    assert {"added_p50_us", "added_p99_us"} <= set(nginx)


def test_a_quick_run_of_the_reports_benchmark_measures_both_and_its_books_are_whole() -> None:
    command = [sys.executable, "-m", "benchmarks.reports", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode in (0, 1), done.stderr  # a target may be missed on a busy machine
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report["targets"]) == {"single_per_s", "batched_per_s", "books"} and "met" in report
    for name in ("lava", "postgres_only"):
        for kind in ("single", "batched"):
            assert report[name][kind]["per_s"] > 0
    assert report["lava"]["books"]["met"] is True and report["lava"]["books"]["violations"] == []
    assert report["lava"]["books"]["rows"] > 0


def test_targets_judge_lava_alone_and_against_nginx() -> None:
    lava = {
        "cpu_us_per_request": 60.0,
        "cpu_us_per_chunk": 30.0,
        "added_p50_us": 300,
        "added_p99_us": 900,
        "kb_per_stream": 5,
    }
    nginx = {**lava, "cpu_us_per_request": 15.0}
    targets = gateway.judge({"lava": lava, "nginx": nginx})
    assert targets["cpu_us_per_request_vs_nginx"]["value"] == 4.0
    assert set(targets) == set(gateway.TARGETS)
    assert gateway.judge({"lava": {**lava, "kb_per_stream": 999}})["kb_per_stream"]["met"] is False


def test_cpu_time_of_a_process_grows_while_it_works() -> None:
    import os

    before = processes.cpu_us([os.getpid()])
    sum(range(300_000))
    assert processes.cpu_us([os.getpid()]) >= before
    assert processes.memory_kb([os.getpid()]) > 1_000


def test_the_usage_benchmark_seeds_asks_and_judges() -> None:
    command = [sys.executable, "-m", "benchmarks.usage", "--rows", "2000", "--asks", "3", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (0 if report["met"] else 1), done.stderr
    assert set(report["usage"]) == {"merchant", "customer", "by_model", "by_customer", "year"}
    assert all(0 < found["p50_ms"] <= found["p95_ms"] for found in report["usage"].values())
    assert report["rollup_rows"]["usage_by_customer"] > 0 and report["rows"] == 2000
    assert set(report["targets"]) >= {"merchant_p95_ms", "customer_p95_ms", "by_model_p95_ms"}


def test_usage_that_gets_slower_with_the_rows_misses_its_target() -> None:
    quick = {name: {"p50_ms": 10.0, "p95_ms": 20.0} for name in ("merchant", "customer", "by_model")}
    slow = {**quick, "merchant": {"p50_ms": 90.0, "p95_ms": 101.0}}
    assert usage.summarise(1, 1, {"tenth": quick, "all": quick}, {})["met"] is True
    report = usage.summarise(1, 1, {"tenth": quick, "all": slow}, {})
    missed = {name for name, target in report["targets"].items() if not target["met"]}
    assert (report["met"], missed) == (False, {"merchant_p95_ms", "growth_with_ten_times_the_rows"})


def test_the_meters_benchmark_reads_every_stream_it_measures() -> None:
    report = meter.run(meter.QUICK_CHUNKS, 1)
    assert set(report["us_per_chunk"]) == {name + coding for name in meter.STREAMS for coding in ("", "_gzip")}
    assert all(spent_us > 0 for spent_us in report["us_per_chunk"].values())
    target = report["targets"]["us_per_plain_chunk"]
    assert report["met"] is target["met"] is (target["value"] <= target["at_most"])
    assert all(190 <= len(chunk) <= 230 for make in meter.STREAMS.values() for chunk in make(20).chunks[5:15])


def test_the_dashboard_benchmark_asks_every_page_and_weighs_it() -> None:
    command = [sys.executable, "-m", "benchmarks.dashboard", "--rows", "2000", "--asks", "2", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (0 if report["met"] else 1), done.stderr
    assert {"overview", "requests", "requests/rows", "request", "audit"} <= set(report["pages"]) == set(report["first_paint_kb"])
    assert all(0 < found["p50_ms"] <= found["p95_ms"] for found in report["pages"].values())
    assert report["targets"]["first_paint_kb"]["met"] is True and report["first_paint_kb"]["overview"] > 50


def test_a_slow_page_of_the_dashboard_misses_its_target() -> None:
    report = dashboard.summarise(
        1, 1, {"a": {"p50_ms": 1.0, "p95_ms": 2.0}, "b": {"p50_ms": 1.0, "p95_ms": 151.0}}, {"a": 10.0, "b": 9.0}, {"seed_s": 1}
    )
    assert report["met"] is False and report["targets"]["page_p95_ms"]["page"] == "b"
    assert report["targets"]["first_paint_kb"] == {"at_most": 300.0, "value": 10.0, "page": "a", "met": True}
    assert "MISSED" in dashboard.table(report)


def test_the_renewals_benchmark_renews_and_counts_what_it_renewed() -> None:
    command = [sys.executable, "-m", "benchmarks.renewals", "--subscriptions", "60", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    report = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (0 if report["met"] else 1), done.stderr
    assert report["subscriptions"] == 60 and 0 < report["seconds_1_workers"] and 0 < report["seconds_2_workers"]
    assert 15 < report["statements_1_workers"] <= renewals.STATEMENTS_MAX + 5  # a small run prepares its connections, too
