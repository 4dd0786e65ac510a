"""Money in and back: an order is written to Postgres first, then applied to Redis, exactly once by its id.

Every method takes `db`, an asyncpg connection inside the caller's transaction: the order is then only written, together with the
caller's own rows, and `apply_order` (after the commit) or workers/credit_applier.py (within a second) applies it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from lava_proxy.domain.calendar import previous_month_cycle_id
from lava_proxy.domain.errors import CallerError, NotFound
from lava_proxy.domain.money import AMOUNT_NANOS_MAX
from lava_proxy.stores.balance_store import BUNDLE_PRIORITY, CYCLE_PRIORITY, BalanceStore, PlanClass, ends_text, lot_key
from lava_proxy.stores.catalog_store import CatalogStore, Credit
from lava_proxy.stores.ids import created_ms, new_id

# Redis remembers an order so long; the applier resends only orders whose ledger entry has not been flushed, which happens in
# seconds, so a week bounds how long Postgres may be away.
_KEEP_MS = 7 * 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Funding:
    """Credits, renews and adjusts wallets. An id is applied once, for ever; the same id for another order raises Conflict."""

    def __init__(
        self, catalog: CatalogStore, store: BalanceStore, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """`clock`: business time: an order's, and the age of a lot whose id does not tell it."""
        self._catalog = catalog
        self._store = store
        self._clock = clock

    async def fund(
        self,
        merchant_id: str,
        wallet_id: str,
        amount_nanos: int,
        reason: str,
        credit_id: str | None = None,
        *,
        expires_at: datetime | None = None,
        db: Any = None,
    ) -> str:
        """Add spendable funds; the credit's id, which names its lot. What is owed is paid first. The same id again adds nothing."""
        _check(amount_nanos, 1, "An amount of funds must be above $0 and at most $9,000,000.")
        credit_id = credit_id or new_id("crd")
        lot = lot_key("funds", credit_id, self._age_ms(credit_id), expires_s=_seconds(expires_at))
        credit = Credit(
            credit_id=credit_id, wallet_id=wallet_id, amount_nanos=amount_nanos, lot_key=lot, reason=reason, expires_at=expires_at
        )
        return await self._order(merchant_id, credit, db)

    async def fund_once(self, merchant_id: str, wallet_id: str, amount_nanos: int, reason: str, credit_id: str) -> None:
        """`fund` for a credit that belongs to setting up: nothing when its ledger entry exists, however long ago."""
        if not await self._catalog.is_credit_applied(credit_id):
            await self.fund(merchant_id, wallet_id, amount_nanos, reason, credit_id)

    async def grant_bundle(
        self,
        merchant_id: str,
        wallet_id: str,
        amount_nanos: int,
        reason: str,
        credit_id: str,
        *,
        expires_at: datetime | None = None,
        db: Any = None,
    ) -> str:
        """Add bundle credit to the plan pot: used after the cycle's and before funds, by linked meters. It pays no debt."""
        _check(amount_nanos, 1, "An amount of bundle credit must be above $0 and at most $9,000,000.")
        lot = lot_key(
            "plan", credit_id, self._age_ms(credit_id), priority=BUNDLE_PRIORITY, expires_s=_seconds(expires_at)
        )  # fmt: skip
        credit = Credit(
            credit_id=credit_id, wallet_id=wallet_id, amount_nanos=amount_nanos, lot_key=lot, reason=reason, expires_at=expires_at
        )
        return await self._order(merchant_id, credit, db)

    async def renew_cycle(
        self,
        merchant_id: str,
        wallet_id: str,
        event_id: str,
        *,
        grant_nanos: int,
        ends: frozenset[PlanClass],
        reason: str,
        expires_at: datetime | None = None,
        drop_cycles: Sequence[str] = (),
        db: Any = None,
    ) -> str:
        """Begin a cycle, as one event: end what remains of the classes `ends`, and add the cycle's credit (which may be nothing).

        Classes not named roll over whole. The event's id must come from what is renewed (subscription and period), so that a
        renewal run twice is one. Debt stays: it is owed in funds.

        `drop_cycles`: cycles that ended so long ago that no call of theirs is open: their tier counters are forgotten.
        """
        _check(grant_nanos, 0, "The credit of a cycle must be from $0 to $9,000,000.")
        lot = ""
        if grant_nanos:
            lot = lot_key("plan", event_id, self._age_ms(event_id), priority=CYCLE_PRIORITY, expires_s=_seconds(expires_at))
        order = Credit(
            credit_id=event_id, wallet_id=wallet_id, amount_nanos=grant_nanos, lot_key=lot, reason=reason, kind="renew",
            ends=ends_text(ends), drop_cycles=",".join(drop_cycles), expires_at=expires_at if grant_nanos else None,
        )  # fmt: skip
        return await self._order(merchant_id, order, db)

    async def adjust(
        self,
        merchant_id: str,
        wallet_id: str,
        adjust_id: str,
        delta_nanos: int,
        reason: str,
        *,
        lot_id: str | None = None,
        db: Any = None,
    ) -> str:
        """Correct a wallet by a signed amount: refunds, clawbacks, corrections.

        Below zero it takes from the lot of the credit `lot_id` first (the refunded payment's), then from funds, then leaves debt:
        it is never refused for want of balance. Above zero it adds a lot like that of `lot_id`, else of funds. Raises NotFound when
        `lot_id` names no lot of this wallet.
        """
        _check(abs(delta_nanos), 1, "An adjustment must not be $0, and is at most $9,000,000 either way.")
        named: str | None = None
        if lot_id is not None:
            credit = await self._catalog.credit(lot_id, db)
            if credit is None or credit.wallet_id != wallet_id or not credit.lot_key:
                raise NotFound(f"No lot {lot_id!r} of this wallet.")
            named = credit.lot_key
        lot = named or ""
        if delta_nanos > 0:
            pot, priority, expires_s = (named or lot_key("funds", adjust_id, 0)).split(":")[:3]
            lot = lot_key(
                "plan" if pot == "p" else "funds",
                adjust_id,
                self._age_ms(adjust_id),
                priority=int(priority),
                expires_s=int(expires_s),
            )
        order = Credit(
            credit_id=adjust_id, wallet_id=wallet_id, amount_nanos=delta_nanos, lot_key=lot, reason=reason, kind="adjust",
            expires_at=credit.expires_at if lot_id is not None and credit is not None and delta_nanos > 0 else None,
        )  # fmt: skip
        return await self._order(merchant_id, order, db)

    async def left_of_lot(self, wallet_id: str, lot_id: str) -> int:
        """What of a credit has not been used and is used by no open call, in nanos. Raises StoreError when Redis cannot say."""
        credit = await self._catalog.credit(lot_id)
        if credit is None or credit.wallet_id != wallet_id or not credit.lot_key:
            return 0
        return await self._store.left_of_lot(wallet_id, credit.lot_key)

    async def apply_order(self, order_id: str) -> bool:
        """Apply a written and committed order now; False when it had been applied. Raises NotFound for an unknown one."""
        found = await self._catalog.order_in_line(order_id)
        if found is None:
            raise NotFound(f"No order {order_id!r}.")
        if found.is_applied:
            return False
        return await self._apply_behind(found.earlier, found.merchant_id, found.credit)

    async def apply(self, merchant_id: str, credit: Credit) -> bool:
        """Apply an order to Redis; False when it had been applied.

        Orders on the plan pot are applied in the order they were written, so that a renewal never ends what came after it.
        """
        is_plan = credit.kind == "renew" or credit.lot_key.startswith("p:")
        earlier = await self._catalog.open_plan_orders_before(credit.credit_id) if is_plan else ()
        return await self._apply_behind(earlier, merchant_id, credit)

    async def _apply_behind(self, earlier: Sequence[Credit], merchant_id: str, credit: Credit) -> bool:
        for before in earlier:
            with suppress(CallerError):  # refused: the applier says so, and those behind it do not wait
                await self._apply(merchant_id, before)
        return await self._apply(merchant_id, credit)

    async def _apply(self, merchant_id: str, credit: Credit) -> bool:
        key: dict[str, str | None] = {"lot_key": credit.lot_key or None}
        row = orjson.dumps({"merchant_id": merchant_id, **key, "reason": credit.reason})
        wallet_id, order_id, lot = credit.wallet_id, credit.credit_id, credit.lot_key or None
        if credit.kind == "renew":
            return await self._store.renew(
                wallet_id, order_id, ends=_classes(credit.ends), lot_key=lot, grant_nanos=credit.amount_nanos, row=row,
                keep_ms=_KEEP_MS, months_before=previous_month_cycle_id(credit.created_at or self._clock()),
                drop_cycles=credit.drop_cycles.split(",") if credit.drop_cycles else (),
            )  # fmt: skip
        if credit.kind == "adjust":
            return await self._store.adjust(wallet_id, order_id, credit.amount_nanos, lot_key=lot, row=row, keep_ms=_KEEP_MS)
        if credit.tier_units:
            return await self._store.undo(
                wallet_id, order_id, credit.amount_nanos, lot_key=credit.lot_key, tier_field=credit.tier_field,
                units=credit.tier_units, row=row, keep_ms=_KEEP_MS,
            )  # fmt: skip
        return await self._store.credit(wallet_id, order_id, credit.amount_nanos, lot_key=credit.lot_key, row=row, keep_ms=_KEEP_MS)

    async def open_wallet(self, wallet_id: str) -> None:
        """Make a wallet spendable; its Postgres row must exist."""
        await self._store.open_wallet(wallet_id)

    async def _order(self, merchant_id: str, credit: Credit, db: Any) -> str:
        written = await self._catalog.add_credit(replace(credit, created_at=self._clock()), db)
        if db is None and not await self._catalog.is_credit_applied(written.credit_id):
            await self.apply(merchant_id, written)
        return written.credit_id

    def _age_ms(self, lot_id: str) -> int:
        """When a lot was made: as its id says, else now."""
        try:
            return created_ms(lot_id)
        except ValueError:
            return (self._clock() - _EPOCH) // timedelta(milliseconds=1)


def _check(amount_nanos: int, least: int, sentence: str) -> None:
    if not least <= amount_nanos <= AMOUNT_NANOS_MAX:
        raise CallerError(sentence, code="amount_out_of_bounds")


def _classes(ends: str) -> frozenset[PlanClass]:
    names: tuple[PlanClass, ...] = ("cycle", "bundle")
    return frozenset(name for name in names if name[0] in ends)


def _seconds(at: datetime | None) -> int:
    """The first whole second at or after a moment; 0 for never."""
    return 0 if at is None else -((_EPOCH - at) // timedelta(seconds=1))
