"""A customer is made with a wallet that can be spent from, or not at all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from lava_proxy.billing.funding import Funding
from lava_proxy.domain.errors import StoreError
from lava_proxy.stores.catalog_store import CatalogStore, Connection
from lava_proxy.stores.customer_store import CustomerStore

Note = Callable[[Any, str, Connection], Awaitable[None]]


async def open_customer(
    catalog: CatalogStore,
    customers: CustomerStore,
    funding: Funding,
    merchant_id: str,
    *,
    reference_id: str | None,
    contact: Mapping[str, str],
    metadata: dict[str, Any] | None = None,
    note: Note | None = None,
) -> Connection:
    """The new customer. Raises Conflict `reference_id_taken`, StoreError when an engine cannot answer: then there is none.

    `note(db, "customer.create", customer)` runs in the transaction that makes it; so does one for a `customer.delete` where the
    wallet cannot be opened.
    """
    async with catalog.transaction() as db:
        made = await catalog.create_connection(
            merchant_id, reference_id=reference_id, contact=dict(contact), metadata=metadata, db=db
        )
        if note is not None:
            await note(db, "customer.create", made)
    try:
        await funding.open_wallet(made.wallet_id)
    except StoreError:
        # Nobody knows its id yet, so a repeat would make another one: this one must not stay.
        async with catalog.transaction() as db:
            await customers.delete(merchant_id, made.connection_id, db=db)
            if note is not None:
                await note(db, "customer.delete", made)
        raise
    return made
