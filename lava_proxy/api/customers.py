"""/v1/customers and /v1/customers/{id or reference_id}: a merchant's customers with their live balances."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from aiohttp import web
from pydantic import Field

from lava_proxy.api.audit import Audit
from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.balances import live_wallet
from lava_proxy.api.envelope import json_response
from lava_proxy.api.fields import (
    Amount,
    Done,
    Email,
    Metadata,
    Name,
    PageQuery,
    Phone,
    ReferenceId,
    Timestamp,
    list_of,
)
from lava_proxy.api.formats import balance_fields, listing, timestamp
from lava_proxy.api.operations import Answer, Body, Operation
from lava_proxy.api.queries import path_reference
from lava_proxy.api.subscription_objects import (
    CurrentSubscription,
    OneSubscription,
    OverageAnswer,
    OverageField,
    current_subscription,
    overage_object,
)
from lava_proxy.api.subscriptions import SubscriptionResource
from lava_proxy.billing.customers import open_customer
from lava_proxy.billing.funding import Funding
from lava_proxy.domain.errors import Conflict, NotFound
from lava_proxy.domain.plans import Overage, Subscription
from lava_proxy.stores.catalog_store import CatalogStore, Connection
from lava_proxy.stores.customer_store import CustomerChanges, CustomerStore
from lava_proxy.stores.outbox import Outbox, WalletState
from lava_proxy.stores.plan_store import PlanStore
from lava_proxy.wire.texts import split_name

CONTACT_KEYS = ("phone", "email", "first_name", "last_name")
TAG = "Customers"


class NewCustomer(Body):
    reference_id: ReferenceId | None = None
    email: Email | None = None
    phone: Phone | None = None
    name: Annotated[Name | None, Field(description="Split at the last space into first and last name.")] = None
    metadata: Metadata | None = None


class CustomerPatch(NewCustomer):
    """Only the fields that are sent change; null clears one."""

    overage: Annotated[OverageField | None, Field(description="The customer's own policy; null: as its plan says.")] = None


class CustomersQuery(PageQuery):
    prefix: ClassVar[str] = "con"


class Contact(Answer):
    phone: str | None
    email: str | None
    first_name: str | None
    last_name: str | None


class Pot(Answer):
    available: Amount
    held: Amount


class Pots(Answer):
    plan: Pot
    funds: Pot


class Balances(Answer):
    """A wallet's live figures; null while the wallet is being recovered."""

    balance: Annotated[Amount | None, Field(description="Everything, what open calls hold included.")]
    balance_available: Annotated[Amount | None, Field(description="What can be spent now; negative below zero.")]
    balance_held: Amount | None
    pots: Pots | None


class CustomerAnswer(Balances):
    customer_id: str
    reference_id: str | None
    status: str
    contact: Contact
    subscription: CurrentSubscription | None
    overage: Annotated[OverageAnswer | None, Field(description="The customer's own policy; null: as its plan says.")]
    metadata: dict[str, Any] | None
    created_at: Timestamp


class Customers:
    """The customer resource: the newer name of a connection."""

    def __init__(
        self,
        catalog: CatalogStore,
        customers: CustomerStore,
        outbox: Outbox,
        funding: Funding,
        plans: PlanStore,
        subscriptions: SubscriptionResource,
        audit: Audit,
    ) -> None:
        self._catalog = catalog
        self._customers = customers
        self._outbox = outbox
        self._funding = funding
        self._plans = plans
        self._subscriptions = subscriptions
        self._audit = audit

    def operations(self) -> list[Operation]:
        one = "/v1/customers/{customer}"
        return [
            Operation(
                method="GET", path="/v1/customers", handler=self.many, tag=TAG, summary="List customers",
                query=CustomersQuery, answer=list_of(CustomerAnswer),
            ),
            Operation(
                method="POST", path="/v1/customers", handler=self.create, tag=TAG, summary="Create a customer",
                description="With the reference_id of an existing customer, that one is answered (200) and nothing changes.",
                body=NewCustomer, answer=CustomerAnswer, status=201, also=(200,),
            ),
            Operation(method="GET", path=one, handler=self.one, tag=TAG, summary="Read a customer", answer=CustomerAnswer),
            Operation(
                method="PATCH", path=one, handler=self.change, tag=TAG, summary="Change a customer",
                description="Only the fields that are sent change; null clears one.", body=CustomerPatch, answer=CustomerAnswer,
            ),
            Operation(
                method="DELETE", path=one, handler=self.delete, tag=TAG, summary="Delete a customer",
                description="Its calls are refused within a second; those that run end normally. Its requests stay.", answer=Done,
            ),
            Operation(
                method="GET", path=one + "/subscription", handler=self.subscription, tag=TAG,
                summary="Read a customer's subscription", answer=OneSubscription,
            ),
        ]  # fmt: skip

    async def many(self, request: web.Request, query: CustomersQuery) -> web.Response:
        """Newest first. The balance of a wallet that is being recovered is null."""
        merchant = merchant_of(request)
        found = await self._catalog.connections(merchant.merchant_id, before=query.cursor, limit=query.limit + 1)
        states = await self._outbox.wallet_states([connection.wallet_id for connection in found])
        ids = [connection.connection_id for connection in found]
        on_plans, overages = await self._plans.live_subscriptions(ids), await self._plans.connection_overages(ids)
        items = [
            customer_object(one, states[one.wallet_id], on_plans.get(one.connection_id), overages.get(one.connection_id))
            for one in found
        ]
        return json_response(listing(items, query.limit, "customer_id"))

    async def one(self, request: web.Request) -> web.Response:
        return await self._answer(await self._found(request))

    async def create(self, request: web.Request, body: NewCustomer) -> web.Response:
        """201, or 200 with the customer who has this reference_id already."""
        merchant_id = merchant_of(request).merchant_id
        existing = await self._by_reference_id(merchant_id, body.reference_id)
        if existing is not None:
            return await self._existing(existing)
        try:
            made = await open_customer(
                self._catalog,
                self._customers,
                self._funding,
                merchant_id,
                reference_id=body.reference_id,
                contact={key: value for key, value in contact_changes(body).items() if value is not None},
                metadata=body.metadata,
            )
        except Conflict:  # somebody else was quicker
            existing = await self._by_reference_id(merchant_id, body.reference_id)
            if existing is None:
                raise
            return await self._existing(existing)
        return await self._answer(made, status=201)

    async def change(self, request: web.Request, body: CustomerPatch) -> web.Response:
        found, sent = await self._found(request), body.model_fields_set
        columns: dict[str, Any] = {name: getattr(body, name) for name in ("reference_id", "metadata") if name in sent}
        changes = CustomerChanges(contact=contact_changes(body), columns=columns)
        if not await self._customers.change(found.merchant_id, found.connection_id, changes):
            raise _no_such_customer()
        if "overage" in sent:
            await self._plans.set_connection_overage(found.merchant_id, found.connection_id, body.overage)
        changed = await self._catalog.connection(found.merchant_id, found.connection_id)
        if changed is None:
            raise _no_such_customer()
        return await self._answer(changed)

    async def delete(self, request: web.Request) -> web.Response:
        found = await self._found(request)
        await delete_customer(self._audit, self._customers, request, found)
        return json_response({"success": True})

    async def subscription(self, request: web.Request) -> web.Response:
        found = await self._found(request)
        return json_response(await self._subscriptions.of_connection(found.connection_id))

    async def _found(self, request: web.Request) -> Connection:
        reference = path_reference(request, "customer")
        connection = await self._catalog.connection(merchant_of(request).merchant_id, reference)
        if connection is None:
            raise _no_such_customer()
        return connection

    async def _by_reference_id(self, merchant_id: str, reference_id: str | None) -> Connection | None:
        if reference_id is None:
            return None
        found = await self._catalog.connection(merchant_id, reference_id)
        return found if found is not None and found.reference_id == reference_id else None

    async def _existing(self, connection: Connection) -> web.Response:
        """The customer as it is; its wallet is opened where a first try ended before that."""
        await self._funding.open_wallet(connection.wallet_id)
        return await self._answer(connection)

    async def _answer(self, connection: Connection, status: int = 200) -> web.Response:
        state = await live_wallet(self._outbox, connection.wallet_id)
        on_plan = await self._plans.live_subscription(connection.connection_id)
        overages = await self._plans.connection_overages([connection.connection_id])
        return json_response(customer_object(connection, state, on_plan, overages.get(connection.connection_id)), status)


async def delete_customer(audit: Audit, customers: CustomerStore, request: web.Request, customer: Connection) -> None:
    """Raises NotFound when somebody else was quicker."""
    before = {"reference_id": customer.reference_id, "status": customer.status, **customer.contact}
    async with audit.transaction() as db:
        if not await customers.delete(customer.merchant_id, customer.connection_id, db=db):
            raise _no_such_customer()
        await audit.note(db, request, "customer.delete", customer.connection_id, before=before)


def contact_changes(body: NewCustomer) -> dict[str, str | None]:
    """The contact fields that were sent, null where one is cleared; `name` is both names."""
    sent = body.model_fields_set
    changes: dict[str, str | None] = {}
    if "email" in sent:
        changes["email"] = body.email
    if "phone" in sent:
        changes["phone"] = body.phone
    if "name" in sent:
        changes["first_name"], changes["last_name"] = split_name(body.name or "")
    return changes


def customer_object(
    connection: Connection, state: WalletState | None, subscription: Subscription | None, overage: Overage | None
) -> dict[str, Any]:
    """The newest vocabulary."""
    return {
        "customer_id": connection.connection_id,
        "reference_id": connection.reference_id,
        "status": connection.status,
        "contact": contact_object(connection),
        "subscription": current_subscription(subscription),
        "overage": overage_object(overage),
        "metadata": connection.metadata,
        **balance_fields(state),
        "created_at": timestamp(connection.created_at),
    }


def contact_object(connection: Connection) -> dict[str, Any]:
    """The four contact fields, null where unknown."""
    return {key: connection.contact.get(key) for key in CONTACT_KEYS}


def _no_such_customer() -> NotFound:
    return NotFound("No customer of yours has this id or reference_id.")
