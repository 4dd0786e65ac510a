"""A resource of the REST API served alone, behind the middlewares that check keys and shape errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lava_proxy.api.authentication import authentication
from lava_proxy.api.envelope import answer_errors
from lava_proxy.api.operations import routes_of
from tests.checkout_world import CheckoutWorld

Ask = Callable[..., Awaitable[tuple[int, Any]]]


@asynccontextmanager
async def api_of(shop: CheckoutWorld, key: str) -> AsyncIterator[Ask]:
    """Asks the checkout resource with a secret key: (status, JSON)."""
    application = web.Application(middlewares=[answer_errors, authentication(shop.world.catalog)])
    application.add_routes(routes_of(shop.resource().operations()))
    async with TestClient(TestServer(application)) as client:

        async def ask(method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
            answer = await client.request(method, f"/v1/{path}", json=body, headers={"Authorization": f"Bearer {key}"})
            return answer.status, await answer.json()

        yield ask
