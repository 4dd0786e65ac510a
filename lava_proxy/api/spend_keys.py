"""/v1/spend_keys (also /v1/manage/spend_keys): keys that draw on the merchant's own wallet within rules and limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, cast, get_args

from aiohttp import web
from pydantic import Field, PlainValidator, WithJsonSchema

from lava_proxy.api.audit import Audit
from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.envelope import json_response
from lava_proxy.api.fields import Amount, Done, Moment, Name, PageQuery, Timestamp, list_of
from lava_proxy.api.formats import listing, timestamp
from lava_proxy.api.operations import Answer, LenientBody, Operation, checked
from lava_proxy.api.queries import path_reference
from lava_proxy.domain.errors import CallerError, NotFound
from lava_proxy.domain.limits import COUNT_MAX, Cycle, KeyRules, Limits, RequestShape, limits_document, parse_limits, use_of
from lava_proxy.domain.money import format_usd
from lava_proxy.stores.catalog_store import CatalogStore, SpendKey
from lava_proxy.stores.ids import at_ms
from lava_proxy.stores.outbox import Outbox

NAME_CHARS_MAX = 255
ALLOWED_MAX = 1000
TAG = "Spend keys"
Status = Literal["active", "paused"]


def _names(value: object) -> tuple[str, ...]:
    good = isinstance(value, list) and len(value) <= ALLOWED_MAX
    if not good or not all(
        isinstance(one, str) and 0 < len(one) <= NAME_CHARS_MAX and one.isprintable() for one in cast(Any, value)
    ):
        raise ValueError(f"accepted is null or a list of at most {ALLOWED_MAX} names")
    return tuple(cast(list[str], value))


Names = Annotated[
    tuple[str, ...],
    PlainValidator(_names),
    WithJsonSchema(
        {
            "type": "array",
            "maxItems": ALLOWED_MAX,
            "items": {"type": "string", "minLength": 1, "maxLength": NAME_CHARS_MAX},
            "description": "Names may have `*`.",
            "examples": [["gpt-4o*"]],
        }
    ),
]


def _limit(name: str) -> PlainValidator:
    """Checks one limit as domain/limits.py reads it; the value stays JSON."""

    def check(value: object) -> object:
        try:
            parse_limits({name: value})
        except CallerError as error:
            raise ValueError(error.message.rstrip(".")) from None
        return value

    return PlainValidator(check)


def _object_schema(required: dict[str, Any], **optional: Any) -> WithJsonSchema:
    properties = {**required, **optional}
    return WithJsonSchema({"type": "object", "required": list(required), "properties": properties, "additionalProperties": False})


_COUNT = {"type": "integer", "minimum": 1, "maximum": COUNT_MAX}
_CYCLE = {"type": "string", "enum": list(get_args(Cycle))}
_DOLLARS = {"type": "string", "pattern": r"^[0-9]{1,6}(\.[0-9]{1,9})?$", "examples": ["25.00"]}
SpendLimit = Annotated[Any, _limit("spend_limit"), _object_schema({"amount": _DOLLARS, "cycle": _CYCLE})]
RequestLimit = Annotated[Any, _limit("request_limit"), _object_schema({"count": _COUNT, "cycle": _CYCLE})]
RateLimit = Annotated[Any, _limit("rate_limit"), _object_schema({"rpm": _COUNT}, burst={"anyOf": [_COUNT, {"type": "null"}]})]
TokenLimit = Annotated[Any, _limit("token_limit"), _object_schema({"tpm": _COUNT})]
ConcurrencyLimit = Annotated[Any, _limit("concurrency_limit"), WithJsonSchema(_COUNT)]


class SpendKeyFields(LenientBody):
    """What a key may be told. SDKs of other versions add `wallet_id` and `connection_id`, which are ignored."""

    status: Status = "active"
    request_shape: RequestShape = "openai"
    allowed_models: Names | None = None
    allowed_providers: Names | None = None
    spend_limit: SpendLimit | None = None
    request_limit: RequestLimit | None = None
    rate_limit: RateLimit | None = None
    token_limit: TokenLimit | None = None
    concurrency_limit: ConcurrencyLimit | None = None
    expires_at: Moment | None = None


class NewSpendKey(SpendKeyFields):
    name: Name


class SpendKeyUpdate(SpendKeyFields):
    """Sent fields replace what was stored, null lifts a limit; fields that are not sent stay."""

    name: Name | None = None


class SpendKeysQuery(PageQuery):
    prefix: ClassVar[str] = "spk"


class SpendKeyAnswer(Answer):
    spend_key_id: str
    name: str
    key_preview: str
    wallet_id: str
    status: Status
    request_shape: RequestShape
    allowed_models: list[str] | None
    allowed_providers: list[str] | None
    spend_limit: dict[str, Any] | None
    request_limit: dict[str, Any] | None
    rate_limit: dict[str, Any] | None
    token_limit: dict[str, Any] | None
    concurrency_limit: int | None
    expires_at: Timestamp | None
    current_spend: Amount
    total_spend: Amount
    current_requests: int
    total_requests: int
    last_used_at: Timestamp | None
    created_at: Timestamp


class SpendKeyWithSecret(SpendKeyAnswer):
    key: Annotated[str, Field(description="Shown this once.")]


class SpendKeys:
    """The spend key resource."""

    def __init__(self, catalog: CatalogStore, outbox: Outbox, clock: Callable[[], datetime], audit: Audit) -> None:
        self._catalog = catalog
        self._outbox = outbox
        self._clock = clock
        self._audit = audit

    def operations(self) -> list[Operation]:
        base = "/v1/spend_keys"
        one = base + "/{spend_key}"
        found = [
            Operation(
                method="GET", path=base, handler=self.many, tag=TAG, summary="List spend keys", query=SpendKeysQuery,
                answer=list_of(SpendKeyAnswer),
            ),
            Operation(
                method="POST", path=base, handler=self.create, tag=TAG, summary="Create a spend key", body=NewSpendKey,
                answer=SpendKeyWithSecret, status=201,
            ),
            Operation(method="GET", path=one, handler=self.one, tag=TAG, summary="Read a spend key", answer=SpendKeyAnswer),
            Operation(
                method="PUT", path=one, handler=self.update, tag=TAG, summary="Change a spend key", body=SpendKeyUpdate,
                answer=SpendKeyAnswer, description="Fields that are not sent stay; null lifts a limit.",
            ),
            Operation(method="DELETE", path=one, handler=self.delete, tag=TAG, summary="Delete a spend key", answer=Done),
            Operation(
                method="POST", path=one + "/rotate", handler=self.rotate, tag=TAG, summary="Rotate a spend key",
                answer=SpendKeyWithSecret, description="The old secret ends at once; limits and counters stay.",
            ),
        ]  # fmt: skip
        older = [replace(each, path=each.path.replace("/v1/", "/v1/manage/", 1), alias_of=each.path) for each in found]
        return [*found, *older]

    async def many(self, request: web.Request, query: SpendKeysQuery) -> web.Response:
        """Newest first."""
        keys = await self._catalog.spend_keys(merchant_of(request).merchant_id, before=query.cursor, limit=query.limit + 1)
        counters = await self._outbox.scope_counters([(key.wallet_id, key.spend_key_id) for key in keys])
        now = self._clock()
        items = [spend_key_object(key, counted, now) for key, counted in zip(keys, counters, strict=True)]
        return json_response(listing(items, query.limit, "spend_key_id"))

    async def one(self, request: web.Request) -> web.Response:
        return await self._answer(await self._found(request))

    async def create(self, request: web.Request, body: NewSpendKey) -> web.Response:
        """201 with `key`, which is shown only here and after a rotation."""
        made = await self._catalog.create_spend_key(
            merchant_of(request).merchant_id,
            name=body.name,
            status=body.status,
            rules=_rules(body, KeyRules()),
            limits=_merged(Limits(), body),
        )
        return await self._answer(made, status=201)

    async def update(self, request: web.Request, body: SpendKeyUpdate) -> web.Response:
        """Sent fields replace what was stored, null lifts a limit; fields that are not sent stay."""
        key, sent = await self._found(request), body.model_fields_set
        changed = replace(
            key,
            name=body.name or key.name,
            status=body.status if "status" in sent else key.status,
            rules=_rules(body, key.rules),
            limits=_merged(key.limits, body),
        )
        await self._catalog.update_spend_key(changed)
        return await self._answer(changed)

    async def rotate(self, request: web.Request) -> web.Response:
        """The old secret ends at once; limits and counters stay."""
        await request.read()
        present = await self._found(request)
        async with self._audit.transaction() as db:
            key = await self._catalog.rotate_spend_key(present.merchant_id, present.spend_key_id, db=db)
            if key is None:
                raise _no_such_key()
            await self._audit.note(
                db, request, "spend_key.rotate", key.spend_key_id, before={"key_preview": present.key_preview},
                after={"key_preview": key.key_preview},
            )  # fmt: skip
        return await self._answer(key)

    async def delete(self, request: web.Request) -> web.Response:
        key = await self._found(request)
        async with self._audit.transaction() as db:
            await self._catalog.delete_spend_key(key.merchant_id, key.spend_key_id, db=db)
            before = {"name": key.name, "key_preview": key.key_preview}
            await self._audit.note(db, request, "spend_key.delete", key.spend_key_id, before=before)
        await self._outbox.forget_scope(key.wallet_id, key.spend_key_id)
        return json_response({"success": True})

    async def _found(self, request: web.Request) -> SpendKey:
        key = await self._catalog.spend_key(merchant_of(request).merchant_id, path_reference(request, "spend_key"))
        if key is None:
            raise _no_such_key()
        return key

    async def _answer(self, key: SpendKey, status: int = 200) -> web.Response:
        [counted] = await self._outbox.scope_counters([(key.wallet_id, key.spend_key_id)])
        shown = spend_key_object(key, counted, self._clock())
        return json_response(shown | ({"key": key.secret} if key.secret is not None else {}), status)


def spend_key_object(key: SpendKey, counted: Mapping[str, str], now: datetime) -> dict[str, Any]:
    """The wire's object. Current counters are those of the limits' cycles at `now`, of the month where there is no limit.

    Spend is what ended calls were charged; a call that runs counts against the limit with the most it can cost, not here.
    """
    rules, limits = key.rules, key.limits
    use = use_of(counted, limits, now)
    return {
        "spend_key_id": key.spend_key_id,
        "name": key.name,
        "key_preview": key.key_preview,
        "wallet_id": key.wallet_id,
        "status": key.status,
        "request_shape": rules.request_shape,
        "allowed_models": None if rules.allowed_models is None else list(rules.allowed_models),
        "allowed_providers": None if rules.allowed_providers is None else list(rules.allowed_providers),
        **limits_document(limits),
        "expires_at": None if rules.expires_at is None else timestamp(rules.expires_at),
        "current_spend": format_usd(use.spent_nanos),
        "total_spend": format_usd(use.spent_total_nanos),
        "current_requests": use.requests,
        "total_requests": use.requests_total,
        "last_used_at": timestamp(at_ms(use.last_used_ms)) if use.last_used_ms else None,
        "created_at": timestamp(key.created_at),
    }


def parse_rules(document: Mapping[str, Any], present: KeyRules) -> KeyRules:
    """The rules with the fields that a document has. Raises CallerError (400) naming each problem and what is accepted."""
    return _rules(checked(SpendKeyUpdate, document), present)


def _rules(body: SpendKeyFields, present: KeyRules) -> KeyRules:
    """The rules with the fields that were sent."""
    names = ("request_shape", "allowed_models", "allowed_providers", "expires_at")
    sent = {name: getattr(body, name) for name in names if name in body.model_fields_set}
    if sent.get("expires_at") is not None:
        sent["expires_at"] = sent["expires_at"].astimezone(UTC)
    return replace(present, **sent)


def _merged(present: Limits, body: SpendKeyFields) -> Limits:
    document = limits_document(present)
    return parse_limits(document | {name: getattr(body, name) for name in document if name in body.model_fields_set})


def _no_such_key() -> NotFound:
    return NotFound("No spend key of yours has this id.")
