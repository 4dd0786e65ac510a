"""What filters name: customers and meters by any of their names, and the versions of meters that stored rows were charged by."""

from __future__ import annotations

from lava_proxy.domain.catalog import MeterVersion
from lava_proxy.stores.catalog_store import CatalogStore

_VERSIONS_MAX = 10_000


async def connection_id_of(catalog: CatalogStore, merchant_id: str, reference: str) -> str | None:
    """The id behind a filter; an id is used as it is when unknown, for deleted customers keep their requests."""
    found = await catalog.connection(merchant_id, reference)
    if found is not None:
        return found.connection_id
    return reference if reference.startswith("con_") else None


async def meter_id_of(catalog: CatalogStore, merchant_id: str, reference: str) -> str | None:
    """As for customers; archived meters keep their requests."""
    found = await catalog.meter(merchant_id, reference)
    if found is not None:
        return found.meter_id
    return reference if reference.startswith("prd_") else None


class MeterVersions:
    """Meter versions by number, each read once, since they never change."""

    def __init__(self, catalog: CatalogStore) -> None:
        self._catalog = catalog
        self._known: dict[int, MeterVersion | None] = {}

    async def get(self, version_id: int | None) -> MeterVersion | None:
        """None for a row that was charged without a meter."""
        if version_id is None:
            return None
        if version_id not in self._known:
            if len(self._known) >= _VERSIONS_MAX:
                self._known.clear()
            self._known[version_id] = await self._catalog.meter_version(version_id)
        return self._known[version_id]
