"""What every page that changes something needs: the audit log, business time, and the merchant's default policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any

from aiohttp import web

from lava_proxy.domain.plans import BLOCK, Overage
from lava_proxy.stores.audit_log import AuditLog
from lava_proxy.stores.ids import created_ms
from lava_proxy.stores.plan_store import PlanStore
from lava_proxy.web.dashboard.frame import session_of


class Acts:
    """Shared by the pages of what a merchant sells."""

    def __init__(self, audit_log: AuditLog, plans: PlanStore, clock: Callable[[], datetime]) -> None:
        self._audit_log = audit_log
        self._plans = plans
        self.now = clock

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """`async with acts.transaction() as db`: an act and its note, both or neither."""
        return self._audit_log.transaction()

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
        """Write down who does what, with the `db` of the act itself. Secrets do not belong here.

        None for `db`: an entry of its own, committed at once; for acts outside of Postgres, before they are begun.
        """
        session = session_of(request)
        await self._audit_log.note(
            session.merchant.merchant_id, session.actor, action, object_id, before=before, after=after, db=db
        )  # fmt: skip

    async def default_overage(self, merchant_id: str) -> Overage:
        """What happens when a customer's credit is used up and nothing else was said."""
        return await self._plans.merchant_overage(merchant_id) or BLOCK


def is_id(text: str, prefix: str) -> bool:
    """Could this be an id of ours that starts with `prefix`?"""
    try:
        created_ms(text)
    except ValueError:
        return False
    return text.startswith(f"{prefix}_") and text.isascii() and text.isprintable() and len(text) <= 64
