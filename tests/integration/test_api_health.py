"""Health, the scrape and the status page, with the engines well, recovering and away; and what a failing part answers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import structlog
from aiohttp.test_utils import TestClient

from lava_proxy.stores import outbox as outbox_module
from lava_proxy.stores import postgres
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.hot_redis import VERIFIED_KEY
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.outbox import Outbox
from tests.engines import RunningEngines
from tests.integration.api_world import USD, Stores, dependencies, open_shop, opened_stores, sell, served

Client = TestClient[Any, Any]


@pytest.fixture
async def stores(engines: RunningEngines) -> AsyncIterator[Stores]:
    async with opened_stores(engines) as opened:
        yield opened


async def without_postgres(stores: Stores) -> postgres.Pool:
    """A pool whose database is gone."""
    await stores.pool.close()
    return stores.pool


async def body(client: Client, path: str, status: int) -> Any:
    async with client.get(path) as answer:
        assert answer.status == status, await answer.text()
        return await answer.json()


async def test_ready_when_redis_is_verified_and_postgres_answers(stores: Stores) -> None:
    async with served(dependencies(stores)) as client:
        assert await body(client, "/healthz", 200) == {"status": "ok"}
        ready = await body(client, "/readyz", 200)
    assert (ready["status"], ready["degraded"], ready["redis"], ready["postgres"]) == ("ready", False, "ok", "ok")
    assert ready["problems"] == [] and ready["price_version"] == "prices-1"


async def test_readiness_counts_the_outbox_and_the_holds(stores: Stores) -> None:
    shop = await open_shop(stores, "busy")
    await stores.flush()
    await sell(stores, shop, flush=False)
    await stores.balances.reserve(shop.customer.wallet_id, new_id("req"), USD, row=b"{}", lease_ms=60_000)
    await stores.balances.reserve(shop.customer.wallet_id, new_id("req"), USD, row=b"{}", lease_ms=-5_000)
    async with served(dependencies(stores)) as client:
        ready = await body(client, "/readyz", 200)
        assert (ready["outbox_entries"], ready["holds_open"]) == (1, 2)
        assert ready["hold_overdue_seconds"] >= 5
        assert 0 <= ready["outbox_lag_seconds"] < 60
        await stores.flush()
        assert (await body(client, "/readyz", 200))["outbox_entries"] == 0


async def test_not_ready_while_redis_is_not_verified(stores: Stores) -> None:
    async with served(dependencies(stores)) as client:
        for run in (None, "another-run"):
            await (stores.redis.delete(VERIFIED_KEY) if run is None else stores.redis.set(VERIFIED_KEY, run))
            ready = await body(client, "/readyz", 503)
            assert (ready["status"], ready["redis"]) == ("not_ready", "recovering")
            assert "being checked" in ready["problems"][0]
        async with client.get("/readyz") as answer:
            assert answer.headers["Retry-After"] == "1"


async def test_degraded_but_ready_without_postgres(stores: Stores) -> None:
    async with served(dependencies(stores)) as client:
        await without_postgres(stores)
        ready = await body(client, "/readyz", 200)
        assert (ready["status"], ready["degraded"], ready["postgres"]) == ("degraded", True, "unreachable")
        assert ready["holds_open"] == 0
        assert (await body(client, "/healthz", 200))["status"] == "ok"
        async with client.get("/") as answer:
            assert answer.status == 200 and "Working without its database" in await answer.text()


async def test_not_ready_and_no_figures_without_redis(stores: Stores) -> None:
    gone = outbox_module.connect("redis://127.0.0.1:1/0")
    async with served(dependencies(stores, outbox=Outbox(gone))) as client:
        ready = await body(client, "/readyz", 503)
        assert (ready["status"], ready["redis"], ready["postgres"]) == ("not_ready", "unreachable", "ok")
        assert ready["outbox_entries"] is None and ready["holds_open"] is None
        async with client.get("/") as answer:
            assert answer.status == 200 and "calls are refused" in await answer.text()
    await gone.aclose()


async def test_readiness_is_remembered_a_moment(stores: Stores) -> None:
    async with served(dependencies(stores, health_remember_s=3600.0)) as client:
        await body(client, "/readyz", 200)
        await stores.redis.delete(VERIFIED_KEY)
        await body(client, "/readyz", 200)


async def test_the_scrape_is_what_the_process_exposes(stores: Stores) -> None:
    async with served(dependencies(stores)) as client, client.get("/metrics") as answer:
        assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/plain; version=")
        assert "lava_holds_open 0.0" in await answer.text()


async def test_an_outage_of_postgres_is_a_503_with_retry_after(stores: Stores) -> None:
    shop = await open_shop(stores, "cut")
    async with served(dependencies(stores)) as client:
        await without_postgres(stores)
        async with client.get("/v1/requests", headers=shop.headers) as answer:
            assert answer.status == 503 and answer.headers["Retry-After"] == "1"
            assert (await answer.json())["error"]["code"] == "database_unavailable"


async def test_an_outage_of_redis_is_a_503_for_balances_only(stores: Stores) -> None:
    shop = await open_shop(stores, "dark")
    gone = outbox_module.connect("redis://127.0.0.1:1/0")
    async with served(dependencies(stores, outbox=Outbox(gone))) as client:
        for path, status in (("/v1/wallet", 503), ("/v1/customers", 503), ("/v1/meters", 200), ("/v1/requests", 200)):
            async with client.get(path, headers=shop.headers) as answer:
                assert answer.status == status and await answer.read()
    await gone.aclose()


async def test_a_wallet_of_a_partition_under_recovery_is_not_shown(stores: Stores) -> None:
    shop = await open_shop(stores, "rebuilt")
    for part in range(64):
        await stores.outbox.set_state(part, "recovering")
    async with served(dependencies(stores)) as client, client.get("/v1/wallet", headers=shop.headers) as answer:
        assert answer.status == 503 and (await answer.json())["error"]["code"] == "recovering"


class _Broken(CatalogStore):
    def __init__(self, secret: str) -> None:
        self._secret = secret

    async def merchant_by_key(self, secret_key: str) -> Any:
        raise RuntimeError(f"unexpected {self._secret}")


async def test_an_unexpected_failure_is_a_500_in_the_envelope_and_logged_without_secrets(stores: Stores) -> None:
    secret = "aks_live_0123456789abcdefghijklmnop"
    with structlog.testing.capture_logs() as logs:
        async with served(dependencies(stores, catalog=_Broken(secret))) as client:
            headers = {"Authorization": f"Bearer {secret}"}
            async with client.get("/v1/connections/cons_live_verysecretverysecret?limit=5", headers=headers) as answer:
                assert answer.status == 500
                text = await answer.text()
    assert '"code":"internal_error"' in text and "RuntimeError" not in text and secret not in text
    (entry,) = [log for log in logs if log.get("action") == "api_request_failed"]
    assert entry["error"] == "RuntimeError" and entry["route"] == "/v1/connections/{connection}"
    assert entry["frames"] and "verysecret" not in str(logs) and secret not in str(logs)


# -- the status page


async def test_the_page_shows_the_parts_and_nothing_of_a_merchant(stores: Stores) -> None:
    shop = await open_shop(stores, "private-shop")
    request_id = await sell(stores, shop)
    async with served(dependencies(stores, status_links={"API base": "http://127.0.0.1:8080/v1/"})) as client:
        for path in ("/", f"/?key={shop.key}"):
            async with client.get(path, headers=shop.headers) as answer:
                text = await answer.text()
                assert answer.status == 200 and answer.content_type == "text/html"
            assert "<h1>lava-proxy</h1>" in text and "Ready: calls are accepted" in text and "2026-01-02T03:04:05Z" in text
            assert '<a href="http://127.0.0.1:8080/v1/"' in text
            for private in ("private-shop", request_id, shop.key, shop.merchant.merchant_id, shop.customer.connection_id):
                assert private not in text


async def test_the_page_loads_nothing_but_its_stylesheet_and_cannot_be_framed(stores: Stores) -> None:
    async with served(dependencies(stores)) as client:
        async with client.get("/") as answer:
            policy, text = answer.headers["Content-Security-Policy"], await answer.text()
        assert policy.startswith("default-src 'none'; style-src 'self';") and "frame-ancestors 'none'" in policy
        assert not re.search(r"<script|http-equiv|<img|\sstyle=|\son\w+=", text)
        async with client.get("/static/status.css") as answer:
            assert answer.content_type == "text/css" and "prefers-color-scheme: dark" in await answer.text()
            assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("dev", [True, False])
async def test_the_first_call_is_shown_in_dev_only_and_escaped(stores: Stores, dev: bool) -> None:
    deps = replace(dependencies(stores, dev=dev), first_call="curl -H 'x: <y>' \\\n  http://127.0.0.1:8080/v1/forward/openai")
    async with served(deps) as client, client.get("/") as answer:
        text = await answer.text()
    assert ("Your first call" in text) is dev and ("&lt;y&gt;" in text) is dev and "<y>" not in text


async def test_an_address_that_is_no_link_is_plain_text(stores: Stores) -> None:
    deps = dependencies(stores, status_links={"Script": "javascript:alert(1)", "<b>": "/metrics"})
    async with served(deps) as client, client.get("/") as answer:
        text = await answer.text()
    assert 'href="javascript' not in text and "<b>" not in text and '<a href="/metrics"' in text


async def test_a_store_that_does_not_exist_yet_is_unreachable(stores: Stores) -> None:
    """The ledger's own check translates what asyncpg raises."""
    ledger = LedgerStore(await without_postgres(stores))
    async with served(dependencies(stores, ledger=ledger)) as client:
        assert (await body(client, "/readyz", 200))["postgres"] == "unreachable"
