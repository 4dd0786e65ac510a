"""Which WebSocket upgrades are sold: those whose usage we can read. One table for what a session is held for and metered by."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

from lava_proxy.domain.errors import CallerError
from lava_proxy.domain.usage import token_usage
from lava_proxy.providers.base import Call, Provider
from lava_proxy.providers.gemini_live import ASSUMED_MODEL, LiveMeter
from lava_proxy.providers.openai_realtime import DEFAULT_TRANSCRIPTION_MODEL, RealtimeMeter
from lava_proxy.providers.session_meter import SessionMeter

REALTIME = "realtime"
LIVE = "BidiGenerateContent"

INPUT_TOKENS = 4_096
"""A session is held for one response: instructions and a minute or two of talk; it follows what is really used."""

SESSION_SECONDS = 300
"""The time held for where it is charged; the hold follows it too."""

_MODEL_CHARS_MAX = 256
_DEFAULT_MODELS = {"xai": "grok-voice-latest"}  # https://docs.x.ai/docs/guides/voice/agent
_REALTIME_PATH = re.compile(r"(?:/openai|/v\d+)/realtime$")  # also Azure's /openai/realtime and /openai/v1/realtime
_LIVE_PATH = re.compile(r"Service[./]BidiGenerateContent(?:Constrained)?$")


def session_call(provider: Provider, path: str, query: str, output_tokens: int) -> Call:
    """What an upgrade asks for. `path` and `query` are upstream's; `output_tokens` is one response's assumed length.

    Raises CallerError: 400 `upgrade_not_supported` for what we cannot bill, 400 `model_required`.
    """
    path = path.rstrip("/")
    params = dict(parse_qsl(query))
    if provider.family == "openai" and _REALTIME_PATH.search(path):
        model = params.get("model") or params.get("deployment")
        if not model:
            model = DEFAULT_TRANSCRIPTION_MODEL if params.get("intent") == "transcription" else _DEFAULT_MODELS.get(provider.name)
        if not model or len(model) > _MODEL_CHARS_MAX:
            raise CallerError(
                f"A realtime session names its model in the URL: ?model=gpt-realtime (1 to {_MODEL_CHARS_MAX} characters).",
                code="model_required",
            )
        return _call(REALTIME, model, output_tokens)
    if provider.family == "google" and _LIVE_PATH.search(path):
        return _call(LIVE, ASSUMED_MODEL, output_tokens)
    raise CallerError(
        f"WebSocket sessions at {path[-100:] or '/'} of {provider.name} are not relayed, because their usage cannot be metered. "
        "Accepted are OpenAI's Realtime API (.../v1/realtime, also at hosts that speak it) and Gemini's Live API "
        "(.../BidiGenerateContent).",
        code="upgrade_not_supported",
    )


def session_meter(call: Call, query: str) -> SessionMeter:
    """A fresh meter for a session that `session_call` has let in."""
    if call.api == LIVE:
        return LiveMeter(call.model)
    return RealtimeMeter(call.model, is_transcription=dict(parse_qsl(query)).get("intent") == "transcription")


def _call(api: str, model: str, output_tokens: int) -> Call:
    # The audio units only say that the dearer rate may apply.
    ceiling = token_usage(
        INPUT_TOKENS, output_tokens, input_audio_tokens=INPUT_TOKENS, output_audio_tokens=output_tokens,
        audio_seconds=SESSION_SECONDS,
    )  # fmt: skip
    return Call(api=api, model=model, stream=True, body=b"", ceiling=ceiling, open_ended=True)
