"""What the gateway serves beside the REST API, as the OpenAPI document describes it. Written by hand: bodies are the providers'."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from lava_proxy.domain.errors import CallerError

TAG = "Gateway"
_SECURITY: list[dict[str, list[str]]] = [{"secretKey": []}]
_REQUEST_ID = {
    "x-lava-request-id": {"description": "The id of this call's request.", "schema": {"type": "string"}},
}
_METADATA = {
    "name": "x-lava-metadata",
    "in": "header",
    "required": False,
    "description": "A JSON object of at most 100 pairs, kept with the request.",
    "schema": {"type": "string", "examples": ['{"feature":"chat"}']},
}
_TARGET = {
    "name": "u",
    "in": "query",
    "required": True,
    "description": "The provider's URL, percent-encoded or not.",
    "schema": {"type": "string", "examples": ["https://api.openai.com/v1/chat/completions"]},
}
_ANY_JSON = {"application/json": {"schema": {"type": "object"}}}
_CALL_REFUSALS = ("400", "401", "403", "404", "409", "413", "429", "503")


_CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello."}]}
_CLAUDE = {"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": _CHAT["messages"]}


def _call(
    operation_id: str, summary: str, description: str, *, parameters: list[Any], example: dict[str, Any] | None
) -> dict[str, Any]:
    """A call that is relayed to a provider, with an example of its body where it has one."""
    found: dict[str, Any] = {
        "operationId": operation_id,
        "tags": [TAG],
        "summary": summary,
        "description": description,
        "parameters": [*parameters, _METADATA],
        "security": _SECURITY,
        "responses": {
            "200": {"description": "The provider's answer, byte for byte; streams are not held up.", "headers": _REQUEST_ID},
            "402": {
                "description": "The balance does not cover the most this call can cost; nothing was sent or charged.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
            **{status: {"$ref": f"#/components/responses/Refused{status}"} for status in _CALL_REFUSALS},
        },
    }
    if example is not None:
        schema = {"type": "object", "examples": [example]}
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return found


def _model_call(name: str, api: str, example: dict[str, Any]) -> dict[str, Any]:
    about = f"{api}'s API: point its SDK's base URL here. The model name picks the provider."
    return {"post": _call(f"post_{name}", f"Call a model ({api})", about, parameters=[], example=example)}


_FORWARDED = "Relayed as it is, with the provider's own key in place of yours; charged when it has ended."
_REPORT = {
    "type": "object",
    "required": ["request_id", "customer_id", "meter_slug"],
    "properties": {
        "request_id": {"type": "string", "minLength": 1, "maxLength": 255, "description": "Yours; the same one is charged once."},
        "customer_id": {"type": "string", "description": "Also connection_id, connection_secret or a reference_id."},
        "meter_slug": {"type": "string", "description": "Also meter_id or product_secret."},
        "input_tokens": {"type": "integer", "minimum": 0},
        "output_tokens": {"type": "integer", "minimum": 0},
        "input_characters": {"type": "integer", "minimum": 0},
        "output_characters": {"type": "integer", "minimum": 0},
        "input_seconds": {"type": "number", "minimum": 0},
        "output_seconds": {"type": "number", "minimum": 0},
        "metadata": {"type": "object"},
    },
}


def _reported(operation_id: str, summary: str, schema: dict[str, Any], answer: str) -> dict[str, Any]:
    """Usage that did not pass the gateway."""
    return {
        "post": {
            "operationId": operation_id,
            "tags": [TAG],
            "summary": summary,
            "security": _SECURITY,
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {
                "200": {"description": answer, "content": _ANY_JSON},
                **{status: {"$ref": f"#/components/responses/Refused{status}"} for status in _CALL_REFUSALS},
            },
        }
    }


GATEWAY_PATHS: dict[str, dict[str, Any]] = {
    "/v1/forward": {
        "get": _call("get_forward", "Forward a GET", _FORWARDED, parameters=[_TARGET], example=None),
        "post": _call("post_forward", "Forward a call", _FORWARDED, parameters=[_TARGET], example=_CHAT),
    },
    "/v1/chat/completions": _model_call("chat_completions", "OpenAI", _CHAT),
    "/v1/messages": _model_call("messages", "Anthropic", _CLAUDE),
    "/v1/responses": _model_call("responses", "OpenAI", {"model": "gpt-4o-mini", "input": "Say hello."}),
    "/v1/embeddings": _model_call("embeddings", "OpenAI", {"model": "text-embedding-3-small", "input": "Hello"}),
    "/v1/requests": _reported(
        "post_requests", "Report usage", _REPORT, "The request, made or found: a repeat of its request_id is charged once."
    ),
    "/v1/requests/batch": _reported(
        "post_requests_batch",
        "Report usage of many calls",
        {
            "type": "object",
            "required": ["requests"],
            "properties": {"requests": {"type": "array", "minItems": 1, "items": _REPORT}},
        },
        "An answer for each, in their order.",
    ),
}


def routes_of_gateway() -> list[web.RouteDef]:
    """Where the gateway answers one method and the control plane the others: routed here too, so that a refusal names them all."""
    return [web.post("/v1/requests", _misdirected), web.post("/v1/requests/batch", _misdirected)]


async def _misdirected(request: web.Request) -> web.StreamResponse:
    await request.read()
    raise CallerError("Usage is reported to the gateway; this is the control plane.", code="misdirected_request", status=421)
