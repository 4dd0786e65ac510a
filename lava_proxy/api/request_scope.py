"""Which requests a question is about: the parameters that usage and exports share, and whose requests they name."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from lava_proxy.api.operations import QueryString
from lava_proxy.api.queries import Query
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.references import connection_id_of, meter_id_of


class ScopeQuery(QueryString):
    """All values are text; what is wrong with them is told together."""

    start: str | None = Field(None, description="ISO 8601, inclusive, of the requests' creation.")
    end: str | None = Field(None, description="ISO 8601, inclusive; now when absent. A date stands for all of its day.")
    customer_id: str | None = Field(None, description="Only this customer: its id or reference_id.")
    connection_id: str | None = Field(None, description="An older name of customer_id.")
    meter_id: str | None = Field(None, description="Only this meter: its id or slug.")
    product_id: str | None = Field(None, description="An older name of meter_id.")
    metadata_filters: str | None = Field(
        None, description='A JSON array of ["key", "value"] pairs, all of which a request must have.'
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestScope:
    """As it was asked: names and old names made one, ids not looked up yet."""

    customer: str | None
    meter: str | None
    metadata: dict[str, str]

    @classmethod
    def read(cls, query: Query) -> RequestScope:
        """What is wrong is noted in the query."""
        return cls(
            customer=query.text("customer_id", "connection_id"),
            meter=query.text("meter_id", "product_id"),
            metadata=query.metadata_filters(),
        )

    async def ids(self, catalog: CatalogStore, merchant_id: str) -> tuple[str | None, str | None, bool]:
        """The ids of the customer and the meter, None for all; and whether one was named that is nobody's of this merchant."""
        connection_id = await connection_id_of(catalog, merchant_id, self.customer) if self.customer else None
        meter_id = await meter_id_of(catalog, merchant_id, self.meter) if self.meter else None
        is_nobody = (self.customer is not None and connection_id is None) or (self.meter is not None and meter_id is None)
        return connection_id, meter_id, is_nobody
