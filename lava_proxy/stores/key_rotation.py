"""Seals every stored secret anew under another master key."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import asyncpg

from lava_proxy.domain.errors import StoreError
from lava_proxy.stores.postgres import Pool
from lava_proxy.stores.vault import Vault

_BATCH_ROWS = 1000


@dataclass(frozen=True, slots=True)
class SealedColumn:
    """A column of sealed secrets: where, the row's key, and the context that each is bound to."""

    table: str
    keys: tuple[str, ...]
    column: str
    context: str  # a format of the keys

    def context_of(self, row: Any) -> str:
        return self.context.format(**{key: row[key] for key in self.keys})


SEALED = (
    SealedColumn("checkout_session", ("checkout_session_id",), "secret_sealed", "checkout_session:{checkout_session_id}"),
    SealedColumn("connection", ("connection_id",), "secret_sealed", "connection:{connection_id}"),
    SealedColumn("meter", ("meter_id",), "secret_sealed", "meter:{meter_id}"),
    SealedColumn("installation", ("name",), "value_sealed", "installation:{name}"),
    SealedColumn(
        "idempotent_answer",
        ("merchant_id", "idempotency_key"),
        "answer_sealed",
        "idempotent_answer:{merchant_id}:{idempotency_key}",
    ),
    SealedColumn("provider_key", ("merchant_id", "provider"), "key_sealed", "provider_key:{merchant_id}:{provider}"),
    SealedColumn("webhook_secret", ("webhook_id", "secret_id"), "secret_sealed", "webhook_secret:{webhook_id}:{secret_id}"),
)
"""Every sealed column of the schema; contexts as the stores that write them make them."""


@dataclass(slots=True)
class _Counts:
    resealed: int = 0
    already: int = 0  # under the new key before


async def rotate(pool: Pool, vault: Vault) -> dict[str, dict[str, int]]:
    """Seal everything under the vault's own key, in one transaction: table -> {resealed, already}.

    `vault` must open what is stored. Rows stay locked until the end: writers of secrets wait, calls do not. Raises
    StoreError when Postgres cannot, ValueError that names the row when one opens under no key; then nothing was changed.
    """
    try:
        async with pool.acquire() as db, db.transaction():
            return {sealed.table: asdict(await _column(db, vault, sealed)) for sealed in SEALED}
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise StoreError(f"Postgres cannot answer: {type(error).__name__}", code="database_unavailable") from error


async def _column(db: Any, vault: Vault, sealed: SealedColumn) -> _Counts:
    counts = _Counts()
    keys = ", ".join(sealed.keys)
    matches = " AND ".join(f"{key} = ${number}" for number, key in enumerate(sealed.keys, 2))
    update = f"UPDATE {sealed.table} SET {sealed.column} = $1 WHERE {matches}"
    last: tuple[str, ...] = ("",) * len(sealed.keys)
    places = ", ".join(f"${number}" for number in range(1, len(last) + 1))
    query = (
        f"SELECT {keys}, {sealed.column} AS sealed FROM {sealed.table} WHERE ({keys}) > ({places})"
        f" ORDER BY {keys} LIMIT {_BATCH_ROWS} FOR UPDATE"
    )
    while rows := await db.fetch(query, *last):
        last = tuple(rows[-1][key] for key in sealed.keys)
        stale = [row for row in rows if not vault.is_current(row["sealed"], sealed.context_of(row))]
        counts.already += len(rows) - len(stale)
        counts.resealed += len(stale)
        await db.executemany(update, [(_anew(vault, row, sealed), *(row[key] for key in sealed.keys)) for row in stale])
    return counts


def _anew(vault: Vault, row: Any, sealed: SealedColumn) -> bytes:
    context = sealed.context_of(row)
    try:
        return vault.seal(vault.open(row["sealed"], context), context)
    except ValueError as error:
        raise ValueError(f"{context}: {error}. Nothing was changed; set LAVA_MASTER_KEY_PREVIOUS to the key it needs") from None
