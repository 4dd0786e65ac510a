"""Headless Chromium for the browser tests and the pictures, and what each page is held to: no script errors, no axe violations."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright import async_api, sync_api
from playwright.async_api import Browser, Frame, Page, async_playwright

MISSING = "chromium is missing: apt-get install -y chromium (./lava test does it as root)"
for _expect in (async_api.expect, sync_api.expect):
    _expect.set_options(timeout=20_000)  # a loaded machine takes a while to show what was done
needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason=MISSING)
_FLAGS = [
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
]


def launch_options() -> dict[str, Any]:
    """How the system's Chromium is started, also as root. FileNotFoundError where there is none."""
    path = shutil.which("chromium")
    if path is None:
        raise FileNotFoundError(MISSING)
    return {"executable_path": path, "headless": True, "chromium_sandbox": False, "args": _FLAGS}


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser; the test is skipped, with the reason, where there is none."""
    if shutil.which("chromium") is None:
        pytest.skip(MISSING)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(**launch_options())
        try:
            yield browser
        finally:
            await browser.close()


def watch(page: Page) -> list[str]:
    """What goes wrong in a page's scripts and policies, as it happens."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" and "status of 4" not in said.text else None)
    return problems


async def violations(scope: Page | Frame) -> list[str]:
    """What axe finds, in short."""
    anywhere: Any = scope  # annotated for pages only, and runs in a frame just as well
    found: Any = (await Axe().run(anywhere)).response
    return [
        f"{one['id']}: {node['html'][:120]} {node.get('failureSummary', '')[:200]}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


async def picture(page: Page, folder: Path | None, name: str) -> None:
    """A screenshot for people to look at, where a folder is given."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        await page.screenshot(path=folder / f"{name}.png", full_page=True)
