"""Proving a phone by a code in a text message: Twilio Verify, or in `dev` a line in the log.

Twilio makes, sends and checks its own codes (twilio.com/docs/verify/api, read 2026-11), so there the code never passes through us.
"""

from __future__ import annotations

from typing import Protocol

import aiohttp
import structlog
from aiohttp import ClientSession, ClientTimeout, encode_basic_auth, hdrs

from lava_proxy.domain.errors import CallerError, UpstreamError

TWILIO_BASE = "https://verify.twilio.com"
_TIMEOUT_S = 10
_log = structlog.get_logger("sms")


class PhoneVerifier(Protocol):
    """Sends codes. With `makes_codes` it makes and checks them itself; otherwise it delivers the one it is given."""

    @property
    def makes_codes(self) -> bool: ...

    async def start(self, phone: str, code: str | None) -> None:
        """Send a code to a phone (E.164). Raises CallerError for a phone that takes no messages, UpstreamError when it cannot."""

    async def check(self, phone: str, code: str) -> bool:
        """Is this the code that was sent? Only asked where `makes_codes`."""

    async def close(self) -> None: ...


class ConsoleSms:
    """For `dev` only: the message is a line in the log."""

    makes_codes = False

    async def start(self, phone: str, code: str | None) -> None:
        _log.warning(f"code {code}", action="sms_not_sent", phone=phone, why="dev sends no messages")

    async def check(self, phone: str, code: str) -> bool:
        raise AssertionError("our own codes are checked where they are kept")

    async def close(self) -> None:
        """Nothing is open."""


class TwilioVerify:
    """A Verify service of a Twilio account."""

    makes_codes = True

    def __init__(self, account_sid: str, auth_token: str, service_sid: str, *, base_url: str = TWILIO_BASE) -> None:
        self._headers = {hdrs.AUTHORIZATION: encode_basic_auth(account_sid, auth_token)}
        self._service_url = f"{base_url.rstrip('/')}/v2/Services/{service_sid}"
        self._session: ClientSession | None = None

    async def start(self, phone: str, code: str | None) -> None:
        status, answer = await self._post("Verifications", {"To": phone, "Channel": "sms"})
        if status == 429:
            raise CallerError(
                "Too many codes were sent to this number; try again in some minutes.", code="too_many_codes", status=429
            )
        if status == 400:  # 60200, 60205, 21211 ...: not a number that takes messages
            raise CallerError("No message can be sent to this number; check it, or use another.", code="phone_not_reachable")
        if status not in (200, 201):
            raise self._failed(status, answer)

    async def check(self, phone: str, code: str) -> bool:
        status, answer = await self._post("VerificationCheck", {"To": phone, "Code": code})
        if status in (404, 429):  # used up, too old, or too many tries: all the same to who types
            return False
        if status not in (200, 201):
            raise self._failed(status, answer)
        return answer.get("status") == "approved"

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _post(self, resource: str, form: dict[str, str]) -> tuple[int, dict[str, object]]:
        if self._session is None:
            self._session = ClientSession(headers=self._headers, timeout=ClientTimeout(total=_TIMEOUT_S))
        try:
            async with self._session.post(f"{self._service_url}/{resource}", data=form) as response:
                answer = await response.json(content_type=None)
                return response.status, answer if isinstance(answer, dict) else {}
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise UpstreamError(
                f"The message could not be sent: {type(error).__name__}.", code="sms_unavailable", status=503
            ) from error

    def _failed(self, status: int, answer: dict[str, object]) -> UpstreamError:
        _log.error("Twilio Verify refuses us", action="sms_refused", status=status, twilio_code=answer.get("code"))
        return UpstreamError("The message could not be sent; try again later.", code="sms_unavailable", status=503)
