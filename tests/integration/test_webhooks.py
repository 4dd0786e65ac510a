"""Webhooks from the ledger to a receiver over real stores: what is told, how often, in which order, and what failures do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks import Webhook as StandardWebhook

from lava_proxy.domain.webhooks import BALANCE_UPDATED, CUSTOMER_CREATED, CUSTOMER_DELETED, ORDERED_TRIES, Vocabulary
from lava_proxy.notify.webhook_client import WebhookClient
from lava_proxy.settings import Webhooks as WebhookSettings
from lava_proxy.stores.customer_store import CustomerStore
from lava_proxy.stores.vault import Vault, new_master_key
from lava_proxy.stores.webhook_events import WALLET_BACKLOG_MAX, add_event
from lava_proxy.stores.webhook_store import Webhook, WebhookStore
from lava_proxy.workers.webhook_sender import WebhookSender
from tests.billing_world import World
from tests.webhook_receiver import Receiver, running_receiver

SETTINGS = WebhookSettings(
    timeout_s=1, lease_s=30, concurrency_max=64, endpoint_concurrency_max=8, keep_days=30, allow_private=1
)  # fmt: skip


@dataclass(slots=True)
class Shop:
    """A merchant's side (world), its receiver, and a sender with a clock that only tests move."""

    world: World
    receiver: Receiver
    store: WebhookStore
    client: WebhookClient
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    jitter: int = 500

    def sender(self, **changes: Any) -> WebhookSender:
        settings = WebhookSettings(**{name: changes.get(name, getattr(SETTINGS, name)) for name in WebhookSettings.__slots__})
        return WebhookSender(self.store, self.client, settings, clock=lambda: self.now, jitter=lambda: self.jitter)

    async def endpoint(self, vocabulary: Vocabulary = "customer", events: list[str] | None = None, url: str = "") -> Webhook:
        return await self.store.create(
            self.world.merchant_id, name="test", url=url or self.receiver.url, vocabulary=vocabulary, events=events,
            status="active", now=self.now,
        )  # fmt: skip

    async def send(self, sender: WebhookSender | None = None) -> int:
        """Rounds until nothing is due; how much was done."""
        sender = sender or self.sender()
        total = 0
        while done := await sender.run_once():
            total += done
            await sender.drain()
        return total

    async def pass_time(self, **delta: Any) -> int:
        self.now += timedelta(**delta)
        return await self.send()

    async def deliveries(self) -> list[dict[str, Any]]:
        return await self.world.fetch(
            "SELECT d.*, e.type, e.sequence FROM delivery d JOIN event e USING (event_id) ORDER BY e.ordinal"
        )

    async def webhook(self, webhook: Webhook) -> Webhook:
        return await self.store.webhook(webhook.merchant_id, webhook.webhook_id)


@pytest.fixture
async def shop(world: World) -> AsyncIterator[Shop]:
    vault = Vault(new_master_key())
    world.catalog = type(world.catalog)(world.pool, vault)  # the sender opens what the catalogue seals
    async with running_receiver() as receiver:
        client = WebhookClient(timeout_s=1, connections_max=64, allow_private=True, clock=lambda: datetime.now(UTC))
        await client.open()
        yield Shop(world, receiver, WebhookStore(world.pool, vault), client)
        receiver.released.set()
        await client.close()


async def test_a_customer_that_was_made_is_told_with_every_signature_right(shop: Shop) -> None:
    webhook = await shop.endpoint()
    made = await shop.world.catalog.create_connection(
        shop.world.merchant_id, reference_id="user-1", contact={"email": "a@b.example"}, metadata={"team": "red"}
    )
    await shop.send()
    [received] = shop.receiver.received
    assert webhook.secret is not None and received.is_signed_with(webhook.secret)
    assert StandardWebhook(webhook.secret).verify(received.raw, received.headers) == received.body
    assert received.headers["webhook-id"] == received.body["id"]
    assert received.headers["x-lava-signature"].startswith(f"t={received.headers['webhook-timestamp']},v1=")
    data = received.body["data"]
    assert (received.name, received.body["sequence"]) == (CUSTOMER_CREATED, 0)
    assert data["customer_id"] == data["customer"]["customer_id"] == made.connection_id
    assert (data["reference_id"], data["metadata"], data["contact"]["email"]) == ("user-1", {"team": "red"}, "a@b.example")
    assert (data["subscription"]["name"], data["balance"]) == ("Free", "0.0000000000")
    assert await shop.send() == 0


@pytest.mark.parametrize(
    "text",
    ['{"n": 123456789012345678901234567890}', '{"n": 0.10000000000000000001}', '{"n": ' + "[" * 300 + "]" * 300 + "}", "null"],
)
async def test_whatever_metadata_a_merchant_keeps_passes_through_as_it_is(shop: Shop, text: str) -> None:
    await shop.endpoint("connection")
    await shop.endpoint("customer")
    made = await shop.world.catalog.create_connection(shop.world.merchant_id)
    await shop.send()
    await shop.world.pool.execute("UPDATE connection SET metadata = $1", text.encode())
    async with shop.world.pool.acquire() as db, db.transaction():
        await add_event(
            db, merchant_id=shop.world.merchant_id, event_type=CUSTOMER_DELETED, at=shop.now, connection_id=made.connection_id
        )
    await shop.send()
    for received in shop.receiver.received[-2:]:
        assert received.name.endswith(".deleted") and b'"metadata":' + text.encode() in received.raw


async def test_the_deletion_of_a_customer_is_told_once_with_what_it_was(shop: Shop) -> None:
    """76: outgoing_event_once_per_transition; two deletions at the same time are one."""
    await shop.endpoint(events=[CUSTOMER_DELETED])
    made = await shop.world.catalog.create_connection(shop.world.merchant_id, reference_id="user-7")
    customers = CustomerStore(shop.world.pool, lambda: shop.now)
    done = await asyncio.gather(*(customers.delete(made.merchant_id, made.connection_id) for _ in range(3)))
    assert sorted(done) == [False, False, True]
    await shop.send()
    [received] = shop.receiver.received
    assert received.name == CUSTOMER_DELETED and made.connection_id.encode() in received.raw and b"user-7" in received.raw


async def test_each_endpoint_hears_its_own_vocabulary_and_only_what_it_selected(shop: Shop) -> None:
    await shop.endpoint("connection")
    await shop.endpoint("customer", [BALANCE_UPDATED])
    wallet = await shop.world.wallet(5_000_000_000)
    await shop.world.flush()
    await shop.send()
    assert sorted(one.name for one in shop.receiver.received) == [
        "connection.created", "connection.wallet.balance.updated", "customer.wallet.balance.updated",
    ]  # fmt: skip
    [old] = shop.receiver.named("connection.wallet.balance.updated")
    [connection] = await shop.world.catalog.connections(shop.world.merchant_id, before=None, limit=9)
    assert connection.wallet_id == wallet
    assert old["data"]["connection_id"] == connection.connection_id
    assert old["data"]["connection_secret"] == connection.secret
    assert old["data"]["wallet"]["balance"] == "5.0000000000" and old["data"]["has_lava_credit_balance"] is True
    stored = await shop.world.fetch("SELECT customer::text || facts::text AS text FROM event")
    assert all((connection.secret or "") not in row["text"] for row in stored)


async def test_without_an_endpoint_nothing_is_written(shop: Shop) -> None:
    """Also not for another merchant's customers, nor for a disabled endpoint."""
    webhook = await shop.endpoint()
    await shop.store.update(webhook.merchant_id, webhook.webhook_id, {"status": "disabled"}, shop.now)
    wallet = await shop.world.wallet(1_000)
    other = await shop.world.catalog.create_merchant("other")
    await shop.world.catalog.create_connection(other.merchant_id)
    await shop.world.call(wallet, 1)
    await shop.world.flush()
    assert await shop.send() == 0
    for table in ("event", "delivery", "balance_news", "event_once"):
        assert await shop.world.fetch(f"SELECT * FROM {table}") == []


async def test_balances_are_told_once_a_second_and_the_last_one_always(shop: Shop) -> None:
    """The first change at once, all of the next second together at its end; the sequence is the wallet's."""
    await shop.endpoint(events=[BALANCE_UPDATED])
    wallet = await shop.world.wallet(1_000_000_000)
    await shop.world.flush()
    await shop.send()
    assert [body["data"]["balance"] for body in shop.receiver.named(BALANCE_UPDATED)] == ["1.0000000000"]
    for _ in range(10):
        await shop.world.call(wallet, 10_000_000)
        await shop.world.flush()
        await shop.pass_time(milliseconds=90)
    assert len(shop.receiver.received) == 1  # 900 ms later
    await shop.pass_time(milliseconds=100)
    await shop.pass_time(seconds=100)
    bodies = shop.receiver.named(BALANCE_UPDATED)
    assert [body["data"]["balance"] for body in bodies] == ["1.0000000000", "0.9000000000"]
    assert [body["sequence"] for body in bodies] == [1, 11]
    for _ in range(5):  # over five seconds with changes all the time: five events
        for _ in range(4):
            await shop.world.call(wallet, 1_000_000)
            await shop.world.flush()
            await shop.pass_time(milliseconds=250)
    assert len(shop.receiver.received) == 2 + 5
    await shop.pass_time(seconds=2)
    last = shop.receiver.named(BALANCE_UPDATED)[-1]
    state = await shop.world.state(wallet)
    assert (last["sequence"], last["data"]["balance"]) == (state.wseq, "0.8800000000")


async def test_a_batch_that_is_flushed_again_tells_nothing_again(shop: Shop) -> None:
    """76: killed between COMMIT and trim, the flusher finds the same entries; an event belongs to a change, not to a reading."""
    await shop.endpoint(events=[BALANCE_UPDATED])
    await shop.world.wallet(1_000)

    def die() -> None:
        raise ZeroDivisionError

    with suppress(ZeroDivisionError):
        await shop.world.flusher(after_commit=die).run_once(wait=False)
    await shop.send()
    await shop.world.flush()
    await shop.pass_time(seconds=10)
    assert len(shop.receiver.received) == 1


async def test_one_transition_makes_one_event_however_often_it_is_noticed(shop: Shop) -> None:
    """76: outgoing_event_once_per_transition, also when several notice it at the same time."""
    await shop.endpoint(events=[CUSTOMER_DELETED])
    made = await shop.world.catalog.create_connection(shop.world.merchant_id)

    async def notice() -> str | None:
        async with shop.world.pool.acquire() as db, db.transaction():
            return await add_event(
                db, merchant_id=shop.world.merchant_id, event_type=CUSTOMER_DELETED, at=shop.now,
                connection_id=made.connection_id, transition=made.connection_id,
            )  # fmt: skip

    told = [event_id for event_id in await asyncio.gather(*(notice() for _ in range(5))) if event_id]
    for _ in range(3):
        assert await notice() is None
        await shop.pass_time(minutes=1)
    assert len(told) == 1 and shop.receiver.ids() == told


async def test_an_event_whose_transaction_fails_is_not_told(shop: Shop) -> None:
    await shop.endpoint()
    made = await shop.world.catalog.create_connection(shop.world.merchant_id)
    with suppress(ZeroDivisionError):
        async with shop.world.pool.acquire() as db, db.transaction():
            await add_event(
                db, merchant_id=shop.world.merchant_id, event_type=CUSTOMER_DELETED, at=shop.now, connection_id=made.connection_id
            )
            raise ZeroDivisionError
    await shop.send()
    assert [one.name for one in shop.receiver.received] == [CUSTOMER_CREATED]


async def test_the_merchants_own_wallet_and_deleted_customers_have_no_balance_events(shop: Shop) -> None:
    await shop.endpoint(events=[BALANCE_UPDATED])
    gone = await shop.world.wallet(1_000)
    await shop.world.pool.execute("UPDATE connection SET status = 'deleted' WHERE wallet_id = $1", gone)
    await shop.world.credit(shop.world.wallets[0], 1_000)
    await shop.world.flush()
    await shop.send()
    assert shop.receiver.received == []


# -- failures


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        (500, 500, "answered 500"), (404, 404, "answered 404"), ("hang", None, "within 1 s"), ("reset", None, "Disconnected"),
    ],
)  # fmt: skip
async def test_a_failed_try_is_repeated_with_the_same_id_and_body(
    shop: Shop, fault: int | str, status: int | None, said: str
) -> None:
    webhook = await shop.endpoint()
    shop.receiver.faults = [fault]
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    await shop.send()
    [row] = await shop.deliveries()
    assert (row["state"], row["tries"], row["last_status"]) == ("pending", 1, status) and said in row["last_error"]
    assert row["next_try_at"] == shop.now + timedelta(seconds=5)
    assert await shop.pass_time(seconds=4) == 0
    await shop.pass_time(seconds=1)
    first, second = shop.receiver.received
    assert first.raw == second.raw and first.headers["webhook-id"] == second.headers["webhook-id"]
    assert webhook.secret and first.is_signed_with(webhook.secret) and second.is_signed_with(webhook.secret)
    [logged] = await shop.store.deliveries(webhook.merchant_id, webhook.webhook_id, before=None, limit=10)
    assert (logged.state, logged.tries, logged.last_status, logged.last_error) == ("delivered", 2, 200, None)
    assert [(one.number, one.status) for one in logged.attempts] == [(1, status), (2, 200)]


async def test_a_body_that_never_ends_behind_a_good_status_is_delivered(shop: Shop) -> None:
    await shop.endpoint()
    shop.receiver.faults = ["slow"]
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    await shop.send()
    [row] = await shop.deliveries()
    assert (row["state"], row["excerpt"]) == ("delivered", "thinking")


async def test_a_redirect_is_a_failure_and_is_not_followed(shop: Shop) -> None:
    await shop.endpoint()
    async with running_receiver() as inside:
        shop.receiver.faults = [inside.url]
        await shop.world.catalog.create_connection(shop.world.merchant_id)
        await shop.send()
        assert inside.received == []
    [row] = await shop.deliveries()
    assert (row["state"], row["last_status"]) == ("pending", 307)


async def test_gone_disables_the_endpoint_at_once(shop: Shop) -> None:
    webhook = await shop.endpoint()
    shop.receiver.faults = [410]
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    await shop.send()
    found = await shop.webhook(webhook)
    assert (found.status, found.disabled_reason) == ("disabled", "gone")
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    await shop.pass_time(days=1)
    assert len(shop.receiver.received) == 1
    assert [row["state"] for row in await shop.deliveries()] == ["failed"]


async def test_many_refusals_at_once_disable_the_endpoint_once_and_leave_nothing_waiting(shop: Shop) -> None:
    """Those under way are recorded too, while the endpoint is being changed and deleted beside them."""
    webhook = await shop.endpoint()
    shop.receiver.always = 410
    for _ in range(30):
        await shop.world.catalog.create_connection(shop.world.merchant_id)
    senders = [shop.sender(endpoint_concurrency_max=15), shop.sender(endpoint_concurrency_max=15)]
    await asyncio.gather(*(sender.run_once() for sender in senders))
    await asyncio.gather(
        *(sender.drain() for sender in senders),
        *(shop.store.update(webhook.merchant_id, webhook.webhook_id, {"name": f"n{n}"}, shop.now) for n in range(5)),
    )
    assert {row["state"] for row in await shop.deliveries()} == {"failed"}
    assert len(await shop.world.fetch("SELECT * FROM delivery_attempt")) == len(shop.receiver.received) > 0
    assert (await shop.webhook(webhook)).disabled_reason == "gone"


async def test_a_webhook_is_deleted_while_deliveries_to_it_are_under_way(shop: Shop) -> None:
    webhook = await shop.endpoint()
    for _ in range(20):
        await shop.world.catalog.create_connection(shop.world.merchant_id)
    sender = shop.sender(endpoint_concurrency_max=20)
    await sender.run_once()
    await asyncio.gather(sender.drain(), shop.store.delete(webhook.merchant_id, webhook.webhook_id))
    assert await shop.deliveries() == [] and await shop.send() == 0


async def test_tries_go_on_for_three_days_and_then_the_endpoint_is_disabled(shop: Shop) -> None:
    webhook = await shop.endpoint()
    shop.receiver.always = 503
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    started = shop.now
    await shop.send()
    moments = [shop.now]
    while True:
        [row] = await shop.deliveries()
        if row["state"] != "pending":
            break
        assert (await shop.webhook(webhook)).status == "active"
        shop.now = row["next_try_at"]
        moments.append(shop.now)
        await shop.send()
    assert len(set(shop.receiver.ids())) == 1 and len(shop.receiver.received) == len(moments) == row["tries"]
    assert [later - started for later in moments[1:4]] == [timedelta(seconds=s) for s in (5, 20, 80)]
    assert moments[-1] - started == timedelta(days=3)
    found = await shop.webhook(webhook)
    assert (row["state"], found.status, found.disabled_reason) == ("failed", "disabled", "failing")


async def test_an_endpoint_that_takes_other_events_is_not_disabled_by_one_that_it_refuses(shop: Shop) -> None:
    webhook = await shop.endpoint()
    shop.receiver.always = 500
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    await shop.send()
    shop.now += timedelta(days=1)
    [row] = await shop.deliveries()
    shop.receiver.always = 200
    await shop.world.pool.execute("UPDATE delivery SET next_try_at = $1", shop.now + timedelta(days=3))
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    await shop.send()
    shop.receiver.always = 500
    await shop.pass_time(days=3)
    states = [row["state"] for row in await shop.deliveries()]
    assert states == ["failed", "delivered"] and row["tries"] == 1
    assert (await shop.webhook(webhook)).status == "active"


async def test_later_events_of_a_wallet_wait_for_the_first_tries_of_an_earlier_one(shop: Shop) -> None:
    """In order while the receiver stumbles; overtaking once it fails for longer, so that nothing blocks for ever."""
    await shop.endpoint()
    shop.receiver.faults = [500]
    wallet = await shop.world.wallet(1_000)
    await shop.world.flush()
    await shop.send()
    assert [one.name for one in shop.receiver.received] == [CUSTOMER_CREATED]
    await shop.pass_time(seconds=5)
    assert [one.name for one in shop.receiver.received] == [CUSTOMER_CREATED, CUSTOMER_CREATED, BALANCE_UPDATED]
    shop.receiver.faults = [500] * ORDERED_TRIES
    await shop.world.call(wallet, 1)
    await shop.world.flush()
    await shop.send()
    await shop.world.call(wallet, 1)
    await shop.world.flush()
    await shop.pass_time(seconds=2)
    for _ in range(ORDERED_TRIES - 1):
        assert len({one.body["sequence"] for one in shop.receiver.received[3:]}) == 1
        shop.now = max(row["next_try_at"] for row in await shop.deliveries() if row["state"] == "pending")
        await shop.send()
    await shop.send()
    assert shop.receiver.named(BALANCE_UPDATED)[-1]["sequence"] == 3  # the third has overtaken the second
    await shop.pass_time(days=1)
    assert shop.receiver.named(BALANCE_UPDATED)[-1]["sequence"] == 2
    assert {row["state"] for row in await shop.deliveries()} == {"delivered"}


async def test_a_failing_wallet_or_endpoint_does_not_hold_up_others(shop: Shop) -> None:
    async with running_receiver() as dead:
        dead.always = "hang"
        await shop.endpoint(url=dead.url)
        await shop.endpoint()
        for _ in range(12):
            await shop.world.catalog.create_connection(shop.world.merchant_id)
        sender = shop.sender(endpoint_concurrency_max=2)
        for _ in range(20):
            await sender.run_once()
            if len(shop.receiver.received) == 12:
                break
            await asyncio.sleep(0.02)
        assert len(shop.receiver.received) == 12
        assert len(dead.received) <= 2  # its share, no more
        dead.released.set()
        await sender.drain()


async def test_an_endpoint_that_failed_gets_one_delivery_at_a_time_until_it_takes_one(shop: Shop) -> None:
    await shop.endpoint()
    shop.receiver.faults = [500]
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    await shop.send()
    for _ in range(4):
        await shop.world.catalog.create_connection(shop.world.merchant_id)
    sender = shop.sender()
    assert await sender.run_once() == 1 and await sender.run_once() == 0
    await sender.drain()
    assert await sender.run_once() == 3
    await sender.drain()
    assert len(shop.receiver.received) == 5


async def test_a_balance_that_an_endpoint_cannot_take_gives_way_to_newer_ones(shop: Shop) -> None:
    """What waits for a dead endpoint is bounded for each wallet; the last balance is always among it."""
    webhook = await shop.endpoint(events=[BALANCE_UPDATED])
    wallet = await shop.world.wallet(1_000_000)
    for _ in range(WALLET_BACKLOG_MAX + 5):
        await shop.world.call(wallet, 1)
        await shop.world.flush()
        shop.now += timedelta(seconds=1)
        await shop.store.emit_balances(shop.now, 10)
    rows = await shop.deliveries()
    waiting = [row["sequence"] for row in rows if row["state"] == "pending"]
    assert len(waiting) == WALLET_BACKLOG_MAX and waiting[-1] == (await shop.world.state(wallet)).wseq
    assert all("superseded" in row["last_error"] for row in rows if row["state"] == "failed")
    assert (await shop.webhook(webhook)).status == "active"


# -- death of a sender


async def test_a_sender_that_dies_while_sending_loses_nothing(shop: Shop) -> None:
    """Its claim ends with the lease; the receiver gets the same event id, and only the untold is sent again."""
    await shop.endpoint()
    shop.receiver.always = "hang"
    dying = shop.sender()
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    await dying.run_once()
    while not shop.receiver.received:
        await asyncio.sleep(0.01)
    for task in list(dying._running):  # as a process that is no more
        task.cancel()
    await asyncio.gather(*dying._running, return_exceptions=True)
    shop.receiver.always = 200
    assert await shop.pass_time(seconds=29) == 0
    await shop.pass_time(seconds=2)
    first, second = shop.receiver.ids()
    assert first == second
    [row] = await shop.deliveries()
    assert (row["state"], row["tries"]) == ("delivered", 2)
    assert await shop.pass_time(days=1) == 0


async def test_a_late_failure_of_a_lost_lease_does_not_undo_a_success(shop: Shop) -> None:
    await shop.endpoint()
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    lease = timedelta(seconds=30)
    [slow] = await shop.store.claim(shop.now, lease=lease, limit=9, per_webhook=9, busy={})
    await shop.pass_time(seconds=31)
    [row] = await shop.deliveries()
    assert row["state"] == "delivered"
    failed = await shop.client.send(slow)
    await shop.store.record(slow, type(failed)(status=500, error="late", excerpt="", duration_ms=1), shop.now, shop.now)
    assert (await shop.deliveries())[0]["state"] == "delivered"


async def test_two_senders_share_the_work_and_send_each_delivery_once(shop: Shop) -> None:
    await shop.endpoint()
    for _ in range(40):
        await shop.world.catalog.create_connection(shop.world.merchant_id)
    senders = [shop.sender(), shop.sender()]
    for _ in range(10):
        await asyncio.gather(*(sender.run_once() for sender in senders))
        await asyncio.gather(*(sender.drain() for sender in senders))
    assert len(shop.receiver.ids()) == len(set(shop.receiver.ids())) == 40


# -- rotation, retention, gauges


async def test_during_a_rotation_both_secrets_verify_and_the_plain_header_has_the_newest(shop: Shop) -> None:
    webhook = await shop.endpoint()
    shop.now += timedelta(seconds=1)
    rotated, ends_at = await shop.store.rotate(webhook.merchant_id, webhook.webhook_id, shop.now)
    assert ends_at == shop.now + timedelta(hours=24) and webhook.secret and rotated.secret
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    await shop.send()
    await shop.pass_time(hours=24)
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    await shop.send()
    during, after = shop.receiver.received
    for secret in (webhook.secret, rotated.secret):
        StandardWebhook(secret).verify(during.raw, during.headers)
    assert during.is_signed_with(rotated.secret) and not during.is_signed_with(webhook.secret)
    StandardWebhook(rotated.secret).verify(after.raw, after.headers)
    assert len(after.headers["webhook-signature"].split()) == 1
    for _ in range(9):  # the number of active secrets is bounded
        shop.now += timedelta(seconds=1)
        rotated, _ = await shop.store.rotate(webhook.merchant_id, webhook.webhook_id, shop.now)
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    await shop.send()
    assert len(shop.receiver.received[-1].headers["webhook-signature"].split()) == 4
    assert rotated.secret and shop.receiver.received[-1].is_signed_with(rotated.secret)


async def test_what_has_ended_is_kept_for_thirty_days_and_what_waits_for_ever(shop: Shop) -> None:
    webhook = await shop.endpoint()
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    await shop.send()
    await shop.store.rotate(webhook.merchant_id, webhook.webhook_id, shop.now)
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    sender = shop.sender()
    assert await sender.measure() == 1
    shop.now += timedelta(days=29)
    assert await sender.prune() == 1  # the rotated secret
    shop.now += timedelta(days=2)
    assert await sender.prune() == 2  # the delivery and its event
    assert [row["state"] for row in await shop.deliveries()] == ["pending"]
    assert len(await shop.world.fetch("SELECT * FROM event")) == 1
    assert await shop.world.fetch("SELECT * FROM delivery_attempt") == []


async def test_a_replay_sends_the_same_event_again_with_a_new_window(shop: Shop) -> None:
    webhook = await shop.endpoint()
    shop.receiver.always = 500
    await shop.world.catalog.create_connection(shop.world.merchant_id)
    await shop.send()
    await shop.pass_time(days=3)
    [row] = await shop.deliveries()
    assert row["state"] == "failed"
    await shop.store.update(webhook.merchant_id, webhook.webhook_id, {"status": "active"}, shop.now)
    await shop.store.replay(webhook.merchant_id, webhook.webhook_id, row["delivery_id"], shop.now)
    await shop.send()
    assert (await shop.deliveries())[0]["state"] == "pending"  # a new window of tries
    shop.receiver.always = 200
    await shop.pass_time(seconds=5)
    assert len(set(shop.receiver.ids())) == 1 and (await shop.deliveries())[0]["state"] == "delivered"
