"""Which provider keys a merchant has stored. The keys themselves are sealed; `CatalogStore` opens them for calls."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lava_proxy.stores.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderKey:
    """`hint`: the key's last four characters."""

    provider: str
    hint: str
    created_at: datetime


class ProviderKeyStore(Database):
    """Lists and removes; `CatalogStore.set_provider_key` sets. Raises StoreError when Postgres cannot answer."""

    async def many(self, merchant_id: str) -> list[ProviderKey]:
        """By name."""
        rows = await self._rows(
            "SELECT provider, hint, created_at FROM provider_key WHERE merchant_id = $1 ORDER BY provider", merchant_id
        )
        return [ProviderKey(**row) for row in rows]

    async def remove(self, merchant_id: str, provider: str, *, db: Any = None) -> bool:
        """Calls to it need the installation's own key, or the caller's, from then on. False when there was none."""
        query = "DELETE FROM provider_key WHERE merchant_id = $1 AND provider = $2"
        return bool(await self._changed(query, merchant_id, provider, db=db))
