"""A merchant's customers as people look for them, and what people switch about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from lava_proxy.stores.database import Database

ShownStatus = Literal["ok", "disabled", "limited"]
_LIKE = str.maketrans({"\\": r"\\", "%": r"\%", "_": r"\_"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCustomer:
    """A customer as a list shows it."""

    connection_id: str
    wallet_id: str
    reference_id: str | None
    status: str
    contact: Mapping[str, Any]
    created_at: datetime


class CustomerDirectory(Database):
    """Searches and switches. Raises StoreError when Postgres cannot answer."""

    async def search(
        self, merchant_id: str, *, text: str = "", status: ShownStatus | None = None, before: str | None = None, limit: int
    ) -> list[FoundCustomer]:
        """Newest first, from below the id `before`: whose id, reference id, name, e-mail or phone has `text`."""
        rows = await self._rows(
            r"""SELECT connection_id, wallet_id, reference_id, status, contact, created_at FROM connection
            WHERE merchant_id = $1 AND status <> 'deleted' AND ($2::text IS NULL OR connection_id < $2)
            AND ($3::text IS NULL OR status = $3)
            AND ($4 = '' OR connection_id = $5 OR reference_id ILIKE $4 OR contact->>'email' ILIKE $4 OR contact->>'phone' LIKE $4
              OR concat_ws(' ', contact->>'first_name', contact->>'last_name') ILIKE $4)
            ORDER BY connection_id DESC LIMIT $6""",
            merchant_id, before, status, f"%{text.translate(_LIKE)}%" if text else "", text, limit,
        )  # fmt: skip
        return [FoundCustomer(**row) for row in rows]

    async def set_status(self, merchant_id: str, connection_id: str, status: Literal["ok", "disabled"], *, db: Any = None) -> bool:
        """Disabled: new calls are refused within a second. False when there is no such customer."""
        return bool(
            await self._changed(
                "UPDATE connection SET status = $3 WHERE merchant_id = $1 AND connection_id = $2 AND status <> 'deleted'",
                merchant_id, connection_id, status, db=db,
            )
        )  # fmt: skip
