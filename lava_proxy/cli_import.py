"""`lava-proxy requests import`: sends a file of usage reports, one JSON object a line, in batches. It may be run again."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
import orjson

from lava_proxy import settings as settings_module
from lava_proxy import tasks
from lava_proxy.domain.errors import CallerError, LavaError

if TYPE_CHECKING:
    import aiohttp  # else only where it is used: every command imports this module

_TRIES_MAX = 10
_DELAY_MAX_S = 5.0
_TIMEOUT_S = 60
_BUSY = frozenset({429, 500, 502, 503, 504})
_STOPPING = frozenset({401, 403})


@dataclass(slots=True)
class _Line:
    """One line of the file: its number, its bytes."""

    number: int
    text: bytes


@dataclass(slots=True)
class Summary:
    """What became of the lines. `failed` stands in the failed file, each with its reason."""

    lines: int = 0
    accepted: int = 0
    failed: int = 0
    retries: int = 0

    def as_dict(self, failed_file: Path | None) -> dict[str, Any]:
        found: dict[str, Any] = {"lines": self.lines, "accepted": self.accepted, "failed": self.failed, "retries": self.retries}
        return found | {"failed_file": str(failed_file) if self.failed else None, "met": not self.failed}


class Importer:
    """Sends batches, some at once; retries what is only busy; hands over what was refused."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        on_done: Callable[[int], None],
        on_failed: Callable[[_Line, dict[str, Any]], None],
        delay_s: float = 0.1,
    ) -> None:
        self._session = session
        self._url = url
        self._on_done = on_done
        self._on_failed = on_failed
        self._delay_s = delay_s
        self._broken: LavaError | None = None
        self.summary = Summary()

    async def run(self, batches: Iterator[list[_Line]], concurrency: int) -> None:
        """Until all batches are answered. Raises LavaError where going on makes no sense: a bad key, a server that is away."""
        running: set[asyncio.Task[None]] = set()
        try:
            for batch in batches:
                running.add(tasks.start("import-batch", self._one(batch)))
                if len(running) >= concurrency:
                    running = await self._some_ended(running)
            while running:
                running = await self._some_ended(running)
        finally:
            await tasks.stop(*running)

    async def _one(self, batch: list[_Line]) -> None:
        try:
            await self._send(batch)
        except LavaError as error:
            self._broken = error

    async def _some_ended(self, running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
        ended, left = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
        if self._broken is not None:
            raise self._broken
        return left

    async def _send(self, batch: list[_Line]) -> None:
        """A batch to its end: each line accepted or failed."""
        from aiohttp import ClientError

        self.summary.lines += len(batch)
        waiting, delay_s = batch, self._delay_s
        for attempt in range(_TRIES_MAX):
            if attempt:
                self.summary.retries += 1
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _DELAY_MAX_S)
            try:
                status, answer = await self._post(waiting)
            except (ClientError, OSError, TimeoutError):
                continue
            if status == 413 and len(waiting) > 1:
                middle = len(waiting) // 2
                self.summary.lines -= len(waiting)
                await self._send(waiting[:middle])
                await self._send(waiting[middle:])
                return
            if status in _STOPPING:
                raise CallerError(f"The server refuses the key: {_reason(status, answer)['message']}")
            if status in _BUSY:
                continue
            waiting = self._take(waiting, status, answer)
            if not waiting:
                return
        raise LavaError(f"{self._url} did not answer {_TRIES_MAX} times. Run the same command again: nothing is charged twice.")

    def _take(self, lines: list[_Line], status: int, answer: Any) -> list[_Line]:
        """Count what is answered; the lines that may be sent again."""
        results = answer.get("results") if status == 200 and isinstance(answer, dict) else None
        if results is None:
            results = [{"status": status, "error": _reason(status, answer)}] * len(lines)
        again = []
        for line, result in zip(lines, results, strict=True):
            if result["status"] in _BUSY:
                again.append(line)
                continue
            if result["status"] == 200:
                self.summary.accepted += 1
            else:
                self.summary.failed += 1
                self._on_failed(line, result["error"])
            self._on_done(len(line.text) + 1)
        return again

    async def _post(self, lines: list[_Line]) -> tuple[int, Any]:
        body = b"\n".join(line.text for line in lines)
        async with self._session.post(self._url, data=body, headers={"Content-Type": "application/x-ndjson"}) as response:
            raw = await response.read()
            try:
                return response.status, orjson.loads(raw)
            except orjson.JSONDecodeError:
                return response.status, None


def _reason(status: int, answer: Any) -> dict[str, Any]:
    error = answer.get("error") if isinstance(answer, dict) else None
    return error if isinstance(error, dict) and "message" in error else {"status": status, "message": f"HTTP {status}"}


def read_batches(source: IO[bytes], size: int) -> Iterator[list[_Line]]:
    """Lines that are not empty, `size` at a time."""
    batch: list[_Line] = []
    for number, raw in enumerate(source, 1):
        text = raw.strip()
        if not text:
            continue
        batch.append(_Line(number, text))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@click.group("requests")
def requests_group() -> None:
    """Requests: usage that is reported after the fact."""


@requests_group.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--batch", type=click.IntRange(1, 1000), default=500, show_default=True, help="Reports a request.")
@click.option("--concurrency", type=click.IntRange(1, 64), default=4, show_default=True, help="Requests at once.")
@click.option("--url", default=None, help="The server [LAVA_PUBLIC_URL or http://127.0.0.1:8080].")
@click.option("--secret-key", default=None, help="The merchant's secret key, aks_... [LAVA_SECRET_KEY]: keeps it out of `ps`.")
@click.option(
    "--failed", "failed_path", type=click.Path(dir_okay=False, path_type=Path), default=None,
    help="Where refused lines go, with their reasons [FILE.failed.ndjson; failed.ndjson for -].",
)  # fmt: skip
def import_requests(
    file: Path, batch: int, concurrency: int, url: str | None, secret_key: str | None, failed_path: Path | None
) -> None:
    """Send reports from FILE (- is stdin): one JSON object a line, as POST /v1/requests takes them.

    Stopped half-way, run it again: a report that was taken is not charged twice. The summary is one JSON object; exit status 1
    when lines were refused.
    """
    environment = settings_module.load().environment
    key = secret_key or environment.get("LAVA_SECRET_KEY", "")
    if not key:
        raise CallerError("Set LAVA_SECRET_KEY (or --secret-key) to the merchant's secret key, aks_...")
    base = (url or environment.get("LAVA_PUBLIC_URL") or "http://127.0.0.1:8080").rstrip("/").removesuffix("/v1")
    is_stdin = str(file) == "-"
    failed_path = failed_path or Path("failed.ndjson" if is_stdin else f"{file}.failed.ndjson")
    with sys.stdin.buffer if is_stdin else file.open("rb") as source:
        length = None if is_stdin else file.stat().st_size
        with click.progressbar(length=length or 0, label="Reports", file=sys.stderr, hidden=length is None) as bar:
            summary = asyncio.run(_import(source, batch, concurrency, f"{base}/v1/requests/batch", key, failed_path, bar.update))
    click.echo(orjson.dumps(summary.as_dict(failed_path)).decode())
    if summary.failed:
        sys.exit(1)


async def _import(
    source: IO[bytes], batch: int, concurrency: int, url: str, key: str, failed_path: Path, on_done: Callable[[int], None]
) -> Summary:
    import aiohttp

    failed: list[IO[bytes]] = []

    def note(line: _Line, error: dict[str, Any]) -> None:
        if not failed:
            failed.append(failed_path.open("wb"))
        report: Any = line.text.decode("utf-8", "replace")
        with suppress(orjson.JSONDecodeError):  # else it stays the text that it is
            report = orjson.loads(line.text)
        failed[0].write(orjson.dumps({"line": line.number, "error": error, "report": report}) + b"\n")

    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout, headers={"Authorization": f"Bearer {key}"}) as session:
            importer = Importer(session, url, on_done=on_done, on_failed=note)
            await importer.run(read_batches(source, batch), concurrency)
            return importer.summary
    finally:
        for file in failed:
            file.close()


COMMANDS = (requests_group,)
