"""gateway/routes.py: every URL form a real client sends, and what is not forwarded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_proxy.domain.errors import CallerError
from lava_proxy.gateway.routes import Target, model_route, resolve, with_model
from tests.unit.gateway.fake_registry import ANTHROPIC, AZURE, COHERE, GOOGLE, GROQ, OPENAI, REGISTRY, FakeRegistry

OPENAI_CHAT = "https://api.openai.com/v1/chat/completions"
GEMINI = "https://generativelanguage.googleapis.com/v1beta/models/g:streamGenerateContent"


def target(text: str, registry: FakeRegistry = REGISTRY) -> Target:
    found = resolve("POST", text.encode("latin-1"), registry)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("raw", "url"),
    [
        # u, raw and encoded
        (f"/v1/forward?u={OPENAI_CHAT}", OPENAI_CHAT),
        ("/v1/forward?u=https%3A%2F%2Fapi.openai.com%2Fv1%2Fchat%2Fcompletions", OPENAI_CHAT),
        ("/v1/forward?u=https%3a//api.openai.com/v1/chat/completions", OPENAI_CHAT),
        (f"/v1/forward/?u={OPENAI_CHAT}", OPENAI_CHAT),
        (f"/v1forward?u={OPENAI_CHAT}", OPENAI_CHAT),
        ("/v1/forward?u=api.openai.com/v1/chat/completions", OPENAI_CHAT),
        ("/v1/forward?u=api.openai.com%2Fv1%2Fchat%2Fcompletions", OPENAI_CHAT),
        ("/v1/forward?u=HTTPS://API.OpenAI.com./v1/chat/completions", OPENAI_CHAT),
        ("/v1/forward?u=https://api.openai.com:443/v1/chat/completions", OPENAI_CHAT),
        (f"http://lava.example/v1/forward?u={OPENAI_CHAT}", OPENAI_CHAT),
        # a path beside u: ignored when u has one, else appended
        (f"/v1/forward/openai?u={OPENAI_CHAT}", OPENAI_CHAT),
        (
            "/v1/forward/v1beta/models/g:streamGenerateContent?u=https://generativelanguage.googleapis.com",
            GEMINI,
        ),
        (
            "/v1/forward/v1beta/models/g:streamGenerateContent?alt=sse&u=https://generativelanguage.googleapis.com/",
            GEMINI + "?alt=sse",
        ),
        # what client libraries mangle
        ("/v1/forward/?u=https://api.openai.com/v1chat/completions", OPENAI_CHAT),
        ("/v1/forward/?u=https://api.openai.com/v1models", "https://api.openai.com/v1/models"),
        (
            "/v1/forward/?u=https://api.groq.com/openai/v1responses?stream=1",
            "https://api.groq.com/openai/v1/responses?stream=1",
        ),
        ("/v1/forward/?u=https://api.anthropic.comv1/messages", "https://api.anthropic.com/v1/messages"),
        (f"/v1/forward?u={GEMINI}?alt=sse&key=abc", GEMINI + "?alt=sse"),
        # path form
        (f"/v1/forward/{OPENAI_CHAT}", OPENAI_CHAT),
        ("/v1/forward/api.openai.com/v1/chat/completions", OPENAI_CHAT),
        ("/v1/forward/https:/api.openai.com/v1/chat/completions", OPENAI_CHAT),
        ("/v1/forward/https%3A%2F%2Fapi.openai.com%2Fv1%2Fchat%2Fcompletions", OPENAI_CHAT),
        (f"/v1/forward/{GEMINI}?alt=sse", GEMINI + "?alt=sse"),
        ("/v1/forward/https://api.openai.com/v1/files//x%2Fy", "https://api.openai.com/v1/files//x%2Fy"),
        ("/v1/forward/https://api.openai.com", "https://api.openai.com/"),
        # alias form
        ("/v1/forward/openai/v1/chat/completions", OPENAI_CHAT),
        ("/v1/forward/openai/chat/completions", OPENAI_CHAT),
        ("/v1/forward/OpenAI/v1/chat/completions?a=b&c", OPENAI_CHAT + "?a=b&c"),
        ("/v1/forward/anthropic/v1/messages", "https://api.anthropic.com/v1/messages"),
        ("/v1/forward/google/v1beta/models/g:streamGenerateContent", GEMINI),
        ("/v1/forward/gemini/models/g:streamGenerateContent", GEMINI),
        ("/v1/forward/google/v1/models", "https://generativelanguage.googleapis.com/v1/models"),
        ("/v1/forward/google/upload/v1beta/files", "https://generativelanguage.googleapis.com/upload/v1beta/files"),
        (
            "/v1/forward/google/v1beta/openai/chat/completions",
            "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions",
        ),
        ("/v1/forward/groq/openai/v1/chat/completions", "https://api.groq.com/openai/v1/chat/completions"),
        ("/v1/forward/groq/v1/chat/completions", "https://api.groq.com/openai/v1/chat/completions"),
        ("/v1/forward/groq/chat/completions", "https://api.groq.com/openai/v1/chat/completions"),
        ("/v1/forward/deepinfra/chat/completions", "https://api.deepinfra.com/v1/openai/chat/completions"),
        ("/v1/forward/deepinfra/v1/chat/completions", "https://api.deepinfra.com/v1/openai/chat/completions"),
        ("/v1/forward/deepinfra/v1/inference/x", "https://api.deepinfra.com/v1/inference/x"),
        ("/v1/forward/cohere/v2/chat", "https://api.cohere.com/v2/chat"),
        ("/v1/forward/cohere/chat/completions", "https://api.cohere.com/compatibility/v1/chat/completions"),
        ("/v1/forward/openai", "https://api.openai.com/v1"),
        # wild-card host
        (
            "/v1/forward?u=https://r1.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
            "https://r1.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
        ),
    ],
)
def test_every_url_form_reaches_the_same_target(raw: str, url: str) -> None:
    found = target(raw)
    assert found.url == url
    assert f"{found.scheme}://{found.host_header}{found.request_target}" == url


def test_a_key_parameter_is_a_credential_and_stays_here() -> None:
    """J6: wherever the key parameter stands, upstream does not see it."""
    for raw in (
        f"/v1/forward?u={GEMINI}?alt=sse&key=TOK%2BEN",
        f"/v1/forward?key=TOK%2BEN&u={GEMINI}&alt=sse",
        "/v1/forward/google/v1beta/models/g:streamGenerateContent?key=TOK%2BEN&alt=sse",
        "/v1/forward?u=" + GEMINI.replace(":", "%3A").replace("/", "%2F") + "%3Falt%3Dsse%26key%3DTOK%2BEN",
        f"/v1/forward?u={GEMINI}?alt=sse&k%65y=TOK%2BEN",
    ):
        found = target(raw)
        assert found.credential_from_query == "TOK+EN"
        assert found.query == "alt=sse"
        assert "TOK" not in found.url + found.request_target + repr(found)


def test_the_metadata_parameter_is_ours() -> None:
    found = target(f"/v1/forward?u={OPENAI_CHAT}&metadata=%7B%22a%22%3A%22b+c%22%7D&x=1")
    assert found.metadata_from_query == '{"a":"b c"}'
    assert found.query == "x=1"


def test_an_override_decides_where_the_call_goes_and_prefixes_its_path() -> None:
    for raw in (
        "/v1/forward/vllm/chat/completions?a=b",
        "/v1/forward?u=http://vllm.example:8000/v1/chat/completions?a=b",
    ):
        found = target(raw)
        assert (found.scheme, found.host, found.port) == ("http", "127.0.0.1", 9000)
        assert found.request_target == "/deep/v1/chat/completions?a=b"
        assert found.host_header == "127.0.0.1:9000"
        assert found.provider.name == "vllm"
    six = replace(COHERE, override="http://[::1]:9000")
    found = target("/v1/forward/cohere/v2/chat", FakeRegistry(six))
    assert (found.host, found.port, found.host_header) == ("::1", 9000, "[::1]:9000")
    azure = replace(AZURE, override="https://mock.example/x")
    assert target("/v1/forward/azure/openai/v1/responses", FakeRegistry(azure)).path == "/x/openai/v1/responses"


def test_http_is_spoken_where_the_providers_own_base_is_http() -> None:
    found = target("/v1/forward/ollama/api/chat")
    assert (found.scheme, found.host, found.port) == ("http", "ollama.example", 11434)
    assert target("/v1/forward?u=http://ollama.example:11434/api/chat").host_header == "ollama.example:11434"


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/v1",
        "https://api.openai.com.evil.example/v1",
        "https://evil.example/api.openai.com",
        "https://evil.example#api.openai.com",
        "https://api.openai.com@evil.example/v1",
        "https://user:pw@api.openai.com/v1",
        "http://api.openai.com/v1",
        "ftp://api.openai.com/v1",
        "https://api.openai.com:8443/v1",
        "https://api.openai.com:80/v1",
        "https://api.openai.com:0/v1",
        "https://api.openai.com:x/v1",
        "https://api.openai.com:/v1",
        "https://127.0.0.1/v1",
        "https://10.0.0.1/v1",
        "https://10.0.0.0x1/v1",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://017700000001/",
        "https://127.1/",
        "https://[::1]/v1",
        "https://[::ffff:127.0.0.1]:443/v1",
        "https:///v1",
        "https://",
        "https://localhost/v1",
        "https://api.openai.com\\@evil.example/v1",
        "https%3A%2F%2Fapi.openai.com%2Fv1%0d%0aHost:x",
        "https%3A%2F%2Fapi.openai.com%2Fv1%20x",
        "https%3A%2F%2Fapi.openai.com%2Fv1%C3%BC",
        "https://api.openai.com/v1/../admin",
        "https://api.openai.com/v1/%2e%2E/admin",
        "https://api.openai.com/..",
        "https://-/v1",
        "https://a..b/v1",
        "https://api%2Eopenai.com/v1",
        "",
    ],
)
def test_what_is_not_a_known_providers_https_url_is_refused(url: str) -> None:
    """H-class SSRF: hosts, schemes, ports, addresses and tricks with the parser."""
    for raw in (f"/v1/forward?u={url}", f"/v1/forward/{url}"):
        with pytest.raises(CallerError) as caught:
            target(raw)
        assert (caught.value.status, caught.value.code) == (400, "forward_endpoint_not_supported")


@pytest.mark.parametrize("raw", ["/v1/forward", "/v1/forward/", "/v1/forward?x=y", "/v1/forward/nobody/v1", "/v1/forward/azure/x"])
def test_a_forward_without_a_known_provider_is_refused(raw: str) -> None:
    with pytest.raises(CallerError) as caught:
        target(raw)
    assert caught.value.code == "forward_endpoint_not_supported"


def test_a_url_too_long_is_refused() -> None:
    with pytest.raises(CallerError):
        target(f"/v1/forward?u={OPENAI_CHAT}?x=" + "y" * 20_000)


@pytest.mark.parametrize(
    "raw",
    [
        "/v1/rewrite/openai/https://api.anthropic.com/v1/messages",
        "/v1/rewrite/anthropic/api.openai.com/v1/chat/completions",
    ],
)
def test_routes_that_translate_say_they_are_not_built(raw: str) -> None:
    with pytest.raises(CallerError, match="/v1/forward/") as caught:
        resolve("POST", raw.encode(), REGISTRY)
    assert (caught.value.status, caught.value.code) == (501, "not_implemented")


@pytest.mark.parametrize(
    "raw",
    [
        "/",
        "/v1/models",
        "/v1/models/gpt-4o",
        "/v1/requests",
        "/v1/forwarding",
        "/v1/forwards?u=x",
        "/v2/forward",
        "/v1/modelsx",
        "*",
    ],
)
def test_other_paths_are_not_the_gateways(raw: str) -> None:
    assert resolve("GET", raw.encode(), REGISTRY) is None


MODELS = FakeRegistry(
    replace(OPENAI, models=("gpt-*", "text-*")),
    replace(ANTHROPIC, models=("claude-*",)),
    replace(GOOGLE, models=("gemini-*",)),
    GROQ,
)


def chosen(path: str, body: dict[str, Any] | bytes, registry: FakeRegistry = MODELS) -> tuple[bytes, bytes]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    route = model_route("POST", path.encode())
    assert route is not None
    return route.choose(raw, registry)


@pytest.mark.parametrize(
    ("path", "model", "expected"),
    [
        ("/v1/chat/completions", "gpt-4o", "/v1/forward/openai/v1/chat/completions"),
        ("/v1/completions", "gpt-3", "/v1/forward/openai/v1/completions"),
        ("/v1/responses?x=1&y", "gpt-4o", "/v1/forward/openai/v1/responses?x=1&y"),
        ("/v1/embeddings/", "text-embedding-3-small", "/v1/forward/openai/v1/embeddings"),
        ("/v1/messages?beta=true", "claude-x", "/v1/forward/anthropic/v1/messages?beta=true"),
        ("/v1/messages/count_tokens", "claude-x", "/v1/forward/anthropic/v1/messages/count_tokens"),
    ],
)
def test_a_model_route_leads_to_its_models_provider_with_the_same_bytes(path: str, model: str, expected: str) -> None:
    body = b'{"messages": [],\n "model" : "%b"}' % model.encode()
    assert chosen(path, body) == (expected.encode(), body)


def test_a_provider_before_the_model_is_taken_off_and_nothing_else_is_changed() -> None:
    body = b'{ "tools":[{"model":"groq/llama"}],"n":1.50, "model" : "groq/llama", "x":"\\"model\\":\\"groq/llama\\""}'
    target, changed = chosen("/v1/chat/completions", body)
    assert target == b"/v1/forward/groq/v1/chat/completions"
    assert changed == body.replace(b' "model" : "groq/llama"', b' "model" : "llama"')
    assert chosen("/v1/chat/completions", {"model": "groq/meta/llama"})[1] == b'{"model": "meta/llama"}'
    escaped = rb'{"model":"gr\u006fq/llama"}'
    assert json.loads(chosen("/v1/chat/completions", escaped)[1]) == {"model": "llama"}


@pytest.mark.parametrize(
    ("path", "body", "code", "sentence"),
    [
        ("/v1/chat/completions", {"model": "claude-x"}, "forward_model_not_supported", "use POST /v1/messages"),
        ("/v1/messages", {"model": "gpt-4o"}, "forward_model_not_supported", "use POST /v1/chat/completions"),
        ("/v1/responses", {"model": "gemini-x"}, "forward_model_not_supported", "google/v1beta/models/gemini-x:generateContent"),
        ("/v1/chat/completions", {"model": "llama"}, "forward_model_invalid", "<provider>/<model>"),
        ("/v1/chat/completions", {"model": "nobody/llama"}, "forward_model_invalid", "<provider>/<model>"),
        ("/v1/chat/completions", {"messages": []}, "model_required", '"model"'),
        ("/v1/chat/completions", {"model": 7}, "model_required", '"model"'),
        ("/v1/chat/completions", b"[]", "invalid_request_body", "JSON object"),
        ("/v1/chat/completions", b"", "invalid_request_body", "JSON object"),
    ],
)
def test_a_model_of_another_family_is_refused_with_the_right_route(
    path: str, body: dict[str, Any] | bytes, code: str, sentence: str
) -> None:
    with pytest.raises(CallerError) as refused:
        chosen(path, body)
    assert (refused.value.status, refused.value.code) == (400, code) and sentence in refused.value.message


def test_a_model_route_has_no_other_methods_and_nothing_below_it() -> None:
    with pytest.raises(CallerError) as method:
        model_route("GET", b"/v1/chat/completions")
    assert method.value.status == 405
    with pytest.raises(CallerError, match="/v1/forward/<provider>/v1/responses/resp_1"):
        model_route("GET", b"/v1/responses/resp_1")
    assert model_route("GET", b"/v1/models") is None and model_route("POST", b"/v1/chat/completionsx") is None


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers() | st.booleans() | st.none(), max_size=4))
def test_the_other_members_of_a_body_survive_a_change_of_its_model(members: dict[str, Any]) -> None:
    document = {**members, "model": "groq/m"}
    changed = with_model(json.dumps(document).encode(), document, "m")
    assert json.loads(changed) == {**members, "model": "m"}


@given(st.binary(max_size=60))
def test_strange_targets_are_refused_or_lead_to_a_known_host(tail: bytes) -> None:
    for prefix in (b"/v1/forward?u=", b"/v1/forward/", b"/v1/forward?u=https://api.openai.com", b"/v1/forward/openai/"):
        try:
            found = resolve("POST", prefix + tail, REGISTRY)
        except CallerError:
            continue
        assert found is None or found.host in ("api.openai.com", "127.0.0.1") or REGISTRY.by_host(found.host)
        if found is not None:
            assert found.request_target.isascii() and found.request_target.isprintable()
            assert " " not in found.request_target and found.path.startswith("/")


def test_a_query_appended_to_a_whole_query_is_still_found() -> None:
    """google-genai's stream on a `?u=` base: the path, `?alt=sse`, and then our own query behind it."""
    raw = b"/v1/forward/v1/models/gemini-2.5-flash:streamGenerateContent?alt=sse?u=https://generativelanguage.googleapis.com"
    target = resolve("POST", raw, REGISTRY)
    assert isinstance(target, Target)
    assert target.request_target == "/v1/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
