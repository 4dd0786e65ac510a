"""POST /webhooks/stripe: the card processor's notices. Signed over the raw body; each has its effect once, whatever comes twice."""

from __future__ import annotations

from aiohttp import web

from lava_proxy.api.envelope import json_response
from lava_proxy.billing.cards import Cards
from lava_proxy.billing.charges import Charges
from lava_proxy.domain.errors import CallerError, StoreError, UpstreamError
from lava_proxy.payments.processor import Processor


class ProcessorWebhooks:
    """Answers 200 when a notice has (or had) its effect, 400 for a bad signature, 503 when it should be sent again."""

    def __init__(self, processor: Processor, charges: Charges, cards: Cards) -> None:
        self._processor = processor
        self._charges = charges
        self._cards = cards

    def routes(self) -> list[web.RouteDef]:
        return [web.post(f"/webhooks/{self._processor.name}", self.take)]

    async def take(self, request: web.Request) -> web.Response:
        """Verify, ask the processor what is so now, and write event and effect in one transaction."""
        event = self._processor.event(await request.read(), request.headers.get("Stripe-Signature", ""))
        try:
            await self._cards.take_event(event)
            is_new = await self._charges.take_event(event)
        except (UpstreamError, CallerError) as error:
            # Never 200 without the effect: the processor sends it again, for days.
            raise StoreError(f"This notice has had no effect yet: {error.message} Send it again.", code=error.code) from error
        return json_response({"received": True, "duplicate": not is_new})
