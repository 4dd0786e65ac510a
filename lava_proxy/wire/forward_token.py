"""Forward tokens and bare keys: every form a client may send is read, only the newest is minted.

A forward token is base64 of a JSON object that names who calls (`secret_key`), whose balance pays (a customer) and by
which price (a meter). Its field names changed over the years; all of them are read. A bare `aks_...` or `lava_sk_...`
key is a credential too. Pure text: whether the secrets exist is for somebody else to find out.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lava_proxy.domain.errors import BadToken

CREDENTIAL_BYTES_MAX = 8192
FIELD_CHARS_MAX = 1024
SECRET_KEY_PREFIX = "aks_"
SPEND_KEY_PREFIX = "lava_sk_"

CUSTOMER_FIELDS = ("customer_id", "connection_id", "connection_secret", "reference_id")
METER_FIELDS = ("meter_slug", "meter_id", "meter_secret", "product_secret", "product_id")
UNSUPPORTED_FIELDS = ("customer_profile_secret", "plan_id")

CredentialKind = Literal["token", "secret_key", "spend_key"]

_BASE64_TEXT = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What a caller presented. `customer_field` and `meter_field` say under which name a reference came.

    No customer: the merchant's own wallet pays. `provider_key`: call the provider with this key.
    """

    kind: CredentialKind
    secret_key: str = field(repr=False)
    customer_ref: str | None = field(default=None, repr=False)
    customer_field: str | None = None
    meter_ref: str | None = field(default=None, repr=False)
    meter_field: str | None = None
    provider_key: str | None = field(default=None, repr=False)
    disable_billing: bool = False


def parse_credential(raw: bytes | str) -> Credential:
    """The credential in a header or query value (without `Bearer `).

    Raises BadToken with a sentence that says what was wrong, never with any part of the value.
    """
    data = raw.encode("utf-8", "surrogateescape") if isinstance(raw, str) else bytes(raw)
    if len(data) > CREDENTIAL_BYTES_MAX:
        raise BadToken(f"The credential is longer than {CREDENTIAL_BYTES_MAX} bytes.")
    data = b"".join(data.split())  # people pipe tokens through `base64`, which wraps lines
    if not data:
        raise BadToken("The credential is empty.")
    if data.startswith(SPEND_KEY_PREFIX.encode()):
        return Credential(kind="spend_key", secret_key=_plain_text(data))
    if data.startswith(SECRET_KEY_PREFIX.encode()):
        return _dotted(data) if b"." in data else Credential(kind="secret_key", secret_key=_plain_text(data))
    return _parse_decoded(_decode(data))


def mint(
    secret_key: str,
    customer_id: str | None = None,
    meter_slug: str | None = None,
    provider_key: str | None = None,
    disable_billing: bool | None = None,
) -> str:
    """A forward token of the newest generation: standard base64 of compact JSON, absent members left out."""
    members = {
        "secret_key": secret_key,
        "customer_id": customer_id,
        "meter_slug": meter_slug,
        "provider_key": provider_key,
        "disable_billing": disable_billing,
    }
    present = {name: value for name, value in members.items() if value is not None}
    return base64.b64encode(json.dumps(present, separators=(",", ":")).encode()).decode()


def _decode(data: bytes) -> bytes:
    body = data.rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
    if not _BASE64_TEXT.issuperset(body) or len(body) % 4 == 1:
        raise BadToken(
            "The credential is neither a forward token (base64 of a JSON object), a secret key (aks_...) nor a "
            "spend key (lava_sk_...)."
        )
    try:
        return base64.b64decode(body + b"=" * (-len(body) % 4))
    except binascii.Error:
        raise BadToken("The forward token is not valid base64.") from None


def _parse_decoded(decoded: bytes) -> Credential:
    decoded = decoded.strip()
    if decoded.startswith(SECRET_KEY_PREFIX.encode()):
        return _dotted(decoded)
    try:
        members = json.loads(decoded)
    except (ValueError, RecursionError):
        raise BadToken("The forward token is base64, but what it encodes is not a JSON object.") from None
    if not isinstance(members, dict):
        raise BadToken("The forward token is base64 of JSON, but not of a JSON object.")
    return _from_members(members)


def _dotted(data: bytes) -> Credential:
    """`secretKey.connectionSecret.productSecret`, an early documented variant; the product may be missing."""
    parts = _plain_text(data).split(".")
    if len(parts) > 3 or not all(parts):
        raise BadToken("The forward token must be secretKey.connectionSecret or secretKey.connectionSecret.productSecret.")
    names = ("secret_key", "connection_secret", "product_secret")
    return _from_members(dict(zip(names, parts, strict=False)))


def _from_members(members: Mapping[str, Any]) -> Credential:
    for name in UNSUPPORTED_FIELDS:
        if members.get(name) is not None:
            raise BadToken(f"Forward tokens with {name} are not supported; use customer_id and meter_slug.")
    secret_key = _text(members, "secret_key")
    if secret_key is None:
        raise BadToken("The forward token has no secret_key.")
    if not secret_key.startswith(SECRET_KEY_PREFIX):
        raise BadToken("The forward token's secret_key must be a secret key (aks_...).")
    customer_field, customer_ref = _one_of(members, CUSTOMER_FIELDS)
    meter_field, meter_ref = _one_of(members, METER_FIELDS)
    disable_billing = members.get("disable_billing")
    if disable_billing is not None and not isinstance(disable_billing, bool):
        raise BadToken("The forward token's disable_billing must be true or false.")
    if customer_ref is not None and meter_ref is None and customer_field != "connection_secret":
        raise BadToken(f"The forward token has {customer_field} but no meter; add meter_slug.")
    if disable_billing and customer_ref is None:
        raise BadToken("The forward token's disable_billing needs customer_id and meter_slug.")
    return Credential(
        kind="token",
        secret_key=secret_key,
        customer_ref=customer_ref,
        customer_field=customer_field,
        meter_ref=meter_ref,
        meter_field=meter_field,
        provider_key=_text(members, "provider_key"),
        disable_billing=bool(disable_billing),
    )


def _one_of(members: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str | None, str | None]:
    """The (field, value) of the first synonym present: an id before a secret, which may both name the same thing."""
    found = [(name, value) for name in names if (value := _text(members, name)) is not None]
    return found[0] if found else (None, None)


def _text(members: Mapping[str, Any], name: str) -> str | None:
    value = members.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise BadToken(f"The forward token's {name} must be text.")
    if len(value) > FIELD_CHARS_MAX:
        raise BadToken(f"The forward token's {name} is longer than {FIELD_CHARS_MAX} characters.")
    # The provider key becomes a header line; a line break in it would be a header of the caller's making. References
    # are the merchant's own texts and may have spaces and letters of any script.
    is_key = name in ("secret_key", "provider_key")
    if not value.isprintable() or (is_key and (not value.isascii() or " " in value)):
        raise BadToken(f"The forward token's {name} has characters that are not accepted.")
    return value


def _plain_text(data: bytes) -> str:
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        text = "\n"
    if not text.isprintable():
        raise BadToken("The credential has characters that are not accepted.")
    return text
