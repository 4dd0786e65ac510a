"""The protocol between the gateway and a provider family: stanza in, call and meter out. Pure: bytes and values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lava_proxy.domain.usage import Reading, Usage

AuthStyle = Literal["bearer", "x-api-key", "x-goog-api-key", "api-key", "xi-api-key", "none"]
DisconnectPolicy = Literal["drain", "estimate", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One stanza of config/providers.toml: a host, how to speak to it and how it bills.

    `hosts` are exact host names or patterns with `*` for variable labels (`*.openai.azure.com`). `base` is the URL that a
    plain SDK base (`/v1/forward/<alias>/...`) is joined to. `override` replaces scheme, host and port (and prefixes its
    path) of every call to this provider: how people attach vLLM, Ollama or a test server.
    """

    name: str
    family: str
    hosts: tuple[str, ...]
    base: str
    aliases: tuple[str, ...] = ()
    models: tuple[str, ...] = ()  # names (with `*`) that model routes send here
    native_paths: tuple[str, ...] = ()  # of an alias' calls: these (or below these, with a final /) are at the host's root
    auth: AuthStyle = "bearer"
    key_env: tuple[str, ...] = ()
    include_usage: bool = False  # may stream_options.include_usage be spliced in
    disconnect: DisconnectPolicy = "estimate"
    price_id: str | None = None  # provider id in the price source; None: same as name
    output_factor_percent: int = 100  # estimated output tokens: text bytes / 4 times this
    ttfb_timeout_s: int = 600
    idle_timeout_s: int = 300
    override: str | None = None


class Meter(Protocol):
    """Reads a copy of one response body. Never raises on strange bytes; constant memory."""

    def feed(self, data: bytes) -> None:
        """Body bytes after transfer decoding, before content decoding, in order, in any split."""

    def reading(self) -> Reading:
        """What is known so far; may be called at any time, also after a break."""


class Relay(Protocol):
    """Filters the one chunk that we asked for and the client did not. Only used when `Call.spliced`."""

    def feed(self, data: bytes) -> bytes:
        """The bytes that may go to the client now."""

    def finish(self) -> bytes:
        """What was held back when the body ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What one request asks for, read from its head and body."""

    api: str  # chat, completions, responses, embeddings, messages, generateContent, streamGenerateContent, other ...
    model: str | None
    stream: bool
    body: bytes  # what goes upstream: the client's bytes, or with stream_options.include_usage spliced in
    spliced: bool = False
    billable: bool = True  # False: free endpoints (models, moderations, count_tokens ...)
    ceiling: Usage = field(default_factory=Usage)  # the most it can use, for the hold
    asked: Usage = field(default_factory=Usage)  # what the request itself counts, taken where the response says nothing
    service_tier: str | None = None  # as asked for; the response says which one it was given
    facts: tuple[tuple[str, str], ...] = ()  # what else the price depends on, as asked for: (("size", "1024x1792"),)
    deferred: bool = False  # starts or fetches a job whose usage is seen when it is fetched: leaving does not stop its bill
    open_ended: bool = False  # a stream of tokens without a limit of its own: it can outgrow its ceiling


class Family(Protocol):
    """One provider family: how requests are read and responses metered."""

    def inspect(self, provider: Provider, method: str, path: str, query: str, content_type: str, body: bytes) -> Call:
        """Read a request. Raises CallerError (400) when the body cannot be understood where it must be (no JSON, no model)."""

    def meter(
        self,
        provider: Provider,
        call: Call,
        status: int,
        content_type: str,
        content_encoding: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> Meter:
        """A fresh meter for the response of this call.

        `headers` are all of the response's, names in any case: some providers report usage nowhere else.
        """

    def relay(self, call: Call) -> Relay | None:
        """The filter for a spliced call; None when bytes pass untouched."""
