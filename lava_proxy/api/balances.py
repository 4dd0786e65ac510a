"""Live balances for the resources that show one."""

from __future__ import annotations

from lava_proxy.domain.errors import StoreError
from lava_proxy.stores.outbox import Outbox, WalletState


async def live_wallet(outbox: Outbox, wallet_id: str) -> WalletState:
    """A wallet as it stands. Raises StoreError when Redis cannot answer or does not (yet) know it: no stale figure is shown."""
    state = (await outbox.wallet_states([wallet_id]))[wallet_id]
    if state is None:
        raise StoreError("This balance is being recovered; try again in a few seconds.", code="recovering")
    return state
