"""What the processes of one installation share: made once by the supervisor or read from the environment, passed on as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from lava_proxy.domain.errors import CallerError


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Where everything is. Carries secrets, so it travels through a pipe, never through arguments or logs."""

    redis_url: str = field(repr=False)
    database_url: str = field(repr=False)
    master_key: str = field(repr=False)
    previous_master_key: str = field(default="", repr=False)  # opens what it has sealed, until that is sealed anew
    control_socket: str
    base_url: str
    overrides: dict[str, str] = field(default_factory=dict)  # provider -> base URL
    dev: bool = False
    clock_file: str | None = None
    first_call: str | None = None  # what the status page of `dev` shows

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> RunConfig:
        return RunConfig(**json.loads(text))


def parse_overrides(values: tuple[str, ...]) -> dict[str, str]:
    """`NAME=BASE_URL` options. Raises CallerError."""
    found: dict[str, str] = {}
    for value in values:
        name, equals, base = value.partition("=")
        if not equals or not base.startswith(("http://", "https://")):
            raise CallerError(f"--provider takes NAME=http(s)://HOST[:PORT][/PATH], not {value!r}.", code="bad_provider_option")
        found[name] = base
    return found


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
