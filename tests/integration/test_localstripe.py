"""A second opinion on shapes: the Stripe adapter against localstripe, for the calls that it knows.

localstripe (1.15) ignores idempotency keys and refuses `off_session` at confirm: what depends on these is tested on our own fake.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from lava_proxy.payments.processor import CHARGE_KEY
from lava_proxy.payments.stripe import StripeProcessor

# localstripe itself listens on every interface and offers no other; its application can be given a socket of ours.
_SERVE = """
import socket, sys, warnings
warnings.simplefilter("ignore")
from aiohttp import web
from localstripe.server import app
sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
web.run_app(app, sock=sock, print=None, access_log=None)
"""


@pytest.fixture
async def base_url(tmp_path: Path) -> AsyncIterator[str]:
    """A localstripe with nothing in it; its state file stays in a folder of this test's."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SERVE, stdout=asyncio.subprocess.PIPE, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 30))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


@pytest.fixture
async def processor(base_url: str) -> AsyncIterator[StripeProcessor]:
    made = StripeProcessor("sk_test_12345", api_base=base_url, webhook_secrets=("whsec_local",))
    yield made
    await made.close()


async def _card(processor: StripeProcessor, number: str = "4242424242424242") -> tuple[str, str]:
    customer_ref = await processor.create_customer(key="k", phone="+14155550100", email="a@b.example", metadata={"person_id": "p"})
    card: Any = {"type": "card", "card": {"number": number, "exp_month": 12, "exp_year": 2034, "cvc": "123"}}
    made = await processor._client.payment_methods.create_async(params=card)
    attached = await processor.attach_method(customer_ref, made.id)
    assert (attached.customer_ref, attached.brand, attached.last4) == (customer_ref, "visa", number[-4:])
    return customer_ref, attached.processor_ref


async def test_customers_cards_and_setups_have_the_shapes_we_read(processor: StripeProcessor) -> None:
    customer_ref, method_ref = await _card(processor)
    await processor.set_default_method(customer_ref, method_ref)
    assert [card.processor_ref for card in await processor.methods(customer_ref)] == [method_ref]
    setup = await processor.create_setup(customer_ref)
    assert (await processor.setup(setup.setup_ref)).is_done is False
    assert setup.client_secret.startswith(setup.setup_ref)
    await processor.detach_method(method_ref)
    assert await processor.methods(customer_ref) == []


async def test_payments_cancellations_and_refunds_have_the_shapes_we_read(processor: StripeProcessor) -> None:
    customer_ref, method_ref = await _card(processor)
    made = await processor.create_payment(
        key="pi:1", customer_ref=customer_ref, method_ref=method_ref, amount_cents=2500, currency="usd",
        metadata={CHARGE_KEY: "chg_1"},
    )  # fmt: skip
    assert (made.status, made.amount_cents, made.charge_id, made.captured_cents) == ("unconfirmed", 2500, "chg_1", 0)
    paid_params: Any = {"amount": 1200, "currency": "usd", "customer": customer_ref, "payment_method": method_ref, "confirm": True}
    paid = await processor._client.payment_intents.create_async(params=paid_params)
    found = await processor.payment(paid.id)
    assert (found.status, found.captured_cents, found.method_ref) == ("succeeded", 1200, method_ref)
    back: Any = {"payment_intent": paid.id, "amount": 500}
    refund = await processor._client.refunds.create_async(params=back)
    assert refund.amount == 500
    assert (await processor.cancel_payment(made.payment_ref)).status == "canceled"
    assert (await processor.cancel_payment(paid.id)).status == "succeeded"


async def test_a_decline_is_read_from_the_payment(processor: StripeProcessor) -> None:
    customer_ref, method_ref = await _card(processor, "4000000000000341")
    params: Any = {"amount": 1200, "currency": "usd", "customer": customer_ref, "payment_method": method_ref}
    made = await processor._client.payment_intents.create_async(params=params)
    with pytest.raises(processor._stripe.CardError):
        await processor._client.payment_intents.confirm_async(made.id)
    found = await processor.payment(made.id)
    assert found.status == "declined" and found.decline is not None
    assert (found.decline.code, bool(found.attempt_ref)) == ("card_declined", True)


async def test_its_signed_notices_are_verified_and_read(processor: StripeProcessor, base_url: str) -> None:
    received: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        received.put_nowait((await request.read(), request.headers["Stripe-Signature"]))
        return web.Response()

    application = web.Application()
    application.router.add_post("/", take)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hook = {"url": f"http://127.0.0.1:{runner.addresses[0][1]}/", "secret": "whsec_local"}
    async with ClientSession() as session:
        await session.post(f"{base_url}/_config/webhooks/ours", json=hook)
    try:
        customer_ref, method_ref = await _card(processor)
        params: Any = {"amount": 1200, "currency": "usd", "customer": customer_ref, "payment_method": method_ref, "confirm": True}
        paid = await processor._client.payment_intents.create_async(params=params)
        while True:
            event = processor.event(*await asyncio.wait_for(received.get(), 20))
            if event.kind == "payment_intent.succeeded":
                break
        assert (event.subject, event.payment_ref) == ("payment", paid.id)
        assert abs(event.created_at.timestamp() - time.time()) < 60
    finally:
        await runner.cleanup()
