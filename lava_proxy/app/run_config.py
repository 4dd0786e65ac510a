"""What the processes of one installation share: made once by the supervisor or read from the environment, passed on as JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from lava_proxy.domain.errors import CallerError


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Where everything is. Carries secrets, so it travels through a pipe, never through arguments or logs."""

    redis_url: str = field(repr=False)
    database_url: str = field(repr=False)
    master_key: str = field(repr=False)
    previous_master_key: str = field(default="", repr=False)  # opens what it has sealed, until that is sealed anew
    control_socket: str
    control_url: str = ""  # where gateways find a control process on another host; "" = by the socket
    control_listen: tuple[str, int] | None = None  # where control listens besides the socket
    base_url: str
    overrides: dict[str, str] = field(default_factory=dict)  # provider -> base URL
    dev: bool = False
    sandboxed: tuple[str, ...] = ()  # the providers for which `dev` answers itself
    clock_file: str | None = None
    first_call: str | None = None  # what the status page of `dev` shows
    program: str = "lava-proxy"  # how people call this program here: `./lava` from a clone
    data_dir: str = ""  # where `dev` keeps its data, when a command has to be told

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def command(self, arguments: str) -> str:
        """A command of this program for people to paste."""
        return f"{self.program} {arguments}" + (f" --data-dir {shlex.quote(self.data_dir)}" if self.data_dir else "")

    @staticmethod
    def from_json(text: str) -> RunConfig:
        values = json.loads(text)
        if values.get("control_listen"):
            values["control_listen"] = tuple(values["control_listen"])
        values["sandboxed"] = tuple(values.get("sandboxed", ()))
        return RunConfig(**values)


def parse_overrides(values: tuple[str, ...]) -> dict[str, str]:
    """`NAME=BASE_URL` options. Raises CallerError."""
    found: dict[str, str] = {}
    for value in values:
        name, equals, base = value.partition("=")
        if not equals or not base.startswith(("http://", "https://")):
            raise CallerError(f"--provider takes NAME=http(s)://HOST[:PORT][/PATH], not {value!r}.", code="bad_provider_option")
        found[name] = base
    return found


def control_address(url: str) -> tuple[str, int, bool]:
    """Host, port and whether TLS, of a LAVA_CONTROL_URL. Raises CallerError."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        parts, port = urlsplit(""), 0
    is_bare = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_bare:
        raise CallerError(f"LAVA_CONTROL_URL takes http(s)://HOST[:PORT], not {url!r}.", code="bad_control_url")
    return parts.hostname, port, parts.scheme == "https"


def business_clock(config: RunConfig) -> Callable[[], datetime]:
    """Business time: the system's, or in `dev` what the clock file says (one ISO 8601 instant), for tests of cycles."""
    if config.clock_file is None:
        return lambda: datetime.now(UTC)
    if not config.dev:
        raise CallerError("--clock-file is for `dev` only.", code="clock_file_refused")
    path = Path(config.clock_file)

    def now() -> datetime:
        try:
            return datetime.fromisoformat(path.read_text().strip()).astimezone(UTC)
        except FileNotFoundError:
            return datetime.now(UTC)

    return now
