"""/v1/meters and /v1/meters/{id, slug or secret}: the prices of a merchant's usage."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from aiohttp import web
from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema, field_validator

from lava_proxy.api.audit import Audit
from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.envelope import json_response
from lava_proxy.api.fields import Deleted, Name, PageQuery, Timestamp, list_of
from lava_proxy.api.formats import listing, timestamp
from lava_proxy.api.operations import Answer, Body, Operation
from lava_proxy.api.queries import path_reference
from lava_proxy.domain.catalog import MeterVersion, RateType, Tier, TierType, TokenBasis
from lava_proxy.domain.errors import CallerError, NotFound
from lava_proxy.domain.fees import format_tier, parse_tiers
from lava_proxy.stores.catalog_store import CatalogStore, Meter
from lava_proxy.stores.meter_store import SLUG_CHARS_MAX, MeterStore, checked_slug

TAG = "Meters"


def _raw_tiers(value: object) -> list[Any]:
    """Read once rate type and unit are known; here only that it is a list."""
    if not isinstance(value, list) or not value:
        raise ValueError('accepted is a list of tiers such as {"start": "0", "rate": "20"}')
    return value


Slug = Annotated[
    str,
    PlainValidator(checked_slug),
    WithJsonSchema({"type": "string", "pattern": f"^[A-Za-z0-9._-]{{1,{SLUG_CHARS_MAX}}}$", "examples": ["chat"]}),
]
# Clients send text; numbers are read with the digits they have.
_START = {"anyOf": [{"type": "string", "pattern": "^[0-9]{1,9}$"}, {"type": "integer", "minimum": 0}]}
_RATE = {"anyOf": [{"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,4})?$"}, {"type": "number", "minimum": 0}]}
RawTiers = Annotated[
    list[Any],
    PlainValidator(_raw_tiers),
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "maxItems": 100,
            "description": "Graduated; the first starts at 0 and starts ascend. `rate`: dollars per 1,000,000 tokens or "
            "characters, per minute, per request; percent of the provider's cost for a percentage meter.",
            "items": {
                "type": "object",
                "required": ["start", "rate"],
                "properties": {"start": _START, "rate": _RATE},
            },
            "examples": [[{"start": "0", "rate": "20"}, {"start": "1000000", "rate": "15"}]],
        }
    ),
]


class NewMeter(Body):
    name: Name
    meter_slug: Annotated[Slug | None, Field(description="Made from the name when absent; never changes.")] = None
    rate_type: RateType
    tier_type: TierType
    token_basis: Annotated[TokenBasis, Field(description="What a token meter counts.")] = "input+output"
    tiers: RawTiers

    @field_validator("tiers")
    @classmethod
    def _check_tiers(cls, value: list[Any], info: ValidationInfo) -> tuple[Tier, ...] | list[Any]:
        known = info.data
        if "rate_type" not in known or "tier_type" not in known:
            return value  # their problems are told; the tiers cannot be read without them
        return parse_tiers(known["rate_type"], known["tier_type"], value)


class MeterPatch(Body):
    """Only the fields that are sent change. Slug, rate type and unit do not: sending what they are is accepted."""

    name: Name | None = None
    tiers: RawTiers | None = None
    token_basis: TokenBasis | None = None
    meter_slug: Annotated[str | None, Field(description="Cannot be changed.")] = None
    rate_type: Annotated[str | None, Field(description="Cannot be changed.")] = None
    tier_type: Annotated[str | None, Field(description="Cannot be changed.")] = None


class MetersQuery(PageQuery):
    prefix: ClassVar[str] = "prd"


class TierAnswer(Answer):
    start: int
    rate: str
    type: TierType


class MeterAnswer(Answer):
    meter_id: str
    meter_slug: str
    name: str
    rate_type: RateType
    tier_type: TierType
    tiers: list[TierAnswer]
    token_basis: TokenBasis
    base_cost_payer: Literal["merchant", "wallet"]
    service_charge_payer: Literal["merchant", "wallet"]
    product_id: str
    created_at: Timestamp


class MeterWithSecret(MeterAnswer):
    meter_secret: Annotated[str, Field(description="Names the meter in tokens of older clients.")]
    product_secret: str


class Meters:
    """The meter resource."""

    def __init__(self, catalog: CatalogStore, meters: MeterStore, audit: Audit) -> None:
        self._catalog = catalog
        self._meters = meters
        self._audit = audit

    def operations(self) -> list[Operation]:
        one = "/v1/meters/{meter}"
        return [
            Operation(
                method="GET", path="/v1/meters", handler=self.many, tag=TAG, summary="List meters", query=MetersQuery,
                answer=list_of(MeterAnswer), description="Newest first, without archived ones.",
            ),
            Operation(
                method="POST", path="/v1/meters", handler=self.create, tag=TAG, summary="Create a meter", body=NewMeter,
                answer=MeterWithSecret, status=201,
            ),
            Operation(method="GET", path=one, handler=self.one, tag=TAG, summary="Read a meter", answer=MeterAnswer),
            Operation(
                method="PATCH", path=one, handler=self.change, tag=TAG, summary="Change a meter", body=MeterPatch,
                answer=MeterAnswer, description="New calls are charged by the new price; requests keep theirs.",
            ),
            Operation(
                method="DELETE", path=one, handler=self.archive, tag=TAG, summary="Archive a meter", answer=Deleted,
                description="New calls by it are refused within a second. Its slug stays taken.",
            ),
        ]  # fmt: skip

    async def many(self, request: web.Request, query: MetersQuery) -> web.Response:
        """Newest first."""
        merchant = merchant_of(request)
        meters = await self._catalog.meters(merchant.merchant_id, before=query.cursor, limit=query.limit + 1)
        return json_response(listing([meter_object(meter) for meter in meters], query.limit, "meter_id"))

    async def one(self, request: web.Request) -> web.Response:
        return json_response(meter_object(await self._found(request)))

    async def create(self, request: web.Request, body: NewMeter) -> web.Response:
        """201 with `meter_secret`, which the oldest clients build their forward tokens from."""
        made = await self._meters.create(
            merchant_of(request).merchant_id,
            name=body.name,
            slug=body.meter_slug,
            rate_type=body.rate_type,
            tier_type=body.tier_type,
            tiers=tuple(body.tiers),
            token_basis=body.token_basis,
        )
        return json_response(meter_object(made) | {"meter_secret": made.secret, "product_secret": made.secret}, 201)

    async def change(self, request: web.Request, body: MeterPatch) -> web.Response:
        found = await self._found(request)
        _check_immutable(found.version, body)
        changed = await self._meters.add_version(
            found.merchant_id,
            found.meter_id,
            name=body.name,
            tiers=None if body.tiers is None else _tiers(found.version, body.tiers),
            token_basis=body.token_basis,
        )
        if changed is None:
            raise _no_such_meter()
        return json_response(meter_object(changed))

    async def archive(self, request: web.Request) -> web.Response:
        found = await self._found(request)
        async with self._audit.transaction() as db:
            if not await self._meters.archive(found.merchant_id, found.meter_id, db=db):
                raise _no_such_meter()
            before = {"name": found.version.name, "slug": found.version.slug}
            await self._audit.note(db, request, "meter.archive", found.meter_id, before=before)
        return json_response({"id": found.meter_id, "deleted": True})

    async def _found(self, request: web.Request) -> Meter:
        meter = await self._catalog.meter(merchant_of(request).merchant_id, path_reference(request, "meter"))
        if meter is None:
            raise _no_such_meter()
        return meter


def meter_object(meter: Meter) -> dict[str, Any]:
    """The newest vocabulary and the keys of the older ones. Secrets are not shown."""
    version = meter.version
    return {
        "meter_id": meter.meter_id,
        "meter_slug": version.slug,
        "name": version.name,
        "rate_type": version.rate_type,
        "tier_type": version.tier_type,
        "tiers": [format_tier(version.rate_type, version.tier_type, tier) for tier in version.tiers],
        "token_basis": version.token_basis,
        "base_cost_payer": "wallet" if version.rate_type == "percentage" else "merchant",
        "service_charge_payer": "merchant",
        "product_id": meter.meter_id,
        "created_at": timestamp(meter.created_at),
    }


def _check_immutable(version: MeterVersion, body: MeterPatch) -> None:
    """Raises CallerError 400 `immutable_field` for what cannot be changed; what it is already may be sent back."""
    present = {"meter_slug": version.slug, "rate_type": version.rate_type, "tier_type": version.tier_type}
    changed = [name for name, value in present.items() if getattr(body, name) not in (None, value)]
    if changed:
        raise CallerError(
            f"{' and '.join(changed)} cannot be changed; make another meter and archive this one.", code="immutable_field"
        )


def _tiers(version: MeterVersion, raw: list[Any]) -> tuple[Tier, ...]:
    try:
        return parse_tiers(version.rate_type, version.tier_type, raw)
    except ValueError as error:
        raise CallerError(f"{error}.", code="invalid_parameter") from None


def _no_such_meter() -> NotFound:
    return NotFound("No meter of yours has this id or slug.")
