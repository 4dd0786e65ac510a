"""The dashboard in a real browser: sign-in by link, both themes under axe, the live tail, the keyboard, no error in the console."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lava_proxy.domain.money import parse_usd
from tests.daemon import Daemon, running, until
from tests.e2e.browser import needs_chromium
from tests.e2e.visitor import Visitor
from tools.screenshots import call, seed

pytestmark = needs_chromium

PAGES = ("/dashboard", "/dashboard?range=1", "/dashboard/requests", "/dashboard/requests?status=error", "/dashboard/audit")


class _Slow(BaseHTTPRequestHandler):
    """A provider whose stream stands still until `go_on`."""

    go_on = threading.Event()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": "slowly"}, "finish_reason": None}]})
        self.go_on.wait(30)
        self._event({"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 200, "total_tokens": 300}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, facts: dict[str, Any]) -> None:
        head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "deepseek-chat"}
        self.wfile.write(b"data: " + json.dumps(head | facts).encode() + b"\n\n")
        self.wfile.flush()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), _Slow)
    serving = threading.Thread(target=upstream.serve_forever)
    serving.start()
    options = ("--workers", "1", "--provider", f"deepseek=http://127.0.0.1:{upstream.server_address[1]}")
    try:
        with running(tmp_path_factory.mktemp("dashboard"), *options, environment={"DEEPSEEK_API_KEY": "sk-of-nobody"}) as started:
            seed(started, 8)
            yield started
    finally:
        _Slow.go_on.set()
        upstream.shutdown()
        serving.join()
        upstream.server_close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", ["desktop", "phone"])
def test_every_page_passes_axe_and_fits_its_window_in_both_themes(browser: Any, daemon: Daemon, theme: str, width: str) -> None:
    visitor = Visitor(browser, daemon, theme=theme, width=width)
    row = daemon.get("requests?limit=1")["data"][0]["request_id"]
    found = {}
    for path in (*PAGES, f"/dashboard/requests/{row}", "/auth/connect?state=s&port=4321"):
        visitor.go(path)
        assert visitor.page.evaluate("document.documentElement.dataset.bsTheme") == theme
        found[path] = visitor.violations()
        assert not visitor.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"), path
    visitor.page.locator("[data-menu-toggle]").click() if width == "phone" else None
    assert visitor.page.locator("#app-nav a").first.is_visible()
    visitor.context.clear_cookies()
    visitor.go("/dashboard/sign-in")
    found["sign-in"] = visitor.violations()
    assert {path: problems for path, problems in found.items() if problems} == {}
    assert visitor.complaints == []
    visitor.context.close()


def test_a_chart_is_drawn_and_its_numbers_are_in_a_table_beside_it(browser: Any, daemon: Daemon) -> None:
    visitor = Visitor(browser, daemon)
    visitor.go("/dashboard")
    visitor.page.wait_for_selector("#chart-money canvas")
    visitor.page.locator("#chart-calls + details summary").click()
    assert visitor.page.locator("#chart-calls + details tbody tr").count() == 7
    visitor.page.get_by_role("link", name="30 days").click()
    visitor.page.locator("#chart-calls + details tbody tr").nth(29).wait_for(state="attached")
    visitor.page.wait_for_selector("#chart-money canvas")
    assert visitor.page.get_by_role("link", name="30 days").get_attribute("aria-current") == "true"
    assert visitor.page.url.endswith("range=30")
    assert visitor.complaints == []
    visitor.context.close()


def test_a_stream_is_seen_while_it_runs_and_completed_after_it_without_a_reload(browser: Any, daemon: Daemon) -> None:
    """The row appears while an SDK streams, as pending; the same row says completed and has its charge when it has ended."""
    openai = pytest.importorskip("openai")
    visitor = Visitor(browser, daemon)
    visitor.go("/dashboard/requests?provider=deepseek")
    _Slow.go_on.clear()
    said: list[str] = []

    def stream() -> None:
        address, token = daemon.base_url + "forward/deepseek/v1", daemon.token("fixed")
        with openai.OpenAI(base_url=address, api_key=token, max_retries=0) as client:
            messages = [{"role": "user", "content": "Hi"}]
            chunks = client.chat.completions.create(model="deepseek-chat", stream=True, messages=messages)
            said.extend(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)

    reader = threading.Thread(target=stream)
    reader.start()
    try:
        visitor.page.wait_for_selector("tr.is-open .tag-busy", timeout=20_000)
        link = visitor.page.locator("tr.is-open a").first.get_attribute("href")
    finally:
        _Slow.go_on.set()
        reader.join(60)
    request_id = str(link).rpartition("/")[2]
    row = visitor.page.locator("tr:not(.is-open)", has=visitor.page.locator(f"#r-{request_id}"))
    row.wait_for(timeout=20_000)
    assert "completed" in row.inner_text() and "$0.006000" in row.inner_text() and said == ["slowly"]
    visitor.page.locator(f"#r-{request_id}").click()
    visitor.page.get_by_text("$20 per million").wait_for()
    assert "300 tokens" in visitor.page.inner_text("main")
    assert visitor.complaints == []
    visitor.context.close()


def test_what_cannot_be_undone_asks_first_and_the_keyboard_is_enough(browser: Any, daemon: Daemon) -> None:
    visitor = Visitor(browser, daemon)
    page = visitor.page
    visitor.go("/dashboard")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.evaluate("""() => {
      const form = document.querySelector('form[action="/dashboard/sign-out"]');
      form.querySelector('button').dataset.confirm = 'Really sign out?';
    }""")
    page.get_by_role("button", name="Sign out").focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog", name="Really sign out?").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "Cancel"
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    assert page.url.endswith("/dashboard") and page.evaluate("document.activeElement.textContent").strip() == "Sign out"
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Yes, do it").click()
    page.wait_for_url("**/dashboard/sign-in")
    assert visitor.complaints == []
    visitor.context.close()


def test_the_theme_is_kept_and_a_filter_can_be_typed_and_cleared(browser: Any, daemon: Daemon) -> None:
    visitor = Visitor(browser, daemon)
    page = visitor.page
    visitor.go("/dashboard/requests")
    page.get_by_role("button", name="Light or dark").click()
    assert page.evaluate("document.documentElement.dataset.bsTheme") == "dark"
    page.locator("summary", has_text="Filter").click()
    page.get_by_label("Customer").fill("initech")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**customer=initech**")
    assert page.evaluate("document.documentElement.dataset.bsTheme") == "dark"
    assert {row.split("\t")[2] for row in page.locator("tbody tr").all_inner_texts()} == {"initech"}
    page.get_by_role("link", name="Clear").click()
    page.wait_for_url("**/dashboard/requests")
    assert visitor.complaints == []
    visitor.context.close()


def test_what_is_exported_is_what_is_filtered_and_adds_up_to_the_ledger_to_the_nano_dollar(browser: Any, daemon: Daemon) -> None:
    """Guards I3: file, ledger and live balance agree; markups leave charges with odd nano-dollars."""
    count, models = 27, ("gpt-4o-mini", "gpt-4o")
    customer = daemon.cli("customer", "create", "--reference-id", "exported", "--funds", "5.00")["connection_id"]
    for number in range(count):
        call(daemon, daemon.cli_token(customer, ("markup", "tiered")[number % 2]), models[number % 3 == 0])
    until(lambda: len(daemon.get(f"requests?customer_id={customer}&limit=100")["data"]) == count or None, "the rows")
    visitor = Visitor(browser, daemon)
    page = visitor.page

    def exported(query: str, label: str) -> list[str]:
        visitor.go(f"/dashboard/requests?{query}")
        with page.expect_download() as download:
            page.get_by_role("link", name=label).click()
        assert download.value.failure() is None
        return download.value.path().read_text().splitlines()

    rows = {row["request_id"]: row for row in csv.DictReader(exported("customer=exported", "CSV"))}
    charges = {request_id: parse_usd(row["charge"]) for request_id, row in rows.items()}
    assert len(rows) == count and {row["customer_id"] for row in rows.values()} == {customer}
    lines = [json.loads(line) for line in exported("customer=exported", "JSON lines")]
    assert {line["request_id"]: parse_usd(line["charge"]["amount"]) for line in lines} == charges
    dear = {row["request_id"] for row in csv.DictReader(exported("customer=exported&model=gpt-4o", "CSV"))}
    assert dear == {request_id for request_id, row in rows.items() if row["model"] == "gpt-4o"} and 0 < len(dear) < count

    visitor.go(f"/dashboard/customers/{customer}")
    page.get_by_role("button", name="Show older").click()
    calls = page.get_by_role("table", name="Ledger").locator("tbody tr", has=page.get_by_role("link"))
    calls.nth(count - 1).wait_for()
    ledger = {line.split("\t")[2]: line.split("\t")[3] for line in calls.all_inner_texts()}
    assert {request_id: parse_usd(text.removeprefix("-$")) for request_id, text in ledger.items()} == charges
    assert all(text.startswith("-$") for text in ledger.values()) and any(charge % 1000 for charge in charges.values())
    assert daemon.balance_nanos(customer) == 5_000_000_000 - sum(charges.values())
    assert visitor.complaints == []
    visitor.context.close()


def test_the_link_of_dev_signs_in_once_and_a_command_makes_more(browser: Any, daemon: Daemon) -> None:
    def status(address: str) -> int:
        class Stay(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_: Any) -> None:
                return None

        try:
            with urllib.request.build_opener(Stay).open(address, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    for link in (daemon.info["dashboard_link"], daemon.cli("dashboard", "link")["dashboard_link"]):
        assert (status(link), status(link)) == (303, 410)
    visitor = Visitor(browser, daemon)
    visitor.go("/dashboard/audit?action=session.link")
    assert "Command line" in visitor.page.inner_text("tbody") and "session.link" in visitor.page.inner_text("tbody")
    assert visitor.complaints == [] and visitor.violations() == []
    visitor.context.close()
    made = daemon.cli("merchant", "create", "--name", "Second")
    assert status(made["dashboard_link"]) == 303


def test_the_pictures_are_taken_of_every_page_wide_and_narrow_light_and_dark(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.screenshots", str(tmp_path / "pictures"), "--calls", "1", "--pages", "audit", "--json"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    names = {f"audit-{theme}-{width}.png" for theme in ("light", "dark") for width in ("desktop", "phone")}
    assert report["met"] is True and set(report["pictures"]) == names
    assert {file.name for file in (tmp_path / "pictures").iterdir()} == names
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (tmp_path / "pictures").iterdir())
