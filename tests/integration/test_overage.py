"""Usage beyond the credit, from the call to the card: whole stories on real stores, the sandbox's cards and one clock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lava_proxy.domain.errors import Conflict
from lava_proxy.domain.plans import BLOCK, Overage
from lava_proxy.stores import overage_store
from lava_proxy.stores.charge_store import ChargeStore
from tests.billing_world import World
from tests.card_world import GOOD, HOLDER, POOR
from tests.overage_world import AUTO, CHARGE, USD, OverageWorld, overage_world

HOUR = timedelta(hours=1)


@pytest.fixture
async def overage(world: World) -> AsyncIterator[OverageWorld]:
    async with overage_world(world) as made:
        yield made


@pytest.fixture
async def striped(world: World) -> AsyncIterator[OverageWorld]:
    async with overage_world(world, "stripe") as made:
        yield made


async def limited_events(overage: OverageWorld) -> list[str]:
    rows = await overage.world.fetch("SELECT facts->>'limited_reason' AS reason FROM event WHERE type = 'customer.limited'")
    return [row["reason"] for row in rows]


async def listen(overage: OverageWorld) -> None:
    await overage.world.pool.execute(
        "INSERT INTO webhook (webhook_id, merchant_id, name, url, vocabulary, created_at)"
        " VALUES ('wh', $1, 'w', 'x', 'customer', now())",
        overage.world.merchant_id,
    )


async def test_calls_go_on_beyond_the_credit_and_the_card_pays_the_whole_gap(overage: OverageWorld) -> None:
    """60, 61, I24, I25: $5 of credit, calls of $3: none is refused, the card pays when $10 are owed, once."""
    customer = await overage.customer(funds=5 * USD)
    owed = []
    for _ in range(5):
        assert await overage.call(customer, 3 * USD)
        owed.append(await overage.debt(customer))
        await overage.settle()
    assert owed == [0, 1 * USD, 4 * USD, 7 * USD, 10 * USD]
    assert await overage.charged(customer) == [("overage", 1000, "succeeded")]
    assert await overage.debt(customer) == 0
    assert await overage.call(customer, 17_350_000_000)
    await overage.settle()
    assert (await overage.charged(customer))[1:] == [("overage", 1800, "succeeded")]  # rounded up to the dollar
    state = await overage.world.state(customer.wallet_id)
    assert (state.debt, state.funds_available) == (0, 650_000_000)
    assert await overage.is_even(customer) == 2800
    await overage.world.clean_audit()


async def test_a_charge_is_triggered_by_crossing_the_line_only(overage: OverageWorld) -> None:
    """61: debts below the threshold open nothing, however often the wallet is looked at."""
    customer = await overage.customer()
    for _ in range(9):
        assert await overage.call(customer, USD)
        await overage.settle()
        assert await overage.world.fetch("SELECT * FROM overage_note") == []
    assert await overage.charged(customer) == []


async def test_a_storm_of_calls_and_workers_opens_one_charge(overage: OverageWorld) -> None:
    """57, I24: twenty calls and four workers at once."""
    customer = await overage.customer()
    assert all(await asyncio.gather(*(overage.call(customer, USD, flush=False) for _ in range(20))))
    await overage.settle(workers=4)
    assert await overage.charged(customer) == [("overage", 2000, "succeeded")]
    assert await overage.debt(customer) == 0
    assert await overage.is_even(customer) == 2000


async def test_a_declined_card_is_left_alone_longer_each_time_then_the_customer_is_limited(overage: OverageWorld) -> None:
    """58, 59, 76, I26: calls go on down the line; after the fourth decline they are refused until there is another card."""
    await listen(overage)
    customer = await overage.customer(card=POOR)
    assert await overage.call(customer, 10 * USD)
    await overage.settle()
    assert await overage.charged(customer) == [("overage", 1000, "declined")]
    for number, wait in enumerate((HOUR, 6 * HOUR, 24 * HOUR), 2):
        assert await overage.call(customer, 5 * USD)
        await overage.advance(wait - timedelta(minutes=1))
        assert len(await overage.charged(customer)) == number - 1
        assert await overage.status(customer) == ("ok", "")
        await overage.advance(timedelta(minutes=2))
        await overage.cards.charger.run_once()
        assert len(await overage.charged(customer)) == number
    assert [cents for _, cents, _ in await overage.charged(customer)] == [1000, 1500, 2000, 2500]  # the whole gap each time
    assert await overage.status(customer) == ("limited", "suspended")
    assert not await overage.call(customer, 1)
    for _ in range(3):
        await overage.advance(30 * 24 * HOUR)
        await overage.cards.charger.run_once()
    assert (len(await overage.charged(customer)), await overage.cards.taken_cents()) == (4, 0)
    assert await limited_events(overage) == ["suspended"]
    await overage.cards.add_card(customer.person_id, GOOD)
    await overage.settle()
    assert (await overage.charged(customer))[4:] == [("overage", 2500, "succeeded")]
    assert await overage.status(customer) == ("ok", "")
    assert await overage.call(customer, USD)
    assert await overage.is_even(customer) == 2500


async def test_a_line_is_open_as_long_as_there_is_a_card_to_charge(overage: OverageWorld) -> None:
    await listen(overage)
    customer = await overage.customer(card=None)
    assert await overage.status(customer) == ("limited", "no_card")
    assert not await overage.call(customer, 1)
    card = await overage.cards.add_card(customer.person_id, GOOD)
    await overage.settle()
    assert await overage.status(customer) == ("ok", "")
    assert await overage.call(customer, 50 * USD) and not await overage.call(customer, 1)  # the end of the line
    await overage.settle()
    assert await overage.debt(customer) == 0
    await overage.cards.cards.remove(customer.person_id, card.payment_method_id)
    await overage.settle()
    assert await overage.status(customer) == ("limited", "no_card")
    assert not await overage.call(customer, 1)
    assert await limited_events(overage) == ["no_card", "no_card"]


async def test_a_card_that_wants_its_holder_limits_until_the_holder_came(overage: OverageWorld) -> None:
    customer = await overage.customer(card=HOLDER)
    assert await overage.call(customer, 12 * USD)
    await overage.settle()
    assert await overage.charged(customer) == [("overage", 1200, "requires_action")]
    assert await overage.status(customer) == ("limited", "requires_action")
    assert not await overage.call(customer, 1)
    (charge,) = await overage.cards.store.charges(customer.wallet_id)
    charge = await overage.cards.charges.authenticate(charge.charge_id, "http://127.0.0.1/back")
    await overage.cards.authenticate(charge.processor_ref, approve=True)
    await overage.cards.charges.refresh(charge.charge_id)
    await overage.settle()
    assert (await overage.status(customer), await overage.debt(customer)) == (("ok", ""), 0)
    assert await overage.call(customer, USD)


async def test_a_charge_that_was_called_off_is_opened_again_under_its_key(overage: OverageWorld) -> None:
    """The holder never came: a day later the same occasion is charged again."""
    customer = await overage.customer(card=HOLDER)
    assert await overage.call(customer, 12 * USD)
    await overage.settle()
    for _ in range(25):
        await overage.advance(HOUR)
        await overage.cards.charger.run_once()
    await overage.settle()
    await overage.advance(HOUR)
    first, second = reversed(await overage.cards.store.charges(customer.wallet_id))
    assert (first.state, second.state) == ("canceled", "requires_action")
    assert first.occasion == second.occasion and first.key != second.key


async def test_a_holder_who_stays_away_is_asked_four_times_and_then_the_customer_is_limited(overage: OverageWorld) -> None:
    """58: an approval that does not come is a decline; another card lifts it, for all that is owed by then."""
    customer = await overage.customer(card=HOLDER)
    assert await overage.call(customer, 12 * USD)
    await overage.settle()
    for _ in range(24 * 14):
        await overage.advance(HOUR)
        await overage.cards.charger.run_once()
    found = await overage.cards.store.charges(customer.wallet_id)
    assert [charge.state for charge in found] == ["canceled"] * 4
    assert {charge.decline_reason for charge in found} == {"holder_absent"}
    assert await overage.status(customer) == ("limited", "suspended")
    await overage.cards.add_card(customer.person_id, GOOD)
    await overage.settle()
    assert (await overage.debt(customer), await overage.status(customer)) == (0, ("ok", ""))
    assert await overage.is_even(customer) == 1200


async def test_a_charge_that_was_called_off_is_opened_again_for_what_is_owed_then(overage: OverageWorld) -> None:
    """57: the key of a charge that will never be paid binds nobody to its amount."""
    customer = await overage.customer(card=HOLDER)
    assert await overage.call(customer, 12 * USD)
    await overage.settle()
    (charge,) = await overage.cards.store.charges(customer.wallet_id)
    again: dict[str, Any] = {"wallet_id": customer.wallet_id, "merchant_id": overage.world.merchant_id, "purpose": "overage"}
    for _ in range(27):
        overage.clock.advance(HOUR)
        await overage.cards.charger.run_once()
    larger = await overage.cards.charges.open(**again, amount_cents=1700, key=charge.occasion)
    assert (larger.amount_cents, larger.state) == (1700, "created")
    with pytest.raises(Conflict):
        await overage.cards.charges.open(**again, amount_cents=1800, key=charge.occasion)


async def test_the_bundle_is_bought_once_when_the_credit_is_used_up(overage: OverageWorld) -> None:
    """57, 62, 64: by the last debit; the next call passes."""
    customer = await overage.customer(None)
    await overage.subscribe(customer, credit=10, bundle=(5, 8))
    assert await overage.call(customer, 6 * USD)
    await overage.settle()
    assert await overage.charged(customer) == []
    assert await overage.call(customer, 4 * USD)
    await overage.settle(workers=3)
    assert await overage.charged(customer) == [("auto_top_up", 500, "succeeded")]
    state = await overage.world.state(customer.wallet_id)
    assert (state.plan_available, state.funds_available) == (8 * USD, 0)
    assert await overage.call(customer, 7 * USD)
    await overage.settle()
    assert len(await overage.charged(customer)) == 1
    (charge,) = await overage.cards.store.charges(customer.wallet_id)
    assert charge.price_snapshot["cost"] == "5.000000000" and charge.price_snapshot["credit_amount"] == "8.000000000"
    await overage.world.clean_audit()


async def test_a_refused_call_buys_the_bundle_so_that_the_next_one_passes(overage: OverageWorld) -> None:
    """57: a storm of refusals buys one."""
    customer = await overage.customer(None)
    await overage.subscribe(customer, credit=2, bundle=(5, 8))
    await asyncio.gather(*(overage.call(customer, 4 * USD) for _ in range(8)))
    assert not await overage.call(customer, 4 * USD)
    await overage.settle(workers=3)
    assert await overage.charged(customer) == [("auto_top_up", 500, "succeeded")]
    assert await overage.call(customer, 4 * USD)
    assert await overage.outbox.refused_wallets(10) == {}


async def test_a_call_that_no_bundle_would_let_pass_buys_nothing(overage: OverageWorld) -> None:
    """It would be refused again, and buy again, up to the month's cap."""
    customer = await overage.customer(None)
    await overage.subscribe(customer, credit=2, bundle=(5, 8))
    assert not await overage.call(customer, 100 * USD)
    await overage.settle()
    assert await overage.charged(customer) == []


async def test_a_bundle_is_not_bought_between_a_cycles_end_and_its_renewal(overage: OverageWorld) -> None:
    """The next cycle's credit comes first."""
    customer = await overage.customer(None)
    await overage.subscribe(customer, credit=2, bundle=(5, 8))
    overage.clock.advance(timedelta(days=30))
    assert await overage.call(customer, 2 * USD)
    await overage.settle()
    assert await overage.charged(customer) == []
    await overage.renew(customer)
    await overage.settle()
    assert await overage.charged(customer) == [("auto_top_up", 500, "succeeded")]  # this renewal gave nothing


async def test_a_bundle_is_held_off_with_the_card_and_its_end_in_the_plan_stops_it(overage: OverageWorld) -> None:
    customer = await overage.customer(None, card=POOR)
    await overage.subscribe(customer, credit=2, bundle=(5, 8))
    assert await overage.call(customer, 2 * USD)
    await overage.settle()
    assert await overage.charged(customer) == [("auto_top_up", 500, "declined")]
    assert not await overage.call(customer, 1)
    await overage.settle()
    assert len(await overage.charged(customer)) == 1
    await overage.world.pool.execute("UPDATE credit_bundle SET deleted_at = now()")
    await overage.advance(2 * HOUR)
    assert len(await overage.charged(customer)) == 1
    assert not (await overage.terms(customer)).tops_up


async def test_block_refuses_and_charges_nothing(overage: OverageWorld) -> None:
    customer = await overage.customer(BLOCK, funds=USD)
    assert not await overage.call(customer, 2 * USD)
    assert await overage.call(customer, USD) and not await overage.call(customer, 1)
    await overage.settle()
    assert await overage.charged(customer) == []
    assert await overage.status(customer) == ("ok", "")


async def test_the_monthly_cap_ends_charges_until_the_month_does(overage: OverageWorld) -> None:
    """63: what is left of the cap is charged, then nothing; the line is what remains of the customer's credit."""
    customer = await overage.customer(replace(CHARGE, monthly_cap_nanos=25 * USD, limit_nanos=20 * USD))
    for _ in range(2):
        assert await overage.call(customer, 10 * USD)
        await overage.settle()
    assert await overage.call(customer, 12 * USD)
    await overage.settle()
    assert [cents for _, cents, _ in await overage.charged(customer)] == [1000, 1000, 500]
    assert await overage.call(customer, 13 * USD) and not await overage.call(customer, USD)
    await overage.settle()
    assert len(await overage.charged(customer)) == 3
    overage.clock.now = datetime(2026, 12, 1, tzinfo=UTC)
    await overage.settle()
    assert (await overage.charged(customer))[3:] == [("overage", 2000, "succeeded")]
    assert await overage.debt(customer) == 0


async def test_the_cap_counts_a_charge_whose_fate_is_unknown(striped: OverageWorld) -> None:
    """63, 54, I24: no second charge beside it, and its amount is spoken for."""
    assert striped.cards.fake is not None
    customer = await striped.customer(replace(CHARGE, monthly_cap_nanos=15 * USD))
    striped.cards.fake.fail("POST /v1/payment_intents/", "drop_after")
    assert await striped.call(customer, 10 * USD)
    await striped.settle()
    assert await striped.charged(customer) == [("overage", 1000, "unknown")]
    assert await striped.call(customer, 10 * USD)
    await striped.settle()
    assert len(await striped.charged(customer)) == 1
    striped.clock.advance(timedelta(minutes=1))
    await striped.cards.charger.run_once()
    await striped.settle()
    assert await striped.charged(customer) == [("overage", 1000, "succeeded"), ("overage", 500, "succeeded")]
    assert await striped.is_even(customer) == 1500


async def test_any_debt_is_charged_at_the_end_of_a_cycle(overage: OverageWorld) -> None:
    customer = await overage.customer()
    await overage.subscribe(customer, credit=2)
    assert await overage.call(customer, 4_700_000_000)
    await overage.settle()
    assert (await overage.charged(customer), await overage.debt(customer)) == ([], 2_700_000_000)
    overage.clock.advance(timedelta(days=30))
    await overage.renew(customer)
    await overage.settle()
    assert await overage.charged(customer) == [("overage", 300, "succeeded")]
    assert await overage.debt(customer) == 0


async def test_without_a_plan_the_cycle_ends_with_the_month(overage: OverageWorld) -> None:
    customer = await overage.customer(replace(CHARGE, increment_nanos=USD // 100))
    assert await overage.call(customer, 200_000_000)
    await overage.settle()
    assert await overage.charged(customer) == []
    overage.clock.now = datetime(2026, 12, 1, tzinfo=UTC)
    await overage.settle()
    assert await overage.charged(customer) == [("overage", 50, "succeeded")]  # less cannot be charged
    assert await overage.call(customer, 500_000_000)
    await overage.settle()
    assert len(await overage.charged(customer)) == 1


async def test_debt_survives_a_change_of_policy_and_is_paid_by_the_next_money(overage: OverageWorld) -> None:
    """81: charge -> block -> charge, mid-way."""
    customer = await overage.customer()
    assert await overage.call(customer, 9 * USD)
    await overage.set_policy(customer, BLOCK)
    assert not await overage.call(customer, 1)
    await overage.advance(HOUR)
    assert (await overage.charged(customer), await overage.debt(customer)) == ([], 9 * USD)
    await overage.set_policy(customer, replace(CHARGE, threshold_nanos=5 * USD))
    assert await overage.charged(customer) == [("overage", 900, "succeeded")]
    assert await overage.debt(customer) == 0
    await overage.set_policy(customer, AUTO)  # without a bundle: as block
    assert not await overage.call(customer, 1)


async def test_a_policy_is_the_connections_else_its_plans_else_the_merchants(overage: OverageWorld) -> None:
    """Each change reaches the line by itself."""
    customer = await overage.customer(None)
    await overage.subscribe(customer, credit=0)

    async def line(table: str, overage_: Overage | None) -> int:
        from lava_proxy.domain.plans import overage_document

        document = None if overage_ is None else overage_document(overage_)
        await overage.world.pool.execute(f"UPDATE {table} SET overage = $1", document)
        await overage.settle()
        return (await overage.terms(customer)).overdraft_nanos

    assert (await overage.terms(customer)).overdraft_nanos == 0
    assert await line("merchant", replace(CHARGE, limit_nanos=30 * USD)) == 30 * USD
    assert await line("plan", replace(CHARGE, limit_nanos=20 * USD)) == 20 * USD
    assert await line("connection", replace(CHARGE, limit_nanos=10 * USD)) == 10 * USD
    assert await line("connection", BLOCK) == 0
    assert await line("connection", None) == 20 * USD
    assert await line("plan", None) == 30 * USD


async def test_money_on_its_way_in_is_not_asked_for_again(overage: OverageWorld) -> None:
    """I24: a charge that has been paid and not flushed; the wallet is noted meanwhile."""
    customer = await overage.customer()
    assert await overage.call(customer, 10 * USD)
    await overage.worker().run_once()
    assert await overage.charged(customer) == [("overage", 1000, "succeeded")]
    for _ in range(3):
        await overage.world.pool.execute("INSERT INTO overage_note (wallet_id, is_low) VALUES ($1, true)", customer.wallet_id)
        await overage.worker().run_once()
    assert len(await overage.charged(customer)) == 1
    await overage.settle()
    assert len(await overage.charged(customer)) == 1


async def test_a_wallet_that_cannot_be_charged_now_does_not_keep_the_others(
    overage: OverageWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its note stays, and is taken up again."""
    from lava_proxy.domain.errors import StoreError

    first, second = await overage.customer(), await overage.customer()
    for customer in (first, second):
        assert await overage.call(customer, 10 * USD)
    spoken_for = ChargeStore.spoken_for_cents

    async def broken(self: ChargeStore, wallet_id: str, *args: Any) -> int:
        if wallet_id == first.wallet_id:
            raise StoreError("gone")
        return await spoken_for(self, wallet_id, *args)

    with monkeypatch.context() as patched:
        patched.setattr(ChargeStore, "spoken_for_cents", broken)
        await overage.worker().run_once()
    assert (await overage.charged(first), len(await overage.charged(second))) == ([], 1)
    await overage.settle()
    assert await overage.charged(first) == [("overage", 1000, "succeeded")]


async def test_looking_for_due_wallets_reads_none_of_the_others(overage: OverageWorld) -> None:
    """100,000 wallets with policies: neither the flusher's look nor the worker's scans them."""
    async with overage.world.pool.acquire() as db, db.transaction():
        await db.execute(
            "INSERT INTO wallet SELECT 'wal_' || n, $1, 0, now() FROM generate_series(1, 100000) n", overage.world.merchant_id
        )
        await db.execute("INSERT INTO overage_line SELECT 'wal_' || n, 'charge', 10, -9, 50, '' FROM generate_series(1, 100000) n")
        await db.execute(
            "INSERT INTO overage_note (wallet_id, not_before) SELECT 'wal_' || n, 'infinity' FROM generate_series(1, 100000) n"
        )
        for table in ("wallet", "overage_line", "overage_note"):
            await db.execute(f"ANALYZE {table}")
        now = overage.clock()
        wallets = [f"wal_{number}" for number in range(50)]
        for query, args in (
            (overage_store._DUE, (now, 100)),
            (overage_store._NOTE_LOW, (wallets, [20] * 50, [-20] * 50)),
        ):
            plan = json.dumps(json.loads(await db.fetchval(f"EXPLAIN (FORMAT JSON) {query}", *args)))
            assert '"Seq Scan"' not in plan, plan
