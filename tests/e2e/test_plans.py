"""Plans in the running daemon: made on the command line, seen over REST, used by calls, renewed by the clock."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.request import Request, urlopen

from tests.daemon import running, until


def _call(base_url: str, token: str) -> None:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}
    request = Request(base_url + "chat/completions", json.dumps(body).encode(), {"Authorization": f"Bearer {token}"})
    with urlopen(request, timeout=30) as response:
        assert response.status == 200


def test_a_plan_made_on_the_command_line_is_renewed_by_the_clock_within_a_second(tmp_path: Path) -> None:
    """I22: dev's clock is moved to the next cycle; tiers then count in it, at the gateway too."""
    clock = tmp_path / "clock"
    clock.write_text("2026-11-24T12:00:00Z")
    with running(tmp_path / "dev", "--workers", "1", "--clock-file", str(clock)) as daemon:
        daemon.cli("merchant", "set", "--overage", "charge limit=20 threshold=5")
        shown = daemon.cli("merchant", "set", "--clamp-floor", "16")
        assert (shown["overage"]["limit"], shown["clamp_floor"]) == ("20.000000000", 16)
        daemon.cli("meter", "create", "--name", "A cent", "--slug", "cent", "--tier-type", "requests", "--tier", "0.01")
        plan = daemon.cli(
            "plan", "create", "--name", "Basic", "--amount", "0", "--every", "day", "--meter", "cent", "--bundle", "More:8.00:10.00"
        )
        assert [one["name"] for one in daemon.cli("plan", "list")["plans"]] == ["Basic", "Free"]
        customer = daemon.cli("customer", "create", "--funds", "5")["customer_id"]
        made = daemon.cli("subscription", "create", "--customer", customer, "--plan", plan["plan_id"])
        assert (made["plan_id"], made["plan"]["billing_interval"]) == (plan["plan_id"], "day")
        token = daemon.cli_token(customer, "cent")
        _call(daemon.base_url, token)
        clock.write_text("2026-11-25T13:00:00Z")

        def renewed() -> bool:
            found = daemon.get(f"customers/{customer}/subscription")["subscription"]
            return bool(found["cycle_start_at"].startswith("2026-11-25T12:00:0"))

        until(renewed, "the renewal")
        _call(daemon.base_url, token)

        def fields() -> set[str] | None:
            rows = daemon.get(f"requests?customer_id={customer}")["data"]
            return {row["request_id"] for row in rows} if len(rows) == 2 else None

        assert until(fields, "both requests in the ledger")
        assert daemon.audit()["violations"] == []
