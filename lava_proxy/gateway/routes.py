"""Gateway URLs to targets: which provider, which upstream URL. Every accepted spelling is in `resolve`'s docstring.

The spellings come from what real client libraries send (recorded against an echo server). Nothing is collapsed or
re-encoded: the path and query that reach the provider are the bytes the client wrote, without our own parameters.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Literal, Protocol
from urllib.parse import unquote

from lava_proxy.domain.errors import CallerError
from lava_proxy.domain.limits import RequestShape
from lava_proxy.providers.base import Provider
from lava_proxy.wire import json_scan
from lava_proxy.wire.plain_path import has_dot_segment, plain_path

Form = Literal["u", "path", "alias"]

FORWARD = "/v1/forward"
TARGET_BYTES_MAX = 16_384
DEFAULT_PORTS = {"https": 443, "http": 80}
OWN_PARAMETERS = ("u", "metadata", "key")

MODEL_ROUTES: dict[str, RequestShape] = {
    "/v1/chat/completions": "openai",
    "/v1/completions": "openai",
    "/v1/responses": "openai",
    "/v1/embeddings": "openai",
    "/v1/messages": "anthropic",
    "/v1/messages/count_tokens": "anthropic",
}
"""Routes that choose the provider by the body's model, and whose vocabulary they speak."""

# Whose base speaks OpenAI's API.
_OPENAI_FAMILIES = frozenset({"openai", "cohere", "ollama"})

_MODEL_CHARS_MAX = 256
_MODEL_MEMBERS_MAX = 16  # a body with more members of this name in its depths is written anew
_MODEL_MEMBER = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')
_SCHEME = re.compile(r"(https?):/{1,2}(?=[^/])", re.IGNORECASE)
_ENCODED_SCHEME = re.compile(r"https?%3a", re.IGNORECASE)
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\U0010ffff\\]")
_VERSION = re.compile(r"v\d+(?:alpha|beta)?\d*")
# openai-python 3 and newer join a base of `...?u=https://host/v1` and `chat/completions` without a slash between them.
_API_WORDS = (
    "chat|completions|responses|embeddings|models|messages|images|audio|moderations|files|batches|uploads|"
    "fine_tuning|vector_stores|assistants|threads|containers|conversations|videos|realtime|rerank|ocr"
)
_MANGLED_PATH = re.compile(rf"(/(?:v\d+(?:alpha|beta)?\d*|openai))(?=(?:{_API_WORDS})(?:/|$))")
_MANGLED_HOST = re.compile(r"(.+?\.[a-z]{2,})(v\d+(?:alpha|beta)?\d*)", re.IGNORECASE)
_OPENAI_APIS = ("chat", "completions", "embeddings", "responses")
# What hands out a provider's own short-lived credential or a direct media channel: its holder would call past the meter.
_BYPASS = re.compile(
    r"/realtime/(?:[a-z_]+/)?(?:client_secrets|sessions|transcription_sessions|calls)(?:/|$)|/realtimeapi/sessions(?:/|$)"
    r"|/auth_tokens(?:/|$)|/single-use-token(?:/|$)|/get-signed-url$|/auth/grant$"
)
_IP_LABEL = re.compile(r"(?:\d+|0x[0-9a-f]*)", re.IGNORECASE)
_PORT = re.compile(r":\d+$")
_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


class Registry(Protocol):
    """Whoever knows the providers."""

    def by_name(self, name: str) -> Provider | None:
        """The provider of that name or alias."""

    def by_host(self, host: str) -> Provider | None:
        """The provider a lower-case host name belongs to."""

    def by_model(self, model: str) -> tuple[Provider, str] | None:
        """Whose model this is, and its name there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a call goes. `scheme`, `host`, `port` are to be connected; `path` and `query` are the upstream's.

    `url` is what the caller asked for, as the request's row shows it: without our parameters and without an override.
    """

    provider: Provider
    form: Form
    scheme: str
    host: str
    port: int
    path: str
    query: str = ""
    url: str
    credential_from_query: str | None = field(default=None, repr=False)
    metadata_from_query: str | None = None

    @property
    def request_target(self) -> str:
        """The origin-form request target for the upstream's request line."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def host_header(self) -> str:
        """The upstream's Host: with the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def resolve(method: str, raw_target: bytes, registry: Registry) -> Target | None:
    """The target of a request line, or None when the path is not the gateway's.

    Accepted, P being a provider's name or alias:
    `/v1/forward?u=URL`, raw or percent-encoded, also with a path before the query (appended where URL has none, else
    ignored); `/v1/forward/URL` with `https://`, a collapsed `https:/` or no scheme; `/v1/forward/P/...`, joined to P's
    base so that a plain SDK base works with or without its version segment.

    Raises CallerError: 400 `forward_endpoint_not_supported` for a URL that is not a known provider's, 501
    `not_implemented` for routes that translate.
    """
    path, _, query = raw_target.partition(b"?")
    if path[:1] != b"/":  # absolute-form, as clients of an HTTP proxy send it
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    if not path.startswith(b"/v1"):
        return None
    if not _is_forward(path):
        if path.startswith(b"/v1/rewrite/"):
            raise CallerError(
                f"/v1/rewrite/ is not built yet; call the provider in its own format through {FORWARD}/<provider>/...",
                code="not_implemented",
                status=501,
            )
        return None
    if len(raw_target) > TARGET_BYTES_MAX:
        raise _not_supported(f"The URL is longer than {TARGET_BYTES_MAX} bytes.")
    rest = path.decode("latin-1").partition("forward")[2]
    text = query.decode("latin-1").partition("#")[0]
    return _Resolver(registry).target(rest, text)


def _is_forward(path: bytes) -> bool:
    # `/v1forward` is what the vendor's SDK builds when its base URL lacks the trailing slash.
    for prefix in (b"/v1/forward", b"/v1forward"):
        if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in (b"", b"/"):
            return True
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRoute:
    """A request whose provider is known only by its body."""

    path: str
    query: bytes
    shape: RequestShape

    def choose(self, body: bytes, registry: Registry) -> tuple[bytes, bytes]:
        """(the request target of the chosen provider's own route, the body for it).

        `provider/model` names a provider; the body then goes on with the model alone. Raises CallerError: 400 for a body
        without a model, a model nobody here has, or one of a provider that speaks another API, with the right route.
        """
        document = json_scan.loads(body)
        model = document.get("model") if isinstance(document, dict) else None
        if not isinstance(document, dict):
            raise CallerError(f"The body of {self.path} must be a JSON object.", code="invalid_request_body")
        if not isinstance(model, str) or not 0 < len(model) <= _MODEL_CHARS_MAX:
            raise CallerError(
                f'{self.path} chooses the provider by "model": a string of 1 to {_MODEL_CHARS_MAX} characters.',
                code="model_required",
            )
        found = registry.by_model(model)
        if found is None:
            raise CallerError(
                f"No provider here is known for the model {model[:100]!r}: write <provider>/<model>, such as groq/{model[:60]}, "
                f"or call {FORWARD}/<provider>{self.path}.",
                code="forward_model_invalid",
            )
        provider, name = found
        self._check_family(provider, name)
        target = f"{FORWARD}/{provider.name}{self.path}".encode()
        return target + (b"?" + self.query if self.query else b""), body if name == model else with_model(body, document, name)

    def _check_family(self, provider: Provider, model: str) -> None:
        if (provider.family == "anthropic") if self.shape == "anthropic" else (provider.family in _OPENAI_FAMILIES):
            return
        right = {
            "anthropic": "POST /v1/messages",
            "google": f"POST {FORWARD}/{provider.name}/v1beta/models/{model[:100]}:generateContent",
        }.get(provider.family, "POST /v1/chat/completions" if provider.family in _OPENAI_FAMILIES else "")
        raise CallerError(
            f"The model {model[:100]!r} of {provider.name} does not speak the API of {self.path}: "
            f"use {right or f'{FORWARD}/{provider.name}/...'}.",
            code="forward_model_not_supported",
        )


def model_route(method: str, raw_target: bytes) -> ModelRoute | None:
    """The model route of a request line, or None for other paths. Raises CallerError for what model routes do not have."""
    path, _, query = raw_target.partition(b"?")
    if path[:1] != b"/":
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    text = path.decode("latin-1").rstrip("/")
    shape = MODEL_ROUTES.get(text)
    if shape is None:
        if any(text.startswith(known + "/") for known in MODEL_ROUTES):
            raise _not_supported(f"{text[:60]} names no model; call the provider through {FORWARD}/<provider>{text[:60]}.")
        return None
    if len(raw_target) > TARGET_BYTES_MAX:
        raise _not_supported(f"The URL is longer than {TARGET_BYTES_MAX} bytes.")
    if method != "POST":
        raise CallerError(f"{method[:20]} is not accepted at {text}; accepted: POST.", code="method_not_allowed", status=405)
    return ModelRoute(path=text, query=query, shape=shape)


def with_model(body: bytes, document: dict[str, Any], model: str) -> bytes:
    """The body with another model, all its other bytes as they were (where the member can be told from its like)."""
    wanted = {**document, "model": model}
    name = json.dumps(model).encode()
    for match in islice(_MODEL_MEMBER.finditer(body), _MODEL_MEMBERS_MAX):
        changed = body[: match.start(1)] + name + body[match.end(1) :]
        if json_scan.loads(changed) == wanted:
            return changed
    return json.dumps(wanted, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _not_supported(message: str) -> CallerError:
    return CallerError(message, code="forward_endpoint_not_supported")


class _Resolver:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def target(self, rest: str, query: str) -> Target:
        params = query.split("&") if query else []
        for index, param in enumerate(params):
            if param.startswith("u="):
                return self._from_u(rest, param[2:], params[:index] + params[index + 1 :])
            before, mark, url = param.partition("?u=")
            if mark:  # a client appended `?alt=sse` to a path and then our whole query to that
                return self._from_u(rest, url, [*params[:index], before, *params[index + 1 :]])
        rest = rest[1:]
        if not rest:
            raise _not_supported(f"Name the provider's URL: {FORWARD}?u=https://... or {FORWARD}/<provider>/...")
        if _ENCODED_SCHEME.match(rest):
            rest = unquote(rest)
        first = rest.partition("/")[0]
        if not _SCHEME.match(rest) and (provider := self._registry.by_name(first.lower())) is not None:
            if "." not in first or self._registry.by_host(first.lower()) is None:
                base = _alias_base(provider)
                path = rest[len(first) :]
                if not _is_native(provider, path):
                    path = _join(base, path)
                return self._build("alias", provider, base, path, params)
        return self._from_url("path", rest, "", params)

    def _from_u(self, extra_path: str, value: str, params: list[str]) -> Target:
        # Written raw, the URL is taken as it is; `:` or `/` encoded in its head tell that all of it is encoded.
        if not _SCHEME.match(value):
            head = value.partition("/")[0]
            if _ENCODED_SCHEME.match(value) or "%2f" in head.lower():
                value = unquote(value)
        return self._from_url("u", value, extra_path, params)

    def _from_url(self, form: Form, url: str, extra_path: str, params: list[str]) -> Target:
        url, _, own_query = url.partition("#")[0].partition("?")
        if own_query:
            params = [*own_query.split("&"), *params]
        _refuse_strange(url)
        scheme_match = _SCHEME.match(url)
        scheme = scheme_match.group(1).lower() if scheme_match else "https"
        if scheme_match is None and "://" in url and not url.lower().startswith("http"):
            raise _not_supported(f"Only https URLs are forwarded, not {url.partition('://')[0][:20]}.")
        authority, slash, path = url[scheme_match.end() if scheme_match else 0 :].partition("/")
        path = slash + path
        host, port = _split_authority(authority)
        provider = self._registry.by_host(host)
        if provider is None and (mangled := _MANGLED_HOST.fullmatch(host)) is not None:
            # The same lost slash when the base had no path: `https://api.anthropic.comv1/messages`.
            provider = self._registry.by_host(mangled.group(1))
            if provider is not None:
                host, path = mangled.group(1), f"/{mangled.group(2)}{path}"
        if provider is None:
            raise _not_supported(f"No provider is configured for the host {host[:100]!r}.")
        if form == "u":
            path = extra_path if path in ("", "/") and extra_path not in ("", "/") else _MANGLED_PATH.sub(r"\1/", path, 1)
        _refuse_endpoint(provider, scheme, host, port)
        base = f"{scheme}://{host}" + (f":{port}" if port not in (None, DEFAULT_PORTS[scheme]) else "")
        return self._build(form, provider, base, path or "/", params)

    def _build(self, form: Form, provider: Provider, base: str, path: str, params: list[str]) -> Target:
        query, credential, metadata = _own_parameters(params)
        _refuse_strange(path)
        _refuse_strange(query)
        if has_dot_segment(path):
            raise _not_supported("A path with . or .. segments is not forwarded.")
        if _BYPASS.search(plain_path(path).lower()):
            raise _not_supported(
                "Credentials and channels that go to the provider directly are not handed out, because nothing would meter them; "
                f"open a WebSocket here instead, at {FORWARD}/<provider>/v1/realtime."
            )
        scheme, host, port, _ = _split_base(base)
        url = f"{scheme}://{host}" + (f":{port}" if port != DEFAULT_PORTS[scheme] else "") + path
        if provider.override is not None:
            scheme, host, port, prefix = _split_base(provider.override)
            path = prefix + path
        return Target(
            provider=provider,
            form=form,
            scheme=scheme,
            host=host,
            port=port,
            path=path,
            query=query,
            url=f"{url}?{query}" if query else url,
            credential_from_query=credential,
            metadata_from_query=metadata,
        )


def _own_parameters(params: list[str]) -> tuple[str, str | None, str | None]:
    """(the query for upstream, the credential, the metadata): our own parameters never travel on."""
    kept, found = [], dict.fromkeys(OWN_PARAMETERS, "")
    for param in params:
        name, _, value = param.partition("=")
        name = unquote(name) if "%" in name else name
        if name in found:
            found[name] = found[name] or unquote(value.replace("+", " ") if name == "metadata" else value)
        elif param:
            kept.append(param)
    return "&".join(kept), found["key"] or None, found["metadata"] or None


def _refuse_strange(text: str) -> None:
    if _FORBIDDEN.search(text):
        raise _not_supported("The URL has whitespace, control or other characters that must be percent-encoded.")


def _split_authority(authority: str) -> tuple[str, int | None]:
    """Lower-case host name and port of an authority. Raises for user-info, addresses instead of names, and nonsense."""
    if "@" in authority or "%" in authority:
        raise _not_supported("A URL with user-info or an encoded host is not forwarded.")
    if "[" in authority:
        raise _not_supported("A URL with an IP address is not forwarded; use the provider's host name.")
    host, colon, digits = authority.partition(":")
    host = host.lower().removesuffix(".")
    if not host:
        raise _not_supported("The URL has no host.")
    if colon and not (digits.isascii() and digits.isdigit() and 0 < int(digits[:6]) < 65_536 and len(digits) < 6):
        raise _not_supported("The URL's port is not a number between 1 and 65535.")
    if len(host) > 253 or not _HOST_NAME.fullmatch(host):
        raise _not_supported("The URL's host is not a host name.")
    return host, int(digits) if colon else None


def _refuse_endpoint(provider: Provider, scheme: str, host: str, port: int | None) -> None:
    """An override decides itself where the call goes; without one, only the provider's own scheme and port are used."""
    if provider.override is not None:
        return
    # Whatever ends in a number is an IPv4 address to most resolvers, also decimal, hex and octal ones (WHATWG URL 3.5).
    if _IP_LABEL.fullmatch(host.rpartition(".")[2]):
        raise _not_supported("A URL with an IP address is not forwarded; use the provider's host name.")
    base_scheme, _, base_port, _ = _split_base(provider.base)
    if scheme == "http" and base_scheme != "http":
        raise _not_supported("Only https URLs are forwarded to this provider.")
    if port not in (None, base_port, DEFAULT_PORTS[scheme]):
        raise _not_supported(f"Port {port} of this provider is not forwarded to.")


def _split_base(url: str) -> tuple[str, str, int, str]:
    """(scheme, host, port, path without a trailing slash) of a configured URL."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    scheme = scheme.lower()
    assert scheme in DEFAULT_PORTS and authority, "a provider's base and override are http(s) URLs"
    host, colon, digits = authority.rpartition(":") if _PORT.search(authority) else (authority, "", "")
    host = host.lower().strip("[]")
    return scheme, host, int(digits) if colon else DEFAULT_PORTS[scheme], (slash + path).rstrip("/")


def _alias_base(provider: Provider) -> str:
    """The URL an alias stands for. Raises where a provider has no one host (an Azure resource, a Bedrock region)."""
    named_hosts = [host for host in provider.hosts if "*" not in host]
    host = _split_base(provider.base)[1]
    if named_hosts or not provider.hosts or any(fnmatchcase(host, pattern) for pattern in provider.hosts):
        return provider.base
    if provider.override is not None:
        return provider.override.partition("://")[0] + "://" + provider.override.partition("://")[2].partition("/")[0]
    raise _not_supported(f"{provider.name} has no single host; call it as {FORWARD}?u=https://<your host>/...")


def _is_native(provider: Provider, path: str) -> bool:
    """Does this path belong to the provider's own API, beside the compatible one that its base names?"""
    return any(path == native or (native.endswith("/") and path.startswith(native)) for native in provider.native_paths)


def _join(base: str, rest: str) -> str:
    """The upstream path of `/v1/forward/<alias>` + rest: the base's path, then what rest does not repeat of it.

    `/v1` + `/v1/chat` = `/v1/chat`; `/openai/v1` + `/v1/chat` = `/openai/v1/chat`; `/api/v4` + `/v1/chat` =
    `/api/v4/chat` (the `/v1` that OpenAI's clients expect of any base); `/compatibility/v1` + `/v2/chat` = `/v2/chat`
    (another version is another API); `/v1beta` + `/upload/v1beta/files` stays as it is.
    """
    base_path = _split_base(base)[3]
    rest = rest or "/"
    if not base_path:
        return rest
    base_parts, parts = base_path[1:].split("/"), rest[1:].split("/")
    for count in range(len(base_parts), 0, -1):
        if parts[:count] == base_parts[-count:]:
            return "/" + "/".join([*base_parts[:-count], *parts])
    if parts[0] == "v1" and len(parts) > 1 and parts[1] in _OPENAI_APIS:
        return base_path + rest[3:]
    if parts[0] == base_parts[0] or (parts[0] == "upload" and len(parts) > 1 and _VERSION.fullmatch(parts[1])):
        return rest
    if _VERSION.fullmatch(parts[0]) and _VERSION.fullmatch(base_parts[-1]):
        return rest
    return base_path + (rest if rest != "/" else "")
