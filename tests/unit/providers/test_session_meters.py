"""WebSocket sessions' meters: what each event adds, what is estimated, and that nothing makes them raise."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_proxy.domain.errors import CallerError
from lava_proxy.domain.usage import Provenance
from lava_proxy.providers.base import Provider
from lava_proxy.providers.gemini_live import LiveMeter
from lava_proxy.providers.openai_realtime import RealtimeMeter
from lava_proxy.providers.session_meter import SessionMeter
from lava_proxy.providers.websocket_sessions import LIVE, REALTIME, session_call, session_meter

OPENAI = Provider(name="openai", family="openai", hosts=(), base="https://api.openai.com/v1")
XAI = Provider(name="xai", family="openai", hosts=(), base="https://api.x.ai/v1")
GOOGLE = Provider(name="google", family="google", hosts=(), base="https://generativelanguage.googleapis.com")
PLAIN = {"cached_input_tokens": 0, "cache_write_tokens": 0, "reasoning_tokens": 0}
TRANSCRIBED = "conversation.item.input_audio_transcription.completed"


def said(meter: SessionMeter, *events: Any) -> dict[str, Any]:
    """The usage after these events."""
    for event in events:
        meter.feed(event if isinstance(event, bytes) else json.dumps(event).encode())
    usage = meter.reading().usage
    assert usage is not None
    return dict(usage.units)


def done(response_id: object, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    usage = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    return {"type": "response.done", "response": {"id": response_id, "usage": usage}}


# -- OpenAI Realtime


def test_a_session_without_a_response_has_used_nothing_for_sure() -> None:
    meter = RealtimeMeter("gpt-realtime")
    assert said(meter, {"type": "session.created", "session": {"model": "gpt-realtime"}}) == {
        "input_tokens": 0, "output_tokens": 0, **PLAIN,
    }  # fmt: skip
    assert meter.reading().provenance is Provenance.PROVIDER_FINAL


def test_the_type_need_not_come_first() -> None:
    raw = b'{"event_id":"e","response":{"id":"r","output":[{"type":"message"}],"usage":{"input_tokens":3,"output_tokens":4}},'
    assert said(RealtimeMeter("m"), raw + b'"type":"response.done"}')["output_tokens"] == 4


def test_a_text_that_talks_about_usage_is_not_usage() -> None:
    """Only events count."""
    talk = json.dumps(done("r", 1_000, 1_000))
    delta = {"type": "response.output_text.delta", "response_id": "r", "delta": talk}
    finished = {"type": "response.output_text.done", "response_id": "r", "text": talk}
    meter = RealtimeMeter("m")
    assert said(meter, delta, finished, done("r", 1, 2))["output_tokens"] == 2
    assert said(meter, delta)["output_tokens"] == 2, "behind the end of its response"
    assert meter.reading().provenance is Provenance.PROVIDER_FINAL


def test_a_response_that_ends_without_usage_is_estimated_from_what_was_relayed() -> None:
    meter = RealtimeMeter("m")
    created = {"type": "response.created", "response": {"id": "r"}}
    delta = {"type": "response.output_text.delta", "response_id": "r", "delta": "word" * 10}
    instructed = {"type": "session.updated", "session": {"model": "m", "instructions": "four" * 8}}
    units = said(meter, instructed, created, delta, {"type": "response.done", "response": {"id": "r", "status": "cancelled"}})
    assert (units["input_tokens"], units["output_tokens"]) == (8, 10)
    assert meter.reading().provenance is Provenance.PROVIDER_PARTIAL


@pytest.mark.parametrize(
    ("session", "tokens"),
    [
        ({}, 4),
        ({"output_audio_format": "pcm16"}, 4),
        ({"output_audio_format": "g711_ulaw"}, 24),
        ({"audio": {"output": {"format": {"type": "audio/pcmu"}}}}, 24),
        ({"audio": {"output": {"format": {"type": "audio/pcm", "rate": 24000}}}}, 4),
    ],
)
def test_running_audio_is_counted_by_its_time(session: dict[str, Any], tokens: int) -> None:
    sound = base64.b64encode(bytes(9_600)).decode()
    delta = {"type": "response.output_audio.delta", "response_id": "r", "delta": sound}
    units = said(RealtimeMeter("m"), {"type": "session.created", "session": {"model": "m", **session}}, delta)
    assert units["output_audio_tokens"] == units["output_tokens"] == tokens


def test_transcriptions_by_the_second_are_another_models() -> None:
    """A23: whisper reports a duration; its fraction stays exact."""
    session = {"type": "session.updated", "session": {"model": "m", "input_audio_transcription": {"model": "whisper-1"}}}
    heard = b'{"type":"%b","usage":{"type":"duration","seconds":3.1}}' % TRANSCRIBED.encode()
    units = said(RealtimeMeter("m"), session, heard, heard, done("r", 5, 6))
    assert units["other_models"] == {"whisper-1": {"audio_seconds": Decimal("6.2")}}
    assert (units["input_tokens"], units["output_tokens"]) == (5, 6)


def test_a_session_that_only_transcribes_has_its_models_usage_as_its_own() -> None:
    call = session_call(OPENAI, "/v1/realtime", "intent=transcription", 4_096)
    meter = session_meter(call, "intent=transcription")
    transcription = {"model": "gpt-4o-mini-transcribe"}
    session = {"type": "transcription", "audio": {"input": {"transcription": transcription}}}
    usage = {"type": "tokens", "input_tokens": 14, "output_tokens": 45, "input_token_details": {"audio_tokens": 14}}
    meter.lasted(10**9)
    units = said(meter, {"type": "session.created", "session": session}, {"type": TRANSCRIBED, "usage": usage})
    assert units == {"input_tokens": 14, "output_tokens": 45, **PLAIN, "input_audio_tokens": 14}
    assert meter.reading().model == "gpt-4o-mini-transcribe"


def test_the_time_connected_is_there_only_where_it_is_asked_for() -> None:
    meter = RealtimeMeter("grok-voice-latest")
    assert "audio_seconds" not in said(meter, done("r", 1, 1))
    meter.lasted(1_500_000)
    assert said(meter)["audio_seconds"] == Decimal("1.5")


def test_more_models_than_anybody_uses_are_counted_as_the_first() -> None:
    meter = RealtimeMeter("m")
    for number in range(40):
        meter.feed(json.dumps({"type": "session.updated", "session": {"model": f"m{number}"}}).encode())
        meter.feed(json.dumps(done(f"r{number}", 1, 0)).encode())
    units = said(meter)
    assert len(units["other_models"]) == 15
    assert units["input_tokens"] + sum(other["input_tokens"] for other in units["other_models"].values()) == 40


# -- Gemini Live


def turn(prompt: int, response: int, **content: object) -> dict[str, Any]:
    return {"serverContent": content, "usageMetadata": {"promptTokenCount": prompt, "responseTokenCount": response}}


def test_a_generation_told_again_counts_once_and_another_one_of_the_same_turn_is_added() -> None:
    """A21: after a tool's answer the prompt is another one."""
    meter = LiveMeter("m")
    called = {"toolCall": {}, "usageMetadata": {"promptTokenCount": 10, "responseTokenCount": 5}}
    units = said(meter, called, turn(10, 5), turn(25, 8), turn(25, 9, turnComplete=True), turn(40, 1, turnComplete=True))
    assert (units["input_tokens"], units["output_tokens"]) == (10 + 25 + 40, 5 + 9 + 1)
    assert meter.reading().provenance is Provenance.PROVIDER_FINAL


def test_a_turn_cut_off_before_its_usage_is_estimated() -> None:
    meter = LiveMeter("m")
    sound = {"inlineData": {"mimeType": "audio/pcm;rate=24000", "data": base64.b64encode(bytes(19_200)).decode()}}
    units = said(meter, turn(100, 20, turnComplete=True), {"serverContent": {"modelTurn": {"parts": [sound, {"text": "four"}]}}})
    assert (units["input_tokens"], units["output_tokens"], units["output_audio_tokens"]) == (100 + 120, 20 + 10 + 1, 10)
    assert meter.reading().provenance is Provenance.PROVIDER_PARTIAL


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("models/gemini-3.1-flash-live-preview", "gemini-3.1-flash-live-preview"),
        ("projects/p/locations/l/publishers/google/models/gemini-live-2.5-flash", "gemini-live-2.5-flash"),
        ("", None),
        (7, None),
    ],
)
def test_the_setup_names_the_model(name: object, model: str | None) -> None:
    meter = LiveMeter("assumed")
    assert meter.setup(json.dumps({"setup": {"model": name}}).encode()) == model
    assert meter.model == model


# -- both


@pytest.mark.parametrize("meter", [RealtimeMeter("m"), LiveMeter("m")], ids=["realtime", "live"])
def test_after_the_frames_are_lost_nothing_is_the_providers_last_word(meter: SessionMeter) -> None:
    meter.lost()
    assert meter.reading().provenance is Provenance.PROVIDER_PARTIAL


_KEYS = st.sampled_from(
    "type session response usage id model delta audio input output transcription instructions format input_tokens output_tokens "
    "input_token_details cached_tokens_details seconds serverContent modelTurn parts text inlineData data usageMetadata "
    "promptTokenCount responseTokenCount turnComplete responseTokensDetails setup response_id".split()
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=20,
)
_TYPES = st.sampled_from(
    ["response.done", "response.created", "session.created", "session.updated", TRANSCRIBED, "response.output_text.delta"]
)


@given(st.lists(st.tuples(_TYPES, st.dictionaries(_KEYS, _JSON, max_size=5)), max_size=5), st.binary(max_size=50))
def test_no_message_makes_a_meter_raise_or_count_below_zero(events: list[tuple[str, dict[str, Any]]], noise: bytes) -> None:
    """Strange messages are worth nothing, and nothing is ever negative."""
    for meter in (RealtimeMeter("m"), LiveMeter("m")):
        meter.feed(noise)
        meter.skipped(noise)
        for kind, members in events:
            meter.feed(json.dumps({**members, "type": kind}).encode())
        if isinstance(meter, LiveMeter):
            meter.setup(noise)
        units = meter.reading().usage
        assert units is not None
        assert all(not isinstance(value, int) or value >= 0 for value in units.units.values())


@pytest.mark.parametrize(
    ("provider", "path", "query", "api", "model"),
    [
        (OPENAI, "/v1/realtime", "model=gpt-realtime", REALTIME, "gpt-realtime"),
        (OPENAI, "/openai/realtime", "api-version=2024-10-01-preview&deployment=mine", REALTIME, "mine"),
        (OPENAI, "/openai/v1/realtime", "model=mine", REALTIME, "mine"),
        (XAI, "/v1/realtime", "", REALTIME, "grok-voice-latest"),
        (GOOGLE, "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent", "", LIVE, None),
        (GOOGLE, "/ws/google.cloud.aiplatform.v1beta1.LlmBidiService/BidiGenerateContent", "", LIVE, None),
    ],
)
def test_sessions_that_are_sold(provider: Provider, path: str, query: str, api: str, model: str | None) -> None:
    call = session_call(provider, path, query, 4_096)
    assert (call.api, call.stream, call.open_ended, call.ceiling.output_tokens) == (api, True, True, 4_096)
    assert model is None or call.model == model


@pytest.mark.parametrize(
    ("provider", "path", "query", "code"),
    [
        (OPENAI, "/v1/realtime", "call_id=rtc_1", "model_required"),
        (OPENAI, "/v1/realtime", "model=" + "m" * 257, "model_required"),
        (OPENAI, "/v1/realtime/translations", "model=gpt-realtime-translate", "upgrade_not_supported"),
        (OPENAI, "/v1/audio/transcriptions/realtime", "model=m", "upgrade_not_supported"),
        (GOOGLE, "/v1/realtime", "model=m", "upgrade_not_supported"),
        (GOOGLE, "/ws/other", "", "upgrade_not_supported"),
    ],
)
def test_sessions_that_are_refused(provider: Provider, path: str, query: str, code: str) -> None:
    with pytest.raises(CallerError) as refused:
        session_call(provider, path, query, 4_096)
    assert (refused.value.status, refused.value.code) == (400, code)
