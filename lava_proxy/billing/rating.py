"""Prices a stored row again from its stored facts: for another tier position, and to check that it still gives the same amount."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from lava_proxy.billing.rows import breakdown_text
from lava_proxy.domain import fees
from lava_proxy.domain.catalog import MeterVersion
from lava_proxy.domain.prices import Cost, Facts, PriceBook, tier_with
from lava_proxy.domain.usage import Usage
from lava_proxy.stores.catalog_store import CatalogStore

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _facts(breakdown: Mapping[str, Any]) -> Facts:
    """What a row's price depended on, as it stands on the row."""
    return tuple(sorted(breakdown.get("facts", {}).items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """What a row's own facts make of it."""

    charge_nanos: int
    cost_nanos: int
    tier_units: int


class Rating:
    """Rates rows by the meter version and the moment that they name."""

    def __init__(self, catalog: CatalogStore, prices: PriceBook, price_ids: Mapping[str, str]) -> None:
        """`price_ids`: provider name -> id in the price source."""
        self._catalog = catalog
        self._prices = prices
        self._price_ids = price_ids
        self._versions: dict[int, MeterVersion] = {}

    async def at_position(self, row: dict[str, Any], position: int) -> dict[str, Any]:
        """An outbox row priced for another tier counter."""
        breakdown = json.loads(row["breakdown"])
        charge, cost = await self.rate(
            meter_version=row["meter_version"],
            usage=json.loads(row["usage"], parse_float=Decimal),
            provider=row["provider"],
            model=row.get("price_model") or row["model"],
            service_tier=tier_with(row["service_tier"], _facts(breakdown)),
            at=_EPOCH + timedelta(milliseconds=row["priced_at_ms"] or 0),
            position=position,
            byok=row["provider_key_type"] == "unmanaged",
            billed=row["billed"],
        )
        return {
            **row,
            "charge_nanos": charge.amount_nanos,
            "tier_units": charge.units if row["tier_field"] else 0,
            "position_lo": charge.position_lo,
            "position_hi": charge.position_hi,
            "breakdown": breakdown_text(
                charge, cost, price_model=row.get("price_model"), unseen=breakdown.get("unseen", ()), facts=_facts(breakdown)
            ),
        }

    @property
    def price_version(self) -> str:
        """Of the prices that rows are rated with here; a row priced by others cannot be checked."""
        return self._prices.version

    async def again(self, row: Mapping[str, Any]) -> Rated:
        """A row of the ledger, rated from nothing but itself: what it must show."""
        usage = Usage(row["usage"])
        cost = None
        if row["price_version"] is not None:  # else no price was known, or nothing was used
            cost = self._prices.cost_of(
                self._price_ids.get(row["provider"], row["provider"]),
                row["breakdown"].get("model") or row["model"],
                usage,
                at=row["priced_at"],
                service_tier=tier_with(row["service_tier"], _facts(row["breakdown"])),
            )
        meter = await self._version(row["meter_version"]) if row["meter_version"] is not None else None
        byok = row["provider_key_type"] == "unmanaged"
        needs_cost = meter.rate_type == "percentage" if meter is not None else not byok
        billable = row["billed"] and (cost is not None or not needs_cost)
        charge = fees.charge(meter, usage, cost, row["position"], byok=byok, billable=billable)
        return Rated(
            charge_nanos=charge.amount_nanos,
            cost_nanos=cost.nanos if cost is not None else 0,
            tier_units=charge.units if row["tier_field"] else 0,
        )

    async def rate(
        self,
        *,
        meter_version: int | None,
        usage: Mapping[str, Any],
        provider: str,
        model: str | None,
        service_tier: str | None,
        at: datetime,
        position: int,
        byok: bool,
        billed: bool,
    ) -> tuple[fees.Charge, Cost | None]:
        """The charge and the cost of stored facts; nothing is charged where a price is needed and gone."""
        units = Usage(usage)
        cost = None
        if billed and usage:
            cost = self._prices.cost_of(self._price_ids.get(provider, provider), model, units, at=at, service_tier=service_tier)
        meter = await self._version(meter_version) if meter_version is not None else None
        needs_cost = meter.rate_type == "percentage" if meter is not None else not byok
        billable = billed and (cost is not None or not needs_cost)
        return fees.charge(meter, units, cost, position, byok=byok, billable=billable), cost

    async def _version(self, version_id: int) -> MeterVersion:
        if version_id not in self._versions:
            found = await self._catalog.meter_version(version_id)
            assert found is not None, f"meter version {version_id} is named by a row but does not exist"
            self._versions[version_id] = found
        return self._versions[version_id]
