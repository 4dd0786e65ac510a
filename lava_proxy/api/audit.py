"""What the audit log says of acts by secret key: of those that end, replace or pay back something, or move money by hand.

Each entry is written in the transaction of its act, so that neither is there without the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from aiohttp import web

from lava_proxy.api.authentication import merchant_of, secret_of
from lava_proxy.stores.audit_log import Actor, AuditLog
from lava_proxy.stores.secret_key_store import SecretKeyStore


class Audit:
    """Shared by the resources. Who acted is the key, by its hint."""

    def __init__(self, log: AuditLog, keys: SecretKeyStore) -> None:
        self._log = log
        self._keys = keys

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """`async with audit.transaction() as db`: an act and its entry, both or neither."""
        return self._log.transaction()

    async def note(
        self,
        db: Any,
        request: web.Request,
        action: str,
        object_id: str,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Write an entry with the act's `db`. Secrets do not belong here."""
        key_id, hint = await self._keys.name_of(secret_of(request), db=db)
        actor = Actor(kind="key", id=key_id, name=f"API key {hint}")
        await self._log.note(merchant_of(request).merchant_id, actor, action, object_id, before=before, after=after, db=db)
