"""A provider that switches protocols and then lets the test see and send every byte, and a client's end of the same."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any

from websockets.frames import Close, Frame, Opcode

from lava_proxy.wire.websocket_frames import FrameReader, Message
from tests.integration.gateway.fakes import PATIENCE_S, Client, Headers, Response, header, parse_head
from tests.integration.gateway.harness import Gateway

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
REALTIME = "/v1/forward/openai/v1/realtime?model=gpt-realtime"


class Peer:
    """One end of an open socket: raw bytes, and messages for those who want them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received = b""
        self.messages: list[Message] = []
        self._frames = FrameReader(1 << 24)

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def message(self) -> Message:
        """The next message or CLOSE."""
        while not self.messages:
            data = await asyncio.wait_for(self.reader.read(65_536), PATIENCE_S)
            if not data:
                raise EOFError("the socket has ended")
            self.received += data
            self.messages += self._frames.feed(data)
        return self.messages.pop(0)

    async def event(self) -> Any:
        return json.loads((await self.message()).payload)

    async def exactly(self, size: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(size), PATIENCE_S)

    async def ended(self) -> bytes:
        """What still comes until the other side ends."""
        try:
            return await asyncio.wait_for(self.reader.read(), PATIENCE_S)
        except ConnectionError:
            return b""


class Session(Peer):
    """The provider's end."""

    def __init__(self, target: str, headers: Headers, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self.target = target
        self.headers = headers

    def header(self, name: bytes) -> bytes | None:
        return header(self.headers, name)

    def send(self, event: object, **options: Any) -> bytes:
        """One event as one server frame; its bytes."""
        data = frame(event, **options)
        self.write(data)
        return data

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.write(Frame(Opcode.CLOSE, Close(code, reason).serialize()).serialize(mask=False))


class SocketProvider:
    """Listens on loopback; answers each upgrade with 101, or with `answer` if that is set."""

    def __init__(self) -> None:
        self.answer: bytes | None = None
        self.port = 0
        self.sessions: list[Session] = []
        self._waiting: asyncio.Queue[Session] = asyncio.Queue()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for session in self.sessions:
            session.writer.transport.abort()

    async def next(self) -> Session:
        return await asyncio.wait_for(self._waiting.get(), PATIENCE_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, headers = parse_head((await reader.readuntil(b"\r\n\r\n"))[:-4])
        session = Session(first.decode().split(" ")[1], headers, reader, writer)
        self.sessions.append(session)
        if self.answer is not None:
            writer.write(self.answer)
        else:
            key = session.header(b"sec-websocket-key") or b""
            accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
            lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
            lines.append(b"Sec-WebSocket-Accept: " + accept)
            if offered := session.header(b"sec-websocket-protocol"):
                lines.append(b"Sec-WebSocket-Protocol: " + offered.split(b",")[0].strip())
            writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
        self._waiting.put_nowait(session)


def frame(event: object, *, masked: bool = False, opcode: Opcode = Opcode.TEXT, fin: bool = True) -> bytes:
    payload = event if isinstance(event, bytes) else json.dumps(event).encode()
    return Frame(opcode, payload, fin=fin).serialize(mask=masked)


def upgrade(gateway: Gateway, target: str = REALTIME, *headers: str, token: str | None = "") -> bytes:
    """An upgrade's bytes as browsers and libraries send them."""
    lines = ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}")
    extension = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
    return gateway.request(method="GET", target=target, headers=(*lines, extension, *headers), token=token)


async def connect(
    gateway: Gateway, provider: SocketProvider, target: str = REALTIME, *headers: str, token: str | None = ""
) -> tuple[Peer, Session, Response]:
    """(the client's end, the provider's end, the 101)."""
    client: Client = await gateway.client()
    client.send(upgrade(gateway, target, *headers, token=token))
    session = await provider.next()
    head = Response((await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), PATIENCE_S))[:-4])
    assert head.status == 101, head.raw_head
    return Peer(client.reader, client.writer), session, head


def created(model: str = "gpt-realtime-2025-08-28", **members: object) -> dict[str, Any]:
    return {"type": "session.created", "event_id": "e", "session": {"id": "sess_1", "type": "realtime", "model": model, **members}}


def done(number: int, input_tokens: int, output_tokens: int, **members: object) -> dict[str, Any]:
    """A finished response and what it used."""
    usage = {"input_tokens": input_tokens, "output_tokens": output_tokens, "total_tokens": input_tokens + output_tokens, **members}
    response = {"id": f"resp_{number}", "object": "realtime.response", "status": "completed", "output": [], "usage": usage}
    return {"type": "response.done", "event_id": f"e{number}", "response": response}
