"""Signatures of outgoing webhooks: three headers that one secret serves, made and verified in constant time.

A secret is `whsec_` and the base64 of random bytes. `X-Webhook-Signature` and `x-lava-signature` use the secret's text as it was
shown, prefix included, because their receivers put the shown text into their HMAC. Standard Webhooks
(github.com/standard-webhooks/standard-webhooks, spec 1.0) uses the bytes that the part after `whsec_` decodes to.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Sequence

SECRET_PREFIX = "whsec_"
TOLERANCE_S = 300

PLAIN_HEADER = "X-Webhook-Signature"
TIMESTAMPED_HEADER = "x-lava-signature"

_TIMESTAMPED = re.compile(r"t=([0-9]{1,12}),v1=([0-9a-f]{64})")


def secret_of(key: bytes) -> str:
    """A secret's text from its random bytes."""
    return SECRET_PREFIX + base64.b64encode(key).decode()


def plain_signature(secret: str, body: bytes) -> str:
    """hex(HMAC_SHA256(secret, body))."""
    return hmac.digest(secret.encode(), body, "sha256").hex()


def timestamped_signature(secret: str, timestamp: int, body: bytes) -> str:
    """`t=<unix seconds>,v1=<hex HMAC_SHA256(secret, "<t>.<body>")>`."""
    return f"t={timestamp},v1={hmac.digest(secret.encode(), b'%d.' % timestamp + body, 'sha256').hex()}"


def standard_signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,<base64 HMAC_SHA256(key, "<id>.<t>.<body>")>` of Standard Webhooks. Raises ValueError for a secret of another form."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def signature_headers(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """All signature headers of a delivery. `secrets`: the active ones, newest first.

    Only Standard Webhooks has room for several signatures; the two other headers are made with the newest secret.
    """
    assert secrets, "an endpoint has a secret"
    return {
        PLAIN_HEADER: plain_signature(secrets[0], body),
        TIMESTAMPED_HEADER: timestamped_signature(secrets[0], timestamp, body),
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(standard_signature(secret, message_id, timestamp, body) for secret in secrets),
    }


def verify_plain(secret: str, body: bytes, signature: str) -> bool:
    """Does the plain header belong to this body?"""
    return _same(plain_signature(secret, body), signature)


def verify_timestamped(secret: str, body: bytes, signature: str, now: int) -> bool:
    """Does `t=...,v1=...` belong to this body, and is it not older (or newer) than five minutes?"""
    found = _TIMESTAMPED.fullmatch(signature)
    if found is None or abs(now - int(found[1])) > TOLERANCE_S:
        return False
    return _same(timestamped_signature(secret, int(found[1]), body), signature)


def verify_standard(secret: str, message_id: str, timestamp: int, body: bytes, signatures: str, now: int) -> bool:
    """Is one of the space-separated signatures of this secret, and the timestamp within five minutes?"""
    if abs(now - timestamp) > TOLERANCE_S:
        return False
    expected = standard_signature(secret, message_id, timestamp, body)
    return any([_same(expected, signature) for signature in signatures.split(" ")])


def _same(expected: str, given: str) -> bool:
    return hmac.compare_digest(expected.encode(), given.encode())
