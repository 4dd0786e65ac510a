"""A picture of every page of the dashboard and the checkout, from a seeded `dev` installation of its own: themes and widths.

Files are named PAGE-THEME-WIDTH.png. A page that has an error in its console ends the program with 1. `--readme` also makes the
three pictures that the README shows, into deploy/pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.daemon import Daemon, running
from tests.e2e.browser import launch_options
from tests.e2e.checkout_pages import sent_code

WIDTHS = {"desktop": (1280, 900), "phone": (360, 740)}
THEMES = ("light", "dark")
PICTURES = Path(__file__).parents[1] / "deploy" / "pictures"
PICTURE_BYTES_MAX = 150_000
SHOWN = ("overview", "request", "checkout")
EMPTY_PAGES = (
    ("empty-overview", "/dashboard"),
    ("empty-requests", "/dashboard/requests"),
    ("empty-customers", "/dashboard/customers"),
)
"""What somebody sees who has just begun, in this order."""
_MODELS = ("gpt-4o-mini", "gpt-4o", "gpt-4.1-nano")


def main() -> int:
    options = parse_arguments()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "data", "--workers", "1") as daemon:
        seed(daemon, options.calls)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(**launch_options())
            written, problems = take(browser, daemon, options.folder, options.pages)
            if options.readme:
                problems += show(browser, daemon, PICTURES)
            browser.close()
    report = {"met": not problems, "pictures": written, "problems": problems, "folder": str(options.folder)}
    print(json.dumps(report) if options.json else "\n".join([f"{len(written)} pictures in {options.folder}", *problems]))
    return 1 if problems else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./lava screenshots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the pictures go; made when it is not there")
    parser.add_argument("--calls", type=int, default=40, help="how many calls are made first (default 40)")
    parser.add_argument("--pages", default=None, metavar="WORDS", help="only pages whose name has one of these words, by commas")
    parser.add_argument("--readme", action="store_true", help=f"also write {', '.join(SHOWN)} for the README to deploy/pictures")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args()


def signed_in(
    browser: Browser, daemon: Daemon, *, width: str = "desktop", theme: str = "light", merchant_id: str | None = None
) -> BrowserContext:
    """A browser's window that a fresh one-time link has signed in; without `merchant_id` to the sandbox's merchant."""
    wide, high = WIDTHS[width]
    context = browser.new_context(viewport={"width": wide, "height": high}, color_scheme="dark" if theme == "dark" else "light")
    page = context.new_page()
    page.goto(link_of(daemon, merchant_id or daemon.info["merchant_id"]))
    page.close()
    return context


def link_of(daemon: Daemon, merchant_id: str) -> str:
    """A fresh one-time link."""
    return str(daemon.cli("dashboard", "link", "--merchant", merchant_id)["dashboard_link"])


def call(daemon: Daemon, token: str, model: str, *, stream: bool = False) -> None:
    """One call to the sandbox provider; what it answers does not matter."""
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "Say hello to everybody here."}]}
    request = urllib.request.Request(
        daemon.base_url + "forward/openai/v1/chat/completions", json.dumps(body).encode(),
        {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )  # fmt: skip
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=30) as response:
        response.read()


def post(daemon: Daemon, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """As the merchant; what was answered."""
    headers = {"Authorization": f"Bearer {daemon.info['secret_key']}", "Content-Type": "application/json"}
    request = urllib.request.Request(daemon.base_url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.loads(answer.read()))


def seed(daemon: Daemon, calls: int) -> None:
    """A plan, customers, one of them nearly out of money, and calls of theirs, some of which fail."""
    bundle = {"name": "Extra credit", "cost": "10.00", "credit_amount": "12.00"}
    terms = {"name": "Pro", "period_amount": "25.00", "billing_interval": "month"}
    plan = post(daemon, "plans", {**terms, "credit_bundles": [bundle]})
    checkout_of(daemon, plan["plan_id"])
    tokens = [daemon.token("fixed"), daemon.token("markup"), str(daemon.info["self_forward_token"])]
    for name, funds in (("acme-industries", "40.00"), ("globex@example.com", "12.50"), ("initech", "0.20")):
        made = daemon.cli("customer", "create", "--reference-id", name, "--funds", funds)
        tokens.append(daemon.cli_token(made["connection_id"], "tiered"))
    post(daemon, "requests", {"request_id": "report-1", "customer_id": "initech", "meter_slug": "fixed", "input_tokens": 9_000})
    for number in range(calls):
        call(daemon, tokens[number * 7 % len(tokens)], _MODELS[number % len(_MODELS)], stream=number % 2 == 0)
    if calls:
        last = daemon.get("requests?limit=1")["data"]
        if last:
            daemon.row(last[0]["request_id"])


def checkout_of(daemon: Daemon, plan_id: str) -> dict[str, Any]:
    """A new checkout that a page of the installation itself may hold in a frame."""
    body = {"checkout_mode": "subscription", "origin_url": daemon.base_url.removesuffix("v1/"), "plan_id": plan_id}
    return post(daemon, "checkout_sessions", body)


def pages(page: Page, base: str) -> Iterator[tuple[str, str]]:
    """(name, path) of every page: those of the menu, and the first thing that each list leads to."""
    yield "sign-in", "/dashboard/sign-in"
    page.goto(f"{base}/dashboard")
    paths = page.eval_on_selector_all("#app-nav a[href^='/dashboard']", "links => links.map(link => link.getAttribute('href'))")
    for path in paths:
        name = path.removeprefix("/dashboard").strip("/") or "overview"
        answer = page.goto(base + path)
        if answer is None or answer.status == 404:
            continue
        yield name, path
        links = page.eval_on_selector_all("main a[href]", "links => links.map(link => link.getAttribute('href'))")
        inner = [link for link in links if path != "/dashboard" and link.startswith(f"{path}/")]
        below = [one for one in inner if re.fullmatch(r"/dashboard/\w+/\w+_[^/?]+", one)]
        if below:
            yield f"{name}-one", below[0]
    yield "branding", "/dashboard/settings/branding"
    yield "checkouts", "/dashboard/checkouts"
    yield "checkout-new", "/dashboard/checkouts/new"
    page.goto(f"{base}/dashboard/checkouts")
    one = page.locator("main tbody a[href^='/dashboard/checkouts/']").first.get_attribute("href") or ""
    yield "checkout-link", one
    yield "checkout-frame", f"{one}/frame"
    page.goto(base + one)
    yield "checkout-page", (page.locator("#checkout-url").text_content() or "").removeprefix(base)
    yield "connect", "/auth/connect?state=example&port=4321"


def take(browser: Browser, daemon: Daemon, folder: Path, only: str | None) -> tuple[list[str], list[str]]:
    """(files, problems) of all pages in all themes and widths."""
    base = daemon.base_url.removesuffix("/v1/")
    written, problems = [], []
    context = signed_in(browser, daemon)
    found = [
        (name, path)
        for name, path in pages(context.new_page(), base)
        if only is None or any(word in name for word in only.split(","))
    ]
    context.close()
    if only is None or any(word in "empty" for word in only.split(",")):
        found += EMPTY_PAGES
        beginner = daemon.cli("merchant", "create", "--name", "Beginner")["merchant_id"]
    for theme in THEMES:
        for width in WIDTHS:
            context = signed_in(browser, daemon, width=width, theme=theme)
            page = context.new_page()
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: problems.append(str(error)))
            for name, path in found:
                if name == "sign-in":
                    context.clear_cookies()
                if (name, path) == EMPTY_PAGES[0]:
                    page.goto(link_of(daemon, beginner))
                page.goto(base + path)
                page.wait_for_load_state("networkidle")
                if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
                    problems.append(f"{path} is wider than the window ({width}, {theme})")
                file = folder / f"{name}-{theme}-{width}.png"
                page.screenshot(path=str(file), full_page=True)
                written.append(file.name)
                if name == "sign-in":
                    page.goto(link_of(daemon, daemon.info["merchant_id"]))
            context.close()
    return written, problems


def show(browser: Browser, daemon: Daemon, folder: Path) -> list[str]:
    """The README's pictures; what is wrong with them."""
    folder.mkdir(parents=True, exist_ok=True)
    base = daemon.base_url.removesuffix("/v1/")
    context = signed_in(browser, daemon)
    page = context.new_page()
    request = daemon.get("requests?limit=1")["data"][0]["request_id"]
    plan = daemon.get("plans?limit=1")["data"][0]["plan_id"]
    problems = []
    for name, path in zip(SHOWN, ("/dashboard", f"/dashboard/requests/{request}", ""), strict=True):
        if name == "checkout":
            page.set_viewport_size({"width": 720, "height": 720})
            pay(page, daemon, checkout_of(daemon, plan)["url"])
        else:
            page.goto(base + path)
        page.wait_for_load_state("networkidle")
        file = folder / f"{name}.png"
        page.screenshot(path=str(file))
        if file.stat().st_size > PICTURE_BYTES_MAX:
            problems.append(f"{file.name} has {file.stat().st_size} bytes, more than {PICTURE_BYTES_MAX}")
    context.close()
    return problems


def pay(page: Page, daemon: Daemon, url: str) -> None:
    """Go to where a checkout shows what will be paid; the code comes from the log, where `dev` writes it."""
    phone = "+14155550147"
    page.goto(url)
    page.get_by_label("Phone number", exact=True).fill(phone)
    page.get_by_role("button", name="Text me a code").click()
    page.get_by_label("Code", exact=True).fill(sent_code(daemon, phone))
    page.get_by_role("button", name="Confirm").click()
    for label, text in (("Card number", "4242 4242 4242 4242"), ("Expiry", "12/34"), ("Security code", "123")):
        page.get_by_label(label).fill(text)
    page.get_by_role("button", name="Save card").click()
    page.locator('.step[data-step="review"]').wait_for()


if __name__ == "__main__":
    sys.exit(main())
