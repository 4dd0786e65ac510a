"""The contract of card processors: the sandbox, and the Stripe adapter on a fake Stripe, answer the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from lava_proxy.domain.errors import CallerError, UpstreamError
from lava_proxy.payments.processor import CHARGE_KEY, CardDetails, Declined, Payment, RequiresAction, Succeeded, Unknown
from tests.billing_world import World
from tests.card_world import GOOD, HOLDER, LATER, POOR, REFUSED, CardWorld, card_world
from tests.fake_stripe import Refusal


@pytest.fixture(params=["sandbox", "stripe"])
async def cards(request: pytest.FixtureRequest, world: World) -> AsyncIterator[CardWorld]:
    async with card_world(world, request.param) as made:
        yield made


async def payment(cards: CardWorld, number: str = GOOD, key: str = "pi:chg_1") -> tuple[Payment, str]:
    """An unconfirmed payment of $25 and its card."""
    _, person_id = await cards.payer(number)
    card = (await cards.cards.list(person_id))[0]
    customer_ref = await cards.charges.customer_ref(person_id)
    made = await cards.processor.create_payment(
        key=key, customer_ref=customer_ref, method_ref=card.processor_ref, amount_cents=2500, currency="usd",
        metadata={CHARGE_KEY: "chg_1"},
    )  # fmt: skip
    return made, card.processor_ref


async def test_a_payment_is_made_first_and_takes_money_only_when_confirmed(cards: CardWorld) -> None:
    made, card = await payment(cards)
    assert (made.status, made.amount_cents, made.captured_cents, made.charge_id) == ("unconfirmed", 2500, 0, "chg_1")
    assert await cards.taken_cents() == 0
    outcome = await cards.processor.confirm_payment(
        made.payment_ref, key="cf:1", method_ref=card, off_session=True, return_url=None
    )
    assert isinstance(outcome, Succeeded)
    assert (outcome.payment.captured_cents, await cards.taken_cents()) == (2500, 2500)
    assert (await cards.processor.payment(made.payment_ref)).status == "succeeded"


async def test_a_key_makes_one_payment_and_confirms_once(cards: CardWorld) -> None:
    """55: the same key and arguments give the same answer; other arguments are refused."""
    made, card = await payment(cards)
    assert made.customer_ref is not None
    again = await cards.processor.create_payment(
        key="pi:chg_1", customer_ref=made.customer_ref, method_ref=card, amount_cents=2500, currency="usd",
        metadata={CHARGE_KEY: "chg_1"},
    )  # fmt: skip
    assert again.payment_ref == made.payment_ref
    with pytest.raises((CallerError, UpstreamError)):
        await cards.processor.create_payment(
            key="pi:chg_1", customer_ref=made.customer_ref, method_ref=card, amount_cents=9900, currency="usd",
            metadata={CHARGE_KEY: "chg_1"},
        )  # fmt: skip
    for _ in range(3):
        outcome = await cards.processor.confirm_payment(
            made.payment_ref, key="cf:1", method_ref=card, off_session=True, return_url=None
        )
        assert isinstance(outcome, Succeeded)
    # Another key cannot take the money twice either: the payment says what became of it.
    other = await cards.processor.confirm_payment(made.payment_ref, key="cf:2", method_ref=card, off_session=True, return_url=None)
    assert isinstance(other, Unknown)
    assert await cards.taken_cents() == 2500


async def test_many_at_once_make_one_payment_and_take_its_money_once(world: World) -> None:
    """55: by one key and by several, also where the same card is used for another payment meanwhile."""
    async with card_world(world, "sandbox") as cards:
        first, card = await payment(cards)
        assert first.customer_ref is not None
        made = await asyncio.gather(
            *(
                cards.processor.create_payment(
                    key="pi:chg_2", customer_ref=first.customer_ref, method_ref=card, amount_cents=700, currency="usd",
                    metadata={CHARGE_KEY: "chg_2"},
                )
                for _ in range(6)
            )
        )  # fmt: skip
        (second,) = {found.payment_ref for found in made}
        refs, keys = (first.payment_ref, second), ("cf:1", "cf:2", "cf:3")
        outcomes = await asyncio.gather(
            *(
                cards.processor.confirm_payment(ref, key=f"{key}:{ref}", method_ref=card, off_session=True, return_url=None)
                for key in keys * 2
                for ref in refs
            )
        )
        # Those whose key took the money say so; the other keys say that it was taken.
        assert all(isinstance(outcome, (Succeeded, Unknown)) for outcome in outcomes)
        taken = {outcome.payment.payment_ref for outcome in outcomes if isinstance(outcome, Succeeded)}
        assert taken == set(refs) and await cards.taken_cents() == 3200
        rows = await world.fetch("SELECT count(*) AS answers FROM sandbox_answer WHERE key LIKE 'cf:%'")
        assert rows[0]["answers"] == 2


async def test_a_payment_of_nobody_is_refused_and_its_key_can_be_used_again(world: World) -> None:
    async with card_world(world, "sandbox") as cards:
        with pytest.raises(CallerError, match="no customer"):
            await cards.processor.create_payment(
                key="pi:chg_1", customer_ref="cus_none", method_ref="pm_none", amount_cents=2500, currency="usd", metadata={}
            )
        made, _ = await payment(cards)
        assert made.status == "unconfirmed"
        outcome = await cards.processor.confirm_payment(
            "pi_none", key="cf:1", method_ref="pm_none", off_session=True, return_url=None
        )
        assert isinstance(outcome, Unknown) and "no payment" in outcome.reason


@pytest.mark.parametrize(("number", "reason"), [(LATER, "generic_decline"), (POOR, "insufficient_funds")])
async def test_a_declined_payment_says_why_and_can_be_tried_again(cards: CardWorld, number: str, reason: str) -> None:
    made, card = await payment(cards, number)
    answers = [
        await cards.processor.confirm_payment(made.payment_ref, key=key, method_ref=card, off_session=True, return_url=None)
        for key in ("cf:1", "cf:1", "cf:2")
    ]
    declined = [answer for answer in answers if isinstance(answer, Declined)]
    assert [(answer.decline.code, answer.decline.decline_code) for answer in declined] == [("card_declined", reason)] * 3
    # A repeated key repeats its answer; a new attempt is told from an old by its name.
    assert declined[0].attempt_ref == declined[1].attempt_ref != declined[2].attempt_ref
    found = await cards.processor.payment(made.payment_ref)
    assert (found.status, found.attempt_ref, await cards.taken_cents()) == ("declined", declined[2].attempt_ref, 0)


@pytest.mark.parametrize("approve", [True, False])
async def test_a_holder_authenticates_on_the_page_that_the_processor_names(cards: CardWorld, approve: bool) -> None:
    made, card = await payment(cards, HOLDER)
    away = await cards.processor.confirm_payment(made.payment_ref, key="cf:1", method_ref=card, off_session=True, return_url=None)
    assert isinstance(away, RequiresAction)
    if away.action_url is None:
        present = await cards.processor.confirm_payment(
            made.payment_ref, key="cf:2", method_ref=card, off_session=False, return_url="http://127.0.0.1/back"
        )
        assert isinstance(present, RequiresAction) and present.action_url is not None
    assert await cards.taken_cents() == 0
    await cards.authenticate(made.payment_ref, approve=approve)
    found = await cards.processor.payment(made.payment_ref)
    assert (found.status, await cards.taken_cents()) == (("succeeded", 2500) if approve else ("declined", 0))


async def test_a_canceled_payment_is_never_paid_and_a_paid_one_is_not_canceled(cards: CardWorld) -> None:
    made, card = await payment(cards)
    assert (await cards.processor.cancel_payment(made.payment_ref)).status == "canceled"
    outcome = await cards.processor.confirm_payment(
        made.payment_ref, key="cf:1", method_ref=card, off_session=True, return_url=None
    )
    assert isinstance(outcome, Unknown) and await cards.taken_cents() == 0
    paid, card = await payment(cards, key="pi:chg_2")
    await cards.processor.confirm_payment(paid.payment_ref, key="cf:3", method_ref=card, off_session=True, return_url=None)
    assert (await cards.processor.cancel_payment(paid.payment_ref)).status == "succeeded"


async def test_a_payment_is_found_by_its_charge_and_by_its_day(cards: CardWorld) -> None:
    made, _ = await payment(cards)
    assert made.customer_ref is not None
    found = await cards.processor.find_payment(made.customer_ref, "chg_1", made.created_at)
    assert found is not None and found.payment_ref == made.payment_ref
    assert await cards.processor.find_payment(made.customer_ref, "chg_other", made.created_at) is None
    assert [payment.payment_ref for payment in await cards.payments()] == [made.payment_ref]


async def test_refunds_are_bounded_by_what_was_taken_and_once_by_their_id(cards: CardWorld) -> None:
    made, card = await payment(cards)
    await cards.processor.confirm_payment(made.payment_ref, key="cf:1", method_ref=card, off_session=True, return_url=None)
    first = await cards.processor.refund(made.payment_ref, 1000, refund_id="ref_1")
    assert await cards.processor.refund(made.payment_ref, 1000, refund_id="ref_1") == first
    assert [(found.refund_id, found.amount_cents) for found in await cards.processor.refunds(made.payment_ref)] == [("ref_1", 1000)]
    with pytest.raises(CallerError):
        await cards.processor.refund(made.payment_ref, 1501, refund_id="ref_2")


async def test_a_card_is_stored_listed_and_forgotten(cards: CardWorld) -> None:
    _, person_id = await cards.payer(GOOD)
    (card,) = await cards.cards.list(person_id)
    assert (card.brand, card.last4, card.expiry_month, card.expiry_year, card.is_default) == ("visa", "4242", 12, 2034, True)
    second = await cards.add_card(person_id, POOR)
    assert [(found.last4, found.is_default) for found in await cards.cards.list(person_id)] == [("9995", True), ("4242", False)]
    customer_ref = await cards.charges.customer_ref(person_id)
    assert {found.last4 for found in await cards.processor.methods(customer_ref)} == {"4242", "9995"}
    for _ in range(2):
        await cards.processor.detach_method(second.processor_ref)
    await cards.cards.remove(person_id, second.payment_method_id)
    assert [(found.last4, found.is_default) for found in await cards.cards.list(person_id)] == [("4242", True)]
    assert await cards.processor.method(second.processor_ref) is None


async def test_a_card_that_is_refused_when_stored_is_not_stored(cards: CardWorld) -> None:
    _, person_id = await cards.payer(None)
    with pytest.raises((CallerError, Refusal)):
        await cards.add_card(person_id, REFUSED)
    assert await cards.cards.list(person_id) == []


async def test_the_sandbox_takes_test_numbers_only_and_keeps_no_number(world: World) -> None:
    async with card_world(world, "sandbox") as cards:
        _, person_id = await cards.payer(None)
        for number in ("4111 1111 1111 1111", "4242", "", "4242 4242 4242 4241"):
            with pytest.raises(CallerError, match="sandbox mode"):
                await cards.add_card(person_id, number)
        with pytest.raises(CallerError, match="expiry"):
            await cards.cards.add(person_id, CardDetails(number=GOOD, expiry_month=10, expiry_year=2026))
        await cards.add_card(person_id, "4242 4242 4242 4242")
        stored = await world.fetch("SELECT row_to_json(o)::text AS text FROM sandbox_object o")
        stored += await world.fetch("SELECT row_to_json(p)::text AS text FROM payment_method p")
        assert not [row for row in stored if "42424242" in row["text"].replace(" ", "")]


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "error_before", "error_after", "busy"])
async def test_an_answer_that_cannot_be_relied_on_is_unknown_and_the_payment_tells(world: World, kind: str) -> None:
    """54: never an exception, never a decline."""
    async with card_world(world, "stripe") as cards:
        assert cards.fake is not None
        made, card = await payment(cards)
        cards.fake.fail("confirm", kind)  # type: ignore[arg-type]
        outcome = await cards.processor.confirm_payment(
            made.payment_ref, key="cf:1", method_ref=card, off_session=True, return_url=None
        )
        assert isinstance(outcome, Unknown)
        status = (await cards.processor.payment(made.payment_ref)).status
        assert status == ("succeeded" if kind.endswith("after") else "unconfirmed")
        cards.fake.fail("GET /v1/payment_intents", "error_before")
        with pytest.raises(UpstreamError):
            await cards.processor.payment(made.payment_ref)


async def test_the_fake_repeats_a_stored_error_for_a_day_as_stripe_does(world: World) -> None:
    async with card_world(world, "stripe") as cards:
        assert cards.fake is not None
        cards.fake.fail("confirm", "error_after")
        made, card = await payment(cards)
        for hours, expected in ((0, Unknown), (12, Unknown), (25, Unknown)):
            cards.fake.now_s += hours * 3600
            outcome = await cards.processor.confirm_payment(
                made.payment_ref, key="cf:1", method_ref=card, off_session=True, return_url=None
            )
            assert isinstance(outcome, expected)
        assert await cards.taken_cents() == 2500


async def test_a_notice_is_believed_only_with_a_fresh_signature_over_its_raw_body(world: World) -> None:
    """71: also with one of several signatures, and with the older of two secrets."""
    async with card_world(world, "stripe") as cards:
        assert cards.fake is not None
        fake, body = (
            cards.fake,
            b'{"id": "evt_1", "object": "event", "type": "payment_intent.succeeded", "created": 1,'
            + (b' "data": {"object": {"id": "pi_1", "object": "payment_intent"}}}'),
        )
        event = cards.processor.event(body, fake.signature(body))
        assert (event.event_id, event.subject, event.payment_ref) == ("evt_1", "payment", "pi_1")
        stamp, good = fake.signature(body).split(",")
        assert cards.processor.event(body, f"{stamp},v1={'0' * 64},{good},v0=abc").event_id == "evt_1"
        assert cards.processor.event(body, fake.signature(body, secret="whsec_older")).event_id == "evt_1"
        assert cards.processor.event(body, fake.signature(body, at=fake.now_s - 299)).event_id == "evt_1"
        bad = [
            (body, ""), (body, "t=,v1="), (body, good), (body, stamp), (body + b" ", fake.signature(body)),
            (b"\xff", fake.signature(body)),
            (body, fake.signature(body, secret="whsec_other")), (body, fake.signature(body, at=fake.now_s - 301)),
            (body, fake.signature(body, at=fake.now_s + 301)), (b"{}", fake.signature(b"{}")), (b"[]", fake.signature(b"[]")),
        ]  # fmt: skip
        for refused, signature in bad:
            with pytest.raises(CallerError) as caught:
                cards.processor.event(refused, signature)
            assert caught.value.status == 400
