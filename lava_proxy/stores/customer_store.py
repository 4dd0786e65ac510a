"""Changes to customers: contact, reference id, metadata, and their deletion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import asyncpg

from lava_proxy.domain.errors import Conflict
from lava_proxy.domain.webhooks import CUSTOMER_DELETED
from lava_proxy.stores.database import Database
from lava_proxy.stores.plan_store import end_of_deleted
from lava_proxy.stores.postgres import Pool
from lava_proxy.stores.webhook_events import add_event


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerChanges:
    """What changes; what is not named stays. `columns` may have reference_id and metadata, None clears them."""

    contact: Mapping[str, str | None] = field(default_factory=dict)  # phone, email, first_name, last_name
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert set(self.columns) <= {"reference_id", "metadata"}


class CustomerStore(Database):
    """Writes customers. A change reaches every gateway by the catalogue's notification, within a second."""

    def __init__(self, pool: Pool, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        super().__init__(pool)
        self._clock = clock

    async def change(self, merchant_id: str, connection_id: str, changes: CustomerChanges, *, db: Any = None) -> bool:
        """Change a customer that is not deleted; False when there is none. Raises Conflict `reference_id_taken`."""
        values: list[Any] = [merchant_id, connection_id, dict(changes.contact)]
        sets = ["contact = contact || $3::jsonb"]
        for name, value in changes.columns.items():
            values.append(value)
            sets.append(f"{name} = ${len(values)}")
        try:
            done = await self._execute(
                f"UPDATE connection SET {', '.join(sets)} WHERE merchant_id = $1 AND connection_id = $2 AND status <> 'deleted'",
                *values, db=db,
            )  # fmt: skip
        except asyncpg.UniqueViolationError as error:
            taken = changes.columns.get("reference_id")
            raise Conflict(f"A customer with reference_id {taken!r} exists already.", code="reference_id_taken") from error
        return done.endswith(" 1")

    async def delete(self, merchant_id: str, connection_id: str, *, db: Any = None) -> bool:
        """Calls that run end normally, new ones are refused; requests and ledger stay. False when there is none."""
        async with self._transaction(db) as db:
            done = await self._changed(
                "UPDATE connection SET status = 'deleted' WHERE merchant_id = $1 AND connection_id = $2 AND status <> 'deleted'",
                merchant_id, connection_id, db=db,
            )  # fmt: skip
            if done:
                now = self._clock()
                await end_of_deleted(db, connection_id, now)
                await add_event(
                    db, merchant_id=merchant_id, event_type=CUSTOMER_DELETED, at=now, connection_id=connection_id,
                    transition=connection_id,
                )  # fmt: skip
        return done > 0
