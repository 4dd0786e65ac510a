"""Checkout sessions and merchants' branding in Postgres. What may happen is decided in `billing/checkout.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lava_proxy.domain.branding import Branding
from lava_proxy.domain.checkout import VALID_FOR, CheckoutSession, SessionKind
from lava_proxy.stores.database import Database
from lava_proxy.stores.ids import hash_of, new_id, new_secret
from lava_proxy.stores.postgres import Pool
from lava_proxy.stores.vault import Vault

_COLUMNS = (
    "checkout_session_id, merchant_id, mode, state, origin_url, secret_sealed, connection_id, reference_id, plan_id,"
    " credit_bundle_id, offer, person_id, visit_hash, amount_cents, attempt, charge_id, created_at, expires_at, completed_at"
)
_LIVE = "state IN ('open', 'verified')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """Whose session has been completed, and for which customer."""

    merchant_id: str
    connection_id: str


class CheckoutStore(Database):
    """Reads and writes. Raises StoreError when Postgres cannot answer. Methods with `db` run in the caller's transaction."""

    def __init__(self, pool: Pool, vault: Vault, clock: Callable[[], datetime]) -> None:
        super().__init__(pool)
        self._vault = vault
        self._clock = clock

    # -- sessions

    async def create(
        self,
        merchant_id: str,
        kind: SessionKind,
        *,
        origin_url: str,
        is_test: bool,
        offer: dict[str, Any],
        connection_id: str | None = None,
        reference_id: str | None = None,
        plan_id: str | None = None,
        credit_bundle_id: str | None = None,
        db: Any = None,
    ) -> CheckoutSession:
        """A new session, open for a day."""
        now = self._clock()
        session_id = new_id("cs_test" if is_test else "cs")
        secret = new_secret("css_test_" if is_test else "css_live_")
        session = CheckoutSession(
            checkout_session_id=session_id, merchant_id=merchant_id, kind=kind, state="open", origin_url=origin_url, secret=secret,
            connection_id=connection_id, reference_id=reference_id, plan_id=plan_id, credit_bundle_id=credit_bundle_id, offer=offer,
            person_id=None, visit_hash=None, amount_cents=None, attempt=1, charge_id=None, created_at=now,
            expires_at=now + VALID_FOR, completed_at=None,
        )  # fmt: skip
        await self._execute(
            """INSERT INTO checkout_session (checkout_session_id, merchant_id, mode, origin_url, secret_hash, secret_sealed,
            connection_id, reference_id, plan_id, credit_bundle_id, offer, created_at, expires_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)""",
            session_id, merchant_id, kind, origin_url, hash_of(secret), self._vault.seal(secret, _context(session_id)),
            connection_id, reference_id, plan_id, credit_bundle_id, offer, now, session.expires_at, db=db,
        )  # fmt: skip
        return session

    async def by_secret(self, secret: str) -> CheckoutSession | None:
        row = await self._row(f"SELECT {_COLUMNS} FROM checkout_session WHERE secret_hash = $1", hash_of(secret))
        return None if row is None else self._session(row)

    async def session(self, merchant_id: str, session_id: str) -> CheckoutSession | None:
        """A merchant's checkout; customer pages are not among them."""
        row = await self._row(
            f"SELECT {_COLUMNS} FROM checkout_session WHERE merchant_id = $1 AND checkout_session_id = $2 AND mode <> 'portal'",
            merchant_id,
            session_id,
        )
        return None if row is None else self._session(row)

    async def sessions(
        self, merchant_id: str, *, reference_id: str | None, before: str | None, limit: int
    ) -> list[CheckoutSession]:
        """Checkouts, newest first, from below the id `before`."""
        rows = await self._rows(
            f"""SELECT {_COLUMNS} FROM checkout_session WHERE merchant_id = $1 AND mode <> 'portal'
            AND ($2::text IS NULL OR reference_id = $2)
            AND ($3::text IS NULL OR right(checkout_session_id, 26) < right($3, 26))
            ORDER BY right(checkout_session_id, 26) DESC LIMIT $4""",
            merchant_id, reference_id, before, limit,
        )  # fmt: skip
        return [self._session(row) for row in rows]

    async def verify(self, session_id: str, person_id: str, visit_hash: bytes, *, db: Any = None) -> bool:
        """Bind a session to who proved their phone and to the visit that did; False when it is closed.

        Another visit of the same person takes it over; another person never does while a payment may be under way.
        """
        return bool(
            await self._changed(
                """UPDATE checkout_session SET person_id = $2, visit_hash = $3,
                state = CASE WHEN state = 'open' THEN 'verified' ELSE state END
                WHERE checkout_session_id = $1 AND state IN ('open', 'verified', 'paying')
                AND (state <> 'paying' OR person_id = $2)""",
                session_id, person_id, visit_hash, db=db,
            )
        )  # fmt: skip

    async def choose_amount(self, session_id: str, amount_cents: int | None) -> bool:
        """What the customer wants to pay (None: not chosen yet); False when it is too late to say."""
        done = await self._changed(
            f"UPDATE checkout_session SET amount_cents = $2 WHERE checkout_session_id = $1 AND {_LIVE}", session_id, amount_cents
        )
        return bool(done)

    async def set_connection(self, session_id: str, connection_id: str) -> str:
        """Remember the customer of a session; the one who was remembered first."""
        row = await self._row(
            "UPDATE checkout_session SET connection_id = coalesce(connection_id, $2) WHERE checkout_session_id = $1"
            " RETURNING connection_id",
            session_id,
            connection_id,
        )
        assert row is not None
        return str(row["connection_id"])

    async def cancel(self, session_id: str) -> bool:
        """Close a session whose customer does not want it; False when it is paid, being paid or closed."""
        done = await self._changed(
            f"UPDATE checkout_session SET state = 'cancelled' WHERE checkout_session_id = $1 AND {_LIVE}", session_id
        )
        return bool(done)

    async def complete(self, db: Any, session_id: str, charge_id: str | None) -> Completed | None:
        """Paid (None: nothing was to be paid); None when that was noted before. A customer's page goes on instead of ending."""
        row = await self._row(
            """UPDATE checkout_session SET charge_id = $2, attempt = attempt + 1,
              state = CASE WHEN mode = 'portal' THEN 'verified' ELSE 'completed' END,
              completed_at = CASE WHEN mode <> 'portal' THEN $3::timestamptz END,
              amount_cents = CASE WHEN mode <> 'portal' THEN amount_cents END
            WHERE checkout_session_id = $1 AND completed_at IS NULL AND ($2::text IS NULL OR charge_id IS DISTINCT FROM $2)
            RETURNING merchant_id, connection_id""",
            session_id, charge_id, self._clock(), db=db,
        )  # fmt: skip
        return None if row is None else Completed(**row)

    async def pay(self, db: Any, session_id: str, attempt: int) -> None:
        """A payment of this number is under way."""
        await self._execute(
            "UPDATE checkout_session SET state = 'paying' WHERE checkout_session_id = $1 AND attempt = $2"
            " AND state IN ('open', 'verified', 'cancelled')",
            session_id, attempt, db=db,
        )  # fmt: skip

    async def unpay(self, db: Any, session_id: str, attempt: int) -> None:
        """The payment of this number will not come: another may be made."""
        await self._execute(
            "UPDATE checkout_session SET state = 'verified', attempt = attempt + 1 WHERE checkout_session_id = $1 AND attempt = $2"
            " AND state IN ('verified', 'paying')",
            session_id, attempt, db=db,
        )  # fmt: skip

    def _session(self, row: dict[str, Any]) -> CheckoutSession:
        sealed, kind = row.pop("secret_sealed"), row.pop("mode")
        return CheckoutSession(**row, kind=kind, secret=self._vault.open(sealed, _context(row["checkout_session_id"])))

    # -- people and their customers

    async def connection_of_person(self, merchant_id: str, person_id: str, reference_id: str | None) -> str | None:
        """The customer that a person is at a merchant: the newest, and where a reference id is given the one who has it."""
        row = await self._row(
            """SELECT c.connection_id FROM connection c JOIN wallet_person w USING (wallet_id)
            WHERE c.merchant_id = $1 AND w.person_id = $2 AND c.status <> 'deleted' AND ($3::text IS NULL OR c.reference_id = $3)
            ORDER BY c.connection_id DESC LIMIT 1""",
            merchant_id, person_id, reference_id,
        )  # fmt: skip
        return None if row is None else str(row["connection_id"])

    async def phone_of_wallet(self, wallet_id: str) -> str | None:
        """The phone of who pays for a wallet; None without one."""
        row = await self._row(
            "SELECT p.phone FROM wallet_person w JOIN person p USING (person_id) WHERE w.wallet_id = $1 AND p.phone <> ''",
            wallet_id,
        )
        return None if row is None else str(row["phone"])

    # -- branding

    async def branding(self, merchant_id: str) -> Branding:
        """How a merchant's pages look; with nothing set, its name alone."""
        row = await self._row(
            """SELECT coalesce(b.name, m.name) AS name, b.logo, b.colour, b.support_email FROM merchant m
            LEFT JOIN merchant_branding b USING (merchant_id) WHERE m.merchant_id = $1""",
            merchant_id,
        )
        assert row is not None, "a session's merchant exists"
        short = row["name"] if row["name"].isprintable() and row["name"].strip() else "Checkout"
        return Branding(**(row | {"name": short[:60]}))

    async def set_branding(self, merchant_id: str, branding: Branding, *, db: Any = None) -> None:
        """Replace how a merchant's pages look."""
        await self._execute(
            """INSERT INTO merchant_branding VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (merchant_id) DO UPDATE SET
            name = EXCLUDED.name, logo = EXCLUDED.logo, colour = EXCLUDED.colour, support_email = EXCLUDED.support_email,
            updated_at = EXCLUDED.updated_at""",
            merchant_id, branding.name, branding.logo, branding.colour, branding.support_email, self._clock(), db=db,
        )  # fmt: skip


def _context(session_id: str) -> str:
    return f"checkout_session:{session_id}"
