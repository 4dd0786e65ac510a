"""/v1/checkout_sessions, their links by e-mail, and /v1/customers/{id}/portal_session: ways to a page where a customer pays."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from aiohttp import web
from pydantic import Field, PlainValidator, WithJsonSchema, field_validator, model_validator

from lava_proxy.api.authentication import is_test_key, merchant_of
from lava_proxy.api.envelope import json_response
from lava_proxy.api.fields import Done, Email, PageQuery, ReferenceId, Text, Timestamp, list_of
from lava_proxy.api.formats import listing, timestamp
from lava_proxy.api.operations import Answer, Body, LenientBody, Operation
from lava_proxy.api.queries import path_reference
from lava_proxy.billing.checkout import Checkout
from lava_proxy.billing.checkout_links import CheckoutLinks, page_url, token_of
from lava_proxy.domain.checkout import ORIGIN_CHARS_MAX, CheckoutSession, Mode, origin_of
from lava_proxy.domain.errors import CallerError, Conflict, NotFound
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.checkout_store import CheckoutStore

TAG = "Checkout"
_NEEDS: dict[Mode, tuple[tuple[str, str], ...]] = {  # mode -> (what is used, how it is called)
    "subscription": (("plan", "plan_id"),),
    "credit_bundle": (("customer", "customer_id"), ("credit_bundle_id", "credit_bundle_id")),
    "topup": (("customer", "customer_id"),),
    "onboarding": (),
}


def _origin_url(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("accepted is the http(s) address of the page that opens the checkout, such as https://app.example.com")
    origin_of(value)
    return value


OriginUrl = Annotated[
    str,
    PlainValidator(_origin_url),
    WithJsonSchema(
        {
            "type": "string",
            "maxLength": ORIGIN_CHARS_MAX,
            "description": "The page that opens the checkout: only its origin may embed it and hears how it ended.",
            "examples": ["https://app.example.com"],
        }
    ),
]


class NewCheckoutSession(LenientBody):
    checkout_mode: Literal["subscription", "credit_bundle", "topup", "onboarding"]
    origin_url: OriginUrl
    customer_id: Annotated[Text | None, Field(description="An id or reference_id; omit it for a new customer.")] = None
    connection_id: Annotated[Text | None, Field(description="The older name of customer_id.")] = None
    plan_id: Annotated[Text | None, Field(description="Required for subscription.")] = None
    subscription_config_id: Annotated[Text | None, Field(description="The older name of plan_id.")] = None
    credit_bundle_id: Annotated[Text | None, Field(description="Required for credit_bundle.")] = None
    reference_id: Annotated[ReferenceId | None, Field(description="Your own id for the customer who will come of it.")] = None

    @field_validator("connection_id")
    @classmethod
    def _same_customer(cls, value: str | None, info: Any) -> str | None:
        return _same(value, info.data.get("customer_id"), "customer_id")

    @field_validator("subscription_config_id")
    @classmethod
    def _same_plan(cls, value: str | None, info: Any) -> str | None:
        return _same(value, info.data.get("plan_id"), "plan_id")

    @model_validator(mode="after")
    def _check_needs(self) -> NewCheckoutSession:
        missing = [name for used, name in _NEEDS[self.checkout_mode] if getattr(self, used) is None]
        if missing:
            raise ValueError(f"checkout_mode {self.checkout_mode} also needs {' and '.join(missing)}")
        return self

    @property
    def customer(self) -> str | None:
        return self.customer_id or self.connection_id

    @property
    def plan(self) -> str | None:
        return self.plan_id or self.subscription_config_id


def _same(value: str | None, other: str | None, name: str) -> str | None:
    if value is not None and other not in (None, value):
        raise ValueError(f"it and {name} are names of one thing but have different values; send one")
    return value


class NewPortalSession(Body):
    origin_url: Annotated[OriginUrl | None, Field(description="Where the page leads back to.")] = None


class LinkEmail(Body):
    email: Annotated[Email | None, Field(description="Where to; without it, the customer's own address.")] = None


class CheckoutSessionsQuery(PageQuery):
    prefix: ClassVar[str] = "cs"

    reference_id: Text | None = None


class CheckoutSessionAnswer(Answer):
    """customer_id, plan_id and the like are there where the session has one; older names stand beside them."""

    checkout_session_id: str
    checkout_session_token: Annotated[str, Field(description="What the browser library opens.")]
    checkout_mode: str
    status: Literal["open", "verified", "paying", "completed", "expired", "cancelled"]
    url: Annotated[str, Field(description="The same checkout as a page of its own.")]
    origin_url: str
    created_at: Timestamp
    expires_at: Timestamp


class PortalSessionAnswer(Answer):
    url: str
    expires_at: Timestamp


class CheckoutSessions:
    """The checkout resource."""

    def __init__(self, checkout: Checkout, store: CheckoutStore, catalog: CatalogStore, links: CheckoutLinks) -> None:
        self._checkout = checkout
        self._store = store
        self._catalog = catalog
        self._links = links

    def operations(self) -> list[Operation]:
        one = "/v1/checkout_sessions/{checkout_session}"
        return [
            Operation(
                method="GET", path="/v1/checkout_sessions", handler=self.many, tag=TAG, summary="List checkout sessions",
                query=CheckoutSessionsQuery, answer=list_of(CheckoutSessionAnswer),
            ),
            Operation(
                method="POST", path="/v1/checkout_sessions", handler=self.create, tag=TAG, summary="Create a checkout session",
                description="subscription needs plan_id; credit_bundle customer_id and credit_bundle_id; topup customer_id.",
                body=NewCheckoutSession, answer=CheckoutSessionAnswer, status=201, refuses=(501,),
            ),
            Operation(
                method="GET", path=one, handler=self.one, tag=TAG, summary="Read a checkout session", answer=CheckoutSessionAnswer
            ),
            Operation(
                method="POST", path=one + "/email", handler=self.send, tag=TAG, summary="Send a checkout's link by e-mail",
                body=LinkEmail, answer=Done,
            ),
            Operation(
                method="POST", path="/v1/customers/{customer}/portal_session", handler=self.create_portal, tag=TAG,
                summary="Make a link to a customer's own page",
                description="Balance, plan, cards and receipts, behind a code to the customer's phone; good for a day.",
                body=NewPortalSession, answer=PortalSessionAnswer, status=201, refuses=(501,),
            ),
        ]  # fmt: skip

    async def many(self, request: web.Request, query: CheckoutSessionsQuery) -> web.Response:
        """Newest first."""
        found = await self._store.sessions(
            merchant_of(request).merchant_id, reference_id=query.reference_id, before=query.cursor, limit=query.limit + 1
        )
        return json_response(listing([self._object(request, session) for session in found], query.limit, "checkout_session_id"))

    async def one(self, request: web.Request) -> web.Response:
        return json_response(self._object(request, await self._found(request)))

    async def create(self, request: web.Request, body: NewCheckoutSession) -> web.Response:
        made = await self._checkout.create(
            merchant_of(request).merchant_id, body.checkout_mode, origin_url=body.origin_url, is_test=is_test_key(request),
            customer=body.customer, plan_id=body.plan if body.checkout_mode == "subscription" else None,
            credit_bundle_id=body.credit_bundle_id if body.checkout_mode == "credit_bundle" else None,
            reference_id=body.reference_id,
        )  # fmt: skip
        return json_response(self._object(request, made), 201)

    async def send(self, request: web.Request, body: LinkEmail) -> web.Response:
        session = await self._found(request)
        to = body.email or await self._address_of(session)
        if to is None:
            raise CallerError("email is required: the session has no customer with an address.", code="invalid_parameter")
        self._links.check_can_send()
        if self._checkout.state(session) in ("completed", "cancelled", "expired"):
            raise Conflict("This checkout is closed; create another.", code="checkout_closed")
        await self._links.send(session, to, self._base(request))
        return json_response({"success": True})

    async def create_portal(self, request: web.Request, body: NewPortalSession) -> web.Response:
        customer = await self._catalog.connection(merchant_of(request).merchant_id, path_reference(request, "customer"))
        if customer is None:
            raise NotFound("No customer of yours has this id or reference_id.")
        base = self._base(request)
        session = await self._checkout.create_portal(customer, origin_url=body.origin_url or base, is_test=is_test_key(request))
        return json_response({"url": page_url(base, session), "expires_at": timestamp(session.expires_at)}, 201)

    async def _address_of(self, session: CheckoutSession) -> str | None:
        if session.connection_id is None:
            return None
        customer = await self._catalog.connection(session.merchant_id, session.connection_id)
        return None if customer is None else customer.contact.get("email")

    def _base(self, request: web.Request) -> str:
        return self._links.base(request.headers, request.host)

    async def _found(self, request: web.Request) -> CheckoutSession:
        session_id = path_reference(request, "checkout_session")
        session = await self._store.session(merchant_of(request).merchant_id, session_id)
        if session is None:
            raise NotFound("No checkout session of yours has this id.")
        return session

    def _object(self, request: web.Request, session: CheckoutSession) -> dict[str, Any]:
        return session_object(session, self._base(request), self._checkout.state(session))


def session_object(session: CheckoutSession, base: str, state: str) -> dict[str, Any]:
    """Every vocabulary at once; what a session does not have is absent."""
    found: dict[str, Any] = {
        "checkout_session_id": session.checkout_session_id,
        "checkout_session_token": token_of(session, base),
        "checkout_mode": session.kind,
        "status": state,
        "url": page_url(base, session),
        "origin_url": session.origin_url,
        "customer_id": session.connection_id,
        "connection_id": session.connection_id,
        "plan_id": session.plan_id,
        "subscription_config_id": session.plan_id,
        "credit_bundle_id": session.credit_bundle_id,
        "reference_id": session.reference_id,
        "created_at": timestamp(session.created_at),
        "expires_at": timestamp(session.expires_at),
        "completed_at": None if session.completed_at is None else timestamp(session.completed_at),
    }
    return {name: value for name, value in found.items() if value is not None}
