"""stores/report_copy.py on real stores: reports written by COPY are the rows that the driver's encoders would have written."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from lava_proxy.billing.rating import Rating
from lava_proxy.billing.reporting import Reporting
from lava_proxy.stores import ledger_store
from lava_proxy.stores.balance_store import BalanceStore, Report, Reported, report_record
from lava_proxy.stores.ids import new_id
from lava_proxy.stores.report_rows import is_report_row, row_of
from lava_proxy.workers.audit import rerate
from tests.billing_world import World
from tests.charging_world import NOW, prices
from tests.integration.test_reporting import Customer, customer, reporting

__all__ = ["customer"]
ODD = 'a"b\\c\x1e\x1f\x7f|,é\u2028🙂'
TABLES = {
    "request": "request_id", "ledger_entry": "wallet_id, wseq", "ledger_leg": "wallet_id, wseq, amount_nanos, account",
    "usage_by_meter": "merchant_id", "usage_by_model": "merchant_id, provider, model", "usage_by_customer": "provider, model",
    "usage_by_customer_day": "merchant_id", "usage_by_model_day": "provider, model",
}  # fmt: skip


async def reports(customer: Customer, taker: Reporting) -> None:
    """Reports of every shape: plain, with all that strangers may choose, with a cost, seconds and characters, tiers and none."""
    tokens, tiered = await customer.meter(), await customer.meter((0, 5_000_000_000), (1_000, 3_000_000_000))
    share = await customer.meter((0, 200_000), rate_type="percentage")
    minutes = await customer.meter(tier_type="minutes")
    bodies = [
        customer.body("plain", tokens),
        customer.body(ODD, tokens, metadata={"feature": ODD}, model=ODD, provider="Some Provider"),
        customer.body("nothing", tokens, 0),
        customer.body("cost", share, cost="0.001234567890123", model="x"),
        customer.body("model", tokens, model="m", provider="test", output_tokens=7),
        customer.body("minutes", minutes, input_seconds=1.5, input_characters=3),
        customer.body("first", tiered, 999),
        customer.body("both", tiered, 5_000),
        customer.body("long" + "x" * 250, tokens, metadata={f"k{n}": "v" * 255 for n in range(60)}),
    ]
    answers = await taker.report(customer.merchant_id, bodies)
    assert [type(answer).__name__ for answer in answers] == ["Answer"] * len(bodies)


async def told(world: World) -> dict[str, list[dict[str, Any]]]:
    return {table: await world.fetch(f"SELECT * FROM {table} ORDER BY {order}") for table, order in TABLES.items()}


async def test_reports_are_stored_as_the_drivers_encoders_store_them(
    world: World, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I2, I4, I28, 32: the same outbox, flushed in both ways, makes the same requests, ledger lines, legs and rollups."""
    await reports(customer, reporting(world))
    waiting = await world.outbox.read(await world.ledger.marks(), 100, None)
    assert sum(is_report_row(entry.raw) for entry in waiting) == 9
    await world.ledger.flush(waiting, await world.ledger.marks())
    copied = await told(world)
    stored = {row["request_id"]: row for row in copied["request"]}
    for entry in waiting:
        if is_report_row(entry.raw):
            assert stored[entry.request_id] == ledger_store.as_stored(entry)
    await world.clean_audit()
    assert not (await rerate(world.ledger, Rating(world.catalog, prices(), {}))).differing
    await world.pool.execute(f"TRUNCATE outbox_mark, request_once, wallet_state, {', '.join(TABLES)}")
    monkeypatch.setattr(ledger_store, "is_report_row", lambda row: False)
    await world.ledger.flush(waiting, await world.ledger.marks())
    assert await told(world) == copied


async def test_reports_of_an_earlier_release_and_of_this_one_are_flushed_together(world: World, customer: Customer) -> None:
    """G12, 28: what waits in the outbox while the program is renewed has JSON rows; a second debit of either kind is given back."""
    await reports(customer, reporting(world))
    store, entries = BalanceStore(world.hot), await world.outbox.read(await world.ledger.marks(), 100, None)
    row = row_of(next(entry for entry in entries if is_report_row(entry.raw)).raw)
    old = Report(
        wallet_id=customer.wallet_id, request_id=new_id("req"), record=report_record(customer.merchant_id, "old"), fingerprint="f",
        charge_nanos=5, units=5, tier_field=row["tier_field"], position_lo=0, position_hi=2**53 - 1,
        row=orjson.dumps(row | {"request_key": "old"}), at=NOW, overdraft_nanos=0, plan_linked=False,
    )  # fmt: skip
    (answer,) = await store.report([old], 1_000)
    assert isinstance(answer, Reported)
    await world.flush()
    assert len(await world.fetch("SELECT * FROM request WHERE request_key IS NOT NULL")) == 10
    await world.clean_audit()
