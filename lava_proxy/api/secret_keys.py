"""/v1/secret_keys: the keys that act for the merchant. A key is shown once; afterwards only its hint."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from aiohttp import web
from pydantic import Field

from lava_proxy.api.audit import Audit
from lava_proxy.api.authentication import is_test_key, merchant_of
from lava_proxy.api.envelope import json_response
from lava_proxy.api.fields import Deleted, Name, PageQuery, Timestamp, list_of
from lava_proxy.api.formats import listing, timestamp
from lava_proxy.api.operations import Answer, Body, Operation
from lava_proxy.api.queries import path_reference
from lava_proxy.stores.secret_key_store import SecretKey, SecretKeyStore

TAG = "Secret keys"


class NewSecretKey(Body):
    name: Name


class SecretKeysQuery(PageQuery):
    prefix: ClassVar[str] = "sk"


class SecretKeyAnswer(Answer):
    secret_key_id: str
    name: str
    secret_key_hint: str
    created_at: Timestamp


class SecretKeyWithSecret(SecretKeyAnswer):
    secret_key: Annotated[str, Field(description="Shown this once.")]


class SecretKeys:
    """The secret key resource."""

    def __init__(self, keys: SecretKeyStore, audit: Audit) -> None:
        self._keys = keys
        self._audit = audit

    def operations(self) -> list[Operation]:
        return [
            Operation(
                method="GET", path="/v1/secret_keys", handler=self.many, tag=TAG, summary="List secret keys",
                query=SecretKeysQuery, answer=list_of(SecretKeyAnswer),
            ),
            Operation(
                method="POST", path="/v1/secret_keys", handler=self.create, tag=TAG, summary="Create a secret key",
                body=NewSecretKey, answer=SecretKeyWithSecret, status=201,
            ),
            Operation(
                method="DELETE", path="/v1/secret_keys/{secret_key}", handler=self.delete, tag=TAG,
                summary="Delete a secret key", answer=Deleted,
                description="It ends within a second everywhere, also when it is the one that asks. The last one stays.",
            ),
        ]  # fmt: skip

    async def many(self, request: web.Request, query: SecretKeysQuery) -> web.Response:
        """Newest first, without those that were deleted."""
        keys = await self._keys.many(merchant_of(request).merchant_id, before=query.cursor, limit=query.limit + 1)
        return json_response(listing([secret_key_object(key) for key in keys], query.limit, "secret_key_id"))

    async def create(self, request: web.Request, body: NewSecretKey) -> web.Response:
        """201 with `secret_key`, of the kind (live or test) of the key that asks."""
        made = await self._keys.create(merchant_of(request).merchant_id, body.name, live=not is_test_key(request))
        return json_response(secret_key_object(made) | {"secret_key": made.secret}, 201)

    async def delete(self, request: web.Request) -> web.Response:
        """409 `last_secret_key` for the only one."""
        secret_key_id = path_reference(request, "secret_key")
        async with self._audit.transaction() as db:
            await self._keys.revoke(merchant_of(request).merchant_id, secret_key_id, db=db)
            await self._audit.note(db, request, "secret_key.revoke", secret_key_id)
        return json_response({"id": secret_key_id, "deleted": True})


def secret_key_object(key: SecretKey) -> dict[str, Any]:
    """Without the secret."""
    return {
        "secret_key_id": key.secret_key_id,
        "name": key.name,
        "secret_key_hint": key.hint,
        "created_at": timestamp(key.created_at),
    }
