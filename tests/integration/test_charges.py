"""billing/charges.py and workers/charger.py: a card is charged once, and what was taken is credited, whatever happens between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from lava_proxy.billing.charges import HOLD_OFFS, Charges, payment_credit_id
from lava_proxy.billing.reconciliation import reconcile
from lava_proxy.domain.errors import CallerError, Conflict, UpstreamError
from lava_proxy.domain.money import NANOS_PER_CENT
from lava_proxy.domain.webhooks import CHARGE_FAILED
from lava_proxy.stores.charge_store import Charge
from lava_proxy.stores.vault import Vault, new_master_key
from lava_proxy.stores.webhook_store import WebhookStore
from lava_proxy.workers.credit_applier import CreditApplier
from tests.billing_world import World
from tests.card_world import GOOD, HOLDER, LATER, POOR, CardWorld, card_world

MINUTE = timedelta(minutes=1)


@pytest.fixture(params=["sandbox", "stripe"])
async def cards(request: pytest.FixtureRequest, world: World) -> AsyncIterator[CardWorld]:
    async with card_world(world, request.param) as made:
        yield made


@pytest.fixture
async def striped(world: World) -> AsyncIterator[CardWorld]:
    async with card_world(world, "stripe") as made:
        yield made


async def is_even(cards: CardWorld, *wallets: str) -> int:
    """I25, I27: what was taken is what was credited; the cents."""
    taken = await cards.taken_cents()
    assert sum([await cards.ordered_nanos(wallet) for wallet in wallets]) == taken * NANOS_PER_CENT
    report = await reconcile(cards.store, cards.processor, cards.clock().date())
    assert report["met"], report
    return taken


async def test_a_paid_charge_is_spendable_at_once_and_in_the_ledger(cards: CardWorld) -> None:
    """I25, 64: charge implies grant."""
    wallet_id, _ = await cards.payer()
    charge = await cards.pay(wallet_id, 2500)
    assert (charge.state, charge.captured_cents, charge.attempt) == ("succeeded", 2500, 1)
    assert (await cards.world.state(wallet_id)).balance_nanos == 2500 * NANOS_PER_CENT
    assert cards.transitions == [
        (charge.charge_id, old, new)
        for old, new in (("created", "pi_created"), ("pi_created", "confirming"), ("confirming", "succeeded"))
    ]
    for _ in range(3):
        assert await cards.charges.advance(charge.charge_id) == charge
    await cards.world.flush()
    assert await CreditApplier(cards.world.catalog, cards.world.funding).run_once() == 0
    assert await is_even(cards, wallet_id) == 2500
    await cards.world.clean_audit()


async def test_a_storm_of_triggers_opens_one_charge(cards: CardWorld) -> None:
    """57, I24: also without a key."""
    wallet_id, _ = await cards.payer()
    opened = await asyncio.gather(*(cards.open(wallet_id, 1000, purpose="overage") for _ in range(8)))
    assert len({charge.charge_id for charge in opened}) == 1
    await asyncio.gather(*(cards.charges.advance(opened[0].charge_id) for _ in range(6)))
    assert (await cards.store.charge(opened[0].charge_id)).state == "succeeded"
    assert await is_even(cards, wallet_id) == 1000


async def test_a_double_submitted_checkout_charges_once_for_ever(cards: CardWorld) -> None:
    """67, 72, 38: the occasion is the key; other content under it is refused."""
    wallet_id, _ = await cards.payer()
    opened = await asyncio.gather(*(cards.open(wallet_id, 1000, key="checkout:cs_1", on_session=True) for _ in range(5)))
    paid = await cards.charges.advance(opened[0].charge_id)
    again = await cards.open(wallet_id, 1000, key="checkout:cs_1", on_session=True)
    assert {charge.charge_id for charge in opened} == {again.charge_id} == {paid.charge_id}
    with pytest.raises(Conflict):
        await cards.open(wallet_id, 2000, key="checkout:cs_1", on_session=True)
    assert await is_even(cards, wallet_id) == 1000


async def test_a_charge_in_progress_and_a_checkout_do_not_run_side_by_side(cards: CardWorld) -> None:
    """66, 74, I24: the second gets the first, sees by its key that it is another's, and comes after it."""
    wallet_id, _ = await cards.payer()
    first = await cards.open(wallet_id, 1000, purpose="auto_top_up", key="auto:1")
    other = await cards.open(wallet_id, 5000, key="checkout:1", on_session=True)
    assert (other.charge_id, other.key) == (first.charge_id, "auto:1")
    await cards.charges.advance(first.charge_id)
    second = await cards.pay(wallet_id, 5000, key="checkout:1", on_session=True)
    assert (second.key, second.captured_cents) == ("checkout:1", 5000)
    assert await is_even(cards, wallet_id) == 6000


async def test_what_was_promised_is_fixed_with_the_charge(cards: CardWorld) -> None:
    """62: the price is a snapshot, the amount is the charge's."""
    wallet_id, _ = await cards.payer()
    snapshot = {"plan_id": "pln_1", "amount": "10.00"}
    charge = await cards.pay(wallet_id, 1000, price_snapshot=snapshot, subject={"checkout": "cs_1"})
    found = await cards.store.charge(charge.charge_id)
    assert (found.price_snapshot, found.subject, found.captured_cents) == (snapshot, {"checkout": "cs_1"}, 1000)


async def test_one_charge_closes_a_gap_of_any_size(cards: CardWorld) -> None:
    """60: the amount is the whole gap; what is not whole cents or out of bounds is refused before anything is asked."""
    wallet_id, _ = await cards.payer()
    assert (await cards.pay(wallet_id, 123_456, purpose="overage")).captured_cents == 123_456
    assert await is_even(cards, wallet_id) == 123_456
    for cents in (0, -5, 49, 100_000_000):
        with pytest.raises(CallerError, match="card can be charged"):
            await cards.open(wallet_id, cents)


async def test_a_monthly_cap_can_count_what_is_still_unknown(striped: CardWorld) -> None:
    """63"""
    assert striped.fake is not None
    wallet_id, _ = await striped.payer()
    since = striped.clock() - timedelta(days=1)
    striped.fake.fail("confirm", "drop_after")
    charge = await striped.pay(wallet_id, 1000, purpose="overage")
    assert charge.state == "unknown"
    assert await striped.store.spoken_for_cents(wallet_id, ["overage"], since) == 1000
    await striped.run()
    assert await striped.store.spoken_for_cents(wallet_id, ["overage"], since) == 1000
    assert await striped.store.spoken_for_cents(wallet_id, ["auto_top_up"], since) == 0


@pytest.mark.parametrize("kind", ["drop_after", "error_after"])
async def test_a_slow_success_is_charged_and_credited_once(striped: CardWorld, kind: Any) -> None:
    """54, I24: a confirmation without an answer is asked for, never sent again."""
    assert striped.fake is not None
    wallet_id, _ = await striped.payer()
    striped.fake.fail("confirm", kind)
    charge = await striped.pay(wallet_id)
    assert (charge.state, await striped.ordered_nanos(wallet_id)) == ("unknown", 0)
    assert (await striped.open(wallet_id)).charge_id == charge.charge_id
    await striped.run(rounds=3)
    assert (await striped.store.charge(charge.charge_id)).state == "succeeded"
    assert await is_even(striped, wallet_id) == 2500
    assert len([call for call in striped.fake.calls if call[1].endswith("/confirm")]) == 1


@pytest.mark.parametrize("kind", ["drop_before", "error_before", "busy"])
async def test_a_confirmation_that_never_arrived_is_called_off_and_another_charge_may_follow(striped: CardWorld, kind: Any) -> None:
    """54: canceled at the processor, so a late arrival cannot take the money; the same occasion may be charged anew."""
    assert striped.fake is not None
    wallet_id, _ = await striped.payer()
    striped.fake.fail("confirm", kind)
    charge = await striped.pay(wallet_id, key="sub:1:2026-11")
    await striped.run()
    assert (await striped.store.charge(charge.charge_id)).state == "canceled"
    assert (striped.fake.objects[charge.processor_ref]["status"], await striped.taken_cents()) == ("canceled", 0)
    second = await striped.pay(wallet_id, key="sub:1:2026-11")
    assert (second.state, second.key) == ("succeeded", "sub:1:2026-11#2")
    assert (await striped.open(wallet_id, key="sub:1:2026-11")).charge_id == second.charge_id
    assert await is_even(striped, wallet_id) == 2500


@pytest.mark.parametrize("kind", ["drop_after", "error_after"])
async def test_a_payment_whose_creation_had_no_answer_is_found_by_its_charge(striped: CardWorld, kind: Any) -> None:
    """55: the same key on every try; one payment."""
    assert striped.fake is not None
    wallet_id, _ = await striped.payer()
    striped.fake.fail("POST /v1/payment_intents$", kind)
    charge = await striped.pay(wallet_id)
    assert charge.state == "succeeded"
    assert len(await striped.payments()) == 1
    assert await is_even(striped, wallet_id) == 2500


async def test_the_keys_of_a_charge_do_not_change_over_restarts(striped: CardWorld) -> None:
    """55: keys are made from ids and the attempt, of nothing that passes."""
    assert striped.fake is not None
    wallet_id, _ = await striped.payer()
    striped.fake.fail("POST /v1/payment_intents$", "error_before")
    charge = await striped.pay(wallet_id)
    assert charge.state == "created"
    striped.clock.advance(MINUTE)
    await striped.charger.run_once()
    keys = [key for method, path, key in striped.fake.calls if method == "POST" and "payment_intents" in path]
    assert keys == [f"pi:{charge.charge_id}", f"pi:{charge.charge_id}", f"cf:{charge.charge_id}:1"]
    assert await is_even(striped, wallet_id) == 2500


async def test_a_worker_that_was_killed_while_confirming_leaves_a_charge_that_is_asked_for(striped: CardWorld) -> None:
    """56: another worker leaves it alone while its lease lasts, and then asks."""
    assert striped.fake is not None
    wallet_id, _ = await striped.payer()
    fault = striped.fake.fail("confirm", "wait")
    charge = await striped.open(wallet_id)
    killed = asyncio.get_running_loop().create_task(striped.charges.advance(charge.charge_id))
    await fault.reached.wait()
    killed.cancel()
    await asyncio.gather(killed, return_exceptions=True)
    assert await striped.charger.run_once() == 0
    assert (await striped.store.charge(charge.charge_id)).state == "confirming"
    fault.gate.set()  # the processor goes on with what it had got
    striped.clock.advance(3 * MINUTE)
    await striped.run(rounds=1)
    assert (await striped.store.charge(charge.charge_id)).state == "succeeded"
    assert await is_even(striped, wallet_id) == 2500


async def test_a_decline_credits_nothing_and_leaves_the_card_alone_longer_each_time(cards: CardWorld) -> None:
    """58, 59, 65, I26: 1 h, 6 h, 24 h, then suspended."""
    wallet_id, person_id = await cards.payer(POOR)
    charge = await cards.pay(wallet_id, 1000, purpose="overage")
    assert (charge.state, charge.decline_code, charge.decline_reason) == ("declined", "card_declined", "insufficient_funds")
    (card,) = await cards.cards.list(person_id)
    assert (card.has_error, card.error_code, card.error_at) == (True, "insufficient_funds", cards.clock())
    for number, wait in enumerate(HOLD_OFFS, 1):
        with pytest.raises(Conflict) as caught:
            await cards.open(wallet_id, 1000, purpose="overage")
        assert caught.value.code == "charge_held_off"
        cards.clock.advance(wait - MINUTE)
        assert await cards.charger.run_once() == 0
        cards.clock.advance(2 * MINUTE)
        await cards.charger.run_once()
        found = await cards.store.charge(charge.charge_id)
        assert (found.state, found.attempt) == ("declined", number + 1)
    with pytest.raises(Conflict) as caught:
        await cards.open(wallet_id, 1000, purpose="overage")
    assert caught.value.code == "charge_suspended"
    cards.clock.advance(timedelta(days=30))
    assert await cards.charger.run_once() == 0
    assert (await cards.taken_cents(), await cards.ordered_nanos(wallet_id)) == (0, 0)
    assert (await cards.world.state(wallet_id)).balance_nanos == 0


async def test_a_new_card_or_a_paid_top_up_lifts_a_suspension(cards: CardWorld) -> None:
    """58: a renewal is tried again with the new card; overage waits for its trigger, which asks by what is missing then."""

    async def renewed(db: Any, charge: Charge) -> list[str]:
        assert charge.state == "succeeded"
        return []

    charges = Charges(
        cards.store, cards.processor, cards.world.funding, cards.clock, {"subscription_renewal": renewed}
    )  # fmt: skip
    cards.charges = charges
    wallet_id, person_id = await cards.payer(POOR)
    renewal = await cards.pay(wallet_id, 1700, purpose="subscription_renewal", key="sub_1:2026-11")
    other_wallet, other_person = await cards.payer(POOR)
    overage = await cards.pay(other_wallet, 900, purpose="overage")
    for _ in range(4):
        cards.clock.advance(timedelta(hours=25))
        await cards.charger.run_once()
    hold_off = await cards.store.hold_off(wallet_id)
    assert hold_off is not None and hold_off.suspended
    await cards.add_card(person_id, GOOD)
    cards.cards._charges = charges
    await charges.card_changed(person_id)
    assert await cards.store.hold_off(wallet_id) is None
    await cards.charger.run_once()
    assert (await cards.store.charge(renewal.charge_id)).state == "succeeded"
    # The other wallet: its person pays by hand with another card.
    good = await cards.add_card(other_person, GOOD)
    await cards.pay(other_wallet, 2000, on_session=True, payment_method_id=good.payment_method_id)
    assert await cards.store.hold_off(other_wallet) is None
    cards.clock.advance(timedelta(days=2))
    await cards.charger.run_once()
    assert (await cards.store.charge(overage.charge_id)).state == "declined"
    assert (await cards.pay(other_wallet, 900, purpose="overage")).state == "succeeded"


@pytest.mark.parametrize("approve", [True, False])
async def test_a_card_that_needs_its_holder_waits_with_a_link_and_is_not_tried_off_session(cards: CardWorld, approve: bool) -> None:
    """I26: no retries; what the holder says decides."""
    wallet_id, _ = await cards.payer(HOLDER)
    charge = await cards.pay(wallet_id, 1000, purpose="auto_top_up")
    assert charge.state == "requires_action"
    confirms = 0 if cards.fake is None else len([call for call in cards.fake.calls if call[1].endswith("/confirm")])
    await cards.run(rounds=6)
    if cards.fake is not None:
        assert len([call for call in cards.fake.calls if call[1].endswith("/confirm")]) == confirms
    charge = await cards.charges.authenticate(charge.charge_id, "http://127.0.0.1/back")
    assert charge.state == "requires_action" and charge.action_url is not None
    assert charge.processor_ref in charge.action_url
    await cards.authenticate(charge.processor_ref, approve=approve)
    charge = await cards.charges.refresh(charge.charge_id)
    assert charge.state == ("succeeded" if approve else "declined")
    assert await is_even(cards, wallet_id) == (1000 if approve else 0)


async def test_a_holder_who_never_comes_frees_the_wallet_after_a_day(cards: CardWorld) -> None:
    wallet_id, _ = await cards.payer(HOLDER)
    charge = await cards.pay(wallet_id, 1000, on_session=True, return_url="http://127.0.0.1/back")
    assert charge.state == "requires_action" and charge.action_url is not None
    await cards.run(rounds=26, step=timedelta(hours=1))
    assert (await cards.store.charge(charge.charge_id)).state == "canceled"
    assert await cards.store.in_the_way(wallet_id, None) == (None, None)


async def test_a_charge_that_fails_is_told_once_for_each_attempt(cards: CardWorld) -> None:
    """Declined, or left alone by its holder."""
    vault = Vault(new_master_key())
    await WebhookStore(cards.world.pool, vault).create(
        cards.world.merchant_id, name="x", url="https://example.com/", vocabulary="customer", events=(CHARGE_FAILED,),
        status="active", now=cards.clock(),
    )  # fmt: skip
    wallet_id, _ = await cards.payer(POOR)
    charge = await cards.pay(wallet_id, 1000, purpose="overage")
    cards.clock.advance(HOLD_OFFS[0] + MINUTE)
    await cards.charger.run_once()
    await cards.charges.refresh(charge.charge_id)
    absent, _ = await cards.payer(HOLDER)
    left = await cards.pay(absent, 900, on_session=True, return_url="http://127.0.0.1/back")
    await cards.run(rounds=26, step=timedelta(hours=1))
    rows = await cards.world.fetch(
        "SELECT subject_id, wallet_id, facts, customer FROM event WHERE type = $1 ORDER BY ordinal", CHARGE_FAILED
    )
    told = [(row["subject_id"], row["facts"]["charge"]["attempt"], row["facts"]["charge"]["status"]) for row in rows]
    ours = [one for one in told if one[0] == charge.charge_id]
    assert ours == [(charge.charge_id, number, "declined") for number in range(1, len(ours) + 1)] and len(ours) >= 2
    assert [one for one in told if one[0] == left.charge_id] == [(left.charge_id, left.attempt, "canceled")]
    first = rows[0]["facts"]["charge"]
    assert (first["decline_code"], first["amount"], first["is_automatic"]) == ("insufficient_funds", "10.00", True)
    assert first["next_attempt_at"] is not None and rows[0]["wallet_id"] == wallet_id and rows[0]["customer"] is not None
    abandoned = next(row["facts"]["charge"] for row in rows if row["subject_id"] == left.charge_id)
    assert (abandoned["decline_code"], abandoned["next_attempt_at"]) == ("holder_absent", None)
    assert await cards.store.hold_off(absent) is None  # nobody is held off by a checkout that was left


async def test_a_wallet_without_a_card_is_told_so(cards: CardWorld) -> None:
    wallet_id, _ = await cards.payer(None)
    for wallet in (wallet_id, await cards.world.wallet()):
        with pytest.raises(CallerError) as caught:
            await cards.open(wallet)
        assert (caught.value.status, caught.value.code) == (402, "payment_method_required")


async def test_money_that_would_buy_nothing_is_not_asked_for(cards: CardWorld) -> None:
    """64, 65: a purpose without an effect is refused before a charge exists."""
    wallet_id, _ = await cards.payer()
    with pytest.raises(ValueError, match="bundle"):
        await cards.open(wallet_id, purpose="bundle")
    assert await cards.store.charges(wallet_id) == []


async def test_a_step_that_was_decided_on_old_news_is_not_taken(cards: CardWorld) -> None:
    """I25: what another has moved on stays as it is, and is answered as it stands."""
    wallet_id, _ = await cards.payer()
    before = await cards.open(wallet_id)
    paid = await cards.charges.advance(before)
    assert paid.state == "succeeded"
    assert await cards.charges.advance(before) == paid
    async with cards.store.transaction() as db:
        assert await cards.store.change(db, before, cards.clock(), state="canceled") is None
    traces = await cards.world.fetch("SELECT number, new_state FROM charge_transition ORDER BY number")
    assert [(row["number"], row["new_state"]) for row in traces] == [
        (1, "created"), (2, "pi_created"), (3, "confirming"), (4, "succeeded"),
    ]  # fmt: skip
    assert await is_even(cards, wallet_id) == 2500


async def test_an_effect_that_fails_leaves_nothing_half_done_and_comes_later(cards: CardWorld) -> None:
    """64, 73: state and effect share a transaction."""
    broken, ran = True, []

    async def effect(db: Any, charge: Charge) -> list[str]:
        ran.append(charge.charge_id)
        await db.execute("UPDATE merchant SET name = 'changed'")
        if broken:
            raise CallerError("not now")
        return []

    cards.charges = Charges(cards.store, cards.processor, cards.world.funding, cards.clock, {"bundle": effect})
    wallet_id, _ = await cards.payer()
    charge = await cards.open(wallet_id, purpose="bundle")
    with pytest.raises(CallerError):
        await cards.charges.advance(charge.charge_id)
    assert (await cards.store.charge(charge.charge_id)).state == "confirming"
    assert (await cards.world.fetch("SELECT name FROM merchant"))[0]["name"] == "test"
    broken = False
    cards.clock.advance(5 * MINUTE)
    await cards.charger.run_once()
    assert ((await cards.store.charge(charge.charge_id)).state, len(ran)) == ("succeeded", 2)
    assert (await cards.world.fetch("SELECT name FROM merchant"))[0]["name"] == "changed"


async def test_notices_in_any_order_and_number_credit_once(striped: CardWorld) -> None:
    """69, 70, 74, I25: before the answer, after it, twice, in reverse; the ledger sees one credit."""
    assert striped.fake is not None
    fake = striped.fake
    wallet_id, _ = await striped.payer()
    fake.fail("confirm", "drop_after")
    charge = await striped.pay(wallet_id)
    paid = next(event for event in fake.events if event["type"] == "payment_intent.succeeded")
    assert [await striped.send(paid) for _ in range(3)] == [True, False, False]
    await asyncio.gather(*(striped.send(event) for event in [*fake.events, *reversed(fake.events)]))
    await striped.charges.advance(charge.charge_id)
    await striped.run(rounds=3)
    assert (await striped.store.charge(charge.charge_id)).state == "succeeded"
    assert await is_even(striped, wallet_id) == 2500
    rows = await striped.world.fetch("SELECT credit_id FROM credit WHERE wallet_id = $1", wallet_id)
    assert [row["credit_id"] for row in rows] == [payment_credit_id(await striped.store.charge(charge.charge_id))]


async def test_a_notice_whose_effect_fails_is_not_remembered(striped: CardWorld) -> None:
    """73: the event's row and its effect are one transaction."""
    assert striped.fake is not None
    wallet_id, _ = await striped.payer()
    striped.fake.fail("confirm", "drop_after")
    await striped.pay(wallet_id)
    paid = next(event for event in striped.fake.events if event["type"] == "payment_intent.succeeded")
    striped.fake.fail("GET /v1/payment_intents", "error_before")
    with pytest.raises(UpstreamError):
        await striped.send(paid)
    assert await striped.world.fetch("SELECT * FROM processor_event WHERE event_id = $1", paid["id"]) == []
    assert await striped.send(paid)
    assert await is_even(striped, wallet_id) == 2500


async def test_a_notice_of_an_earlier_decline_does_not_end_a_later_attempt(striped: CardWorld) -> None:
    """74, 76: old news changes no state, and each change of state is told once."""
    assert striped.fake is not None
    wallet_id, person_id = await striped.payer(POOR)
    charge = await striped.pay(wallet_id, purpose="overage")
    failed = next(event for event in striped.fake.events if event["type"] == "payment_intent.payment_failed")
    await striped.add_card(person_id, GOOD)
    striped.clock.advance(timedelta(hours=2))
    async with striped.store.transaction() as db:
        await striped.store.change(
            db, await striped.store.locked(db, charge.charge_id), striped.clock(), next_try_at=striped.clock()
        )
    fault = striped.fake.fail("confirm", "drop_before")
    await striped.charger.run_once()
    assert fault not in striped.fake.faults
    assert (await striped.store.charge(charge.charge_id)).state == "unknown"
    assert await striped.send(failed)
    striped.clock.advance(MINUTE)
    await striped.charger.run_once()
    assert (await striped.store.charge(charge.charge_id)).state == "unknown"
    await striped.run()
    assert (await striped.store.charge(charge.charge_id)).state == "canceled"
    told = await striped.world.fetch("SELECT old_state, new_state FROM charge_transition ORDER BY number")
    assert len(told) == len(striped.transitions) + 1
    assert [row["new_state"] for row in told].count("declined") == 1


async def test_money_that_arrives_after_a_charge_was_closed_is_credited_all_the_same(striped: CardWorld) -> None:
    """I25: paid is paid."""
    assert striped.fake is not None
    wallet_id, _ = await striped.payer(HOLDER)
    charge = await striped.pay(wallet_id, on_session=True, return_url="http://127.0.0.1/back")
    async with striped.store.transaction() as db:
        await striped.store.change(db, await striped.store.locked(db, charge.charge_id), striped.clock(), state="canceled")
    striped.fake.authenticate(charge.processor_ref, approve=True)
    paid = next(event for event in striped.fake.events if event["type"] == "payment_intent.succeeded")
    assert await striped.send(paid)
    assert await is_even(striped, wallet_id) == 2500


async def test_cards_chosen_at_once_leave_one_default(cards: CardWorld) -> None:
    """68"""
    _, person_id = await cards.payer()
    stored = [(await cards.add_card(person_id, number)).payment_method_id for number in (GOOD, POOR, LATER)]
    await asyncio.gather(*(cards.cards.set_default(person_id, stored[n % 3]) for n in range(9)))
    assert [card.is_default for card in await cards.cards.list(person_id)].count(True) == 1


async def test_a_refund_takes_back_what_was_credited_once(cards: CardWorld) -> None:
    """I25, 38: by its id; never more than was captured."""
    wallet_id, _ = await cards.payer()
    charge = await cards.pay(wallet_id)
    back = await cards.charges.refund(charge.charge_id, 1000, "wrong item", refund_id="ref_a")
    assert (back.state, back.clawed_cents) == ("done", 1000)
    assert (await cards.charges.refund(charge.charge_id, 1000, "wrong item", refund_id="ref_a")).clawed_cents == 1000
    with pytest.raises(CallerError, match=r"\$15.00"):
        await cards.charges.refund(charge.charge_id, 1501, "more")
    assert (await cards.charges.refund(charge.charge_id, None, "the rest")).clawed_cents == 1500
    assert await clawed(cards, wallet_id) == 2500


async def test_a_refunds_id_belongs_to_one_charge(striped: CardWorld) -> None:
    """75: the id comes with a form; that of another charge's refund must not make it forget what it took."""
    assert striped.fake is not None
    wallet_id, _ = await striped.payer()
    first, second = await striped.pay(wallet_id), await striped.pay(wallet_id)
    await striped.charges.refund(first.charge_id, 1000, "x", refund_id="ref_a")
    before = await striped.store.refunds(first.charge_id)
    with pytest.raises(Conflict):
        await striped.charges.refund(second.charge_id, 700, "x", refund_id="ref_a")
    assert await striped.store.refunds(first.charge_id) == before and await striped.store.refunds(second.charge_id) == []
    assert await striped.processor.refunds(second.processor_ref) == []
    await striped.charges.sync_refunds(first.charge_id)
    assert await clawed(striped, wallet_id) == 1000


async def clawed(cards: CardWorld, wallet_id: str) -> int:
    """What adjustments took from a wallet, in cents."""
    rows = await cards.world.fetch("SELECT amount_nanos FROM credit WHERE kind = 'adjust' AND wallet_id = $1", wallet_id)
    return -sum(row["amount_nanos"] for row in rows) // NANOS_PER_CENT


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "error_before", "error_after"])
async def test_a_refund_without_an_answer_is_finished_by_the_worker_once(striped: CardWorld, kind: Any) -> None:
    """54: for money that goes back too."""
    assert striped.fake is not None
    wallet_id, _ = await striped.payer()
    charge = await striped.pay(wallet_id)
    striped.fake.fail("POST /v1/refunds", kind)
    assert (await striped.charges.refund(charge.charge_id, 1000, "x", refund_id="ref_a")).state == "requested"
    await striped.run(rounds=3)
    (back,) = await striped.store.refunds(charge.charge_id)
    assert (back.state, back.clawed_cents, await clawed(striped, wallet_id)) == ("done", 1000, 1000)
    assert sum(striped.fake.captured_cents.values()) == 1500


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 1, 0, 2)])
async def test_a_refund_after_a_dispute_takes_nothing_twice(striped: CardWorld, order: tuple[int, ...]) -> None:
    """75: in any order of notices, at most what was captured."""
    assert striped.fake is not None
    fake = striped.fake
    wallet_id, _ = await striped.payer()
    charge = await striped.pay(wallet_id)
    fake.dispute(charge.processor_ref, 2500)
    fake.refund(charge.processor_ref, 1000)
    told = [event for event in fake.events if event["type"].startswith(("charge.", "payment_intent."))]
    for number in order:
        await striped.send(told[number % len(told)])
    assert await clawed(striped, wallet_id) == 2500
    await striped.charges.sync_refunds(charge.charge_id)
    assert await clawed(striped, wallet_id) == 2500


async def test_a_dispute_that_is_won_gives_back_what_it_took(striped: CardWorld) -> None:
    """75: and what a refund could not take because of it is taken then."""
    assert striped.fake is not None
    wallet_id, _ = await striped.payer()
    charge = await striped.pay(wallet_id)
    dispute = striped.fake.dispute(charge.processor_ref, 2500)
    await striped.charges.sync_refunds(charge.charge_id)
    striped.fake.refund(charge.processor_ref, 1000)
    await striped.charges.sync_refunds(charge.charge_id)
    assert await clawed(striped, wallet_id) == 2500
    striped.fake.close_dispute(dispute, won=True)
    for event in striped.fake.events:
        await striped.send(event)
    assert await clawed(striped, wallet_id) == 1000
    assert sum(striped.fake.captured_cents.values()) == 1500


async def test_the_daily_report_names_money_that_was_taken_and_not_credited(cards: CardWorld) -> None:
    """I27"""
    wallet_id, _ = await cards.payer()
    charge = await cards.pay(wallet_id)
    assert (await reconcile(cards.store, cards.processor, cards.clock().date()))["met"]
    await cards.world.pool.execute("DELETE FROM credit WHERE wallet_id = $1", wallet_id)
    report = await reconcile(cards.store, cards.processor, cards.clock().date())
    assert (report["met"], report["captured_cents"], report["credited_nanos"]) == (False, 2500, 0)
    assert report["problems"][0]["charge_id"] == charge.charge_id
    assert (await reconcile(cards.store, cards.processor, cards.clock().date() - timedelta(days=9)))["payments"] == 0
