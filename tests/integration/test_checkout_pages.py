"""web/checkout.py and api/checkout_sessions.py over HTTP: who may embed a page, who may post a step, what each client reads."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from lava_proxy.domain.branding import Branding
from lava_proxy.notify.email import ConsoleEmail
from lava_proxy.web.checkout import STEPS_PER_MINUTE, CardForm
from tests.api_requests import api_of
from tests.billing_world import World
from tests.checkout_world import CheckoutWorld, checkout_world, own_headers, step_of, visit_of

Client = TestClient[Any, Any]


@pytest.fixture
async def shop(world: World) -> AsyncIterator[CheckoutWorld]:
    async with checkout_world(world) as made:
        yield made


async def test_only_the_merchants_origin_may_embed_and_the_plain_page_nobody(shop: CheckoutWorld) -> None:
    session = await shop.session()
    async with shop.served() as client:
        framed = await client.get(f"/embed/checkout/{session.secret}")
        assert framed.headers["Content-Security-Policy"].endswith("frame-ancestors https://shop.example")
        assert "X-Frame-Options" not in framed.headers
        plain = await client.get(f"/checkout/{session.secret}")
        assert plain.headers["Content-Security-Policy"].endswith("frame-ancestors 'none'")
        for answer in (framed, plain):
            text = await answer.text()
            assert answer.status == 200 and answer.headers["Cache-Control"] == "no-store" and "noindex" in text
            assert " style=" not in text and "<style" not in text and "onclick" not in text and "Set-Cookie" not in answer.headers
        assert (await client.get("/checkout/css_test_nothing")).status == 404


async def test_a_step_must_come_from_our_own_page_with_its_visit(shop: CheckoutWorld) -> None:
    session = await shop.session()
    async with shop.served() as client:
        visit = visit_of(await (await client.get(f"/checkout/{session.secret}")).text())
        address = f"/embed/checkout/{session.secret}/phone"
        good = dict(own_headers(client, visit))
        for headers in (
            {**good, "Origin": "https://shop.example"},
            {**good, "Origin": "null"},
            {"X-Lava-Visit": visit},
            {"Origin": good["Origin"]},
            {**good, "X-Lava-Visit": "short"},
        ):
            answer = await client.post(address, data={"phone": "+14155550100"}, headers=headers)
            assert answer.status == 403, headers
        assert shop.sms.sent == []
        answer = await client.post(address, data={"phone": "(415) 555-0100"}, headers={**good, "Accept-Language": "en-US,en"})
        assert answer.status == 200 and step_of(await answer.text()) == "code" and shop.sms.sent[0][0] == "+14155550100"
        assert (await client.post(f"/embed/checkout/{session.secret}/nothing", headers=good)).status == 404


async def test_a_phone_that_is_known_is_answered_as_one_that_is_not(shop: CheckoutWorld) -> None:
    """No page is an oracle of who is a customer anywhere."""
    await shop.charge_store.person_of_phone("+14155550100", shop.clock())
    answers = []
    async with shop.served() as client:
        for phone in ("+14155550100", "+14155550199"):
            session = await shop.session()
            visit = visit_of(await (await client.get(f"/checkout/{session.secret}")).text())
            answer = await client.post(
                f"/embed/checkout/{session.secret}/phone", data={"phone": phone}, headers=own_headers(client, visit)
            )
            answers.append((answer.status, (await answer.text()).replace(phone, "").replace(session.secret, "")))
    assert answers[0] == answers[1]


async def test_errors_are_said_at_their_field_and_what_was_typed_stays(shop: CheckoutWorld) -> None:
    session = await shop.session()
    async with shop.served() as client:
        visit = visit_of(await (await client.get(f"/checkout/{session.secret}")).text())

        async def post(action: str, **form: str) -> tuple[int, str]:
            answer = await client.post(f"/embed/checkout/{session.secret}/{action}", data=form, headers=own_headers(client, visit))
            return answer.status, await answer.text()

        status, text = await post("phone", phone='12"><b>')
        assert status == 422 and 'aria-invalid="true" aria-describedby="phone-problem phone-hint"' in text and "<b>" not in text
        await post("phone", phone="+14155550100")
        await post("code", code=shop.sms.sent[-1][1] or "")
        assert (await post("amount", amount="ten"))[0] == 422
        await post("amount", amount="$25.50")
        status, text = await post("card", number="4111 1111 1111 1111", expiry="12/34", cvc="1")
        assert status == 422 and "4111" not in text and 'id="number-problem"' in text
        status, text = await post("card", number="4242424242424242", expiry="13")
        assert status == 422 and 'id="expiry-problem"' in text
        _, text = await post("card", number="4242 4242 4242 4242", expiry="1 / 2034")
        assert step_of(text) == "review" and "Pay $25.50" in text
        status, text = await post("pay", amount_cents="1")
        assert status == 409 and "changed" in text
        _, text = await post("pay", amount_cents="2550")
        assert step_of(text) == "done" and f'data-connection="{(await shop.again(session)).connection_id}"' in text
        status, text = await post("pay", amount_cents="2550")
        assert (status, step_of(text)) == (409, "done")


async def test_one_session_is_slowed_down_and_its_neighbours_behind_the_address_are_not(shop: CheckoutWorld) -> None:
    hasty, neighbour = await shop.session(), await shop.session()
    async with shop.served() as client:
        peer = {"X-Lava-Peer": "203.0.113.50", "X-Lava-Visit": "v" * 43, "Origin": str(client.make_url("")).rstrip("/")}

        async def step(secret: str) -> int:
            return (await client.post(f"/embed/checkout/{secret}/state", headers=peer)).status

        # the count may go over from one minute to the next in between
        statuses = [await step(hasty.secret) for _ in range(2 * STEPS_PER_MINUTE + 2)]
        assert statuses[0] == 200 and statuses[-1] == 429
        assert await step(neighbour.secret) == 200


async def test_one_address_is_slowed_down(shop: CheckoutWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lava_proxy.web.checkout.ADDRESS_PER_MINUTE", 5)
    session = await shop.session()
    async with shop.served() as client:
        peer = {"X-Lava-Peer": "203.0.113.60"}
        statuses = [(await client.get(f"/checkout/{session.secret}", headers=peer)).status for _ in range(12)]
        assert statuses[0] == 200 and statuses[-1] == 429
        assert (await client.get(f"/checkout/{session.secret}", headers={"X-Lava-Peer": "203.0.113.61"})).status == 200


async def test_the_merchants_brand_is_shown_and_its_colour_made_readable(shop: CheckoutWorld) -> None:
    logo = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
    brand = Branding(name="Ink & Co", logo=logo, colour="#ffe600", support_email="help@ink.example")
    await shop.store.set_branding(shop.world.merchant_id, brand)
    assert await shop.store.branding(shop.world.merchant_id) == brand
    session = await shop.session()
    async with shop.served() as client:
        text = await (await client.get(f"/checkout/{session.secret}")).text()
        assert "Ink &amp; Co" in text and logo in text and "mailto:help@ink.example" in text
        theme = await (await client.get(f"/embed/checkout/{session.secret}/theme.css")).text()
        assert "--accent:#ffe600;--on-accent:#000000" in theme and theme.count("--link:") == 2


async def test_with_stripe_the_number_never_comes_here(shop: CheckoutWorld) -> None:
    """Its script is let in by the policy, and no field of ours takes a number."""
    session = await shop.verified(await shop.session(), _visit())
    await shop.checkout.choose_amount(session, _visit(), 2500)
    form = CardForm(script_url="https://js.stripe.com/v3/", key="pk_test_1")
    async with shop.served(card_form=form) as client:
        page = await client.get(f"/embed/checkout/{session.secret}")
        policy, text = page.headers["Content-Security-Policy"], await page.text()
        assert (
            "script-src 'self' https://js.stripe.com;" in policy
            and "connect-src 'self' https://js.stripe.com https://api.stripe.com" in policy
        )
        assert 'src="https://js.stripe.com/v3/"' in text and 'data-card-key="pk_test_1"' in text
        address = f"/embed/checkout/{session.secret}"
        card = await (await client.post(address + "/state", headers=own_headers(client, _visit().token))).text()
        assert step_of(card) == "card" and "cc-number" not in card and 'id="card-element"' in card
        begun = await (await client.post(address + "/card-begin", headers=own_headers(client, _visit().token))).json()
        assert set(begun) == {"client_secret", "setup_ref"}
        stranger = await client.post(address + "/card-begin", headers=own_headers(client, "z" * 40))
        assert stranger.status == 403


async def test_the_rest_resource_speaks_every_vocabulary(shop: CheckoutWorld) -> None:
    plan = await shop.plan()
    key = await shop.world.catalog.create_secret_key(shop.world.merchant_id, "k", live=False)
    made = await shop.world.catalog.create_connection(shop.world.merchant_id, reference_id="user-1")
    async with api_of(shop, key) as api:
        new = {"checkout_mode": "subscription", "origin_url": "https://shop.example/pricing?x=1", "plan_id": plan.plan_id}
        status, session = await api("POST", "checkout_sessions", new)
        token = json.loads(base64.b64decode(session["checkout_session_token"]))
        assert status == 201 and session["checkout_session_id"].startswith("cs_test_") and "completed_at" not in session
        assert token["secret"].startswith("css_test_") and len(token["secret"]) == len("css_test_") + 54
        assert token["base"].endswith("/") and session["url"] == f"{token['base']}checkout/{token['secret']}"
        assert session["plan_id"] == session["subscription_config_id"] == plan.plan_id and "customer_id" not in session
        older = {
            "checkout_mode": "topup", "origin_url": "http://localhost:3000", "connection_id": "user-1", "reference_id": "order-7"
        }  # fmt: skip
        _, top_up = await api("POST", "checkout_sessions", older)
        assert top_up["customer_id"] == top_up["connection_id"] == made.connection_id and top_up["reference_id"] == "order-7"
        _, listed = await api("GET", "checkout_sessions?limit=1")
        assert listed["data"][0]["checkout_session_id"] == top_up["checkout_session_id"] and listed["has_more"] is True
        _, rest = await api("GET", f"checkout_sessions?cursor={listed['next_cursor']}")
        assert [one["checkout_session_id"] for one in rest["data"]] == [session["checkout_session_id"]]
        _, found = await api("GET", "checkout_sessions?reference_id=order-7")
        assert len(found["data"]) == 1
        _, one = await api("GET", f"checkout_sessions/{session['checkout_session_id']}")
        assert one == session
        status, portal = await api("POST", "customers/user-1/portal_session", {})
        assert status == 201 and "/checkout/css_test_" in portal["url"]
        assert len((await api("GET", "checkout_sessions"))[1]["data"]) == 2, "customer pages are no checkouts"


async def test_bad_sessions_are_refused_by_name(shop: CheckoutWorld) -> None:
    key = await shop.world.catalog.create_secret_key(shop.world.merchant_id, "k")
    origin = {"origin_url": "https://shop.example"}
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({}, 400, "checkout_mode is required. origin_url is required."),
        ({"checkout_mode": "gift", **origin}, 400, "checkout_mode is 'gift'"),
        ({"checkout_mode": "onboarding", "origin_url": "shop.example"}, 400, "origin_url is 'shop.example'"),
        ({"checkout_mode": "onboarding", "origin_url": "https://x.example; script-src *"}, 400, "origin_url"),
        ({"checkout_mode": "subscription", **origin}, 400, "also needs plan_id"),
        ({"checkout_mode": "credit_bundle", **origin}, 400, "also needs customer_id and credit_bundle_id"),
        ({"checkout_mode": "topup", "customer_id": "a", "connection_id": "b", **origin}, 400, "names of one thing"),
        ({"checkout_mode": "topup", "customer_id": "nobody", **origin}, 404, "No customer of yours is 'nobody'."),
        (
            {"checkout_mode": "credit_bundle", "customer_id": "x", "credit_bundle_id": "cb_1", **origin}, 404,
            "No customer of yours is 'x'. No credit bundle of yours is 'cb_1'.",
        ),
    ]  # fmt: skip
    async with api_of(shop, key) as api:
        for body, status, sentence in cases:
            got, error = await api("POST", "checkout_sessions", body)
            assert got == status and sentence in error["error"]["message"], (body, error)
        assert (await api("GET", "checkout_sessions"))[1]["data"] == []
        assert (await api("GET", "checkout_sessions/cs_1"))[0] == 404


async def test_a_link_goes_by_e_mail(shop: CheckoutWorld) -> None:
    key = await shop.world.catalog.create_secret_key(shop.world.merchant_id, "k")
    async with api_of(shop, key) as api:
        _, session = await api("POST", "checkout_sessions", {"checkout_mode": "onboarding", "origin_url": "https://shop.example"})
        one = f"checkout_sessions/{session['checkout_session_id']}"
        for bad in ({"email": "nobody"}, {}):
            assert (await api("POST", f"{one}/email", bad))[0] == 400
        assert await api("POST", f"{one}/email", {"email": "ada@example.com"}) == (200, {"success": True})
        [(to, subject, text, html)] = shop.email.sent
        assert to == "ada@example.com" and "test" in subject and session["url"] in text and session["url"] in (html or "")
        found = await shop.store.session(shop.world.merchant_id, session["checkout_session_id"])
        assert found is not None
        await shop.checkout.cancel(found)
        assert (await api("POST", f"{one}/email", {"email": "ada@example.com"}))[0] == 409
    await ConsoleEmail().send("ada@example.com", "s", "t")


def _visit() -> Any:
    from lava_proxy.billing.checkout import Visit

    return Visit(token="v" * 40, address="203.0.113.1")
