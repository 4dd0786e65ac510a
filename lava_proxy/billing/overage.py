"""Usage beyond the credit: whose card is charged when, for the whole gap and once; who may go how far below zero.

Each look at a wallet brings everything in line with what is true now: its line (`overage_line`, which gateways obey), the
connection's status, and one open charge where one is due. Looking twice does what looking once does: the charge's key counts the
charges before it, the wallet has one open charge at most, and what is owed is read from Redis after all orders of money have
reached the ledger, so that money which has come in is never asked for again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from lava_proxy.billing.charges import RETRIGGERED, Charges
from lava_proxy.domain.errors import CallerError, LavaError
from lava_proxy.domain.money import format_usd, nanos_of_cents
from lava_proxy.domain.overage import (
    bundle_cents,
    effective_overage,
    is_bundle_due,
    line_of,
    month_start,
    next_month_start,
    overage_cents,
)
from lava_proxy.domain.plans import Overage
from lava_proxy.stores.charge_store import ChargeStore, Purpose
from lava_proxy.stores.outbox import Outbox, WalletState
from lava_proxy.stores.overage_store import Facts, Note, OverageStore

NOTICED = datetime.max.replace(tzinfo=UTC)  # wait until something else notes the wallet
_AT_ONCE = 4
_PURPOSES: dict[str, Purpose] = {"charge": "overage", "auto_top_up": "auto_top_up"}
_log = structlog.get_logger("overage")


class OverageDesk:
    """Looks at noted wallets. Raises StoreError when Redis or Postgres cannot answer; the notes stay then."""

    def __init__(
        self, store: OverageStore, charge_store: ChargeStore, charges: Charges, outbox: Outbox, clock: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._charge_store = charge_store
        self._charges = charges
        self._outbox = outbox
        self._clock = clock

    async def look(self, limit: int) -> int:
        """Look at up to `limit` wallets that are due; how many were."""
        now = self._clock()
        notes = await self._store.take_notes(now, limit)
        if not notes:
            return 0
        facts = await self._store.facts([note.wallet_id for note in notes], self._charges.processor_name or "")
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(note: Note) -> None:
            async with gate:
                await self._look_at(note, facts.get(note.wallet_id))

        results = await asyncio.gather(*(one(note) for note in notes), return_exceptions=True)
        for note, result in zip(notes, results, strict=True):
            if isinstance(result, LavaError):
                # One wallet that cannot be looked at now must not keep the others; its notes stay.
                _log.warning("A wallet waits to be charged", action="overage_waits", wallet_id=note.wallet_id, error=result.message)
            elif isinstance(result, BaseException):
                raise result
        return len(notes)

    async def _look_at(self, note: Note, facts: Facts | None) -> None:
        if facts is None:
            await self._store.drop(note)
            return
        overage = effective_overage(facts.own, facts.of_plan, facts.of_merchant, has_bundle=facts.bundle is not None)
        line = None if facts.status == "deleted" else line_of(overage, facts.limited, has_bundle=facts.bundle is not None)
        is_shown = facts.status != ("ok" if facts.limited and line else "limited")
        if line != facts.line or not is_shown:
            await self._store.set_line(facts, line, self._clock())
        if line is None or facts.status == "disabled":
            await self._store.drop(note)
            return
        await self._store.drop(note, wait_until=await self._charged(note, facts, overage))

    async def _charged(self, note: Note, facts: Facts, overage: Overage) -> datetime | None:
        """Charge what is due; until when to wait with what cannot be charged yet, None when nothing is left to do."""
        now = self._clock()
        following = await self._store.next_charge(facts.wallet_id, _PURPOSES[overage.policy])
        if facts.limited or following.has_open:
            return NOTICED if note.is_low or note.is_cycle_end or note.needed_nanos else None
        spent_cents = await self._charge_store.spoken_for_cents(facts.wallet_id, RETRIGGERED, month_start(now))
        state = (await self._outbox.wallet_states([facts.wallet_id]))[facts.wallet_id]
        if following.has_orders or state is None:
            return now  # money is on its way in: look again when it has arrived
        if facts.held_off_until is not None and facts.held_off_until > now:
            return facts.held_off_until
        spent = nanos_of_cents(spent_cents)
        asked = self._overage_due(note, overage, state, spent) if overage.policy == "charge" else None
        if overage.policy == "auto_top_up":
            if facts.cycle_end_at is not None and facts.cycle_end_at <= now:
                return NOTICED if note.is_low or note.needed_nanos else None  # the next cycle's credit comes first
            asked = self._bundle_due(note, facts, overage, state, spent)
        if asked is None:
            return None
        cents, promised = asked
        if not cents:
            _log.info("The month's cap keeps a card from being charged", action="overage_capped", wallet_id=facts.wallet_id)
            return next_month_start(now)
        return await self._open(facts, overage, following.number, cents, promised)

    def _overage_due(self, note: Note, overage: Overage, state: WalletState, spent: int) -> tuple[int, dict[str, Any]] | None:
        cents = overage_cents(overage, state.debt, spent, is_cycle_end=note.is_cycle_end)
        if cents is None:
            return None
        return cents, {"debt": format_usd(state.debt, 9), "increment": format_usd(overage.increment_nanos, 9)}

    def _bundle_due(
        self, note: Note, facts: Facts, overage: Overage, state: WalletState, spent: int
    ) -> tuple[int, dict[str, Any]] | None:
        bundle = facts.bundle
        assert bundle is not None
        spendable = max(state.plan_available, 0) + max(state.funds_available, 0)
        if not is_bundle_due(
            bundle, is_low=note.is_low, plan_nanos=state.plan_available + state.plan_held,
            funds_nanos=state.funds_available + state.funds_held, spendable_nanos=spendable, needed_nanos=note.needed_nanos,
        ):  # fmt: skip
            return None
        promised = {
            "credit_bundle_id": bundle.credit_bundle_id, "name": bundle.name, "cost": format_usd(bundle.cost_nanos, 9),
            "credit_amount": format_usd(bundle.credit_nanos, 9),
        }  # fmt: skip
        return bundle_cents(overage, bundle, spent), promised

    async def _open(
        self, facts: Facts, overage: Overage, number: int, cents: int, promised: dict[str, Any]
    ) -> datetime | None:  # fmt: skip
        """One charge, taken as far as it goes at once. Canceled ones do not count: the next has the same key."""
        purpose = _PURPOSES[overage.policy]
        occasion = f"{purpose}:{facts.wallet_id}:{number}"
        subject: dict[str, Any] = {"connection_id": facts.connection_id}
        if purpose == "auto_top_up" and facts.bundle is not None:
            subject |= {"credit_bundle_id": facts.bundle.credit_bundle_id, "credit_nanos": facts.bundle.credit_nanos}
        try:
            # The retry of a declined charge asks for the gap of that time; this one is for all of it.
            async with self._charge_store.transaction() as db:
                await self._charge_store.cancel_retries(db, facts.wallet_id, RETRIGGERED)
            charge = await self._charges.open(
                wallet_id=facts.wallet_id, merchant_id=facts.merchant_id, purpose=purpose, amount_cents=cents, key=occasion,
                price_snapshot=promised, subject=subject,
            )  # fmt: skip
        except CallerError as error:
            _log.warning("A card cannot be charged", action="overage_refused", wallet_id=facts.wallet_id, code=error.code)
            return NOTICED
        if charge.occasion == occasion:
            charge = await self._charges.advance(charge.charge_id)
        # Its end notes the wallet, which brings what waits here back.
        return NOTICED if charge.is_open or charge.state == "declined" else None
