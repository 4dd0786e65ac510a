"""OpenAI's Realtime API over a WebSocket, at OpenAI, Azure and xAI: usage on every `response.done`, summed over the session.

Usage is per response and not cumulative: each response reads the conversation anew, mostly from the cache. Transcribing the
user's audio is another model's work and is reported on `conversation.item.input_audio_transcription.completed`, in tokens or
in seconds. Event and field names, of the present API and of the beta: https://platform.openai.com/docs/api-reference/realtime.

A response that never got its `response.done` (a break, the client gone, the balance dry) is estimated: its text at four bytes
a token, its audio at a token for 50 ms (https://platform.openai.com/docs/guides/realtime-costs), its input as what the
response before it read and wrote, or the session's instructions for the first one.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from lava_proxy.domain.usage import TOKEN_KEYS
from lava_proxy.providers.estimate import TEXT_BYTES_PER_TOKEN
from lava_proxy.providers.session_meter import Generated, SessionMeter, base64_bytes
from lava_proxy.providers.usage_reader import count, mapping, present, seconds, text_bytes, text_values
from lava_proxy.wire import json_scan

DEFAULT_TRANSCRIPTION_MODEL = "gpt-4o-transcribe"
"""Priced for transcriptions of a session that did not say which model makes them; the dearest of OpenAI's."""

_TYPE = re.compile(rb'"type"\s*:\s*"([^"]{1,100})"')
_RESPONSE_ID = re.compile(rb'"response_id"\s*:\s*"([^"]{1,256})"')
_TYPE_WITHIN_BYTES = 512
_DELTA_TEXT = text_values("delta")
_AUDIO_DELTAS = frozenset({b"response.output_audio.delta", b"response.audio.delta"})
_TEXT_DELTAS = frozenset(
    {
        b"response.output_text.delta",
        b"response.text.delta",
        b"response.output_audio_transcript.delta",
        b"response.audio_transcript.delta",
        b"response.function_call_arguments.delta",
    }
)
_DONE = b'"response.done"'
_TRANSCRIBED = b'input_audio_transcription.completed"'
_MARKS = (_DONE, _TRANSCRIBED, b'"response.created"', b'"session.created"', b'"session.updated"', b'"transcription_session.')
_PCM_BYTES_PER_TOKEN = 2_400  # 24 kHz, 16 bit, 50 ms
_G711_BYTES_PER_TOKEN = 400  # 8 kHz, 8 bit
_OPEN_RESPONSES_MAX = 64


class RealtimeMeter(SessionMeter):
    """`is_transcription`: a session that only transcribes, whose own usage is what the transcriptions report."""

    def __init__(self, model: str | None, *, is_transcription: bool = False) -> None:
        super().__init__(model)
        self._is_transcription = is_transcription
        self._transcription_model: str | None = model if is_transcription else None
        self._audio_bytes_per_token = _PCM_BYTES_PER_TOKEN
        self._open: dict[str, Generated] = {}
        self._read_next: dict[str, int] = {}  # what the next response reads, as far as is known
        self._ended: deque[str] = deque(maxlen=_OPEN_RESPONSES_MAX)  # ids of the latest responses that are done

    def feed(self, data: bytes) -> None:
        found = _TYPE.search(data, 0, _TYPE_WITHIN_BYTES)
        kind = found[1] if found is not None else b""
        if kind in _AUDIO_DELTAS or kind in _TEXT_DELTAS:
            self._delta(data, is_audio=kind in _AUDIO_DELTAS)
        elif any(mark in data for mark in _MARKS):
            event = json_scan.loads(data)
            if isinstance(event, dict):
                self._event(event, data)

    def skipped(self, beginning: bytes) -> None:
        found = _TYPE.search(beginning, 0, _TYPE_WITHIN_BYTES)
        if found is None or _DONE.strip(b'"') == found[1] or found[1].endswith(_TRANSCRIBED.strip(b'"')):
            self._is_partial = True  # it may have been a report

    def lasted(self, elapsed_us: int) -> None:
        if not self._is_transcription:  # those report the audio's own seconds or tokens
            super().lasted(elapsed_us)

    def _event(self, event: Mapping[str, Any], raw: bytes) -> None:
        kind = event.get("type")
        if kind == "response.done":
            self._done(mapping(event.get("response")))
        elif kind == "response.created":
            self._begun(mapping(event.get("response")).get("id"))
        elif kind == "conversation.item.input_audio_transcription.completed":
            usage = event.get("usage")
            if isinstance(usage, dict):
                self._transcribed(json_scan.exact(raw, "usage", usage))
        elif kind in ("session.created", "session.updated") or str(kind).startswith("transcription_session."):
            self._session(mapping(event.get("session")))

    def _session(self, session: Mapping[str, Any]) -> None:
        if session.get("type") == "transcription":
            self._is_transcription, self._elapsed_us = True, None
        audio = mapping(session.get("audio"))
        for named in (mapping(audio.get("input")).get("transcription"), session.get("input_audio_transcription")):
            model = mapping(named).get("model")
            if isinstance(model, str) and model:
                self._transcription_model = model[:256]
        self._name(self._transcription_model if self._is_transcription else session.get("model"), session.get("id"))
        sound = mapping(mapping(audio.get("output")).get("format")).get("type") or session.get("output_audio_format")
        is_g711 = isinstance(sound, str) and (sound.startswith("g711") or sound in ("audio/pcmu", "audio/pcma"))
        self._audio_bytes_per_token = _G711_BYTES_PER_TOKEN if is_g711 else _PCM_BYTES_PER_TOKEN
        instructions = session.get("instructions")
        if isinstance(instructions, str) and not self.reports:
            self._read_next = {"input_tokens": len(instructions.encode("utf-8", "replace")) // TEXT_BYTES_PER_TOKEN}

    def _begun(self, response_id: object) -> None:
        if not isinstance(response_id, str) or response_id in self._open or response_id in self._ended:
            return
        if len(self._open) >= _OPEN_RESPONSES_MAX:
            self._is_partial = True  # more at once than anybody has: they are not told apart any more
            return
        self._open[response_id] = Generated()

    def _delta(self, payload: bytes, *, is_audio: bool) -> None:
        found = _RESPONSE_ID.search(payload, 0, _TYPE_WITHIN_BYTES) or _RESPONSE_ID.search(payload)
        if found is None:
            return
        response_id = found[1].decode("utf-8", "replace")
        self._begun(response_id)
        generated = self._open.get(response_id)
        if generated is None:
            return  # behind its response's end, which has said it all
        if is_audio:
            generated.audio_bytes += sum(base64_bytes(len(value)) for value in _DELTA_TEXT.findall(payload))
        else:
            generated.text_bytes += text_bytes(_DELTA_TEXT, payload)

    def _done(self, response: Mapping[str, Any]) -> None:
        response_id = response.get("id")
        generated: Generated | None = None
        if isinstance(response_id, str):
            if response_id in self._ended:
                return  # said twice, counted once
            self._ended.append(response_id)
            generated = self._open.pop(response_id, None)
        usage = response.get("usage")
        if isinstance(usage, dict):
            counted = realtime_usage(usage)
            self._read_next = _next_input(counted)
        else:
            counted = {**self._read_next, **(generated or Generated()).tokens(self._audio_bytes_per_token)}
            self._is_partial = True
        self._add(None, counted)
        self.reports += 1

    def _transcribed(self, usage: Mapping[str, Any]) -> None:
        counted: dict[str, int | Decimal] = {}
        if usage.get("type") == "duration" or "seconds" in usage:
            length = seconds(usage.get("seconds"))
            if length is not None:
                counted["audio_seconds"] = length
        else:
            counted.update(realtime_usage(usage))
        self._add(self._transcription_model or DEFAULT_TRANSCRIPTION_MODEL, counted)
        self.reports += 1

    def _running(self) -> Mapping[str, int] | None:
        if not self._open:
            return None
        total: dict[str, int] = {}
        for generated in self._open.values():
            for part in (self._read_next, generated.tokens(self._audio_bytes_per_token)):
                for unit, amount in part.items():
                    total[unit] = total.get(unit, 0) + amount
        return total


def realtime_usage(usage: Mapping[str, Any]) -> dict[str, int]:
    """The usage of one response or transcription in our units; cached tokens are inside the input, audio inside both."""
    inputs = mapping(usage.get("input_token_details") or usage.get("input_tokens_details"))
    outputs = mapping(usage.get("output_token_details") or usage.get("output_tokens_details"))
    cached = mapping(inputs.get("cached_tokens_details"))
    counts: dict[str, Any] = {
        **dict.fromkeys(TOKEN_KEYS, 0),
        "input_tokens": count(usage, "input_tokens"),
        "output_tokens": count(usage, "output_tokens"),
        "cached_input_tokens": count(inputs, "cached_tokens"),
        "reasoning_tokens": count(outputs, "reasoning_tokens"),
        **present(
            input_audio_tokens=count(inputs, "audio_tokens"),
            input_image_tokens=count(inputs, "image_tokens"),
            cached_input_audio_tokens=count(cached, "audio_tokens"),
            cached_input_image_tokens=count(cached, "image_tokens"),
            output_audio_tokens=count(outputs, "audio_tokens"),
        ),
    }
    return counts


def _next_input(usage: Mapping[str, int]) -> dict[str, int]:
    """What a response after this one reads at least: the same again, now from the cache, and what was written."""
    read, written = usage.get("input_tokens", 0), usage.get("output_tokens", 0)
    audio = usage.get("input_audio_tokens", 0)
    again = {"input_tokens": read + written, "cached_input_tokens": read}
    return {**again, "input_audio_tokens": audio, "cached_input_audio_tokens": audio} if audio else again
