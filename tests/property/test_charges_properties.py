"""Whatever dies, and whatever becomes of notices: the cents that were taken are the cents that were credited (I24 to I27)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lava_proxy.billing.charges import Charges
from lava_proxy.billing.reconciliation import reconcile
from lava_proxy.domain.errors import LavaError
from lava_proxy.domain.money import NANOS_PER_CENT
from lava_proxy.stores.charge_store import ChargeStore
from lava_proxy.workers.credit_applier import CreditApplier
from tests.billing_world import World, billing_world
from tests.card_world import GOOD, HOLDER, POOR, CardWorld, card_world
from tests.engines import RunningEngines, flush_redis, fresh_database


class Killed(BaseException):
    """The process dies here: nothing of ours catches it."""


class Deadly:
    """Counts the awaits through an object and dies at one of them: before the call, or after it and before its answer is seen."""

    def __init__(self, inner: Any, fuse: Fuse, names: tuple[str, ...]) -> None:
        self._inner, self._fuse, self._names = inner, fuse, names

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self._names:
            return found

        async def call(*args: Any, **options: Any) -> Any:
            self._fuse.burn()
            answer = await found(*args, **options)
            self._fuse.burn()
            return answer

        return call


class Fuse:
    def __init__(self, steps: int) -> None:
        self.left = steps

    def burn(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


class DeadlyStore(ChargeStore):
    """A store whose transactions die: at their start, inside after their last statement, or right after their commit."""

    fuse: Fuse

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        self.fuse.burn()
        async with super().transaction() as db:
            yield db
            self.fuse.burn()
        self.fuse.burn()


_PROCESSOR_CALLS = (
    "create_customer", "create_payment", "confirm_payment", "payment", "find_payment", "cancel_payment", "refunds", "disputes",
)  # fmt: skip


def doomed(cards: CardWorld, steps: int) -> Charges:
    """Charges as a process has them that dies after so many steps."""
    fuse = Fuse(steps)
    store = DeadlyStore(cards.world.pool)
    store.fuse = fuse
    processor: Any = Deadly(cards.processor, fuse, _PROCESSOR_CALLS)
    return Charges(store, processor, cards.world.funding, cards.clock)


@pytest.fixture
async def world(engines: RunningEngines) -> AsyncIterator[World]:
    await flush_redis(engines.redis_url)
    async with fresh_database(engines.database_url) as url, billing_world(engines.redis_url, url) as made:
        yield made


async def check(cards: CardWorld, wallet_id: str, taken_before: int) -> None:
    """After the workers have had their hours: nothing open, everything even, at most one success a charge."""
    await cards.run(rounds=14)
    await cards.run(rounds=26, step=timedelta(hours=1))
    await CreditApplier(cards.world.catalog, cards.world.funding).run_once()  # who died between order and application
    taken = await cards.taken_cents() - taken_before
    charges = await cards.store.charges(wallet_id)
    assert [charge.state for charge in charges if charge.is_open] == []
    assert sum(charge.captured_cents for charge in charges if charge.state == "succeeded") == taken
    assert await cards.ordered_nanos(wallet_id) == taken * NANOS_PER_CENT
    assert (await cards.world.state(wallet_id)).balance_nanos == taken * NANOS_PER_CENT


@pytest.mark.parametrize("kind", ["sandbox", "stripe"])
async def test_a_charge_survives_a_crash_at_every_single_step(world: World, kind: Any) -> None:
    """I24, I25, 56: killed at step 1, then at step 2, ... until it runs through; afterwards taken is credited, once."""
    async with card_world(world, kind) as cards:
        for steps in range(1, 200):
            wallet_id, _ = await cards.payer()
            before = await cards.taken_cents()
            charge = await cards.open(wallet_id, 2500)
            try:
                done = await doomed(cards, steps).advance(charge.charge_id)
            except Killed:
                cards.clock.advance(timedelta(minutes=3))
                for _ in range(3):
                    await cards.charger.run_once()
                    cards.clock.advance(timedelta(seconds=61))
                done = await cards.store.charge(charge.charge_id)
                if done.is_open:  # confirmed by nobody: called off within minutes
                    await cards.run(rounds=6)
                    done = await cards.store.charge(charge.charge_id)
                taken = await cards.taken_cents() - before
                assert (done.state, taken) in (("succeeded", 2500), ("canceled", 0)), steps
                assert await cards.ordered_nanos(wallet_id) == taken * NANOS_PER_CENT
                continue
            assert done.state == "succeeded" and steps > 10
            return
        raise AssertionError("the charge never ran through")


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("pay"), st.integers(50, 5000)),
        st.tuples(st.just("pay_and_die"), st.integers(1, 24)),
        st.tuples(st.just("work_and_die"), st.integers(1, 24)),
        st.tuples(st.just("work"), st.integers(1, 400)),
        st.tuples(st.just("fault"), st.sampled_from(["drop_before", "drop_after", "error_before", "error_after", "busy"])),
        st.tuples(st.just("notice"), st.integers(0, 30)),
        st.tuples(st.just("notices_reversed"), st.integers(0, 0)),
        st.tuples(st.just("card"), st.sampled_from([GOOD, POOR, HOLDER])),
        st.tuples(st.just("bank"), st.booleans()),
        st.tuples(st.just("race"), st.integers(2, 4)),
    ),
    min_size=3,
    max_size=14,
)


async def act(cards: CardWorld, wallet_id: str, person_id: str, action: str, value: Any) -> None:
    fake = cards.fake
    newest = next(iter(await cards.store.charges(wallet_id)), None)
    if action in ("pay", "pay_and_die"):
        amount = value if action == "pay" else 700
        charge = await cards.open(wallet_id, amount, purpose="overage")
        charges = cards.charges if action == "pay" else doomed(cards, value)
        await charges.advance(charge.charge_id)
    elif action == "work":
        cards.clock.advance(timedelta(minutes=value))
        await cards.charger.run_once()
    elif action == "work_and_die" and newest is not None:
        cards.clock.advance(timedelta(minutes=10))
        await doomed(cards, value).advance(newest.charge_id)
    elif action == "race" and newest is not None:
        await asyncio.gather(
            *(cards.charges.advance(newest.charge_id) for _ in range(value)), cards.charges.refresh(newest.charge_id)
        )
    elif action == "fault" and fake is not None:
        fake.fail("POST /v1/payment_intents", value)
    elif action == "notice" and fake is not None and fake.events:
        await cards.send(fake.events[-1 - value % len(fake.events)])
    elif action == "notices_reversed" and fake is not None:
        for event in reversed(fake.events[-12:]):
            await cards.send(event)
    elif action == "card":
        await cards.add_card(person_id, value)
    elif action == "bank" and newest is not None and newest.state == "requires_action":
        charge = await cards.charges.authenticate(newest.charge_id, "http://127.0.0.1/back")
        if charge.state == "requires_action":
            await cards.authenticate(charge.processor_ref, approve=value)


@pytest.mark.parametrize("kind", ["sandbox", "stripe"])
async def test_no_order_of_notices_crashes_and_faults_parts_taken_from_credited(world: World, kind: Any) -> None:
    """I24, I25, I26, I27, 69, 74: over random histories."""
    loop = asyncio.get_running_loop()

    async def history(actions: list[tuple[str, Any]]) -> None:
        wallet_id, person_id = await cards.payer()
        before = await cards.taken_cents()
        for action, value in actions:
            try:
                await act(cards, wallet_id, person_id, action, value)
            except (Killed, LavaError):
                pass  # refused, held off, or dead: what follows must cope
        if cards.fake is not None:
            cards.fake.faults.clear()
        since = cards.clock()
        await check(cards, wallet_id, before)
        # I27, for the days of this history.
        for days in range(-1, 3):
            report = await reconcile(cards.store, cards.processor, (since + timedelta(days=days)).date())
            assert report["met"], report

    @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(ACTIONS)
    def histories(actions: list[tuple[str, Any]]) -> None:
        asyncio.run_coroutine_threadsafe(history(actions), loop).result(120)

    async with card_world(world, kind) as cards:
        await asyncio.to_thread(histories)
