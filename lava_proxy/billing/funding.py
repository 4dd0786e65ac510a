"""Money in: a credit is written to Postgres first, then applied to Redis, exactly once by its id."""

from __future__ import annotations

import orjson

from lava_proxy.domain.errors import CallerError
from lava_proxy.domain.money import AMOUNT_NANOS_MAX
from lava_proxy.stores.balance_store import BalanceStore, lot_key
from lava_proxy.stores.catalog_store import CatalogStore, Credit
from lava_proxy.stores.ids import created_ms, new_id

# Redis remembers a credit so long; the applier resends only credits whose ledger entry has not been flushed, which happens in
# seconds, so a week bounds how long Postgres may be away.
_KEEP_MS = 7 * 86_400_000


class Funding:
    """Credits wallets."""

    def __init__(self, catalog: CatalogStore, store: BalanceStore) -> None:
        self._catalog = catalog
        self._store = store

    async def fund(self, merchant_id: str, wallet_id: str, amount_nanos: int, reason: str, credit_id: str | None = None) -> str:
        """Add spendable funds; the credit's id. The same id again adds nothing."""
        if not 0 < amount_nanos <= AMOUNT_NANOS_MAX:
            raise CallerError("An amount of funds must be above $0 and at most $9,000,000.", code="amount_out_of_bounds")
        credit_id = credit_id or new_id("crd")
        lot = lot_key("funds", credit_id, created_ms(credit_id))
        credit = Credit(credit_id=credit_id, wallet_id=wallet_id, amount_nanos=amount_nanos, lot_key=lot, reason=reason)
        await self._catalog.add_credit(credit)
        await self.apply(merchant_id, credit)
        return credit_id

    async def fund_once(self, merchant_id: str, wallet_id: str, amount_nanos: int, reason: str, credit_id: str) -> None:
        """`fund` for a credit that belongs to setting up: nothing when its ledger entry exists, however long ago."""
        if not await self._catalog.is_credit_applied(credit_id):
            await self.fund(merchant_id, wallet_id, amount_nanos, reason, credit_id)

    async def apply(self, merchant_id: str, credit: Credit) -> bool:
        """Credit Redis; False when it had been credited."""
        row = orjson.dumps({"merchant_id": merchant_id, "lot_key": credit.lot_key, "reason": credit.reason})
        return await self._store.credit(
            credit.wallet_id, credit.credit_id, credit.amount_nanos, lot_key=credit.lot_key, row=row, keep_ms=_KEEP_MS
        )

    async def open_wallet(self, wallet_id: str) -> None:
        """Make a wallet spendable; its Postgres row must exist."""
        await self._store.open_wallet(wallet_id)
