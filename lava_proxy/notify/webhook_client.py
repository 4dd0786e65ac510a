"""Posts one signed webhook and says what became of it.

A receiver's address is a merchant's input: it is resolved here, must be public, and what was checked is what is connected to, so a
name that changes its address between the two gains nothing. Redirects are not followed, and no proxy, cookie or credential is used.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable
from datetime import datetime

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from lava_proxy.domain.webhooks import Attempt, Outgoing
from lava_proxy.wire.addresses import is_literal, is_metadata, is_public
from lava_proxy.wire.signature import signature_headers
from lava_proxy.wire.webhook_body import webhook_body

URL_CHARS_MAX = 2048
_EXCERPT_BYTES = 1024
_AUTHORITY_END = re.compile("[/?#]")
_NUMBER = re.compile("[0-9]+|0[xX][0-9a-fA-F]*")  # as in the WHATWG's URL standard, "ends in a number"
_ERROR_CHARS_MAX = 300


class AddressRefused(OSError):
    """A receiver's name leads to an address that is not public."""


def url_problem(url: str, *, allow_private: bool) -> str | None:
    """What is wrong with a receiver's address, as the rest of a sentence; None when it is accepted."""
    if len(url) > URL_CHARS_MAX:
        return f"longer than {URL_CHARS_MAX} characters"
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return "not a URL of printable ASCII characters"
    try:
        parts = URL(url)  # the parser that also connects: two parsers could read two hosts
        port = parts.port
    except ValueError:
        return "not a URL"
    if parts.scheme not in (("https", "http") if allow_private else ("https",)) or not parts.host:
        return "not an http or https URL with a host" if allow_private else "not an https URL with a host"
    authority = _AUTHORITY_END.split(url.partition("://")[2], 1)[0]
    if "@" in authority or "%" in authority:
        return "a URL with user information or escapes in its host; a receiver knows us by the signature"
    if parts.raw_fragment:
        return "a URL with a fragment"
    if port == 0:
        return "a URL with port 0"
    if is_literal(parts.host):
        if is_metadata(parts.host):
            return "at a link-local address, where clouds keep their machines' secrets"
        if not allow_private and not is_public(parts.host):
            return "at an address that is not public"
    elif _NUMBER.fullmatch(parts.host.rstrip(".").rpartition(".")[2]):
        # Resolvers take such a host for an IPv4 address in another notation, and the connector does not ask ours for it.
        return "at a host that ends in a number; an IPv4 address is written as four decimal numbers"
    return None


class WebhookClient:
    """`open` before use and `close` after; one for a process."""

    def __init__(
        self,
        *,
        timeout_s: int,
        connections_max: int,
        allow_private: bool,
        clock: Callable[[], datetime],
    ) -> None:
        """`clock` is the time that is signed."""
        self.allow_private = allow_private
        self.timeout_s = timeout_s
        self._connections_max = connections_max
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        connector = aiohttp.TCPConnector(
            limit=self._connections_max, resolver=_Resolver(self.allow_private), use_dns_cache=False, force_close=True
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self.timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, outgoing: Outgoing) -> Attempt:
        """One try. Never raises for what a receiver does; a status of 200 to 299 is success, whatever its body does then."""
        assert self._session is not None, "open() comes first"
        problem = url_problem(outgoing.url, allow_private=self.allow_private)
        if problem is not None:  # the rules may have become stricter since it was stored
            return Attempt(status=None, error=f"The URL is {problem}.", excerpt="", duration_ms=0)
        body = webhook_body(outgoing.event, outgoing.vocabulary, outgoing.connection_secret)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "lava-proxy-webhooks/1",
            "Accept-Encoding": "identity",
            **signature_headers(outgoing.secrets, outgoing.event.event_id, int(self._clock().timestamp()), body),
        }
        started_ns = time.monotonic_ns()
        status, error, excerpt = await self._post(outgoing.url, headers, body)
        duration_ms = (time.monotonic_ns() - started_ns) // 1_000_000
        return Attempt(status=status, error=error, excerpt=excerpt, duration_ms=duration_ms)

    async def _post(self, url: str, headers: dict[str, str], body: bytes) -> tuple[int | None, str | None, str]:
        assert self._session is not None
        status: int | None = None
        excerpt = b""
        try:
            async with self._session.post(URL(url), data=body, headers=headers, allow_redirects=False) as answer:
                status = answer.status
                while len(excerpt) < _EXCERPT_BYTES and (part := await answer.content.read(_EXCERPT_BYTES - len(excerpt))):
                    excerpt += part
        except TimeoutError:
            if status is None:
                return None, f"No answer within {self.timeout_s} s.", ""
        except aiohttp.ClientConnectorError as error:
            return None, _sentence(error.os_error), ""
        except (aiohttp.ClientError, OSError, ValueError, UnicodeError) as error:
            if status is None:
                return None, _sentence(error), ""
        text = excerpt.decode("utf-8", "replace").replace("\0", "\ufffd")
        return status, None if 200 <= status < 300 else f"The receiver answered {status}.", text


def _sentence(error: Exception) -> str:
    if isinstance(error, AddressRefused):
        return str(error)
    return f"{type(error).__name__}: {error}".replace("\0", "")[:_ERROR_CHARS_MAX]


class _Resolver(AbstractResolver):
    """The system's resolver with the address guard. Address literals do not come here; `url_problem` looks at those."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        addresses = [(str(entry[4][0]), entry[0], entry[2]) for entry in found]
        if any(is_metadata(address) for address, _, _ in addresses):
            raise AddressRefused(f"{host} resolves to a link-local address, where clouds keep their machines' secrets.")
        if not self._allow_private and not all(is_public(address) for address, _, _ in addresses):
            raise AddressRefused(f"{host} resolves to an address that is not public.")
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=family_, proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address, family_, proto in addresses
        ]  # fmt: skip

    async def close(self) -> None:
        pass
