"""What a merchant sets about itself: its name, and what happens by default when a customer's credit is used up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lava_proxy.stores.database import Database


class MerchantSettings(Database):
    """Reads and writes. Raises StoreError when Postgres cannot answer."""

    async def rename(self, merchant_id: str, name: str) -> None:
        await self._execute("UPDATE merchant SET name = $2 WHERE merchant_id = $1", merchant_id, name)

    async def overage(self, merchant_id: str) -> Mapping[str, Any] | None:
        """The default policy, as domain/plans.py reads it; None: block."""
        row = await self._row("SELECT overage FROM merchant WHERE merchant_id = $1", merchant_id)
        return None if row is None else row["overage"]

    async def set_overage(self, merchant_id: str, overage: Mapping[str, Any]) -> None:
        await self._execute("UPDATE merchant SET overage = $2 WHERE merchant_id = $1", merchant_id, dict(overage))
