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

    def __init__(self, catalog: CatalogStore, funding: Funding, *, batch: int = _BATCH) -> None:
        """`batch`: how many orders are read at a time."""
        self._catalog = catalog
        self._funding = funding
        self._batch = batch

    async def run_once(self) -> int:
        """Apply open orders; how many were new to Redis."""
        applied, last = 0, None
        while True:
            refused = 0
            page = await self._catalog.open_credits(self._batch, last)
            for credit in page:
                merchant_id = await self._catalog.wallet_merchant(credit.wallet_id)
                try:
                    applied += await self._funding.apply(merchant_id, credit)
                except CallerError as error:
                    # It stays open and is tried again; those behind it must not wait for it.
                    refused += 1
                    _log.error(
                        "An order of money is refused", action="credit_refused", credit_id=credit.credit_id, error=error.message
                    )
            # What was applied is no longer open once it is flushed; what is refused stays, and would hide the orders behind it.
            if not refused or len(page) < self._batch:
                return applied
            last = page[-1].credit_id
