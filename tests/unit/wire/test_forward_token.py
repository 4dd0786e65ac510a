"""wire/forward_token.py: every historical form is read, the newest is minted, refusals never quote the secret."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_proxy.domain.errors import BadToken
from lava_proxy.wire.forward_token import CREDENTIAL_BYTES_MAX, Credential, mint, parse_credential

KEY = "aks_live_s3cr3tKey-_0"


def encode(members: object, *, spaces: bool = False) -> str:
    separators = (", ", ": ") if spaces else (",", ":")
    return base64.b64encode(json.dumps(members, separators=separators).encode()).decode()


def read(members: dict[str, object]) -> Credential:
    return parse_credential(encode(members))


@pytest.mark.parametrize(
    ("members", "customer", "meter"),
    [
        (
            {"connection_secret": "cons_live_x", "product_secret": "ps_y"},
            ("connection_secret", "cons_live_x"),
            ("product_secret", "ps_y"),
        ),
        ({"connection_secret": None, "product_secret": None, "provider_key": "sk-1"}, (None, None), (None, None)),
        (
            {"connection_secret": "cons_x", "meter_secret": "ms_y"},
            ("connection_secret", "cons_x"),
            ("meter_secret", "ms_y"),
        ),
        ({"connection_id": "con_1", "meter_slug": "chat"}, ("connection_id", "con_1"), ("meter_slug", "chat")),
        ({"customer_id": "con_1", "meter_slug": "chat"}, ("customer_id", "con_1"), ("meter_slug", "chat")),
        ({"reference_id": "Zoë at work", "meter_id": "prd_1"}, ("reference_id", "Zoë at work"), ("meter_id", "prd_1")),
        ({"customer_id": None, "meter_slug": "chat"}, (None, None), ("meter_slug", "chat")),
        ({"connection_secret": "cons_x"}, ("connection_secret", "cons_x"), (None, None)),
        ({}, (None, None), (None, None)),
    ],
)
def test_every_generation_is_read(
    members: dict[str, object], customer: tuple[str | None, str | None], meter: tuple[str | None, str | None]
) -> None:
    found = read({"secret_key": KEY, **members})
    assert found.kind == "token"
    assert found.secret_key == KEY
    assert (found.customer_field, found.customer_ref) == customer
    assert (found.meter_field, found.meter_ref) == meter


def test_provider_key_and_disable_billing() -> None:
    found = read({"secret_key": KEY, "customer_id": "c", "meter_slug": "m", "provider_key": "sk-x", "disable_billing": True})
    assert (found.provider_key, found.disable_billing) == ("sk-x", True)


@pytest.mark.parametrize(
    "spell",
    [
        lambda token: token.rstrip("="),
        lambda token: token.replace("+", "-").replace("/", "_"),
        lambda token: "\n".join(token[i : i + 20] for i in range(0, len(token), 20)) + "\n",
        lambda token: f"  {token}\r\n",
        lambda token: token.encode(),
    ],
)
def test_every_spelling_of_base64_is_read(spell: object) -> None:
    members = {"secret_key": KEY, "customer_id": "con_ÿþ>>>???", "meter_slug": "m"}
    for spaces in (False, True):
        token = encode(members, spaces=spaces)
        assert parse_credential(spell(token)).customer_ref == "con_ÿþ>>>???"  # type: ignore[operator]


@pytest.mark.parametrize("product", [None, "ps_z"])
def test_the_dotted_variant_is_read(product: str | None) -> None:
    dotted = ".".join(part for part in (KEY, "cons_x", product) if part)
    for text in (dotted, base64.b64encode(dotted.encode()).decode()):
        found = parse_credential(text)
        assert (found.secret_key, found.customer_ref, found.meter_ref) == (KEY, "cons_x", product)


def test_bare_keys_are_credentials() -> None:
    assert parse_credential(b"aks_test_abc") == Credential(kind="secret_key", secret_key="aks_test_abc")
    assert parse_credential("lava_sk_abc") == Credential(kind="spend_key", secret_key="lava_sk_abc")


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("x" * (CREDENTIAL_BYTES_MAX + 1), "longer"),
        ("sk-proj-s3cr3tKey!", "neither a forward token"),
        ("sk.s3cr3tKey", "neither a forward token"),
        ("s3cr3", "neither a forward token"),
        (base64.b64encode(b"s3cr3tKey").decode(), "not a JSON object"),
        (encode(["s3cr3tKey"]), "not of a JSON object"),
        (encode({"key": "s3cr3tKey"}), "no secret_key"),
        (encode({"secret_key": None}), "no secret_key"),
        (encode({"secret_key": 5}), "secret_key must be text"),
        (encode({"secret_key": "sk-s3cr3tKey"}), "must be a secret key"),
        (encode({"secret_key": KEY, "customer_id": 7}), "customer_id must be text"),
        (encode({"secret_key": KEY, "customer_id": "c"}), "customer_id but no meter"),
        (encode({"secret_key": KEY, "connection_id": "c"}), "connection_id but no meter"),
        (encode({"secret_key": KEY, "disable_billing": "yes"}), "disable_billing must be true or false"),
        (encode({"secret_key": KEY, "disable_billing": True}), "disable_billing needs"),
        (encode({"secret_key": KEY, "customer_profile_secret": "s3cr3tKey", "plan_id": "x"}), "not supported"),
        (encode({"secret_key": KEY, "provider_key": "s3cr3tKey\r\nx-admin: 1"}), "provider_key has characters"),
        (encode({"secret_key": KEY, "provider_key": "s3cr3tKey ü"}), "provider_key has characters"),
        (encode({"secret_key": KEY, "meter_slug": "m" * 2000}), "meter_slug is longer"),
        (f"{KEY}.a.b.c", "must be secretKey"),
        (f"{KEY}..c", "must be secretKey"),
        (f"{KEY}ü", "not accepted"),
        (b"\xff\xfe", "neither"),
        (base64.b64encode(b"[" * 6000).decode(), "not a JSON object"),
    ],
)
def test_a_refusal_says_what_was_wrong_and_never_quotes_the_secret(raw: str | bytes, sentence: str) -> None:
    with pytest.raises(BadToken, match=sentence) as caught:
        parse_credential(raw)
    assert "s3cr3tKey" not in caught.value.message
    assert caught.value.status == 401


def test_a_credential_does_not_show_its_secrets() -> None:
    shown = repr(read({"secret_key": KEY, "customer_id": "c9", "meter_slug": "m9", "provider_key": "sk-prov"}))
    assert KEY not in shown and "sk-prov" not in shown and "c9" not in shown


def test_the_newest_generation_is_minted() -> None:
    token = mint(KEY, customer_id="con_1", meter_slug="chat", disable_billing=True)
    assert json.loads(base64.b64decode(token)) == {
        "secret_key": KEY,
        "customer_id": "con_1",
        "meter_slug": "chat",
        "disable_billing": True,
    }
    assert json.loads(base64.b64decode(mint(KEY))) == {"secret_key": KEY}


texts = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=40)
keys = st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True)


@given(keys, texts, texts, st.none() | keys, st.none() | st.booleans())
def test_what_is_minted_is_read_back(
    key: str, customer: str, meter: str, provider_key: str | None, disable_billing: bool | None
) -> None:
    found = parse_credential(mint("aks_" + key, customer, meter, provider_key, disable_billing))
    assert found == Credential(
        kind="token",
        secret_key="aks_" + key,
        customer_ref=customer,
        customer_field="customer_id",
        meter_ref=meter,
        meter_field="meter_slug",
        provider_key=provider_key,
        disable_billing=bool(disable_billing),
    )


@given(st.binary(max_size=200))
def test_strange_bytes_are_refused_and_nothing_else_happens(raw: bytes) -> None:
    try:
        parse_credential(raw)
    except BadToken:
        pass
