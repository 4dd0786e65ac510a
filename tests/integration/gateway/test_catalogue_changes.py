"""What a merchant changes over REST reaches a running gateway at once; calls that run end by what they began with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lava_proxy.domain.catalog import Tier
from lava_proxy.domain.money import NANOS_PER_USD
from lava_proxy.stores.customer_store import CustomerChanges, CustomerStore
from lava_proxy.stores.meter_store import MeterStore
from lava_proxy.stores.secret_key_store import SecretKeyStore
from lava_proxy.wire.forward_token import mint
from tests.integration.gateway.fakes import Call, Response, chat_body
from tests.integration.gateway.harness import NANOS_PER_TOKEN, Gateway, World


def answering(call: Call) -> None:
    call.answer(chat_body())


@asynccontextmanager
async def known_within_a_second(gateway: Gateway) -> AsyncIterator[None]:
    """What is done inside must have reached the gateway a second after its end."""
    grants = gateway.worker._grants
    generation = grants._generation
    yield
    async with asyncio.timeout(1):
        while grants._generation == generation:
            await asyncio.sleep(0)


async def called(gateway: Gateway, token: str = "") -> Response:
    client = await gateway.client()
    client.send(gateway.request(token=token))
    return await client.response()


async def test_a_deleted_customer_is_not_served_and_its_open_call_ends_normally(gateway: Gateway, world: World) -> None:
    """The open call is charged; the next is a 403 that reaches no provider."""
    client = await gateway.client()
    client.send(gateway.request())
    call = await gateway.provider.next_call()
    async with known_within_a_second(gateway):
        assert await CustomerStore(world.pool).delete(gateway.merchant.merchant_id, gateway.connection.connection_id)
    call.answer(chat_body())
    assert (await client.response()).status == 200
    response = await called(gateway)
    assert (response.status, response.error_code) == (403, "connection_not_found")
    assert len(gateway.provider.calls) == 1 and (await gateway.row())["charge_nanos"] > 0


async def test_an_archived_meter_is_refused_by_its_own_name(gateway: Gateway, world: World) -> None:
    gateway.provider.answer = answering
    assert (await called(gateway)).status == 200
    async with known_within_a_second(gateway):
        assert await MeterStore(world.pool, world.catalog).archive(gateway.merchant.merchant_id, gateway.meter.meter_id)
    response = await called(gateway)
    assert (response.status, response.error_code) == (403, "meter_archived")
    assert len(gateway.provider.calls) == 1


async def test_a_new_price_charges_the_next_call_and_not_the_one_before(gateway: Gateway, world: World) -> None:
    gateway.provider.answer = answering
    assert (await called(gateway)).status == 200
    async with known_within_a_second(gateway):
        await MeterStore(world.pool, world.catalog).add_version(
            gateway.merchant.merchant_id, gateway.meter.meter_id, tiers=(Tier(start=0, rate=40 * NANOS_PER_USD),)
        )
    assert (await called(gateway)).status == 200
    first, second = await gateway.rows()
    tokens = first["usage"]["input_tokens"] + first["usage"]["output_tokens"]
    assert (first["charge_nanos"], second["charge_nanos"]) == (tokens * NANOS_PER_TOKEN, 2 * tokens * NANOS_PER_TOKEN)
    assert first["meter_version"] != second["meter_version"]


async def test_a_key_that_was_deleted_over_rest_is_refused_and_a_new_one_works(gateway: Gateway, world: World) -> None:
    gateway.provider.answer = answering
    keys = SecretKeyStore(world.pool)
    assert (await called(gateway)).status == 200
    async with known_within_a_second(gateway):
        made = await keys.create(gateway.merchant.merchant_id, "new", live=True)
    [_, old] = await keys.many(gateway.merchant.merchant_id, before=None, limit=5)
    async with known_within_a_second(gateway):
        await keys.revoke(gateway.merchant.merchant_id, old.secret_key_id)
    response = await called(gateway)
    assert (response.status, response.error_code) == (401, "invalid_secret_key")
    assert made.secret is not None and (await called(gateway, token=made.secret)).status == 200


async def test_a_changed_reference_id_ends_the_tokens_that_name_the_old_one(gateway: Gateway, world: World) -> None:
    gateway.provider.answer = answering
    old, new = (mint(gateway.secret_key, name, "fixed") for name in ("customer-1", "customer-2"))
    assert (await called(gateway, token=old)).status == 200
    async with known_within_a_second(gateway):
        changes = CustomerChanges(columns={"reference_id": "customer-2"})
        await CustomerStore(world.pool).change(gateway.merchant.merchant_id, gateway.connection.connection_id, changes)
    assert (await called(gateway, token=old)).error_code == "connection_not_found"
    assert (await called(gateway, token=new)).status == 200
