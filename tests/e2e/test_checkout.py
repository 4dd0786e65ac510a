"""The hosted checkout in a real browser: the stock library on a merchant's page, plain links, a customer's own page."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from playwright.async_api import Browser, expect

from tests.daemon import Daemon, until
from tests.e2e import node_packages
from tests.e2e.browser import chromium, picture, violations, watch
from tests.e2e.checkout_pages import (
    DECLINED,
    DECLINED_WHEN_STORED,
    NEEDS_HOLDER,
    CheckoutPage,
    Shop,
    checkout_frame,
    merchant_shop,
    sent_code,
)

PICTURES = Path(os.environ["LAVA_TEST_PICTURES"]) if os.environ.get("LAVA_TEST_PICTURES") else None
_numbers = itertools.count(100)


def _phone() -> str:
    """Another phone for each test: codes to one are bounded."""
    return f"+14155550{next(_numbers)}"


@dataclass(slots=True)
class Desk:
    """What the tests share."""

    daemon: Daemon
    browser: Browser
    shop: Shop

    def api(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.daemon.info['secret_key']}", "Content-Type": "application/json"}
        try:
            with urlopen(Request(self.daemon.base_url + path, data=data, headers=headers, method=method), timeout=30) as response:
                return json.loads(response.read())
        except HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from error

    def plan(self, amount: str = "25.00", **more: Any) -> str:
        return str(
            self.api("POST", "plans", {"name": "Pro", "period_amount": amount, "billing_interval": "month", **more})["plan_id"]
        )

    def session(self, mode: str, **more: Any) -> dict[str, Any]:
        return dict(self.api("POST", "checkout_sessions", {"checkout_mode": mode, "origin_url": self.shop.origin, **more}))


@pytest.fixture
async def desk(daemon: Daemon, tmp_path: Path) -> AsyncIterator[Desk]:
    try:
        async with merchant_shop(tmp_path) as shop, chromium() as browser:
            yield Desk(daemon, browser, shop)
    except node_packages.NotHere as reason:
        pytest.skip(str(reason))


async def test_the_stock_library_subscribes_a_new_customer_and_is_told_who_they_are(desk: Desk) -> None:
    page = await desk.browser.new_page()
    problems = watch(page)
    session = desk.session("subscription", plan_id=desk.plan())
    checkout = await desk.shop.open(page, session["checkout_session_token"], desk.daemon)
    await checkout.prove_phone(_phone())
    await checkout.save_card()
    await checkout.at("review")
    assert "Due today $25.00" in await checkout.text()
    await checkout.pay()
    await checkout.at("done")
    ended = await desk.shop.ended(page)
    assert (ended["how"], ended["checkoutSessionId"]) == ("success", session["checkout_session_id"])
    subscription = desk.api("GET", f"customers/{ended['connectionId']}/subscription")["subscription"]
    assert (subscription["status"], subscription["plan"]["name"]) == ("active", "Pro")
    until(lambda: desk.api("GET", f"customers/{ended['connectionId']}")["balance"] == "25.0000000000" or None, "the plan's credit")
    assert desk.api("GET", f"checkout_sessions/{session['checkout_session_id']}")["customer_id"] == ended["connectionId"]
    assert problems == []


async def test_cancelling_tells_the_shop_and_charges_nothing(desk: Desk) -> None:
    page = await desk.browser.new_page()
    session = desk.session("onboarding")
    checkout = await desk.shop.open(page, session["checkout_session_token"], desk.daemon)
    await checkout.at("phone")
    await checkout.press("Cancel checkout")
    assert await desk.shop.ended(page) == {"how": "cancel", "checkoutSessionId": session["checkout_session_id"]}
    assert desk.api("GET", f"checkout_sessions/{session['checkout_session_id']}")["status"] == "cancelled"


async def test_another_site_cannot_embed_the_checkout(desk: Desk) -> None:
    page = await desk.browser.new_page()
    session = desk.session("onboarding", origin_url="https://elsewhere.example")
    async with page.expect_console_message(lambda said: "frame-ancestors" in said.text, timeout=15_000):
        checkout = await desk.shop.open(page, session["checkout_session_token"], desk.daemon)
    assert await checkout.scope.locator(".step").count() == 0


async def test_a_declined_card_is_said_and_another_card_pays(desk: Desk) -> None:
    page = await desk.browser.new_page()
    session = desk.session("onboarding")
    await page.goto(session["url"])
    checkout = CheckoutPage(page, desk.daemon)
    await checkout.prove_phone(_phone())
    await checkout.choose_amount("10")
    await checkout.save_card(DECLINED_WHEN_STORED)
    await expect(page.locator("#number-problem")).to_contain_text("declined")
    assert await page.evaluate("document.activeElement.id") == "number"
    await checkout.save_card(DECLINED)
    await checkout.pay()
    await expect(page.locator(".problem")).to_contain_text("Nothing was charged")
    await checkout.press("Use another card")
    await checkout.save_card()
    await checkout.pay()
    await checkout.at("done")
    assert "$10.00" in await checkout.text()


async def test_a_card_that_asks_its_holder_is_approved_inside_the_page(desk: Desk) -> None:
    page = await desk.browser.new_page()
    session = desk.session("onboarding")
    checkout = await desk.shop.open(page, session["checkout_session_token"], desk.daemon)
    await checkout.prove_phone(_phone())
    await checkout.choose_amount("10")
    await checkout.save_card(NEEDS_HOLDER)
    await checkout.pay()
    await checkout.answer_bank("Refuse")
    await checkout.at("review")
    await expect(checkout.scope.locator(".problem")).to_contain_text("not authenticated")
    await checkout.pay()
    await checkout.answer_bank("Approve")
    assert (await desk.shop.ended(page))["how"] == "success"


async def test_a_closed_tab_goes_on_where_it_was_and_a_second_click_pays_once(desk: Desk) -> None:
    context = await desk.browser.new_context()
    page = await context.new_page()
    session = desk.session("onboarding")
    await page.goto(session["url"])
    checkout = CheckoutPage(page, desk.daemon)
    phone = _phone()
    await checkout.prove_phone(phone)
    await checkout.choose_amount("10")
    await checkout.save_card()
    await checkout.at("review")
    await page.close()
    page = await context.new_page()
    await page.goto(session["url"])
    checkout = CheckoutPage(page, desk.daemon)
    await checkout.at("review")
    # On another device the phone has to be proved again; then that one goes on and the first no longer does.
    other = await desk.browser.new_page()
    await other.goto(session["url"])
    elsewhere = CheckoutPage(other, desk.daemon)
    await elsewhere.at("phone")
    await checkout.scope.locator('form[action="pay"] button').dblclick()
    await checkout.at("done")
    await other.reload()
    await elsewhere.at("done")
    customer = desk.api("GET", f"checkout_sessions/{session['checkout_session_id']}")["customer_id"]
    until(lambda: desk.api("GET", f"customers/{customer}")["balance"] == "10.0000000000" or None, "ten dollars, once")


async def test_a_link_from_the_command_line_leads_to_its_checkout(desk: Desk) -> None:
    """And is written to whom it is for: in `dev` the message is a line in the log."""
    made = desk.daemon.cli("checkout", "link", "--plan", desk.plan("9.50"), "--email", "ada@example.com")
    assert made["checkout_mode"] == "subscription" and made["sent_to"] == "ada@example.com"
    page = await desk.browser.new_page()
    await page.goto(made["url"])
    checkout = CheckoutPage(page, desk.daemon)
    await checkout.prove_phone(_phone())
    await checkout.save_card()
    await checkout.at("review")
    assert "$9.50 each month" in await checkout.text()
    await checkout.press("Cancel checkout")
    await checkout.at("cancelled")
    assert "Nothing was charged" in await checkout.text()


async def test_wrong_codes_are_counted_and_end_in_a_new_one(desk: Desk) -> None:
    page = await desk.browser.new_page()
    await page.goto(desk.session("onboarding")["url"])
    checkout, phone = CheckoutPage(page, desk.daemon), _phone()
    await page.get_by_label("Phone number", exact=True).fill(phone)
    await checkout.press("Text me a code")
    await checkout.at("code")
    right = sent_code(desk.daemon, phone)
    wrong = "000000" if right != "000000" else "111111"
    for left in ("4 tries are", "3 tries are", "2 tries are", "1 try is"):
        await page.get_by_label("Code", exact=True).fill(wrong)
        await checkout.press("Confirm")
        await expect(page.locator("#code-problem")).to_contain_text(left)
    await page.get_by_label("Code", exact=True).fill(wrong)
    await checkout.press("Confirm")
    await expect(page.locator("#code-problem")).to_contain_text("Ask for a new one")
    await page.get_by_label("Code", exact=True).fill(wrong)
    await checkout.press("Confirm")
    await checkout.at("phone")
    await expect(page.locator(".problem")).to_contain_text("Ask for a new code")


async def test_a_customer_sees_and_manages_what_they_have(desk: Desk) -> None:
    page = await desk.browser.new_page()
    phone = _phone()
    await page.goto(desk.session("subscription", plan_id=desk.plan())["url"])
    checkout = CheckoutPage(page, desk.daemon)
    await checkout.prove_phone(phone)
    await checkout.save_card()
    await checkout.pay()
    await checkout.at("done")
    customer = desk.api("GET", "checkout_sessions?limit=1")["data"][0]["customer_id"]
    account = desk.api("POST", f"customers/{customer}/portal_session", {})
    page = await desk.browser.new_page()
    problems = watch(page)
    await page.goto(account["url"])
    own = CheckoutPage(page, desk.daemon)
    await expect(page.locator(".step")).to_contain_text(f"•••• {phone[-2:]}")
    assert phone not in await page.content(), "whoever has the link does not learn the number"
    await own.prove_phone(phone, 2)
    await own.at("portal")
    assert "Pro $25.00 each month" in await own.text()
    await picture(page, PICTURES, "portal")
    assert await violations(page) == []
    await page.get_by_text("Add money").click()
    await page.get_by_label("Amount in dollars").fill("10")
    await own.press("Continue")
    await own.pay()
    await own.at("portal")
    await page.get_by_role("button", name="Receipt of").first.click()
    await expect(page.locator(".step h1")).to_have_text("Receipt")
    assert await violations(page) == []
    await own.press("Back")
    await own.at("portal")
    await page.locator("summary", has_text="Cancel the plan").click()
    await own.press("Cancel the plan")
    await expect(page.locator(".step")).to_contain_text("Ends")
    await own.press("Keep the plan")
    await expect(page.locator(".step")).to_contain_text("Renews")
    await own.press("Remove the card ending in 4242")
    await expect(page.locator(".step")).to_contain_text("No card is stored")
    assert problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 320])
async def test_every_step_is_accessible_and_fits(desk: Desk, scheme: Literal["light", "dark"], width: int) -> None:
    page = await desk.browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 760})
    session = desk.session("onboarding")
    checkout = await desk.shop.open(page, session["checkout_session_token"], desk.daemon)
    phone = _phone()

    async def look(step: str) -> None:
        await checkout.at(step)
        await picture(page, PICTURES, f"{step}-{scheme}-{width}")
        frame = checkout_frame(page)
        assert await violations(frame) == [], step
        assert await frame.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{step} is wider than {width} px"
        focused = await frame.evaluate("document.activeElement.tagName")
        assert focused in ("H1", "INPUT", "P"), f"{step}: the focus is on {focused}"

    await look("phone")
    await checkout.scope.get_by_label("Phone number", exact=True).fill("12")
    await checkout.press("Text me a code")
    await expect(checkout.scope.locator("#phone-problem")).to_be_visible()
    await look("phone")
    await checkout.scope.get_by_label("Phone number", exact=True).fill(phone)
    await page.keyboard.press("Enter")
    await look("code")
    await checkout.enter_code(phone)
    await look("amount")
    await checkout.choose_amount("25")
    await look("card")
    await checkout.save_card(NEEDS_HOLDER)
    await look("review")
    await checkout.pay()
    await look("authenticate")
    await checkout.answer_bank("Approve")
    assert (await desk.shop.ended(page))["how"] == "success"
    await page.goto(session["url"])  # the frame is gone; the same step stands alone
    await CheckoutPage(page, desk.daemon).at("done")
    await picture(page, PICTURES, f"done-{scheme}-{width}")
    assert await violations(page) == []
