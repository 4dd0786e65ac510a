"""Proof that somebody holds a phone: six digits by text message, typed in by the same visit that asked for them.

The answers never depend on whether a phone is known here. Bounds: five tries a code, ten minutes; one code in half a minute to the
same phone, five for a session, five an hour and ten a day to a phone, twenty an hour from an address. So who guesses at one phone,
by however many sessions and addresses, has fifty tries a day at a million codes, and its holder is sent ten messages.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from lava_proxy.domain.errors import CallerError, LimitExceeded
from lava_proxy.notify.sms import PhoneVerifier
from lava_proxy.stores.verification_codes import TRIES_MAX, Bound, VerificationCodes

CODE_DIGITS = 6
_HOUR_S, _DAY_S, _PAUSE_S = 3600, 86_400, 30


def new_code() -> str:
    """Six digits that nobody can foresee."""
    return f"{secrets.randbelow(10**CODE_DIGITS):0{CODE_DIGITS}d}"


class Verification:
    """Sends and checks codes. Raises StoreError without Redis, UpstreamError when a message cannot be sent."""

    def __init__(self, codes: VerificationCodes, sender: PhoneVerifier | None, *, make_code: Callable[[], str] = new_code) -> None:
        self._codes = codes
        self._sender = sender
        self._make_code = make_code

    def check_available(self) -> None:
        """Raises CallerError (501) where no messages can be sent at all."""
        if self._sender is None:
            raise CallerError(
                "Checkouts prove phones by text message and none can be sent here: set LAVA_TWILIO_ACCOUNT_SID, "
                "LAVA_TWILIO_AUTH_TOKEN and LAVA_TWILIO_VERIFY_SERVICE.",
                code="sms_not_configured", status=501,
            )  # fmt: skip

    async def begin(self, name: str, session_id: str, phone: str, address: str) -> None:
        """Send a code to a phone for a visit (`name`). Raises LimitExceeded `too_many_codes` with the seconds to wait."""
        self.check_available()
        assert self._sender is not None
        wait_s = await self._codes.admit(
            (
                Bound(name=f"pause:{name}:{phone}", count=1, window_s=_PAUSE_S),
                Bound(name=f"session:{session_id}", count=5, window_s=_DAY_S),
                Bound(name=f"phone:{phone}", count=5, window_s=_HOUR_S),
                Bound(name=f"phone:{phone}", count=10, window_s=_DAY_S),
                Bound(name=f"address:{address}", count=20, window_s=_HOUR_S),
            )
        )
        if wait_s is not None:
            raise LimitExceeded(
                f"Too many codes were asked for. Another can be sent in {_spoken(wait_s)}.",
                code="too_many_codes",
                retry_after_s=wait_s,
            )
        code = None if self._sender.makes_codes else self._make_code()
        await self._sender.start(phone, code)
        await self._codes.put(name, phone, code)

    async def pending_phone(self, name: str) -> str | None:
        """Where a visit's code went; None when it waits for none."""
        return await self._codes.phone(name)

    async def forget(self, name: str) -> None:
        """Another phone is to be used."""
        await self._codes.drop(name)

    async def check(self, name: str, code: str) -> str:
        """The phone that is now proven. Raises CallerError `code_expired`, `too_many_tries` or `code_wrong`."""
        typed = "".join(code.split()).replace("-", "")
        if len(typed) != CODE_DIGITS or not (typed.isascii() and typed.isdigit()):
            raise CallerError(f"The code has {CODE_DIGITS} digits.", code="code_wrong", status=422)
        pending = await self._codes.guess(name, typed)
        if pending is None:
            raise CallerError("This code has expired. Ask for a new one.", code="code_expired", status=422)
        if pending.tries > TRIES_MAX:
            await self._codes.drop(name)
            raise CallerError("That was tried too often. Ask for a new code.", code="too_many_tries", status=422)
        matches = pending.matches
        if pending.is_remote:
            assert self._sender is not None
            matches = await self._sender.check(pending.phone, typed)
        if not matches:
            left = TRIES_MAX - pending.tries
            more = f"{left} {'try is' if left == 1 else 'tries are'} left." if left else "Ask for a new one."
            raise CallerError(f"This is not the code we sent. {more}", code="code_wrong", status=422)
        if not await self._codes.drop(name):
            raise CallerError("This code has been used. Ask for a new one.", code="code_expired", status=422)
        return pending.phone


def _spoken(seconds: int) -> str:
    if seconds < 90:
        return f"{seconds} seconds"
    return f"{-(-seconds // 60)} minutes" if seconds < 5400 else f"{-(-seconds // 3600)} hours"
