"""What a merchant does to an account by hand: adjusting it, and adding funds by a stored card."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from lava_proxy.billing.charges import Charges
from lava_proxy.billing.funding import Funding
from lava_proxy.domain.errors import CallerError, Conflict, StoreError
from lava_proxy.domain.money import NANOS_PER_USD, cents_of_nanos
from lava_proxy.stores.account_store import AccountStore
from lava_proxy.stores.charge_store import Charge
from lava_proxy.stores.ids import new_id

FUND_NANOS_MIN, FUND_NANOS_MAX = 10 * NANOS_PER_USD, 10_000 * NANOS_PER_USD


class Accounts:
    """Both are done once by their `key`. Raises CallerError for callers, StoreError when Postgres cannot answer."""

    def __init__(self, store: AccountStore, funding: Funding, charges: Charges, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._funding = funding
        self._charges = charges
        self.clock = clock  # business time

    async def adjust(
        self,
        merchant_id: str,
        wallet_id: str,
        amount_nanos: int,
        reason: str,
        *,
        made_by: str,
        adjust_id: str | None = None,
        note: Callable[[Any, str], Awaitable[None]] | None = None,
    ) -> str:
        """Add to or take from a wallet's funds, and keep who did it and why; the adjustment's id.

        Below zero it may leave debt. The same `adjust_id` again changes nothing; for another amount it raises Conflict.
        `note(db, adjust_id)` runs in the transaction that orders it, the first time.
        """
        adjust_id = adjust_id or new_id("adj")
        async with self._store.transaction() as db:
            await self._funding.adjust(merchant_id, wallet_id, adjust_id, amount_nanos, reason, db=db)
            is_first = await self._store.note_adjustment(
                db, adjust_id, merchant_id=merchant_id, wallet_id=wallet_id, amount_nanos=amount_nanos, reason=reason,
                made_by=made_by, at=self.clock(),
            )  # fmt: skip
            if note is not None and is_first:
                await note(db, adjust_id)
        with suppress(StoreError):  # ordered: the applier does it within a second of Redis being there
            await self._funding.apply_order(adjust_id)
        return adjust_id

    async def fund(
        self,
        merchant_id: str,
        wallet_id: str,
        amount_nanos: int,
        *,
        payment_method_id: str | None = None,
        key: str | None = None,
        return_url: str,
    ) -> Charge:
        """Charge a stored card (None: the default) for funds now; the charge, which is paid, under way or waits for its holder.

        Raises CallerError: `card_declined` (402), `payment_method_required` (402), `amount_out_of_bounds`; Conflict
        `charge_in_progress` while another charge of this wallet is open.
        """
        if not FUND_NANOS_MIN <= amount_nanos <= FUND_NANOS_MAX:
            raise CallerError("amount: accepted are $10 to $10,000 at once.", code="amount_out_of_bounds")
        try:
            cents = cents_of_nanos(amount_nanos)
        except ValueError:
            raise CallerError("amount: accepted are whole cents.", code="invalid_parameter") from None
        occasion = key or new_id("fund")
        # On session: who asks is there to see a refusal, so it is neither tried again nor held against automatic charges.
        opened = await self._charges.open(
            wallet_id=wallet_id, merchant_id=merchant_id, purpose="top_up", amount_cents=cents, key=occasion, on_session=True,
            payment_method_id=payment_method_id, return_url=return_url,
        )  # fmt: skip
        if opened.occasion != occasion:
            raise Conflict("Another charge of this wallet is under way; try again when it has ended.", code="charge_in_progress")
        charge = await self._charges.advance(opened.charge_id)
        if charge.state == "requires_action" and charge.action_url is None:
            charge = await self._charges.authenticate(charge.charge_id, return_url)
        if charge.state in ("declined", "canceled"):
            raise CallerError(charge.decline_message or "The card was not charged.", code="card_declined", status=402)
        return charge
