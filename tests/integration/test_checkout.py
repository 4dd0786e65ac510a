"""billing/checkout.py: who is at the page is proved, what is shown is paid once, and what is paid is completed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from lava_proxy.billing.checkout import Visit
from lava_proxy.domain.checkout import VALID_FOR
from lava_proxy.domain.errors import CallerError, Conflict, Forbidden, LimitExceeded, NotFound
from lava_proxy.payments.processor import CardDetails
from lava_proxy.stores.vault import Vault, new_master_key
from lava_proxy.stores.webhook_store import WebhookStore
from tests.billing_world import World
from tests.card_world import HOLDER, LATER
from tests.checkout_world import RETURN, CheckoutWorld, KeptSms, checkout_world

HERE, THERE = Visit(token="v" * 40, address="203.0.113.1"), Visit(token="w" * 40, address="203.0.113.2")


@pytest.fixture
async def shop(world: World) -> AsyncIterator[CheckoutWorld]:
    async with checkout_world(world) as made:
        yield made


async def listen(shop: CheckoutWorld) -> None:
    """Somebody wants to hear of events."""
    await WebhookStore(shop.world.pool, Vault(new_master_key())).create(
        shop.world.merchant_id, name="w", url="https://r.example", vocabulary="customer", events=None, status="active",
        now=shop.clock(),
    )  # fmt: skip


async def test_a_new_customer_subscribes_and_is_told_of_once_paid(shop: CheckoutWorld) -> None:
    """67, I25: many clicks are one charge, one customer, one cycle's credit."""
    await listen(shop)
    session = await shop.ready(await shop.session("subscription", plan_id=(await shop.plan()).plan_id), HERE)
    assert await shop.events() == []
    done = await asyncio.gather(*(shop.checkout.pay(session, HERE, 2500, RETURN) for _ in range(4)), return_exceptions=True)
    assert any(result is None for result in done)
    assert await shop.step(session, HERE) == "done"
    session = await shop.again(session)
    assert session.state == "completed" and session.connection_id is not None
    customer = await shop.world.catalog.connection(shop.world.merchant_id, session.connection_id)
    assert customer is not None and customer.contact["phone"] == "+14155550100"
    charges = await shop.charge_store.charges(customer.wallet_id)
    assert [(charge.purpose, charge.captured_cents) for charge in charges] == [("subscription_start", 2500)]
    live = await shop.plans.live_subscription(session.connection_id)
    assert live is not None and live.terms.name == "Pro"
    assert await shop.events() == ["customer.created"]
    with pytest.raises(CallerError, match="closed"):
        await shop.checkout.pay(session, HERE, 2500, RETURN)


async def test_a_payment_that_ends_after_a_crash_completes_its_session(
    shop: CheckoutWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64: the worker finishes what a dead process began; the session follows in the same transaction."""
    session = await shop.ready(await shop.session(), HERE)

    async def dies(charge_id: str) -> None:
        raise ConnectionError("killed")

    with monkeypatch.context() as until_then:
        until_then.setattr(shop.charges, "advance", dies)
        with pytest.raises(ConnectionError):
            await shop.checkout.pay(session, HERE, 2500, RETURN)
    assert await shop.step(session, HERE) == "processing"
    for charge_id in await shop.charge_store.due("sandbox", shop.clock(), 10):
        await shop.charges.advance(charge_id)
    assert await shop.step(session, HERE) == "done"


async def test_a_decline_leaves_the_session_open_for_another_card(shop: CheckoutWorld) -> None:
    """I26"""
    session = await shop.ready(await shop.session(), HERE, card=LATER)
    await shop.checkout.pay(session, HERE, 2500, RETURN)
    session = await shop.again(session)
    view = await shop.checkout.view(session, HERE)
    assert (view.step, view.declined, session.attempt) == ("review", "Your card was declined.", 2)
    await shop.checkout.add_card(session, HERE, CardDetails(number="4242424242424242", expiry_month=1, expiry_year=2030))
    view = await shop.checkout.view(session, HERE)
    assert view.declined is None, "another card is not to blame"
    await shop.checkout.pay(session, HERE, 2500, RETURN)
    assert await shop.step(session, HERE) == "done"
    customer = (await shop.again(session)).connection_id
    assert customer is not None
    found = await shop.world.catalog.connection(shop.world.merchant_id, customer)
    assert found is not None
    assert (await shop.world.state(found.wallet_id)).funds_available == 25_000_000_000


async def test_a_card_that_needs_its_holder_waits_and_completes(shop: CheckoutWorld) -> None:
    session = await shop.ready(await shop.session(), HERE, card=HOLDER)
    await shop.checkout.pay(session, HERE, 2500, RETURN)
    view = await shop.checkout.view(await shop.again(session), HERE)
    assert view.step == "authenticate" and view.charge is not None and view.charge.return_url == RETURN
    assert not await shop.checkout.cancel(session), "what is being paid cannot be cancelled"
    with pytest.raises(Conflict):
        await shop.checkout.choose_amount(await shop.again(session), HERE, 9999_00)
    await shop.processor.authenticate(view.charge.processor_ref, approve=True)
    await shop.checkout.refresh(await shop.again(session))
    assert await shop.step(session, HERE) == "done"


async def test_only_the_visit_that_proved_the_phone_acts(shop: CheckoutWorld) -> None:
    """A session cannot be fixed on a victim: who has the link still needs the phone, and the last proof takes it over."""
    session = await shop.ready(await shop.session(), HERE)
    assert await shop.step(session, THERE) == "phone" and await shop.step(session, None) == "phone"
    for act in (
        shop.checkout.pay(session, THERE, 2500, RETURN),
        shop.checkout.choose_amount(session, THERE, 1000),
        shop.checkout.begin_card(session, THERE),
    ):
        with pytest.raises(Forbidden):
            await act
    other = await shop.session()
    await shop.checkout.send_code(other, HERE, "+14155550100")
    with pytest.raises(CallerError, match="expired"):
        await shop.checkout.check_code(other, THERE, shop.sms.sent[-1][1] or "")
    session = await shop.verified(session, THERE)
    assert await shop.step(session, THERE) == "review" and await shop.step(session, HERE) == "phone"


async def test_a_code_is_good_once_for_five_tries_and_few_are_sent(shop: CheckoutWorld) -> None:
    """A guess has five chances in a million; many at once are all counted."""
    session = await shop.session()
    await shop.checkout.send_code(session, HERE, "+14155550100")
    with pytest.raises(LimitExceeded) as refused:
        await shop.checkout.resend_code(session, HERE)
    assert refused.value.code == "too_many_codes" and refused.value.retry_after_s == 30
    right = shop.sms.sent[-1][1] or ""
    wrong = f"{(int(right) + 1) % 1_000_000:06d}"
    tries = await asyncio.gather(*(shop.checkout.check_code(session, HERE, wrong) for _ in range(8)), return_exceptions=True)
    codes = sorted(error.code for error in tries if isinstance(error, CallerError))
    assert codes.count("code_wrong") == 5 and set(codes) <= {"code_wrong", "too_many_tries", "code_expired"}
    with pytest.raises(CallerError):
        await shop.checkout.check_code(session, HERE, right)
    for number in range(5):
        other = Visit(token=str(number) * 40, address="203.0.113.7")
        try:
            await shop.checkout.send_code(await shop.session(), other, "+14155550100")
        except LimitExceeded:
            break
    else:
        pytest.fail("one phone got more than five codes in an hour")
    assert len([phone for phone, _ in shop.sms.sent if phone == "+14155550100"]) == 5


async def test_a_phone_gets_ten_codes_a_day_over_all_sessions_visits_and_addresses(shop: CheckoutWorld) -> None:
    """Each code is five guesses: who may ask for five an hour for ever would find the right one in the end."""
    redis, refusals = shop.world.redis, []
    for number in range(12):
        for key in await redis.keys("verify:count:*:3600"):  # an hour later
            await redis.delete(key)
        visit = Visit(token=f"{number:040d}", address=f"203.0.113.{number}")
        try:
            await shop.checkout.send_code(await shop.session(), visit, "+14155550111")
        except LimitExceeded as error:
            refusals.append(error)
    assert len(shop.sms.sent) == 10 and len(refusals) == 2
    assert (refusals[0].retry_after_s or 0) > 80_000 and refusals[0].message.endswith("24 hours.")
    await shop.checkout.send_code(await shop.session(), HERE, "+14155550112")


async def test_a_provider_that_makes_its_own_codes_checks_them(world: World) -> None:
    async with checkout_world(world, sms=KeptSms(makes_codes=True)) as shop:
        session = await shop.session()
        await shop.checkout.send_code(session, HERE, "+14155550100")
        assert shop.sms.sent == [("+14155550100", None)]
        with pytest.raises(CallerError, match="not the code"):
            await shop.checkout.check_code(session, HERE, "111111")
        await shop.checkout.check_code(session, HERE, "42 42 42")
        assert await shop.step(session, HERE) == "amount"


async def test_a_known_customers_code_goes_to_the_phone_on_file_whatever_is_typed(shop: CheckoutWorld) -> None:
    made = await shop.world.catalog.create_connection(
        shop.world.merchant_id, reference_id="user-1", contact={"phone": "+14155550177"}
    )
    await shop.world.funding.open_wallet(made.wallet_id)
    session = await shop.session("topup", customer="user-1")
    view = await shop.checkout.view(session, None)
    assert (view.is_phone_fixed, view.masked_phone) == (True, "•••• 77")
    await shop.checkout.send_code(session, HERE, "+14155559999")
    assert shop.sms.sent[-1][0] == "+14155550177"
    session = await shop.session(reference_id="user-1")
    assert session.connection_id == made.connection_id, "a reference id names who there is already"


async def test_a_code_asked_for_before_a_phone_came_on_file_makes_nobody_the_payer(shop: CheckoutWorld) -> None:
    """Who had the link first, with a phone of their own, does not get the customer of who confirmed first."""
    made = await shop.world.catalog.create_connection(shop.world.merchant_id, reference_id="user-2")
    await shop.world.funding.open_wallet(made.wallet_id)
    session = await shop.session("topup", customer="user-2")
    await shop.checkout.send_code(session, THERE, "+14155559999")
    early = shop.sms.sent[-1][1] or ""
    session = await shop.ready(session, HERE, card=HOLDER)
    payer = await shop.charge_store.wallet_person(made.wallet_id)
    for is_paying in (False, True):
        if is_paying:
            await shop.checkout.pay(session, HERE, 2500, RETURN)
            await shop.checkout.forget_phone(session, THERE)
            await shop.checkout._verification._codes.put(f"{session.checkout_session_id}:{THERE.hash.hex()}", "+14155559999", early)
        with pytest.raises(Conflict) as refused:
            await shop.checkout.check_code(await shop.again(session), THERE, early)
        assert refused.value.code == "phone_changed"
        assert await shop.charge_store.wallet_person(made.wallet_id) == payer
        assert await shop.step(session, THERE) == "phone"
    assert await shop.step(session, HERE) == "authenticate"


async def test_of_two_who_confirm_at_once_one_pays_for_the_customer(shop: CheckoutWorld) -> None:
    """67: two links, two phones, one customer: the second is refused and no session is theirs."""
    for attempt in range(4):
        made = await shop.world.catalog.create_connection(shop.world.merchant_id, reference_id=f"both-{attempt}")
        await shop.world.funding.open_wallet(made.wallet_id)
        sessions = [await shop.session("topup", customer=made.connection_id) for _ in range(2)]
        visits, codes = (HERE, THERE), []
        for number, visit in enumerate(visits):
            await shop.checkout.send_code(sessions[number], visit, f"+1415555{attempt}{number}00")
            codes.append(shop.sms.sent[-1][1] or "")
        ends = await asyncio.gather(
            *(shop.checkout.check_code(sessions[n], visits[n], codes[n]) for n in (0, 1)), return_exceptions=True
        )
        assert sorted(str(getattr(end, "code", end)) for end in ends) == ["None", "phone_changed"]
        winner = ends.index(None)
        assert (await shop.again(sessions[winner])).state == "verified" and (await shop.again(sessions[1 - winner])).state == "open"
        person = await shop.charge_store.person((await shop.charge_store.wallet_person(made.wallet_id)) or "", "sandbox")
        assert person.phone == f"+1415555{attempt}{winner}00"


async def test_two_people_in_one_session_never_pay_for_each_others_customer(shop: CheckoutWorld) -> None:
    """67: the first is paying while the second takes the session over; the customer whom it makes stays the first's."""
    first = await shop.ready(await shop.session(), HERE)
    second = await shop.ready(first, THERE, phone="+14155550188")
    await shop.checkout.pay(first, HERE, 2500, RETURN)
    with pytest.raises(CallerError) as refused:
        await shop.checkout.pay(second, THERE, 2500, RETURN)
    assert refused.value.code == "phone_changed"
    connection_id = (await shop.again(first)).connection_id
    customer = await shop.world.catalog.connection(shop.world.merchant_id, connection_id or "")
    assert customer is not None and await shop.charge_store.wallet_person(customer.wallet_id) == first.person_id
    assert [charge.person_id for charge in await shop.charge_store.charges(customer.wallet_id)] == [first.person_id]


async def test_a_person_known_to_the_merchant_stays_one_customer_and_keeps_their_card(shop: CheckoutWorld) -> None:
    first = await shop.ready(await shop.session(), HERE)
    await shop.checkout.pay(first, HERE, 2500, RETURN)
    second = await shop.verified(await shop.session("subscription", plan_id=(await shop.plan()).plan_id), THERE)
    view = await shop.checkout.view(second, THERE)
    assert view.step == "review" and view.card is not None and view.card.last4 == "4242"
    await shop.checkout.pay(second, THERE, 2500, RETURN)
    assert (await shop.again(second)).connection_id == (await shop.again(first)).connection_id


async def test_what_changed_since_it_was_shown_is_shown_again_and_not_charged(shop: CheckoutWorld) -> None:
    session = await shop.ready(await shop.session(), HERE)
    with pytest.raises(Conflict) as refused:
        await shop.checkout.pay(session, HERE, 1000, RETURN)
    assert refused.value.code == "price_changed"
    assert await shop.step(session, HERE) == "review"
    for cents in (999, 10_000_01, -5):
        with pytest.raises(CallerError, match="from \\$10 to \\$10,000"):
            await shop.checkout.choose_amount(session, HERE, cents)


async def test_a_bundle_needs_the_plan_it_belongs_to(shop: CheckoutWorld) -> None:
    plan = await shop.plan(bundles=True)
    bundle = plan.bundles[0].credit_bundle_id
    made = await shop.world.catalog.create_connection(shop.world.merchant_id, contact={"phone": "+14155550133"})
    await shop.world.funding.open_wallet(made.wallet_id)
    with pytest.raises(Conflict) as refused:
        await shop.session("credit_bundle", customer=made.connection_id, credit_bundle_id=bundle)
    assert refused.value.code == "bundle_needs_subscription"
    start = await shop.session("subscription", customer=made.connection_id, plan_id=plan.plan_id)
    await shop.checkout.pay(await shop.ready(start, HERE, phone="+14155550133"), HERE, 2500, RETURN)
    buy = await shop.session("credit_bundle", customer=made.connection_id, credit_bundle_id=bundle)
    buy = await shop.verified(buy, THERE, "+14155550133")
    await shop.checkout.pay(buy, THERE, 1000, RETURN)
    assert await shop.step(buy, THERE) == "done"
    rows = await shop.world.fetch("SELECT amount_nanos FROM credit WHERE wallet_id = $1 AND reason = 'bundle'", made.wallet_id)
    assert [row["amount_nanos"] for row in rows] == [12_000_000_000]


async def test_a_free_plan_needs_no_card(shop: CheckoutWorld) -> None:
    session = await shop.verified(await shop.session("subscription", plan_id=(await shop.plan(cents=0)).plan_id), HERE)
    view = await shop.checkout.view(session, HERE)
    assert view.step == "review" and view.card is None
    await listen(shop)
    await shop.checkout.pay(session, HERE, 0, RETURN)
    assert await shop.step(session, HERE) == "done" and await shop.events() == ["customer.created"]


async def test_sessions_expire_are_cancelled_and_then_refuse(shop: CheckoutWorld) -> None:
    session = await shop.session()
    assert await shop.checkout.cancel(session) and not await shop.checkout.cancel(session)
    assert await shop.step(session, None) == "cancelled"
    late = await shop.ready(await shop.session(), HERE)
    shop.clock.advance(VALID_FOR + timedelta(seconds=1))
    assert await shop.step(late, HERE) == "expired"
    for refused in (
        shop.checkout.send_code(late, HERE, "+14155550100"),
        shop.checkout.pay(late, HERE, 2500, RETURN),
        shop.checkout.check_code(await shop.again(session), HERE, "123456"),
    ):
        with pytest.raises(CallerError, match="closed"):
            await refused
    with pytest.raises(NotFound):
        await shop.checkout.session("css_test_nothing")


async def test_a_customers_page_shows_and_changes_only_theirs(shop: CheckoutWorld) -> None:
    session = await shop.session("subscription", plan_id=(await shop.plan()).plan_id)
    await shop.checkout.pay(await shop.ready(session, HERE), HERE, 2500, RETURN)
    customer = await shop.world.catalog.connection(
        shop.world.merchant_id, (await shop.again(session)).connection_id or ""
    )  # fmt: skip
    assert customer is not None
    page = await shop.checkout.create_portal(customer, origin_url="https://shop.example", is_test=True)
    with pytest.raises(Forbidden):
        await shop.checkout.cancel_plan(page, THERE)
    page = await shop.verified(page, THERE)
    view = await shop.checkout.view(page, THERE)
    assert view.step == "portal" and view.account is not None and view.account.subscription is not None
    assert [charge.captured_cents for charge in view.account.receipts] == [2500]
    await shop.checkout.choose_amount(page, THERE, 1000)
    await shop.checkout.pay(await shop.again(page), THERE, 1000, RETURN)
    page = await shop.again(page)
    assert (page.state, page.amount_cents, page.attempt) == ("verified", None, 2), "the page goes on"
    assert await shop.step(page, THERE) == "portal"
    receipt = (await shop.checkout.account(page)).receipts[0]
    assert (await shop.checkout.receipt(page, THERE, receipt.charge_id)).captured_cents == 1000
    with pytest.raises(NotFound):
        await shop.checkout.receipt(page, THERE, "chg_of_somebody_else")
    await shop.checkout.cancel_plan(page, THERE)
    live = await shop.plans.live_subscription(customer.connection_id)
    assert live is not None and live.pending == {"type": "cancellation"}
    await shop.checkout.keep_plan(page, THERE)
    live = await shop.plans.live_subscription(customer.connection_id)
    assert live is not None and live.pending is None


async def test_no_secret_is_stored_as_it_is(shop: CheckoutWorld) -> None:
    """Nor is a visit's token, nor a code."""
    session = await shop.ready(await shop.session(), HERE)
    rows = str(await shop.world.fetch("SELECT * FROM checkout_session"))
    assert session.secret not in rows and HERE.token not in rows
    await shop.checkout.send_code(session, THERE, "+14155550100")
    kept = [await shop.world.redis.get(key) for key in await shop.world.redis.keys("verify:code:*")]
    assert kept and all((shop.sms.sent[-1][1] or "").encode() not in (value or b"") for value in kept)
