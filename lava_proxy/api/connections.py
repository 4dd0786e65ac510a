"""GET /v1/connections and /v1/connections/{id, reference_id or secret}: customers in the two older vocabularies at once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.balances import live_wallet
from lava_proxy.api.customers import contact_object
from lava_proxy.api.envelope import json_response
from lava_proxy.api.formats import balance_fields, listing, timestamp
from lava_proxy.api.queries import Query, path_reference
from lava_proxy.domain.errors import NotFound
from lava_proxy.stores.catalog_store import CatalogStore, Connection
from lava_proxy.stores.outbox import Outbox, WalletState


class Connections:
    """The connection resource."""

    def __init__(self, catalog: CatalogStore, outbox: Outbox, clock: Callable[[], datetime]) -> None:
        self._catalog = catalog
        self._outbox = outbox
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/connections", self.many), web.get("/v1/connections/{connection}", self.one)]

    async def many(self, request: web.Request) -> web.Response:
        """Newest first, without secrets; `reference_id` picks one. The balance of a wallet that is being recovered is null."""
        query = Query(request.query)
        page, reference_id = query.page("con"), query.text("reference_id")
        query.check()
        merchant_id = merchant_of(request).merchant_id
        if reference_id is None:
            found = await self._catalog.connections(merchant_id, before=page.before, limit=page.limit + 1)
        else:
            one = await self._catalog.connection(merchant_id, reference_id)
            found = [one] if one is not None and one.reference_id == reference_id else []
        states = await self._outbox.wallet_states([connection.wallet_id for connection in found])
        now = self._clock()
        items = [connection_object(connection, states[connection.wallet_id], now) for connection in found]
        return json_response(listing(items, page.limit, "connection_id"))

    async def one(self, request: web.Request) -> web.Response:
        """With `connection_secret`, which the oldest clients build their forward tokens from."""
        reference = path_reference(request, "connection")
        connection = await self._catalog.connection(merchant_of(request).merchant_id, reference)
        if connection is None:
            raise NotFound("No connection of yours has this id, reference_id or secret.")
        state = await live_wallet(self._outbox, connection.wallet_id)
        return json_response(connection_object(connection, state, self._clock()) | {"connection_secret": connection.secret})


def connection_object(connection: Connection, state: WalletState | None, now: datetime) -> dict[str, Any]:
    """The union of both older vocabularies. Tier counters start again with the UTC month while there are no plans."""
    contact = contact_object(connection)
    start, end = month_of(now)
    return {
        "connection_id": connection.connection_id,
        "reference_id": connection.reference_id,
        "status": connection.status,
        "has_lava_credit_balance": state is not None and state.balance_nanos > 0,
        "customer": contact,
        "subscription": None,
        "wallet": {**balance_fields(state), **contact, "autopay_enabled": False},
        "metadata": connection.metadata,
        "previous_usage_reset": timestamp(start),
        "next_usage_reset": timestamp(end),
        "created_at": timestamp(connection.created_at),
    }


def month_of(now: datetime) -> tuple[datetime, datetime]:
    """The first instants of an aware time's UTC month and of the next."""
    utc = now.astimezone(UTC)
    start = datetime(utc.year, utc.month, 1, tzinfo=UTC)
    return start, datetime(utc.year + utc.month // 12, utc.month % 12 + 1, 1, tzinfo=UTC)
