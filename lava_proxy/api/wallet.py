"""GET /v1/wallet: the merchant's own wallet, which bare keys and self tokens draw on."""

from __future__ import annotations

from aiohttp import web

from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.balances import live_wallet
from lava_proxy.api.customers import Balances
from lava_proxy.api.envelope import json_response
from lava_proxy.api.formats import balance_fields, short_usd
from lava_proxy.api.operations import Operation
from lava_proxy.stores.outbox import Outbox


class WalletAnswer(Balances):
    wallet_id: str


class Wallet:
    """The wallet resource."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def operations(self) -> list[Operation]:
        return [
            Operation(
                method="GET", path="/v1/wallet", handler=self.one, tag="Wallet", summary="Read your own wallet",
                answer=WalletAnswer, description="Bare keys, spend keys and self tokens draw on it at provider cost.",
            )
        ]  # fmt: skip

    async def one(self, request: web.Request) -> web.Response:
        """`balance` has at least two places here, as wallets show it, and is exact."""
        merchant = merchant_of(request)
        state = await live_wallet(self._outbox, merchant.wallet_id)
        figures = balance_fields(state) | {"balance": short_usd(state.balance_nanos)}
        return json_response({"wallet_id": merchant.wallet_id, **figures})
