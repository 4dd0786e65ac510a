"""/v1/plans and /v1/subscription_configs (their older name), and the bundles of credit sold with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from aiohttp import web
from pydantic import AfterValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from lava_proxy.api.audit import Audit
from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.envelope import json_response
from lava_proxy.api.fields import Deleted, Name, PageQuery, Text, Usd, list_of, same_filter
from lava_proxy.api.formats import listing, short_usd
from lava_proxy.api.operations import Answer, Body, Operation
from lava_proxy.api.queries import path_reference
from lava_proxy.api.subscription_objects import BundleAnswer, OverageField, PlanAnswer, bundle_object, plan_object
from lava_proxy.domain.calendar import Interval
from lava_proxy.domain.errors import CallerError, NotFound
from lava_proxy.domain.money import NANOS_PER_CENT, Nanos
from lava_proxy.domain.plans import CARD_CENTS_MIN, PLAN_AMOUNT_NANOS_MAX, Bundle, Plan, Rollover, Terms
from lava_proxy.stores.plan_store import BundleDraft, PlanStore

TAG = "Plans"
METERS_MAX = 100
BUNDLES_MAX = 50
_CHARGED = f"0.{CARD_CENTS_MIN:02d} to {PLAN_AMOUNT_NANOS_MAX // (100 * NANOS_PER_CENT)} dollars in whole cents"


def _charged(nanos: Nanos) -> Nanos:
    """An amount that a card is charged."""
    if nanos % NANOS_PER_CENT or not CARD_CENTS_MIN * NANOS_PER_CENT <= nanos <= PLAN_AMOUNT_NANOS_MAX:
        raise ValueError(f"accepted are {_CHARGED}")
    return nanos


def _period_amount(nanos: Nanos) -> Nanos:
    try:
        return nanos if nanos == 0 else _charged(nanos)
    except ValueError:
        raise ValueError(f"accepted are 0 (free) and {_CHARGED}") from None


def _credit(nanos: Nanos) -> Nanos:
    if not 0 < nanos <= 10 * PLAN_AMOUNT_NANOS_MAX:
        raise ValueError("accepted is an amount above 0, at most 100000 dollars")
    return nanos


def _different(ids: list[str]) -> list[str]:
    if len(set(ids)) != len(ids):
        raise ValueError("each meter can be named once")
    return ids


_DOLLARS: dict[str, Any] = {"type": "string", "examples": ["25.00"]}
PeriodAmount = Annotated[Usd, AfterValidator(_period_amount), WithJsonSchema(_DOLLARS)]
Charged = Annotated[Usd, AfterValidator(_charged), WithJsonSchema(_DOLLARS)]
CreditAmount = Annotated[Usd, AfterValidator(_credit), WithJsonSchema(_DOLLARS)]
MeterIds = Annotated[list[Text], Field(max_length=METERS_MAX), AfterValidator(_different)]


class NewBundle(Body):
    name: Name
    cost: Charged
    credit_amount: CreditAmount


class BundleChange(Body):
    """With `credit_bundle_id` an existing bundle changes in what is sent; without, a new one is made."""

    credit_bundle_id: Text | None = None
    name: Name | None = None
    cost: Charged | None = None
    credit_amount: CreditAmount | None = None
    is_deleted: bool = False

    @field_validator("is_deleted")
    @classmethod
    def _check_whole(cls, value: bool, info: ValidationInfo) -> bool:
        known = info.data
        if known.get("credit_bundle_id") is None:
            missing = [name for name in ("name", "cost", "credit_amount") if name in known and known[name] is None]
            if missing or value:
                raise ValueError("a bundle without credit_bundle_id is a new one: it needs name, cost and credit_amount")
        return value

    model_config = Body.model_config | {"validate_default": True}


class NewPlan(Body):
    name: Name
    period_amount: Annotated[PeriodAmount, Field(description='Dollars a cycle; "0" is free.')]
    billing_interval: Interval
    rollover_type: Annotated[Rollover, Field(description="What becomes of cycle credit that is left at its end.")] = "none"
    bundle_rollover_type: Annotated[Rollover, Field(description="The same for bundles.")] = "full"
    included_credit: Annotated[Usd | None, Field(description="A cycle's credit, at most period_amount; absent: as much.")] = None
    meter_ids: Annotated[MeterIds | None, Field(description="Which meters draw on the plan's credit.")] = None
    product_ids: Annotated[MeterIds | None, Field(description="The older name of meter_ids.")] = None
    credit_bundles: Annotated[tuple[NewBundle, ...], Field(max_length=BUNDLES_MAX)] = ()
    default_auto_top_up_bundle_index: Annotated[
        int | None, Field(strict=True, ge=0, description="Which of credit_bundles new subscriptions buy when credit runs out.")
    ] = None
    overage: OverageField | None = None

    @field_validator("included_credit")
    @classmethod
    def _check_included(cls, value: Nanos | None, info: ValidationInfo) -> Nanos | None:
        amount = info.data.get("period_amount")
        if value is not None and amount is not None and value > amount:
            raise ValueError("accepted is at most period_amount; sell more credit as a bundle")
        return value

    @field_validator("product_ids")
    @classmethod
    def _check_product_ids(cls, value: list[str] | None, info: ValidationInfo) -> list[str] | None:
        return _same_meters(value, info)

    @field_validator("default_auto_top_up_bundle_index")
    @classmethod
    def _check_index(cls, value: int | None, info: ValidationInfo) -> int | None:
        bundles = info.data.get("credit_bundles")
        if value is not None and bundles is not None and value >= len(bundles):
            raise ValueError(f"accepted is the place of one of the {len(bundles)} credit_bundles, counted from 0, or null")
        return value


class PlanPatch(Body):
    """Only the fields that are sent change. Running cycles keep what they were sold as; the next one follows the plan."""

    name: Name | None = None
    rollover_type: Rollover | None = None
    bundle_rollover_type: Rollover | None = None
    included_credit: Usd | None = None
    default_auto_top_up_bundle_id: Text | None = None
    meter_ids: Annotated[MeterIds | None, Field(description="Replaces all.")] = None
    product_ids: Annotated[MeterIds | None, Field(description="The older name of meter_ids.")] = None
    credit_bundles: Annotated[list[BundleChange] | None, Field(max_length=BUNDLES_MAX)] = None
    overage: OverageField | None = None
    period_amount: Annotated[Usd | None, Field(description="Cannot be changed.")] = None
    billing_interval: Annotated[str | None, Field(description="Cannot be changed.")] = None

    @field_validator("product_ids")
    @classmethod
    def _check_product_ids(cls, value: list[str] | None, info: ValidationInfo) -> list[str] | None:
        return _same_meters(value, info)


class PlansQuery(PageQuery):
    prefix: ClassVar[str] = "sc"


class BundlesQuery(PageQuery):
    prefix: ClassVar[str] = "cb"

    plan_id: Text | None = None
    subscription_config_id: Text | None = None

    @field_validator("subscription_config_id")
    @classmethod
    def _check_config_id(cls, value: str | None, info: ValidationInfo) -> str | None:
        return same_filter(value, "subscription_config_id", info, "plan_id")


class Plans:
    """The plan resource, under both its names, and its bundles."""

    def __init__(self, plans: PlanStore, audit: Audit) -> None:
        self._plans = plans
        self._audit = audit

    def operations(self) -> list[Operation]:
        return [*self._named("/v1/plans", "plan"), *self._named("/v1/subscription_configs", "subscription config"),
                *self._of_bundles()]  # fmt: skip

    def _named(self, path: str, noun: str) -> list[Operation]:
        is_old = path != "/v1/plans"
        one, all_alias, one_alias = path + "/{plan}", "/v1/plans" if is_old else None, "/v1/plans/{plan}" if is_old else None
        page: type[Answer] = list_of(PlanAnswer)
        return [
            Operation(
                method="GET", path=path, handler=self.many, tag=TAG, summary=f"List {noun}s", query=PlansQuery, answer=page,
                alias_of=all_alias,
            ),
            Operation(
                method="POST", path=path, handler=self.create, tag=TAG, summary=f"Create a {noun}", body=NewPlan, answer=PlanAnswer,
                status=201, alias_of=all_alias,
            ),
            Operation(
                method="GET", path=one, handler=self.one, tag=TAG, summary=f"Read a {noun}", answer=PlanAnswer, alias_of=one_alias
            ),
            Operation(
                method="PATCH", path=one, handler=self.change, tag=TAG, summary=f"Change a {noun}", body=PlanPatch,
                answer=PlanAnswer, alias_of=one_alias,
                description="Running cycles keep what they were sold as. What a plan costs, and how often, cannot be changed.",
            ),
            Operation(
                method="DELETE", path=one, handler=self.archive, tag=TAG, summary=f"Delete a {noun}", answer=Deleted,
                alias_of=one_alias, description="It cannot be subscribed to any more; subscriptions that run go on.",
            ),
        ]  # fmt: skip

    def _of_bundles(self) -> list[Operation]:
        return [
            Operation(
                method="GET", path="/v1/credit_bundles", handler=self.many_bundles, tag=TAG, summary="List credit bundles",
                query=BundlesQuery, answer=list_of(BundleAnswer),
            ),
            Operation(
                method="GET", path="/v1/credit_bundles/{bundle}", handler=self.one_bundle, tag=TAG, summary="Read a credit bundle",
                answer=BundleAnswer,
            ),
        ]  # fmt: skip

    async def many(self, request: web.Request, query: PlansQuery) -> web.Response:
        """Newest first."""
        found = await self._plans.plans(merchant_of(request).merchant_id, before=query.cursor, limit=query.limit + 1)
        return json_response(listing([plan_object(plan) for plan in found], query.limit, "plan_id"))

    async def one(self, request: web.Request) -> web.Response:
        return json_response(plan_object(await self._found(request)))

    async def create(self, request: web.Request, body: NewPlan) -> web.Response:
        return json_response(plan_object(await create_plan(self._plans, merchant_of(request).merchant_id, body)), 201)

    async def change(self, request: web.Request, body: PlanPatch) -> web.Response:
        found, sent = await self._found(request), body.model_fields_set
        _check_patch(found, body)
        old = found.terms
        terms = replace(
            old,
            name=body.name or old.name,
            rollover_type=body.rollover_type or old.rollover_type,
            bundle_rollover_type=body.bundle_rollover_type or old.bundle_rollover_type,
            included_credit_nanos=old.included_credit_nanos if body.included_credit is None else body.included_credit,
        )
        automatic = body.default_auto_top_up_bundle_id
        changed = replace(
            found,
            terms=terms,
            overage=body.overage if "overage" in sent else found.overage,
            default_auto_top_up_bundle_id=automatic
            if "default_auto_top_up_bundle_id" in sent
            else _kept(found.default_auto_top_up_bundle_id, body.credit_bundles or ()),
        )
        meters = body.meter_ids if body.meter_ids is not None else body.product_ids
        bundles = None if body.credit_bundles is None else _drafts(found, body.credit_bundles)
        return json_response(plan_object(await self._plans.update_plan(changed, meter_ids=meters, bundles=bundles)))

    async def archive(self, request: web.Request) -> web.Response:
        plan_id = path_reference(request, "plan")
        merchant_id = merchant_of(request).merchant_id
        found = await self._found(request)
        async with self._audit.transaction() as db:
            if not await self._plans.archive_plan(merchant_id, plan_id, db=db):
                raise no_such_plan()
            await self._audit.note(db, request, "plan.archive", plan_id, before=found.terms.document())
        return json_response({"id": plan_id, "deleted": True})

    async def many_bundles(self, request: web.Request, query: BundlesQuery) -> web.Response:
        """Newest first."""
        found = await self._plans.bundles(
            merchant_of(request).merchant_id, plan_id=query.plan_id or query.subscription_config_id, before=query.cursor,
            limit=query.limit + 1,
        )  # fmt: skip
        return json_response(listing([bundle_object(bundle) for bundle in found], query.limit, "credit_bundle_id"))

    async def one_bundle(self, request: web.Request) -> web.Response:
        found = await self._plans.bundle(merchant_of(request).merchant_id, path_reference(request, "bundle"))
        if found is None:
            raise NotFound("No credit bundle of yours has this id.")
        return json_response(bundle_object(found))

    async def _found(self, request: web.Request) -> Plan:
        found = await self._plans.plan(merchant_of(request).merchant_id, path_reference(request, "plan"))
        if found is None:
            raise no_such_plan()
        return found


async def create_plan(plans: PlanStore, merchant_id: str, body: NewPlan) -> Plan:
    """A plan as it was asked for. Raises CallerError for a meter that is not this merchant's."""
    terms = Terms(
        plan_id="", name=body.name, period_amount_nanos=body.period_amount,
        included_credit_nanos=body.period_amount if body.included_credit is None else body.included_credit,
        billing_interval=body.billing_interval, rollover_type=body.rollover_type, bundle_rollover_type=body.bundle_rollover_type,
    )  # fmt: skip
    return await plans.create_plan(
        merchant_id,
        terms,
        overage=body.overage,
        meter_ids=body.meter_ids or body.product_ids or (),
        bundles=[BundleDraft(name=one.name, cost_nanos=one.cost, credit_nanos=one.credit_amount) for one in body.credit_bundles],
        auto_top_up_index=body.default_auto_top_up_bundle_index,
    )


def _same_meters(value: list[str] | None, info: ValidationInfo) -> list[str] | None:
    if value is not None and info.data.get("meter_ids") not in (None, value):
        raise ValueError("meter_ids and product_ids are names of one thing but differ; send one")
    return value


def _check_patch(plan: Plan, body: PlanPatch) -> None:
    """Raises CallerError for what cannot be changed (what it is already may be sent back) and for credit above the price."""
    terms = plan.terms
    present = {"period_amount": terms.period_amount_nanos, "billing_interval": terms.billing_interval}
    changed = [name for name, value in present.items() if getattr(body, name) not in (None, value)]
    if changed:
        raise CallerError(
            f"{' and '.join(changed)} cannot be changed; make another plan and delete this one.", code="immutable_field"
        )
    if body.included_credit is not None and body.included_credit > terms.period_amount_nanos:
        raise CallerError(
            f"included_credit is above the plan's period_amount of ${short_usd(terms.period_amount_nanos)}; "
            "sell more credit as a bundle.",
            code="invalid_parameter",
        )


def _drafts(plan: Plan, changes: Sequence[BundleChange]) -> list[BundleDraft]:
    """What is sent over what each bundle is. Raises CallerError for a bundle of another plan, and one that is named twice."""
    known = {bundle.credit_bundle_id: bundle for bundle in plan.bundles}
    named = [change.credit_bundle_id for change in changes if change.credit_bundle_id is not None]
    strangers = [name for name in named if name not in known]
    if strangers or len(set(named)) != len(named):
        wrong = f"names {strangers[0]!r}, which is not a bundle of this plan" if strangers else "names a bundle twice"
        raise CallerError(f"credit_bundles {wrong}.", code="invalid_parameter")
    drafts = [_draft(change, known.get(change.credit_bundle_id or "")) for change in changes]
    if len(known) + len(drafts) - len(named) > BUNDLES_MAX:
        raise CallerError(f"A plan has at most {BUNDLES_MAX} bundles.", code="invalid_parameter")
    return drafts


def _draft(change: BundleChange, known: Bundle | None) -> BundleDraft:
    if known is None:
        assert change.name is not None and change.cost is not None and change.credit_amount is not None
        return BundleDraft(name=change.name, cost_nanos=change.cost, credit_nanos=change.credit_amount)
    return BundleDraft(
        credit_bundle_id=known.credit_bundle_id,
        name=change.name or known.name,
        cost_nanos=change.cost or known.cost_nanos,
        credit_nanos=change.credit_amount or known.credit_nanos,
        is_deleted=change.is_deleted,
    )


def _kept(automatic: str | None, changes: Sequence[BundleChange]) -> str | None:
    """The plan's automatic bundle, unless it is deleted here."""
    return None if automatic in {change.credit_bundle_id for change in changes if change.is_deleted} else automatic


def no_such_plan() -> NotFound:
    return NotFound("No plan of yours has this id.")
