"""gateway/sigv4.py: the same signature as AWS' own SDK makes, and nobody's credentials where they do not belong."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from lava_proxy.gateway import sigv4
from lava_proxy.gateway.head_plans import Routes
from lava_proxy.gateway.sigv4 import AccessKey, access_key_of, region_of, signed
from tests.unit.gateway.fake_registry import OPENAI, FakeRegistry, provider

NOW = datetime(2026, 11, 23, 17, 40, 1, tzinfo=UTC)
KEY = AccessKey("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")  # of AWS' documentation
TEMPORARY = AccessKey("ASIAIOSFODNN7EXAMPLE", KEY.secret, "IQoJb3JpZ2luX2VjEA//session==")
STORED = f"{KEY.access_key}:{KEY.secret}"
HOST = "bedrock-runtime.eu-west-3.amazonaws.com"


def _headers(head: bytes) -> dict[str, str]:
    """Lower-case name -> value; none stands twice."""
    lines = head.removesuffix(b"\r\n").split(b"\r\n")[1:]
    found = [line.decode("latin-1").partition(": ") for line in lines]
    assert len({name.lower() for name, _, _ in found}) == len(found)
    return {name.lower(): value for name, _, value in found}


def _by_botocore(target: str, body: bytes, key: AccessKey, extra: dict[str, str]) -> str:
    """The Authorization that botocore makes of the same request."""
    headers = {
        "Host": HOST,
        "X-Amz-Date": NOW.strftime("%Y%m%dT%H%M%SZ"),
        "X-Amz-Content-SHA256": sha256(body).hexdigest(),
        **extra,
    }
    if key.session:
        headers["X-Amz-Security-Token"] = key.session
    request: Any = AWSRequest(method="POST", url=f"https://{HOST}{target}", data=body, headers=headers)
    request.context["timestamp"] = headers["X-Amz-Date"]
    auth = SigV4Auth(Credentials(key.access_key, key.secret, key.session), "bedrock", "eu-west-3")
    text = auth.string_to_sign(request, auth.canonical_request(request))
    names = auth.signed_headers(auth.headers_to_sign(request))
    scope = auth.scope(request)
    return f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature={auth.signature(text, request)}"


def _ours(target: str, body: bytes, key: AccessKey, extra: dict[str, str]) -> dict[str, str]:
    lines = [f"POST {target} HTTP/1.1", f"host: {HOST}", "User-Agent: any", *(f"{name}: {value}" for name, value in extra.items())]
    return _headers(signed("\r\n".join(lines).encode() + b"\r\n", body, key, region="eu-west-3", now=NOW))


@pytest.mark.parametrize("key", [KEY, TEMPORARY])
@pytest.mark.parametrize(
    "target",
    [
        "/model/anthropic.claude-v2/converse",
        "/model/anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse-stream",
        "/model/us.amazon.nova-pro-v1:0/invoke",
        "/model/arn%3Aaws%3Abedrock%3Aeu-west-3%3A1%3Aprovisioned-model%2Fx/invoke",
        "/a//b/./c/../d~e/",
        "/",
        "/x?b=2&a=1&a=0&c",
        "/x?q=%20y&empty=",
        "/x?a&=&a",
    ],
)
def test_the_signature_is_that_of_aws_own_sdk(target: str, key: AccessKey) -> None:
    """J6: canonical path encoded once more, parameters in order, session token and other x-amz headers signed."""
    for body, extra in ((b'{"messages":[]}', {}), (b"", {"X-Amzn-Trace": "n", "X-Amz-Target": " a   b "})):
        found = _ours(target, body, key, extra)
        amz = {name: value for name, value in extra.items() if name.lower().startswith("x-amz-")}
        assert found["authorization"] == _by_botocore(target, body, key, amz)
        assert found["x-amz-content-sha256"] == sha256(body).hexdigest()
        assert found.get("x-amz-security-token") == key.session


@given(
    st.text(st.sampled_from("ab/.:%25-_~"), max_size=20), st.text(st.sampled_from("ab=&+%-"), max_size=20), st.binary(max_size=50)
)  # fmt: skip
def test_any_path_query_and_body_are_signed_as_aws_own_sdk_does(path: str, query: str, body: bytes) -> None:
    target = "/" + path.lstrip("/") + (f"?{query}" if query.strip("&=") == query and "&&" not in query and query else "")
    assert _ours(target, body, KEY, {})["authorization"] == _by_botocore(target, body, KEY, {})


def test_a_signature_that_the_request_brought_is_replaced() -> None:
    """The caller's own AWS headers are about another hop."""
    stale = {
        "Authorization": "AWS4-HMAC-SHA256 x",
        "X-Amz-Date": "1",
        "x-amz-security-token": "callers",
        "X-AMZ-Content-Sha256": "0",
    }
    assert _ours("/x", b"b", KEY, stale) == _ours("/x", b"b", KEY, {})


@pytest.mark.parametrize(
    ("stored", "key"),
    [
        (STORED, KEY),
        (f"{TEMPORARY.access_key}:{KEY.secret}:{TEMPORARY.session}", TEMPORARY),
        ("ABSKQmVkcm9ja0FQSUtleS1hYmM=", None),
        ("bedrock-api-key-YmVkcm9jaw==", None),
        (KEY.access_key, None),
        (f"{KEY.access_key}:", None),
        ("AKIA:x", None),
    ],
)
def test_an_access_key_is_told_from_an_api_key_by_its_form(stored: str, key: AccessKey | None) -> None:
    assert access_key_of(stored) == key
    assert KEY.secret not in repr(access_key_of(stored))


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://bedrock-runtime.us-east-1.amazonaws.com/model/m/converse", "us-east-1"),
        ("https://bedrock-runtime-fips.us-gov-west-1.amazonaws.com/", "us-gov-west-1"),
        ("https://bedrock-runtime.cn-north-1.amazonaws.com.cn/", "cn-north-1"),
        ("https://api.openai.com/bedrock-runtime.us-east-1.amazonaws.com", None),
    ],
)
def test_the_region_is_that_of_the_host(url: str, region: str | None) -> None:
    assert region_of(url) == region


# --- in the head that goes upstream --------------------------------------------------------------------------------------

BEDROCK = provider(
    "bedrock", "bedrock-runtime.*.amazonaws.com", "https://bedrock-runtime.us-east-1.amazonaws.com", family="bedrock",
    override="http://127.0.0.1:9",
)  # fmt: skip
ROUTES = Routes(FakeRegistry(BEDROCK, OPENAI))
OWN = [(b"Authorization", b"Bearer our-own-forward-token"), (b"X-Amz-Date", b"20200101T000000Z"), (b"Content-Type", b"a/b")]


def _head(raw_target: bytes, key: str, body: bytes, *, length: int | None = None) -> dict[str, str]:
    route: Any = ROUTES.find("POST", raw_target)
    whole = route.plan(OWN).upstream_head(key, len(body) if length is None else length, force_identity=False, body=body)
    assert whole.endswith(b"\r\n\r\n") and whole.count(b"\r\n\r\n") == 1
    return _headers(whole[:-2])


def test_an_access_key_signs_and_never_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    """J6: neither the secret nor our own token is in the head; the region is the host's, also behind an override."""
    body = b'{"messages":[]}'
    found = _head(b"/v1/forward?u=https://bedrock-runtime.eu-west-3.amazonaws.com/model/m/converse", STORED, body)
    assert "/eu-west-3/bedrock/aws4_request" in found["authorization"] and found["content-length"] == str(len(body))
    assert found["x-amz-content-sha256"] == sha256(body).hexdigest() and found["x-amz-date"] != "20200101T000000Z"
    assert found["content-type"] == "a/b" and found["host"] == "127.0.0.1:9"
    assert not any(KEY.secret in value or "forward-token" in value for value in found.values())
    assert "/us-east-1/" in _head(b"/v1/forward/bedrock/model/m/converse", STORED, body)["authorization"]


def test_each_call_is_signed_anew_with_its_own_body() -> None:
    """A head is remembered, a signature never."""
    found = [_head(b"/v1/forward/bedrock/model/m/converse", STORED, body)["authorization"] for body in (b"one", b"two")]
    assert found[0] != found[1]


def test_an_api_key_stays_a_bearer_and_other_providers_sign_nothing() -> None:
    assert _head(b"/v1/forward/bedrock/model/m/converse", "ABSK-api-key", b"")["authorization"] == "Bearer ABSK-api-key"
    assert _head(b"/v1/forward/openai/v1/chat/completions", STORED, b"")["authorization"] == f"Bearer {STORED}"
    assert (sigv4.SERVICE, sigv4.MANTLE_SERVICE) == ("bedrock", "bedrock-mantle")
