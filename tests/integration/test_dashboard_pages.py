"""The analytic pages over real stores: what they show, what they refuse, and that merchants never see each other's."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import orjson
import pytest

from lava_proxy.billing.rows import RowStarts, opening_row
from lava_proxy.domain.catalog import Grant
from lava_proxy.domain.errors import CallerError
from lava_proxy.stores import outbox as outbox_module
from lava_proxy.stores.audit_log import Actor
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.open_calls import OpenCalls
from lava_proxy.stores.request_export import RequestExport
from lava_proxy.web.dashboard import audit_page, request_pages
from tests.dashboard_world import DashboardWorld, dashboard_world
from tests.engines import RunningEngines
from tests.integration.api_world import USD, Shop, Stores, open_shop, opened_stores, sell


@pytest.fixture
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


@pytest.fixture
async def world(stores: Stores) -> AsyncIterator[DashboardWorld]:
    async with dashboard_world(stores) as made:
        yield made


def words(page: str) -> str:
    """The page's text, tags and runs of spaces as one space."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page)))


def ids_of(page: str) -> list[str]:
    """The requests that a list links to, in its order."""
    return re.findall(r'href="/dashboard/requests/(req_[^"?]+)"', page)


async def hold(stores: Stores, shop: Shop, *, model: str = "gpt-4o", usage: dict[str, int] | None = None) -> str:
    """A call that has begun and not ended; its id."""
    grant = Grant(
        merchant_id=shop.merchant.merchant_id,
        wallet_id=shop.customer.wallet_id,
        connection_id=shop.customer.connection_id,
        meter=shop.meter.version,
    )
    start = RowStarts().start(
        grant=grant, provider="openai", key_type="managed", endpoint="POST https://api.openai.com/v1/chat/completions",
        api="chat", streamed=True, metadata=None, tier_field="",
    )  # fmt: skip
    row = orjson.loads(opening_row(start, model))
    row["usage"] = orjson.dumps(usage or {}).decode()
    request_id = new_id("req")
    await stores.balances.reserve(shop.customer.wallet_id, request_id, USD // 2, row=orjson.dumps(row), lease_ms=60_000)
    return request_id


async def test_the_overview_adds_up_what_was_sold_and_says_so_in_words_too(world: DashboardWorld) -> None:
    shop = await open_shop(world.stores, "acme")
    for _ in range(3):
        await sell(world.stores, shop, flush=False)
    await sell(world.stores, shop, by_meter=False)
    async with world.browser(shop) as browser:
        page = await browser.get("/dashboard?range=1")
        said = words(page)
        assert "Calls 4 0 failed" in said and "Tokens 6,000 4,000 in, 2,000 out" in said
        assert "Charged to customers $0.090000" in said and "Provider cost $0.018000" in said
        assert "Margin $0.076500 85.0 % of charges" in said
        assert "customer of acme 3 $0.090000" in said and "gpt-4o-mini 4" in said
        assert "Completed 4 100.0 %" in said and "Reported by the provider 4 100.0 %" in said
        charts = re.findall(r'role="img" aria-label="([^"]+)" data-chart="([^"]+)"', page)
        assert [label for label, _ in charts] == ["Charged to customers and provider cost, today", "Calls and failures, today"]
        money = orjson.loads(unescape(charts[0][1]))
        assert money["series"][0]["values"][-1] == "0.090000000" and len(money["times"]) == datetime.now(UTC).hour + 1
        part = await browser.get("/dashboard?range=30", **{"HX-Request": "true"})
        assert "<html" not in part and "Calls 4" in words(part)
        assert "Calls 4" in words(await browser.get("/dashboard?range=rubbish"))


async def test_the_overview_of_a_new_merchant_says_what_comes_next(world: DashboardWorld) -> None:
    shop = await open_shop(world.stores, "new")
    async with world.browser(shop) as browser:
        said = words(await browser.get("/dashboard"))
        assert "First steps 3 of 5 done" in said and "The first call" in said
        assert "No requests yet" in words(await browser.get("/dashboard/requests"))
        assert "Nothing was changed yet" in words(await browser.get("/dashboard/audit"))


async def test_customers_whose_balance_ends_soon_are_named(world: DashboardWorld) -> None:
    thin, rich = await open_shop(world.stores, "thin"), await open_shop(world.stores, "rich")
    await sell(world.stores, thin, charge_nanos=22 * USD)
    await sell(world.stores, rich, charge_nanos=1 * USD)
    async with world.browser(thin) as browser:
        assert "customer of thin $3.00 $22.00 22 h" in words(await browser.get("/dashboard"))
        await sell(world.stores, thin, charge_nanos=4 * USD)
        assert "owes $1.00 $26.00 used up" in words(await browser.get("/dashboard"))
    async with world.browser(rich) as browser:
        assert "No active customer's balance ends" in words(await browser.get("/dashboard"))


async def test_health_is_shown_with_and_without_redis(world: DashboardWorld, stores: Stores) -> None:
    shop = await open_shop(stores, "acme")
    await stores.flush()
    await hold(stores, shop)
    async with world.browser(shop) as browser:
        said = words(await browser.get("/dashboard/health"))
        assert "Redis ok" in said and "Postgres ok" in said and "Open calls 1" in said
    await stores.redis.delete("lava:verified_run")
    async with dashboard_world(stores) as again, again.browser(shop) as browser:
        assert "calls are refused until then" in words(await browser.get("/dashboard"))


async def test_a_call_is_a_row_while_it_runs_and_another_when_it_has_ended(world: DashboardWorld) -> None:
    shop, other = await open_shop(world.stores, "acme"), await open_shop(world.stores, "other")
    theirs = await hold(world.stores, other)
    ended = await sell(world.stores, shop)
    running = await hold(world.stores, shop, usage={"input_tokens": 12, "output_tokens": 34})
    async with world.browser(shop) as browser:
        page = await browser.get("/dashboard/requests")
        assert ids_of(page) == [running, ended] and theirs not in page
        assert 'hx-get="/dashboard/requests/rows"' in page and 'hx-trigger="every 2s"' in page
        assert "pending" in page and "$0.500000 held" in words(page) and " 12 34 " in words(page)
        one = words(await browser.get(f"/dashboard/requests/{running}"))
        assert "still running" in one and "$0.50" in one and "12 tokens in, 34 out" in one
        await browser.get(f"/dashboard/requests/{theirs}", 404)
        assert ids_of(await browser.get("/dashboard/requests?status=pending")) == [running]
        assert ids_of(await browser.get("/dashboard/requests?model=gpt-4o-mini")) == [ended]
        await world.stores.balances.settle(
            shop.customer.wallet_id, running, 7, row=await row_of(world.stores, running), keep_ms=60_000
        )
        await world.stores.flush()
        rows = await browser.get("/dashboard/requests/rows")
        assert ids_of(rows) == [running, ended] and "pending" not in rows


async def row_of(stores: Stores, request_id: str) -> bytes:
    """What the hold of an open call says of it."""
    for holds in (await stores.outbox.hold_records()).values():
        for found in holds:
            if found.request_id == request_id:
                return found.row
    raise AssertionError(f"no hold of {request_id}")


async def test_what_has_ended_is_listed_while_redis_is_away(stores: Stores) -> None:
    shop = await open_shop(stores, "acme")
    ended = await sell(stores, shop)
    gone = outbox_module.connect("redis://127.0.0.1:1/0")
    async with dashboard_world(stores, open_calls=OpenCalls(gone)) as world, world.browser(shop) as browser:
        page = await browser.get("/dashboard/requests")
        assert ids_of(page) == [ended] and "Redis does not answer" in page
    await gone.aclose()


async def test_filters_find_by_everything_and_pages_are_keyset(world: DashboardWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_pages, "PAGE_ROWS", 2)
    shop = await open_shop(world.stores, "acme")
    red = await sell(world.stores, shop, metadata={"team": "red"})
    failed = await sell(world.stores, shop, status="error", outcome="provider_error")
    own = await sell(world.stores, shop, by_meter=False)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%d")
    async with world.browser(shop) as browser:
        first = await browser.get("/dashboard/requests")
        assert ids_of(first) == [own, failed]
        [older] = re.findall(r'rel="next" href="([^"]+)"', first)
        second = await browser.get(unescape(older))
        assert ids_of(second) == [red] and "every 2s" not in second and "Newest" in second
        for query, wanted in {
            "metadata=team%3Dred": [red], "metadata=team:blue": [], "status=error": [failed], "status=completed": [own, red],
            f"customer={shop.customer.connection_id}": [failed, red], "customer=customer+of+acme": [failed, red],
            f"meter={shop.meter.meter_id}": [failed, red], "meter=chat": [failed, red], "provider=openai&status=error": [failed],
            "provider=nobody": [], "customer=nobody": [], f"from={tomorrow}T00:00": [], f"to={tomorrow}T00:00": [own, failed],
        }.items():  # fmt: skip
            assert ids_of(await browser.get(f"/dashboard/requests?{query}")) == wanted, query
        async with browser.client.get(f"/dashboard/requests?id={red}", allow_redirects=False) as answer:
            assert answer.headers["Location"] == f"/dashboard/requests/{red}"
        for nothing in ("rows", "a" * 300, "req_\0"):
            async with browser.client.get("/dashboard/requests", params={"id": nothing}) as answer:
                assert answer.status == 404, nothing


async def test_a_filter_that_makes_no_sense_is_told_at_its_field_with_what_was_typed(world: DashboardWorld) -> None:
    shop = await open_shop(world.stores, "acme")
    await sell(world.stores, shop)
    async with world.browser(shop) as browser:
        page = await browser.get("/dashboard/requests?from=soon&metadata=red&status=good&to=2026-01-01", 422)
        for problem in ("This is no time", "Write it as key=value", "Choose one of completed, error, pending"):
            assert problem in page
        assert 'value="soon"' in page and 'aria-invalid="true"' in page and ids_of(page) == []
        assert "before the start" in await browser.get("/dashboard/requests?from=2026-02-01&to=2026-01-01", 422)
        await browser.get("/dashboard/requests/export?status=good", 400)
        await browser.get("/dashboard/requests/export?format=xls", 400)


async def test_a_search_that_takes_too_long_says_how_to_narrow_it(world: DashboardWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = await open_shop(world.stores, "acme")

    async def slow(*_: Any, **__: Any) -> Any:
        raise CallerError("Too many requests lie between those that match.", code="search_too_slow")

    monkeypatch.setattr(RequestExport, "page", slow)
    async with world.browser(shop) as browser:
        assert "Too many requests lie between" in await browser.get("/dashboard/requests?provider=rare", 422)


async def test_a_request_shows_all_that_made_its_price(world: DashboardWorld) -> None:
    shop = await open_shop(world.stores, "acme")
    request_id = await sell(world.stores, shop, metadata={"team": "<b>red</b>"})
    async with world.browser(shop) as browser:
        page = await browser.get(f"/dashboard/requests/{request_id}")
        said = words(page)
        for fact in (
            "Charge $0.03 ", "Provider cost $0.004500001", "Margin $0.025499999", "0 1,500 tokens $20 per million $0.03",
            "From plan credit $0.00 From funds $0.03", "Balance after it $24.97", "Price list test-1", "Reported by the provider",
            "The whole call 1.200 ms", "input tokens 1000", "chatcmpl-1", request_id, "customer of acme", "Chat",
        ):  # fmt: skip
            assert fact in said, fact
        assert "<b>red</b>" not in page and "&lt;b&gt;red" in page
        for nobody in ("req_01M84WWZRVVQ5D2S7GKVXBC70Z", "x%00y", "%20", "x" * 300):
            await browser.get(f"/dashboard/requests/{nobody}", 404)


async def test_the_file_has_what_the_filter_lets_through(world: DashboardWorld) -> None:
    shop = await open_shop(world.stores, "acme")
    red = await sell(world.stores, shop, metadata={"team": "red"})
    own = await sell(world.stores, shop, by_meter=False)
    async with world.browser(shop) as browser:
        async with browser.client.get("/dashboard/requests/export?format=csv") as answer:
            rows = list(csv.DictReader(io.StringIO(await answer.text())))
            assert answer.headers["Content-Disposition"] == 'attachment; filename="requests.csv"'
        assert [row["request_id"] for row in rows] == [own, red] and rows[1]["charge"] == "0.0300000000"
        lines = (await browser.get("/dashboard/requests/export?format=ndjson&metadata=team%3Dred")).splitlines()
        assert [orjson.loads(line)["request_id"] for line in lines] == [red]
        assert len((await browser.get("/dashboard/requests/export?customer=nobody")).splitlines()) == 1


async def test_the_audit_log_says_who_did_what_and_what_it_was_before(
    world: DashboardWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_page, "PAGE_ROWS", 2)
    shop, other = await open_shop(world.stores, "acme"), await open_shop(world.stores, "other")
    actor = Actor(kind="session", id="sk_1", name="Key aks_live_...abcd")
    merchant_id, log = shop.merchant.merchant_id, world.audit_log
    await log.note(
        merchant_id, actor, "meter.change", "prd_1", before={"rate": "20", "name": "a"}, after={"rate": "15", "name": "a"}
    )
    await log.note(merchant_id, actor, "key.revoke", "sk_2", before={"name": "<i>"})
    await log.note(merchant_id, Actor(kind="cli", id="root", name="root"), "meter.archive", "prd_1")
    await log.note(other.merchant.merchant_id, actor, "meter.change", "prd_9")
    async with world.browser(shop) as browser:
        page = await browser.get("/dashboard/audit")
        assert "prd_9" not in page and "meter.archive" in page and "&lt;i&gt;" in page and "<del>20</del>" not in page
        [older] = re.findall(r'rel="next" href="([^"]+)"', page)
        rest = await browser.get(unescape(older))
        assert (
            "<del>20</del> <ins>15</ins>" in rest and "Key aks_live_...abcd" in rest and "name" not in words(rest).split("rate")[-1]
        )
        for query, count in {
            "action=meter": 2,
            "action=key.revoke": 1,
            "object=prd_1": 2,
            "from=2090-01-01": 0,
            "who=root": 1,
            "who=Key+aks_live_...abcd&action=meter": 1,
            "who=nobody": 0,
            "object=prd_9": 0,
        }.items():
            assert (await browser.get(f"/dashboard/audit?{query}")).count("<time") == count, query
        assert "Nothing matches" in await browser.get("/dashboard/audit?who=nobody")
        assert 'rel="next"' in page and "Key aks_live_...abcd</option>" in page and ">meter: anything</option>" in page
        monkeypatch.setattr(audit_page, "PAGE_ROWS", 1)
        [older] = re.findall(r'rel="next" href="([^"]+)"', await browser.get("/dashboard/audit?who=Key+aks_live_...abcd"))
        rest = await browser.get(unescape(older))
        assert "meter.change" in rest and rest.count("<time") == 1 and 'rel="next"' not in rest
        await browser.get("/dashboard/audit?from=soon", 422)
    async with world.browser(await open_shop(world.stores, "third")) as browser:
        assert "Nothing was changed yet" in await browser.get("/dashboard/audit")


async def test_an_act_and_its_entry_are_written_together_or_not_at_all(world: DashboardWorld) -> None:
    shop = await open_shop(world.stores, "acme")
    actor = Actor(kind="cli", id="root", name="root")
    with pytest.raises(RuntimeError):
        async with world.stores.pool.acquire() as db, db.transaction():
            await world.audit_log.note(shop.merchant.merchant_id, actor, "meter.change", "prd_1", db=db)
            raise RuntimeError("the act failed")
    assert await world.audit_log.many(shop.merchant.merchant_id) == []


async def test_no_page_of_the_dashboard_shows_anything_of_another_merchant(world: DashboardWorld) -> None:
    """Walks every route: without a session it leads to the sign-in page; with another merchant's ids it is 404 or shows nothing."""
    mine, theirs = await open_shop(world.stores, "mine"), await open_shop(world.stores, "theirs")
    secret_id = await sell(world.stores, theirs, metadata={"team": "theirs-only"})
    running = await hold(world.stores, theirs)
    await world.audit_log.note(
        theirs.merchant.merchant_id, Actor(kind="cli", id="r", name="r"), "meter.change", theirs.meter.meter_id
    )
    foreign = [
        theirs.merchant.merchant_id, theirs.customer.connection_id, theirs.meter.meter_id, secret_id, running,
        "customer of theirs", "theirs-only",
    ]  # fmt: skip
    walked = 0
    async with world.browser() as stranger, world.browser(mine) as browser:
        for route in world.site.routes():
            path = route.path
            if not path.startswith(("/dashboard", "/auth/")) or path in ("/dashboard/sign-in", "/dashboard/enter/{code}"):
                continue
            walked += 1
            concrete = [re.sub(r"\{[^}]+\}", one, path) for one in foreign[:5]] if "{" in path else [path]
            for address in concrete:
                if route.method != "GET":
                    answer = await stranger.post(address, {})
                    assert (answer.status, answer.headers["Location"]) == (303, "/dashboard/sign-in"), address
                    assert (await browser.post(address, {}, csrf="csrf_wrong")).status == 403, address
                    continue
                async with stranger.client.get(address, allow_redirects=False) as answer:
                    assert answer.status == 303 and "/dashboard/sign-in" in answer.headers["Location"], address
                if path.startswith("/auth/"):
                    continue
                async with browser.client.get(address) as answer:
                    text = await answer.text()
                    assert answer.status == (404 if "{" in path else 200), address
                shown = [one for one in foreign if one in text and one not in address]
                assert shown == [], (address, shown)
        for query in (f"customer={foreign[1]}", f"meter={foreign[2]}", "customer=customer+of+theirs"):
            page = await browser.get(f"/dashboard/requests?{query}")
            assert ids_of(page) == [], query
    assert walked > 8
