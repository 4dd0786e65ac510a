"""The daily report: what a card processor captured against what the ledger was ordered to credit (I27). It changes nothing."""

from __future__ import annotations

from contextlib import suppress
from datetime import date, timedelta
from typing import Any

from lava_proxy.billing.charges import FUNDING, payment_credit_id
from lava_proxy.domain.errors import CallerError
from lava_proxy.domain.money import nanos_of_cents
from lava_proxy.payments.processor import Processor, no_processor
from lava_proxy.stores.charge_store import Charge, ChargeStore


async def reconcile(store: ChargeStore, processor: Processor | None, day: date) -> dict[str, Any]:
    """Of payments created on a UTC day. Raises CallerError `payments_disabled` where no processor is set up.

    `met`: every captured payment of ours is a succeeded charge of that amount with its credit, and the other way round.
    Charges whose money buys something else than funds are compared by state and amount.
    """
    if processor is None:
        raise no_processor()
    payments = [payment for payment in await processor.payments_of_day(day) if payment.charge_id is not None]
    paid = {payment.payment_ref: payment for payment in payments if payment.captured_cents}
    charges = await store.charges_of_payments(processor.name, list(paid))
    days = (day - timedelta(days=1), day, day + timedelta(days=1))
    neighbours = [charge for near in days for charge in await store.succeeded_on(processor.name, near)]
    credited = await store.credited_nanos([payment_credit_id(charge) for charge in charges.values()])
    problems: list[dict[str, Any]] = []
    total_nanos = 0
    for ref, payment in paid.items():
        charge = charges.get(ref)
        nanos = 0
        if charge is not None and charge.state == "succeeded":
            is_fund = charge.purpose in FUNDING
            nanos = credited.get(payment_credit_id(charge), 0) if is_fund else nanos_of_cents(charge.captured_cents)
        total_nanos += nanos
        if nanos != nanos_of_cents(payment.captured_cents):
            problems.append(
                {"payment": ref, "charge_id": payment.charge_id, "captured_cents": payment.captured_cents, "credited_nanos": nanos}
            )
    for charge in neighbours:
        if charge.processor_ref not in paid and charge.created_at.date() == day and not await _is_paid(processor, charge):
            problems.append(
                {"payment": charge.processor_ref, "charge_id": charge.charge_id, "captured_cents": 0,
                 "credited_nanos": nanos_of_cents(charge.captured_cents)}
            )  # fmt: skip
    return {
        "day": day.isoformat(),
        "processor": processor.name,
        "payments": len(payments),
        "captured_cents": sum(payment.captured_cents for payment in paid.values()),
        "credited_nanos": total_nanos,
        "problems": problems,
        "met": not problems,
    }


async def _is_paid(processor: Processor, charge: Charge) -> bool:
    """A charge that the day's list lacks may have been paid by a payment of the next day."""
    with suppress(CallerError):
        return (await processor.payment(charge.processor_ref)).captured_cents == charge.captured_cents
    return False
