"""Reading requests: which API, which model, the most it can use, the spliced option."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from lava_proxy.domain.errors import CallerError
from lava_proxy.domain.usage import Provenance, Reading, Usage, token_usage
from lava_proxy.providers.base import Call, Provider
from lava_proxy.providers.ceilings import (
    DEFAULT_OUTPUT_TOKENS_MAX,
    HIDDEN_PROMPT_TOKENS,
    HISTORY_TOKENS,
    IMAGE_TOKENS,
    INPUT_TOKENS_MAX,
    OUTPUT_TOKENS_MAX,
    SERVER_TOOL_TOKENS,
)
from lava_proxy.providers.estimate import estimate
from lava_proxy.providers.model_apis import ModelApis
from lava_proxy.providers.passthrough import Passthrough

FAMILY = ModelApis()


def provider(name: str = "openai", **changes: Any) -> Provider:
    return Provider(name=name, family="openai", hosts=(), base="https://x.test", **changes)


PLAIN = provider()
SPLICING = provider(include_usage=True)
AZURE = provider("azure", include_usage=True)


def inspect(
    body: bytes | dict[str, Any],
    path: str = "/v1/chat/completions",
    *,
    of: Provider = PLAIN,
    method: str = "POST",
    query: str = "",
    content_type: str = "application/json",
) -> Call:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return FAMILY.inspect(of, method, path, query, content_type, raw)


ASKED = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize(
    "path, api, model",
    [
        ("/v1/chat/completions", "chat", "m"),
        ("/openai/v1/chat/completions/", "chat", "m"),
        ("/nebius/v1/chat/completions", "chat", "m"),
        ("/models/chat/completions", "chat", "m"),
        ("/v1beta/openai/chat/completions", "chat", "m"),
        ("/openai/deployments/my%20gpt/chat/completions", "chat", "my gpt"),
        ("/openai/deployments/d/embeddings", "embeddings", "d"),
        ("/v1/completions", "completions", "m"),
        ("/v1/responses", "responses", "m"),
        ("/v1/responses/compact", "responses", "m"),
        ("/v1/embeddings", "embeddings", "m"),
        ("/v1/messages", "messages", "m"),
        ("/anthropic/v1/messages", "messages", "m"),
        ("/v1/threads/t/messages", "other", "m"),
        ("/v1beta/models/gemini-2.5-pro:generateContent", "generateContent", "gemini-2.5-pro"),
        ("/v1beta/models/gemini-2.5-pro%3AgenerateContent", "generateContent", "gemini-2.5-pro"),
        ("/v1beta/tunedModels/t-1:generateContent", "generateContent", "t-1"),
        ("/v1/projects/p/locations/l/publishers/google/models/g:streamGenerateContent", "streamGenerateContent", "g"),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/c:streamRawPredict", "messages", "c"),
        ("/v1/projects/p/locations/l/publishers/mistralai/models/c:rawPredict", "chat", "c"),
        ("/v1/projects/p/locations/l/publishers/other/models/c:rawPredict", "other", "c"),
        ("/v1beta/models/e:batchEmbedContents", "embedContent", "e"),
        ("/v1/images/generations", "images", "m"),
        ("/v1/batches", "other", "m"),
    ],
)
def test_the_path_names_the_api(path: str, api: str, model: str) -> None:
    call = inspect(ASKED, path)
    assert (call.api, call.model, call.billable) == (api, model, True)


@pytest.mark.parametrize(
    "method, path",
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/gpt-4o"),
        ("GET", "/v1/files/f"),
        ("DELETE", "/v1/responses/r"),
        ("POST", "/v1/moderations"),
        ("POST", "/v1/responses/input_tokens"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1beta/models/g:countTokens"),
        ("POST", "/v1/projects/p/publishers/anthropic/models/count-tokens:rawPredict"),
    ],
)
def test_free_endpoints_are_not_billable_and_read_as_zero(method: str, path: str) -> None:
    call = inspect(b"{}" if method == "POST" else b"", path, method=method)
    assert not call.billable
    meter = FAMILY.meter(PLAIN, call, 200, "application/json", "")
    meter.feed(b'{"usage":{"prompt_tokens":5},"input_tokens":51}')
    assert meter.reading() == Reading(usage=token_usage(0, 0), provenance=Provenance.NONE, terminal=True)


@pytest.mark.parametrize("path", ["/v1/files", "/v1/uploads", "/v1/uploads/u_1/parts", "/v1/uploads/u_1/complete"])
def test_uploads_are_free(path: str) -> None:
    assert not inspect(b"", path, content_type="multipart/form-data").billable
    assert inspect(b"{}", "/v1/batches").billable


def test_a_background_response_is_billed_where_it_is_fetched() -> None:
    call = inspect(b"", "/v1/responses/resp_1", method="GET", query="starting_after=0&stream=true")
    assert (call.api, call.stream, call.billable, call.model) == ("responses_retrieve", True, True, None)
    assert not inspect(b"", "/v1/responses/resp_1", method="GET", query="stream=false").stream


@pytest.mark.parametrize(
    "path, api",
    [
        ("/v1/chat/completion%73", "chat"),
        ("/v1/chat%2Fcompletions", "chat"),
        ("/v1/chat/completion%2573", "chat"),
        ("/v1/chat//completions//", "chat"),
        ("/v1//c%68at/completions%20", "chat"),
        ("/v1/chat/completions;a=b", "chat"),
        ("/v1;x/chat/completions;", "chat"),
        ("/V1/Chat/Completions", "chat"),
        ("/v1\\chat\\completions", "chat"),
        ("/v1/x%2F..%2Fchat%2Fcompletions", "chat"),
        ("/v1/chat/completions%3Fa=/moderations", "chat"),
        ("/v1/chat/completions%23/files", "chat"),
        ("/v1/me%73sages", "messages"),
        ("/v1/response%73", "responses"),
        ("/v1beta/models/m%3Agenerate%43ontent", "generateContent"),
        ("/model/m/conver%73e", "converse"),
        ("/v1/images/generation%73", "images"),
        ("/v1/text-to-speech/v/%73tream", "speech"),
    ],
)
def test_no_spelling_of_a_path_makes_a_call_one_that_is_not_metered(path: str, api: str) -> None:
    """Servers decode, fold and trim paths; a call that they take for what is sold is sold."""
    call = inspect(ASKED, path)
    assert call.api == api and call.billable


@pytest.mark.parametrize(
    "path", ["/v1/response%73/resp_1", "/v1/responses%2Fresp_1", "/v1//responses//resp_1", "/V1/Responses/resp_1"]
)
def test_no_spelling_of_a_path_hides_that_a_job_is_fetched(path: str) -> None:
    assert inspect(b"", path, method="GET").api == "responses_retrieve"


@pytest.mark.parametrize("path", ["/v1/moderations", "/v1/messages/count_tokens", "/v1/files", "/v1/responses/input_tokens"])
def test_what_is_free_stays_free(path: str) -> None:
    assert not inspect(ASKED, path).billable


@pytest.mark.parametrize(
    ("method", "path", "body", "api", "is_job"),
    [
        ("POST", "/v1/responses", b'{"model":"m","input":"x","background":true}', "responses", True),
        ("POST", "/v1/responses", b'{"model":"m","input":"x","background":false}', "responses", False),
        ("POST", "/v1/responses/resp_1/cancel", b"", "responses_retrieve", True),
        ("GET", "/openai/v1/responses/resp_1", b"", "responses_retrieve", True),
        ("POST", "/v1/models/meta/llama/predictions", b'{"input":{"prompt":"x"}}', "predictions", True),
        ("POST", "/v1/deployments/me/mine/predictions", b'{"input":{"prompt":"x"}}', "predictions", True),
        ("POST", "/v1/predictions", b'{"version":"v","input":{"prompt":"x"}}', "predictions", True),
        ("GET", "/v1/predictions/p1", b"", "predictions_retrieve", True),
        ("POST", "/v1/predictions/p1/cancel", b"", "predictions_retrieve", True),
    ],
)
def test_a_call_that_starts_or_reads_a_job_says_so(method: str, path: str, body: bytes, api: str, is_job: bool) -> None:
    """B7: such a job goes on when its client leaves, and its usage is billed by its own id."""
    call = inspect(body, path, method=method)
    assert (call.api, call.deferred, call.billable) == (api, is_job, True)


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"{", b"\xff\xfe", b"null"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(CallerError) as refused:
        inspect(body)
    assert (refused.value.status, refused.value.code) == (400, "invalid_request_body")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"])
@pytest.mark.parametrize("model", [None, "", 7, ["m"], "x" * 1000])
def test_a_missing_model_is_refused_where_the_body_must_name_it(path: str, model: object) -> None:
    with pytest.raises(CallerError) as refused:
        inspect({"model": model}, path)
    assert (refused.value.status, refused.value.code) == (400, "model_required")


def test_a_model_in_the_url_or_in_a_stored_prompt_is_enough() -> None:
    assert inspect({}, "/openai/deployments/d/chat/completions").model == "d"
    assert inspect({"prompt": {"id": "pmpt_1"}}, "/v1/responses").model is None
    assert inspect({}, "/v1beta/models/g:generateContent").model == "g"


@pytest.mark.parametrize("body", [b'{"model":"m","messages":[]} and more', b'\xef\xbb\xbf{"model":"m"}', b"\x1f\x8b", b"model=m"])
def test_a_body_that_is_read_by_kinder_servers_only_is_held_for(body: bytes) -> None:
    """I14: some read a JSON value and no further, some want no content type: without a hold, an empty wallet calls for ever."""
    call = inspect(body, content_type="application/x-www-form-urlencoded")
    assert call.billable and call.ceiling.output_tokens == DEFAULT_OUTPUT_TOKENS_MAX and call.ceiling.input_tokens > 0


def test_other_content_types_never_fail() -> None:
    form = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\n'
        b"Content-Type: audio/mpeg\r\n\r\n\xff\xfb\x00\r\n"
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n'
        b'--b\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n--b--\r\n'
    )
    call = inspect(form, "/v1/audio/transcriptions", content_type="multipart/form-data; boundary=b")
    assert (call.api, call.model, call.stream, call.body) == ("transcriptions", "whisper-1", True, form)
    assert inspect(b"\x00\x01", content_type="application/octet-stream").model is None
    assert inspect(b"not json", "/v1/batches").api == "other"


def test_a_lone_surrogate_in_the_prompt_is_no_reason_to_refuse() -> None:
    assert inspect(b'{"model":"m","messages":[{"content":"\\ud83d"}]}').model == "m"


# --- the ceiling ----------------------------------------------------------------------------------------------------


def output_ceiling(body: dict[str, Any], path: str = "/v1/chat/completions") -> int:
    return inspect({"model": "m", **body}, path).ceiling.output_tokens


@pytest.mark.parametrize(
    "path, body, tokens",
    [
        ("/v1/chat/completions", {}, DEFAULT_OUTPUT_TOKENS_MAX),
        ("/v1/chat/completions", {"max_tokens": 50}, 50),
        ("/v1/chat/completions", {"max_completion_tokens": 70, "n": 3}, 210),
        ("/v1/chat/completions", {"max_tokens": -1, "n": "x"}, DEFAULT_OUTPUT_TOKENS_MAX),
        ("/v1/chat/completions", {"max_tokens": 1.5, "n": True}, DEFAULT_OUTPUT_TOKENS_MAX),
        ("/v1/chat/completions", {"max_tokens": 10**12, "n": 10**9}, OUTPUT_TOKENS_MAX),
        ("/v1/completions", {"max_tokens": 10, "best_of": 4, "n": 2}, 40),
        ("/v1/completions", {"max_tokens": 10, "prompt": ["a", "b", "c"]}, 30),
        ("/v1/completions", {"max_tokens": 10, "prompt": [1, 2, 3]}, 10),
        ("/v1/responses", {"max_output_tokens": 99}, 99),
        ("/v1/messages", {"max_tokens": 1000}, 1000),
        ("/v1/embeddings", {"input": "x"}, 0),
        ("/v1beta/models/g:generateContent", {"generationConfig": {"maxOutputTokens": 9, "candidateCount": 2}}, 18),
        ("/v1beta/models/g:generateContent", {"generation_config": {"max_output_tokens": 9}}, 9),
    ],
)
def test_the_output_ceiling_is_the_limit_times_the_choices(path: str, body: dict[str, Any], tokens: int) -> None:
    """E10, F9"""
    assert output_ceiling(body, path) == tokens


def test_the_default_limit_can_be_set() -> None:
    family = ModelApis(default_output_tokens_max=5)
    call = family.inspect(PLAIN, "POST", "/v1/chat/completions", "", "application/json", json.dumps(ASKED).encode())
    assert call.ceiling.output_tokens == 5


def input_ceiling(body: dict[str, Any], path: str = "/v1/chat/completions") -> int:
    return inspect({"model": "m", **body}, path).ceiling.input_tokens - HIDDEN_PROMPT_TOKENS


def test_text_counts_two_bytes_a_token() -> None:
    body = json.dumps(ASKED).encode()
    assert inspect(body).ceiling.input_tokens == len(body) // 2 + 1 + HIDDEN_PROMPT_TOKENS


def test_media_counts_by_kind_and_not_by_byte() -> None:
    """A28: files are estimated by bytes with rules per modality."""
    blob = base64.b64encode(bytes(range(256)) * 3000).decode()  # 1 MB encoded
    openai_image = {"messages": [{"content": [{"image_url": {"url": "data:image/png;base64," + blob}}]}]}
    anthropic_image = {"source": {"type": "base64", "media_type": "image/png", "data": blob}}
    google_image = {"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": blob}}]}]}
    linked = {"messages": [{"content": [{"image_url": {"url": "https://x.test/a.png"}}]}]}
    for body in (openai_image, {"messages": [{"content": [anthropic_image]}]}, google_image, linked):
        assert IMAGE_TOKENS <= input_ceiling(body) < IMAGE_TOKENS + 200
    document = {"messages": [{"content": [{"source": {"media_type": "application/pdf", "data": blob}, "type": "document"}]}]}
    sound = {"messages": [{"content": [{"input_audio": {"format": "wav", "data": blob}}]}]}
    for body in (document, sound):
        assert 768_000 // 50 <= input_ceiling(body) < 768_000 // 50 + 200
    assert input_ceiling({"messages": [{"content": blob}]}) > 400_000  # text without a media mark is text


def test_what_the_server_adds_is_allowed_for() -> None:
    assert input_ceiling({"previous_response_id": "r"}, "/v1/responses") > HISTORY_TOKENS
    assert input_ceiling({"tools": [{"type": "web_search"}]}, "/v1/responses") > SERVER_TOOL_TOKENS
    assert input_ceiling({"tools": [{"google_search": {}}]}, "/v1beta/models/g:generateContent") > SERVER_TOOL_TOKENS
    assert input_ceiling({"tools": [{"type": "function", "function": {}}]}) < 100
    assert input_ceiling({"tools": [{"name": "f", "input_schema": {}}]}, "/v1/messages") < 100


def test_the_input_ceiling_has_an_end() -> None:
    assert inspect({"model": "m", "x": "y " * 3_000_000}).ceiling.input_tokens == INPUT_TOKENS_MAX


def test_deep_or_odd_bodies_do_not_hurt() -> None:
    deep: Any = "image"
    for _ in range(900):
        deep = [deep]
    assert inspect({"model": "m", "image": deep, "tools": [1, {"type": []}], "generationConfig": 3}).model == "m"


# --- the spliced option ---------------------------------------------------------------------------------------------

STREAMING = b' {"model":"m",  "stream":true,"messages":[{"content":"\xe6\x97\xa5 \\u65e5"}] }\n'


def test_the_option_is_spliced_in_and_every_other_byte_stays() -> None:
    """I14"""
    call = inspect(STREAMING, of=SPLICING)
    assert call.spliced
    assert call.body == STREAMING.replace(b"{", b'{"stream_options":{"include_usage":true},', 1)
    assert json.loads(call.body)["stream_options"] == {"include_usage": True}
    assert FAMILY.relay(call) is not None


@pytest.mark.parametrize(
    "options, spliced",
    [
        (b"null", b'{"include_usage":true}'),
        (b"{}", b'{"include_usage":true}'),
        (b'{ "include_obfuscation": false }', b'{"include_usage":true, "include_obfuscation": false }'),
        (b'{"include_usage": false, "a":1}', b'{"include_usage": true, "a":1}'),
        (b'{"include_usage":null}', b'{"include_usage":true}'),
    ],
)
def test_existing_options_are_kept(options: bytes, spliced: bytes) -> None:
    decoy = b'"tools":[{"type":"function","function":{"d":"\\"stream_options\\": null"}}],'
    head = b'{"model":"m","stream":true,' + decoy + b'"stream_options": '
    call = inspect(head + options + b"}", of=SPLICING)
    assert call.spliced
    assert call.body.replace(b" ", b"") == (head + spliced + b"}").replace(b" ", b"")


def test_a_splice_that_would_change_something_else_is_not_made() -> None:
    schema = b'{"model":"m","stream":true,"x":{"stream_options":null},"stream_options":null}'
    call = inspect(schema, of=SPLICING)
    assert not call.spliced
    assert call.body == schema


@pytest.mark.parametrize(
    "of, path, query, body",
    [
        (PLAIN, "/v1/chat/completions", "", {"stream": True}),
        (SPLICING, "/v1/chat/completions", "", {"stream": False}),
        (SPLICING, "/v1/chat/completions", "", {}),
        (SPLICING, "/v1/chat/completions", "", {"stream": True, "stream_options": {"include_usage": True}}),
        (SPLICING, "/v1/chat/completions", "", {"stream": True, "stream_options": "x"}),
        (SPLICING, "/v1/responses", "", {"stream": True}),
        (SPLICING, "/v1/messages", "", {"stream": True}),
        (AZURE, "/openai/deployments/d/chat/completions", "api-version=2024-02-01", {"stream": True}),
        (AZURE, "/openai/deployments/d/chat/completions", "", {"stream": True}),
    ],
)
def test_the_option_is_not_spliced_where_it_is_not_wanted(of: Provider, path: str, query: str, body: dict[str, Any]) -> None:
    raw = json.dumps({"model": "m", **body}).encode()
    call = inspect(raw, path, of=of, query=query)
    assert (call.spliced, call.body) == (False, raw)
    assert FAMILY.relay(call) is None


@pytest.mark.parametrize(
    "path, query",
    [
        ("/openai/deployments/d/chat/completions", "api-version=2024-08-01-preview"),
        ("/openai/deployments/d/completions", "x=1&api-version=2024-10-21"),
        ("/openai/v1/chat/completions", ""),
    ],
)
def test_azure_is_asked_from_the_version_that_knows_the_option(path: str, query: str) -> None:
    assert inspect({"model": "m", "stream": True}, path, of=AZURE, query=query).spliced


# --- estimates ------------------------------------------------------------------------------------------------------


def test_an_estimate_counts_the_body_and_the_relayed_text() -> None:
    call = inspect({"model": "m", "messages": [{"content": "word " * 1000}]})
    reading = Reading(usage=None, provenance=Provenance.NONE, output_text_bytes=401)
    guessed = estimate(provider(output_factor_percent=150), call, reading)
    assert guessed == token_usage(-(-1001 * 150 // 100) + 7, 151)
    assert estimate(provider(output_factor_percent=150), call, reading, quick=True).input_tokens == len(call.body) // 4 + 1


def test_an_estimate_is_never_below_what_was_reported() -> None:
    """A13, C2: early input counts are the provider's, and so is a cumulative output."""
    call = inspect(ASKED)
    reported = token_usage(17, 40, cached=3, uncached_input_tokens=14)
    early = Reading(usage=reported, provenance=Provenance.PROVIDER_PARTIAL, output_text_bytes=8)
    assert estimate(PLAIN, call, early) == reported
    late = Reading(usage=reported, provenance=Provenance.PROVIDER_PARTIAL, output_text_bytes=400)
    assert estimate(PLAIN, call, late) == Usage({**reported.units, "output_tokens": 100})


def test_an_estimate_without_a_json_body_knows_only_the_output() -> None:
    call = inspect(b"\x00", "/v1/audio/speech", content_type="audio/wav")
    reading = Reading(usage=None, provenance=Provenance.NONE, output_text_bytes=4)
    assert estimate(PLAIN, call, reading) == token_usage(0, 1)


def test_an_estimate_does_not_count_media_by_the_byte() -> None:
    """A28"""
    image = "data:image/png;base64," + "A" * 1_000_000
    call = inspect({"model": "m", "messages": [{"content": [{"image_url": {"url": image}}]}]})
    guessed = estimate(PLAIN, call, Reading(usage=None, provenance=Provenance.NONE))
    assert guessed.input_tokens < IMAGE_TOKENS + 100


# --- passthrough ----------------------------------------------------------------------------------------------------


def test_passthrough_refuses_nothing_and_reads_nothing() -> None:
    family = Passthrough()
    for content_type, body in (("application/json", b"{"), ("", b"\x00"), ("application/json", b'{"model":7}')):
        call = family.inspect(PLAIN, "POST", "/x", "", content_type, body)
        assert (call.api, call.model, call.body, call.billable) == ("other", None, body, True)
        meter = family.meter(PLAIN, call, 200, "audio/mpeg", "gzip")
        meter.feed(b"\x00" * 1000)
        assert meter.reading() == Reading(usage=None, provenance=Provenance.NONE)
        assert family.relay(call) is None
    call = family.inspect(PLAIN, "POST", "/x", "", "application/json; charset=utf-8", b'{"model":"eleven","stream":true}')
    assert (call.model, call.stream) == ("eleven", True)


@pytest.mark.parametrize(
    ("body", "is_open"),
    [
        ({**ASKED, "stream": True}, True),
        ({**ASKED, "stream": True, "max_tokens": None}, True),
        ({"model": "m", "messages": [{"role": "user", "content": '"max_tokens": 5'}], "stream": True}, True),
        ({**ASKED, "stream": True, "max_tokens": 5}, False),
        ({**ASKED, "stream": True, "max_completion_tokens": 5}, False),
        (ASKED, False),
    ],
)
def test_a_stream_without_a_limit_of_its_own_is_open_ended(body: dict[str, Any], is_open: bool) -> None:
    """E5: only these can outgrow their holds."""
    assert inspect(body).open_ended is is_open
