"""E-mail: by SMTP, or in `dev` a line in the log."""

from __future__ import annotations

import ssl
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from typing import Protocol
from urllib.parse import unquote, urlsplit

import aiosmtplib
import structlog

from lava_proxy.domain.errors import CallerError, UpstreamError

_TIMEOUT_S = 20
_log = structlog.get_logger("email")


class EmailSender(Protocol):
    """Sends one message. Raises UpstreamError `email_unavailable` when it cannot be handed over."""

    async def send(self, to: str, subject: str, text: str, html: str | None = None) -> None: ...


class ConsoleEmail:
    """For `dev` only: the message is a line in the log."""

    async def send(self, to: str, subject: str, text: str, html: str | None = None) -> None:
        _log.warning(text, action="email_not_sent", to=to, subject=subject, why="no LAVA_SMTP_URL is set")


class SmtpEmail:
    """A mail server: smtp://user:password@host:587 (STARTTLS where it is offered) or smtps://...:465."""

    def __init__(self, url: str, sender: str) -> None:
        """Raises ValueError for an address that is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise ValueError("LAVA_SMTP_URL must be smtp://[user:password@]host[:port] or smtps://...")
        if "@" not in sender:
            raise ValueError("LAVA_EMAIL_FROM must be an address such as billing@example.com")
        self._is_tls = parts.scheme == "smtps"
        self._host, self._port = parts.hostname, parts.port or (465 if self._is_tls else 587)
        self._user = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        self._sender = sender

    async def send(self, to: str, subject: str, text: str, html: str | None = None) -> None:
        message = EmailMessage(policy=SMTP_POLICY)
        try:
            message["From"], message["To"], message["Subject"] = self._sender, to, subject
        except ValueError as error:
            raise CallerError("This address cannot be written to.", code="invalid_parameter") from error
        message.set_content(text)
        if html is not None:
            message.add_alternative(html, subtype="html")
        try:
            await aiosmtplib.send(
                message, hostname=self._host, port=self._port, username=self._user, password=self._password,
                use_tls=self._is_tls, timeout=_TIMEOUT_S, tls_context=ssl.create_default_context(),
            )  # fmt: skip
        except aiosmtplib.SMTPRecipientsRefused as error:
            raise CallerError("The mail server refuses this address; nothing was sent.", code="email_refused") from error
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            _log.error("The mail server does not take a message", action="email_failed", error=type(error).__name__)
            raise UpstreamError(
                "The message could not be handed to the mail server; try again later.", code="email_unavailable", status=503
            ) from error
