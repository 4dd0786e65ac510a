"""GET /v1/customers and /v1/customers/{id or reference_id}: a merchant's customers with their live balances."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.balances import live_wallet
from lava_proxy.api.envelope import json_response
from lava_proxy.api.formats import balance_fields, listing, timestamp
from lava_proxy.api.queries import Query, path_reference
from lava_proxy.domain.errors import NotFound
from lava_proxy.stores.catalog_store import CatalogStore, Connection
from lava_proxy.stores.outbox import Outbox, WalletState

CONTACT_KEYS = ("phone", "email", "first_name", "last_name")


class Customers:
    """The customer resource: the newer name of a connection."""

    def __init__(self, catalog: CatalogStore, outbox: Outbox) -> None:
        self._catalog = catalog
        self._outbox = outbox

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/customers", self.many), web.get("/v1/customers/{customer}", self.one)]

    async def many(self, request: web.Request) -> web.Response:
        """Newest first. The balance of a wallet that is being recovered is null."""
        query = Query(request.query)
        page = query.page("con")
        query.check()
        merchant = merchant_of(request)
        found = await self._catalog.connections(merchant.merchant_id, before=page.before, limit=page.limit + 1)
        states = await self._outbox.wallet_states([connection.wallet_id for connection in found])
        items = [customer_object(connection, states[connection.wallet_id]) for connection in found]
        return json_response(listing(items, page.limit, "customer_id"))

    async def one(self, request: web.Request) -> web.Response:
        reference = path_reference(request, "customer")
        connection = await self._catalog.connection(merchant_of(request).merchant_id, reference)
        if connection is None:
            raise NotFound("No customer of yours has this id or reference_id.")
        return json_response(customer_object(connection, await live_wallet(self._outbox, connection.wallet_id)))


def customer_object(connection: Connection, state: WalletState | None) -> dict[str, Any]:
    """The newest vocabulary. Subscriptions are not built yet, so there is none."""
    return {
        "customer_id": connection.connection_id,
        "reference_id": connection.reference_id,
        "status": connection.status,
        "contact": contact_object(connection),
        "subscription": None,
        "metadata": connection.metadata,
        **balance_fields(state),
        "created_at": timestamp(connection.created_at),
    }


def contact_object(connection: Connection) -> dict[str, Any]:
    """The four contact fields, null where unknown."""
    return {key: connection.contact.get(key) for key in CONTACT_KEYS}
