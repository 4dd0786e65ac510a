"""People, their cards, and charges in Postgres. A change of a charge's state, its trace and its effects share a transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Literal

import asyncpg

from lava_proxy.domain.errors import Conflict, NotFound, StoreError
from lava_proxy.stores.database import translated
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.postgres import Pool

Purpose = Literal["overage", "auto_top_up", "top_up", "bundle", "subscription_start", "subscription_renewal", "plan_upgrade"]
State = Literal["created", "pi_created", "confirming", "unknown", "requires_action", "succeeded", "declined", "canceled"]

OPEN: frozenset[State] = frozenset({"created", "pi_created", "confirming", "unknown", "requires_action"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who pays. `customer_ref`: their name at the processor, once they have one."""

    person_id: str
    phone: str
    email: str | None
    customer_ref: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentMethod:
    payment_method_id: str
    person_id: str
    processor: str
    processor_ref: str = field(repr=False)
    brand: str
    last4: str
    expiry_month: int
    expiry_year: int
    is_default: bool
    has_error: bool
    error_code: str | None
    error_message: str | None
    error_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """Money asked of a card; `amount_cents` at the processor's currency, `captured_cents` what it really took."""

    charge_id: str
    key: str
    occasion: str
    wallet_id: str
    merchant_id: str
    person_id: str
    purpose: Purpose
    amount_cents: int
    currency: str
    on_session: bool
    price_snapshot: Mapping[str, Any]
    subject: Mapping[str, Any]
    state: State
    processor: str
    processor_ref: str
    payment_method_id: str | None
    attempt: int
    attempt_ref: str
    captured_cents: int
    action_url: str | None
    return_url: str | None
    decline_code: str | None
    decline_reason: str | None
    decline_message: str | None
    tries: int
    next_try_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def is_open(self) -> bool:
        return self.state in OPEN


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldOff:
    """Why a wallet's card is left alone."""

    declines: int
    next_try_at: datetime
    suspended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """Who would pay for a wallet, by which card (None: there is none), and why that card is left alone."""

    person_id: str | None
    payment_method_id: str | None
    hold_off: HoldOff | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MoneyBack:
    """A refund or dispute of a charge; `clawed_cents` is the part of the charge for which the wallet has given back.

    The wallet gave `lot_nanos` of the credit that the charge bought, and `funds_nanos` of its funds or as debt. With `claims_used`
    credit that had been used is owed.
    """

    refund_id: str
    charge_id: str
    kind: Literal["refund", "dispute"]
    processor: str
    processor_ref: str
    amount_cents: int
    clawed_cents: int
    state: Literal["requested", "pending", "done", "failed"]
    adjustments: int  # how often the wallet was adjusted for it: numbers the adjustments' ids
    reason: str
    created_at: datetime
    claims_used: bool = True
    lot_nanos: int = 0
    funds_nanos: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bought:
    """What a paid charge has become: credit of a lot, and (of money that bought nothing else) funds beside it."""

    lot_id: str | None
    is_exchanged: bool  # its credit is what was sold (a bundle, a cycle), not the money itself
    lot_nanos: int = 0
    funds_nanos: int = 0


_CHARGE = ", ".join(Charge.__dataclass_fields__)
_METHOD = ", ".join(PaymentMethod.__dataclass_fields__)
_MONEY_BACK = ", ".join(MoneyBack.__dataclass_fields__)
_OPEN_SQL = "('created', 'pi_created', 'confirming', 'unknown', 'requires_action')"


class ChargeStore:
    """Reads and writes. Raises StoreError when Postgres cannot answer. Methods with `db` run in the caller's transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A connection in a transaction; what Postgres cannot do now is a StoreError, a broken rule stays asyncpg's own."""
        try:
            async with self._pool.acquire(timeout=10) as db, db.transaction():
                yield db
        except asyncpg.IntegrityConstraintViolationError:
            raise
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreError(f"Postgres cannot answer: {type(error).__name__}", code="database_unavailable") from error

    async def _rows(self, query: str, *args: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in await translated(lambda: self._pool.fetch(query, *args))]

    async def _row(self, query: str, *args: Any) -> dict[str, Any] | None:
        return next(iter(await self._rows(query, *args)), None)

    # -- people

    async def person_of_phone(self, phone: str, now: datetime, *, email: str | None = None) -> str:
        """The person with this phone (E.164), made when there is none."""
        async with self.transaction() as db:
            await db.execute(
                "INSERT INTO person VALUES ($1, $2, $3, $4) ON CONFLICT (phone) WHERE phone <> ''"
                " DO UPDATE SET email = coalesce(EXCLUDED.email, person.email)",
                new_id("per"), phone, email, now,
            )  # fmt: skip
            return str(await db.fetchval("SELECT person_id FROM person WHERE phone = $1", phone))

    async def link_wallet(self, wallet_id: str, person_id: str) -> None:
        """Make a person the payer of a wallet, instead of whoever was."""
        async with self.transaction() as db:
            await db.execute(
                "INSERT INTO wallet_person VALUES ($1, $2) ON CONFLICT (wallet_id) DO UPDATE SET person_id = EXCLUDED.person_id",
                wallet_id,
                person_id,
            )

    async def claim_wallet(self, db: Any, wallet_id: str, person_id: str) -> bool:
        """Make a person the payer of a wallet that nobody with a phone pays for yet; False when somebody else does."""
        await db.execute("SELECT 1 FROM wallet WHERE wallet_id = $1 FOR NO KEY UPDATE", wallet_id)  # one after the other
        payer = await db.fetchval(
            "SELECT person_id FROM wallet_person JOIN person USING (person_id) WHERE wallet_id = $1 AND phone <> ''", wallet_id
        )
        if payer is None:
            await db.execute(
                "INSERT INTO wallet_person VALUES ($1, $2) ON CONFLICT (wallet_id) DO UPDATE SET person_id = EXCLUDED.person_id",
                wallet_id,
                person_id,
            )
        return payer in (None, person_id)

    async def wallet_person(self, wallet_id: str) -> str | None:
        """Who pays for a wallet."""
        row = await self._row("SELECT person_id FROM wallet_person WHERE wallet_id = $1", wallet_id)
        return None if row is None else str(row["person_id"])

    async def wallet_person_made(self, wallet_id: str, now: datetime) -> str:
        """Who pays for a wallet; a person without a phone is made for one that nobody pays for (a merchant's own)."""
        async with self.transaction() as db:
            await db.execute("SELECT 1 FROM wallet WHERE wallet_id = $1 FOR UPDATE", wallet_id)
            found = await db.fetchval("SELECT person_id FROM wallet_person WHERE wallet_id = $1", wallet_id)
            if found is None:
                found = new_id("per")
                await db.execute("INSERT INTO person VALUES ($1, '', NULL, $2)", found, now)
                await db.execute("INSERT INTO wallet_person VALUES ($1, $2)", wallet_id, found)
            return str(found)

    async def person(self, person_id: str, processor: str) -> Person:
        row = await self._row(
            "SELECT p.person_id, p.phone, p.email, c.customer_ref FROM person p"
            " LEFT JOIN processor_customer c ON c.person_id = p.person_id AND c.processor = $2 WHERE p.person_id = $1",
            person_id,
            processor,
        )
        if row is None:
            raise NotFound(f"No person {person_id!r}.")
        return Person(**row)

    async def set_customer_ref(self, person_id: str, processor: str, customer_ref: str) -> str:
        """Remember a person's name at the processor; the one that was remembered first."""
        async with self.transaction() as db:
            await db.execute(
                "INSERT INTO processor_customer VALUES ($1, $2, $3) ON CONFLICT (person_id, processor) DO NOTHING",
                person_id, processor, customer_ref,
            )  # fmt: skip
            query = "SELECT customer_ref FROM processor_customer WHERE person_id = $1 AND processor = $2"
            return str(await db.fetchval(query, person_id, processor))

    async def person_of_customer(self, processor: str, customer_ref: str) -> str | None:
        row = await self._row(
            "SELECT person_id FROM processor_customer WHERE processor = $1 AND customer_ref = $2", processor, customer_ref
        )
        return None if row is None else str(row["person_id"])

    async def payer(self, wallet_id: str, processor: str, payment_method_id: str | None = None) -> Payer:
        """Whom to charge for a wallet: the default card, or the one that is named if it is the payer's."""
        row = await self._row(
            """SELECT w.person_id, m.payment_method_id, h.declines, h.next_try_at, h.suspended
            FROM (SELECT $1::text AS wallet_id) asked LEFT JOIN wallet_person w USING (wallet_id)
            LEFT JOIN charge_hold_off h USING (wallet_id)
            LEFT JOIN payment_method m ON m.person_id = w.person_id AND m.processor = $2 AND m.detached_at IS NULL
              AND ($3::text IS NULL OR m.payment_method_id = $3)
            ORDER BY m.is_default DESC, m.payment_method_id DESC LIMIT 1""",
            wallet_id, processor, payment_method_id,
        )  # fmt: skip
        assert row is not None
        hold_off = None
        if row["declines"] is not None:
            hold_off = HoldOff(declines=row["declines"], next_try_at=row["next_try_at"], suspended=row["suspended"])
        return Payer(person_id=row["person_id"], payment_method_id=row["payment_method_id"], hold_off=hold_off)

    async def refs_at_processor(self, charge: Charge) -> tuple[str | None, str]:
        """What the processor calls a charge's payer (None: nothing yet) and its card, also one that was removed since."""
        row = await self._row(
            """SELECT customer_ref, m.processor_ref FROM payment_method m
            LEFT JOIN processor_customer c ON c.person_id = $2 AND c.processor = $3 WHERE m.payment_method_id = $1""",
            charge.payment_method_id, charge.person_id, charge.processor,
        )  # fmt: skip
        assert row is not None, "a charge names a card"
        return row["customer_ref"], row["processor_ref"]

    # -- cards

    async def payment_methods(self, person_id: str, processor: str) -> list[PaymentMethod]:
        """A person's cards, the default first."""
        rows = await self._rows(
            f"SELECT {_METHOD} FROM payment_method WHERE person_id = $1 AND processor = $2 AND detached_at IS NULL"
            " ORDER BY is_default DESC, payment_method_id DESC",
            person_id,
            processor,
        )
        return [PaymentMethod(**row) for row in rows]

    async def payment_method(self, payment_method_id: str, *, also_detached: bool = False) -> PaymentMethod | None:
        row = await self._row(
            f"SELECT {_METHOD} FROM payment_method WHERE payment_method_id = $1 AND ($2 OR detached_at IS NULL)",
            payment_method_id,
            also_detached,
        )
        return None if row is None else PaymentMethod(**row)

    async def payment_method_by_ref(self, processor: str, processor_ref: str) -> PaymentMethod | None:
        row = await self._row(
            f"SELECT {_METHOD} FROM payment_method WHERE processor = $1 AND processor_ref = $2 AND detached_at IS NULL",
            processor,
            processor_ref,
        )
        return None if row is None else PaymentMethod(**row)

    async def save_payment_method(
        self, person_id: str, processor: str, card: Mapping[str, Any], now: datetime, *, make_default: bool
    ) -> PaymentMethod:
        """Store a card, or what has become of it; a person's first is their default. `card`: the facts of a CardMethod."""
        async with self.transaction() as db:
            # One lock per person, taken first by whoever touches the default: no order to get wrong, no deadlock.
            await db.execute("SELECT 1 FROM person WHERE person_id = $1 FOR UPDATE", person_id)
            await db.execute(
                """INSERT INTO payment_method (payment_method_id, person_id, processor, processor_ref, brand, last4, expiry_month,
                expiry_year, is_default, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, false, $9)
                ON CONFLICT (processor, processor_ref) DO UPDATE SET brand = EXCLUDED.brand, last4 = EXCLUDED.last4,
                expiry_month = EXCLUDED.expiry_month, expiry_year = EXCLUDED.expiry_year, detached_at = NULL""",
                new_id("pm"), person_id, processor, card["processor_ref"], card["brand"], card["last4"], card["expiry_month"],
                card["expiry_year"], now,
            )  # fmt: skip
            row = await db.fetchrow(
                f"SELECT {_METHOD} FROM payment_method WHERE processor = $1 AND processor_ref = $2",
                processor,
                card["processor_ref"],
            )
            if row["person_id"] != person_id:
                raise Conflict("This card belongs to another person.", code="card_not_usable")
            await self._choose_default(db, person_id, processor, row["payment_method_id"] if make_default else None)
            row = await db.fetchrow(f"SELECT {_METHOD} FROM payment_method WHERE payment_method_id = $1", row["payment_method_id"])
        return PaymentMethod(**row)

    async def set_default(self, person_id: str, processor: str, payment_method_id: str) -> None:
        async with self.transaction() as db:
            await db.execute("SELECT 1 FROM person WHERE person_id = $1 FOR UPDATE", person_id)
            await self._choose_default(db, person_id, processor, payment_method_id)

    async def detach(self, payment_method_id: str, now: datetime) -> None:
        """Forget a card; if it was the default, the newest other one is."""
        async with self.transaction() as db:
            row = await db.fetchrow(
                "SELECT person_id, processor FROM payment_method WHERE payment_method_id = $1 AND detached_at IS NULL",
                payment_method_id,
            )
            if row is None:
                return
            await db.execute("SELECT 1 FROM person WHERE person_id = $1 FOR UPDATE", row["person_id"])
            await db.execute(
                "UPDATE payment_method SET detached_at = $2, is_default = false WHERE payment_method_id = $1",
                payment_method_id,
                now,
            )
            await self._choose_default(db, row["person_id"], row["processor"], None)

    async def _choose_default(self, db: Any, person_id: str, processor: str, payment_method_id: str | None) -> None:
        """Make this card the default; None: keep the one there is, else the newest. Under the person's lock."""
        if payment_method_id is None:
            if await db.fetchval(
                "SELECT 1 FROM payment_method WHERE person_id = $1 AND processor = $2 AND is_default AND detached_at IS NULL",
                person_id,
                processor,
            ):
                return
            payment_method_id = await db.fetchval(
                "SELECT payment_method_id FROM payment_method WHERE person_id = $1 AND processor = $2 AND detached_at IS NULL"
                " ORDER BY payment_method_id DESC LIMIT 1",
                person_id,
                processor,
            )
        await db.execute(
            "UPDATE payment_method SET is_default = false WHERE person_id = $1 AND processor = $2 AND is_default",
            person_id,
            processor,
        )
        await db.execute(
            "UPDATE payment_method SET is_default = true WHERE payment_method_id = $1 AND person_id = $2 AND detached_at IS NULL",
            payment_method_id,
            person_id,
        )

    async def mark_card(self, db: Any, payment_method_id: str, code: str, message: str, now: datetime) -> None:
        """Why the last charge did not get its money from a card."""
        await db.execute(
            "UPDATE payment_method SET has_error = true, error_code = $2, error_message = $3, error_at = $4"
            " WHERE payment_method_id = $1",
            payment_method_id, code, message, now,
        )  # fmt: skip

    # -- charges

    async def insert(self, charge: Charge) -> Charge | None:
        """Store a new charge; None when the wallet has an open one or the key was used. The indexes decide, also in a storm."""
        marks = ", ".join(f"${number}" for number in range(1, len(Charge.__dataclass_fields__) + 1))
        values = [getattr(charge, name) for name in Charge.__dataclass_fields__]
        query = f"""WITH made AS (INSERT INTO charge ({_CHARGE}) VALUES ({marks}) RETURNING charge_id, state, created_at)
            INSERT INTO charge_transition SELECT charge_id, 1, '', state, created_at FROM made"""
        try:
            await translated(lambda: self._pool.execute(query, *values))
        except asyncpg.UniqueViolationError:
            return None
        except asyncpg.ForeignKeyViolationError as error:
            raise NotFound("No such wallet, person or card.") from error
        return charge

    async def charge(self, charge_id: str) -> Charge:
        row = await self._row(f"SELECT {_CHARGE} FROM charge WHERE charge_id = $1", charge_id)
        if row is None:
            raise NotFound(f"No charge {charge_id!r}.")
        return Charge(**row)

    async def locked(self, db: Any, charge_id: str) -> Charge:
        """A charge that nobody else changes until the transaction ends."""
        row = await db.fetchrow(f"SELECT {_CHARGE} FROM charge WHERE charge_id = $1 FOR UPDATE", charge_id)
        if row is None:
            raise NotFound(f"No charge {charge_id!r}.")
        return Charge(**row)

    async def charge_of_occasion(self, occasion: str) -> Charge | None:
        """The newest charge of an occasion: the only one, unless canceled ones came before it."""
        row = await self._row(f"SELECT {_CHARGE} FROM charge WHERE occasion = $1 ORDER BY charge_id DESC LIMIT 1", occasion)
        return None if row is None else Charge(**row)

    async def charge_of_payment(self, processor: str, processor_ref: str) -> Charge | None:
        row = await self._row(f"SELECT {_CHARGE} FROM charge WHERE processor = $1 AND processor_ref = $2", processor, processor_ref)
        return None if row is None else Charge(**row)

    async def in_the_way(self, wallet_id: str, occasion: str | None) -> tuple[Charge | None, Charge | None]:
        """What a new charge would meet: the newest charge of its occasion, and the wallet's open one."""
        rows = await self._rows(
            f"""(SELECT 0 AS found, {_CHARGE} FROM charge WHERE occasion = $2 ORDER BY charge_id DESC LIMIT 1)
            UNION ALL SELECT 1, {_CHARGE} FROM charge WHERE wallet_id = $1 AND state IN {_OPEN_SQL}""",
            wallet_id, occasion,
        )  # fmt: skip
        found = {row.pop("found"): Charge(**row) for row in rows}
        return found.get(0), found.get(1)

    async def charges(self, wallet_id: str, *, before: str | None = None, limit: int = 50) -> list[Charge]:
        """A wallet's charges, newest first."""
        rows = await self._rows(
            f"SELECT {_CHARGE} FROM charge WHERE wallet_id = $1 AND ($2::text IS NULL OR charge_id < $2)"
            " ORDER BY charge_id DESC LIMIT $3",
            wallet_id, before, limit,
        )  # fmt: skip
        return [Charge(**row) for row in rows]

    async def due(self, processor: str, now: datetime, limit: int) -> list[str]:
        """Charges at a processor that the worker should look at."""
        rows = await self._rows(
            "SELECT charge_id FROM charge WHERE next_try_at <= $2 AND processor = $1 ORDER BY next_try_at LIMIT $3",
            processor,
            now,
            limit,
        )
        return [row["charge_id"] for row in rows]

    async def spoken_for_cents(self, wallet_id: str, purposes: Iterable[Purpose], since: datetime) -> int:
        """What these purposes have taken or may still take since a moment: open and unknown charges count too."""
        row = await self._row(
            f"""SELECT coalesce(sum(CASE WHEN state = 'succeeded' THEN captured_cents ELSE amount_cents END), 0)::bigint AS cents
            FROM charge WHERE wallet_id = $1 AND purpose = ANY($2) AND created_at >= $3
            AND (state = 'succeeded' OR state IN {_OPEN_SQL})""",
            wallet_id, list(purposes), since,
        )  # fmt: skip
        assert row is not None
        return int(row["cents"])

    async def change(self, db: Any, charge: Charge, now: datetime, **changes: Any) -> Charge | None:
        """Write changes of a charge, which locks it; None when it has another state or attempt by now than `charge` has.

        A change of state leaves a trace.
        """
        changes["updated_at"] = now
        marks = ", ".join(f"{name} = ${number}" for number, name in enumerate(changes, 4))
        trace = ""
        if changes.get("state", charge.state) != charge.state:
            trace = """, trace AS (INSERT INTO charge_transition SELECT charge_id,
              (SELECT count(*) + 1 FROM charge_transition t WHERE t.charge_id = $1), $2, state, updated_at FROM changed)"""
        row = await db.fetchrow(
            f"""WITH changed AS (UPDATE charge SET {marks} WHERE charge_id = $1 AND state = $2 AND attempt = $3
              RETURNING {_CHARGE}){trace} SELECT {_CHARGE} FROM changed""",
            charge.charge_id, charge.state, charge.attempt, *changes.values(),
        )  # fmt: skip
        return None if row is None else Charge(**row)

    async def note_paid(self, db: Any, charge: Charge, dropped: Iterable[Purpose]) -> None:
        """A charge was paid: its card works, its wallet is not held off, declined charges of these purposes are not tried again."""
        await db.execute(
            """WITH card AS (UPDATE payment_method SET has_error = false, error_code = NULL, error_message = NULL, error_at = NULL
              WHERE payment_method_id = $1 AND has_error),
            hold_off AS (DELETE FROM charge_hold_off WHERE wallet_id = $2)
            UPDATE charge SET next_try_at = NULL WHERE wallet_id = $2 AND state = 'declined' AND purpose = ANY($3)""",
            charge.payment_method_id, charge.wallet_id, list(dropped),
        )  # fmt: skip

    async def cancel_retries(self, db: Any, wallet_id: str, purposes: Iterable[Purpose]) -> None:
        """Declined charges of these purposes are not tried again."""
        await db.execute(
            "UPDATE charge SET next_try_at = NULL WHERE wallet_id = $1 AND state = 'declined' AND purpose = ANY($2)",
            wallet_id,
            list(purposes),
        )

    # -- leaving a card alone

    async def hold_off(self, wallet_id: str) -> HoldOff | None:
        row = await self._row("SELECT declines, next_try_at, suspended FROM charge_hold_off WHERE wallet_id = $1", wallet_id)
        return None if row is None else HoldOff(**row)

    async def count_decline(self, db: Any, wallet_id: str, now: datetime, waits: tuple[timedelta, ...]) -> HoldOff:
        """One decline more: wait as long as its number says, after the last of `waits` be suspended."""
        known = await db.fetchval("SELECT declines FROM charge_hold_off WHERE wallet_id = $1 FOR UPDATE", wallet_id) or 0
        suspended = known >= len(waits)
        found = HoldOff(declines=known + 1, next_try_at=now + waits[min(known, len(waits) - 1)], suspended=suspended)
        await db.execute(
            """INSERT INTO charge_hold_off VALUES ($1, $2, $3, $4) ON CONFLICT (wallet_id)
            DO UPDATE SET declines = EXCLUDED.declines, next_try_at = EXCLUDED.next_try_at, suspended = EXCLUDED.suspended""",
            wallet_id, found.declines, found.next_try_at, found.suspended,
        )  # fmt: skip
        return found

    async def retry_after_card_change(self, person_id: str, dropped: Iterable[Purpose], now: datetime) -> None:
        """A new card: nothing is held off any more; declined charges are due, apart from those whose trigger will ask again."""
        async with self.transaction() as db:
            wallets = "wallet_id IN (SELECT wallet_id FROM wallet_person WHERE person_id = $1)"
            held = await db.fetch(f"DELETE FROM charge_hold_off WHERE {wallets} RETURNING wallet_id", person_id)
            await db.execute(
                """UPDATE charge c SET next_try_at = CASE WHEN purpose = ANY($2) THEN NULL ELSE $3::timestamptz END
                WHERE wallet_id = ANY($1) AND state = 'declined' AND NOT on_session
                AND charge_id = (SELECT max(charge_id) FROM charge WHERE wallet_id = c.wallet_id AND purpose = c.purpose)""",
                [row["wallet_id"] for row in held], list(dropped), now,
            )  # fmt: skip

    # -- notices, and money back

    async def customer_of(self, db: Any, wallet_id: str) -> str | None:
        """The connection that a wallet belongs to; None for a merchant's own."""
        found = await db.fetchval("SELECT connection_id FROM connection WHERE wallet_id = $1", wallet_id)
        return None if found is None else str(found)

    async def event_known(self, processor: str, event_id: str) -> bool:
        query = "SELECT 1 AS known FROM processor_event WHERE processor = $1 AND event_id = $2"
        return await self._row(query, processor, event_id) is not None

    async def add_event(self, db: Any, processor: str, event_id: str, kind: str, object_ref: str, now: datetime) -> bool:
        """Note that a notice has its effect; False when it had it before."""
        done = await db.execute(
            "INSERT INTO processor_event VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            processor, event_id, kind, object_ref, now,
        )  # fmt: skip
        return str(done).endswith(" 1")

    async def refunds(self, charge_id: str) -> list[MoneyBack]:
        rows = await self._rows(f"SELECT {_MONEY_BACK} FROM refund WHERE charge_id = $1 ORDER BY created_at, refund_id", charge_id)
        return [MoneyBack(**row) for row in rows]

    async def refunds_locked(self, db: Any, charge_id: str) -> list[MoneyBack]:
        """Under the charge's lock."""
        rows = await db.fetch(f"SELECT {_MONEY_BACK} FROM refund WHERE charge_id = $1 ORDER BY created_at, refund_id", charge_id)
        return [MoneyBack(**row) for row in rows]

    async def cycles_of(self, charge: Charge) -> list[tuple[str, datetime]]:
        """(subscription id, start) of the cycles that a charge has paid for."""
        rows = await self._rows(
            """SELECT p.subscription_id, p.start_at FROM connection c JOIN subscription s USING (connection_id)
              JOIN subscription_period p USING (subscription_id) WHERE c.wallet_id = $1 AND p.charge_id = $2""",
            charge.wallet_id, charge.charge_id,
        )  # fmt: skip
        return [(row["subscription_id"], row["start_at"]) for row in rows]

    async def save_refund(self, db: Any, back: MoneyBack, now: datetime) -> None:
        """Write a refund or dispute, or what has become of it. Raises Conflict where another charge's has its id."""
        done = await db.execute(
            f"""INSERT INTO refund ({_MONEY_BACK}, updated_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
            ON CONFLICT (refund_id) DO UPDATE SET processor_ref = EXCLUDED.processor_ref, clawed_cents = EXCLUDED.clawed_cents,
            state = EXCLUDED.state, amount_cents = EXCLUDED.amount_cents, adjustments = EXCLUDED.adjustments,
            lot_nanos = EXCLUDED.lot_nanos, funds_nanos = EXCLUDED.funds_nanos,
            updated_at = EXCLUDED.updated_at WHERE refund.charge_id = EXCLUDED.charge_id""",
            *(getattr(back, name) for name in MoneyBack.__dataclass_fields__),
            now,
        )
        if not str(done).endswith(" 1"):
            raise Conflict("This id was used for the refund of another payment; nothing was refunded.")

    async def unfinished_refunds(self, processor: str, before: datetime, limit: int) -> list[str]:
        """Charges with a refund that was asked for and not answered, or is not final, untouched since `before`."""
        rows = await self._rows(
            "SELECT charge_id FROM refund WHERE processor = $1 AND state IN ('requested', 'pending') AND updated_at < $2"
            " GROUP BY charge_id ORDER BY min(updated_at) LIMIT $3",
            processor,
            before,
            limit,
        )
        return [row["charge_id"] for row in rows]

    # -- the daily report

    async def charges_of_payments(self, processor: str, refs: list[str]) -> dict[str, Charge]:
        rows = await self._rows(f"SELECT {_CHARGE} FROM charge WHERE processor = $1 AND processor_ref = ANY($2)", processor, refs)
        return {row["processor_ref"]: Charge(**row) for row in rows}

    async def succeeded_on(self, processor: str, day: date) -> list[Charge]:
        """Charges created on a UTC day that succeeded."""
        rows = await self._rows(
            f"SELECT {_CHARGE} FROM charge WHERE processor = $1 AND state = 'succeeded'"
            " AND (created_at AT TIME ZONE 'UTC')::date = $2 ORDER BY charge_id",
            processor,
            day,
        )
        return [Charge(**row) for row in rows]

    async def credited_nanos(self, credit_ids: list[str]) -> dict[str, int]:
        """What was ordered under these credit ids."""
        rows = await self._rows("SELECT credit_id, amount_nanos FROM credit WHERE credit_id = ANY($1)", credit_ids)
        return {row["credit_id"]: row["amount_nanos"] for row in rows}
