"""Somebody who uses the dashboard in a real browser."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from tests.daemon import Daemon
from tools.screenshots import signed_in


class Visitor:
    """A signed-in window that remembers what its console complained about."""

    def __init__(self, browser: Browser, daemon: Daemon, *, theme: str = "light", width: str = "desktop") -> None:
        self.base = daemon.base_url.removesuffix("/v1/")
        self.context = signed_in(browser, daemon, theme=theme, width=width)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def go(self, path: str) -> None:
        answer = self.page.goto(self.base + path)
        assert answer is not None and answer.status == 200, path

    def violations(self) -> list[str]:
        """What axe finds wrong on the page, WCAG A to AA and best practices."""
        found = Axe().run(self.page).response["violations"]
        return [f"{one['id']}: {node['html'][:160]}" for one in found for node in one["nodes"]]
