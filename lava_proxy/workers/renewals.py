"""Begins the cycles that are due: those that cost nothing at once, the others when their charge has been captured.

A subscription is seen by one worker at a time (SKIP LOCKED), its cycle is noted once, and its charge has one key however often it
is opened: any number of these at once, after any crash, do what one does.
"""

from __future__ import annotations

import asyncio

import structlog

from lava_proxy import tasks
from lava_proxy.billing.charges import Charges
from lava_proxy.billing.subscriptions import Due, Subscriptions
from lava_proxy.domain.errors import CallerError, UpstreamError

_BATCH = 200
_ROUNDS_MAX = 20  # a run ends after so many batches, so that other work of its loop is not starved for ever
_CHARGES_AT_ONCE = 4  # a charge is a chain of short transactions; more only queue for the pool's connections
_log = structlog.get_logger("renewals")


class Renewals:
    """Idempotent. Without a card processor only what is free is renewed; the rest becomes past due."""

    def __init__(self, subscriptions: Subscriptions, charges: Charges) -> None:
        self._subscriptions = subscriptions
        self._charges = charges

    async def run_once(self, *, batch: int = _BATCH) -> int:
        """Renew what is due now; how many subscriptions were seen."""
        seen = 0
        for _ in range(_ROUNDS_MAX):
            found, unpaid = await self._subscriptions.advance_due(batch)
            seen += found
            await self._charge_all(unpaid)
            if found < batch:
                break
        return seen

    async def _charge_all(self, unpaid: list[Due]) -> None:
        waiting = iter(unpaid)

        async def charge() -> None:
            for due in waiting:
                await self._charge(due)

        running = [tasks.start("renewal-charge", charge()) for _ in range(min(_CHARGES_AT_ONCE, len(unpaid)))]
        try:
            await asyncio.gather(*running)
        except BaseException:
            await tasks.stop(*running)
            raise

    async def _charge(self, due: Due) -> None:
        """Open and advance one cycle's charge. What cannot be charged now is past due and looked at again."""
        subscription = due.subscription
        try:
            charge = await self._charges.open(
                wallet_id=subscription.wallet_id,
                merchant_id=subscription.merchant_id,
                purpose="subscription_renewal",
                amount_cents=due.amount_cents,
                key=due.key,
                price_snapshot=due.subject["terms"],
                subject=due.subject,
            )
            await self._charges.advance(charge)
        except CallerError as error:
            _log.info(
                "A cycle is not paid", action="renewal_unpaid", subscription_id=subscription.subscription_id, error=error.message
            )
            await self._subscriptions.mark_past_due(subscription.merchant_id, subscription.subscription_id)
        except UpstreamError as error:  # the processor cannot say now: the charger goes on with it
            _log.warning(
                "A cycle waits for its charge", action="renewal_waits", subscription_id=subscription.subscription_id,
                error=error.message,
            )  # fmt: skip
