"""Plans, bundles and subscriptions in Postgres. Whether a change may happen is decided in `billing/subscriptions.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg

from lava_proxy.domain.calendar import Period, period
from lava_proxy.domain.errors import CallerError, Conflict, NotFound
from lava_proxy.domain.plans import Bundle, Overage, Plan, Subscription, Terms, overage_document, parse_overage, parse_terms
from lava_proxy.stores.database import Database, translated
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.postgres import Pool

_PLAN = "SELECT * FROM plan"
_UPDATE_SUBSCRIPTION = """UPDATE subscription SET plan_id = $2, terms = $3, status = $4, auto_top_up_bundle_id = $5, anchor_at = $6,
  cycle_index = $7, cycle_start_at = $8, cycle_end_at = $9, due_at = $10, pending = $11, cancelled_at = $12, time_zone = $13,
  started_at = $14 WHERE subscription_id = $1"""
_SUBSCRIPTION = "SELECT s.*, c.contact FROM subscription s JOIN connection c USING (connection_id)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a plan is sold as today."""

    terms: Terms
    auto_top_up_bundle_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodStart:
    """A cycle that begins: of the subscription as it is with it; what was paid for it and by which charge, what it grants."""

    subscription: Subscription
    amount_nanos: int
    granted_nanos: int
    charge_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleDraft:
    """A bundle to make or, with an id, to change."""

    name: str
    cost_nanos: int
    credit_nanos: int
    credit_bundle_id: str | None = None
    is_deleted: bool = False


class PlanStore(Database):
    """Reads and writes plans and subscriptions. Raises StoreError when Postgres cannot answer."""

    def __init__(self, pool: Pool, clock: Callable[[], datetime]) -> None:
        super().__init__(pool)
        self._clock = clock

    # -- plans

    async def create_plan(
        self,
        merchant_id: str,
        terms: Terms,
        *,
        overage: Overage | None,
        meter_ids: Sequence[str],
        bundles: Sequence[BundleDraft],
        auto_top_up_index: int | None = None,
        is_default: bool = False,
        db: Any = None,
    ) -> Plan:
        """A new plan; `terms.plan_id` is ignored. Raises CallerError for a meter that is not this merchant's."""
        if db is None:
            async with self._transaction() as opened:
                return await self.create_plan(
                    merchant_id, terms, overage=overage, meter_ids=meter_ids, bundles=bundles,
                    auto_top_up_index=auto_top_up_index, is_default=is_default, db=opened,
                )  # fmt: skip
        plan_id, now = new_id("sc"), self._clock()
        await self._execute(
            """INSERT INTO plan (plan_id, merchant_id, name, period_amount_nanos, included_credit_nanos, billing_interval,
            rollover_type, bundle_rollover_type, overage, is_default, created_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)""",
            plan_id, merchant_id, terms.name, terms.period_amount_nanos, terms.included_credit_nanos, terms.billing_interval,
            terms.rollover_type, terms.bundle_rollover_type, _document(overage), is_default,
            now, db=db,
        )  # fmt: skip
        await self._link_meters(db, merchant_id, plan_id, meter_ids)
        made = [await self._put_bundle(db, plan_id, *pair) for pair in zip(bundles, _bundle_ids(len(bundles)), strict=True)]
        if auto_top_up_index is not None:
            await self._execute(
                "UPDATE plan SET default_auto_top_up_bundle_id = $2 WHERE plan_id = $1", plan_id, made[auto_top_up_index], db=db
            )
        found = await self.plan(merchant_id, plan_id, db=db)
        assert found is not None
        return found

    async def update_plan(
        self,
        plan: Plan,
        *,
        meter_ids: Sequence[str] | None,
        bundles: Sequence[BundleDraft] | None,
        db: Any = None,
    ) -> Plan:
        """Store a plan's changeable facts; meters are replaced when given, bundles made, changed or deleted one by one."""
        terms = plan.terms
        async with self._transaction(db) as db:
            await self._execute(
                """UPDATE plan SET name = $3, rollover_type = $4, bundle_rollover_type = $5, included_credit_nanos = $6,
                overage = $7, default_auto_top_up_bundle_id = $8 WHERE merchant_id = $1 AND plan_id = $2""",
                plan.merchant_id, plan.plan_id, terms.name, terms.rollover_type, terms.bundle_rollover_type,
                terms.included_credit_nanos, _document(plan.overage),
                plan.default_auto_top_up_bundle_id, db=db,
            )  # fmt: skip
            if meter_ids is not None:
                await self._execute("DELETE FROM plan_meter WHERE plan_id = $1", plan.plan_id, db=db)
                await self._link_meters(db, plan.merchant_id, plan.plan_id, meter_ids)
            for bundle, fresh_id in zip(bundles or (), _bundle_ids(len(bundles or ())), strict=True):
                await self._put_bundle(db, plan.plan_id, bundle, fresh_id)
            await self._execute(
                """UPDATE subscription s SET auto_top_up_bundle_id = NULL FROM credit_bundle b
                WHERE b.plan_id = $1 AND s.plan_id = $1 AND b.deleted_at IS NOT NULL
                AND s.auto_top_up_bundle_id = b.credit_bundle_id""",
                plan.plan_id, db=db,
            )  # fmt: skip
            found = await self.plan(plan.merchant_id, plan.plan_id, db=db)
            assert found is not None
            automatic = found.default_auto_top_up_bundle_id
            if automatic is not None and automatic not in {bundle.credit_bundle_id for bundle in found.bundles}:
                raise CallerError(
                    f"default_auto_top_up_bundle_id is {automatic!r}; accepted is a bundle of this plan, or null.",
                    code="invalid_parameter",
                )
            return found

    async def archive_plan(self, merchant_id: str, plan_id: str, *, db: Any = None) -> bool:
        """No new subscriptions; running ones go on. False when there was no such plan. Raises Conflict for the default plan."""
        found = await self.plan(merchant_id, plan_id, db=db)
        if found is None:
            return False
        if found.is_default:
            raise Conflict("The default plan cannot be deleted: customers start on it. It can be renamed.", code="default_plan")
        await self._execute(
            "UPDATE plan SET archived_at = $3 WHERE merchant_id = $1 AND plan_id = $2 AND archived_at IS NULL",
            merchant_id, plan_id, self._clock(), db=db,
        )  # fmt: skip
        return True

    async def plan(self, merchant_id: str, plan_id: str, *, archived: bool = False, db: Any = None) -> Plan | None:
        row = await self._row(
            f"{_PLAN} WHERE merchant_id = $1 AND plan_id = $2 AND ($3 OR archived_at IS NULL)",
            merchant_id,
            plan_id,
            archived,
            db=db,
        )
        return None if row is None else (await self._plans([row], db))[0]

    async def default_plan(self, merchant_id: str, *, db: Any = None) -> Plan | None:
        row = await self._row(f"{_PLAN} WHERE merchant_id = $1 AND is_default", merchant_id, db=db)
        return None if row is None else (await self._plans([row], db))[0]

    async def plans(self, merchant_id: str, *, before: str | None, limit: int) -> list[Plan]:
        """Newest first, from below the id `before`."""
        rows = await self._rows(
            f"{_PLAN} WHERE merchant_id = $1 AND archived_at IS NULL AND ($2::text IS NULL OR plan_id < $2)"
            " ORDER BY plan_id DESC LIMIT $3",
            merchant_id, before, limit,
        )  # fmt: skip
        return await self._plans(rows, None)

    async def bundles(self, merchant_id: str, *, plan_id: str | None, before: str | None, limit: int) -> list[Bundle]:
        """Newest first, from below the id `before`."""
        rows = await self._rows(
            """SELECT b.* FROM credit_bundle b JOIN plan p USING (plan_id) WHERE p.merchant_id = $1 AND b.deleted_at IS NULL
            AND ($2::text IS NULL OR plan_id = $2) AND ($3::text IS NULL OR credit_bundle_id < $3)
            ORDER BY credit_bundle_id DESC LIMIT $4""",
            merchant_id, plan_id, before, limit,
        )  # fmt: skip
        return [_bundle(row) for row in rows]

    async def bundle(self, merchant_id: str, credit_bundle_id: str, *, db: Any = None) -> Bundle | None:
        row = await self._row(
            "SELECT b.* FROM credit_bundle b JOIN plan p USING (plan_id)"
            " WHERE p.merchant_id = $1 AND credit_bundle_id = $2 AND b.deleted_at IS NULL",
            merchant_id, credit_bundle_id, db=db,
        )  # fmt: skip
        return None if row is None else _bundle(row)

    async def offers(self, db: Any, plan_ids: Iterable[str]) -> dict[str, Offer]:
        """Plan id -> what it is sold as, archived plans too."""
        rows = await self._rows(f"{_PLAN} WHERE plan_id = ANY($1::text[])", list(plan_ids), db=db)
        return {
            row["plan_id"]: Offer(terms=_terms(row), auto_top_up_bundle_id=row["default_auto_top_up_bundle_id"]) for row in rows
        }

    # -- overage policies

    async def set_merchant_overage(self, merchant_id: str, overage: Overage | None, *, db: Any = None) -> None:
        """What holds where neither customer nor plan says otherwise. Raises NotFound for an unknown merchant."""
        query = "UPDATE merchant SET overage = $2 WHERE merchant_id = $1"
        if not await self._changed(query, merchant_id, _document(overage), db=db):
            raise NotFound(f"No merchant {merchant_id!r}.")

    async def merchant_overage(self, merchant_id: str) -> Overage | None:
        row = await self._row("SELECT overage FROM merchant WHERE merchant_id = $1", merchant_id)
        return None if row is None else _overage(row["overage"])

    async def set_connection_overage(
        self, merchant_id: str, connection_id: str, overage: Overage | None, *, db: Any = None
    ) -> None:
        """A customer's own policy; None: as its plan says. Raises NotFound for an unknown customer."""
        done = await self._changed(
            "UPDATE connection SET overage = $3 WHERE merchant_id = $1 AND connection_id = $2 AND status <> 'deleted'",
            merchant_id, connection_id, _document(overage), db=db,
        )  # fmt: skip
        if not done:
            raise NotFound(f"No customer {connection_id!r}.")

    async def connection_overages(self, connection_ids: Sequence[str]) -> dict[str, Overage]:
        """Connection id -> its own policy, of those that have one."""
        rows = await self._rows(
            "SELECT connection_id, overage FROM connection WHERE connection_id = ANY($1::text[]) AND overage IS NOT NULL",
            list(connection_ids),
        )
        return {row["connection_id"]: parse_overage(row["overage"]) for row in rows}

    async def _link_meters(self, db: Any, merchant_id: str, plan_id: str, meter_ids: Sequence[str]) -> None:
        wanted = list(dict.fromkeys(meter_ids))
        linked = await self._changed(
            """INSERT INTO plan_meter SELECT $2, meter_id FROM meter
            WHERE merchant_id = $1 AND meter_id = ANY($3::text[]) AND archived_at IS NULL""",
            merchant_id, plan_id, wanted, db=db,
        )  # fmt: skip
        if linked != len(wanted):
            raise CallerError("meter_ids names a meter that this merchant does not have.", code="invalid_parameter")

    async def _put_bundle(self, db: Any, plan_id: str, draft: BundleDraft, fresh_id: str) -> str:
        if draft.credit_bundle_id is None:
            bundle_id = fresh_id
            await self._execute(
                "INSERT INTO credit_bundle VALUES ($1, $2, $3, $4, $5, $6)",
                bundle_id, plan_id, draft.name, draft.cost_nanos, draft.credit_nanos, self._clock(), db=db,
            )  # fmt: skip
            return bundle_id
        changed = await self._changed(
            "UPDATE credit_bundle SET name = $3, cost_nanos = $4, credit_nanos = $5, deleted_at = $6"
            " WHERE plan_id = $1 AND credit_bundle_id = $2 AND deleted_at IS NULL",
            plan_id, draft.credit_bundle_id, draft.name, draft.cost_nanos, draft.credit_nanos,
            self._clock() if draft.is_deleted else None, db=db,
        )  # fmt: skip
        if not changed:
            raise CallerError(
                f"credit_bundles names {draft.credit_bundle_id!r}, which is not a bundle of this plan.", code="invalid_parameter"
            )
        return draft.credit_bundle_id

    async def _plans(self, rows: Sequence[dict[str, Any]], db: Any) -> list[Plan]:
        ids = [row["plan_id"] for row in rows]
        meters = await self._rows(
            """SELECT plan_id, meter_id, v.name FROM plan_meter JOIN meter m USING (meter_id) JOIN LATERAL (
              SELECT name FROM meter_version WHERE meter_id = m.meter_id ORDER BY version_id DESC LIMIT 1) v ON true
            WHERE plan_id = ANY($1::text[]) ORDER BY meter_id""",
            ids, db=db,
        )  # fmt: skip
        bundles = await self._rows(
            "SELECT * FROM credit_bundle WHERE plan_id = ANY($1::text[]) AND deleted_at IS NULL ORDER BY credit_bundle_id",
            ids, db=db,
        )  # fmt: skip
        return [
            Plan(
                plan_id=row["plan_id"],
                merchant_id=row["merchant_id"],
                terms=_terms(row),
                overage=_overage(row["overage"]),
                default_auto_top_up_bundle_id=row["default_auto_top_up_bundle_id"],
                is_default=row["is_default"],
                created_at=row["created_at"],
                meters=tuple((meter["meter_id"], meter["name"]) for meter in meters if meter["plan_id"] == row["plan_id"]),
                bundles=tuple(_bundle(bundle) for bundle in bundles if bundle["plan_id"] == row["plan_id"]),
            )
            for row in rows
        ]

    # -- subscriptions

    async def subscription(
        self, merchant_id: str, subscription_id: str, *, db: Any = None, lock: bool = False
    ) -> Subscription | None:
        row = await self._row(
            f"{_SUBSCRIPTION} WHERE s.merchant_id = $1 AND subscription_id = $2{' FOR UPDATE OF s' if lock else ''}",
            merchant_id, subscription_id, db=db,
        )  # fmt: skip
        return None if row is None else _subscription(row)

    async def live_subscription(self, connection_id: str, *, db: Any = None, lock: bool = False) -> Subscription | None:
        """The connection's subscription that is not cancelled; there is at most one."""
        row = await self._row(
            f"{_SUBSCRIPTION} WHERE s.connection_id = $1 AND s.status <> 'cancelled'{' FOR UPDATE OF s' if lock else ''}",
            connection_id, db=db,
        )  # fmt: skip
        return None if row is None else _subscription(row)

    async def live_subscriptions(self, connection_ids: Sequence[str]) -> dict[str, Subscription]:
        """Connection id -> its subscription that is not cancelled, of those that have one."""
        rows = await self._rows(
            f"{_SUBSCRIPTION} WHERE s.connection_id = ANY($1::text[]) AND s.status <> 'cancelled'", list(connection_ids)
        )
        return {row["connection_id"]: _subscription(row) for row in rows}

    async def subscriptions(
        self, merchant_id: str, *, is_live: bool | None, connection_id: str | None, before: str | None, limit: int
    ) -> list[Subscription]:
        """Newest first, from below the id `before`; `is_live` None: all."""
        rows = await self._rows(
            f"""{_SUBSCRIPTION} WHERE s.merchant_id = $1 AND ($2::bool IS NULL OR (s.status <> 'cancelled') = $2)
            AND ($3::text IS NULL OR s.connection_id = $3) AND ($4::text IS NULL OR subscription_id < $4)
            ORDER BY subscription_id DESC LIMIT $5""",
            merchant_id, is_live, connection_id, before, limit,
        )  # fmt: skip
        return [_subscription(row) for row in rows]

    async def insert_subscription(self, db: Any, subscription: Subscription) -> None:
        """A new subscription. Raises Conflict when the connection has a live one."""
        s = subscription
        try:
            await self._execute(
                """INSERT INTO subscription VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)""",
                s.subscription_id, s.merchant_id, s.connection_id, s.wallet_id, s.terms.plan_id, s.terms.document(), s.status,
                s.auto_top_up_bundle_id, s.time_zone, s.anchor_at, s.cycle.index, s.cycle.start, s.cycle.end, s.due_at, s.pending,
                s.started_at, s.cancelled_at, db=db,
            )  # fmt: skip
        except asyncpg.UniqueViolationError as error:
            raise Conflict("This customer has a subscription already.", code="already_subscribed") from error

    async def update_subscriptions(self, db: Any, subscriptions: Sequence[Subscription]) -> None:
        """Store what can change of subscriptions."""
        rows = [
            (s.subscription_id, s.terms.plan_id, s.terms.document(), s.status, s.auto_top_up_bundle_id, s.anchor_at, s.cycle.index,
             s.cycle.start, s.cycle.end, s.due_at, s.pending, s.cancelled_at, s.time_zone, s.started_at)
            for s in subscriptions
        ]  # fmt: skip
        if rows:
            await translated(lambda: db.executemany(_UPDATE_SUBSCRIPTION, rows))

    async def postpone(self, db: Any, looks: Sequence[tuple[str, datetime]]) -> None:
        """When the renewals look at these subscriptions next."""
        if looks:
            await translated(lambda: db.executemany("UPDATE subscription SET due_at = $2 WHERE subscription_id = $1", looks))

    async def begin_periods(self, db: Any, starts: Sequence[PeriodStart]) -> set[str]:
        """Note that cycles have begun, one a subscription; the ids of those for which that was not noted before."""
        columns = zip(
            *(
                (s.subscription_id, s.anchor_at, s.cycle.index, s.cycle.start, s.cycle.end, s.terms.plan_id, start.amount_nanos,
                 start.granted_nanos, start.charge_id)
                for start in starts
                for s in (start.subscription,)
            ),
            strict=True,
        )  # fmt: skip
        rows = await self._rows(
            """INSERT INTO subscription_period SELECT *, $10 FROM unnest($1::text[], $2::timestamptz[], $3::int[],
            $4::timestamptz[], $5::timestamptz[], $6::text[], $7::bigint[], $8::bigint[], $9::text[])
            ON CONFLICT DO NOTHING RETURNING subscription_id""",
            *columns, self._clock(), db=db,
        )  # fmt: skip
        return {row["subscription_id"] for row in rows}

    async def lock_connection(self, db: Any, connection_id: str) -> bool:
        """Let nobody else start a subscription of a customer until the transaction ends; False when it was deleted."""
        row = await self._row("SELECT status FROM connection WHERE connection_id = $1 FOR NO KEY UPDATE", connection_id, db=db)
        return row is not None and row["status"] != "deleted"

    async def stop_renewal_charges(self, db: Any, wallet_id: str) -> None:
        """Renewals that were declined are called off. One that is being tried now goes on; what it takes becomes funds."""
        await self._execute(
            """WITH stopped AS (
              UPDATE charge SET state = 'canceled', next_try_at = NULL, updated_at = $2
              WHERE charge_id IN (SELECT charge_id FROM charge WHERE wallet_id = $1 AND state = 'declined'
                AND purpose = 'subscription_renewal' FOR UPDATE SKIP LOCKED) RETURNING charge_id)
            INSERT INTO charge_transition SELECT charge_id,
              (SELECT count(*) FROM charge_transition t WHERE t.charge_id = s.charge_id) + 1, 'declined', 'canceled', $2
            FROM stopped s""",
            wallet_id, self._clock(), db=db,
        )  # fmt: skip

    async def due(self, db: Any, at: datetime, limit: int) -> list[Subscription]:
        """Live subscriptions that are due, locked for the transaction; those that another worker holds are skipped."""
        rows = await self._rows(
            f"""{_SUBSCRIPTION} WHERE s.status <> 'cancelled' AND s.due_at <= $1
            ORDER BY s.due_at LIMIT $2 FOR UPDATE OF s SKIP LOCKED""",
            at, limit, db=db,
        )  # fmt: skip
        return [_subscription(row) for row in rows]


async def add_default_plan(db: Any, merchant_id: str, at: datetime) -> None:
    """The plan that costs nothing, on which a new merchant's customers start."""
    await db.execute(
        """INSERT INTO plan (plan_id, merchant_id, name, period_amount_nanos, included_credit_nanos, billing_interval,
        rollover_type, bundle_rollover_type, is_default, created_at)
        VALUES ($1, $2, 'Free', 0, 0, 'month', 'none', 'full', true, $3)""",
        new_id("sc"), merchant_id, at,
    )  # fmt: skip


async def start_on_default_plan(db: Any, *, merchant_id: str, connection_id: str, wallet_id: str, at: datetime) -> None:
    """Put a new customer on its merchant's default plan, in the transaction that makes the customer."""
    row = await db.fetchrow(f"{_PLAN} WHERE merchant_id = $1 AND is_default", merchant_id)
    if row is None:  # a merchant that is being made, or is none
        return
    terms, at = _terms(dict(row)), at.astimezone(UTC).replace(microsecond=0)
    cycle, subscription_id = period(at, terms.billing_interval, 0), new_id("sub")
    await db.execute(
        """INSERT INTO subscription (subscription_id, merchant_id, connection_id, wallet_id, plan_id, terms, status,
        auto_top_up_bundle_id, time_zone, anchor_at, cycle_index, cycle_start_at, cycle_end_at, due_at, started_at)
        VALUES ($1, $2, $3, $4, $5, $6, 'active', $7, 'UTC', $8, 0, $8, $9, $9, $8)""",
        subscription_id, merchant_id, connection_id, wallet_id, terms.plan_id, terms.document(),
        row["default_auto_top_up_bundle_id"], cycle.start, cycle.end,
    )  # fmt: skip
    await db.execute(
        "INSERT INTO subscription_period VALUES ($1, $2, 0, $2, $3, $4, 0, 0, '', $2)",
        subscription_id, cycle.start, cycle.end, terms.plan_id,
    )  # fmt: skip


async def end_of_deleted(db: Any, connection_id: str, at: datetime) -> None:
    """End the subscription of a customer that is deleted, in that transaction: it is neither renewed nor charged again."""
    await db.execute(
        """UPDATE subscription SET status = 'cancelled', pending = NULL, cancelled_at = $2
        WHERE connection_id = $1 AND status <> 'cancelled'""",
        connection_id, at,
    )  # fmt: skip


def _document(overage: Overage | None) -> dict[str, str] | None:
    return None if overage is None else overage_document(overage)


def _overage(document: dict[str, Any] | None) -> Overage | None:
    return None if document is None else parse_overage(document)


def _bundle_ids(count: int) -> list[str]:
    """Fresh ids in their own order: those of one millisecond are random, and bundles are shown by them as they were given."""
    return sorted(new_id("cb") for _ in range(count))


def _terms(row: dict[str, Any]) -> Terms:
    return Terms(
        plan_id=row["plan_id"], name=row["name"], period_amount_nanos=row["period_amount_nanos"],
        included_credit_nanos=row["included_credit_nanos"], billing_interval=row["billing_interval"],
        rollover_type=row["rollover_type"], bundle_rollover_type=row["bundle_rollover_type"],
    )  # fmt: skip


def _bundle(row: dict[str, Any]) -> Bundle:
    return Bundle(
        credit_bundle_id=row["credit_bundle_id"], plan_id=row["plan_id"], name=row["name"], cost_nanos=row["cost_nanos"],
        credit_nanos=row["credit_nanos"], created_at=row["created_at"],
    )  # fmt: skip


def _subscription(row: dict[str, Any]) -> Subscription:
    return Subscription(
        subscription_id=row["subscription_id"], merchant_id=row["merchant_id"], connection_id=row["connection_id"],
        wallet_id=row["wallet_id"], terms=parse_terms(row["terms"]), status=row["status"],
        auto_top_up_bundle_id=row["auto_top_up_bundle_id"], time_zone=row["time_zone"], anchor_at=row["anchor_at"],
        cycle=Period(index=row["cycle_index"], start=row["cycle_start_at"], end=row["cycle_end_at"]), due_at=row["due_at"],
        pending=row["pending"],
        started_at=row["started_at"], cancelled_at=row["cancelled_at"], contact=row["contact"],
    )  # fmt: skip
