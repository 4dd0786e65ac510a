"""GET /openapi.json: the OpenAPI 3.1 document, made from the operations themselves and from what the gateway serves."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from aiohttp import hdrs, web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from lava_proxy.api.gateway_operations import GATEWAY_PATHS
from lava_proxy.api.idempotency import HEADER
from lava_proxy.api.operations import Operation

_PATH_PARAMETER = re.compile(r"\{(\w+)(?::[^{}]*)?\}")
API_VERSION = "1.0"
_REF = "#/components/schemas/{model}"
_SECURITY: list[dict[str, list[str]]] = [{"secretKey": []}]

REFUSALS = {
    "400": "The request was not understood; the message names every problem.",
    "401": "No credential, or one that is not known here.",
    "403": "The credential may not do this.",
    "404": "No such thing of yours.",
    "405": "Another method is accepted at this path.",
    "409": "In conflict with what is there, or an Idempotency-Key that is in use.",
    "413": "The body is too large.",
    "429": "More than a thousand requests in a minute; Retry-After says when to come back.",
    "503": "The books cannot be read or written now; Retry-After says when to come back.",
}
RARE_REFUSALS = {
    "402": "There is no card to charge, or it was declined; the code says which.",
    "422": "Too many requests lie between those that match; ask for fewer.",
    "501": "This installation is not set up for it: no text messages can be sent, or no cards are taken; the code says which.",
}
"""Of those operations only that name them in `refuses`."""
_DESCRIPTION = """Resources of a merchant, and the gateway that sells AI calls.

Money is decimal dollars in strings. Times are ISO 8601 in UTC. Lists are newest first; `next_cursor` leads to the next page.
Every refusal is `{"error": {"message", "code", "status"}}`. A POST with an `Idempotency-Key` is done once: for a day, a repeat
gets the first answer. Keys of older vocabularies (connection, product) stand beside those described here."""


class OpenApi:
    """The document, made once: `value`, and as an answer."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        own = Operation(
            method="GET", path="/openapi.json", handler=self.document, tag="Description", summary="Read this document",
            is_public=True,
        )  # fmt: skip
        self._own = [own]
        self.value = document_of([*operations, own])
        self._body = orjson.dumps(self.value)

    def operations(self) -> list[Operation]:
        return self._own

    async def document(self, request: web.Request) -> web.Response:
        return web.Response(body=self._body, content_type="application/json", headers={hdrs.CACHE_CONTROL: "public, max-age=300"})


def document_of(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI document of these operations and of the gateway's."""
    models = sorted({m for o in operations for m in (o.body, o.answer) if m is not None}, key=lambda m: m.__name__)
    by_mode: list[tuple[type[BaseModel], Any]] = [(model, "validation") for model in models]
    references, schemas = models_json_schema(by_mode, ref_template=_REF)
    components = schemas.get("$defs", {})
    paths: dict[str, Any] = copy.deepcopy(GATEWAY_PATHS)
    for operation in operations:
        path = _PATH_PARAMETER.sub(r"{\1}", operation.path)
        assert operation.method.lower() not in paths.get(path, {}), f"two operations at {operation.method} {path}"
        paths.setdefault(path, {})[operation.method.lower()] = _described(operation, references)
    tags = [operation["tags"][0] for methods in paths.values() for operation in methods.values()]
    return {
        "openapi": "3.1.0",
        "info": {"title": "lava-proxy", "version": API_VERSION, "description": _DESCRIPTION},
        "servers": [{"url": "/", "description": "This installation"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(tags)],
        "paths": paths,
        "components": {
            "schemas": {name: _named(schema) for name, schema in components.items()} | {"Error": _ERROR},
            "responses": {f"Refused{status}": _refusal(sentence) for status, sentence in (REFUSALS | RARE_REFUSALS).items()},
            "securitySchemes": {
                "secretKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A secret key (`aks_...`) or a forward token made with it; for models a spend key too.",
                }
            },
        },
    }


def _described(operation: Operation, references: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": _operation_id(operation),
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [_path_parameter(name) for name in _PATH_PARAMETER.findall(operation.path)],
        "responses": _responses(operation, references),
        "security": [] if operation.is_public else _SECURITY,
    }
    about = operation.description
    if operation.alias_of is not None:
        about = f"{about} The older name of `{operation.alias_of}`.".strip()
        found["deprecated"] = True
    if about:
        found["description"] = about
    if operation.query is not None:
        found["parameters"] += _query_parameters(operation.query.model_json_schema())
    if operation.method == "POST" and not operation.is_public:
        found["parameters"].append(_IDEMPOTENCY)
    if operation.body is not None:
        schema = references[operation.body, "validation"]
        required = any(field.is_required() for field in operation.body.model_fields.values())
        found["requestBody"] = {"required": required, "content": {"application/json": {"schema": schema}}}
    return found


def _operation_id(operation: Operation) -> str:
    words = re.findall(r"\w+", _PATH_PARAMETER.sub(r"by_\1", operation.path.removeprefix("/v1")))
    return "_".join([operation.method.lower(), *words])


def _path_parameter(name: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": 255}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """A parameter for each property; a query string has no null."""
    required = schema.get("required", ())
    found = []
    for name, value in schema["properties"].items():
        shape = {key: item for key, item in value.items() if key not in ("title", "default", "description")}
        kinds = [kind for kind in shape.pop("anyOf", ()) if kind != {"type": "null"}]
        if len(kinds) == 1:
            shape |= kinds[0]
        about = value.get("description", shape.pop("description", None))
        if value.get("default") is not None:
            shape["default"] = value["default"]
        parameter = {"name": name, "in": "query", "required": name in required, "schema": shape}
        found.append(parameter | ({"description": about} if about else {}))
    return found


def _responses(operation: Operation, references: Any) -> dict[str, Any]:
    content: dict[str, Any] = {operation.media_type: {}}
    if operation.answer is not None:
        content[operation.media_type]["schema"] = references[operation.answer, "validation"]
    elif operation.media_type == "application/json":
        content[operation.media_type]["schema"] = {"type": "object"}
    done = {"description": "Done.", "content": content}
    found = {str(status): done for status in (operation.status, *operation.also)}
    refused = {*REFUSALS, *map(str, operation.refuses)}
    if operation.is_public and operation.path == "/openapi.json":
        refused = {"405", "413"}
    return found | {status: {"$ref": f"#/components/responses/Refused{status}"} for status in sorted(refused)}


def _refusal(sentence: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": sentence, "content": content}


def _named(schema: dict[str, Any]) -> dict[str, Any]:
    """Without the titles that pydantic makes of names, and without defaults that only say "absent"."""
    properties = {
        name: {key: value for key, value in one.items() if key != "title" and (key, value) not in _ABSENT}
        for name, one in schema.get("properties", {}).items()
    }
    return {key: value for key, value in schema.items() if key != "title"} | ({"properties": properties} if properties else {})


_ABSENT = (("default", ""), ("default", None))
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "code", "status"],
            "properties": {"message": {"type": "string"}, "code": {"type": "string"}, "status": {"type": "integer"}},
        }
    },
    "examples": [{"error": {"message": "limit is '0': accepted is a whole number from 1 to 100.", "code": "invalid_parameter",
                            "status": 400}}],
}  # fmt: skip
_IDEMPOTENCY: dict[str, Any] = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "A repeat with the same key and body gets the first answer, for 24 hours.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}
