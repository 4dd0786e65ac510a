"""REST operations as values: what is routed, how its input is checked, and what the OpenAPI document says come from one place."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from reprlib import Repr
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from lava_proxy.domain.errors import CallerError

PROBLEMS_MAX = 20
_SHOWN_CHARS_MAX = 60
# Looks only as far into a value as is shown: one nested a thousand deep would exhaust the stack.
_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 4, 80, 80, 80

M = TypeVar("M", bound=BaseModel)


class Body(BaseModel):
    """A request body of ours: unknown fields are refused, since a misspelt one would otherwise be lost without a word."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LenientBody(BaseModel):
    """A request body to which the public SDKs add fields of other versions: those are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class QueryString(BaseModel):
    """A query string: unknown parameters are ignored, as clients of later versions send them."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Answer(BaseModel):
    """The shape of an answer, for the OpenAPI document; aliases for older clients may stand beside what it names."""

    model_config = ConfigDict(extra="allow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method at one path.

    `handler` is called with the request, then with the checked `body` or `query` where the operation has one (never both).
    `answer` describes its JSON on success; `refuses`: statuses of refusals beyond those that every operation has; `alias_of` names
    the path whose older or newer name this one is.
    """

    method: str
    path: str
    handler: Callable[..., Awaitable[web.StreamResponse]]
    tag: str
    summary: str
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    status: int = 200
    also: tuple[int, ...] = ()
    refuses: tuple[int, ...] = ()
    media_type: str = "application/json"
    is_public: bool = False
    description: str = ""
    alias_of: str | None = None

    def __post_init__(self) -> None:
        assert self.body is None or self.query is None, "an operation reads its body or its query string"


def routes_of(operations: Iterable[Operation]) -> list[web.RouteDef]:
    """A route for each operation, which checks the input before the handler sees it. A GET route answers HEAD too."""
    return [_route(operation) for operation in operations]


def _route(operation: Operation) -> web.RouteDef:
    if operation.method == "GET":
        return web.get(operation.path, _checked(operation))
    return web.route(operation.method, operation.path, _checked(operation))


def _checked(operation: Operation) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    handler, body, query = operation.handler, operation.body, operation.query

    async def run(request: web.Request) -> web.StreamResponse:
        if body is not None:
            return await handler(request, checked(body, await read_json_object(request)))
        if query is not None:
            await request.read()  # bounded; the connection stays usable
            return await handler(request, checked(query, dict(request.query)))
        await request.read()  # bounded; the connection stays usable
        return await handler(request)

    return run


def checked(model: type[M], values: Mapping[str, Any]) -> M:
    """The values as a model. Raises CallerError naming every problem: the field, what came, what is accepted."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_sentence(one) for one in error.errors(include_url=False)[:PROBLEMS_MAX]]
        raise CallerError(" ".join(problems), code="invalid_parameter") from None


async def read_json_object(request: web.Request) -> dict[str, Any]:
    """The JSON object in a request's body, numbers with a point as Decimals; an empty body is an empty object."""
    raw = await request.read()
    if not raw:
        return {}
    try:
        value = json.loads(raw, parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError, InvalidOperation) as error:
        raise CallerError(f"The body is not JSON: {str(error)[:200]}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise CallerError("The body must be a JSON object.", code="invalid_json")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _sentence(problem: Any) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".") or "The body"
    kind = problem["type"]
    if kind == "missing":
        return f"{where} is required."
    if kind == "extra_forbidden":
        return f"{where} is not a field of this resource."
    message = str(problem["msg"]).removeprefix("Value error, ").rstrip(".")
    return f"{where} is {_shown(problem['input'])}: {message[:1].lower()}{message[1:]}."


def _shown(value: object) -> str:
    """A caller's value in an error sentence: short, on one line."""
    text = _SHORT.repr(value) if not isinstance(value, Decimal) else str(value)
    return text if len(text) <= _SHOWN_CHARS_MAX else text[: _SHOWN_CHARS_MAX - 3] + "..."
