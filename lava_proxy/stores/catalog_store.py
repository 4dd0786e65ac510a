"""The catalogue in Postgres: merchants, keys, connections, meters, provider keys; and the one query that makes a grant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import asyncpg

from lava_proxy.domain.catalog import MeterVersion, RateType, Tier, TierType, TokenBasis
from lava_proxy.domain.errors import CallerError, Conflict, NotFound
from lava_proxy.domain.limits import KeyRules, Limits, limits_document, parse_limits
from lava_proxy.domain.webhooks import CUSTOMER_CREATED
from lava_proxy.stores.balance_store import partition_of
from lava_proxy.stores.billing_terms import BillingTerms, billing_terms
from lava_proxy.stores.database import Database, translated
from lava_proxy.stores.ids import hash_of, new_id, new_secret
from lava_proxy.stores.plan_store import add_default_plan, start_on_default_plan
from lava_proxy.stores.postgres import Pool
from lava_proxy.stores.vault import Vault
from lava_proxy.stores.webhook_events import add_event

Clock = Callable[[], datetime]


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merchant:
    merchant_id: str
    name: str
    wallet_id: str
    clamp_floor: int = 0  # lower max_tokens to what the balance affords, not below this; 0: refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    connection_id: str
    merchant_id: str
    wallet_id: str
    reference_id: str | None
    status: str
    contact: dict[str, Any]
    metadata: dict[str, Any] | None
    created_at: datetime
    limits: Limits | None = None
    secret: str | None = field(default=None, repr=False)  # only right after creation, or when opened on purpose


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    meter_id: str
    merchant_id: str
    version: MeterVersion
    created_at: datetime
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendKey:
    """A key that draws on its merchant's own wallet at provider cost, within rules and limits."""

    spend_key_id: str
    merchant_id: str
    wallet_id: str
    name: str
    key_preview: str
    status: str  # active, paused
    rules: KeyRules
    limits: Limits
    created_at: datetime
    clamp_floor: int = 0  # the merchant's
    secret: str | None = field(default=None, repr=False)  # only right after creation and rotation


OrderKind = Literal["credit", "renew", "adjust"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderInLine:
    """An order, whose wallet's merchant it concerns, and what is to be applied before it."""

    credit: Credit
    merchant_id: str
    is_applied: bool
    earlier: tuple[Credit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """An order of money: written here first, then applied to Redis by its id."""

    credit_id: str
    wallet_id: str
    amount_nanos: int  # of an adjustment signed; of a renewal what it grants
    lot_key: str  # the lot that it makes, or (an adjustment below zero) takes from first; "" for none
    reason: str
    kind: OrderKind = "credit"
    ends: str = ""  # of a renewal: c(ycle), b(undle)
    drop_cycles: str = ""  # of a renewal: cycles whose tier counters are over, comma-separated
    expires_at: datetime | None = None  # of the lot that it makes
    created_at: datetime | None = None  # when it was written
    tier_field: str = ""  # of a debit that is given back: the tier counter that
    tier_units: int = 0  # so many units leave


_CONNECTION_COLUMNS = (
    "connection_id, merchant_id, wallet_id, reference_id, status, contact, metadata, created_at, limits, secret_sealed"
)
_ORDER_COLUMNS = "credit_id, wallet_id, amount_nanos, lot_key, reason, kind, ends, drop_cycles, expires_at, created_at"
_CREDIT_COLUMNS = f"{_ORDER_COLUMNS}, tier_field, tier_units"
_SPEND_KEY = """SELECT k.spend_key_id, k.merchant_id, m.wallet_id, m.clamp_floor, k.name, k.key_preview, k.status, k.request_shape,
  k.allowed_models, k.allowed_providers, k.limits, k.expires_at, k.created_at
  FROM spend_key k JOIN merchant m USING (merchant_id)"""
_METER_COLUMNS = """m.meter_id, m.merchant_id, m.meter_slug, m.created_at, m.secret_sealed,
  v.version_id, v.name, v.rate_type, v.tier_type, v.token_basis, v.tiers"""
_METER_FROM = """FROM meter m JOIN LATERAL (
  SELECT * FROM meter_version WHERE meter_id = m.meter_id ORDER BY version_id DESC LIMIT 1) v ON true"""


class CatalogStore(Database):
    """Reads and writes the catalogue. Raises StoreError when Postgres cannot answer, NotFound and Conflict for callers."""

    def __init__(self, pool: Pool, vault: Vault, clock: Clock = _utc_now) -> None:
        super().__init__(pool)
        self._vault = vault
        self._clock = clock

    @property
    def clock(self) -> Clock:
        """Business time, as this store was given it."""
        return self._clock

    async def check_master_key(self) -> None:
        """Raises SealBroken when secrets of this installation were sealed under another master key; the first start sets it."""
        await self._execute(
            "INSERT INTO installation VALUES ('canary', $1) ON CONFLICT (name) DO NOTHING",
            self._vault.seal("canary", "installation:canary"),
        )
        row = await self._row("SELECT value_sealed FROM installation WHERE name = 'canary'")
        assert row is not None
        self._vault.open(row["value_sealed"], "installation:canary")

    # -- merchants and keys

    async def create_merchant(self, name: str) -> Merchant:
        merchant_id, wallet_id, now = new_id("mer"), new_id("wal"), self._clock()
        async with self._transaction() as db:
            await db.execute("INSERT INTO wallet VALUES ($1, $2, $3, $4)", wallet_id, merchant_id, partition_of(wallet_id), now)
            await db.execute("INSERT INTO merchant VALUES ($1, $2, $3, $4)", merchant_id, name, wallet_id, now)
            await add_default_plan(db, merchant_id, now)
        return Merchant(merchant_id=merchant_id, name=name, wallet_id=wallet_id)

    async def merchant(self, merchant_id: str, *, db: Any = None) -> Merchant:
        row = await self._row(
            "SELECT merchant_id, name, wallet_id, clamp_floor FROM merchant WHERE merchant_id = $1", merchant_id, db=db
        )
        if row is None:
            raise NotFound(f"No merchant {merchant_id!r}.")
        return Merchant(**row)

    async def set_clamp_floor(self, merchant_id: str, floor: int, *, db: Any = None) -> Merchant:
        """Lower max_tokens to what a balance affords, but not below `floor`; 0: refuse such calls."""
        if not 0 <= floor <= 2_000_000:
            raise CallerError("A clamp floor is 0 (off) to 2,000,000 tokens.")
        await self._execute("UPDATE merchant SET clamp_floor = $2 WHERE merchant_id = $1", merchant_id, floor, db=db)
        return await self.merchant(merchant_id, db=db)

    async def merchants(self) -> list[Merchant]:
        return [
            Merchant(**row)
            for row in await self._rows("SELECT merchant_id, name, wallet_id, clamp_floor FROM merchant ORDER BY merchant_id")
        ]

    async def create_secret_key(self, merchant_id: str, name: str, *, live: bool = True, secret: str | None = None) -> str:
        """The new key, this once; only its hash is stored. `secret` is for the sandbox, which keeps its own."""
        secret = secret or new_secret("aks_live_" if live else "aks_test_")
        await self._execute(
            "INSERT INTO secret_key VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (key_hash) DO NOTHING",
            new_id("sk"), merchant_id, name, hash_of(secret), f"{secret[:9]}...{secret[-4:]}", self._clock(),
        )  # fmt: skip
        return secret

    async def revoke_secret_key(self, secret_key_id: str) -> bool:
        done = await self._execute(
            "UPDATE secret_key SET revoked_at = $2 WHERE secret_key_id = $1 AND revoked_at IS NULL",
            secret_key_id,
            self._clock(),
        )
        return done.endswith(" 1")

    async def secret_keys(self, merchant_id: str) -> list[dict[str, Any]]:
        return await self._rows(
            "SELECT secret_key_id, name, hint, created_at, revoked_at FROM secret_key"
            " WHERE merchant_id = $1 ORDER BY secret_key_id DESC",
            merchant_id,
        )

    async def merchant_by_key(self, secret_key: str) -> Merchant | None:
        """The merchant of a secret key; None when it is unknown or revoked."""
        row = await self._row(
            "SELECT m.merchant_id, m.name, m.wallet_id, m.clamp_floor FROM secret_key k JOIN merchant m USING (merchant_id)"
            " WHERE k.key_hash = $1 AND k.revoked_at IS NULL",
            hash_of(secret_key),
        )
        return None if row is None else Merchant(**row)

    # -- connections

    async def create_connection(
        self,
        merchant_id: str,
        *,
        reference_id: str | None = None,
        contact: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        connection_id: str | None = None,
        announce: bool = True,
        db: Any = None,
    ) -> Connection:
        """A new customer. `announce` False: the caller tells of it later (a checkout, when it has been paid)."""
        connection_id = connection_id or new_id("con")
        wallet_id, secret, now = new_id("wal"), new_secret("cons_live_"), self._clock()
        try:
            async with self._transaction(db) as db:
                await db.execute("INSERT INTO wallet VALUES ($1, $2, $3, $4)", wallet_id, merchant_id, partition_of(wallet_id), now)
                await db.execute(
                    """INSERT INTO connection (connection_id, merchant_id, wallet_id, reference_id, secret_hash, secret_sealed,
                    contact, metadata, created_at)
                    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)""",
                    connection_id, merchant_id, wallet_id, reference_id, hash_of(secret),
                    self._vault.seal(secret, f"connection:{connection_id}"), contact or {}, metadata, now,
                )  # fmt: skip
                await start_on_default_plan(db, merchant_id=merchant_id, connection_id=connection_id, wallet_id=wallet_id, at=now)
                if announce:
                    await add_event(
                        db, merchant_id=merchant_id, event_type=CUSTOMER_CREATED, at=now, connection_id=connection_id,
                        transition=connection_id,
                    )  # fmt: skip
        except asyncpg.UniqueViolationError as error:
            raise Conflict(f"A customer with reference_id {reference_id!r} exists already.", code="reference_id_taken") from error
        except asyncpg.ForeignKeyViolationError as error:
            raise NotFound(f"No merchant {merchant_id!r}.") from error
        return Connection(
            connection_id=connection_id, merchant_id=merchant_id, wallet_id=wallet_id, reference_id=reference_id,
            status="ok", contact=contact or {}, metadata=metadata, created_at=now, secret=secret,
        )  # fmt: skip

    async def connection(self, merchant_id: str, reference: str, *, db: Any = None) -> Connection | None:
        """By connection id, reference id or secret; only of this merchant and not deleted."""
        row = await self._row(
            f"""SELECT {_CONNECTION_COLUMNS} FROM connection
            WHERE merchant_id = $1 AND status <> 'deleted' AND (connection_id = $2 OR reference_id = $2 OR secret_hash = $3)
            ORDER BY (connection_id = $2) DESC LIMIT 1""",
            merchant_id, reference, hash_of(reference), db=db,
        )  # fmt: skip
        return None if row is None else self._connection(row)

    async def connections(self, merchant_id: str, *, before: str | None, limit: int) -> list[Connection]:
        """Newest first, from below the id `before`."""
        rows = await self._rows(
            f"""SELECT {_CONNECTION_COLUMNS} FROM connection
            WHERE merchant_id = $1 AND status <> 'deleted' AND ($2::text IS NULL OR connection_id < $2)
            ORDER BY connection_id DESC LIMIT $3""",
            merchant_id, before, limit,
        )  # fmt: skip
        return [self._connection(row) for row in rows]

    def _connection(self, row: dict[str, Any]) -> Connection:
        sealed, limits = row.pop("secret_sealed"), row.pop("limits")
        row["limits"] = None if limits is None else parse_limits(limits)
        return Connection(**row, secret=self._vault.open(sealed, f"connection:{row['connection_id']}"))

    async def set_connection_limits(self, merchant_id: str, connection_id: str, limits: Limits | None, *, db: Any = None) -> None:
        """Replace a connection's limits; None lifts them all."""
        done = await self._execute(
            "UPDATE connection SET limits = $3 WHERE merchant_id = $1 AND connection_id = $2 AND status <> 'deleted'",
            merchant_id,
            connection_id,
            None if limits is None else limits_document(limits),
            db=db,
        )
        if not done.endswith(" 1"):
            raise NotFound(f"No customer {connection_id!r}.")

    async def billing_terms(self, connection_id: str, meter_id: str | None) -> BillingTerms:
        """On what terms a connection's calls by a meter are charged: plan credit, tier cycle, overdraft line."""
        return await billing_terms(self._row, connection_id, meter_id)

    # -- spend keys

    async def create_spend_key(
        self, merchant_id: str, *, name: str, rules: KeyRules, limits: Limits, status: str = "active", db: Any = None
    ) -> SpendKey:
        """The new key with its secret, this once; only its hash is stored."""
        spend_key_id, secret = new_id("spk"), new_secret("lava_sk_")
        try:
            await self._execute(
                "INSERT INTO spend_key VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
                spend_key_id, merchant_id, name, hash_of(secret), _preview(secret), status, *_rules(rules),
                limits_document(limits), rules.expires_at, self._clock(), db=db,
            )  # fmt: skip
        except asyncpg.ForeignKeyViolationError as error:
            raise NotFound(f"No merchant {merchant_id!r}.") from error
        made = await self.spend_key(merchant_id, spend_key_id, db=db)
        assert made is not None
        return replace(made, secret=secret)

    async def spend_key(self, merchant_id: str, spend_key_id: str, *, db: Any = None) -> SpendKey | None:
        query = f"{_SPEND_KEY} WHERE k.merchant_id = $1 AND k.spend_key_id = $2"
        row = await self._row(query, merchant_id, spend_key_id, db=db)
        return None if row is None else _spend_key(row)

    async def spend_key_by_secret(self, secret: str) -> SpendKey | None:
        """The key of a secret, whatever its status; None when it is unknown, rotated or deleted."""
        row = await self._row(f"{_SPEND_KEY} WHERE k.key_hash = $1", hash_of(secret))
        return None if row is None else _spend_key(row)

    async def spend_keys(self, merchant_id: str, *, before: str | None, limit: int) -> list[SpendKey]:
        """Newest first, from below the id `before`."""
        rows = await self._rows(
            f"{_SPEND_KEY} WHERE k.merchant_id = $1 AND ($2::text IS NULL OR k.spend_key_id < $2)"
            " ORDER BY k.spend_key_id DESC LIMIT $3",
            merchant_id, before, limit,
        )  # fmt: skip
        return [_spend_key(row) for row in rows]

    async def update_spend_key(self, key: SpendKey, *, db: Any = None) -> None:
        """Store a key's name, status, rules and limits. Raises NotFound when it was deleted meanwhile."""
        done = await self._execute(
            "UPDATE spend_key SET name = $3, status = $4, request_shape = $5, allowed_models = $6, allowed_providers = $7,"
            " limits = $8, expires_at = $9 WHERE merchant_id = $1 AND spend_key_id = $2",
            key.merchant_id, key.spend_key_id, key.name, key.status, *_rules(key.rules), limits_document(key.limits),
            key.rules.expires_at, db=db,
        )  # fmt: skip
        if not done.endswith(" 1"):
            raise NotFound("No spend key of yours has this id.")

    async def rotate_spend_key(self, merchant_id: str, spend_key_id: str, *, db: Any = None) -> SpendKey | None:
        """The same key under a new secret, shown this once; the old one ends. None when there is no such key."""
        secret = new_secret("lava_sk_")
        await self._execute(
            "UPDATE spend_key SET key_hash = $3, key_preview = $4 WHERE merchant_id = $1 AND spend_key_id = $2",
            merchant_id, spend_key_id, hash_of(secret), _preview(secret), db=db,
        )  # fmt: skip
        found = await self.spend_key(merchant_id, spend_key_id, db=db)
        return None if found is None else replace(found, secret=secret)

    async def delete_spend_key(self, merchant_id: str, spend_key_id: str, *, db: Any = None) -> bool:
        query = "DELETE FROM spend_key WHERE merchant_id = $1 AND spend_key_id = $2"
        return bool(await self._changed(query, merchant_id, spend_key_id, db=db))

    # -- meters

    async def create_meter(
        self,
        merchant_id: str,
        *,
        name: str,
        slug: str,
        rate_type: RateType,
        tier_type: TierType,
        tiers: tuple[Tier, ...],
        token_basis: TokenBasis = "input+output",
        db: Any = None,
    ) -> Meter:
        meter_id, secret, now = new_id("prd"), new_secret("prds_live_"), self._clock()
        try:
            async with self._transaction(db) as db:
                await db.execute(
                    "INSERT INTO meter VALUES ($1, $2, $3, $4, $5, NULL, $6)",
                    meter_id, merchant_id, slug, hash_of(secret), self._vault.seal(secret, f"meter:{meter_id}"), now,
                )  # fmt: skip
                version_id = await db.fetchval(
                    """INSERT INTO meter_version (meter_id, name, rate_type, tier_type, token_basis, tiers, created_at)
                    VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING version_id""",
                    meter_id, name, rate_type, tier_type, token_basis, [[t.start, t.rate] for t in tiers], now,
                )  # fmt: skip
        except asyncpg.UniqueViolationError as error:
            raise Conflict(f"A meter with slug {slug!r} exists already.", code="meter_slug_taken") from error
        except asyncpg.ForeignKeyViolationError as error:
            raise NotFound(f"No merchant {merchant_id!r}.") from error
        version = MeterVersion(
            version_id=version_id, meter_id=meter_id, slug=slug, name=name, rate_type=rate_type,
            tier_type=tier_type, tiers=tiers, token_basis=token_basis,
        )  # fmt: skip
        return Meter(meter_id=meter_id, merchant_id=merchant_id, version=version, created_at=now, secret=secret)

    async def meter(self, merchant_id: str, reference: str, *, db: Any = None) -> Meter | None:
        """By meter id, slug or secret; only of this merchant and not archived; with its newest version."""
        row = await self._row(
            f"SELECT {_METER_COLUMNS} {_METER_FROM} WHERE m.merchant_id = $1 AND m.archived_at IS NULL"
            " AND (m.meter_id = $2 OR m.meter_slug = $2 OR m.secret_hash = $3) ORDER BY (m.meter_id = $2) DESC LIMIT 1",
            merchant_id, reference, hash_of(reference), db=db,
        )  # fmt: skip
        return None if row is None else self._meter(row)

    async def has_archived_meter(self, merchant_id: str, reference: str) -> bool:
        """Did this merchant archive a meter of this id, slug or secret?"""
        row = await self._row(
            "SELECT 1 FROM meter WHERE merchant_id = $1 AND archived_at IS NOT NULL"
            " AND (meter_id = $2 OR meter_slug = $2 OR secret_hash = $3) LIMIT 1",
            merchant_id, reference, hash_of(reference),
        )  # fmt: skip
        return row is not None

    async def meters(self, merchant_id: str, *, before: str | None, limit: int) -> list[Meter]:
        rows = await self._rows(
            f"SELECT {_METER_COLUMNS} {_METER_FROM} WHERE m.merchant_id = $1 AND m.archived_at IS NULL"
            " AND ($2::text IS NULL OR m.meter_id < $2) ORDER BY m.meter_id DESC LIMIT $3",
            merchant_id, before, limit,
        )  # fmt: skip
        return [self._meter(row) for row in rows]

    async def meter_version(self, version_id: int) -> MeterVersion | None:
        """A version by its number, whatever became of its meter since: what stored rows are re-rated with."""
        row = await self._row(
            "SELECT v.version_id, v.meter_id, m.meter_slug, v.name, v.rate_type, v.tier_type, v.token_basis, v.tiers"
            " FROM meter_version v JOIN meter m USING (meter_id) WHERE v.version_id = $1",
            version_id,
        )
        return None if row is None else meter_version(row)

    def _meter(self, row: dict[str, Any]) -> Meter:
        return Meter(
            meter_id=row["meter_id"], merchant_id=row["merchant_id"], version=meter_version(row), created_at=row["created_at"],
            secret=self._vault.open(row["secret_sealed"], f"meter:{row['meter_id']}"),
        )  # fmt: skip

    # -- provider keys

    async def set_provider_key(self, merchant_id: str, provider: str, key: str, *, db: Any = None) -> None:
        try:
            await self._execute(
                """INSERT INTO provider_key VALUES ($1, $2, $3, $4, $5) ON CONFLICT (merchant_id, provider)
                DO UPDATE SET key_sealed = EXCLUDED.key_sealed, hint = EXCLUDED.hint, created_at = EXCLUDED.created_at""",
                merchant_id, provider, self._vault.seal(key, f"provider_key:{merchant_id}:{provider}"),
                f"...{key[-4:]}", self._clock(), db=db,
            )  # fmt: skip
        except asyncpg.ForeignKeyViolationError as error:
            raise NotFound(f"No merchant {merchant_id!r}.") from error

    async def provider_keys(self, merchant_id: str) -> dict[str, str]:
        """Provider name -> key, opened."""
        rows = await self._rows("SELECT provider, key_sealed FROM provider_key WHERE merchant_id = $1", merchant_id)
        return {
            row["provider"]: self._vault.open(row["key_sealed"], f"provider_key:{merchant_id}:{row['provider']}") for row in rows
        }

    # -- money in

    async def add_credit(self, credit: Credit, db: Any = None) -> Credit:
        """Write an order to be applied, in the caller's transaction where `db` (an asyncpg connection) is given.

        The same id again changes nothing and answers what was written first. Raises Conflict when that was another order (wallet,
        kind, amount or what it ends), NotFound for an unknown wallet.
        """
        try:
            row = await self._row(
                f"""INSERT INTO credit ({_ORDER_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
                ON CONFLICT (credit_id) DO NOTHING RETURNING {_CREDIT_COLUMNS}""",
                credit.credit_id, credit.wallet_id, credit.amount_nanos, credit.lot_key, credit.reason, credit.kind, credit.ends,
                credit.drop_cycles, credit.expires_at, credit.created_at or self._clock(), db=db,
            )  # fmt: skip
        except asyncpg.ForeignKeyViolationError as error:
            raise NotFound(f"No wallet {credit.wallet_id!r}.") from error
        if row is not None:
            return Credit(**row)
        known = await self.credit(credit.credit_id, db)
        assert known is not None, "orders are never deleted"
        if _order(known) != _order(credit):
            raise Conflict(
                f"The id {credit.credit_id!r} was used before for another order of money; nothing was changed.",
                code="order_id_conflict",
            )
        return known

    async def credit(self, credit_id: str, db: Any = None) -> Credit | None:
        """An order by its id, as `db` sees it."""
        source = self._pool if db is None else db
        row = await translated(lambda: source.fetchrow(f"SELECT {_CREDIT_COLUMNS} FROM credit WHERE credit_id = $1", credit_id))
        return None if row is None else Credit(**row)

    async def open_credits(self, limit: int, after: str | None = None) -> list[Credit]:
        """Orders whose ledger entry has not been flushed yet, oldest first, from behind the order `after`."""
        rows = await self._rows(
            f"""SELECT {_CREDIT_COLUMNS} FROM credit
            WHERE applied_at IS NULL AND ordinal > coalesce((SELECT ordinal FROM credit WHERE credit_id = $2), 0)
            ORDER BY ordinal LIMIT $1""",
            limit, after,
        )  # fmt: skip
        return [Credit(**row) for row in rows]

    async def open_plan_orders_before(self, credit_id: str) -> list[Credit]:
        """Earlier orders on the plan pot of the same wallet whose ledger entry has not been flushed yet, oldest first."""
        rows = await self._rows(
            f"""SELECT {_CREDIT_COLUMNS} FROM credit WHERE applied_at IS NULL AND (kind = 'renew' OR lot_key LIKE 'p:%')
            AND (wallet_id, ordinal) < (SELECT wallet_id, ordinal FROM credit WHERE credit_id = $1)
            AND wallet_id = (SELECT wallet_id FROM credit WHERE credit_id = $1) ORDER BY ordinal""",
            credit_id,
        )
        return [Credit(**row) for row in rows]

    async def order_in_line(self, credit_id: str) -> OrderInLine | None:
        """An order by its id; unless it has been applied with what `open_plan_orders_before` answers for one on the plan pot."""
        rows = await self._rows(
            f"""WITH asked AS (SELECT c.*, merchant_id FROM credit c JOIN wallet USING (wallet_id) WHERE credit_id = $1)
            SELECT {_CREDIT_COLUMNS}, merchant_id, applied_at IS NOT NULL AS is_applied, ordinal FROM asked
            UNION ALL SELECT {", ".join("c." + name for name in _CREDIT_COLUMNS.split(", "))}, '', false, c.ordinal
            FROM asked a JOIN credit c ON c.wallet_id = a.wallet_id AND c.ordinal < a.ordinal
            WHERE a.applied_at IS NULL AND (a.kind = 'renew' OR a.lot_key LIKE 'p:%')
            AND c.applied_at IS NULL AND (c.kind = 'renew' OR c.lot_key LIKE 'p:%') ORDER BY ordinal""",
            credit_id,
        )
        facts = [(row.pop("ordinal"), row.pop("merchant_id"), row.pop("is_applied")) for row in rows]
        if not facts:
            return None
        *earlier, asked = (Credit(**row) for row in rows)
        return OrderInLine(credit=asked, merchant_id=facts[-1][1], is_applied=facts[-1][2], earlier=tuple(earlier))

    async def expired_lots(self, now: datetime, limit: int) -> dict[str, str]:
        """Wallet -> its merchant, of wallets with a lot that has expired and was not swept; longest ago first."""
        rows = await self._rows(
            """SELECT wallet_id, merchant_id FROM (
              SELECT wallet_id, min(expires_at) AS first FROM credit WHERE expires_at <= $1 AND swept_at IS NULL
              GROUP BY 1 ORDER BY 2 LIMIT $2) AS due JOIN wallet USING (wallet_id) ORDER BY first""",
            now, limit,
        )  # fmt: skip
        return {row["wallet_id"]: row["merchant_id"] for row in rows}

    async def note_swept(self, wallet_id: str, now: datetime) -> None:
        """The wallet's lots that had expired by then have been ended in Redis."""
        await self._execute(
            "UPDATE credit SET swept_at = $2 WHERE wallet_id = $1 AND expires_at <= $2 AND swept_at IS NULL", wallet_id, now
        )

    async def is_credit_applied(self, credit_id: str) -> bool:
        """Has this credit's ledger entry been flushed?"""
        row = await self._row("SELECT applied_at FROM credit WHERE credit_id = $1", credit_id)
        return row is not None and row["applied_at"] is not None

    async def wallet_merchant(self, wallet_id: str) -> str:
        """Whose wallet it is."""
        row = await self._row("SELECT merchant_id FROM wallet WHERE wallet_id = $1", wallet_id)
        if row is None:
            raise NotFound(f"No wallet {wallet_id!r}.")
        return str(row["merchant_id"])


def _order(credit: Credit) -> tuple[Any, ...]:
    """What a repeat must have in common with the first; the lot's key and times are the first one's."""
    return credit.wallet_id, credit.kind, credit.amount_nanos, credit.ends


def _preview(secret: str) -> str:
    return f"{secret[:16]}****"


def _rules(rules: KeyRules) -> tuple[Any, ...]:
    """request_shape, allowed_models, allowed_providers as columns."""
    models, providers = rules.allowed_models, rules.allowed_providers
    return rules.request_shape, None if models is None else list(models), None if providers is None else list(providers)


def _spend_key(row: dict[str, Any]) -> SpendKey:
    models, providers = row.pop("allowed_models"), row.pop("allowed_providers")
    rules = KeyRules(
        request_shape=row.pop("request_shape"),
        allowed_models=None if models is None else tuple(models),
        allowed_providers=None if providers is None else tuple(providers),
        expires_at=row.pop("expires_at"),
    )
    return SpendKey(**row | {"rules": rules, "limits": parse_limits(row["limits"])})


def meter_version(row: Mapping[str, Any]) -> MeterVersion:
    """A version out of its columns and its meter's slug."""
    return MeterVersion(
        version_id=row["version_id"], meter_id=row["meter_id"], slug=row["meter_slug"], name=row["name"],
        rate_type=row["rate_type"], tier_type=row["tier_type"], token_basis=row["token_basis"],
        tiers=tuple(Tier(start=start, rate=rate) for start, rate in row["tiers"]),
    )  # fmt: skip
