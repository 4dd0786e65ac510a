"""Ways to a checkout: its page's address, the token that the browser library opens, and the message that carries a link."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape

from lava_proxy.domain.checkout import CheckoutSession
from lava_proxy.domain.errors import Conflict
from lava_proxy.notify.email import EmailSender
from lava_proxy.stores.checkout_store import CheckoutStore
from lava_proxy.wire.public_address import base_url


class CheckoutLinks:
    """Addresses of checkouts, and sending them. `email` None: none can be sent; `public_url` None: pages are where browsers ask."""

    def __init__(self, store: CheckoutStore, email: EmailSender | None, public_url: str | None) -> None:
        self._store = store
        self._email = email
        self._public_url = public_url

    @property
    def can_send(self) -> bool:
        return self._email is not None

    def base(self, headers: Mapping[str, str], host: str) -> str:
        """Where our pages are, ending in /, for who sent a request with this head."""
        return base_url(headers, host, self._public_url)

    def check_can_send(self) -> None:
        """Raises Conflict `email_not_configured` where no e-mail can be sent."""
        if self._email is None:
            raise Conflict("No e-mail can be sent here: set LAVA_SMTP_URL and LAVA_EMAIL_FROM.", code="email_not_configured")

    async def send(self, session: CheckoutSession, to: str, base: str) -> None:
        """Send a session's link by e-mail. Raises Conflict `email_not_configured`, and what the mail server refuses."""
        self.check_can_send()
        assert self._email is not None
        branding = await self._store.branding(session.merchant_id)
        await self._email.send(to, *link_message(branding.name, page_url(base, session), session))


def token_of(session: CheckoutSession, base: str) -> str:
    """What the browser library decodes: the session's secret, and where its page is."""
    return base64.b64encode(json.dumps({"secret": session.secret, "base": base}, separators=(",", ":")).encode()).decode()


def page_url(base: str, session: CheckoutSession) -> str:
    """A session's page outside a frame."""
    return f"{base}checkout/{session.secret}"


def link_message(merchant: str, url: str, session: CheckoutSession) -> tuple[str, str, str]:
    """Subject, text and HTML of the message that carries a link."""
    subject = f"Your checkout at {merchant}"
    sentence = f"{merchant} has prepared a checkout for you: {session.offer.get('name', 'your balance')}."
    until = f"The link works until {session.expires_at:%d %B %Y, %H:%M} UTC. If you did not expect it, ignore this message."
    text = f"{sentence}\n\n{url}\n\n{until}\n"
    html = (
        f'<p>{escape(sentence)}</p><p><a href="{escape(url)}" style="display:inline-block;padding:12px 20px;background:#1d4ed8;'
        f'color:#fff;border-radius:8px;text-decoration:none">Open the checkout</a></p><p>{escape(url)}</p><p>{escape(until)}</p>'
    )
    return subject, text, html
