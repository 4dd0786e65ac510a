"""Webhook endpoints, their secrets, and the queue of deliveries with its log, in Postgres.

A delivery is claimed by moving its `next_try_at` a lease ahead and counting the try at once: whoever dies while sending loses only
that try, and the delivery is taken up again when the lease has ended.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import asyncpg

from lava_proxy.domain.errors import Conflict, NotFound, StoreError
from lava_proxy.domain.webhooks import (
    ORDERED_TRIES,
    TEST_EVENT,
    Attempt,
    DeliveryState,
    Outgoing,
    OutgoingEvent,
    Vocabulary,
    WebhookStatus,
)
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.postgres import Pool
from lava_proxy.stores.vault import Vault
from lava_proxy.stores.webhook_events import emit_balances
from lava_proxy.wire.signature import secret_of

T = TypeVar("T")

WEBHOOKS_MAX = 3
SECRETS_MAX = 4
"""Active ones of an endpoint: the newest and those whose 24 hours after a rotation have not ended."""
ROTATED_SECRET_VALID = timedelta(hours=24)
_SECRET_BYTES = 32
_PRUNE_BATCH = 5000

_WEBHOOK_COLUMNS = "webhook_id, merchant_id, name, url, vocabulary, events, status, disabled_reason, created_at"
_OUTGOING = """SELECT d.delivery_id, d.webhook_id, d.tries, d.first_try_at, w.url, w.vocabulary, e.event_id, e.type, e.sequence,
  e.balance_nanos, e.customer - 'metadata' AS customer, coalesce(e.customer->'metadata', 'null')::text AS metadata, e.facts,
  e.created_at, c.connection_id, c.secret_sealed
  FROM delivery d JOIN webhook w USING (webhook_id) JOIN event e USING (event_id)
  LEFT JOIN connection c ON c.connection_id = e.customer->>'connection_id'"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A merchant's endpoint. `events`: the newest names of what it is told; None for everything."""

    webhook_id: str
    merchant_id: str
    name: str
    url: str
    vocabulary: Vocabulary
    events: tuple[str, ...] | None
    status: WebhookStatus
    disabled_reason: str | None
    created_at: datetime
    secret: str | None = field(default=None, repr=False)  # only right after creation and rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedAttempt:
    at: datetime
    number: int
    status: int | None
    error: str | None
    duration_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedDelivery:
    """A delivery as its log shows it. `next_try_at` is None once it has ended."""

    delivery_id: str
    event_id: str
    event_type: str
    subject_id: str | None
    sequence: int
    state: DeliveryState
    tries: int
    next_try_at: datetime | None
    last_status: int | None
    last_error: str | None
    excerpt: str
    created_at: datetime
    ended_at: datetime | None
    attempts: tuple[LoggedAttempt, ...] = ()


class WebhookStore:
    """Raises StoreError when Postgres cannot answer, NotFound and Conflict for callers."""

    def __init__(self, pool: Pool, vault: Vault) -> None:
        self._pool = pool
        self._vault = vault

    # -- endpoints

    async def create(
        self,
        merchant_id: str,
        *,
        name: str,
        url: str,
        vocabulary: Vocabulary,
        events: Sequence[str] | None,
        status: WebhookStatus,
        now: datetime,
        db: Any = None,
    ) -> Webhook:
        """The new endpoint with its secret. Raises Conflict (webhook_limit) when the merchant has three."""

        webhook_id = new_id("wh")

        async def work(db: Any) -> str:
            # The merchant's row serialises its creations; NO KEY leaves foreign keys to it alone.
            await db.fetchval("SELECT 1 FROM merchant WHERE merchant_id = $1 FOR NO KEY UPDATE", merchant_id)
            if await db.fetchval("SELECT count(*) FROM webhook WHERE merchant_id = $1", merchant_id) >= WEBHOOKS_MAX:
                raise Conflict(f"A merchant has at most {WEBHOOKS_MAX} webhooks; delete one first.", code="webhook_limit")
            await db.execute(
                """INSERT INTO webhook (webhook_id, merchant_id, name, url, vocabulary, events, status, disabled_reason, created_at)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)""",
                webhook_id, merchant_id, name, url, vocabulary, None if events is None else list(events), status,
                None if status == "active" else "merchant", now,
            )  # fmt: skip
            return await self._new_secret(db, webhook_id, now)

        secret = await self._in_transaction(work, db)
        return replace(await self.webhook(merchant_id, webhook_id, db=db), secret=secret)

    async def webhook(self, merchant_id: str, webhook_id: str, *, db: Any = None) -> Webhook:
        """Raises NotFound."""
        rows = await self._rows(
            f"SELECT {_WEBHOOK_COLUMNS} FROM webhook WHERE merchant_id = $1 AND webhook_id = $2", merchant_id, webhook_id, db=db
        )
        if not rows:
            raise _no_such_webhook()
        return _webhook(rows[0])

    async def webhooks(self, merchant_id: str, *, before: str | None, limit: int) -> list[Webhook]:
        """Newest first, from below the id `before`."""
        rows = await self._rows(
            f"""SELECT {_WEBHOOK_COLUMNS} FROM webhook WHERE merchant_id = $1 AND ($2::text IS NULL OR webhook_id < $2)
            ORDER BY webhook_id DESC LIMIT $3""",
            merchant_id, before, limit,
        )  # fmt: skip
        return [_webhook(row) for row in rows]

    async def update(
        self, merchant_id: str, webhook_id: str, changes: Mapping[str, Any], now: datetime, *, db: Any = None
    ) -> Webhook:
        """Change `name`, `url`, `vocabulary`, `events` or `status`. Raises NotFound.

        Disabling ends what waits for the endpoint as failed; those deliveries can be replayed.
        """

        async def work(db: Any) -> None:
            row = await db.fetchrow(
                f"SELECT {_WEBHOOK_COLUMNS} FROM webhook WHERE merchant_id = $1 AND webhook_id = $2 FOR NO KEY UPDATE",
                merchant_id, webhook_id,
            )  # fmt: skip
            if row is None:
                raise _no_such_webhook()
            new = replace(_webhook(row), **changes)
            await db.execute(
                "UPDATE webhook SET name = $2, url = $3, vocabulary = $4, events = $5 WHERE webhook_id = $1",
                webhook_id, new.name, new.url, new.vocabulary, None if new.events is None else list(new.events),
            )  # fmt: skip
            if changes.get("status") == "active":
                await db.execute(
                    """UPDATE webhook SET status = 'active', disabled_reason = NULL, failing_since = NULL
                    WHERE webhook_id = $1 AND status <> 'active'""",
                    webhook_id,
                )
            elif changes.get("status") == "disabled":
                await _disable(db, webhook_id, "merchant", now)

        await self._in_transaction(work, db)
        return await self.webhook(merchant_id, webhook_id, db=db)

    async def delete(self, merchant_id: str, webhook_id: str, *, db: Any = None) -> None:
        """With its secrets, deliveries and log. Raises NotFound."""

        async def work(db: Any) -> str:
            return str(await db.execute("DELETE FROM webhook WHERE merchant_id = $1 AND webhook_id = $2", merchant_id, webhook_id))

        if not (await self._in_transaction(work, db)).endswith(" 1"):
            raise _no_such_webhook()

    async def rotate(self, merchant_id: str, webhook_id: str, now: datetime, *, db: Any = None) -> tuple[Webhook, datetime]:
        """The endpoint with a new secret, and when the present ones end. Raises NotFound."""
        ends_at = now + ROTATED_SECRET_VALID

        async def work(db: Any) -> str:
            if not await db.fetchval(
                "SELECT 1 FROM webhook WHERE merchant_id = $1 AND webhook_id = $2 FOR NO KEY UPDATE", merchant_id, webhook_id
            ):
                raise _no_such_webhook()
            await db.execute(
                "UPDATE webhook_secret SET expires_at = $2 WHERE webhook_id = $1 AND expires_at IS NULL", webhook_id, ends_at
            )
            secret = await self._new_secret(db, webhook_id, now)
            await db.execute(
                """DELETE FROM webhook_secret WHERE webhook_id = $1 AND (expires_at <= $2 OR secret_id NOT IN (
                  SELECT secret_id FROM webhook_secret WHERE webhook_id = $1
                  ORDER BY (expires_at IS NULL) DESC, created_at DESC, secret_id DESC LIMIT $3))""",
                webhook_id, now, SECRETS_MAX,
            )  # fmt: skip
            return secret

        secret = await self._in_transaction(work, db)
        return replace(await self.webhook(merchant_id, webhook_id, db=db), secret=secret), ends_at

    async def _new_secret(self, db: Any, webhook_id: str, now: datetime) -> str:
        secret, secret_id = secret_of(os.urandom(_SECRET_BYTES)), new_id("whs")
        await db.execute(
            "INSERT INTO webhook_secret VALUES ($1, $2, $3, $4, NULL)",
            webhook_id, secret_id, self._vault.seal(secret, f"webhook_secret:{webhook_id}:{secret_id}"), now,
        )  # fmt: skip
        return secret

    # -- the queue

    async def due(self, now: datetime) -> tuple[bool, bool]:
        """Are there balances to be told; are there deliveries to be tried? One cheap question for a sender that mostly waits."""
        [row] = await self._rows(
            """SELECT EXISTS (SELECT 1 FROM balance_news WHERE is_due AND not_before <= $1) AS balances,
            EXISTS (SELECT 1 FROM delivery WHERE state = 'pending' AND next_try_at <= $1) AS deliveries""",
            now,
        )
        return row["balances"], row["deliveries"]

    async def emit_balances(self, now: datetime, limit: int) -> int:
        """Make events of balances that have changed; how many wallets were looked at."""
        return await self._in_transaction(lambda db: emit_balances(db, now, limit))

    async def claim(
        self, now: datetime, *, lease: timedelta, limit: int, per_webhook: int, busy: Mapping[str, int]
    ) -> list[Outgoing]:
        """Deliveries that are due, taken for `lease`: at most `limit`, and of a webhook `per_webhook` less its `busy` ones.

        An endpoint that failed last gets one at a time, after the others: those that hang must not hold all of a sender's slots.
        A delivery waits while an earlier one of its wallet to the same endpoint has had fewer than ORDERED_TRIES tries.
        """

        async def work(db: Any) -> list[Outgoing]:
            claimed = await db.fetch(
                """WITH due AS (
                  SELECT d.delivery_id FROM webhook w
                  LEFT JOIN unnest($4::text[], $5::int[]) AS busy (webhook_id, count) ON busy.webhook_id = w.webhook_id
                  CROSS JOIN LATERAL (
                    SELECT delivery_id FROM delivery p
                    WHERE p.webhook_id = w.webhook_id AND p.state = 'pending' AND p.next_try_at <= $1
                    AND (p.wallet_id IS NULL OR NOT EXISTS (
                      SELECT 1 FROM delivery earlier WHERE earlier.webhook_id = p.webhook_id AND earlier.wallet_id = p.wallet_id
                      AND earlier.state = 'pending' AND earlier.ordinal < p.ordinal AND earlier.tries < $6))
                    ORDER BY p.next_try_at, p.ordinal
                    LIMIT greatest(0, CASE WHEN w.failing_since IS NULL THEN $3 ELSE 1 END - coalesce(busy.count, 0))
                    FOR UPDATE SKIP LOCKED) d
                  WHERE w.status = 'active' ORDER BY w.failing_since IS NOT NULL LIMIT $2)
                UPDATE delivery SET tries = tries + 1, next_try_at = $1 + $7, first_try_at = coalesce(first_try_at, $1)
                FROM due WHERE delivery.delivery_id = due.delivery_id RETURNING delivery.delivery_id""",
                now, limit, per_webhook, list(busy), list(busy.values()), ORDERED_TRIES, lease,
            )  # fmt: skip
            return await self._outgoing(db, [row["delivery_id"] for row in claimed], now)

        return await self._in_transaction(work)

    async def add_test(self, webhook: Webhook, now: datetime, lease: timedelta, *, db: Any = None) -> Outgoing:
        """A `webhook.test` event to one endpoint, already claimed by the caller, whatever the endpoint's status."""

        async def work(db: Any) -> Outgoing:
            event_id, delivery_id = new_id("evt"), new_id("dlv")
            ordinal = await db.fetchval(
                """INSERT INTO event (event_id, merchant_id, type, subject_id, sequence, facts, created_at)
                VALUES ($1, $2, $3, $4, 0, $5, $6) RETURNING ordinal""",
                event_id, webhook.merchant_id, TEST_EVENT, webhook.webhook_id,
                {"webhook_id": webhook.webhook_id, "message": "A test of this endpoint."}, now,
            )  # fmt: skip
            await db.execute(
                """INSERT INTO delivery (delivery_id, event_id, webhook_id, ordinal, tries, first_try_at, next_try_at, created_at)
                VALUES ($1, $2, $3, $4, 1, $5, $6, $5)""",
                delivery_id, event_id, webhook.webhook_id, ordinal, now, now + lease,
            )  # fmt: skip
            [outgoing] = await self._outgoing(db, [delivery_id], now)
            return outgoing

        return await self._in_transaction(work, db)

    async def record(self, outgoing: Outgoing, attempt: Attempt, now: datetime, again_at: datetime | None) -> str | None:
        """Write what became of a try. Returns why the endpoint was disabled by it: `gone`, `failing`, or None.

        A failure is tried again at `again_at`, or has failed for good when that is None. Success counts whenever it comes; a
        failure only while no later try has begun.
        """

        async def work(db: Any) -> str | None:
            # The endpoint before its deliveries, as everywhere: what disables or deletes it locks in this order too.
            await db.execute("SELECT 1 FROM webhook WHERE webhook_id = $1 FOR NO KEY UPDATE", outgoing.webhook_id)
            await db.execute(
                "INSERT INTO delivery_attempt SELECT delivery_id, $2, $3, $4, $5, $6 FROM delivery WHERE delivery_id = $1",
                outgoing.delivery_id, now, outgoing.tries, attempt.status, attempt.error, attempt.duration_ms,
            )  # fmt: skip
            ended = "delivered" if attempt.is_delivered else "failed" if again_at is None else "pending"
            done = await db.execute(
                """UPDATE delivery SET state = $3, next_try_at = coalesce($4, next_try_at), last_status = $5, last_error = $6,
                excerpt = $7, ended_at = $8 WHERE delivery_id = $1 AND state <> 'delivered'
                AND ($3 = 'delivered' OR (tries = $2 AND state = 'pending'))""",
                outgoing.delivery_id, outgoing.tries, ended, again_at, attempt.status, attempt.error, attempt.excerpt,
                None if ended == "pending" else now,
            )  # fmt: skip
            if attempt.is_delivered:
                await db.execute(
                    "UPDATE webhook SET failing_since = NULL, last_delivered_at = $2 WHERE webhook_id = $1",
                    outgoing.webhook_id, now,
                )  # fmt: skip
                return None
            if not done.endswith(" 1"):
                return None
            await db.execute(
                "UPDATE webhook SET failing_since = $2 WHERE webhook_id = $1 AND failing_since IS NULL", outgoing.webhook_id, now
            )
            if attempt.is_gone:
                return await _disable(db, outgoing.webhook_id, "gone", now)
            if again_at is not None or outgoing.event.event_type == TEST_EVENT:
                return None
            # The whole window of tries has passed; was nothing else taken in it?
            return await _disable(db, outgoing.webhook_id, "failing", now, unless_delivered_since=outgoing.first_try_at)

        return await self._in_transaction(work)

    async def _outgoing(self, db: Any, delivery_ids: Sequence[str], now: datetime) -> list[Outgoing]:
        """The deliveries with all that sending needs, in the order of their events."""
        rows = await db.fetch(f"{_OUTGOING} WHERE d.delivery_id = ANY($1::text[]) ORDER BY d.ordinal", list(delivery_ids))
        secrets: dict[str, list[str]] = {}
        for row in await db.fetch(
            """SELECT webhook_id, secret_id, secret_sealed FROM webhook_secret
            WHERE webhook_id = ANY($1::text[]) AND (expires_at IS NULL OR expires_at > $2)
            ORDER BY (expires_at IS NULL) DESC, created_at DESC, secret_id DESC""",
            sorted({row["webhook_id"] for row in rows}), now,
        ):  # fmt: skip
            opened = self._vault.open(row["secret_sealed"], f"webhook_secret:{row['webhook_id']}:{row['secret_id']}")
            secrets.setdefault(row["webhook_id"], []).append(opened)
        return [self._one_outgoing(row, tuple(secrets[row["webhook_id"]])) for row in rows]

    def _one_outgoing(self, row: Any, secrets: tuple[str, ...]) -> Outgoing:
        sealed = row["secret_sealed"] if row["vocabulary"] == "connection" else None
        return Outgoing(
            delivery_id=row["delivery_id"],
            webhook_id=row["webhook_id"],
            url=row["url"],
            vocabulary=row["vocabulary"],
            tries=row["tries"],
            first_try_at=row["first_try_at"],
            event=OutgoingEvent(
                event_id=row["event_id"],
                event_type=row["type"],
                sequence=row["sequence"],
                created_at=row["created_at"],
                balance_nanos=row["balance_nanos"],
                customer=row["customer"],
                metadata=row["metadata"],
                facts=row["facts"],
            ),
            secrets=secrets,
            connection_secret=None if sealed is None else self._vault.open(sealed, f"connection:{row['connection_id']}"),
        )

    # -- the log

    async def deliveries(
        self, merchant_id: str, webhook_id: str, *, before: str | None, limit: int, state: DeliveryState | None = None
    ) -> list[LoggedDelivery]:
        """Newest first, from below the id `before`, each with its attempts. Raises NotFound."""
        await self.webhook(merchant_id, webhook_id)
        return await self._logged(
            """WHERE d.webhook_id = $1 AND ($2::text IS NULL OR d.delivery_id < $2) AND ($3::text IS NULL OR d.state = $3)
            ORDER BY d.delivery_id DESC LIMIT $4""",
            webhook_id, before, state, limit,
        )  # fmt: skip

    async def delivery(self, merchant_id: str, webhook_id: str, delivery_id: str, *, db: Any = None) -> LoggedDelivery:
        """Raises NotFound."""
        await self.webhook(merchant_id, webhook_id, db=db)
        found = await self._logged("WHERE d.webhook_id = $1 AND d.delivery_id = $2", webhook_id, delivery_id, db=db)
        if not found:
            raise NotFound("This webhook has no such delivery.")
        return found[0]

    async def replay(self, merchant_id: str, webhook_id: str, delivery_id: str, now: datetime, *, db: Any = None) -> LoggedDelivery:
        """Send a delivery again, with the same event id and a new window of tries. Raises NotFound, Conflict (disabled)."""
        webhook = await self.webhook(merchant_id, webhook_id, db=db)
        if webhook.status != "active":
            raise Conflict("This webhook is disabled; set its status to active first.", code="webhook_disabled")

        async def work(db: Any) -> None:
            await db.execute(
                """UPDATE delivery SET state = 'pending', tries = 0, first_try_at = NULL, next_try_at = $3, ended_at = NULL
                WHERE webhook_id = $1 AND delivery_id = $2""",
                webhook_id, delivery_id, now,
            )  # fmt: skip

        await self._in_transaction(work, db)
        return await self.delivery(merchant_id, webhook_id, delivery_id, db=db)

    async def _logged(self, where: str, *args: Any, db: Any = None) -> list[LoggedDelivery]:
        rows = await self._rows(
            f"""SELECT d.delivery_id, d.event_id, e.type, e.subject_id, e.sequence, d.state, d.tries,
            greatest(d.next_try_at, d.created_at) AS next_try_at, d.last_status, d.last_error, d.excerpt, d.created_at, d.ended_at
            FROM delivery d JOIN event e USING (event_id) {where}""",
            *args,
            db=db,
        )
        attempts: dict[str, list[LoggedAttempt]] = {}
        for row in await self._rows(
            """SELECT delivery_id, at, try, status, error, duration_ms FROM delivery_attempt
            WHERE delivery_id = ANY($1::text[]) ORDER BY at""",
            [row["delivery_id"] for row in rows],
            db=db,
        ):
            logged = LoggedAttempt(
                at=row["at"], number=row["try"], status=row["status"], error=row["error"], duration_ms=row["duration_ms"]
            )
            attempts.setdefault(row["delivery_id"], []).append(logged)
        found = []
        for row in rows:
            row["event_type"] = row.pop("type")
            row["next_try_at"] = row["next_try_at"] if row["state"] == "pending" else None
            found.append(LoggedDelivery(**row, attempts=tuple(attempts.get(row["delivery_id"], ()))))
        return found

    async def backlog(self) -> tuple[int, datetime | None]:
        """How many deliveries wait, and since when the oldest."""
        [row] = await self._rows("SELECT count(*) AS count, min(created_at) AS oldest FROM delivery WHERE state = 'pending'")
        return row["count"], row["oldest"]

    async def prune(self, before: datetime, now: datetime) -> int:
        """Delete a batch of deliveries that ended before `before`, events without deliveries, and ended secrets; how many rows."""

        async def work(db: Any) -> int:
            deleted = 0
            for query, *args in (
                ("""DELETE FROM delivery WHERE delivery_id IN (SELECT delivery_id FROM delivery
                  WHERE state <> 'pending' AND ended_at < $1 ORDER BY ended_at LIMIT $2)""", before, _PRUNE_BATCH),
                ("""DELETE FROM event WHERE event_id IN (SELECT event_id FROM event e WHERE created_at < $1
                  AND NOT EXISTS (SELECT 1 FROM delivery WHERE event_id = e.event_id) LIMIT $2)""", before, _PRUNE_BATCH),
                ("DELETE FROM webhook_secret WHERE expires_at <= $1", now),
            ):  # fmt: skip
                deleted += int(str(await db.execute(query, *args)).rpartition(" ")[2])
            return deleted

        return await self._in_transaction(work)

    # -- plumbing

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A connection in a transaction, for the `db` of these methods."""
        try:
            async with self._pool.acquire(timeout=10) as db, db.transaction():
                yield db
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreError(f"Postgres cannot answer: {type(error).__name__}", code="database_unavailable") from error

    async def _rows(self, query: str, *args: Any, db: Any = None) -> list[dict[str, Any]]:
        async def call() -> list[dict[str, Any]]:
            return [dict(row) for row in await (db or self._pool).fetch(query, *args)]

        return await _translated(call)

    async def _in_transaction(self, work: Callable[[Any], Awaitable[T]], db: Any = None) -> T:
        """In a transaction of its own, or as a part of the caller's."""

        async def call() -> T:
            if db is not None:
                return await work(db)
            async with self._pool.acquire(timeout=10) as own, own.transaction():
                return await work(own)

        return await _translated(call)


async def _translated(call: Callable[[], Awaitable[T]]) -> T:
    try:
        return await call()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreError(f"Postgres cannot answer: {type(error).__name__}", code="database_unavailable") from error


async def _disable(
    db: Any, webhook_id: str, reason: str, now: datetime, *, unless_delivered_since: datetime | None = None
) -> str | None:
    """Disable an active endpoint and end what waits for it; the reason when that was done."""
    done = await db.execute(
        """UPDATE webhook SET status = 'disabled', disabled_reason = $2 WHERE webhook_id = $1 AND status = 'active'
        AND ($3::timestamptz IS NULL OR last_delivered_at IS NULL OR last_delivered_at < $3)""",
        webhook_id, reason, unless_delivered_since,
    )  # fmt: skip
    if not str(done).endswith(" 1"):
        return None
    await db.execute(
        """UPDATE delivery SET state = 'failed', last_error = coalesce(last_error, 'the webhook was disabled'), ended_at = $2
        WHERE webhook_id = $1 AND state = 'pending'""",
        webhook_id, now,
    )  # fmt: skip
    return reason


def _webhook(row: Any) -> Webhook:
    values = {key: row[key] for key in _WEBHOOK_COLUMNS.split(", ")}
    return Webhook(**values | {"events": None if row["events"] is None else tuple(row["events"])})


def _no_such_webhook() -> NotFound:
    return NotFound("No webhook of yours has this id.")
