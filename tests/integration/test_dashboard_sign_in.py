"""Sessions of the dashboard: how they begin and end, what they refuse, and that merchants stay apart."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from http.cookies import SimpleCookie
from typing import Any

import pytest

from lava_proxy.stores.login_codes import LoginCodes
from lava_proxy.web.dashboard import sign_in
from tests.dashboard_world import DashboardWorld, dashboard_world
from tests.engines import RunningEngines
from tests.integration.api_world import Stores, open_shop, opened_stores


@pytest.fixture
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture
async def world(stores: Stores) -> AsyncIterator[DashboardWorld]:
    async with dashboard_world(stores) as made:
        yield made


def cookie_of(answer: Any) -> Any:
    return SimpleCookie(answer.headers["Set-Cookie"])["lava_session"]


async def test_a_secret_key_signs_in_and_leads_back_to_the_page_that_was_asked_for(world: DashboardWorld) -> None:
    shop = await open_shop(world.stores, "one")
    async with world.browser() as browser:
        async with browser.client.get("/dashboard/audit?limit=5", allow_redirects=False) as answer:
            assert answer.status == 303
            assert answer.headers["Location"] == "/dashboard/sign-in?next=/dashboard/audit%3Flimit%3D5"
        answer = await browser.post("/dashboard/sign-in", {"secret_key": f" {shop.key} ", "next": "/dashboard/audit?limit=5"})
        assert (answer.status, answer.headers["Location"]) == (303, "/dashboard/audit?limit=5")
        cookie = cookie_of(answer)
        assert cookie["httponly"] and cookie["samesite"] == "Lax" and not cookie["secure"] and cookie["path"] == "/"
        text = await browser.get("/dashboard")
        assert "one" in text and shop.key not in text
        async with browser.client.get("/", allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/dashboard")
        async with browser.client.get("/dashboard/sign-in", allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/dashboard")


async def test_a_wrong_key_is_told_at_the_field_and_never_shown_again(world: DashboardWorld) -> None:
    async with world.browser() as browser:
        for typed, said in (("", "Paste a secret key"), ("aks_live_no", "not known here"), ("lava_sk_x", "spend key")):
            async with browser.client.post("/dashboard/sign-in", data={"secret_key": typed}) as answer:
                text = await answer.text()
                assert answer.status == 422 and said in text and 'aria-invalid="true"' in text
                assert "Set-Cookie" not in answer.headers and not (typed and typed in text)
        assert "Ready: calls are accepted" in await browser.get("/")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded", b"secret_key=\xff\xfe"),
        ("application/x-www-form-urlencoded; charset=nope", b"secret_key=a"),
        ("multipart/form-data; boundary=x", b"no part"),
        ("multipart/form-data", b"no part"),
    ],
)
async def test_what_is_no_form_is_the_callers_error(world: DashboardWorld, kind: str, body: bytes) -> None:
    async with world.browser() as browser:
        async with browser.client.post("/dashboard/sign-in", data=body, headers={"Content-Type": kind}) as answer:
            assert answer.status == 400 and "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "/v1/requests", "/dashboard\\@x"])
async def test_a_sign_in_leads_to_pages_of_ours_only(world: DashboardWorld, target: str) -> None:
    shop = await open_shop(world.stores, "one")
    async with world.browser() as browser:
        answer = await browser.post("/dashboard/sign-in", {"secret_key": shop.key, "next": target})
        assert answer.headers["Location"] == "/dashboard"


async def test_too_many_failures_in_a_minute_are_refused(world: DashboardWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_in, "FAILURES_PER_MINUTE", 2)
    shop = await open_shop(world.stores, "one")
    now_s = 60 * 1_000_000
    counts = world.deps.merchant_stores.call_counts
    monkeypatch.setattr(type(counts), "count", lambda self, name, _now: _count(self, name, now_s))
    monkeypatch.setattr(type(counts), "read", lambda self, name, _now: _read(self, name, now_s))
    async with world.browser() as browser:
        statuses = [(await browser.post("/dashboard/sign-in", {"secret_key": "aks_live_no"})).status for _ in range(3)]
        assert statuses == [422, 422, 429]
        answer = await browser.post("/dashboard/sign-in", {"secret_key": shop.key})
        assert (answer.status, answer.headers["Retry-After"]) == (429, "60")
        answer = await browser.post("/dashboard/sign-in", {"secret_key": shop.key}, **{"X-Lava-Peer": "203.0.113.9"})
        assert answer.status == 303, "the failures of one address keep nobody else out"


async def test_a_notice_that_is_none_is_ignored(world: DashboardWorld) -> None:
    async with world.browser(await open_shop(world.stores, "one")) as browser:
        for value in (b"5", b"null", b"[1]", b"{}", b'"ab"', b"x"):
            browser.client.session.cookie_jar.update_cookies({"lava_notice": base64.urlsafe_b64encode(value).decode()})
            await browser.get("/dashboard/keys")


async def _count(counts: Any, name: str, now_s: int) -> int:
    return int(await counts._redis.incr(f"calls:{name}:{now_s // 60}"))


async def _read(counts: Any, name: str, now_s: int) -> int:
    return int(await counts._redis.get(f"calls:{name}:{now_s // 60}") or 0)


async def test_a_link_signs_in_once_and_within_an_hour(world: DashboardWorld) -> None:
    shop = await open_shop(world.stores, "linked")
    code = await world.sessions.create_link(shop.merchant.merchant_id)
    async with world.browser() as browser:
        await browser.get(f"/dashboard/enter/{code}", 303)
        assert "linked" in await browser.get("/dashboard")
    async with world.browser() as browser:
        assert "was used or is too old" in await browser.get(f"/dashboard/enter/{code}", 410)
        await browser.get("/dashboard", 303)
        late = await world.sessions.create_link(shop.merchant.merchant_id)
        world.now += timedelta(hours=1)
        await browser.get(f"/dashboard/enter/{late}", 410)


async def test_a_session_ends_by_itself_after_hours_without_use_and_after_a_week_of_use(world: DashboardWorld) -> None:
    shop = await open_shop(world.stores, "one")
    async with world.browser(shop) as browser:
        for _ in range(15):
            world.now += timedelta(hours=11)
            await browser.get("/dashboard")
        world.now += timedelta(hours=4)
        await browser.get("/dashboard", 303)
    async with world.browser(shop) as browser:
        world.now += timedelta(hours=12)
        await browser.get("/dashboard", 303)


async def test_signing_out_ends_this_session_and_everywhere_ends_all_of_the_merchant(world: DashboardWorld) -> None:
    one, two = await open_shop(world.stores, "one"), await open_shop(world.stores, "two")
    async with world.browser(one) as here, world.browser(one) as there, world.browser(two) as other:
        answer = await here.post("/dashboard/sign-out")
        assert (answer.status, answer.headers["Location"]) == (303, "/dashboard/sign-in")
        await here.get("/dashboard", 303)
        await there.get("/dashboard")
        unused = await world.sessions.create_link(one.merchant.merchant_id)
        world.now += timedelta(seconds=1)
        await there.post("/dashboard/sign-out-everywhere")
        await there.get("/dashboard", 303)
        await there.get(f"/dashboard/enter/{unused}", 410)
        await other.get("/dashboard")
        world.now += timedelta(seconds=1)
        async with world.browser(one) as again:
            await again.get("/dashboard")
    [entry] = await world.audit_log.many(one.merchant.merchant_id)
    assert entry.action == "session.end_all" and entry.actor.name.startswith("Key aks_live_")
    assert await world.audit_log.many(two.merchant.merchant_id) == []


async def test_a_revoked_key_takes_its_sessions_with_it(world: DashboardWorld) -> None:
    shop = await open_shop(world.stores, "one")
    keys = world.deps.merchant_stores.secret_keys
    await keys.create(shop.merchant.merchant_id, "second", live=True)
    async with world.browser(shop) as browser, world.browser() as linked:
        await linked.get(f"/dashboard/enter/{await world.sessions.create_link(shop.merchant.merchant_id)}", 303)
        found = await keys.by_secret(shop.key)
        assert found is not None
        await keys.revoke(shop.merchant.merchant_id, found[1].secret_key_id)
        await browser.get("/dashboard", 303)
        await linked.get("/dashboard")


async def test_a_change_needs_the_sessions_token_and_our_own_page(world: DashboardWorld) -> None:
    shop = await open_shop(world.stores, "one")
    async with world.browser(shop) as browser:
        for token in ("", "csrf_of-another", "é"):
            assert (await browser.post("/dashboard/sign-out-everywhere", csrf=token)).status == 403
        for origin in ("https://evil.example", "null"):
            answer = await browser.post("/dashboard/sign-out-everywhere", Origin=origin)
            assert answer.status == 403
            assert (await browser.post("/dashboard/sign-in", {"secret_key": shop.key}, Origin=origin)).status == 403
        await browser.get("/dashboard")
        ours = f"http://{browser.client.host}:{browser.client.port}"
        assert (await browser.post("/dashboard/sign-out", csrf="", Origin=ours, **{"X-CSRF-Token": browser.csrf})).status == 303


async def test_htmx_is_sent_to_the_sign_in_page_as_a_whole(world: DashboardWorld) -> None:
    async with world.browser() as browser:
        async with browser.client.get("/dashboard", headers={"HX-Request": "true"}) as answer:
            assert answer.status == 204 and answer.headers["HX-Redirect"] == "/dashboard/sign-in"


async def test_the_cookie_is_for_https_only_where_browsers_come_by_https(stores: Stores) -> None:
    shop = await open_shop(stores, "one")
    async with dashboard_world(stores, public_url="https://lava.example/") as world, world.browser() as browser:
        answer = await browser.post("/dashboard/sign-in", {"secret_key": shop.key}, Origin="https://lava.example")
        assert cookie_of(answer)["secure"]


async def test_a_program_gets_a_code_only_after_yes_and_only_on_this_machine(world: DashboardWorld) -> None:
    shop = await open_shop(world.stores, "one")
    async with world.browser() as browser:
        async with browser.client.get("/auth/connect?state=s%26&port=4321", allow_redirects=False) as answer:
            assert answer.headers["Location"].startswith("/dashboard/sign-in?next=/auth/connect")
    async with world.browser(shop) as browser:
        async with browser.client.get("/auth/connect?state=s%26&port=4321") as answer:
            page = await answer.text()
            assert "form-action 'self' http://127.0.0.1:4321;" in answer.headers["Content-Security-Policy"]
        [action] = re.findall(r'action="(/auth/connect[^"]+)"', page)
        answer = await browser.post(action.replace("&amp;", "&"))
        location = answer.headers["Location"]
        assert answer.status == 303 and location.startswith("http://127.0.0.1:4321/callback?code=lac_")
        assert location.endswith("&state=s%26")
        code = re.search(r"code=([^&]+)", location)
        assert code is not None
        async with browser.client.post("/v1/auth/callback", json={"code": code[1]}) as exchanged:
            assert (await exchanged.json())["merchant_id"] == shop.merchant.merchant_id
        assert (await browser.post("/auth/connect?state=x&port=4321", csrf="")).status == 403
        for bad in ("port=0&state=x", "port=99999&state=x", "port=x&state=x", "port=80", "port=80@evil&state=x"):
            await browser.get(f"/auth/connect?{bad}", 400)
        assert await LoginCodes(world.stores.redis).take("lac_none") is None
