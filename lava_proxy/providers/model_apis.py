"""The APIs whose usage is read, at whichever host: OpenAI's, Anthropic's, Google's, Bedrock's, Cohere's and the smaller ones.

One class serves them all: the path names the API (endpoints.py), the API picks the reader (readers.py), and the
provider's name picks the dialect. A host's `family` in providers.toml only says which of them it speaks by nature.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

from lava_proxy.domain.errors import CallerError
from lava_proxy.domain.prices import facts_of
from lava_proxy.domain.usage import Provenance, Usage, token_usage
from lava_proxy.providers.base import Call, Meter, Provider, Relay
from lava_proxy.providers.body_meter import BodyMeter, FixedMeter
from lava_proxy.providers.ceilings import DEFAULT_OUTPUT_TOKENS_MAX, ceiling, names_a_limit
from lava_proxy.providers.endpoints import FETCH_APIS, MEDIA_APIS, TOKEN_APIS, Endpoint, endpoint_of
from lava_proxy.providers.header_usage import header_service_tier, header_usage
from lava_proxy.providers.media_requests import media_request
from lava_proxy.providers.readers import reader_of
from lava_proxy.providers.usage_chunk import UsageChunkFilter, ask_for_usage
from lava_proxy.providers.usage_reader import mapping
from lava_proxy.wire import json_scan

_NEEDS_MODEL = frozenset({"chat", "completions", "responses", "embeddings", "messages"})
_BACKGROUND_APIS = ("responses", "interactions")
_MODEL_BYTES_MAX = 256
_PRICED_BY = ("inference_geo", "speed")  # Anthropic's

_LOCATION = re.compile(r"/locations/([^/]+)/publishers/anthropic/")

_OPAQUE_TYPES = ("audio/", "image/", "video/", "application/octet-stream")

AZURE_USAGE_API_VERSION = "2024-08-01"
"""Azure knows stream_options since api-version 2024-08-01-preview; older ones answer 400."""


class ModelApis:
    """Reads requests and meters responses of token APIs. Stateless."""

    def __init__(self, *, default_output_tokens_max: int = DEFAULT_OUTPUT_TOKENS_MAX) -> None:
        self._default_output_tokens_max = default_output_tokens_max

    def inspect(self, provider: Provider, method: str, path: str, query: str, content_type: str, body: bytes) -> Call:
        """What the request asks for. Raises CallerError 400 `invalid_request_body` or `model_required`.

        The path is upstream's, without the query.
        """
        endpoint = endpoint_of(method.upper(), path, query)
        if endpoint.api in MEDIA_APIS:
            return _media_call(endpoint, query, content_type, body)
        if endpoint.api not in TOKEN_APIS:
            return _unmetered_call(endpoint, content_type, body)
        document = _json_object(endpoint, content_type, body)
        if document is None:
            # Some servers look at no content type and read more than is JSON: what they answer is metered, so it is held for too.
            unread = ceiling(endpoint.api, body, {}, self._default_output_tokens_max)
            return replace(_unmetered_call(endpoint, content_type, body), ceiling=unread)
        model = endpoint.model or _model_in(endpoint, document)
        stream = endpoint.stream
        if stream is None:
            stream = document.get("stream", endpoint.api == "ollama") is True  # Ollama streams unless told not to
        spliced: bytes | None = None
        if stream and provider.include_usage and _knows_stream_options(endpoint, provider, path, query):
            spliced = ask_for_usage(body, document)
        return Call(
            api=endpoint.api,
            model=model,
            stream=stream,
            body=body if spliced is None else spliced,
            spliced=spliced is not None,
            ceiling=ceiling(endpoint.api, body, document, self._default_output_tokens_max),
            service_tier=_service_tier(document),
            facts=facts_of({name: document.get(name) for name in _PRICED_BY}, {"endpoint": _vertex_endpoint(path)}),
            deferred=endpoint.api == "predictions" or (endpoint.api in _BACKGROUND_APIS and document.get("background") is True),
            open_ended=stream and not names_a_limit(endpoint.api, document),
        )

    def meter(
        self,
        provider: Provider,
        call: Call,
        status: int,
        content_type: str,
        content_encoding: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> Meter:
        """A fresh meter for one response. An error status and an API without a reader are not looked at."""
        if not 200 <= status < 300:
            return FixedMeter()
        if not call.billable:
            return FixedMeter(token_usage(0, 0), terminal=True)
        reader = reader_of(provider, call)
        reported = header_usage(call.api, headers)
        if reader is None or content_type.lower().startswith(_OPAQUE_TYPES):
            if reported is not None:
                return FixedMeter(reported, Provenance.PROVIDER_FINAL)
            return FixedMeter(call.asked, Provenance.ESTIMATED) if call.asked.units else FixedMeter()
        reader.header_usage, reader.service_tier = reported, header_service_tier(headers)
        return BodyMeter(reader, content_encoding, content_type)

    def relay(self, call: Call) -> Relay | None:
        """The filter for the chunk that we asked for."""
        return UsageChunkFilter() if call.spliced else None


def _service_tier(document: Mapping[str, Any]) -> str | None:
    """The tier that is asked for by name; "auto" and "default" leave it to the provider."""
    tier = document.get("service_tier") or document.get("serviceTier")  # Bedrock's is an object
    tier = tier.get("type") if isinstance(tier, dict) else tier
    return tier[:64] if isinstance(tier, str) and tier not in ("", "auto", "default", "standard", "standard_only") else None


def _vertex_endpoint(path: str) -> str | None:
    """Vertex bills Anthropic's newer models a tenth more where the location is not `global`."""
    location = _LOCATION.search(path)
    return None if location is None or location[1] == "global" else "regional"


def _json_object(endpoint: Endpoint, content_type: str, body: bytes) -> Mapping[str, Any] | None:
    """The parsed body; None where another content type makes it none of our business."""
    document = json_scan.loads(body)
    if isinstance(document, dict):
        return document
    if content_type and "json" not in content_type and not content_type.startswith("text/"):
        return None
    raise CallerError(f"The body of a {endpoint.api} request must be a JSON object.", code="invalid_request_body", status=400)


def _model_in(endpoint: Endpoint, document: Mapping[str, Any]) -> str | None:
    model = document.get("model") or document.get("model_id")  # watsonx
    if endpoint.api == "interactions":
        model = model or document.get("agent")
    if isinstance(model, str) and 0 < len(model) <= _MODEL_BYTES_MAX:
        return model
    if endpoint.api not in _NEEDS_MODEL or (endpoint.api == "responses" and isinstance(document.get("prompt"), dict)):
        return None  # a stored prompt names its own model
    raise CallerError(
        f'A {endpoint.api} request needs "model": a string of 1 to {_MODEL_BYTES_MAX} characters.',
        code="model_required",
        status=400,
    )


def _media_call(endpoint: Endpoint, query: str, content_type: str, body: bytes) -> Call:
    request = media_request(endpoint, query, content_type, body)
    return Call(
        api=endpoint.api,
        model=request.model,
        stream=request.stream,
        body=body,
        billable=endpoint.billable,
        ceiling=request.ceiling,
        asked=request.asked,
        facts=request.facts,
    )


def _unmetered_call(endpoint: Endpoint, content_type: str, body: bytes) -> Call:
    """A call that is passed on as it is; model and stream are taken where they are easy to find."""
    is_json = body[:1] == b"{" and "json" in content_type
    document = mapping(json_scan.loads(body)) if is_json else {}
    named = document.get("model")
    return Call(
        api=endpoint.api,
        model=endpoint.model or (named[:_MODEL_BYTES_MAX] if isinstance(named, str) and named else None),
        stream=bool(endpoint.stream) or document.get("stream") is True,
        body=body,
        billable=endpoint.billable,
        deferred=endpoint.api in FETCH_APIS,
        ceiling=Usage(),
    )


def _knows_stream_options(endpoint: Endpoint, provider: Provider, path: str, query: str) -> bool:
    """Only chat and completions have the option, and Azure's dated API only from a date on."""
    if endpoint.api not in ("chat", "completions"):
        return False
    if provider.name.startswith("azure") and "/openai/v1/" not in path:
        return max(parse_qs(query).get("api-version", [""])) >= AZURE_USAGE_API_VERSION
    return True
