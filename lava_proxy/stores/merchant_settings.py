"""What a merchant says of itself."""

from __future__ import annotations

from typing import Any

from lava_proxy.stores.database import Database


class MerchantSettings(Database):
    """Writes. Raises StoreError when Postgres cannot answer."""

    async def rename(self, merchant_id: str, name: str, *, db: Any = None) -> None:
        """The name that people see, here and in the checkout."""
        await self._execute("UPDATE merchant SET name = $2 WHERE merchant_id = $1", merchant_id, name, db=db)
