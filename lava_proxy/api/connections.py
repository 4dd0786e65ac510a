"""/v1/connections and /v1/connections/{id, reference_id or secret}: customers in the two older vocabularies at once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar

from aiohttp import web

from lava_proxy.api.audit import Audit
from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.balances import live_wallet
from lava_proxy.api.customers import Balances, Contact, contact_object, delete_customer
from lava_proxy.api.envelope import json_response
from lava_proxy.api.fields import Done, PageQuery, Text, Timestamp, list_of
from lava_proxy.api.formats import balance_fields, listing, timestamp
from lava_proxy.api.operations import Answer, Operation
from lava_proxy.api.queries import path_reference
from lava_proxy.api.subscription_objects import CurrentSubscription, OneSubscription, current_subscription
from lava_proxy.api.subscriptions import SubscriptionResource
from lava_proxy.domain.errors import NotFound
from lava_proxy.domain.plans import Subscription
from lava_proxy.stores.catalog_store import CatalogStore, Connection
from lava_proxy.stores.customer_store import CustomerStore
from lava_proxy.stores.outbox import Outbox, WalletState
from lava_proxy.stores.plan_store import PlanStore

TAG = "Connections"


class ConnectionsQuery(PageQuery):
    prefix: ClassVar[str] = "con"

    reference_id: Text | None = None


class ConnectionWallet(Balances, Contact):
    autopay_enabled: bool


class ConnectionAnswer(Answer):
    connection_id: str
    reference_id: str | None
    status: str
    has_lava_credit_balance: bool
    customer: Contact
    subscription: CurrentSubscription | None
    wallet: ConnectionWallet
    metadata: dict[str, Any] | None
    previous_usage_reset: Timestamp
    next_usage_reset: Timestamp
    created_at: Timestamp


class ConnectionWithSecret(ConnectionAnswer):
    connection_secret: str


class Connections:
    """The connection resource."""

    def __init__(
        self,
        catalog: CatalogStore,
        customers: CustomerStore,
        outbox: Outbox,
        clock: Callable[[], datetime],
        plans: PlanStore,
        subscriptions: SubscriptionResource,
        audit: Audit,
    ) -> None:
        self._catalog = catalog
        self._customers = customers
        self._outbox = outbox
        self._clock = clock
        self._plans = plans
        self._subscriptions = subscriptions
        self._audit = audit

    def operations(self) -> list[Operation]:
        one = "/v1/connections/{connection}"
        return [
            Operation(
                method="GET", path="/v1/connections", handler=self.many, tag=TAG, summary="List connections",
                query=ConnectionsQuery, answer=list_of(ConnectionAnswer), alias_of="/v1/customers",
            ),
            Operation(
                method="GET", path=one, handler=self.one, tag=TAG, summary="Read a connection",
                answer=ConnectionWithSecret, alias_of="/v1/customers/{customer}",
            ),
            Operation(
                method="DELETE", path=one, handler=self.delete, tag=TAG, summary="Delete a connection", answer=Done,
                alias_of="/v1/customers/{customer}",
            ),
            Operation(
                method="GET", path=one + "/subscription", handler=self.subscription, tag=TAG,
                summary="Read a connection's subscription", answer=OneSubscription,
                alias_of="/v1/customers/{customer}/subscription",
            ),
        ]  # fmt: skip

    async def many(self, request: web.Request, query: ConnectionsQuery) -> web.Response:
        """Newest first, without secrets; `reference_id` picks one. The balance of a wallet that is being recovered is null."""
        merchant_id = merchant_of(request).merchant_id
        if query.reference_id is None:
            found = await self._catalog.connections(merchant_id, before=query.cursor, limit=query.limit + 1)
        else:
            one = await self._catalog.connection(merchant_id, query.reference_id)
            found = [one] if one is not None and one.reference_id == query.reference_id else []
        states = await self._outbox.wallet_states([connection.wallet_id for connection in found])
        now = self._clock()
        on_plans = await self._plans.live_subscriptions([connection.connection_id for connection in found])
        items = [
            connection_object(one, states[one.wallet_id], now, on_plans.get(one.connection_id)) for one in found
        ]  # fmt: skip
        return json_response(listing(items, query.limit, "connection_id"))

    async def one(self, request: web.Request) -> web.Response:
        """With `connection_secret`, which the oldest clients build their forward tokens from."""
        connection = await self._found(request)
        state = await live_wallet(self._outbox, connection.wallet_id)
        on_plan = await self._plans.live_subscription(connection.connection_id)
        shown = connection_object(connection, state, self._clock(), on_plan)
        return json_response(shown | {"connection_secret": connection.secret})

    async def delete(self, request: web.Request) -> web.Response:
        connection = await self._found(request)
        await delete_customer(self._audit, self._customers, request, connection)
        return json_response({"success": True})

    async def subscription(self, request: web.Request) -> web.Response:
        found = await self._found(request)
        return json_response(await self._subscriptions.of_connection(found.connection_id))

    async def _found(self, request: web.Request) -> Connection:
        reference = path_reference(request, "connection")
        connection = await self._catalog.connection(merchant_of(request).merchant_id, reference)
        if connection is None:
            raise _no_such_connection()
        return connection


def connection_object(
    connection: Connection, state: WalletState | None, now: datetime, subscription: Subscription | None
) -> dict[str, Any]:
    """The union of both older vocabularies. Tier counters start again with the subscription's cycle, else with the UTC month."""
    contact = contact_object(connection)
    start, end = month_of(now) if subscription is None else (subscription.cycle.start, subscription.cycle.end)
    return {
        "connection_id": connection.connection_id,
        "reference_id": connection.reference_id,
        "status": connection.status,
        "has_lava_credit_balance": state is not None and state.balance_nanos > 0,
        "customer": contact,
        "subscription": current_subscription(subscription),
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


def _no_such_connection() -> NotFound:
    return NotFound("No connection of yours has this id, reference_id or secret.")
