"""A circuit breaker per provider host: after failures in a row calls are refused at once, then one at a time tries.

What counts: no connection, a time-out, a break before the head, a 5xx without a body. A 5xx with a body is the API's own answer
(an overload, say) and says that the host works. A busy pool, a client that left and our own shutdown say nothing.

closed --failures_max in a row--> open --open_s later--> half open: one trial --success--> closed, --failure--> open again
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from lava_proxy.domain.errors import UpstreamError

State = Literal["closed", "half_open", "open"]
Key = tuple[str, int]  # host and port


class ProviderUnavailable(UpstreamError):
    """The breaker is open: nothing was tried, nothing was reserved (503 with Retry-After)."""

    code = "provider_unavailable"
    status = 503

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class _Host:
    provider: str
    failures: int = 0
    open_until: float = 0.0  # 0 = closed
    is_trying: bool = False


class Breakers:
    """All hosts of a worker. A host is only known while it has failures: in good times the hot path asks an empty dict."""

    def __init__(self, failures_max: int, open_s: float) -> None:
        self._failures_max = failures_max
        self._open_s = open_s
        self._hosts: dict[Key, _Host] = {}

    def admit(self, key: Key, now: float) -> bool:
        """Let a call pass; True when it is the one that tries a half-open host (it must be told how it went, or abandoned).

        Raises ProviderUnavailable.
        """
        if not self._hosts:
            return False
        host = self._hosts.get(key)
        if host is None or not host.open_until:
            return False
        if now < host.open_until or host.is_trying:
            wait_s = max(1, ceil(host.open_until - now))
            raise ProviderUnavailable(
                f"{host.provider} has failed {host.failures} times in a row; try again in {wait_s} s.", wait_s
            )
        host.is_trying = True
        return True

    def succeeded(self, key: Key) -> None:
        """The host has answered."""
        if self._hosts:
            self._hosts.pop(key, None)

    def failed(self, key: Key, provider: str, now: float) -> None:
        """The host could not be reached, timed out or failed without a word."""
        if not self._failures_max:
            return
        host = self._hosts.get(key)
        if host is None:
            host = self._hosts[key] = _Host(provider)
        host.failures += 1
        if host.is_trying or (not host.open_until and host.failures >= self._failures_max):
            host.open_until = now + self._open_s
            host.is_trying = False

    def abandoned(self, key: Key) -> None:
        """The trial ended without telling anything: the next call may try."""
        host = self._hosts.get(key)
        if host is not None:
            host.is_trying = False

    def state(self, key: Key, now: float) -> State:
        """For people and tests."""
        host = self._hosts.get(key)
        if host is None or not host.open_until:
            return "closed"
        return "open" if now < host.open_until else "half_open"

    def states(self, now: float) -> dict[str, int]:
        """Provider -> the worst state of its hosts: 1 half open, 2 open. Closed ones are left out."""
        found: dict[str, int] = {}
        for key, host in self._hosts.items():
            level = {"closed": 0, "half_open": 1, "open": 2}[self.state(key, now)]
            if level:
                found[host.provider] = max(found.get(host.provider, 0), level)
        return found
