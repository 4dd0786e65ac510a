"""Bedrock with an AWS access key: the provider sees a valid signature, nobody sees the key."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.integration.gateway.fakes import chat_body
from tests.integration.gateway.harness import NANOS_PER_TOKEN, Gateway, chat_request

ACCESS_KEY, SECRET, SESSION = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "IQoJb3JpZ2luX2VjEA//session=="
CONVERSE = "/v1/forward/bedrock/model/us.amazon.nova-pro-v1%3A0/converse"
ANSWER = {
    "output": {"message": {"role": "assistant", "content": [{"text": "Hi"}]}},
    "usage": {"inputTokens": 10, "outputTokens": 5},
}


def expected(call: Any, session: str | None, service: str = "bedrock") -> str:
    """The Authorization that botocore makes of the request that arrived."""
    names = call.header(b"authorization").decode().partition("SignedHeaders=")[2].partition(",")[0].split(";")
    headers = {name: call.header(name.encode()).decode() for name in names}
    request: Any = AWSRequest(method="POST", url=f"http://{headers['host']}{call.target}", data=call.body, headers=headers)
    request.context["timestamp"] = headers["x-amz-date"]
    auth = SigV4Auth(Credentials(ACCESS_KEY, SECRET, session), service, "us-east-1")
    signature = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    return f"AWS4-HMAC-SHA256 Credential={auth.scope(request)}, SignedHeaders={';'.join(names)}, Signature={signature}"


@pytest.mark.parametrize("session", [None, SESSION])
async def test_a_stored_access_key_signs_the_call_and_reaches_neither_side(gateway: Gateway, session: str | None) -> None:
    """J6: the caller's token stays with us, the provider key too; the answer is metered as any other."""
    key = f"{ACCESS_KEY}:{SECRET}" + (f":{session}" if session else "")
    await gateway.world.catalog.set_provider_key(gateway.merchant.merchant_id, "bedrock", key)
    gateway.provider.answer = lambda call: call.answer(json.dumps(ANSWER).encode())
    client = await gateway.client()
    body = {"messages": [{"role": "user", "content": [{"text": "Hi"}]}], "inferenceConfig": {"maxTokens": 50}}
    for _ in range(2):  # a remembered head is signed anew
        client.send(gateway.request(body, target=CONVERSE))
        response = await client.response()
        assert (response.status, json.loads(response.body)) == (200, ANSWER)
        assert (
            SECRET.encode() not in response.raw_head + response.body
            and ACCESS_KEY.encode() not in response.raw_head + response.body
        )
    for call in gateway.provider.calls:
        assert call.header(b"authorization").decode() == expected(call, session)
        assert call.header(b"x-amz-security-token") == (session.encode() if session else None)
        assert SECRET.encode() not in call.head + call.body and gateway.token.encode() not in call.head + call.body
    rows = await gateway.rows()
    assert [(row["provider_key_type"], row["charge_nanos"]) for row in rows] == [("stored", 15 * NANOS_PER_TOKEN)] * 2


async def test_a_stored_api_key_is_sent_as_bearer(gateway: Gateway) -> None:
    await gateway.world.catalog.set_provider_key(gateway.merchant.merchant_id, "bedrock", "ABSKQmVkcm9ja0FQSUtleQ==")
    gateway.provider.answer = lambda call: call.answer(json.dumps(ANSWER).encode())
    client = await gateway.client()
    client.send(gateway.request({"messages": []}, target=CONVERSE))
    assert (await client.response()).status == 200
    [call] = gateway.provider.calls
    assert call.header(b"authorization") == b"Bearer ABSKQmVkcm9ja0FQSUtleQ==" and call.header(b"x-amz-date") is None


async def test_the_openai_endpoint_of_bedrock_is_signed_as_the_service_it_is(gateway: Gateway) -> None:
    """J6: its signatures name `bedrock-mantle`; IAM knows it by that."""
    await gateway.world.catalog.set_provider_key(gateway.merchant.merchant_id, "bedrock-mantle", f"{ACCESS_KEY}:{SECRET}:{SESSION}")
    gateway.provider.answer = lambda call: call.answer(chat_body())
    client = await gateway.client()
    client.send(gateway.request(chat_request(), target="/v1/forward/bedrock-mantle/v1/chat/completions"))
    assert (await client.response()).status == 200
    [call] = gateway.provider.calls
    assert call.header(b"authorization").decode() == expected(call, SESSION, "bedrock-mantle")
    assert SECRET.encode() not in call.head + call.body
    assert (await gateway.row())["charge_nanos"] == 15 * NANOS_PER_TOKEN
