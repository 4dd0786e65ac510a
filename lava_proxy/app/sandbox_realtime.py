"""The sandbox's Realtime session: OpenAI's events over a WebSocket, text answers, usage per response, nothing else.

Understood are session.update, conversation.item.create, input_audio_buffer.append / commit / clear, response.create and
response.cancel; any other event gets an `error` event, as the real one does. A response reads the whole conversation, of which
what the response before it read comes from the cache; committed audio is a token for each 100 ms of 24 kHz 16 bit.
https://platform.openai.com/docs/api-reference/realtime
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from aiohttp import WSMsgType, web

Json = dict[str, Any]

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
AUDIO_BYTES_PER_TOKEN = 4_800
_MODEL_DEFAULT = "gpt-realtime"


class Said(Protocol):
    """What the sandbox answers to a prompt."""

    @property
    def words(self) -> tuple[str, ...]: ...
    @property
    def text(self) -> str: ...
    @property
    def output_tokens(self) -> int: ...


Answering = Callable[[str, Sequence[str]], Said]  # model, prompt


async def realtime_session(
    request: web.Request, answering: Answering, count: Callable[[str], int], delay_s: float
) -> web.WebSocketResponse:
    """Serve one session until either side closes it. `count` is how many tokens a text is."""
    socket = web.WebSocketResponse(protocols=("realtime",), max_msg_size=MESSAGE_BYTES_MAX)
    await socket.prepare(request)
    session = _Session(socket, request.query.get("model") or _MODEL_DEFAULT, answering, count, delay_s)
    await session.run()
    return socket


class _Session:
    def __init__(
        self, socket: web.WebSocketResponse, model: str, answering: Answering, count: Callable[[str], int], delay_s: float
    ) -> None:
        self._socket = socket
        self._answering = answering
        self._count = count
        self._delay_s = delay_s
        self._number = 0
        self._prompt: list[str] = []  # of the user, in order; the last one is answered
        self._read_tokens = 0  # of text, the whole conversation
        self._audio_tokens = 0
        self._cached_tokens = 0
        self._uncommitted = 0  # audio bytes
        self._config: Json = {
            "type": "realtime", "object": "realtime.session", "id": "sess_sandbox", "model": model, "instructions": "",
            "output_modalities": ["text"],
            "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24000}, "transcription": None}},
        }  # fmt: skip

    async def run(self) -> None:
        await self._send("session.created", session=self._config)
        async for message in self._socket:
            if message.type is not WSMsgType.TEXT:
                break
            try:
                event = json.loads(message.data)
            except ValueError:
                event = None
            if isinstance(event, dict):
                await self._event(event)
            else:
                await self._refuse("the message is not a JSON object")

    async def _event(self, event: Json) -> None:
        kind = event.get("type")
        if kind == "session.update" and isinstance(event.get("session"), dict):
            changes = {name: value for name, value in event["session"].items() if name not in ("id", "object", "model")}
            self._config = {**self._config, **changes}
            await self._send("session.updated", session=self._config)
        elif kind == "conversation.item.create" and isinstance(event.get("item"), dict):
            await self._item(event["item"])
        elif kind == "input_audio_buffer.append":
            await self._audio(event.get("audio"))
        elif kind == "input_audio_buffer.clear":
            self._uncommitted = 0
            await self._send("input_audio_buffer.cleared")
        elif kind == "input_audio_buffer.commit":
            self._audio_tokens += -(-self._uncommitted // AUDIO_BYTES_PER_TOKEN)
            self._uncommitted = 0
            self._prompt.append("(audio)")
            await self._send("input_audio_buffer.committed", item_id=self._id("item"), previous_item_id=None)
        elif kind == "response.create":
            await self._respond(event.get("response"))
        elif kind != "response.cancel":
            await self._refuse(f"the sandbox does not know the event {str(kind)[:60]!r}")

    async def _audio(self, audio: object) -> None:
        try:
            self._uncommitted += len(base64.b64decode(audio if isinstance(audio, str) else "*", validate=True))
        except (binascii.Error, ValueError):
            await self._refuse("audio must be base64")

    async def _item(self, item: Json) -> None:
        content = item.get("content")
        parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        self._prompt += texts
        self._read_tokens += sum(self._count(text) for text in texts)
        whole = {**item, "id": item.get("id") or self._id("item"), "object": "realtime.item", "status": "completed"}
        await self._send("conversation.item.added", previous_item_id=None, item=whole)
        await self._send("conversation.item.done", previous_item_id=None, item=whole)

    async def _respond(self, asked: object) -> None:
        config = {**self._config, **(asked if isinstance(asked, dict) else {})}
        said = self._answering(str(self._config["model"]), [str(config.get("instructions") or ""), *self._prompt])
        response_id, item_id = self._id("resp"), self._id("item")
        response: Json = {
            "object": "realtime.response", "id": response_id, "status": "in_progress", "status_details": None, "output": [],
            "conversation_id": "conv_sandbox", "output_modalities": ["text"], "max_output_tokens": "inf", "metadata": None,
            "usage": None,
        }  # fmt: skip
        part = {"type": "output_text", "text": said.text}
        item = {"id": item_id, "object": "realtime.item", "type": "message", "status": "completed", "role": "assistant"}
        place = {"response_id": response_id, "item_id": item_id, "output_index": 0, "content_index": 0}
        begun = {**item, "status": "in_progress", "content": []}
        await self._send("response.created", response=response)
        await self._send("response.output_item.added", response_id=response_id, output_index=0, item=begun)
        await self._send("response.content_part.added", **place, part={**part, "text": ""})
        for word in said.words:
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            await self._send("response.output_text.delta", **place, delta=word)
        await self._send("response.output_text.done", **place, text=said.text)
        await self._send("response.content_part.done", **place, part=part)
        finished = {**item, "content": [part]}
        await self._send("response.output_item.done", response_id=response_id, output_index=0, item=finished)
        usage = self._usage(self._count(str(config.get("instructions") or "")), said.output_tokens)
        await self._send("response.done", response={**response, "status": "completed", "output": [finished], "usage": usage})

    def _usage(self, instruction_tokens: int, output_tokens: int) -> Json:
        text = instruction_tokens + self._read_tokens
        read = text + self._audio_tokens
        cached = min(self._cached_tokens, text)  # only text here, so that its details are simple
        self._cached_tokens = text
        self._read_tokens += output_tokens
        return {
            "total_tokens": read + output_tokens,
            "input_tokens": read,
            "output_tokens": output_tokens,
            "input_token_details": {
                "cached_tokens": cached, "text_tokens": text, "audio_tokens": self._audio_tokens, "image_tokens": 0,
                "cached_tokens_details": {"text_tokens": cached, "audio_tokens": 0, "image_tokens": 0},
            },
            "output_token_details": {"text_tokens": output_tokens, "audio_tokens": 0},
        }  # fmt: skip

    def _id(self, prefix: str) -> str:
        self._number += 1
        return f"{prefix}_sandbox{self._number:05d}"

    async def _refuse(self, message: str) -> None:
        error = {"type": "invalid_request_error", "code": "invalid_value", "message": message, "param": None, "event_id": None}
        await self._send("error", error=error)

    async def _send(self, kind: str, **facts: object) -> None:
        await self._socket.send_json({"type": kind, "event_id": self._id("event"), **facts})
