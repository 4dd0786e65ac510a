"""The client that delivers webhooks, for the worker's queue and for a merchant's test event."""

from __future__ import annotations

from datetime import UTC, datetime

from lava_proxy.app.run_config import RunConfig
from lava_proxy.notify.webhook_client import WebhookClient
from lava_proxy.settings import Settings


def webhook_client_of(config: RunConfig, settings: Settings) -> WebhookClient:
    """Signs with the world's time, whatever a test clock says: receivers refuse signatures that are old."""
    return WebhookClient(
        timeout_s=settings.webhooks.timeout_s,
        connections_max=settings.webhooks.concurrency_max,
        allow_private=bool(settings.webhooks.allow_private) or config.dev,
        clock=lambda: datetime.now(UTC),
    )
