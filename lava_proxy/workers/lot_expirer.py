"""Ends lots that have expired, so that the ledger says it soon after; no call waits for this: a reserve ends them by itself."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import orjson
import structlog

from lava_proxy.domain.errors import CallerError
from lava_proxy.stores.balance_store import BalanceStore
from lava_proxy.stores.catalog_store import CatalogStore

_BATCH = 200
_log = structlog.get_logger("lot_expirer")


class LotExpirer:
    """Idempotent: a lot ends once, whoever ends it, and sweeping again finds nothing."""

    def __init__(self, catalog: CatalogStore, store: BalanceStore, clock: Callable[[], datetime]) -> None:
        """`clock`: business time."""
        self._catalog = catalog
        self._store = store
        self._clock = clock

    async def run_once(self) -> int:
        """Sweep wallets with expired lots; how many lots had something to end."""
        now, ended = self._clock(), 0
        for wallet_id, merchant_id in (await self._catalog.expired_lots(now, _BATCH)).items():
            try:
                count = await self._store.expire(wallet_id, now, row=orjson.dumps({"merchant_id": merchant_id}))
            except CallerError as error:
                # It stays due and is tried again; those behind it must not wait for it.
                _log.error("A wallet cannot be swept", action="sweep_refused", wallet_id=wallet_id, error=error.message)
                continue
            await self._catalog.note_swept(wallet_id, now)
            ended += count
        if ended:
            _log.info("Expired credit was ended", action="lots_expired", lots=ended)
        return ended
