"""The values of a hosted checkout: what a session sells, who may embed it, what a page may show of a phone number."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

Mode = Literal["subscription", "credit_bundle", "topup", "onboarding"]
SessionKind = Literal["subscription", "credit_bundle", "topup", "onboarding", "portal"]
SessionState = Literal["open", "verified", "paying", "completed", "expired", "cancelled"]

MODES: tuple[Mode, ...] = get_args(Mode)
VALID_FOR = timedelta(hours=24)
TOP_UP_CENTS_MIN, TOP_UP_CENTS_MAX = 10_00, 10_000_00
ORIGIN_CHARS_MAX = 2048

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?)(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutSession:
    """One checkout, or (kind `portal`) one visit to the customer's own page. `secret` is the key to its page."""

    checkout_session_id: str
    merchant_id: str
    kind: SessionKind
    state: SessionState
    origin_url: str
    secret: str = field(repr=False)
    connection_id: str | None
    reference_id: str | None
    plan_id: str | None
    credit_bundle_id: str | None
    offer: dict[str, Any]
    person_id: str | None
    visit_hash: bytes | None
    amount_cents: int | None
    attempt: int
    charge_id: str | None
    created_at: datetime
    expires_at: datetime
    completed_at: datetime | None

    @property
    def origin(self) -> str:
        """The one origin that may embed the page and is told how it ended."""
        return origin_of(self.origin_url)

    @property
    def lets_choose_amount(self) -> bool:
        return self.kind in ("topup", "onboarding", "portal")

    def state_at(self, now: datetime) -> SessionState:
        """The state, with what time alone has changed. A payment under way is not cut off."""
        return "expired" if self.state in ("open", "verified") and now >= self.expires_at else self.state

    @property
    def charge_key(self) -> str:
        """Names the payment that is to be made now: a second click gets the same one."""
        return f"checkout:{self.checkout_session_id}:{self.attempt}"


def origin_of(url: str) -> str:
    """scheme://host[:port] of an http or https address, as browsers write an origin. Raises ValueError for anything else.

    The result goes into a Content-Security-Policy and a postMessage target, so only plain hosts are taken.
    """
    problem = "accepted is the http(s) address of the page that opens the checkout, such as https://app.example.com"
    if len(url) > ORIGIN_CHARS_MAX or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError(problem)
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(problem) from None
    scheme = parts.scheme.lower()
    found = _AUTHORITY.fullmatch(parts.netloc.lower())
    if scheme not in ("http", "https") or found is None:
        raise ValueError(problem)
    host, port = found.groups()
    if port is not None and not 1 <= int(port) <= 65_535:
        raise ValueError(problem)
    is_usual = port is None or int(port) == (443 if scheme == "https" else 80)
    return f"{scheme}://{host}" + ("" if is_usual else f":{int(port)}")


def masked_phone(phone: str) -> str:
    """A number on file as its holder recognises it and nobody else learns it: the last two digits."""
    return f"•••• {phone[-2:]}"
