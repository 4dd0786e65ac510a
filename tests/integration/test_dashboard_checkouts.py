"""Checkout links and branding in the dashboard: what is made and sent, what is refused at which field, what is written down."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import FormData

from lava_proxy.domain.branding import LOGO_BYTES_MAX, Branding, contrast_of
from lava_proxy.stores.ids import new_id
from tests.dashboard_world import Browser, DashboardWorld, dashboard_world
from tests.engines import RunningEngines
from tests.integration.api_world import Shop, Stores, open_shop, opened_stores
from tests.integration.test_dashboard_selling import acts, done, make_plan, refused, subscribe

BASE = "/dashboard/checkouts"
BRANDING = "/dashboard/settings/branding"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


@pytest.fixture
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture
async def world(stores: Stores) -> AsyncIterator[DashboardWorld]:
    async with dashboard_world(stores) as made:
        yield made


@pytest.fixture
async def shop(stores: Stores) -> Shop:
    return await open_shop(stores, "one")


@pytest.fixture
async def browser(world: DashboardWorld, shop: Shop) -> AsyncIterator[Browser]:
    async with world.browser(shop) as signed_in:
        yield signed_in


async def session_at(world: DashboardWorld, shop: Shop, address: str) -> Any:
    """The session whose page this address is."""
    found = await world.selling.store.session(shop.merchant.merchant_id, address.split("/")[3])
    assert found is not None
    return found


async def test_a_plans_link_is_made_with_its_token_and_another_page_may_hold_it(
    world: DashboardWorld, shop: Shop, browser: Browser
) -> None:
    plan = await make_plan(world, shop, amount=25_000_000_000)
    assert f"{BASE}/new?plan={plan.plan_id}" in await browser.get(f"/dashboard/plans/{plan.plan_id}")
    assert f'value="plan:{plan.plan_id}" selected' in await browser.get(f"{BASE}/new?plan={plan.plan_id}")
    form = {"offer": f"plan:{plan.plan_id}", "origin_url": "https://app.example.com/buy", "reference_id": "user-9", "then": "link"}
    address = await done(browser, BASE, form)
    session = await session_at(world, shop, address)
    assert (session.kind, session.plan_id, session.reference_id) == ("subscription", plan.plan_id, "user-9")
    assert session.origin == "https://app.example.com" and session.checkout_session_id.startswith("cs_test_")
    text = await browser.get(address)
    token = text.split('id="checkout-token">')[1].split("<")[0]
    found = json.loads(base64.b64decode(token))
    assert found["secret"] == session.secret and f"{found['base']}checkout/{session.secret}" in text
    assert "/frame" not in text and "may be held in a frame by https://app.example.com" in await browser.get(f"{address}/frame")
    assert session.checkout_session_id in await browser.get(BASE)
    assert await acts(world, shop) == ["checkout.create"] and world.selling.email.sent == []
    [entry] = await world.audit_log.many(shop.merchant.merchant_id)
    assert session.secret not in repr(entry)


async def test_a_customers_link_is_sent_to_the_address_on_file(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    plan = await make_plan(world, shop)
    await subscribe(world, shop, plan)
    customer = shop.customer.connection_id
    assert f"{BASE}/new?customer={customer}" in await browser.get(f"/dashboard/customers/{customer}")
    text = await browser.get(f"{BASE}/new?customer={customer}")
    assert 'value="buyer@one' in text
    bundle = plan.bundles[0].credit_bundle_id
    assert f'value="bundle:{bundle}"' in text and 'value="topup"' in text
    address = await done(browser, BASE, {"customer": customer, "offer": f"bundle:{bundle}", "email": "ada@example.com"})
    session = await session_at(world, shop, address)
    assert (session.kind, session.connection_id, session.credit_bundle_id) == ("credit_bundle", customer, bundle)
    [(to, _, message, _)] = world.selling.email.sent
    assert to == "ada@example.com" and f"/checkout/{session.secret}" in message
    assert await acts(world, shop) == ["checkout.send", "checkout.create"]
    assert (await session_at(world, shop, await done(browser, BASE, {"customer": customer, "offer": "topup"}))).kind == "topup"
    assert await done(browser, f"{address}/email", {"email": "bob@example.com"}) == address
    assert world.selling.email.sent[-1][0] == "bob@example.com"
    await world.selling.store.cancel(session.checkout_session_id)
    assert "This checkout is cancelled" in await refused(browser, f"{address}/email", {"email": "bob@example.com"})
    assert session.secret not in await browser.get(address) and len(world.selling.email.sent) == 2


async def test_a_trial_may_be_held_in_a_frame_of_the_dashboard(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    plan = await make_plan(world, shop)
    form = {"offer": f"plan:{plan.plan_id}", "then": "frame", "email": "ada@example.com", "origin_url": "https://app.example.com"}
    address = await done(browser, BASE, form)
    assert address.endswith("/frame") and world.selling.email.sent == []
    session = await session_at(world, shop, address)
    assert session.origin == str(browser.client.make_url("/").origin())
    text = await browser.get(address)
    assert f'src="/embed/checkout/{session.secret}"' in text and f'data-session="{session.checkout_session_id}"' in text
    assert "style=" not in text and "<script>" not in text


async def test_wrong_fields_of_a_link_are_told_at_the_field_and_nothing_is_made(
    world: DashboardWorld, shop: Shop, browser: Browser
) -> None:
    form = {"offer": "plan:sc_nothing", "email": "nowhere", "origin_url": "javascript:alert(1)", "reference_id": "con_x"}
    text = await refused(browser, BASE, form)
    for name in ("offer", "email", "origin_url", "reference_id"):
        assert f'id="e-{name}"' in text, name
    assert 'value="nowhere"' in text
    assert 'id="e-offer"' in await refused(browser, BASE, {"offer": "topup"})
    assert await world.selling.store.sessions(shop.merchant.merchant_id, reference_id=None, before=None, limit=9) == []
    assert await acts(world, shop) == [] and world.selling.email.sent == []


async def test_where_nothing_can_be_sent_a_form_says_so(stores: Stores, shop: Shop) -> None:
    from lava_proxy.billing.checkout_links import CheckoutLinks

    async with dashboard_world(stores) as first:
        links = CheckoutLinks(first.selling.store, None, None)
    async with dashboard_world(stores, checkout_links=links) as world, world.browser(shop) as browser:
        assert "LAVA_SMTP_URL is not set" in await browser.get(f"{BASE}/new")
        text = await refused(browser, BASE, {"offer": "onboarding", "email": "ada@example.com"})
        assert 'id="e-email"' in text and await acts(world, shop) == []


async def test_a_link_to_the_customers_own_page_is_shown_and_written_down(
    world: DashboardWorld, shop: Shop, browser: Browser
) -> None:
    answer = await browser.post(f"/dashboard/customers/{shop.customer.connection_id}/portal")
    text = await answer.text()
    secret = text.split("/checkout/")[1].split("<")[0]
    session = await world.selling.store.by_secret(secret)
    assert answer.status == 200 and session is not None
    assert (session.kind, session.connection_id) == ("portal", shop.customer.connection_id)
    assert await acts(world, shop) == ["customer.page_link"]
    assert secret not in await browser.get(BASE)


async def test_another_merchants_checkouts_and_customers_are_not_there(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    plan = await make_plan(world, shop)
    address = await done(browser, BASE, {"offer": f"plan:{plan.plan_id}"})
    other = await open_shop(world.stores, "two")
    async with world.browser(other) as stranger:
        for path in (address, f"{address}/frame", f"{BASE}/new?customer={shop.customer.connection_id}", f"{BASE}/cs_nothing"):
            await stranger.get(path, 404)
        assert (await stranger.post(f"{address}/email", {"email": "a@example.com"})).status == 404
        assert (await stranger.post(f"/dashboard/customers/{shop.customer.connection_id}/portal")).status == 404
        assert (await stranger.post(BASE, {"customer": shop.customer.connection_id, "offer": "topup"})).status == 404
        assert "Choose one of" in await refused(stranger, BASE, {"offer": f"plan:{plan.plan_id}"})
        assert address.split("/")[3] not in await stranger.get(BASE)
    assert await acts(world, other) == [] and world.selling.email.sent == []


async def test_no_checkout_and_no_branding_without_the_sessions_token(world: DashboardWorld, shop: Shop, browser: Browser) -> None:
    customer = f"/dashboard/customers/{shop.customer.connection_id}/portal"
    for path in (BASE, f"{BASE}/{new_id('cs')}/email", customer, BRANDING, f"{BRANDING}/preview"):
        assert (await browser.post(path, {"name": "x"}, csrf="")).status == 403, path
    assert await acts(world, shop) == []


# -- branding


async def send_branding(browser: Browser, *, logo: bytes | None = None, status: int, **fields: str) -> str:
    """The page after the form, as a browser sends it."""
    form = FormData()
    for name, value in {"csrf": browser.csrf, "name": "Acme", "colour": "#aa0000", "support_email": "", **fields}.items():
        form.add_field(name, value)
    form.add_field("logo", logo or b"", filename="" if logo is None else "logo.png", content_type="application/octet-stream")
    async with browser.client.post(BRANDING, data=form, allow_redirects=False) as answer:
        text = await answer.text()
        assert answer.status == status, text[-600:]
        return text


async def test_branding_is_kept_shown_and_written_down_without_the_picture(
    world: DashboardWorld, shop: Shop, browser: Browser
) -> None:
    store, merchant_id = world.selling.store, shop.merchant.merchant_id
    assert BRANDING in await browser.get("/dashboard/settings")
    await send_branding(browser, logo=PNG, status=303, support_email="help@example.com")
    logo = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert await store.branding(merchant_id) == Branding(name="Acme", logo=logo, colour="#aa0000", support_email="help@example.com")
    text = await browser.get(BRANDING)
    assert 'value="#aa0000"' in text and logo in text and "style=" not in text and "<script>" not in text
    await send_branding(browser, status=303, name="Acme & Co")
    kept = await store.branding(merchant_id)
    assert (kept.name, kept.logo, kept.support_email) == ("Acme & Co", logo, None)
    await send_branding(browser, status=303, remove_logo="1")
    assert (await store.branding(merchant_id)).logo is None
    entries = await world.audit_log.many(merchant_id)
    assert [entry.action for entry in entries] == ["merchant.branding"] * 3 and "iVBOR" not in repr(entries)


async def test_wrong_branding_is_told_at_each_field_and_changes_nothing(
    world: DashboardWorld, shop: Shop, browser: Browser
) -> None:
    before = await world.selling.store.branding(shop.merchant.merchant_id)
    text = await send_branding(browser, logo=b"GIF89a" + bytes(9), status=422, name="", colour="red", support_email="nobody")
    for name in ("name", "logo", "colour", "support_email"):
        assert f'id="e-{name}"' in text, name
    assert 'value="nobody"' in text
    assert "At most 64 KB" in await send_branding(browser, logo=PNG + bytes(LOGO_BYTES_MAX), status=422)
    assert "At most" not in await send_branding(browser, logo=PNG, status=303)
    assert before.name != "Acme" and await acts(world, shop) == ["merchant.branding"]


async def test_the_preview_says_how_well_a_colour_reads(browser: Browser) -> None:
    answer = await browser.post(f"{BRANDING}/preview", {"name": "<b>Acme", "colour": "#ffee00"}, **{"HX-Request": "true"})
    text = await answer.text()
    assert "&lt;b&gt;Acme" in text and 'data-accent="#ffee00"' in text and "links are made darker" in text and "<html" not in text
    bad = await (await browser.post(f"{BRANDING}/preview", {"name": "", "colour": '"><script>'})).text()
    assert "<script>" not in bad and 'data-accent="#1d4ed8"' in bad


def test_contrast_is_said_with_one_place_cut_off() -> None:
    assert (contrast_of("#000000", "#ffffff"), contrast_of("#777777", "#ffffff")) == ("21.0", "4.4")
