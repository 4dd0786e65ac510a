"""Credentials: every place and every form leads to the right payer, and none of it travels on to the provider."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from lava_proxy.wire.forward_token import mint
from tests.integration.gateway.conftest import StartGateway
from tests.integration.gateway.fakes import chat_body
from tests.integration.gateway.harness import CHAT, MERCHANT_NANOS, NANOS_PER_TOKEN, Gateway, World, chat_request

PLACES = ("authorization", "bearer in lower case", "x-api-key", "x-goog-api-key", "xi-api-key", "api-key", "query")


def encoded(members: dict[str, Any]) -> str:
    return base64.b64encode(json.dumps(members).encode()).decode()


async def call(gateway: Gateway, token: str, place: str = "authorization") -> tuple[int, bytes]:
    gateway.provider.answer = lambda call: call.answer(chat_body())
    client = await gateway.client()
    target, headers = CHAT, ()
    if place == "query":
        target += f"?key={token.replace('+', '%2B').replace('=', '%3D')}&keep=1"
    elif place == "authorization":
        headers = (f"Authorization: Bearer {token}",)
    elif place == "bearer in lower case":
        headers = (f"authorization: bearer  {token}",)
    else:
        headers = (f"{place}: {token}",)
    client.send(gateway.request(target=target, token=None, headers=headers))
    response = await client.response()
    return response.status, response.body


@pytest.mark.parametrize("place", PLACES)
async def test_a_credential_is_found_in_every_place_and_goes_no_further(gateway: Gateway, place: str) -> None:
    """J6: its value is in no header, query or body that reaches the provider."""
    token = gateway.token
    status, _ = await call(gateway, token, place)
    assert status == 200
    row = await gateway.row()
    assert (row["connection_id"], row["charge_nanos"]) == (gateway.connection.connection_id, 15 * NANOS_PER_TOKEN)
    [sent] = gateway.provider.calls
    assert token.encode() not in sent.head + sent.body
    assert gateway.secret_key.encode() not in sent.head + sent.body
    assert sent.header(b"authorization") == b"Bearer sk-of-the-installation"
    assert b"key=" not in sent.target.encode()
    if place == "query":
        assert sent.target.endswith("?keep=1")


def token_forms(gateway: Gateway, connection_secret: str, meter_secret: str) -> dict[str, tuple[str, str]]:
    """Form -> (token, who pays)."""
    key, connection, meter = gateway.secret_key, gateway.connection, gateway.meter
    by_secret = {"secret_key": key, "connection_secret": connection_secret}
    newest = encoded({"secret_key": key, "customer_id": connection.connection_id, "meter_slug": "fixed"})
    return {
        "generation A": (encoded({**by_secret, "product_secret": meter_secret}), "customer"),
        "generation A, own provider key": (
            encoded({"secret_key": key, "connection_secret": None, "product_secret": None, "provider_key": "sk-mine"}),
            "merchant, own key",
        ),
        "generation B": (encoded({**by_secret, "meter_secret": meter_secret}), "customer"),
        "generation C": (
            encoded({"secret_key": key, "connection_id": connection.connection_id, "meter_slug": "fixed"}),
            "customer",
        ),
        "generation D": (newest, "customer"),
        "by reference id": (mint(key, "customer-1", "fixed"), "customer"),
        "by meter id": (
            encoded({"secret_key": key, "customer_id": connection.connection_id, "meter_id": meter.meter_id}),
            "customer",
        ),
        "meter only": (encoded({"secret_key": key, "customer_id": None, "meter_slug": "fixed"}), "merchant"),
        "merchant only": (encoded({"secret_key": key}), "merchant"),
        "bare key": (key, "merchant"),
        "dotted": (base64.b64encode(f"{key}.{connection_secret}.{meter_secret}".encode()).decode(), "customer"),
        "unpadded": (newest.rstrip("="), "customer"),
        "url-safe": (newest.replace("+", "-").replace("/", "_"), "customer"),
        "wrapped": (f"{newest[:60]} {newest[60:]}", "customer"),
        "without billing": (mint(key, connection.connection_id, "fixed", disable_billing=True), "nobody"),
    }


FORMS = (
    "generation A", "generation A, own provider key", "generation B", "generation C", "generation D", "by reference id",
    "by meter id", "meter only", "merchant only", "bare key", "dotted", "unpadded", "url-safe", "wrapped", "without billing",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
async def test_every_form_of_token_leads_to_its_payer(gateway: Gateway, form: str) -> None:
    forms = token_forms(gateway, gateway.connection.secret or "", gateway.meter.secret or "")
    assert set(forms) == set(FORMS)
    token, payer = forms[form]
    status, body = await call(gateway, token)
    assert status == 200, body
    row = await gateway.row()
    if payer == "customer":
        assert (row["wallet_id"], row["charge_nanos"]) == (gateway.connection.wallet_id, 15 * NANOS_PER_TOKEN)
        assert row["meter_id"] == gateway.meter.meter_id
    elif payer == "nobody":
        assert (row["connection_id"], row["charge_nanos"], row["billed"]) == (gateway.connection.connection_id, 0, False)
    else:
        assert (row["wallet_id"], row["connection_id"]) == (gateway.merchant.wallet_id, None)
        is_own_key = payer == "merchant, own key"
        # gpt-4o-mini: $0.15 and $0.60 a million tokens; with a key of their own the provider has been paid already
        assert row["charge_nanos"] == (0 if is_own_key else 10 * 150 + 5 * 600)
        assert await gateway.balance(gateway.merchant.wallet_id) == MERCHANT_NANOS - row["charge_nanos"]


async def test_a_key_in_the_token_is_sent_to_the_provider_and_the_row_says_unmanaged(gateway: Gateway) -> None:
    token = mint(gateway.secret_key, gateway.connection.connection_id, "fixed", provider_key="sk-of-the-caller")
    status, _ = await call(gateway, token)
    assert status == 200
    assert gateway.provider.calls[0].header(b"authorization") == b"Bearer sk-of-the-caller"
    assert (await gateway.row())["provider_key_type"] == "unmanaged"


async def test_a_key_stored_for_the_merchant_is_sent_to_the_provider_and_the_row_says_stored(
    gateway: Gateway, world: World
) -> None:
    await world.catalog.set_provider_key(gateway.merchant.merchant_id, "openai", "sk-stored")
    status, _ = await call(gateway, gateway.token)
    assert status == 200
    assert gateway.provider.calls[0].header(b"authorization") == b"Bearer sk-stored"
    assert (await gateway.row())["provider_key_type"] == "stored"


async def test_the_key_of_the_installation_is_the_last_resort_and_the_row_says_managed(gateway: Gateway) -> None:
    await call(gateway, gateway.token)
    assert (await gateway.row())["provider_key_type"] == "managed"


@pytest.mark.parametrize(
    ("target", "header", "value"),
    [
        ("/v1/forward/anthropic/v1/messages", b"x-api-key", b"sk-anthropic"),
        ("/v1/forward/google/v1beta/models/gemini-2.0-flash:generateContent", b"x-goog-api-key", b"sk-google"),
        ("/v1/forward/elevenlabs/v1/text-to-speech/x", b"xi-api-key", b"sk-elevenlabs"),
    ],
)
async def test_each_provider_gets_its_key_in_its_own_header(start: StartGateway, target: str, header: bytes, value: bytes) -> None:
    gateway = await start(env_keys={name: f"sk-{name}" for name in ("anthropic", "google", "elevenlabs")})
    gateway.provider.answer = lambda call: call.answer(b"{}")
    client = await gateway.client()
    client.send(gateway.request(chat_request(), target=target, headers=("X-Api-Key: " + gateway.token,)))
    assert (await client.response()).status == 200
    [sent] = gateway.provider.calls
    keys = {name: sent.header(name) for name in (b"authorization", b"x-api-key", b"x-goog-api-key", b"xi-api-key", b"api-key")}
    assert keys == {**dict.fromkeys(keys), header: value}


async def test_a_provider_key_never_reaches_the_client(gateway: Gateway) -> None:
    """Trust boundary: not in an answer, not in an error of ours."""
    token = mint(gateway.secret_key, gateway.connection.connection_id, "fixed", provider_key="sk-of-the-caller")
    client = await gateway.client()
    client.send(gateway.request(token=token))
    (await gateway.provider.next_call()).reset()
    response = await client.response()
    assert response.status == 502
    assert b"sk-of" not in response.raw_head + response.body


async def test_a_merchants_token_cannot_name_the_customer_or_meter_of_another(gateway: Gateway, world: World) -> None:
    other = await world.catalog.create_merchant("Other")
    key = await world.catalog.create_secret_key(other.merchant_id, "Other", live=False)
    for customer in (gateway.connection.connection_id, "customer-1", gateway.connection.secret):
        status, body = await call(gateway, mint(key, customer, "fixed"))
        assert status == 403, body
    assert gateway.provider.connections_made == 0


async def test_a_refused_credential_is_asked_for_again_after_a_moment(gateway: Gateway, world: World) -> None:
    token = mint(gateway.secret_key, "customer-2", "fixed")
    assert (await call(gateway, token))[0] == 403
    await world.catalog.create_connection(gateway.merchant.merchant_id, reference_id="customer-3")
    assert (await call(gateway, token))[0] == 403
