"""GET /docs/api: the OpenAPI document as a page. What it shows is worked out once, from the document that it is given."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from lava_proxy.web.pages import Pages

_METHODS = ("get", "post", "put", "patch", "delete")
_DEPTH_MAX = 4  # objects in objects; what lies deeper is only named
_RULES = (
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("minimum", "at least {}"),
    ("maximum", "at most {}"),
    ("minItems", "at least {} items"),
    ("maxItems", "at most {} items"),
    ("pattern", "matches {}"),
    ("format", "{}"),
)
_EXAMPLES: dict[str, Any] = {"string": "text", "integer": 1, "number": 1, "boolean": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A line of a table: `depth` is how many objects it is in; `rules` is a sentence's worth of what is accepted."""

    name: str
    kind: str
    required: bool
    about: str
    rules: str
    depth: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What comes back with a status."""

    status: str
    about: str
    kind: str
    fields: Sequence[Field]


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One operation as the page shows it; `words` is what the search box looks through."""

    anchor: str
    method: str
    path: str
    summary: str
    about: str
    is_older_name: bool
    is_public: bool
    parameters: Sequence[Field]
    body: Sequence[Field]
    answers: Sequence[Answer]
    refusals: Sequence[tuple[str, str]]
    curl: str
    words: str


class ApiReference:
    """The page. `document` is an OpenAPI 3.1 document."""

    def __init__(self, pages: Pages, document: Mapping[str, Any]) -> None:
        self._pages = pages
        info = document["info"]
        self._values = {
            "title": "API reference",
            "about": [part.strip() for part in str(info.get("description", "")).split("\n\n")],
            "groups": groups_of(document),
        }

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/docs/api", self.page)]

    async def page(self, request: web.Request) -> web.Response:
        return self._pages.page(request, "api_reference.html", self._values)


def groups_of(document: Mapping[str, Any]) -> list[tuple[str, str, list[Described]]]:
    """(tag, anchor, operations) in the order of the document."""
    found: dict[str, list[Described]] = {tag["name"]: [] for tag in document.get("tags", ())}
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                operation = methods[method]
                found.setdefault(operation["tags"][0], []).append(_described(document, path, method, operation))
    return [(tag, "tag-" + _anchor(tag), operations) for tag, operations in found.items() if operations]


def _described(document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> Described:
    parameters = [_parameter(document, one) for one in operation.get("parameters", ())]
    schema = _json_schema(operation.get("requestBody", {}))
    is_public = operation.get("security") == []
    answers, refusals = [], []
    for status, answer in sorted(operation["responses"].items()):
        told = _resolved(document, answer)
        if status < "400":
            answers.append(_answer(document, status, told))
        else:
            refusals.append((status, str(told.get("description", ""))))
    summary, about = str(operation.get("summary", "")), str(operation.get("description", ""))
    return Described(
        anchor=_anchor(operation["operationId"]),
        method=method.upper(),
        path=path,
        summary=summary,
        about=about,
        is_older_name=bool(operation.get("deprecated")),
        is_public=is_public,
        parameters=parameters,
        body=[] if schema is None else _fields(document, schema),
        answers=answers,
        refusals=refusals,
        curl=_curl(document, path, method, operation, schema, is_public),
        words=f"{method} {path} {summary} {about}".lower(),
    )


def _parameter(document: Mapping[str, Any], parameter: Mapping[str, Any]) -> Field:
    schema = _resolved(document, parameter.get("schema", {}))
    return Field(
        name=str(parameter["name"]),
        kind=f"{parameter['in']}, {_kind(document, schema)}",
        required=bool(parameter.get("required")),
        about=str(parameter.get("description", schema.get("description", ""))),
        rules=_rules(document, schema),
    )


def _answer(document: Mapping[str, Any], status: str, answer: Mapping[str, Any]) -> Answer:
    schema = _json_schema(answer)
    media = ", ".join(answer.get("content", {})) or "any body"
    fields = [] if schema is None else _fields(document, schema)
    return Answer(status=status, about=str(answer.get("description", "")), kind=media, fields=fields)


def _fields(document: Mapping[str, Any], schema: Mapping[str, Any], depth: int = 0) -> list[Field]:
    """A line for each property, those of objects in it after it."""
    found: list[Field] = []
    resolved = _resolved(document, schema)
    required = resolved.get("required", ())
    for name, value in resolved.get("properties", {}).items():
        shape = _resolved(document, value)
        found.append(
            Field(
                name=name,
                kind=_kind(document, shape),
                required=name in required,
                about=str(value.get("description", shape.get("description", ""))),
                rules=_rules(document, shape),
                depth=depth,
            )
        )
        if depth + 1 < _DEPTH_MAX:
            inner = _inner_object(document, shape)
            found += _fields(document, inner, depth + 1) if inner is not None else []
    return found


def _inner_object(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The object in a property: itself, an item of its list, or the one kind of it that is no null."""
    for one in _kinds(document, schema):
        if one.get("type") == "array":
            return _inner_object(document, _resolved(document, one.get("items", {})))
        if one.get("properties"):
            return one
    return None


def _kind(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """A type in words: "text", "list of object", "integer or null"."""
    names = dict.fromkeys(_one_kind(document, one) for one in _kinds(document, schema))
    return " or ".join(names) or "any value"


def _one_kind(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return " | ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_kind(document, _resolved(document, schema.get('items', {})))}"
    return {"string": "text", "boolean": "true | false"}.get(str(kind), str(kind)) if kind else "any value"


def _rules(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    found = [
        text.format(one[key]) for one in _kinds(document, schema) for key, text in _RULES if key in one
    ]  # fmt: skip
    if schema.get("default") is not None:
        found.append(f"default {json.dumps(schema['default'])}")
    return "; ".join(dict.fromkeys(found))


def _kinds(document: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The alternatives of a schema, resolved; itself where it has none."""
    several = schema.get("anyOf") or schema.get("oneOf")
    return [_resolved(document, one) for one in several] if several else [schema]


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A `$ref` followed; what stands beside it wins."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    target: Any = document
    for part in str(reference).removeprefix("#/").split("/"):
        target = target[part]
    return {**target, **{key: value for key, value in schema.items() if key != "$ref"}}


def _json_schema(holder: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = holder.get("content", {}).get("application/json", {}).get("schema")
    return found


def _curl(
    document: Mapping[str, Any],
    path: str,
    method: str,
    operation: Mapping[str, Any],
    schema: Mapping[str, Any] | None,
    is_public: bool,
) -> str:
    """A command to paste, with what is required; `$LAVA` is the installation's address."""
    query = [
        f"{one['name']}={_example(document, one['schema'])}"
        for one in operation.get("parameters", ())
        if one["in"] == "query" and one.get("required")
    ]
    address = "$LAVA" + re.sub(r"\{(\w+)\}", lambda match: f"${match[1].upper()}", path) + ("?" + "&".join(query) if query else "")
    lines = [f'curl {"" if method == "get" else f"-X {method.upper()} "}"{address}"']
    if not is_public:
        lines.append('-H "Authorization: Bearer $SECRET_KEY"')
    if schema is not None:
        body = json.dumps(_example(document, schema), ensure_ascii=False).replace("'", "'\\''")
        lines += ['-H "Content-Type: application/json"', f"-d '{body}'"]
    return " \\\n  ".join(lines)


def _example(document: Mapping[str, Any], schema: Mapping[str, Any], depth: int = 0) -> Any:
    """A value that the schema accepts as far as its own examples go: required members, or the first one where none is."""
    resolved = _resolved(document, schema)
    if resolved.get("examples"):
        return resolved["examples"][0]
    if "enum" in resolved or "const" in resolved:
        return resolved.get("enum", [resolved.get("const")])[0]
    several = resolved.get("anyOf") or resolved.get("oneOf")
    if several:
        return _example(document, several[0], depth)
    properties = resolved.get("properties")
    if properties and depth < _DEPTH_MAX:
        names = resolved.get("required") or list(properties)[:1]
        return {name: _example(document, properties[name], depth + 1) for name in names}
    if resolved.get("type") == "array":
        return [_example(document, resolved.get("items", {}), depth + 1)] if depth < _DEPTH_MAX else []
    return {} if resolved.get("type") == "object" else _EXAMPLES.get(str(resolved.get("type")), "text")


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
