"""Checkouts from the dashboard in a real browser: a trial in a frame ends in a customer, a link is sent, branding shown."""

from __future__ import annotations

import base64
import itertools
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon import Daemon, running, until
from tests.e2e.browser import needs_chromium
from tests.e2e.checkout_pages import sent_code
from tests.e2e.test_dashboard_pages import ask
from tests.e2e.visitor import Visitor

pytestmark = needs_chromium

_numbers = itertools.count(200)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("dashboard-checkouts"), "--workers", "1") as started:
        yield started


@pytest.fixture
def visitor(browser: Any, daemon: Daemon) -> Iterator[Visitor]:
    made = Visitor(browser, daemon)
    yield made
    assert made.complaints == []
    made.context.close()


def plan_of(daemon: Daemon) -> str:
    return str(ask(daemon, "plans", {"name": "Pro", "period_amount": "25.00", "billing_interval": "month"})["plan_id"])


def png(colour: tuple[int, int, int]) -> bytes:
    """A picture of one pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head, pixels = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0), zlib.compress(b"\0" + bytes(colour))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_plan_is_bought_in_a_frame_and_the_page_is_told_of_the_customer(visitor: Visitor, daemon: Daemon) -> None:
    """Guards the frame's policy too: only our own origin may hold it."""
    visitor.go(f"/dashboard/plans/{plan_of(daemon)}")
    page, phone = visitor.page, f"+14155550{next(_numbers)}"
    page.get_by_role("button", name="Test checkout in a frame").click()
    page.wait_for_url("**/frame")
    outcome = page.locator("#trial-outcome")
    assert "not been told anything yet" in outcome.inner_text()
    frame = page.frame_locator("iframe.checkout-trial")
    frame.get_by_label("Phone number", exact=True).fill(phone)
    frame.get_by_role("button", name="Text me a code").click()
    frame.get_by_label("Code", exact=True).fill(sent_code(daemon, phone))
    frame.get_by_role("button", name="Confirm").click()
    for label, text in (("Card number", "4242 4242 4242 4242"), ("Expiry", "12/34"), ("Security code", "123")):
        frame.get_by_label(label).fill(text)
    frame.get_by_role("button", name="Save card").click()
    frame.locator('form[action="pay"] button').click()
    outcome.get_by_role("link").wait_for()
    assert outcome.inner_text().startswith("Success: your page would be told of the customer con_")
    outcome.get_by_role("link").click()
    page.wait_for_url("**/dashboard/customers/con_*")
    page.get_by_role("link", name="Pro", exact=True).wait_for()
    page.get_by_role("button", name="Customer page link").click()
    link = page.locator("#portal-url").text_content()
    assert link is not None and re.fullmatch(re.escape(visitor.base) + r"/checkout/css_test_[\w-]+", link)


def test_cancelling_in_the_frame_is_told_and_other_messages_are_not(visitor: Visitor, daemon: Daemon) -> None:
    visitor.go(f"/dashboard/checkouts/new?plan={plan_of(daemon)}")
    page = visitor.page
    page.get_by_role("button", name="Test it in a frame").click()
    page.wait_for_url("**/frame")
    outcome = page.locator("#trial-outcome")
    session = outcome.get_attribute("data-session")
    page.evaluate("id => postMessage({type: 'lava_checkout_success', checkoutSessionId: id}, '*')", session)
    page.evaluate("() => new Promise(done => setTimeout(done, 0))")
    assert "not been told anything yet" in outcome.inner_text()
    page.frame_locator("iframe.checkout-trial").get_by_role("button", name="Cancel checkout").click()
    outcome.get_by_text("Cancelled: your page would close the frame.").wait_for()
    visitor.go("/dashboard/checkouts")
    assert page.locator("tbody tr").first.get_by_text("cancelled").count() == 1


def test_a_checkout_link_is_sent_to_a_customer(visitor: Visitor, daemon: Daemon) -> None:
    made = ask(daemon, "customers", {"reference_id": "linked", "email": "linked@example.com"})
    visitor.go(f"/dashboard/customers/{made['customer_id']}")
    page = visitor.page
    page.get_by_role("link", name="Send checkout link").click()
    page.get_by_label("What is sold").select_option("topup")
    assert page.get_by_label("Send it to").input_value() == "linked@example.com"
    page.get_by_role("button", name="Make the link").click()
    page.get_by_text("The link has been sent to linked@example.com.").wait_for()
    link = str(page.locator("#checkout-url").text_content())
    until(lambda: link in daemon.log_path.read_text(), "the message in the log")
    assert visitor.violations() == []
    page.goto(link)
    page.locator('.step[data-step="phone"]').wait_for()


def test_branding_is_previewed_as_it_is_typed_and_stands_on_the_checkout(visitor: Visitor, daemon: Daemon) -> None:
    visitor.go("/dashboard/settings/branding")
    page = visitor.page
    page.get_by_label("Name").fill("Acme Rockets")
    page.locator("#branding-preview strong", has_text="Acme Rockets").first.wait_for()
    page.get_by_label("Colour").fill("#ffee00")
    page.get_by_text("links are made darker").wait_for()
    button = page.locator(".brand-preview-button").first
    assert button.evaluate("one => getComputedStyle(one).backgroundColor") == "rgb(255, 238, 0)"
    picture = png((170, 0, 0))
    page.get_by_label("Logo").set_input_files({"name": "logo.png", "mimeType": "image/png", "buffer": picture})
    page.locator(".brand-preview-logo img").first.wait_for()
    assert visitor.violations() == []
    page.get_by_role("button", name="Save branding").click()
    page.get_by_text("The checkout looks like this from now on.").wait_for()
    page.locator(".brand-preview-logo img").first.wait_for()
    session = ask(daemon, "checkout_sessions", {"checkout_mode": "onboarding", "origin_url": visitor.base})
    page.goto(session["url"])
    assert page.locator(".brand-name").inner_text() == "Acme Rockets"
    logo = page.locator("img.logo").get_attribute("src")
    assert logo == f"data:image/png;base64,{base64.b64encode(picture).decode()}"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", ["desktop", "phone"])
def test_the_pages_of_one_checkout_pass_axe_and_fit_their_window(browser: Any, daemon: Daemon, theme: str, width: str) -> None:
    body = {"checkout_mode": "subscription", "origin_url": daemon.base_url, "plan_id": plan_of(daemon)}
    session = ask(daemon, "checkout_sessions", body)["checkout_session_id"]
    visitor = Visitor(browser, daemon, theme=theme, width=width)
    found = {}
    for path in (f"checkouts/{session}", f"checkouts/{session}/frame"):
        visitor.go(f"/dashboard/{path}")
        visitor.page.wait_for_load_state("networkidle")
        found[path] = visitor.violations()
        assert not visitor.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"), path
    assert [problem for problems in found.values() for problem in problems] == []
    assert visitor.complaints == []
    visitor.context.close()
