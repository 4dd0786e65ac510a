"""gateway/headers.py: credentials, hygiene both ways, metadata, error bodies."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_proxy.domain.errors import BadToken, CallerError
from lava_proxy.gateway import headers as hygiene
from lava_proxy.gateway.headers import (
    credential_of,
    dialect_of,
    error_body,
    metadata_of,
    refuse_unbuilt,
    response_head,
    upstream_head,
)
from lava_proxy.gateway.routes import Target, resolve
from tests.unit.gateway.fake_registry import REGISTRY

TOKEN = b"ZXlKelpXTnlaWFE2SUhSdmEyVnVJbjA="


def target(raw: str = "/v1/forward/openai/v1/chat/completions") -> Target:
    found = resolve("POST", raw.encode(), REGISTRY)
    assert found is not None
    return found


def head(headers: list[tuple[bytes, bytes]], raw: str = "/v1/forward/openai/v1/chat/completions", **changes: object) -> bytes:
    arguments: dict[str, object] = {"provider_key": "sk-provider", "body_length": 2, "force_identity": False} | changes
    return upstream_head("POST", target(raw), headers, **arguments)  # type: ignore[arg-type]


def lines(found: bytes) -> list[bytes]:
    assert found.endswith(b"\r\n\r\n") and b"\r\n\r\n" not in found[:-4]
    return found[:-4].split(b"\r\n")


@pytest.mark.parametrize(
    "sent",
    [
        [(b"Authorization", b"Bearer " + TOKEN)],
        [(b"authorization", b"bEaReR   " + TOKEN + b" ")],
        [(b"Authorization", TOKEN)],
        [(b"X-Api-Key", TOKEN)],
        [(b"x-goog-api-key", TOKEN)],
        [(b"xi-api-key", TOKEN)],
        [(b"api-key", TOKEN)],
        [(b"x-api-key", b"other"), (b"Authorization", b"Bearer " + TOKEN)],
        [(b"Authorization", b"Basic abc"), (b"x-api-key", TOKEN)],
        [(b"Authorization", b"Bearer "), (b"x-api-key", TOKEN)],
    ],
)
def test_the_credential_is_found_wherever_a_client_puts_it(sent: list[tuple[bytes, bytes]]) -> None:
    assert credential_of(sent, target()) == TOKEN


def test_the_query_key_is_the_last_resort() -> None:
    with_key = target("/v1/forward/google/v1beta/models/g:generateContent?key=abc")
    assert credential_of([], with_key) == b"abc"
    assert credential_of([(b"x-goog-api-key", TOKEN)], with_key) == TOKEN


def test_no_credential_is_refused_with_a_sentence() -> None:
    with pytest.raises(BadToken, match="Authorization"):
        credential_of([(b"accept", b"*/*")], target())
    with pytest.raises(BadToken):
        credential_of([], None)


def test_upstream_gets_the_providers_key_and_what_the_client_meant() -> None:
    found = head(
        [
            (b"Host", b"lava.example"),
            (b"Authorization", b"Bearer " + TOKEN),
            (b"Content-Type", b"application/json"),
            (b"anthropic-version", b"2023-06-01"),
            (b"X-Stainless-Lang", b"python"),
            (b"Content-Length", b"99"),
            (b"Accept-Encoding", b"gzip, br;q=0.5, x-snappy, *"),
            (b"Expect", b"100-continue"),
        ]
    )
    assert lines(found) == [
        b"POST /v1/chat/completions HTTP/1.1",
        b"host: api.openai.com",
        b"Content-Type: application/json",
        b"anthropic-version: 2023-06-01",
        b"X-Stainless-Lang: python",
        b"authorization: Bearer sk-provider",
        b"accept-encoding: gzip, br;q=0.5",
        b"content-length: 2",
    ]


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ("/v1/forward/openai/v1/x", b"authorization: Bearer K"),
        ("/v1/forward/anthropic/v1/messages", b"x-api-key: K"),
        ("/v1/forward/google/v1beta/models/g:generateContent", b"x-goog-api-key: K"),
        ("/v1/forward?u=https://r1.openai.azure.com/openai/v1/responses", b"api-key: K"),
        ("/v1/forward/elevenlabs/v1/text-to-speech/v", b"xi-api-key: K"),
    ],
)
def test_each_provider_gets_its_key_where_it_wants_it(raw: str, line: bytes) -> None:
    assert line in lines(head([], raw, provider_key="K"))


def test_no_key_no_body_and_no_auth_leave_no_line() -> None:
    assert lines(head([], provider_key=None, body_length=None)) == [
        b"POST /v1/chat/completions HTTP/1.1",
        b"host: api.openai.com",
        b"accept-encoding: identity",
    ]
    assert not any(b"K" in line for line in lines(head([], "/v1/forward/none/x", provider_key="K")))


def test_a_forced_identity_is_not_talked_out_of() -> None:
    """J2: we own Accept-Encoding; what the meter cannot read is never asked for."""
    for sent in (b"br", b"gzip, deflate", b""):
        assert b"accept-encoding: identity" in lines(head([(b"accept-encoding", sent)], force_identity=True))
    assert b"accept-encoding: identity" in lines(head([(b"accept-encoding", b"snappy")]))


CUSTOMER = b"203.0.113.7"


def test_no_header_changes_the_method_behind_the_meter() -> None:
    """What a call is, and so what it costs, follows from its method."""
    found = head([(name, b"POST") for name in (b"X-HTTP-Method-Override", b"x-http-method", b"X-Method-Override")])
    assert b"override" not in found.lower() and b"x-http-method" not in found.lower()


def test_nothing_tells_upstream_who_our_caller_is() -> None:
    names = [b"X-Forwarded-For", b"Forwarded", b"X-Real-IP", b"Via", b"Cookie", b"CF-Connecting-IP", b"X-Lava-Metadata"]
    found = head([(name, CUSTOMER) for name in names] + [(b"Proxy-Authorization", CUSTOMER), (b"Proxy-Foo", CUSTOMER)])
    assert CUSTOMER not in found
    assert len(lines(found)) == 5


token_places = st.lists(
    st.sampled_from(
        [
            b"Authorization",
            b"authorization",
            b"X-API-Key",
            b"x-goog-api-key",
            b"xi-api-key",
            b"api-key",
            b"Proxy-Authorization",
            b"Cookie",
            b"x-lava-metadata",
            b"X-Custom",
            b"x-stainless-raw",
            b"openai-organization",
        ]
    ),
    max_size=6,
)


@given(token_places, st.sampled_from([b"", b"Bearer ", b"bearer  ", b"session="]), st.booleans())
def test_our_token_appears_nowhere_upstream(places: list[bytes], prefix: bytes, in_query: bool) -> None:
    """J6: whichever header or parameter carried it, also twice, also where nobody asked for it."""
    raw = "/v1/forward/openai/v1/chat/completions?a=b&api_key=" + TOKEN.decode().replace("=", "%3D")
    raw += "&key=" + TOKEN.decode() if in_query else ""
    sent = [(b"Authorization", b"Bearer " + TOKEN), *((name, prefix + TOKEN) for name in places)]
    found = head(sent, raw)
    assert TOKEN not in found
    assert TOKEN.replace(b"=", b"%3D") not in found
    assert lines(found)[0] == b"POST /v1/chat/completions?a=b HTTP/1.1"
    assert sum(line.lower().startswith(b"authorization:") for line in lines(found)) == 1


header_names = st.sampled_from(
    [
        b"Connection",
        b"keep-alive",
        b"TE",
        b"Trailer",
        b"Transfer-Encoding",
        b"Upgrade",
        b"Proxy-Connection",
        b"X-One",
        b"x-two",
        b"Content-Type",
        b"Proxy-Authenticate",
    ]
)
header_values = st.sampled_from([b"x-one", b"X-Two, close", b"keep-alive", b"chunked", b"close", b"x", b"websocket"])


@given(st.lists(st.tuples(header_names, header_values), max_size=12))
def test_hop_by_hop_headers_pass_in_neither_direction(sent: list[tuple[bytes, bytes]]) -> None:
    """J5: the list of RFC 9110 7.6.1 and whatever Connection nominates."""
    nominated = {t.strip().lower() for n, v in sent if n == b"Connection" for t in v.split(b",")}
    for found in (
        head(sent),
        response_head(200, b"OK", sent, "req_1", body="length", body_length=5, keep_alive=True),
    ):
        names = {line.partition(b":")[0].lower() for line in lines(found)[1:]}
        assert not names & (hygiene.HOP_BY_HOP | nominated)
        assert sum(line.startswith(b"content-length:") for line in lines(found)) == 1


def test_the_providers_headers_come_back_in_order_and_case() -> None:
    found = response_head(
        201,
        b"Created",
        [
            (b"Date", b"today"),
            (b"Content-Type", b"application/json"),
            (b"Content-Encoding", b"gzip"),
            (b"Content-Length", b"58"),
            (b"Set-Cookie", b"a=1"),
            (b"Set-Cookie", b"b=2"),
            (b"X-RateLimit-Remaining", b"7"),
            (b"Alt-Svc", b'h3=":443"'),
            (b"X-Lava-Request-Id", b"req_theirs"),
        ],
        "req_ours",
        body="length",
        body_length=34,
    )
    assert lines(found) == [
        b"HTTP/1.1 201 Created",
        b"Date: today",
        b"Content-Type: application/json",
        b"Content-Encoding: gzip",
        b"Set-Cookie: a=1",
        b"Set-Cookie: b=2",
        b"X-RateLimit-Remaining: 7",
        b"x-lava-request-id: req_ours",
        b"content-length: 34",
    ]


def test_a_stream_is_not_to_be_buffered_on_its_way() -> None:
    """J1: a chunked answer has no Content-Length, whatever the provider sent."""
    sent = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"content-length", b"5")]
    found = lines(response_head(200, b"OK", sent, "r", body="chunked", keep_alive=False))
    assert found[1:] == [
        b"content-type: text/event-stream; charset=utf-8",
        b"x-accel-buffering: no",
        b"cache-control: no-transform",
        b"x-lava-request-id: r",
        b"transfer-encoding: chunked",
        b"connection: close",
    ]
    kept = lines(response_head(200, b"OK", [*sent, (b"Cache-Control", b"no-cache")], "r", body="chunked"))
    assert b"Cache-Control: no-cache" in kept and b"cache-control: no-transform" not in kept


def test_an_answer_without_a_body_has_no_framing() -> None:
    assert lines(response_head(204, b"No Content", [(b"content-length", b"0")], "r", body="none")) == [
        b"HTTP/1.1 204 No Content",
        b"x-lava-request-id: r",
    ]
    assert b"content-length: 9" in lines(response_head(200, b"OK", [], "r", body="none", body_length=9))


@pytest.mark.parametrize("bad", [b"a\r\nx: y", b"a\nb", b"a\x00b"])
def test_a_line_break_in_a_header_is_never_written(bad: bytes) -> None:
    for name, value in ((b"x", bad), (bad, b"x")):
        with pytest.raises(AssertionError):
            head([(name, value)])
        with pytest.raises(AssertionError):
            response_head(200, b"OK", [(name, value)], "r", body="none")
    with pytest.raises(AssertionError):
        head([], provider_key=bad.decode())


def test_metadata_comes_from_the_query_the_header_and_single_headers() -> None:
    sent = [
        (b"x-lava-metadata-Feature", b"chat"),
        (b"X-Lava-Metadata", '{"feature":"header","who":"Zoë"}'.encode()),
        (b"x-lava-metadata-user-tier", b"gold"),
    ]
    found = metadata_of(sent, '{"feature":"query","page":"1"}')
    assert found == {"feature": "chat", "who": "Zoë", "page": "1", "user_tier": "gold"}
    assert metadata_of([], None) == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "JSON object"),
        ("{", "JSON object"),
        ('{"a":1}', "value of 'a'"),
        ('{"a":""}', "value of 'a'"),
        ('{"a":"' + "x" * 256 + '"}', "value of 'a'"),
        ('{"a-b":"x"}', "key 'a-b'"),
        ('{"":"x"}', "key ''"),
        (json.dumps({f"k{n}": "v" for n in range(101)}), "101 pairs"),
        ("x" * 70_000, "longer"),
        ("[" * 5_000, "JSON object"),
    ],
)
def test_bad_metadata_is_refused_by_name(text: str, sentence: str) -> None:
    for arguments in (([(b"x-lava-metadata", text.encode())], None), ([], text)):
        with pytest.raises(CallerError, match=sentence) as caught:
            metadata_of(*arguments)
        assert (caught.value.status, caught.value.code) == (400, "invalid_metadata")


def test_fallbacks_say_they_are_not_built() -> None:
    refuse_unbuilt([(b"x-other", b"1")])
    with pytest.raises(CallerError) as caught:
        refuse_unbuilt([(b"X-Lava-Fallbacks", b"[]")])
    assert (caught.value.status, caught.value.code) == (501, "not_implemented")


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 413, 429, 500, 501, 502, 503, 504])
def test_errors_are_spoken_in_the_callers_dialect(status: int) -> None:
    openai = json.loads(error_body("openai", status, "c", "m"))["error"]
    assert (openai["message"], openai["code"], openai["status"], openai["param"]) == ("m", "c", status, None)
    anthropic = json.loads(error_body("anthropic", status, "c", "m"))
    assert anthropic["type"] == "error"
    assert (anthropic["error"]["message"], anthropic["error"]["code"], anthropic["error"]["status"]) == (
        "m",
        "c",
        status,
    )
    google = json.loads(error_body("google", status, "c", "m"))["error"]
    assert (google["message"], google["code"], google["details"][0]["reason"]) == ("m", status, "c")
    aws = json.loads(error_body("aws", status, "c", "m"))
    assert (aws["message"], aws["error"]["message"], aws["error"]["code"], aws["error"]["status"]) == ("m", "m", "c", status)
    assert aws["__type"].endswith("Exception")
    assert google["status"].isupper() and anthropic["error"]["type"].endswith(("_error", "too_large"))


def test_the_known_error_words() -> None:
    def word(dialect: hygiene.Dialect, status: int) -> str:
        error = json.loads(error_body(dialect, status, "c", "ü"))["error"]
        found = error["status"] if dialect == "google" else error["type"]
        assert isinstance(found, str)
        return found

    assert [word("anthropic", status) for status in (401, 402, 429, 500, 503)] == [
        "authentication_error",
        "billing_error",
        "rate_limit_error",
        "api_error",
        "overloaded_error",
    ]
    assert [word("google", status) for status in (400, 401, 429, 500)] == [
        "INVALID_ARGUMENT",
        "UNAUTHENTICATED",
        "RESOURCE_EXHAUSTED",
        "INTERNAL",
    ]
    # The exceptions that boto3 makes classes of for bedrock-runtime.
    assert [json.loads(error_body("aws", status, "c", "ü"))["__type"] for status in (400, 401, 402, 429, 502, 503)] == [
        "ValidationException",
        "AccessDeniedException",
        "ServiceQuotaExceededException",
        "ThrottlingException",
        "InternalServerException",
        "ServiceUnavailableException",
    ]


@pytest.mark.parametrize(
    ("raw", "sent", "dialect"),
    [
        ("/v1/forward/openai/v1/chat/completions", [], "openai"),
        ("/v1/forward/anthropic/v1/messages", [], "anthropic"),
        ("/v1/forward/google/v1beta/models/g:generateContent", [], "google"),
        ("/v1/forward/google/v1beta/openai/chat/completions", [], "openai"),
        ("/v1/forward/cohere/v2/chat", [], "openai"),
        ("/v1/forward/bedrock/model/us.amazon.nova-micro-v1%3A0/converse-stream", [], "aws"),
        ("/v1/forward/bedrock/openai/v1/chat/completions", [], "openai"),
        (None, [(b"Anthropic-Version", b"x")], "anthropic"),
        (None, [(b"x-goog-api-key", b"x")], "google"),
        (None, [], "openai"),
    ],
)
def test_the_dialect_follows_the_target_or_the_headers(raw: str | None, sent: list[tuple[bytes, bytes]], dialect: str) -> None:
    assert dialect_of(target(raw) if raw else None, sent) == dialect
