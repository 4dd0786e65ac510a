"""Applies orders of money that are written in Postgres and not yet confirmed by a flushed ledger entry.

Credits, renewals, adjustments: after crashes, reversals, orders written in somebody's transaction, Redis loss.
"""

from __future__ import annotations

import structlog

from lava_proxy.billing.funding import Funding
from lava_proxy.domain.errors import CallerError
from lava_proxy.stores.catalog_store import CatalogStore

_BATCH = 200
_log = structlog.get_logger("credit_applier")


class CreditApplier:
    """Idempotent by order id, so sending again is harmless."""

    def __init__(self, catalog: CatalogStore, funding: Funding) -> None:
        self._catalog = catalog
        self._funding = funding

    async def run_once(self) -> int:
        """Apply open orders; how many were new to Redis."""
        applied = 0
        for credit in await self._catalog.open_credits(_BATCH):
            merchant_id = await self._catalog.wallet_merchant(credit.wallet_id)
            try:
                applied += await self._funding.apply(merchant_id, credit)
            except CallerError as error:
                # It stays open and is tried again; those behind it must not wait for it.
                _log.error("An order of money is refused", action="credit_refused", credit_id=credit.credit_id, error=error.message)
        return applied
