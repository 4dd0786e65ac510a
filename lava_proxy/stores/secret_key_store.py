"""A merchant's secret keys: made, listed, revoked. Only their hashes are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import asyncpg

from lava_proxy.domain.errors import Conflict, NotFound
from lava_proxy.stores.database import Database
from lava_proxy.stores.ids import hash_of, new_id, new_secret
from lava_proxy.stores.postgres import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretKey:
    """A key that has not been revoked. `hint`: its first nine and last four characters."""

    secret_key_id: str
    name: str
    hint: str
    created_at: datetime
    secret: str | None = field(default=None, repr=False)  # only right after creation


class SecretKeyStore(Database):
    """Writes secret keys. A revocation reaches every gateway by the catalogue's notification, within a second."""

    def __init__(self, pool: Pool, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        super().__init__(pool)
        self._clock = clock

    async def create(self, merchant_id: str, name: str, *, live: bool, db: Any = None) -> SecretKey:
        """The new key with its secret, this once. Raises NotFound for an unknown merchant."""
        secret, now = new_secret("aks_live_" if live else "aks_test_"), self._clock()
        key = SecretKey(
            secret_key_id=new_id("sk"), name=name, hint=f"{secret[:9]}...{secret[-4:]}", created_at=now, secret=secret
        )  # fmt: skip
        try:
            await self._execute(
                "INSERT INTO secret_key VALUES ($1, $2, $3, $4, $5, $6)",
                key.secret_key_id, merchant_id, name, hash_of(secret), key.hint, now, db=db,
            )  # fmt: skip
        except asyncpg.ForeignKeyViolationError as error:
            raise NotFound(f"No merchant {merchant_id!r}.") from error
        return key

    async def many(self, merchant_id: str, *, before: str | None, limit: int) -> list[SecretKey]:
        """Newest first, from below the id `before`."""
        rows = await self._rows(
            "SELECT secret_key_id, name, hint, created_at FROM secret_key WHERE merchant_id = $1 AND revoked_at IS NULL"
            " AND ($2::text IS NULL OR secret_key_id < $2) ORDER BY secret_key_id DESC LIMIT $3",
            merchant_id, before, limit,
        )  # fmt: skip
        return [SecretKey(**row) for row in rows]

    async def by_secret(self, secret: str) -> tuple[str, SecretKey] | None:
        """(merchant id, key) of a secret; None when it is unknown or revoked."""
        row = await self._row(
            "SELECT merchant_id, secret_key_id, name, hint, created_at FROM secret_key WHERE key_hash = $1 AND revoked_at IS NULL",
            hash_of(secret),
        )
        return None if row is None else (row.pop("merchant_id"), SecretKey(**row))

    async def name_of(self, secret: str, *, db: Any = None) -> tuple[str, str]:
        """(id, hint) of the key that a request came with, also when it has been revoked since."""
        row = await self._row("SELECT secret_key_id, hint FROM secret_key WHERE key_hash = $1", hash_of(secret), db=db)
        assert row is not None, "keys are revoked, never deleted"
        return row["secret_key_id"], row["hint"]

    async def is_valid(self, merchant_id: str, secret_key_id: str) -> bool:
        """Is this a key of the merchant's that has not been revoked?"""
        row = await self._row(
            "SELECT 1 AS one FROM secret_key WHERE secret_key_id = $1 AND merchant_id = $2 AND revoked_at IS NULL",
            secret_key_id, merchant_id,
        )  # fmt: skip
        return row is not None

    async def revoke(self, merchant_id: str, secret_key_id: str, *, db: Any = None) -> None:
        """The key ends at once. Raises NotFound, and Conflict `last_secret_key`: nobody could make another one after it."""
        async with self._transaction(db) as db:
            # The merchant's row is the lock: of two requests that each revoke one of the last two keys, one must lose.
            await db.execute("SELECT 1 FROM merchant WHERE merchant_id = $1 FOR UPDATE", merchant_id)
            rows = await db.fetch("SELECT secret_key_id FROM secret_key WHERE merchant_id = $1 AND revoked_at IS NULL", merchant_id)
            ids = {row["secret_key_id"] for row in rows}
            if secret_key_id not in ids:
                raise NotFound("No secret key of yours has this id.")
            if len(ids) == 1:
                raise Conflict("This is your last secret key; make another one before you delete it.", code="last_secret_key")
            await db.execute("UPDATE secret_key SET revoked_at = $2 WHERE secret_key_id = $1", secret_key_id, self._clock())
