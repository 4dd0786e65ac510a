"""Which reader meters which API: the one table from an API's name (endpoints.py) to the class that reads its responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lava_proxy.providers.anthropic import CompleteReader, MessagesReader
from lava_proxy.providers.base import Call, Provider
from lava_proxy.providers.bedrock import ConverseReader, InvokeReader
from lava_proxy.providers.cohere import CohereReader
from lava_proxy.providers.google import CachedContentsReader, GenerateContentReader, PredictReader
from lava_proxy.providers.interactions import InteractionsReader
from lava_proxy.providers.ollama import OllamaReader
from lava_proxy.providers.openai_chat import ChatReader, CompletionsReader, Dialect, EmbeddingsReader
from lava_proxy.providers.openai_media import ImagesReader, SpeechReader, TranscriptionReader
from lava_proxy.providers.openai_responses import ResponsesReader
from lava_proxy.providers.openai_runs import RunsReader
from lava_proxy.providers.other_media import ListenReader, OcrReader, PredictionReader, RerankReader, VideoReader
from lava_proxy.providers.usage_reader import UsageReader
from lava_proxy.providers.watsonx import GenerationReader

_DIALECTS: Mapping[str, Dialect] = {
    "google": "total_minus_prompt",
    "vertex": "total_minus_prompt",
    "perplexity": "reasoning_outside",
    "vercel-gateway": "reasoning_outside",
}

_BILLS_RERANKED_TOKENS = frozenset({"voyage"})
"""Hosts whose reranking is billed by `total_tokens`. https://docs.voyageai.com/docs/pricing"""

_READERS: Mapping[str, Callable[[], UsageReader]] = {
    "responses": ResponsesReader,
    "responses_retrieve": ResponsesReader,
    "decisions": ResponsesReader,
    "messages": MessagesReader,
    "complete": CompleteReader,
    "predict": PredictReader,
    "imagen": PredictReader,
    "generateContent": GenerateContentReader,
    "streamGenerateContent": GenerateContentReader,
    "embedContent": GenerateContentReader,
    "cachedContents": CachedContentsReader,
    "runs": RunsReader,
    "runs_retrieve": RunsReader,
    "converse": ConverseReader,
    "cohere_chat": CohereReader,
    "embed": CohereReader,
    "ollama": OllamaReader,
    "ollama_embed": OllamaReader,
    "watsonx": GenerationReader,
    "watsonx_embeddings": GenerationReader,
    "predictions": PredictionReader,
    "predictions_retrieve": PredictionReader,
    "images": ImagesReader,
    "videos": VideoReader,
    "speech": SpeechReader,
    "transcriptions": TranscriptionReader,
    "translations": TranscriptionReader,
    "listen": ListenReader,
    "ocr": OcrReader,
}

_DIALECT_READERS: Mapping[str, Callable[[Dialect], UsageReader]] = {
    "chat": ChatReader,
    "agents": ChatReader,
    "watsonx_chat": ChatReader,
    "completions": CompletionsReader,
    "embeddings": EmbeddingsReader,
}


def reader_of(provider: Provider, call: Call) -> UsageReader | None:
    """A fresh reader for the response of this call; None for an API whose responses are not read."""
    reader: UsageReader | None = None
    if call.api in _DIALECT_READERS:
        reader = _DIALECT_READERS[call.api](_DIALECTS.get(provider.name, "openai"))
    elif call.api in ("interactions", "interactions_retrieve"):
        reader = InteractionsReader(is_job=call.deferred or call.api == "interactions_retrieve")
    elif call.api == "invoke":
        reader = InvokeReader(call.model)
    elif call.api == "rerank":
        reader = RerankReader(total_is_billed=provider.name in _BILLS_RERANKED_TOKENS)
    elif call.api in _READERS:
        reader = _READERS[call.api]()
    if reader is not None:
        reader.asked = call.asked
    return reader
