"""A test event to one endpoint, sent now: what the API and the dashboard show is what became of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

from lava_proxy.domain.webhooks import Outgoing
from lava_proxy.notify.webhook_client import WebhookClient
from lava_proxy.stores.webhook_store import LoggedDelivery, Webhook, WebhookStore


async def send_test(
    store: WebhookStore,
    client: WebhookClient,
    webhook: Webhook,
    clock: Callable[[], datetime],
    *,
    note: Callable[[Any, Outgoing], Awaitable[None]] | None = None,
) -> LoggedDelivery:
    """One try, whatever the endpoint's status; a receiver's refusal is in the answer and disables nothing but by 410.

    `note(db, outgoing)` runs in the transaction that stores the event, before it is sent.
    """
    lease = timedelta(seconds=3 * client.timeout_s)
    async with store.transaction() as db:
        outgoing = await store.add_test(webhook, clock(), lease, db=db)
        if note is not None:
            await note(db, outgoing)
    attempt = await client.send(outgoing)
    await store.record(outgoing, attempt, clock(), None)
    return await store.delivery(webhook.merchant_id, webhook.webhook_id, outgoing.delivery_id)
