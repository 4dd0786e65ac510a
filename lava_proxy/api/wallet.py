"""/v1/wallet and /v1/payment_methods: the merchant's own wallet, which bare keys and self tokens draw on, and its cards."""

from __future__ import annotations

from contextlib import suppress

from aiohttp import web

from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.balances import live_wallet
from lava_proxy.api.customers import Balances
from lava_proxy.api.envelope import json_response
from lava_proxy.api.formats import balance_fields, short_usd
from lava_proxy.api.operations import Operation
from lava_proxy.api.payments import (
    FundAnswer,
    FundBody,
    PaymentMethods,
    PaymentServices,
    fund_object,
    once_key,
    payment_method_object,
)
from lava_proxy.domain.errors import StoreError
from lava_proxy.stores.outbox import Outbox

TAG = "Wallet"


class WalletAnswer(Balances):
    wallet_id: str


class Wallet:
    """The wallet resource."""

    def __init__(self, outbox: Outbox, payments: PaymentServices) -> None:
        self._outbox = outbox
        self._payments = payments

    def operations(self) -> list[Operation]:
        return [
            Operation(
                method="GET", path="/v1/wallet", handler=self.one, tag=TAG, summary="Read your own wallet",
                answer=WalletAnswer, description="Bare keys, spend keys and self tokens draw on it at provider cost.",
            ),
            Operation(
                method="POST", path="/v1/wallet/fund", handler=self.fund, tag=TAG, summary="Add funds by a stored card",
                body=FundBody, answer=FundAnswer, refuses=(402, 501),
                description="With an Idempotency-Key the card is charged once, however often the request is repeated.",
            ),
            Operation(
                method="GET", path="/v1/payment_methods", handler=self.cards, tag=TAG, summary="List your own cards",
                answer=PaymentMethods,
            ),
        ]  # fmt: skip

    async def one(self, request: web.Request) -> web.Response:
        """`balance` has at least two places here, as wallets show it, and is exact."""
        merchant = merchant_of(request)
        state = await live_wallet(self._outbox, merchant.wallet_id)
        figures = balance_fields(state) | {"balance": short_usd(state.balance_nanos)}
        return json_response({"wallet_id": merchant.wallet_id, **figures})

    async def fund(self, request: web.Request, body: FundBody) -> web.Response:
        merchant = merchant_of(request)
        return await fund_wallet(request, body, self._payments, self._outbox, merchant.merchant_id, merchant.wallet_id)

    async def cards(self, request: web.Request) -> web.Response:
        """The default first; none where no card was ever stored."""
        return await list_cards(self._payments, merchant_of(request).wallet_id)


async def fund_wallet(
    request: web.Request, body: FundBody, payments: PaymentServices, outbox: Outbox, merchant_id: str, wallet_id: str
) -> web.Response:
    """Charge a stored card of a wallet's payer for funds. Raises CallerError as `Accounts.fund` does."""
    card = body.payment_method_id
    charge = await payments.accounts.fund(
        merchant_id, wallet_id, body.amount, payment_method_id=card, key=once_key(request, "fund", wallet_id, card or ""),
        return_url=payments.public_url,
    )  # fmt: skip
    balance = None
    with suppress(StoreError):  # it is paid, whether the balance can be shown or not
        balance = (await live_wallet(outbox, wallet_id)).balance_nanos
    return json_response(fund_object(charge, balance))


async def list_cards(payments: PaymentServices, wallet_id: str) -> web.Response:
    """The cards of whoever pays for a wallet."""
    person_id = await payments.charge_store.wallet_person(wallet_id)
    cards = [] if person_id is None else await payments.cards.list(person_id)
    return json_response({"data": [payment_method_object(card) for card in cards]})
