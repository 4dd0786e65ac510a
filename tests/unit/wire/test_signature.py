"""wire/signature.py: one secret, three headers; each verified as its receivers verify it."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from lava_proxy.wire.signature import (
    TOLERANCE_S,
    secret_of,
    signature_headers,
    verify_plain,
    verify_standard,
    verify_timestamped,
)

SECRET, OLD = secret_of(bytes(range(32))), secret_of(bytes(32))
BODY = '{"event":"customer.created","data":{"name":"Zoë"}}'.encode()
NOW = 1_795_000_000


def test_the_plain_header_is_what_a_real_receiver_computes() -> None:
    """That is hex(hmac_sha256(secret, raw body)) with the secret as it was shown."""
    found = signature_headers([SECRET, OLD], "evt_1", NOW, BODY)["X-Webhook-Signature"]
    assert found == hmac.new(SECRET.encode(), BODY, hashlib.sha256).hexdigest()
    assert verify_plain(SECRET, BODY, found) and not verify_plain(SECRET, BODY + b" ", found)
    assert not verify_plain(OLD, BODY, found) and not verify_plain(SECRET, BODY, "ü")


def test_the_timestamped_header_is_signed_with_its_time_and_grows_old() -> None:
    found = signature_headers([SECRET], "evt_1", NOW, BODY)["x-lava-signature"]
    assert found == f"t={NOW},v1=" + hmac.new(SECRET.encode(), f"{NOW}.".encode() + BODY, hashlib.sha256).hexdigest()
    assert verify_timestamped(SECRET, BODY, found, NOW + TOLERANCE_S)
    assert not verify_timestamped(SECRET, BODY, found, NOW + TOLERANCE_S + 1)
    assert not verify_timestamped(SECRET, BODY, found.replace(f"t={NOW}", f"t={NOW + 1}"), NOW)
    assert not verify_timestamped(SECRET, BODY + b" ", found, NOW) and not verify_timestamped(SECRET, BODY, "t=,v1=", NOW)


@pytest.mark.parametrize("secret", [SECRET, OLD])
def test_the_standard_webhooks_library_accepts_each_active_secret(secret: str) -> None:
    # The library goes by the real clock, and modules may have been imported long before a test runs.
    headers = signature_headers([SECRET, OLD], "evt_1", int(datetime.now(UTC).timestamp()), BODY)
    assert Webhook(secret).verify(BODY, headers) == {"event": "customer.created", "data": {"name": "Zoë"}}
    assert len(headers["webhook-signature"].split(" ")) == 2
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY + b" ", headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY, {**headers, "webhook-id": "evt_2"})


def test_a_signature_of_the_library_is_ours() -> None:
    at = datetime.fromtimestamp(NOW, UTC)
    theirs = Webhook(SECRET).sign("evt_1", at, BODY.decode())
    assert verify_standard(SECRET, "evt_1", NOW, BODY, f"v1,xyz {theirs}", NOW)
    assert not verify_standard(OLD, "evt_1", NOW, BODY, theirs, NOW)
    assert not verify_standard(SECRET, "evt_1", NOW, BODY, theirs, NOW + TOLERANCE_S + 1)


def test_a_secret_of_another_form_makes_no_standard_signature() -> None:
    with pytest.raises(ValueError):
        signature_headers(["whsec_not base64!"], "evt_1", NOW, BODY)
