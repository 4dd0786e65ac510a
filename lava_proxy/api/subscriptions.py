"""/v1/subscriptions: which customer is on which plan, with what is left of its credit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from aiohttp import web
from pydantic import Field, ValidationInfo, field_validator

from lava_proxy.api.audit import Audit
from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.envelope import json_response
from lava_proxy.api.fields import CustomerFilter, Done, PageQuery, Text, list_of, same_filter
from lava_proxy.api.formats import listing
from lava_proxy.api.operations import Body, Operation
from lava_proxy.api.plans import no_such_plan
from lava_proxy.api.queries import path_reference
from lava_proxy.api.subscription_objects import (
    OneSubscription,
    SubscriptionAnswer,
    SubscriptionBase,
    subscription_object,
)
from lava_proxy.billing.subscriptions import Subscriptions, end_facts
from lava_proxy.domain.errors import CallerError, NotFound
from lava_proxy.domain.plans import Subscription
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.plan_store import PlanStore

TAG = "Subscriptions"
_IS_LIVE = {"active": True, "cancelled": False, "all": None}


class NewSubscription(Body):
    customer_id: Annotated[Text | None, Field(description="Required, by this or its older name.")] = None
    connection_id: Text | None = None
    plan_id: Annotated[Text | None, Field(description="Required, by this or its older name.")] = None
    subscription_config_id: Text | None = None

    @field_validator("connection_id")
    @classmethod
    def _check_connection_id(cls, value: str | None, info: ValidationInfo) -> str | None:
        return same_filter(value, "connection_id", info, "customer_id")

    @field_validator("subscription_config_id")
    @classmethod
    def _check_config_id(cls, value: str | None, info: ValidationInfo) -> str | None:
        return same_filter(value, "subscription_config_id", info, "plan_id")


class SubscriptionPatch(Body):
    auto_top_up_bundle_id: Annotated[
        Text | None, Field(description="Required: a bundle of its plan to buy when credit runs out; null: none.")
    ] = None


class SubscriptionsQuery(PageQuery, CustomerFilter):
    prefix: ClassVar[str] = "sub"

    status: Literal["active", "cancelled", "all"] = "active"


class SubscriptionResource:
    """The subscription resource."""

    def __init__(self, catalog: CatalogStore, plans: PlanStore, subscriptions: Subscriptions, outbox: Outbox, audit: Audit) -> None:
        self._catalog = catalog
        self._plans = plans
        self._subscriptions = subscriptions
        self._outbox = outbox
        self._audit = audit

    def operations(self) -> list[Operation]:
        path, one = "/v1/subscriptions", "/v1/subscriptions/{subscription}"
        return [
            Operation(
                method="GET", path=path, handler=self.many, tag=TAG, summary="List subscriptions", query=SubscriptionsQuery,
                answer=list_of(SubscriptionAnswer),
            ),
            Operation(
                method="POST", path=path, handler=self.create, tag=TAG, summary="Put a customer on a plan", body=NewSubscription,
                answer=OneSubscription, status=201,
                description="Where nothing has to be paid: a free plan, or one that is cheaper, which waits for the end of the "
                "cycle. A plan that costs something is subscribed to by a checkout session (409 payment_required).",
            ),
            Operation(
                method="GET", path=one, handler=self.one, tag=TAG, summary="Read a subscription", answer=SubscriptionAnswer
            ),
            Operation(
                method="PATCH", path=one, handler=self.change, tag=TAG, summary="Choose the automatic top-up",
                body=SubscriptionPatch, answer=Done,
            ),
            Operation(
                method="DELETE", path=one, handler=self.cancel, tag=TAG, summary="Cancel a subscription", answer=Done,
                description="It goes on to the end of the cycle that was paid for (pending_change); a free one ends at once.",
            ),
        ]  # fmt: skip

    async def many(self, request: web.Request, query: SubscriptionsQuery) -> web.Response:
        """Newest first."""
        merchant_id, connection_id = merchant_of(request).merchant_id, None
        if query.customer is not None:
            connection = await self._catalog.connection(merchant_id, query.customer)
            if connection is None:
                return json_response(listing([], query.limit, "subscription_id"))
            connection_id = connection.connection_id
        found = await self._plans.subscriptions(
            merchant_id, is_live=_IS_LIVE[query.status], connection_id=connection_id, before=query.cursor, limit=query.limit + 1
        )
        return json_response(listing(await self.objects(found), query.limit, "subscription_id"))

    async def one(self, request: web.Request) -> web.Response:
        return json_response((await self.objects([await self._found(request)]))[0])

    async def create(self, request: web.Request, body: NewSubscription) -> web.Response:
        merchant_id = merchant_of(request).merchant_id
        customer, plan_id = body.customer_id or body.connection_id, body.plan_id or body.subscription_config_id
        missing = [name for name, value in (("customer_id", customer), ("plan_id", plan_id)) if value is None]
        if customer is None or plan_id is None:
            raise CallerError(" ".join(f"{name} is required." for name in missing), code="invalid_parameter")
        connection = await self._catalog.connection(merchant_id, customer)
        if connection is None:
            raise NotFound("No customer of yours has this id or reference_id.")
        plan = await self._plans.plan(merchant_id, plan_id)
        if plan is None:
            raise no_such_plan()
        made = await self._subscriptions.change_unpaid(connection, plan)
        return json_response({"subscription": (await self.objects([made]))[0]}, 201)

    async def change(self, request: web.Request, body: SubscriptionPatch) -> web.Response:
        found = await self._found(request)
        if "auto_top_up_bundle_id" not in body.model_fields_set:
            raise CallerError("auto_top_up_bundle_id is required: a bundle of the plan, or null.", code="invalid_parameter")
        await self._subscriptions.set_auto_top_up(found.merchant_id, found.subscription_id, body.auto_top_up_bundle_id)
        return json_response({"success": True})

    async def cancel(self, request: web.Request) -> web.Response:
        subscription_id = path_reference(request, "subscription")

        async def note(db: Any, ended: Subscription) -> None:
            await self._audit.note(db, request, "subscription.cancel", subscription_id, after=end_facts(ended))

        await self._subscriptions.cancel(merchant_of(request).merchant_id, subscription_id, note=note)
        return json_response({"success": True})

    async def of_connection(self, connection_id: str) -> dict[str, Any]:
        """{"subscription"}: what a connection is on, null without one."""
        found = await self._plans.live_subscription(connection_id)
        return {"subscription": None if found is None else (await self.objects([found]))[0]}

    async def objects(self, subscriptions: Sequence[Subscription]) -> list[dict[str, Any]]:
        """As answers show them, with their live credits."""
        states = await self._outbox.wallet_states([subscription.wallet_id for subscription in subscriptions])
        pending = [one.pending["plan_id"] for one in subscriptions if one.pending is not None and "plan_id" in one.pending]
        offers = await self._plans.offers(None, pending) if pending else {}
        return [subscription_object(one, states[one.wallet_id], offers) for one in subscriptions]

    async def _found(self, request: web.Request) -> Subscription:
        found = await self._plans.subscription(merchant_of(request).merchant_id, path_reference(request, "subscription"))
        if found is None:
            raise NotFound("No subscription of yours has this id.")
        return found


__all__ = ["NewSubscription", "SubscriptionBase", "SubscriptionResource"]
