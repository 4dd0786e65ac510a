"""The checkout with Stripe's own card form, in a browser: a stub of its script, which stores cards at the fake Stripe.

The stub is served from another origin, so the page's policy is what lets it in, as it lets Stripe's in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import expect

from lava_proxy.payments.stripe import StripeProcessor
from lava_proxy.web.checkout import CardForm
from tests.billing_world import World
from tests.card_world import Clock
from tests.checkout_world import made_checkout
from tests.e2e.browser import chromium, violations, watch
from tests.fake_stripe import FakeStripe, fake_stripe

# What checkout.js uses of Stripe.js (docs.stripe.com/js, read 2026-11).
_SCRIPT = """
const origin = document.currentScript.src.replace(/\\/v3\\/.*/, "");
const ask = (path, facts) => fetch(`${origin}/${path}?` + new URLSearchParams(facts));
window.Stripe = (key) => ({
  elements: () => ({ create: () => ({ mount: (place) => {
    place.innerHTML = '<input aria-label="Number at Stripe" id="at-stripe">';
  } }) }),
  confirmCardSetup: async (secret) => {
    const number = document.getElementById("at-stripe").value;
    const answer = await ask("finish", { key, secret, number });
    return answer.ok ? { setupIntent: {} } : { error: { message: "Your card number is incomplete." } };
  },
  handleNextAction: async ({ clientSecret }) => { await ask("approve", { key, secret: clientSecret }); return {}; },
});
"""


@asynccontextmanager
async def stub_script(fake: FakeStripe) -> AsyncIterator[str]:
    """The address of the stub."""
    open_to_all = {"Access-Control-Allow-Origin": "*"}

    async def script(request: web.Request) -> web.Response:
        return web.Response(text=_SCRIPT, content_type="text/javascript")

    async def finish(request: web.Request) -> web.Response:
        assert request.query["key"] == "pk_test_1"
        if len(request.query["number"]) < 16:
            return web.Response(status=402, headers=open_to_all)
        fake.finish_setup(request.query["secret"].partition("_secret")[0], request.query["number"])
        return web.Response(headers=open_to_all)

    async def approve(request: web.Request) -> web.Response:
        fake.authenticate(request.query["secret"].partition("_secret")[0], approve=True)
        return web.Response(headers=open_to_all)

    application = web.Application()
    application.add_routes([web.get("/v3/", script), web.get("/finish", finish), web.get("/approve", approve)])
    async with TestServer(application) as server:
        yield str(server.make_url("/v3/"))


async def test_a_card_typed_at_stripe_pays_and_its_number_never_comes_here(world: World) -> None:
    """I27: with a card that its bank asks about."""
    async with fake_stripe() as fake, stub_script(fake) as script_url, chromium() as browser:
        processor = StripeProcessor("sk_test_x", webhook_secrets=(), api_base=fake.base_url, timeout_s=5)
        clock = Clock(datetime.fromtimestamp(fake.now_s, UTC), fake)
        shop = made_checkout(world, world.funding, clock, processor=processor)
        session = await shop.session()
        async with shop.served(card_form=CardForm(script_url=script_url, key="pk_test_1")) as client:
            page = await browser.new_page()
            problems, sent = watch(page), []
            page.on("request", lambda request: sent.append((request.url, request.post_data or "")))
            await page.goto(str(client.make_url(f"/checkout/{session.secret}")))
            await page.get_by_label("Phone number", exact=True).fill("+14155550100")
            await page.get_by_role("button", name="Text me a code").click()
            await expect(page.get_by_label("Code", exact=True)).to_be_visible()
            await page.get_by_label("Code", exact=True).fill(shop.sms.sent[-1][1] or "")
            await page.get_by_role("button", name="Confirm").click()
            await page.get_by_role("button", name="Continue").click()
            await page.get_by_label("Number at Stripe").fill("4242")
            await page.get_by_role("button", name="Save card").click()
            await expect(page.locator("#card-problem")).to_have_text("Your card number is incomplete.")
            await page.get_by_label("Number at Stripe").fill("4000002500003155")
            assert await violations(page) == []
            await page.get_by_role("button", name="Save card").click()
            await page.get_by_role("button", name="Pay $25.00").click()
            await page.get_by_role("button", name="Approve with my bank").click()
            await expect(page.locator(".step h1")).to_have_text("Thank you")
            own = str(client.make_url("/"))
            assert not [text for url, text in sent if url.startswith(own) and "4000002500003155" in url + text]
            assert problems == []
        assert fake.taken_cents and sum(fake.taken_cents.values()) == 2500
        assert (await shop.again(session)).state == "completed"
        await processor.close()
