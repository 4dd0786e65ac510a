"""POST /v1/auth/callback: a program on somebody's machine exchanges the code of their sign-in for a secret key."""

from __future__ import annotations

from aiohttp import web

from lava_proxy.api.envelope import json_response
from lava_proxy.api.fields import Text
from lava_proxy.api.operations import Answer, LenientBody, Operation
from lava_proxy.domain.errors import BadToken
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.login_codes import VALID_S, LoginCodes
from lava_proxy.stores.secret_key_store import SecretKeyStore

KEY_NAME = "Command line"


class LoginCode(LenientBody):
    code: Text


class LoginAnswer(Answer):
    wallet_id: str
    secret_key_id: str
    secret_key: str
    merchant_id: str
    account_id: str


class AuthCallback:
    """The end of a sign-in from the command line."""

    def __init__(self, catalog: CatalogStore, codes: LoginCodes, keys: SecretKeyStore) -> None:
        self._catalog = catalog
        self._codes = codes
        self._keys = keys

    def operations(self) -> list[Operation]:
        return [
            Operation(
                method="POST", path="/v1/auth/callback", handler=self.exchange, tag="Sign-in", summary="Exchange a sign-in code",
                description=f"A code is good once, for {VALID_S} seconds.", body=LoginCode, answer=LoginAnswer, is_public=True,
            )
        ]  # fmt: skip

    async def exchange(self, request: web.Request, body: LoginCode) -> web.Response:
        """A new secret key. 401 `invalid_code` for a code that is unknown, used or too old."""
        login = await self._codes.take(body.code)
        if login is None:
            raise BadToken("This code is unknown, was used, or is too old; sign in again.", code="invalid_code")
        merchant = await self._catalog.merchant(login.merchant_id)
        key = await self._keys.create(merchant.merchant_id, KEY_NAME, live=True)
        return json_response(
            {
                "wallet_id": merchant.wallet_id,
                "secret_key_id": key.secret_key_id,
                "secret_key": key.secret,
                "merchant_id": merchant.merchant_id,
                "account_id": login.account_id,
            }
        )
