"""Answers of POSTs kept by their Idempotency-Key, so that a repeat gets the first answer and does nothing again.

A key is claimed before the work and filled with the answer after it; both are one row. A claim that was never filled (its
process died) may be taken over after a while.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from lava_proxy.domain.errors import Conflict
from lava_proxy.stores.database import Database
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.postgres import Pool
from lava_proxy.stores.vault import Vault

KEPT = timedelta(hours=24)
GIVEN_UP = timedelta(seconds=120)
_SWEEP_EVERY = timedelta(minutes=10)
_SWEEP_ROWS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswer:
    """An answer as it was sent."""

    status: int
    media_type: str
    body: bytes = field(repr=False)  # may show secrets


class IdempotentAnswers(Database):
    """Claims keys and keeps answers, sealed. Raises StoreError when Postgres cannot answer."""

    def __init__(self, pool: Pool, vault: Vault, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        super().__init__(pool)
        self._vault = vault
        self._clock = clock
        self._swept_at: datetime | None = None

    async def claim(self, merchant_id: str, key: str, request_hash: bytes) -> str | KeptAnswer:
        """A new claim, to be filled or dropped; or the answer that is kept for this very request.

        Raises Conflict: `idempotency_conflict` when the key came with another request before, `idempotency_running` while the
        first is still being worked on.
        """
        await self._sweep()
        now, claim = self._clock(), new_id("clm")
        row = await self._row(
            """INSERT INTO idempotent_answer AS a VALUES ($1, $2, $3, $4, NULL, NULL, $5, $6)
            ON CONFLICT (merchant_id, idempotency_key) DO UPDATE SET request_hash = EXCLUDED.request_hash,
              claim = EXCLUDED.claim, status = NULL, media_type = NULL, answer_sealed = EXCLUDED.answer_sealed,
              claimed_at = EXCLUDED.claimed_at
            WHERE a.claimed_at <= $7 OR (a.status IS NULL AND a.claimed_at <= $8)
            RETURNING claim""",
            merchant_id, key, request_hash, claim, self._vault.seal("", _context(merchant_id, key)), now, now - KEPT,
            now - GIVEN_UP,
        )  # fmt: skip
        return claim if row is not None else await self._kept(merchant_id, key, request_hash)

    async def _kept(self, merchant_id: str, key: str, request_hash: bytes) -> KeptAnswer:
        row = await self._row(
            "SELECT request_hash, status, media_type, answer_sealed FROM idempotent_answer"
            " WHERE merchant_id = $1 AND idempotency_key = $2",
            merchant_id,
            key,
        )
        if row is not None and row["request_hash"] != request_hash:
            raise Conflict(
                "This Idempotency-Key came with another request before; use a new key for a new request.",
                code="idempotency_conflict",
            )
        if row is None or row["status"] is None:  # dropped at this moment, or not ended
            raise Conflict(
                "The first request with this Idempotency-Key is still being worked on; repeat it in a moment.",
                code="idempotency_running",
            )
        body = self._vault.open(row["answer_sealed"], _context(merchant_id, key)).encode()
        return KeptAnswer(status=row["status"], media_type=row["media_type"], body=body)

    async def fill(self, merchant_id: str, key: str, claim: str, answer: KeptAnswer) -> None:
        """Keep the answer, unless the claim was taken over."""
        await self._execute(
            "UPDATE idempotent_answer SET status = $4, media_type = $5, answer_sealed = $6"
            " WHERE merchant_id = $1 AND idempotency_key = $2 AND claim = $3",
            merchant_id, key, claim, answer.status, answer.media_type,
            self._vault.seal(answer.body.decode(), _context(merchant_id, key)),
        )  # fmt: skip

    async def drop(self, merchant_id: str, key: str, claim: str) -> None:
        """Give the key back: nothing was done."""
        await self._execute(
            "DELETE FROM idempotent_answer WHERE merchant_id = $1 AND idempotency_key = $2 AND claim = $3", merchant_id, key, claim
        )

    async def _sweep(self) -> None:
        """Every few minutes, forget what is older than a day."""
        now = self._clock()
        if self._swept_at is not None and abs(now - self._swept_at) < _SWEEP_EVERY:
            return
        self._swept_at = now
        await self._execute(
            "DELETE FROM idempotent_answer WHERE ctid = ANY (ARRAY("
            f"SELECT ctid FROM idempotent_answer WHERE claimed_at <= $1 LIMIT {_SWEEP_ROWS}))",
            now - KEPT,
        )


def _context(merchant_id: str, key: str) -> str:
    return f"idempotent_answer:{merchant_id}:{key}"
