"""Customers, meters, plans, keys, webhooks and settings in a real browser: axe in both themes, and what a merchant does there."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon import Daemon, running, until
from tests.e2e.browser import needs_chromium
from tests.e2e.visitor import Visitor

pytestmark = needs_chromium

PAGES = (
    "customers", "customers?q=nobody-at-all", "customers/new", "meters", "meters/new", "plans", "plans/new", "plans/subscriptions",
    "keys", "keys/spend/new", "webhooks", "webhooks/new", "settings", "settings/branding", "checkouts", "checkouts/new",
)  # fmt: skip


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("dashboard-pages"), "--workers", "1") as started:
        yield started


@pytest.fixture(scope="module")
def things(daemon: Daemon) -> tuple[str, ...]:
    """The page of one thing of each kind, with something on it."""
    webhook = ask(daemon, "webhooks", {"name": "Main", "url": "http://127.0.0.1:9/x"})["webhook_id"]
    ask(daemon, f"webhooks/{webhook}/test", {})
    spend = ask(daemon, "spend_keys", {"name": "Tool", "spend_limit": {"amount": "5.00", "cycle": "daily"}})["spend_key_id"]
    bundle = {"name": "Small", "cost": "5.00", "credit_amount": "6.00"}
    plan = ask(daemon, "plans", {"name": "Pro", "period_amount": "25.00", "billing_interval": "month", "credit_bundles": [bundle]})
    sell(daemon, "tiered")
    return (
        f"customers/{daemon.info['connection_id']}", f"meters/{daemon.info['meters']['tiered']['meter_id']}",
        f"plans/{plan['plan_id']}", f"keys/spend/{spend}", f"webhooks/{webhook}",
    )  # fmt: skip


@pytest.fixture
def visitor(browser: Any, daemon: Daemon) -> Iterator[Visitor]:
    made = Visitor(browser, daemon)
    yield made
    assert made.complaints == []
    made.context.close()


def ask(daemon: Daemon, path: str, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
    """POST to the API as the merchant."""
    headers = {"Authorization": f"Bearer {key or daemon.info['secret_key']}", "Content-Type": "application/json"}
    request = urllib.request.Request(daemon.base_url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.loads(answer.read()))


def sell(daemon: Daemon, meter: str) -> dict[str, Any]:
    """One call to the sandbox provider; its row."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello."}]}
    request = urllib.request.Request(
        daemon.base_url + "forward/openai/v1/chat/completions", json.dumps(body).encode(),
        {"Authorization": f"Bearer {daemon.token(meter)}", "Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=30) as answer:
        return daemon.row(answer.headers["x-lava-request-id"])


def confirm(visitor: Visitor, label: str) -> None:
    """Say yes to the question that stands in the middle of the page."""
    visitor.page.locator("dialog.ask").get_by_role("button", name=label, exact=True).click()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", ["desktop", "phone"])
def test_every_page_passes_axe_and_fits_its_window(
    browser: Any, daemon: Daemon, things: tuple[str, ...], theme: str, width: str
) -> None:
    visitor = Visitor(browser, daemon, theme=theme, width=width)
    found = {}
    for path in (*PAGES, *things):
        visitor.go(f"/dashboard/{path}")
        if path == "keys" or path.startswith("customers/con_"):
            visitor.page.wait_for_selector(".snippets")
        assert visitor.page.evaluate("document.documentElement.dataset.bsTheme") == theme
        found[path] = visitor.violations()
        if visitor.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
            found[path].append("wider than its window")
    assert {path: problems for path, problems in found.items() if problems} == {}
    assert visitor.complaints == []
    visitor.context.close()


def test_a_new_price_is_charged_from_the_next_call_on_and_old_rows_keep_theirs(visitor: Visitor, daemon: Daemon) -> None:
    old = sell(daemon, "fixed")
    visitor.go(f"/dashboard/meters/{daemon.info['meters']['fixed']['meter_id']}")
    page = visitor.page
    page.locator("input[name=rate]").first.fill("200")
    page.locator("#quote", has_text="the customer pays $0.30").wait_for()
    page.get_by_role("button", name="Add a tier").click()
    page.locator("input[name=start]").nth(1).fill("5000000")
    page.locator("input[name=rate]").nth(1).fill("100")
    page.get_by_role("button", name="Remove tier 2").click()
    assert page.locator("#tiers tr").count() == 1
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Saved. New calls are charged by this price").wait_for()
    assert page.get_by_role("table", name="Prices this meter has had").locator("tbody tr").count() == 2

    def dearer() -> bool:
        new = sell(daemon, "fixed")
        return float(new["charge"]["amount"]) > 5 * float(old["charge"]["amount"])

    assert until(dearer, "a call at the new price")
    assert daemon.row(old["request_id"])["charge"] == old["charge"]


def test_a_balance_is_adjusted_after_a_question_and_not_without_an_answer(visitor: Visitor, daemon: Daemon) -> None:
    customer = ask(daemon, "customers", {"reference_id": "adjusted"})["customer_id"]
    visitor.go(f"/dashboard/customers/{customer}")
    page = visitor.page
    for name, text in (("Amount", "12.34"), ("Reason", "A gift")):
        page.locator("#adjust").get_by_label(name).fill(text)
    page.locator("#adjust").get_by_role("button", name="Adjust").click()
    confirm(visitor, "Cancel")
    assert daemon.balance_nanos(customer) == 0
    page.keyboard.press("Enter")
    confirm(visitor, "Adjust")
    page.get_by_text("The balance has been adjusted.").wait_for()
    assert daemon.balance_nanos(customer) == 12_340_000_000

    def written() -> bool:
        page.reload()
        return page.get_by_text("A gift").count() == 1

    until(written, "the ledger's line")
    page.get_by_role("button", name="Disable").click()
    confirm(visitor, "Disable")
    page.get_by_role("button", name="Enable").wait_for()


def test_a_wrong_field_is_told_at_the_field_and_what_was_typed_stays(visitor: Visitor) -> None:
    visitor.go("/dashboard/customers/new")
    page = visitor.page
    page.get_by_label("Name").fill("Grace Hopper")
    page.get_by_label("Phone").fill("12")
    page.keyboard.press("Enter")
    page.locator("#e-phone", has_text="country code").wait_for()
    assert page.get_by_label("Phone").get_attribute("aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == "f-phone"
    assert page.get_by_label("Name").input_value() == "Grace Hopper"
    visitor.complaints.clear()  # the browser notes the 422
    page.get_by_label("Phone").fill("+14155550123")
    page.keyboard.press("Enter")
    page.get_by_text("The customer has been created.").wait_for()
    page.goto(f"{visitor.base}/dashboard/customers")
    page.get_by_label("Search").fill("hopp")
    page.wait_for_url("**q=hopp*")
    assert page.locator("#customer-list tbody tr").count() == 1


def test_the_code_of_the_token_builder_makes_a_call(visitor: Visitor, daemon: Daemon) -> None:
    visitor.go(f"/dashboard/customers/{daemon.info['connection_id']}#token")
    page = visitor.page
    page.locator("#token select").select_option("fixed")
    page.locator("#token").get_by_label("Secret key (optional)").fill(daemon.info["secret_key"])
    page.locator("#token").get_by_role("button", name="Make the code").click()
    page.get_by_text("Forward token:").wait_for()
    code = page.locator("#code-curl").text_content()
    assert code is not None
    token = re.search(r"TOKEN=(\S+)", code)
    assert token is not None and daemon.info["secret_key"] not in code
    before = daemon.balance_nanos()
    request = urllib.request.Request(
        daemon.base_url + "chat/completions",
        json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello."}]}).encode(),
        {"Authorization": f"Bearer {token[1]}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200
    until(lambda: daemon.balance_nanos() < before, "the call to be charged")


def test_two_merchants_never_see_each_other(visitor: Visitor, browser: Any, daemon: Daemon) -> None:
    row = sell(daemon, "fixed")
    other = daemon.cli("merchant", "create", "--name", "Another")
    visitor.context.clear_cookies()
    visitor.page.goto(visitor.base + "/dashboard/sign-in")
    visitor.page.locator("input[name=secret_key]").fill(other["secret_key"])
    visitor.page.keyboard.press("Enter")
    visitor.page.wait_for_url("**/dashboard")
    for path in ("customers", "meters", "webhooks", "requests"):
        visitor.go(f"/dashboard/{path}")
        assert visitor.page.locator(".empty-state").count() == 1, path
    for path in (f"customers/{daemon.info['connection_id']}", f"requests/{row['request_id']}"):
        answer = visitor.page.goto(f"{visitor.base}/dashboard/{path}")
        assert answer is not None and answer.status == 404, path
    visitor.complaints.clear()  # the browser notes the 404
