"""From nothing to the first charged call; every next link and command is taken from what the program prints and its pages say."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from lava_proxy.domain.money import parse_usd
from lava_proxy.stores.vault import new_master_key
from lava_proxy.web.dashboard.snippets import snippets
from tests.daemon import running, until
from tests.e2e.browser import needs_chromium
from tests.engines import RunningEngines, running_engines

pytestmark = needs_chromium

CLONE = Path(__file__).parents[2]
PROVIDER_KEY = "sk-which-the-merchant-got-from-the-provider"
START_TIMEOUT_S = 60


def usage_of(number: int) -> dict[str, int]:
    """Of the provider's n-th answer."""
    return {"prompt_tokens": 1_237, "completion_tokens": 411 * number, "total_tokens": 1_237 + 411 * number}


def nanos_of(number: int) -> int:
    """What the n-th call comes to by the meter that the page proposes, $20 per million tokens."""
    return usage_of(number)["total_tokens"] * 20_000


class Provider(BaseHTTPRequestHandler):
    """Stands where OpenAI does: answers those who have its key, and those only, once it may."""

    may_answer = threading.Event()
    numbers = itertools.count(1)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {PROVIDER_KEY}":
            self._answer(401, {"error": {"message": "Incorrect API key provided", "type": "invalid_request_error"}})
            return
        self.may_answer.wait(30)
        self._answer(200, {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello there."}, "finish_reason": "stop"}],
            "usage": usage_of(next(self.numbers)),
        })  # fmt: skip

    def _answer(self, status: int, facts: dict[str, Any]) -> None:
        body = json.dumps(facts).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def provider_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        Provider.may_answer.set()
        server.shutdown()
        serving.join()
        server.server_close()


@pytest.fixture
def own_engines() -> Iterator[RunningEngines]:
    """Serve owns the whole Redis and its database."""
    with running_engines() as started:
        yield started


@dataclass(kw_only=True)
class Terminal:
    """Where commands are pasted: in the clone's folder, with the variables that were exported there."""

    environment: dict[str, str] = field(repr=False)

    def paste(self, text: str, **exported: str) -> str:
        """What a command prints; it must not fail."""
        done = subprocess.run(
            ["bash", "-c", text], capture_output=True, text=True, timeout=120, check=False, cwd=CLONE,
            env={**self.environment, **exported},
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run_python(self, program: str, **exported: str) -> str:
        """What a Python program prints."""
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False,
            env={**self.environment, **exported},
        )  # fmt: skip
        assert done.returncode == 0, f"{program}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def running(self, command: str, is_told: Callable[[str], bool], log_path: Path) -> Iterator[str]:
        """A server in another window: what it has printed once `is_told`; ended in order."""
        with log_path.open("w") as log:
            process = subprocess.Popen(
                shlex.split(command), stdout=subprocess.PIPE, stderr=log, text=True, cwd=CLONE, env=self.environment
            )
        assert process.stdout is not None
        printed: list[str] = []
        reader = threading.Thread(target=printed.extend, args=[iter(process.stdout.readline, "")])
        reader.start()
        try:
            until(lambda: is_told("".join(printed)) or process.poll() is not None or None, f"{command} to start", START_TIMEOUT_S)
            assert process.poll() is None, log_path.read_text()
            yield "".join(printed)
        finally:
            process.terminate()
            status = process.wait(120)
            reader.join()
            process.stdout.close()
        assert status == 0, log_path.read_text()[-3000:]


class Stranger:
    """Somebody who has never seen the product, with one browser; `complaints` is what its console said."""

    def __init__(self, browser: Browser) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
        self.complaints: list[str] = []
        self.page = self.tab()

    def tab(self, address: str | None = None) -> Page:
        page = self.context.new_page()
        page.on("console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        if address is not None:
            page.goto(address)
        return page

    def take_next_step(self) -> str:
        """From the overview on to where the step that is next leads; what that step is called."""
        self.page.locator("#app-nav").get_by_role("link", name="Overview").click()
        step = self.page.locator('#first-steps [aria-current="step"]')
        title = step.get_by_role("heading").inner_text()
        step.get_by_role("link").click()
        self.page.wait_for_load_state()
        return title

    def press(self, name: str, where: Locator | None = None) -> None:
        (where or self.page.locator("main")).get_by_role("button", name=name, exact=True).click()

    def is_told(self, text: str) -> None:
        expect(self.page.locator("#notices")).to_contain_text(text)

    def violations(self) -> list[str]:
        """What axe finds on the page as it is shown on screens and phones, light and dark; and whether it is too wide."""
        found = []
        for scheme in ("light", "dark"):
            for width in (1280, 360):
                self.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
                self.page.set_viewport_size({"width": width, "height": 900})
                self.page.reload()
                for one in Axe().run(self.page).response["violations"]:
                    found.append(f"{scheme} {width} {one['id']}: {one['nodes'][0]['html'][:160]}")
                if self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
                    found.append(f"{scheme} {width}: wider than its window")
        self.page.set_viewport_size({"width": 1280, "height": 900})
        return found


def commands(text: str) -> list[str]:
    """The indented lines of what was printed."""
    return re.findall(r"^  (\S.*)$", text, re.MULTILINE)


def nanos(text: str) -> int:
    """What a page says as dollars: no digit of it is hidden."""
    sign = -1 if text.strip().startswith("-") else 1
    return sign * parse_usd(text.strip().lstrip("+-").removeprefix("$").replace(",", ""))


def stat(page: Page, label: str) -> int:
    """One of the numbers at the head of a page."""
    shown = page.locator(".stat", has=page.locator("dt", has_text=re.compile(f"^{label}$"))).locator("dd")
    return nanos(shown.evaluate("one => one.firstChild.textContent"))


def plain_environment() -> dict[str, str]:
    """This process' variables without those of the product and of providers; the installed program is on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LAVA_") and not name.endswith("_API_KEY")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_a_stranger_gets_from_an_empty_installation_to_a_charged_call_by_what_the_pages_say(
    browser: Browser, own_engines: RunningEngines, provider_url: str, tmp_path: Path
) -> None:
    terminal = Terminal(
        environment={
            **plain_environment(),
            "LAVA_REDIS_URL": own_engines.redis_url,
            "LAVA_DATABASE_URL": own_engines.database_url,
            "LAVA_MASTER_KEY": new_master_key(),
            "LAVA_PORT": "0",
            "LAVA_WORKERS": "1",
        }
    )
    serve = f"lava-proxy serve --provider openai={provider_url}"
    with terminal.running(serve, lambda text: bool(commands(text)), tmp_path / "serve.log") as printed:
        stranger = Stranger(browser)
        page = stranger.page

        # The status page leads to the dashboard, and that to the command which the server has printed too.
        page.goto(re.findall(r"status page: (\S+)\)", printed)[0])
        page.get_by_role("link", name="Dashboard").click()
        command = page.locator("#link-command").inner_text()
        assert [command] == commands(printed)
        assert page.get_by_label("Secret key").count() == 0
        made = json.loads(terminal.paste(command))
        page.reload()
        again = json.loads(terminal.paste(page.locator("#link-command").inner_text()))["dashboard_link"]
        page.goto(made["dashboard_link"])
        assert stranger.violations() == []

        assert stranger.take_next_step() == "A key for a provider"
        keys = page.locator("#provider")
        keys.get_by_label("Provider").select_option("openai")
        keys.get_by_label("Key", exact=True).fill(PROVIDER_KEY)
        stranger.press("Set key")
        stranger.is_told("Calls to openai are made with this key")
        assert PROVIDER_KEY not in page.content()

        assert stranger.take_next_step() == "A meter: what you charge"
        page.get_by_label("Name").fill("Tokens")
        stranger.press("Create meter")
        stranger.is_told("The meter has been created.")

        assert stranger.take_next_step() == "A customer: who pays"
        page.get_by_label("Reference id").fill("user-1")
        stranger.press("Create customer")
        stranger.is_told("The customer has been created.")
        expect(page.get_by_role("link", name="Add to the balance")).to_be_visible()

        assert stranger.take_next_step() == "Something to spend"
        adjust = page.locator("#adjust")
        adjust.get_by_label("Amount").fill("1.00")
        adjust.get_by_label("Reason").fill("A gift to begin with")
        stranger.press("Adjust")
        stranger.press("Adjust", page.locator("dialog"))
        stranger.is_told("The balance has been adjusted.")
        assert stat(page, "Available") == 1_000_000_000

        assert stranger.take_next_step() == "The first call"
        curl = page.locator("#code-curl").text_content()
        assert curl is not None and "$LAVA_SECRET_KEY" in curl and made["secret_key"] not in curl
        base = page.url.partition("/dashboard")[0]
        overview, tail = stranger.tab(f"{base}/dashboard"), stranger.tab(f"{base}/dashboard/requests")
        expect(tail.get_by_text("No requests yet")).to_be_visible()

        # The call is seen while it runs, without a reload, and in the same list once it has ended.
        Provider.may_answer.clear()
        with ThreadPoolExecutor(1) as other_window:
            answer = other_window.submit(terminal.paste, curl, LAVA_SECRET_KEY=made["secret_key"])
            try:
                expect(tail.locator("tr.is-open", has_text="user-1")).to_be_visible(timeout=30_000)
            finally:
                Provider.may_answer.set()
            assert json.loads(answer.result(60))["choices"][0]["message"]["content"] == "Hello there."
        expect(tail.locator("tr", has_text="completed")).to_have_count(1)
        expect(overview.get_by_text("The first call has been made.")).to_be_visible(timeout=30_000)
        expect(overview.locator("#first-steps")).to_contain_text("5 of 5 done")

        # With the key typed, the page makes the token itself: the program runs with nothing exported.
        token = page.locator("#token")
        token.get_by_label("Secret key").fill(made["secret_key"])
        stranger.press("Make the code", token)
        expect(token.get_by_text("Forward token:")).to_be_visible()
        program = page.locator("#code-python-openai").text_content()
        assert program is not None and made["secret_key"] not in program
        assert terminal.run_python(program) == "Hello there.\n"
        expect(tail.locator("tr", has_text="completed")).to_have_count(2)

        # Each row says its charge to the nano-dollar, and so do balance, ledger and file.
        charges = []
        for number in range(2):
            tail.locator("tbody tr").nth(number).get_by_role("link").click()
            charges.append(stat(tail, "Charge"))
            tail.go_back()
            expect(tail.locator("tr", has_text="completed")).to_have_count(2)
        assert charges == [nanos_of(2), nanos_of(1)]
        page.reload()
        assert stat(page, "Available") == 1_000_000_000 - sum(charges)
        ledger = page.get_by_role("table", name="Ledger").locator("tbody tr", has_text="Call").locator("td:nth-child(4)")
        assert [nanos(text) for text in ledger.all_inner_texts()] == [-charge for charge in charges]
        with tail.expect_download() as download:
            tail.get_by_role("link", name="CSV").click()
        with download.value.path().open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert sorted(parse_usd(row["charge"]) for row in rows) == sorted(charges)
        assert {row["meter_slug"] for row in rows} == {"tokens"} and {row["provider_key_type"] for row in rows} == {"stored"}

        # The steps are done, so they are gone; the other link works once, in another browser.
        overview.reload()
        expect(overview.get_by_role("link", name="user-1")).to_be_visible()
        assert overview.locator("#first-steps").count() == 0
        other = Stranger(browser)
        other.page.goto(again)
        expect(other.page.get_by_role("heading", name="Overview")).to_be_visible()
        assert json.loads(terminal.paste("lava-proxy audit --json"))["violations"] == []
        assert stranger.complaints == other.complaints == []
        for one in (stranger, other):
            one.context.close()


def test_dev_leads_to_a_charged_call_by_what_it_prints(browser: Browser, tmp_path: Path) -> None:
    terminal, data_dir = Terminal(environment=plain_environment()), tmp_path / "the data"
    dev = f"./lava dev --port 0 --workers 1 --data-dir {shlex.quote(str(data_dir))}"
    with terminal.running(dev, lambda text: "another:" in text, tmp_path / "dev.log") as printed:
        stranger = Stranger(browser)
        page = stranger.page
        page.goto(re.findall(r"http://\S+/dashboard/enter/\S+", printed)[0])
        steps = page.locator("#first-steps")
        expect(steps).to_contain_text("4 of 5 done")
        expect(steps).to_contain_text("sandbox answers for anthropic, google and openai")
        first, what_it_cost = re.findall(r"^(curl .*?)\n\n", printed, re.MULTILINE | re.DOTALL)
        assert "Hello" in terminal.paste(first) or "hello" in terminal.paste(first)
        expect(steps).to_contain_text("5 of 5 done")
        steps.get_by_role("link").click()
        page.locator("tr", has_text="completed").first.wait_for()
        row = json.loads(terminal.paste(what_it_cost))["data"][0]
        page.locator(f"#r-{row['request_id']}").click()
        assert stat(page, "Charge") == parse_usd(row["charge"]["amount"]) > 0

        # Where Anthropic alone can be called, the page shows this instead.
        base, [key] = page.url.partition("dashboard")[0], re.findall(r"secret key +(aks_\S+)", printed)
        [customer] = re.findall(r"customer +(con_\S+)", printed)
        code = snippets(base, customer_id=customer, meter_slug="fixed", token=None, by_anthropic=True)[0].code
        assert json.loads(terminal.paste(code, LAVA_SECRET_KEY=key))["type"] == "message"
        again = json.loads(terminal.paste(re.findall(r"another: (.*)\)", printed)[0]))["dashboard_link"]
        page.get_by_role("button", name="Sign out").click()
        assert "./lava dashboard link --data-dir " in page.locator("#link-command").inner_text()
        page.goto(again)
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()
        assert stranger.complaints == []
        stranger.context.close()


def test_the_first_steps_can_be_hidden_and_brought_back(browser: Browser, tmp_path: Path) -> None:
    with running(tmp_path / "dev", "--workers", "1") as daemon:
        stranger = Stranger(browser)
        page = stranger.page
        page.goto(daemon.info["dashboard_link"])
        stranger.press("Hide")
        expect(page.get_by_text("No calls in this time")).to_be_visible()
        assert page.locator("#first-steps").count() == 0
        page.get_by_role("link", name="Show the first steps").click()
        expect(page.locator("#first-steps")).to_be_visible()
        page.locator("#app-nav").get_by_role("link", name="Overview").click()
        page.wait_for_url("**/dashboard")
        expect(page.locator("#first-steps")).to_be_visible()
        assert stranger.complaints == []
        stranger.context.close()
