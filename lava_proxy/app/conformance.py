"""`lava-proxy conformance DIR`: replays recorded provider responses through the real daemon and checks bytes and usage.

Each recording is served by a replay upstream on loopback, its body split at random places; the daemon is started on a scratch data
folder with every recorded provider overridden to that upstream. Met: the client's bytes are identical (but for the usage chunk that
we asked for) and the stored row's `usage` equals `usage_expected`; where nothing is expected, identical bytes and a provenance that
claims nothing. File format: a JSON object with provider, api, stream, request, response, usage_expected.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from lava_proxy import settings as settings_module
from lava_proxy.domain.errors import CallerError
from lava_proxy.providers.registry import Registry, load_registry

_HOP_HEADERS = {"connection", "transfer-encoding", "content-length", "keep-alive", "host", "authorization", "x-api-key", "api-key"}
_ROW_WAIT_S = 10.0
_START_TIMEOUT_S = 60.0
_NOTHING_CLAIMED = ("none", "estimated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One file of the folder."""

    name: str
    provider: str
    api: str
    stream: bool
    method: str
    url: str
    request_headers: dict[str, str]
    request_body: bytes
    status: int
    response_headers: dict[str, str]
    response_body: bytes
    usage_expected: Any

    @staticmethod
    def read(path: Path) -> Recording:
        """Raises KeyError or ValueError when the file is not a recording."""
        content = json.loads(path.read_text(), parse_float=Decimal)
        request, response = content["request"], content["response"]
        body = request.get("body")
        raw = base64.b64decode(request["body_base64"]) if request.get("body_base64") else (body or "").encode()
        return Recording(
            name=path.stem,
            provider=content["provider"],
            api=content["api"],
            stream=bool(content["stream"]),
            method=request["method"],
            url=request["url"],
            request_headers=request.get("headers", {}),
            request_body=raw,
            status=response["status"],
            response_headers=response["headers"],
            response_body=base64.b64decode(response["body_base64"]),
            usage_expected=content["usage_expected"],
        )


@dataclass(frozen=True, slots=True)
class Result:
    """`state`: met, missed or unknown; `why` for a person."""

    recording: Recording
    state: str
    why: str = ""


def run(folder: Path, *, seed: int, as_json: bool) -> int:
    """Replay a folder; 0 when nothing was missed."""
    recordings = []
    for path in sorted(folder.glob("*.json")):
        try:
            recordings.append(Recording.read(path))
        except (KeyError, ValueError, TypeError) as error:
            raise CallerError(f"{path.name} is not a recording ({type(error).__name__}: {error}).") from error
    if not recordings:
        print(f"lava-proxy: no recordings (*.json) in {folder}", file=sys.stderr)
        return 2
    results = asyncio.run(_replay(recordings, seed))
    _print_table(results)
    counts = Counter(result.state for result in results)
    by: dict[str, dict[str, int]] = defaultdict(lambda: {"met": 0, "missed": 0, "unknown": 0})
    for result in results:
        by[f"{result.recording.provider}/{result.recording.api}"][result.state] += 1
    summary = {
        "met": counts["missed"] == 0,
        "total": len(results),
        "met_count": counts["met"],
        "missed": [result.recording.name for result in results if result.state == "missed"],
        "unknown": [result.recording.name for result in results if result.state == "unknown"],
        "by": by,
    }
    if as_json:
        print(json.dumps(summary))
    else:
        print(f"{counts['met']} met, {counts['missed']} missed, {counts['unknown']} unknown of {len(results)}")
    return 1 if counts["missed"] else 0


def _print_table(results: list[Result]) -> None:
    rows: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for result in results:
        rows[result.recording.provider, result.recording.api][result.state] += 1
    print(f"{'provider':16} {'api':30} {'met':>5} {'missed':>7} {'unknown':>8}")
    for (provider, api), counts in sorted(rows.items()):
        print(f"{provider:16} {api:30} {counts['met']:5} {counts['missed']:7} {counts['unknown']:8}")
    for result in results:
        if result.state != "met":
            print(f"  {result.state}: {result.recording.name}: {result.why}")


async def _replay(recordings: list[Recording], seed: int) -> list[Result]:
    upstream = ReplayUpstream(seed)
    registry = load_registry(settings_module.load().providers_table)
    known = {r.name: registry.by_name(r.provider) or registry.by_host(urlsplit(r.url).hostname or "") for r in recordings}
    async with upstream.serving() as port:
        names = {provider.name for provider in known.values() if provider is not None}
        async with _daemon([f"{name}=http://127.0.0.1:{port}" for name in sorted(names)]) as daemon:
            results = []
            timeout = aiohttp.ClientTimeout(total=60)
            async with aiohttp.ClientSession(auto_decompress=False, timeout=timeout) as session:
                for recording in recordings:
                    if known[recording.name] is None:
                        results.append(Result(recording, "unknown", "no stanza knows this provider"))
                        continue
                    results.append(await _one(session, daemon, upstream, recording, registry))
            return results


async def _one(
    session: aiohttp.ClientSession, daemon: dict[str, Any], upstream: ReplayUpstream, recording: Recording, registry: Registry
) -> Result:
    upstream.recording = recording
    address = urlsplit(recording.url)
    if registry.by_host(address.hostname or "") is None:
        # A recording of a local server: its host is in no stanza, so the plain base of its provider is used.
        url = f"{daemon['base_url']}forward/{recording.provider}{address.path}" + (f"?{address.query}" if address.query else "")
    else:
        url = f"{daemon['base_url']}forward/{recording.url.replace('http://', 'https://', 1)}"
    headers = {name: value for name, value in recording.request_headers.items() if name.lower() not in _HOP_HEADERS}
    headers = {name: value for name, value in headers.items() if name.lower() != "x-goog-api-key"}
    headers["Authorization"] = f"Bearer {daemon['forward_token']}"
    from yarl import URL

    async with session.request(
        recording.method, URL(_without_key(url), encoded=True), data=recording.request_body or None, headers=headers
    ) as response:
        body = await response.read()
        request_id = response.headers.get("x-lava-request-id", "")
        status = response.status
    if status != recording.status:
        return Result(recording, "missed", f"status {status}, recorded {recording.status}: {body[:200]!r}")
    if body != recording.response_body and not _is_without_usage_chunk(body, recording.response_body):
        return Result(recording, "missed", "the client's bytes differ from the provider's")
    row = await _row(session, daemon, request_id)
    if row is None:
        return Result(recording, "missed", "no row")
    if recording.usage_expected is None:
        if row["provenance"] not in _NOTHING_CLAIMED:
            return Result(recording, "missed", f"nothing to know, yet provenance {row['provenance']}")
        return Result(recording, "met")
    if row["usage"] != recording.usage_expected:
        return Result(recording, "missed", f"usage {row['usage']} expected {recording.usage_expected}")
    return Result(recording, "met")


def _without_key(url: str) -> str:
    """Recorded query keys are placeholders; ours is in a header."""
    head, _, query = url.partition("?")
    kept = [pair for pair in query.split("&") if pair and not pair.startswith("key=")]
    return head + ("?" + "&".join(kept) if kept else "")


def _is_without_usage_chunk(body: bytes, recorded: bytes) -> bool:
    """Is `body` the recording less exactly one usage chunk? Only where the client had not asked for it."""
    events = recorded.split(b"\n\n")
    for index, event in enumerate(events):
        if b'"usage"' in event and b'"choices":[]' in event.replace(b" ", b""):
            if b"\n\n".join(events[:index] + events[index + 1 :]) == body:
                return True
    return False


async def _row(session: aiohttp.ClientSession, daemon: dict[str, Any], request_id: str) -> dict[str, Any] | None:
    deadline = asyncio.get_running_loop().time() + _ROW_WAIT_S
    headers = {"Authorization": f"Bearer {daemon['secret_key']}", "Accept-Encoding": "identity"}
    while asyncio.get_running_loop().time() < deadline:
        async with session.get(f"{daemon['base_url']}requests/{request_id}", headers=headers) as response:
            if response.status == 200:
                found: dict[str, Any] = json.loads(await response.read(), parse_float=Decimal)
                return found
        await asyncio.sleep(0.05)
    return None


class ReplayUpstream:
    """Answers every request with the present recording, its body in random pieces."""

    def __init__(self, seed: int) -> None:
        self.recording: Recording | None = None
        self._random = random.Random(seed)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """The port while serving."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await _read_body(head, reader)
                await self._answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        recording = self.recording
        assert recording is not None
        lines = [f"HTTP/1.1 {recording.status} Recorded"]
        lines += [f"{name}: {value}" for name, value in recording.response_headers.items() if name.lower() not in _HOP_HEADERS]
        lines.append("transfer-encoding: chunked")
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        for piece in self._pieces(recording.response_body):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            if self._random.random() < 0.3:
                await asyncio.sleep(0)  # let a piece travel alone now and then
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _pieces(self, body: bytes) -> list[bytes]:
        cuts = sorted({0, len(body), *(self._random.randrange(len(body) + 1) for _ in range(min(64, 2 + len(body) // 50)))})
        return [body[a:b] for a, b in pairwise(cuts)]


async def _read_body(head: bytes, reader: asyncio.StreamReader) -> None:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            await reader.readexactly(int(line.split(b":")[1]))


@contextlib.asynccontextmanager
async def _daemon(overrides: list[str]) -> AsyncIterator[dict[str, Any]]:
    """`lava-proxy dev` on a scratch folder with these overrides; what its --json line says."""
    with tempfile.TemporaryDirectory(prefix="lava-conformance-") as folder:
        command = [sys.executable, "-m", "lava_proxy", "dev", "--json", "--port", "0", "--workers", "1", "--data-dir", folder]
        for override in overrides:
            command += ["--provider", override]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                line = await process.stdout.readline()
            if not line:
                raise RuntimeError("the daemon did not start; run `lava-proxy dev` to see why")
            yield json.loads(line)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()
