"""What people did to a merchant's things: who, what, when, and the facts before and after. Written with the act, never changed.

Secrets do not belong here: callers pass the facts that they would show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from lava_proxy.stores.database import Database
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.postgres import Pool

ACTORS_MAX = 200

ActorKind = Literal["session", "key", "cli"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who acts: a dashboard session, a secret key, or the command line. `name` is what people read."""

    kind: ActorKind
    id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One act. `action` is object.verb, such as `meter.change`; `before` and `after` are facts, None where there are none."""

    audit_id: str
    actor: Actor
    action: str
    object_kind: str
    object_id: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    at: datetime

    def changes(self) -> list[tuple[str, Any, Any]]:
        """(fact, before, after) of what differs, by name; None where a side does not have it."""
        before, after = self.before or {}, self.after or {}
        names = sorted({*before, *after})
        return [(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


async def note(
    db: Any,
    *,
    merchant_id: str,
    actor: Actor,
    action: str,
    object_id: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    at: datetime,
) -> str:
    """Write an entry through `db`, a connection (then it belongs to its transaction) or a pool; the entry's id."""
    audit_id = new_id("aud")
    await db.execute(
        "INSERT INTO audit_log (audit_id, merchant_id, actor_kind, actor_id, actor_name, action, object_kind, object_id, before,"
        " after, at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        audit_id, merchant_id, actor.kind, actor.id, actor.name, action, action.partition(".")[0], object_id,
        dict(before) if before is not None else None, dict(after) if after is not None else None, at,
    )  # fmt: skip
    return audit_id


class AuditLog(Database):
    """Writes and lists entries. Raises StoreError when Postgres cannot answer."""

    def __init__(self, pool: Pool, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        super().__init__(pool)
        self._clock = clock

    async def note(
        self,
        merchant_id: str,
        actor: Actor,
        action: str,
        object_id: str,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
        db: Any = None,
    ) -> str:
        """`note` at this moment; in the caller's transaction when `db` is its connection, else in one of its own."""
        if db is None:
            async with self._transaction() as own:
                return await self.note(merchant_id, actor, action, object_id, before=before, after=after, db=own)
        return await note(
            db, merchant_id=merchant_id, actor=actor, action=action, object_id=object_id, before=before, after=after,
            at=self._clock(),
        )  # fmt: skip

    async def many(
        self,
        merchant_id: str,
        *,
        before: str | None = None,
        limit: int = 50,
        action: str | None = None,
        object_id: str | None = None,
        actor_name: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> list[AuditEntry]:
        """Newest first, from below the id `before`; `action` is an action or an object's kind; `start` <= at < `end`.

        `actor_name`: as people read it, so that all sessions of one-time links are one.
        """
        rows = await self._rows(
            """SELECT * FROM audit_log WHERE merchant_id = $1 AND ($2::text IS NULL OR audit_id < $2)
            AND ($3::text IS NULL OR action = $3 OR object_kind = $3) AND ($4::text IS NULL OR object_id = $4)
            AND ($5::text IS NULL OR actor_name = $5) AND ($6::timestamptz IS NULL OR at >= $6)
            AND ($7::timestamptz IS NULL OR at < $7) ORDER BY audit_id DESC LIMIT $8""",
            merchant_id, before, action, object_id, actor_name, start, end, limit,
        )  # fmt: skip
        return [_entry(row) for row in rows]

    async def actions(self, merchant_id: str) -> list[str]:
        """The actions that this merchant's log knows, in alphabetical order."""
        rows = await self._rows("SELECT DISTINCT action FROM audit_log WHERE merchant_id = $1 ORDER BY action", merchant_id)
        return [row["action"] for row in rows]

    async def actor_names(self, merchant_id: str) -> list[str]:
        """Who this merchant's log knows, in alphabetical order; at most ACTORS_MAX."""
        rows = await self._rows(
            "SELECT DISTINCT actor_name FROM audit_log WHERE merchant_id = $1 ORDER BY actor_name LIMIT $2", merchant_id, ACTORS_MAX
        )
        return [row["actor_name"] for row in rows]


def _entry(row: Mapping[str, Any]) -> AuditEntry:
    return AuditEntry(
        audit_id=row["audit_id"],
        actor=Actor(kind=row["actor_kind"], id=row["actor_id"], name=row["actor_name"]),
        action=row["action"],
        object_kind=row["object_kind"],
        object_id=row["object_id"],
        before=row["before"],
        after=row["after"],
        at=row["at"],
    )
