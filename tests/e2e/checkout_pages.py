"""The hosted checkout as a person uses it: page objects over its steps, in a merchant's frame or by itself."""

from __future__ import annotations

import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from aiohttp import web
from playwright.async_api import Frame, FrameLocator, Page, expect

from tests.daemon import Daemon, until
from tests.e2e import node_packages

GOOD, DECLINED_WHEN_STORED, DECLINED, NEEDS_HOLDER = (
    "4242 4242 4242 4242",
    "4000 0000 0000 0002",
    "4000 0000 0000 0341",
    "4000 0025 0000 3155",
)


def sent_code(daemon: Daemon, phone: str, number: int = 1) -> str:
    """The n-th code that `dev` logged for a phone (E.164)."""
    pattern = re.compile(rf'"phone": "{re.escape(phone)}".*?"event": "code (\d{{6}})"')

    def found() -> str | None:
        codes = pattern.findall(daemon.log_path.read_text())
        return codes[number - 1] if len(codes) >= number else None

    return str(until(found, f"code {number} to {phone}"))


@dataclass(slots=True)
class CheckoutPage:
    """The steps of a checkout, wherever it is shown."""

    scope: Page | FrameLocator
    daemon: Daemon

    async def at(self, step: str) -> None:
        """Wait until this step is shown."""
        await expect(self.scope.locator(f'.step[data-step="{step}"]')).to_be_visible(timeout=15_000)

    async def heading(self) -> str:
        return (await self.scope.locator(".step h1").inner_text()).strip()

    async def text(self) -> str:
        return " ".join((await self.scope.locator(".step").inner_text()).split())

    async def press(self, name: str) -> None:
        await self.scope.get_by_role("button", name=name, exact=True).click()

    async def prove_phone(self, phone: str, number: int = 1) -> None:
        """Phone and code; `phone` in E.164, `number`: how many codes it will have got."""
        await self.at("phone")
        field = self.scope.get_by_label("Phone number", exact=True)
        if await field.count():
            await field.fill(phone)
        await self.press("Text me a code")
        await self.enter_code(phone, number)

    async def enter_code(self, phone: str, number: int = 1) -> None:
        await self.at("code")
        await self.scope.get_by_label("Code", exact=True).fill(sent_code(self.daemon, phone, number))
        await self.press("Confirm")

    async def choose_amount(self, dollars: str) -> None:
        await self.at("amount")
        await self.scope.get_by_label("Amount in dollars").fill(dollars)
        await self.press("Continue")

    async def save_card(self, number: str = GOOD) -> None:
        await self.at("card")
        await self.scope.get_by_label("Card number").fill(number)
        await self.scope.get_by_label("Expiry").fill("12/34")
        await self.scope.get_by_label("Security code").fill("123")
        await self.press("Save card")

    async def pay(self) -> None:
        """Confirm what the review shows."""
        await self.at("review")
        await self.scope.locator('form[action="pay"] button').click()

    async def answer_bank(self, answer: str) -> None:
        """`Approve` or `Refuse` at the test bank."""
        await self.at("authenticate")
        await self.scope.frame_locator("iframe[data-bank]").get_by_role("button", name=answer).click()


@dataclass(slots=True)
class Shop:
    """A merchant's page on another origin that uses the stock browser library."""

    origin: str

    async def open(self, page: Page, token: str, daemon: Daemon) -> CheckoutPage:
        """Press its button; the checkout that appears."""
        await page.goto(f"{self.origin}/?token={token.replace('+', '%2B')}")
        await page.get_by_role("button", name="Subscribe").click()
        return CheckoutPage(page.frame_locator("body > iframe"), daemon)

    async def ended(self, page: Page) -> dict[str, Any]:
        """What the library reported, once it has."""
        await page.wait_for_function("window.ended.length > 0", timeout=15_000)
        return cast(dict[str, Any], await page.evaluate("window.ended[0]"))


def checkout_frame(page: Page) -> Frame:
    """The frame that the library opened."""
    return next(frame for frame in page.frames if "/embed/checkout/" in frame.url)


@asynccontextmanager
async def merchant_shop(scratch: Path) -> AsyncIterator[Shop]:
    """A shop on localhost (the daemon is on 127.0.0.1: another origin). Raises node_packages.NotHere."""
    bundle = _bundled(scratch)

    async def page(request: web.Request) -> web.Response:
        html = '<!doctype html><html lang="en"><title>Shop</title><main id="shop"></main><script src="/shop.js"></script></html>'
        return web.Response(text=html, content_type="text/html")

    async def script(request: web.Request) -> web.Response:
        return web.Response(body=bundle, content_type="text/javascript")

    application = web.Application()
    application.add_routes([web.get("/", page), web.get("/shop.js", script)])
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "localhost", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield Shop(f"http://localhost:{port}")
    finally:
        await runner.cleanup()


def _bundled(scratch: Path) -> bytes:
    modules = node_packages.installed(node_packages.CHECKOUT_FOLDER)
    target = scratch / "shop.js"
    subprocess.run(
        [
            node_packages.node(), str(modules / "esbuild/bin/esbuild"), str(node_packages.CHECKOUT_FOLDER / "merchant.jsx"),
            "--bundle", f"--outfile={target}", '--define:process.env.NODE_ENV="production"', "--log-level=error",
        ],
        check=True, capture_output=True, timeout=60, env={"NODE_PATH": str(modules), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return target.read_bytes()
