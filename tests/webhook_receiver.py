"""A merchant's receiver of webhooks on loopback, which fails in every way that is asked for and verifies every signature."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer


@dataclass(frozen=True, slots=True)
class Received:
    headers: dict[str, str]  # names in lower case
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        return dict(json.loads(self.raw))

    @property
    def name(self) -> str:
        return str(self.body["event"])

    def is_signed_with(self, secret: str) -> bool:
        """Exactly what real receivers do: hex(hmac_sha256(secret, raw body))."""
        expected = hmac.new(secret.encode(), self.raw, hashlib.sha256).hexdigest()
        return hmac.compare_digest(expected, self.headers["x-webhook-signature"])


@dataclass(slots=True)
class Receiver:
    """`faults`: what to do with the next requests, first first: a status, "hang", "reset", "slow" or a redirect's target."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    faults: list[int | str] = field(default_factory=list)
    always: int | str = 200
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def ids(self) -> list[str]:
        return [one.body["id"] for one in self.received]

    def named(self, name: str) -> list[dict[str, Any]]:
        return [one.body for one in self.received if one.name == name]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.received.append(Received({name.lower(): value for name, value in request.headers.items()}, raw))
        fault = self.faults.pop(0) if self.faults else self.always
        if isinstance(fault, int):
            return web.Response(status=fault, text=f"status {fault}")
        if fault == "hang":
            await self.released.wait()
            return web.Response()
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "slow":
            # A head at once, then a body that never ends.
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"thinking")
            await self.released.wait()
            return response
        return web.Response(status=307, headers={"Location": fault})


@asynccontextmanager
async def running_receiver() -> AsyncIterator[Receiver]:
    """Listening until the end of the block."""
    receiver = Receiver()
    application = web.Application()
    application.router.add_post("/{tail:.*}", receiver.handle)
    async with TestServer(application) as server:
        receiver.url = str(server.make_url("/hooks"))
        try:
            yield receiver
        finally:
            receiver.released.set()
