"""/v1/wallet_keys: keys of a wallet, which clients of two older versions manage. Secret keys do their work here: there are none."""

from __future__ import annotations

from aiohttp import web

from lava_proxy.api.envelope import json_response
from lava_proxy.api.fields import Done, Text, Timestamp, list_of
from lava_proxy.api.operations import Answer, Operation
from lava_proxy.domain.errors import NotFound

TAG = "Wallet keys"
_NONE = "There are no wallet keys here: a secret key (aks_...) manages the wallet and its spend keys."


class WalletKeyAnswer(Answer):
    wallet_key_id: str
    key_preview: str
    name: Text
    wallet_id: str
    last_used_at: Timestamp | None
    created_at: Timestamp


class WalletKeys:
    """A list that is always empty, so that those clients work."""

    def operations(self) -> list[Operation]:
        one = "/v1/wallet_keys/{wallet_key}"
        return [
            Operation(
                method="GET", path="/v1/wallet_keys", handler=self.many, tag=TAG, summary="List wallet keys",
                answer=list_of(WalletKeyAnswer), description=_NONE,
            ),
            Operation(
                method="DELETE", path=one, handler=self.refuse, tag=TAG, summary="Delete a wallet key", answer=Done,
                description=_NONE,
            ),
            Operation(
                method="POST", path=one + "/rotate", handler=self.refuse, tag=TAG, summary="Rotate a wallet key",
                answer=WalletKeyAnswer, description=_NONE,
            ),
        ]  # fmt: skip

    async def many(self, request: web.Request) -> web.Response:
        return json_response({"data": [], "has_more": False})

    async def refuse(self, request: web.Request) -> web.Response:
        raise NotFound(_NONE)
