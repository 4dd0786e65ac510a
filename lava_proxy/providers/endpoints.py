"""Which API a path is, whoever serves it: hosts speak each other's languages (Vertex has OpenAI's and Anthropic's APIs,
DeepSeek Anthropic's, Anthropic OpenAI's), so the path decides and not the host."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl, unquote

from lava_proxy.wire.plain_path import plain_path

TOKEN_APIS = frozenset(
    {
        "chat",
        "completions",
        "responses",
        "decisions",
        "embeddings",
        "messages",
        "complete",
        "generateContent",
        "streamGenerateContent",
        "embedContent",
        "cachedContents",
        "predict",
        "agents",
        "interactions",
        "runs",
        "converse",
        "invoke",
        "cohere_chat",
        "embed",
        "ollama",
        "ollama_embed",
        "watsonx",
        "watsonx_chat",
        "watsonx_embeddings",
        "predictions",
    }
)
"""Billed by the token, asked with a JSON object."""

MEDIA_APIS = frozenset(
    {"images", "imagen", "videos", "speech", "sound", "transcriptions", "translations", "listen", "rerank", "ocr"}
)
"""Billed by the image, character, second, page or document as well, asked with JSON, a form or the audio itself."""

FETCH_APIS = frozenset({"responses_retrieve", "predictions_retrieve", "interactions_retrieve", "runs_retrieve"})
"""Reading a job that an earlier call started: billed by its id, once, where it shows the job's usage."""

FREE_APIS = frozenset({"models", "moderations", "count_tokens", "read"})

_CHAT_PUBLISHERS = frozenset({"mistralai", "ai21", "meta", "deepseek-ai", "qwen", "openai", "moonshotai", "zai-org", "minimaxai"})
"""Of models at Vertex whose bodies are OpenAI's chat. https://docs.cloud.google.com/vertex-ai/generative-ai/docs/partner-models"""

_GOOGLE_METHODS = {
    "generateContent": "generateContent",
    "streamGenerateContent": "streamGenerateContent",
    "embedContent": "embedContent",
    "batchEmbedContents": "embedContent",
    "predict": "predict",
    "predictLongRunning": "videos",
    "countTokens": "count_tokens",
    "computeTokens": "count_tokens",
    "fetchPredictOperation": "read",  # Veo's, whose order was billed
}

_SUFFIXES = (
    # longest first where one ends another
    ("/text/chat_stream", "watsonx_chat"),
    ("/text/chat", "watsonx_chat"),
    ("/text/generation", "watsonx"),
    ("/text/generation_stream", "watsonx"),
    ("/generation/text", "watsonx"),
    ("/generation/text_stream", "watsonx"),
    ("/text/embeddings", "watsonx_embeddings"),
    ("/chat/completions", "chat"),
    ("/fim/completions", "chat"),
    ("/agents/completions", "agents"),
    ("/completions", "completions"),
    ("/responses/input_tokens", "count_tokens"),
    ("/responses/compact", "responses"),
    ("/responses", "responses"),
    ("/decisions", "decisions"),
    ("/embeddings", "embeddings"),
    ("/multimodalembeddings", "embeddings"),
    ("/contextualizedembeddings", "embeddings"),
    ("/moderations", "moderations"),
    ("/messages/count_tokens", "count_tokens"),
    ("/v1/complete", "complete"),
    ("/v1/chat", "cohere_chat"),
    ("/v2/chat", "cohere_chat"),
    ("/v1/embed", "embed"),
    ("/v2/embed", "embed"),
    ("/cachedContents", "cachedContents"),
    ("/interactions", "interactions"),
    ("/api/chat", "ollama"),
    ("/api/generate", "ollama"),
    ("/api/embed", "ollama_embed"),
    ("/threads/runs", "runs"),
    ("/predictions", "predictions"),
    ("/images/generations", "images"),
    ("/images/edits", "images"),
    ("/images/variations", "images"),
    ("/images", "images"),
    ("/videos", "videos"),
    ("/videos/generations", "videos"),
    ("/audio/speech", "speech"),
    ("/v1/tts", "speech"),
    ("/v1/speak", "speech"),
    ("/text-to-dialogue", "speech"),
    ("/text-to-dialogue/stream", "speech"),
    ("/sound-generation", "sound"),
    ("/audio/transcriptions", "transcriptions"),
    ("/audio/translations", "translations"),
    ("/speech-to-text", "transcriptions"),
    ("/v1/stt", "transcriptions"),
    ("/v1/listen", "listen"),
    ("/rerank", "rerank"),
    ("/ocr", "ocr"),
)
_STREAM_SUFFIXES = ("_stream", "-stream", "/stream", "/stream/with-timestamps")

_AZURE_DEPLOYMENT = re.compile(r"/openai/deployments/([^/]+)/")
_BEDROCK_MODEL = re.compile(r"/model/([^/]+)/(?:converse|invoke|count-tokens)[a-z-]*$")
_ELEVENLABS_SPEECH = re.compile(r"/text-to-speech/[^/]+(?:/stream)?(?:/with-timestamps)?$")
_THREAD_RUNS = re.compile(r"/threads/[^/]+/runs(?:/[^/]+/submit_tool_outputs)?$")
_REPLICATE_MODEL = re.compile(r"/(?:models|deployments)/([^/]+/[^/]+)/predictions$")
_RESPONSE_ITEM = re.compile(r"/responses/[^/]+$")
_PREDICTION_ITEM = re.compile(r"/predictions/[^/]+$")
_UPLOAD = re.compile(r"/(?:files|uploads)(?:/[^/]+(?:/(?:parts|complete|cancel))?)?$")
_VIDEO_REMIX = re.compile(r"/videos/[^/]+/remix$")
_INTERACTION_ITEM = re.compile(r"/interactions/[^/]+$")
_RUN_ITEM = re.compile(r"/threads/[^/]+/runs/[^/]+$")
_CANCEL = re.compile(r"/(responses|predictions|interactions|runs)/[^/]+/cancel$")
_GOOGLE_CALL = re.compile(r"/([^/]+?)(?::|%3[Aa])([A-Za-z]+)$")
_MODEL_ID_MAX = 256
_SLASHES = re.compile(r"[/\\]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What method, path and query say without the body."""

    api: str
    model: str | None = None  # where the URL names it
    stream: bool | None = None  # where the URL decides it

    @property
    def billable(self) -> bool:
        return self.api not in FREE_APIS


@lru_cache(maxsize=1024)
def endpoint_of(method: str, path: str, query: str) -> Endpoint:
    """The endpoint of a request; api `other` for what is not known, `read` for reading, deleting and uploading (free).

    Servers read a path more kindly than it is written. What costs nothing as it stands is looked at as they may take it: else an
    escaped or a capital letter would make any call one that is not metered.
    """
    path = _SLASHES.sub("/", path).rstrip("/")
    found = _endpoint(method, path, query)
    if _is_metered(found):
        return found
    plain = plain_path(path)
    return next(
        (other for other in (_endpoint(method, plain, query), _endpoint(method, plain.lower(), query)) if _is_metered(other)), found
    )


def _endpoint(method: str, path: str, query: str) -> Endpoint:
    return _posted(path) if method == "POST" else _not_posted(method, path, query)


def _is_metered(endpoint: Endpoint) -> bool:
    return endpoint.billable and endpoint.api != "other"


def _posted(path: str) -> Endpoint:
    bedrock = _BEDROCK_MODEL.search(path)
    if bedrock is not None:
        return _bedrock_call(path, unquote(bedrock[1])[:_MODEL_ID_MAX])
    google = _GOOGLE_CALL.search(path)
    if google is not None:
        return _google_call(path, unquote(google[1])[:_MODEL_ID_MAX], google[2])
    if path.endswith("/messages") and "/threads/" not in path:
        return Endpoint(api="messages")
    if _ELEVENLABS_SPEECH.search(path):
        return Endpoint(api="speech", stream="/stream" in path)
    replicate = _REPLICATE_MODEL.search(path)
    if replicate is not None:
        return Endpoint(api="predictions", model=replicate[1][:_MODEL_ID_MAX])
    if _THREAD_RUNS.search(path):
        return Endpoint(api="runs")
    if _UPLOAD.search(path):
        return Endpoint(api="read")
    if _VIDEO_REMIX.search(path):
        return Endpoint(api="videos")
    cancelled = _CANCEL.search(path)
    if cancelled is not None:
        return Endpoint(api=f"{cancelled[1]}_retrieve", stream=False)
    for suffix, api in _SUFFIXES:
        if path.endswith(suffix):
            deployment = _AZURE_DEPLOYMENT.search(path)
            return Endpoint(
                api=api,
                model=None if deployment is None else unquote(deployment[1])[:_MODEL_ID_MAX],
                stream=True if path.endswith(_STREAM_SUFFIXES) else None,
            )
    return Endpoint(api="other")


def _not_posted(method: str, path: str, query: str) -> Endpoint:
    """Reading costs nothing, except that a background response's usage is only seen when it is fetched."""
    if method != "GET":
        return Endpoint(api="read")
    if _RESPONSE_ITEM.search(path):
        return Endpoint(api="responses_retrieve", stream=dict(parse_qsl(query)).get("stream") == "true")
    if _INTERACTION_ITEM.search(path):
        return Endpoint(api="interactions_retrieve", stream=dict(parse_qsl(query)).get("stream") == "true")
    if _RUN_ITEM.search(path):
        return Endpoint(api="runs_retrieve", stream=False)
    if _PREDICTION_ITEM.search(path):
        return Endpoint(api="predictions_retrieve", stream=False)
    if path.endswith("/models") or "/models/" in path:
        return Endpoint(api="models")
    return Endpoint(api="read")


def _bedrock_call(path: str, model: str) -> Endpoint:
    verb = path.rpartition("/")[2]
    api = {"converse": "converse", "invoke": "invoke", "count": "count_tokens"}[verb.partition("-")[0]]
    if api == "invoke" and ".rerank" in model:
        return Endpoint(api="rerank", model=model, stream=False)
    return Endpoint(api=api, model=model, stream=verb.endswith("-stream"))


def _google_call(path: str, model: str, verb: str) -> Endpoint:
    if verb in ("rawPredict", "streamRawPredict"):
        if model == "count-tokens":
            return Endpoint(api="count_tokens", model=model)
        # Vertex carries the publishers' own bodies unchanged.
        publisher = _publisher(path)
        api = "messages" if publisher == "anthropic" else "chat" if publisher in _CHAT_PUBLISHERS else "other"
        return Endpoint(api=api, model=model, stream=True if verb == "streamRawPredict" else None)
    api = _GOOGLE_METHODS.get(verb, "other")
    if api == "predict" and model.startswith("imag"):
        api = "imagen"  # imagen-4.0-..., imagegeneration@006
    return Endpoint(api=api, model=model, stream=api == "streamGenerateContent")


def _publisher(path: str) -> str:
    _, _, rest = path.partition("/publishers/")
    return rest.partition("/")[0]
