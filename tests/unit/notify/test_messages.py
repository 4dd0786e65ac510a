"""notify/sms.py and notify/email.py against a fake Twilio and a small mail server on loopback."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_string
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lava_proxy import settings
from lava_proxy.domain.errors import CallerError, UpstreamError
from lava_proxy.notify.email import SmtpEmail
from lava_proxy.notify.sms import TwilioVerify

Seen = list[tuple[str, str, dict[str, Any]]]


@asynccontextmanager
async def fake_twilio(answers: dict[str, tuple[int, Any]]) -> AsyncIterator[tuple[TwilioVerify, Seen]]:
    """The verifier on a server that answers as told, and what it was sent: (path, authorization, form)."""
    seen: Seen = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.path, request.headers.get("Authorization", ""), dict(await request.post())))
        status, body = answers[request.path.rpartition("/")[2]]
        return web.json_response(body, status=status)

    application = web.Application()
    application.add_routes([web.post("/v2/Services/VA1/{resource}", answer)])
    async with TestServer(application) as server:
        verifier = TwilioVerify("AC1", "secret", "VA1", base_url=str(server.make_url("/")))
        try:
            yield verifier, seen
        finally:
            await verifier.close()


async def test_twilio_sends_and_checks_its_own_codes() -> None:
    answers: dict[str, tuple[int, Any]] = {
        "Verifications": (201, {"status": "pending"}), "VerificationCheck": (200, {"status": "approved", "valid": True}),
    }  # fmt: skip
    async with fake_twilio(answers) as (verifier, seen):
        await verifier.start("+14155550100", None)
        assert await verifier.check("+14155550100", "123456")
        answers["VerificationCheck"] = (200, {"status": "pending", "valid": False})
        assert not await verifier.check("+14155550100", "000000")
        answers["VerificationCheck"] = (404, {"code": 20404})
        assert not await verifier.check("+14155550100", "123456"), "a code that is used up"
    credential = "Basic " + base64.b64encode(b"AC1:secret").decode()
    assert seen[:2] == [
        ("/v2/Services/VA1/Verifications", credential, {"To": "+14155550100", "Channel": "sms"}),
        ("/v2/Services/VA1/VerificationCheck", credential, {"To": "+14155550100", "Code": "123456"}),
    ]


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (429, CallerError, "too_many_codes"),
        (400, CallerError, "phone_not_reachable"),
        (401, UpstreamError, "sms_unavailable"),
        (503, UpstreamError, "sms_unavailable"),
    ],
)
async def test_what_twilio_refuses_is_said_in_our_words(status: int, kind: type[Exception], code: str) -> None:
    async with fake_twilio({"Verifications": (status, {"code": 1})}) as (verifier, _):
        with pytest.raises(kind) as refused:
            await verifier.start("+14155550100", None)
    assert refused.value.code == code  # type: ignore[attr-defined]


async def test_a_twilio_that_is_away_is_an_error_that_passes() -> None:
    verifier = TwilioVerify("AC1", "secret", "VA1", base_url="http://127.0.0.1:9")
    with pytest.raises(UpstreamError):
        await verifier.start("+14155550100", None)
    await verifier.close()


@asynccontextmanager
async def mail_server(refuse: str = "") -> AsyncIterator[tuple[str, list[str]]]:
    """The address of a server that speaks as much SMTP (RFC 5321) as one message needs, and what it took."""
    taken: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail\r\n")
        while line := (await reader.readline()).decode():
            command = line.strip().upper()
            if command.startswith("DATA"):
                writer.write(b"354 go on\r\n")
                text = (await reader.readuntil(b"\r\n.\r\n")).decode()
                taken.append(text)
                writer.write(b"250 taken\r\n")
            elif refuse and command.startswith(refuse):
                writer.write(b"550 no\r\n")
            elif command.startswith("QUIT"):
                writer.write(b"221 bye\r\n")
                break
            else:
                writer.write(b"250 mail\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}", taken
    finally:
        server.close()


async def test_a_message_reaches_the_mail_server_in_text_and_html() -> None:
    async with mail_server() as (url, taken):
        await SmtpEmail(url, "billing@example.com").send("ada@example.com", "Ihr Einkauf für heute", "the text", "<p>the page</p>")
    message = message_from_string(taken[0])
    assert (message["To"], message["From"], message.is_multipart()) == ("ada@example.com", "billing@example.com", True)
    assert "the text" in taken[0] and "<p>the page</p>" in taken[0]


async def test_a_mail_server_that_refuses_or_is_away_is_told_of() -> None:
    async with mail_server(refuse="RCPT") as (url, taken):
        with pytest.raises(CallerError, match="refuses this address"):
            await SmtpEmail(url, "billing@example.com").send("ada@example.com", "s", "t")
        assert taken == []
    with pytest.raises(UpstreamError):
        await SmtpEmail("smtp://127.0.0.1:9", "billing@example.com").send("ada@example.com", "s", "t")
    with pytest.raises(CallerError, match="cannot be written to"):
        await SmtpEmail("smtp://127.0.0.1:9", "billing@example.com").send("ada@example.com", "a\nBcc: x@example.com", "t")


def test_settings_of_messages_are_whole_or_refused() -> None:
    twilio = {"LAVA_TWILIO_ACCOUNT_SID": "AC1", "LAVA_TWILIO_AUTH_TOKEN": "t", "LAVA_TWILIO_VERIFY_SERVICE": "VA1"}
    account = settings.load(twilio).twilio_account()
    assert account is not None and account.api_base == "https://verify.twilio.com" and "auth_token" not in repr(account)
    assert settings.load({}).twilio_account() is None and settings.load({}).public_url() is None
    with pytest.raises(ValueError, match="LAVA_TWILIO_AUTH_TOKEN and LAVA_TWILIO_VERIFY_SERVICE"):
        settings.load({"LAVA_TWILIO_ACCOUNT_SID": "AC1"}).twilio_account()
    assert settings.load({"LAVA_PUBLIC_URL": "https://pay.example/x"}).public_url() == "https://pay.example/x/"
    for bad in ("pay.example", "https://pay.example/?a", "ftp://x"):
        with pytest.raises(ValueError, match="LAVA_PUBLIC_URL"):
            settings.load({"LAVA_PUBLIC_URL": bad}).public_url()
    for url, sender in (("http://mail", "a@b.example"), ("smtp://", "a@b.example"), ("smtp://mail", "nobody")):
        with pytest.raises(ValueError, match="LAVA_"):
            SmtpEmail(url, sender)
