"""One customer from a merchant's button to the next cycle but one: what is sold, used, charged and renewed.

Every actor is the real one: the stock browser library in Chromium, the official Lava SDK at the merchant's backend, the official
OpenAI SDK at the customer's calls, the daemon with its engines. Only time is moved, by the clock file.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest

from tests.daemon import Daemon, running, until
from tests.e2e import node_packages
from tests.e2e.browser import chromium, picture, violations, watch
from tests.e2e.checkout_pages import CheckoutPage, checkout_frame, merchant_shop
from tests.e2e.lava_sdk import Sdks, running_sdks

PICTURES = Path(os.environ["LAVA_TEST_PICTURES"]) if os.environ.get("LAVA_TEST_PICTURES") else None
PHONE = "+14155550042"
DAYS = ("2026-11-25", "2026-12-25", "2027-01-25")
FIRST_CYCLE, SECOND_CYCLE, THIRD_CYCLE = ("2026-11-25T12:00:00Z", "2026-12-25T12:00:30Z", "2027-01-25T12:00:30Z")
PLAN = {
    "name": "Pro",
    "period_amount": "25.00",
    "included_credit": "25.00",
    "billing_interval": "month",
    "rollover_type": "full",
    "overage": {"policy": "charge", "limit": "10", "threshold": "5", "increment": "1"},
}
CALL: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 40}


@dataclass(slots=True)
class Backend:
    """The merchant's server: the official SDK, and plain REST for what the SDK does not know."""

    daemon: Daemon
    sdks: Sdks
    customer: str = ""

    def sdk(self, method: str, *arguments: object) -> Any:
        return self.sdks.call("lava11", method, *arguments)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Authorization": f"Bearer {self.daemon.info['secret_key']}", "Content-Type": "application/json"}
        try:
            with urlopen(Request(self.daemon.base_url + path, json.dumps(body).encode(), headers), timeout=30) as response:
                return json.loads(response.read())
        except HTTPError as error:
            raise AssertionError(f"POST {path}: {error.code} {error.read().decode()}") from error

    def subscription(self) -> dict[str, Any]:
        return dict(self.sdk("customers.getSubscription", self.customer)["subscription"])

    def balance(self) -> Decimal:
        return Decimal(self.daemon.get(f"customers/{self.customer}")["balance"])

    def charges(self) -> list[dict[str, Any]]:
        """Oldest first."""
        return list(reversed(self.daemon.get(f"customers/{self.customer}/charges?limit=100")["data"]))

    def paid(self) -> Counter[tuple[str, str]]:
        """Purpose and dollars of what the card has paid; fails when a charge was not."""
        charges = self.charges()
        assert {one["status"] for one in charges} <= {"succeeded", "processing"}, charges
        return Counter((one["purpose"], f"{Decimal(one['captured']):.2f}") for one in charges if one["status"] == "succeeded")

    def overage(self) -> Decimal:
        """What the card has paid beyond the plan."""
        paid = self.paid()
        return sum((Decimal(dollars) * paid[one, dollars] for one, dollars in paid if one == "overage"), Decimal(0))

    def awaited_overage(self, dollars: int) -> None:
        until(lambda: self.overage() == dollars or None, f"${dollars} of overage to be paid")

    def awaited_balance(self, dollars: str) -> None:
        until(lambda: self.balance() == Decimal(dollars) or None, f"a balance of {dollars}")

    def awaited_cycle(self, start: str) -> dict[str, Any]:
        def begun() -> dict[str, Any] | None:
            found = self.subscription()
            return found if found["cycle_start_at"].startswith(start) else None

        return dict(until(begun, f"the cycle of {start}"))


async def streamed(daemon: Daemon, token: str, calls: int, delay_ms: int = 0) -> None:
    """Calls at once, each read to its end. Raises the SDK's error where one is refused or breaks off."""
    async with openai.AsyncOpenAI(base_url=daemon.base_url + "forward/openai/v1", api_key=token, max_retries=0) as client:

        async def one() -> None:
            stream = await client.chat.completions.create(**CALL, stream=True, extra_headers={"x-sandbox-delay-ms": str(delay_ms)})
            chunks = [chunk async for chunk in stream]
            assert chunks[-1].choices[0].finish_reason is not None, chunks[-1]

        await asyncio.gather(*(one() for _ in range(calls)))


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    path = tmp_path / "clock"
    path.write_text(FIRST_CYCLE)
    return path


@pytest.fixture
def backend(tmp_path: Path, clock: Path) -> Iterator[Backend]:
    try:
        with running(tmp_path / "dev", "--workers", "2", "--clock-file", str(clock)) as daemon:
            (tmp_path / "sdk").mkdir()
            with running_sdks(daemon, tmp_path / "sdk") as sdks:
                yield Backend(daemon, sdks)
    except node_packages.NotHere as reason:
        pytest.skip(str(reason))


def move(clock: Path, instant: str) -> None:
    """Whole or not at all: the daemon reads the file at any moment."""
    scratch = clock.with_suffix(".new")
    scratch.write_text(instant)
    scratch.replace(clock)


async def subscribe(backend: Backend, plan_id: str, scratch: Path) -> str:
    """A person presses the merchant's button, proves a phone, saves a card and pays; the connection that the page is told."""
    async with merchant_shop(scratch) as shop, chromium() as browser:
        page = await browser.new_page(viewport={"width": 1100, "height": 760})
        problems = watch(page)
        sold = {"checkout_mode": "subscription", "origin_url": shop.origin, "plan_id": plan_id}
        session = backend.sdk("checkoutSessions.create", sold)
        checkout = await shop.open(page, session["checkout_session_token"], backend.daemon)

        async def look(step: str) -> None:
            await checkout.at(step)
            await picture(page, PICTURES, f"story-{step}")
            assert await violations(checkout_frame(page)) == [], step

        await look("phone")
        await checkout.prove_phone(PHONE)
        await look("card")
        await checkout.save_card()
        await look("review")
        assert "Due today $25.00" in await checkout.text()
        await checkout.pay()
        await look("done")
        ended = await shop.ended(page)
        assert (ended["how"], ended["checkoutSessionId"]) == ("success", session["checkout_session_id"])
        assert problems == []
        return str(ended["connectionId"])


async def test_checkout_story(backend: Backend, clock: Path, tmp_path: Path) -> None:
    """I1, I21, I22, I24, I25, I27: credit is sold, used up and rolled over, and the card pays exactly what lies beyond it."""
    daemon = backend.daemon
    for name, dollars in (("story", "5"), ("line", "1")):
        tier = {"start": "0", "rate": dollars}
        made = {"name": f"${dollars} a call", "meter_slug": name, "rate_type": "fixed", "tier_type": "requests", "tiers": [tier]}
        backend.sdk("meters.create", made)
    meters = [backend.sdk("meters.retrieve", name)["meter_id"] for name in ("story", "line")]
    plan = backend.post("plans", {**PLAN, "meter_ids": meters})

    # The first cycle: 25 are bought, 15 are used, 10 are left.
    backend.customer = await subscribe(backend, plan["plan_id"], tmp_path)
    subscription = backend.awaited_cycle("2026-11-25")
    assert (subscription["status"], subscription["plan"]["name"]) == ("active", "Pro")
    backend.awaited_balance("25")
    assert backend.paid() == {("subscription_start", "25.00"): 1}
    tokens = {
        meter: backend.sdk("generateForwardToken", {"customer_id": backend.customer, "meter_slug": meter})
        for meter in ("story", "line")
    }
    await streamed(daemon, tokens["story"], calls=3)
    backend.awaited_balance("10")

    # The second: 25 - 15 = 10 roll over, 25 come in, and the card has paid for them.
    move(clock, SECOND_CYCLE)
    backend.awaited_cycle("2026-12-25")
    backend.awaited_balance("35")
    assert Decimal(backend.subscription()["credits"]["total_remaining"]) == 35
    assert backend.paid() == {("subscription_start", "25.00"): 1, ("subscription_renewal", "25.00"): 1}

    # The credit runs out; calls go on, and the card pays for twice the line, while they go.
    await streamed(daemon, tokens["story"], calls=7)
    backend.awaited_balance("0")
    for pair in range(1, 5):
        await streamed(daemon, tokens["story"], calls=2, delay_ms=20)
        backend.awaited_overage(10 * pair)
        backend.awaited_balance("0")
    # Below the threshold nothing is charged before the cycle ends.
    await streamed(daemon, tokens["line"], calls=2)
    backend.awaited_balance("-2")
    assert backend.overage() == 40

    # The third: the rest of the overage and the plan are paid, and nothing was left to roll over.
    move(clock, THIRD_CYCLE)
    backend.awaited_cycle("2027-01-25")
    backend.awaited_balance("25")
    backend.awaited_overage(42)
    paid = backend.paid()
    assert (paid["subscription_start", "25.00"], paid["subscription_renewal", "25.00"]) == (1, 2)
    assert Decimal(backend.subscription()["credits"]["total_remaining"]) == 25
    await show_account(backend)

    # Every call is a row, every dollar is where it should be.
    rows = until(lambda: all_rows(backend, 20), "a row of each call")
    assert {row["status"] for row in rows} == {"completed"}
    assert sum(Decimal(row["charge"]["amount"]) for row in rows) == 18 * 5 + 2
    assert daemon.audit()["violations"] == []
    for day in DAYS:
        report = daemon.cli("payments", "reconcile", "--day", day)
        assert (report["day"], report["met"]) == (day, True), report


def all_rows(backend: Backend, number: int) -> list[dict[str, Any]] | None:
    rows: list[dict[str, Any]] = backend.daemon.get(f"requests?customer_id={backend.customer}&limit=100")["data"]
    return rows if len(rows) == number else None


async def show_account(backend: Backend) -> None:
    """The customer's own page, behind another code, says the same."""
    opened = backend.post(f"customers/{backend.customer}/portal_session", {})
    async with chromium() as browser:
        page = await browser.new_page()
        await page.goto(opened["url"])
        own = CheckoutPage(page, backend.daemon)
        await own.prove_phone(PHONE, 2)
        await own.at("portal")
        await picture(page, PICTURES, "story-account")
        assert "Pro $25.00 each month" in await own.text()
        assert await violations(page) == []
