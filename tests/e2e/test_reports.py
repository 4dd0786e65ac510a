"""Usage reports against the real daemon: the REST side shows them, the import command sends files of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tests.daemon import Daemon, running


def post(daemon: Daemon, path: str, body: object) -> tuple[int, Any]:
    request = Request(
        daemon.base_url + path, json.dumps(body).encode(),
        {"Authorization": f"Bearer {daemon.info['secret_key']}", "Content-Type": "application/json"},
    )  # fmt: skip
    try:
        with urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())


def report(daemon: Daemon, request_id: str, tokens: int = 1000) -> dict[str, Any]:
    return {
        "request_id": request_id, "customer_id": daemon.info["connection_id"], "meter_slug": "fixed", "input_tokens": tokens
    }  # fmt: skip


def imported(daemon: Daemon, *arguments: str, source: bytes | None = None) -> tuple[int, dict[str, Any]]:
    """The command's exit status and summary."""
    environment = {**daemon.environment, "LAVA_SECRET_KEY": daemon.info["secret_key"]}
    done = subprocess.run(
        [sys.executable, "-m", "lava_proxy", "requests", "import", *arguments, "--url", daemon.base_url],
        capture_output=True, timeout=120, env=environment, input=source, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_reports_are_shown_listed_and_imported_once(tmp_path: Path) -> None:
    """L7, 47: the id that a merchant chose is the one that it finds the request by, at once, whatever it looks like."""
    with running(tmp_path / "data", "--workers", "1") as daemon:
        for request_id in ("invoice/7 é", "req_looks-like-ours", "req_01M84WWZRVVQ5D2S7GKVXBC70Z"):
            status, answer = post(daemon, "requests", report(daemon, request_id))
            assert (status, answer["request_id"]) == (200, request_id)
            path = request_id.replace("/", "%2F").replace(" ", "%20").replace("é", "%C3%A9")
            assert daemon.get(f"requests/{path}") == answer
        # pages go by time, though the ids that they show do not
        first = daemon.get("requests?limit=2")
        second = daemon.get(f"requests?limit=2&cursor={first['next_cursor']}")
        ids = [row["request_id"] for row in first["data"] + second["data"]]
        assert ids == ["req_01M84WWZRVVQ5D2S7GKVXBC70Z", "req_looks-like-ours", "invoice/7 é"]

        file = tmp_path / "usage.ndjson"
        lines = [json.dumps(report(daemon, f"day-{n}", 100)) for n in range(250)]
        file.write_text("\n".join([*lines[:120], "", "{broken", lines[5], json.dumps(report(daemon, "bad", -1)), *lines[120:]]))
        status, summary = imported(daemon, str(file), "--batch", "40", "--concurrency", "3")
        assert status == 1 and summary == {
            "lines": 253, "accepted": 251, "failed": 2, "retries": 0, "failed_file": f"{file}.failed.ndjson", "met": False
        }  # fmt: skip
        failed = [json.loads(line) for line in Path(summary["failed_file"]).read_text().splitlines()]
        assert sorted((item["line"], item["error"]["code"]) for item in failed) == [
            (122, "invalid_json"),
            (124, "invalid_parameter"),
        ]
        again, summary = imported(daemon, "-", source="\n".join(lines).encode())
        assert again == 0 and summary["accepted"] == 250 and summary["failed_file"] is None
        daemon.audit()
        assert 25_000_000_000 - daemon.balance_nanos() == (3 * 1000 + 250 * 100) * 20_000


def test_an_import_without_a_good_key_or_a_server_stops_with_a_sentence(tmp_path: Path) -> None:
    with running(tmp_path / "data", "--workers", "1") as daemon:
        for key, word in (("aks_live_wrong", "refuses the key"), ("", "LAVA_SECRET_KEY")):
            done = subprocess.run(
                [sys.executable, "-m", "lava_proxy", "requests", "import", "-", "--url", daemon.base_url],
                capture_output=True, text=True, timeout=60, env={**daemon.environment, "LAVA_SECRET_KEY": key},
                input=json.dumps(report(daemon, "a")), check=False,
            )  # fmt: skip
            assert done.returncode == 1 and word in done.stderr and "Traceback" not in done.stderr
