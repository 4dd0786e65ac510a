"""The files of deploy/ hold together: what they name exists, ports and metrics agree, Redis takes its configuration."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from lava_proxy.app.engine_sources import EngineError, EngineOptions, locate_redis

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PORT = "8080"


def read(name: str) -> str:
    return (DEPLOY / name).read_text()


def test_every_file_that_the_dockerfile_copies_exists_and_reaches_the_build() -> None:
    sources = re.findall(r"^COPY (?!--from)(.+) \S+$", read("Dockerfile"), re.MULTILINE)
    names = [name for line in sources for name in line.split()]
    allowed = [line[1:] for line in read("Dockerfile.dockerignore").splitlines() if line.startswith("!")]
    assert names
    for name in names:
        assert (ROOT / name).exists(), name
        assert name in allowed, f"{name} is shut out by Dockerfile.dockerignore"


def test_the_image_runs_serve_as_an_ordinary_user_on_the_documented_port() -> None:
    text = read("Dockerfile")
    final_stage = text.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001$", final_stage, re.MULTILINE)
    assert f"EXPOSE {PORT}" in final_stage and f"LAVA_PORT={PORT}" in final_stage and "LAVA_HOST=0.0.0.0" in final_stage
    assert 'CMD ["serve"]' in final_stage
    assert "--require-hashes" in text


def test_what_the_image_leaves_out_is_not_needed_to_serve() -> None:
    embedded = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["embedded"]
    left_out = re.search(r"pip uninstall --yes (embedded.+?) \\", read("Dockerfile"))
    assert left_out is not None
    assert {re.split(r"[<>=]", name)[0] for name in embedded} <= set(left_out.group(1).split())


def test_compose_names_files_that_exist_and_volumes_that_it_declares() -> None:
    text = read("compose.yaml")
    for mount in re.findall(r"^ +- (\./[^:]+):", text, re.MULTILINE):
        assert (DEPLOY / mount).exists(), mount
    dockerfile = re.search(r"dockerfile: (\S+)", text)
    context = re.search(r"context: (\S+)", text)
    assert dockerfile is not None and context is not None
    assert (DEPLOY / context.group(1) / dockerfile.group(1)).is_file()
    declared = set(re.findall(r"^  (\w+):$", text.rpartition("\nvolumes:\n")[2], re.MULTILINE))
    used = set(re.findall(r"^ +- (\w+):/", text, re.MULTILINE))
    assert used == declared


def test_compose_opens_ports_on_loopback_only() -> None:
    published = re.findall(r'^ +- "([^"]*\d:\d+)"', read("compose.yaml"), re.MULTILINE)
    assert published and all(port.startswith("127.0.0.1:") for port in published)


def test_compose_gives_every_variable_that_serve_requires() -> None:
    text = read("compose.yaml")
    for name in ("REDIS_URL", "DATABASE_URL", "MASTER_KEY", "PUBLIC_URL", "HOST", "PORT", "WORKERS"):
        assert f"LAVA_{name}:" in text
        assert f"LAVA_{name}" in read("RUNBOOK.md")


def test_prometheus_scrapes_the_port_that_the_service_listens_on() -> None:
    text = read("prometheus/prometheus.yml")
    assert f'targets: ["lava-proxy:{PORT}"]' in text and "metrics_path: /metrics" in text
    rules = re.search(r"rule_files:\n +- (\S+)", text)
    assert rules is not None and (DEPLOY / "prometheus" / rules.group(1)).is_file()
    assert re.search(r"^  lava-proxy:$", read("compose.yaml"), re.MULTILINE)


def test_every_alarm_is_in_the_runbook_with_its_metric() -> None:
    runbook = read("RUNBOOK.md")
    blocks = read("prometheus/alerts.yml").split("- alert: ")[1:]
    assert len(blocks) > 5
    for block in blocks:
        name = block.split()[0]
        row = next((line for line in runbook.splitlines() if f"**{name}**" in line), None)
        assert row is not None, f"{name} is not in the runbook"
        for metric in re.findall(r"lava_[a-z_]+", block.partition("expr:")[2].partition("labels:")[0]):
            assert metric.removesuffix("_bucket") in row, f"{metric} is not in the row of {name}"


def test_alarms_use_metrics_that_the_product_declares() -> None:
    declared = (ROOT / "lava_proxy" / "telemetry.py").read_text()
    for metric in set(re.findall(r"lava_([a-z_]+)", read("prometheus/alerts.yml"))):
        assert metric.removesuffix("_bucket").removesuffix("_total") in declared, metric


def test_redis_starts_with_the_configuration_and_means_it(tmp_path: Path) -> None:
    try:
        server = locate_redis(EngineOptions())
    except EngineError as error:
        pytest.skip(str(error))
    socket_path = tmp_path / "s" if len(str(tmp_path)) < 90 else Path("/tmp") / f"lava-redis-{tmp_path.name}"
    overrides = ["--port", "0", "--unixsocket", str(socket_path), "--dir", str(tmp_path)]
    with subprocess.Popen(
        [str(server), str(DEPLOY / "redis.conf"), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            output = ""
            for line in process.stdout:
                output += line
                if "eady to accept connections" in line:
                    break
            assert process.poll() is None, output
            answers = configuration(socket_path, "appendonly", "appendfsync", "maxmemory-policy", "save")
        finally:
            process.terminate()
            process.stdout.read()
    assert answers == {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}


def configuration(socket_path: Path, *names: str) -> dict[str, str]:
    import redis

    with redis.Redis(unix_socket_path=str(socket_path), decode_responses=True) as client:
        return {name: client.config_get(name)[name] for name in names}


def test_the_systemd_unit_is_valid() -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    unit = DEPLOY / "systemd" / "lava-proxy.service"
    done = subprocess.run([program, "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60)
    # the executable is not installed on this machine, and there may be no running systemd to ask
    complaints = [line for line in done.stderr.splitlines() if unit.name in line and "is not executable" not in line]
    assert complaints == []


def test_the_unit_drains_before_it_kills() -> None:
    unit, compose = read("systemd/lava-proxy.service"), read("compose.yaml")
    assert "KillMode=mixed" in unit and "TimeoutStopSec=150" in unit and "stop_grace_period: 150s" in compose
    drain = tomllib.loads((ROOT / "config" / "default.toml").read_text())["upstream"]["drain_timeout_s"]
    assert drain < 150


LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-bootstrap.lock")


def pins(name: str) -> set[str]:
    lines = (ROOT / name).read_text().splitlines()
    return {line.split(" ;")[0].rstrip(" \\") for line in lines if re.match(r"[a-z0-9]", line)}


@pytest.mark.parametrize("name", LOCKS)
def test_lock_files_are_pins_with_hashes_and_hold_no_addresses(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    packages = [block for block in re.split(r"\n(?=[a-z0-9])", text.strip())]
    assert packages and all("==" in block and "--hash=sha256:" in block for block in packages)


def test_the_developers_lock_contains_the_runtime_lock() -> None:
    assert pins("requirements.lock") <= pins("requirements-dev.lock")


def test_the_locks_satisfy_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for name, wanted in (
        ("requirements.lock", [*project["dependencies"], *extras["embedded"]]),
        ("requirements-dev.lock", [dependency for extra in extras.values() for dependency in extra]),
    ):
        locked = {pin.split("==")[0].split("[")[0] for pin in pins(name)}
        missing = {re.split(r"[<>=\[~! ]", dependency)[0].lower().replace("_", "-") for dependency in wanted} - locked
        assert not missing, f"{name} lacks {missing}: run ./lava lock"


def test_ci_runs_the_test_command_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'exec "$(dirname "${BASH_SOURCE[0]}")/../lava" test']
