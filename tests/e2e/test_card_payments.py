"""Card payments in the running daemon: its processor, the endpoint for notices, the daily report."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.daemon import Daemon, running


def _status(address: str, body: bytes | None = None) -> tuple[int, str]:
    try:
        with urlopen(Request(address, data=body), timeout=30) as response:
            return response.status, ""
    except HTTPError as error:
        return error.code, json.loads(error.read())["error"]["code"]


def test_dev_takes_test_cards_and_reports_its_day(daemon: Daemon) -> None:
    """I27"""
    day = datetime.now(UTC).date().isoformat()
    report = daemon.cli("payments", "reconcile", "--day", day)
    assert (report["day"], report["processor"], report["met"]) == (day, "sandbox", True)
    root = daemon.base_url.removesuffix("v1/")
    assert _status(root + "sandbox/bank/pi_unknown") == (404, "not_found")
    assert _status(root + "webhooks/stripe", b"{}")[0] == 404


def test_with_stripes_key_its_notices_are_taken_and_an_unsigned_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """71"""
    monkeypatch.setenv("LAVA_STRIPE_SECRET_KEY", "sk_test_never_used")
    monkeypatch.setenv("LAVA_STRIPE_WEBHOOK_SECRET", "whsec_1")
    monkeypatch.setenv("LAVA_STRIPE_API_BASE", "http://127.0.0.1:9")
    with running(tmp_path, "--workers", "1") as daemon:
        root = daemon.base_url.removesuffix("v1/")
        assert _status(root + "webhooks/stripe", b"{}") == (400, "invalid_signature")
        assert _status(root + "sandbox/bank/pi_unknown")[0] == 404
