"""Changes to meters. A price never changes: a change adds a version, and old requests keep the one they were charged by."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from lava_proxy.domain.catalog import MeterVersion, RateType, Tier, TierType, TokenBasis
from lava_proxy.domain.errors import Conflict
from lava_proxy.stores.catalog_store import CatalogStore, Meter, meter_version
from lava_proxy.stores.database import Database
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.postgres import Pool

SLUG_CHARS_MAX = 100
_TRIES = 5
_SLUG_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_OUR_PREFIXES = ("prd_", "prds_")


def checked_slug(value: object) -> str:
    """A slug as it is kept. Raises ValueError with what is accepted."""
    good = isinstance(value, str) and 0 < len(value) <= SLUG_CHARS_MAX and _SLUG_LETTERS.issuperset(value)
    if not good or str(value).startswith(_OUR_PREFIXES):
        raise ValueError(
            f"accepted are 1 to {SLUG_CHARS_MAX} letters, digits, dots, hyphens and underscores, not starting with prd_ or prds_"
        )
    return str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedMeter:
    """A meter that no call can name any more, with its last price."""

    meter_id: str
    version: MeterVersion
    created_at: datetime
    archived_at: datetime


class MeterStore(Database):
    """Writes meters. A change reaches every gateway by the catalogue's notification, within a second."""

    def __init__(self, pool: Pool, catalog: CatalogStore, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        super().__init__(pool)
        self._catalog = catalog
        self._clock = clock

    async def create(
        self,
        merchant_id: str,
        *,
        name: str,
        slug: str | None,
        rate_type: RateType,
        tier_type: TierType,
        tiers: tuple[Tier, ...],
        token_basis: TokenBasis,
        db: Any = None,
    ) -> Meter:
        """The new meter with its secret. Without a slug it gets a free one from its name.

        Raises Conflict `meter_slug_taken`, also when an archived meter has the slug: a token that names it must not come to
        mean another price.
        """
        for _ in range(_TRIES):
            try:
                return await self._catalog.create_meter(
                    merchant_id, name=name, slug=slug or await self._free_slug(merchant_id, name, db), rate_type=rate_type,
                    tier_type=tier_type, tiers=tiers, token_basis=token_basis, db=db,
                )  # fmt: skip
            except Conflict:
                if slug is not None:
                    raise
        raise Conflict("Other meters of this name are being made; try again, or name a meter_slug.", code="meter_slug_taken")

    async def _free_slug(self, merchant_id: str, name: str, db: Any) -> str:
        base = slug_of(name)
        rows = await self._rows(
            "SELECT meter_slug FROM meter WHERE merchant_id = $1 AND (meter_slug = $2 OR starts_with(meter_slug, $2 || '-'))",
            merchant_id,
            base,
            db=db,
        )
        taken = {row["meter_slug"] for row in rows}
        numbered = (f"{base}-{number}" for number in range(2, len(taken) + 2))
        return base if base not in taken else next((slug for slug in numbered if slug not in taken), f"{base}-{new_id('m')[2:]}")

    async def add_version(
        self,
        merchant_id: str,
        meter_id: str,
        *,
        name: str | None = None,
        tiers: tuple[Tier, ...] | None = None,
        token_basis: TokenBasis | None = None,
        db: Any = None,
    ) -> Meter | None:
        """The meter with what is named changed; None when it is not there or archived. Nothing new adds no version."""
        meter = await self._catalog.meter(merchant_id, meter_id, db=db)
        if meter is None:
            return None
        async with self._transaction(db) as db:
            # The meter's row is the lock: of two changes at once, the second is made to what the first left.
            is_there = await db.fetchval(
                "SELECT true FROM meter WHERE meter_id = $1 AND archived_at IS NULL FOR UPDATE", meter.meter_id
            )
            if not is_there:
                return None
            row = await db.fetchrow(
                "SELECT version_id, name, token_basis, tiers FROM meter_version WHERE meter_id = $1"
                " ORDER BY version_id DESC LIMIT 1",
                meter.meter_id,
            )
            old = replace(
                meter.version, version_id=row["version_id"], name=row["name"], token_basis=row["token_basis"],
                tiers=tuple(Tier(start=start, rate=rate) for start, rate in row["tiers"]),
            )  # fmt: skip
            new = replace(old, name=name or old.name, tiers=tiers or old.tiers, token_basis=token_basis or old.token_basis)
            if new == old:
                return replace(meter, version=old)
            version_id = await db.fetchval(
                """INSERT INTO meter_version (meter_id, name, rate_type, tier_type, token_basis, tiers, created_at)
                VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING version_id""",
                meter.meter_id, new.name, new.rate_type, new.tier_type, new.token_basis, [[t.start, t.rate] for t in new.tiers],
                self._clock(),
            )  # fmt: skip
        return replace(meter, version=replace(new, version_id=version_id))

    async def versions(self, merchant_id: str, meter_id: str) -> list[tuple[MeterVersion, datetime]]:
        """Every price that a meter has had and since when, newest first."""
        rows = await self._rows(
            """SELECT v.version_id, v.meter_id, m.meter_slug, v.name, v.rate_type, v.tier_type, v.token_basis, v.tiers, v.created_at
            FROM meter_version v JOIN meter m USING (meter_id)
            WHERE m.merchant_id = $1 AND m.meter_id = $2 ORDER BY v.version_id DESC""",
            merchant_id, meter_id,
        )  # fmt: skip
        return [(meter_version(row), row["created_at"]) for row in rows]

    async def archive(self, merchant_id: str, meter_id: str, *, db: Any = None) -> bool:
        """New calls by it are refused; requests keep showing it. False when it is not there or was archived before."""
        done = await self._execute(
            "UPDATE meter SET archived_at = $3 WHERE merchant_id = $1 AND meter_id = $2 AND archived_at IS NULL",
            merchant_id,
            meter_id,
            self._clock(),
            db=db,
        )
        return done.endswith(" 1")

    async def archived(
        self, merchant_id: str, *, before: str | None = None, limit: int, meter_id: str | None = None
    ) -> list[ArchivedMeter]:
        """Newest first, from below the id `before`; with `meter_id` that one alone."""
        rows = await self._rows(
            """SELECT m.meter_id, m.meter_slug, m.created_at, m.archived_at, v.version_id, v.name, v.rate_type, v.tier_type,
              v.token_basis, v.tiers
            FROM meter m JOIN LATERAL (
              SELECT * FROM meter_version WHERE meter_id = m.meter_id ORDER BY version_id DESC LIMIT 1) v ON true
            WHERE m.merchant_id = $1 AND m.archived_at IS NOT NULL AND ($2::text IS NULL OR m.meter_id < $2)
              AND ($3::text IS NULL OR m.meter_id = $3) ORDER BY m.meter_id DESC LIMIT $4""",
            merchant_id, before, meter_id, limit,
        )  # fmt: skip
        return [
            ArchivedMeter(
                meter_id=row["meter_id"], version=meter_version(row), created_at=row["created_at"], archived_at=row["archived_at"]
            )
            for row in rows
        ]


def slug_of(name: str) -> str:
    """A name as a slug: lower-case words joined by hyphens; `meter` where nothing is left of it."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[: SLUG_CHARS_MAX - 30].strip("-")
    return slug if slug and not slug.startswith("prd") else f"meter-{slug}".rstrip("-")
