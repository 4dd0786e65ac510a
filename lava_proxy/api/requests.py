"""GET /v1/requests and /v1/requests/{id}: what each call used, cost and was charged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from aiohttp import web
from pydantic import Field

from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.envelope import json_response
from lava_proxy.api.fields import Amount, CustomerFilter, MetadataFilters, MeterFilter, PageQuery, Timestamp, list_of
from lava_proxy.api.formats import listing
from lava_proxy.api.operations import Answer, Operation
from lava_proxy.api.queries import path_reference
from lava_proxy.billing.request_object import request_object
from lava_proxy.domain.catalog import MeterVersion
from lava_proxy.domain.errors import NotFound, StoreError
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.ids import created_ms
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.outbox import Outbox
from lava_proxy.stores.request_export import RequestExport, RequestFilter

# What was acknowledged is on its way to Postgres for some hundred milliseconds, longer when the ledger is behind: whoever asks
# for it is answered when all that was in the outbox has been written, whatever its id says.
_FLUSH_WAIT_S = 5
# A call settles a moment after its last byte: whoever has read its answer may ask before it is in the outbox. Its id is as old as
# the call was long.
_SETTLE_AGE_MS = 3_600_000
_SETTLE_WAIT_S = 1.5
_POLL_S = 0.05
_VERSIONS_MAX = 10_000


TAG = "Requests"


class RequestsQuery(PageQuery, CustomerFilter, MeterFilter):
    prefix: ClassVar[str] = "req"

    metadata_filters: Annotated[MetadataFilters, Field(default_factory=dict)]


class BreakdownLine(Answer):
    tier: dict[str, Any]
    tokens: int
    characters: int
    seconds: int | float
    cost: Amount


class ChargeAnswer(Answer):
    amount: Amount
    rate_type: Literal["fixed", "percentage"] | None
    breakdown: list[BreakdownLine]


class RequestAnswer(Answer):
    """Keys of older clients (`connection_id`, `product_id`, `fee`, `total_request_cost` ...) stand beside these."""

    request_id: str
    status: Literal["pending", "completed", "error"]
    customer_id: Annotated[str, Field(default="", description="Absent when no customer paid.")]
    meter_id: Annotated[str, Field(default="", description="Absent when no meter priced it.")]
    provider: str
    provider_key_type: str
    model: Annotated[str, Field(default="", description="Absent when the call named none.")]
    endpoint: str
    model_usage: dict[str, Any]
    cost: Annotated[Amount, Field(description="What the provider's price list says.")]
    charge: ChargeAnswer
    metadata: dict[str, Any]
    timestamp: Timestamp
    created_at: Timestamp


class Requests:
    """The request resource, read-only."""

    def __init__(self, catalog: CatalogStore, ledger: LedgerStore, pages: RequestExport, outbox: Outbox) -> None:
        self._catalog = catalog
        self._ledger = ledger
        self._pages = pages
        self._outbox = outbox
        self._versions: dict[int, MeterVersion | None] = {}

    def operations(self) -> list[Operation]:
        return [
            Operation(
                method="GET", path="/v1/requests", handler=self.many, tag=TAG, summary="List requests", query=RequestsQuery,
                answer=list_of(RequestAnswer), refuses=(422,),
                description="Newest first. A call appears a moment after it has ended.",
            ),
            Operation(
                method="GET", path="/v1/requests/{request_id}", handler=self.one, tag=TAG, summary="Read a request",
                answer=RequestAnswer,
            ),
        ]  # fmt: skip

    async def many(self, request: web.Request, query: RequestsQuery) -> web.Response:
        """Newest first, filtered by customer, meter and metadata."""
        customer, meter = query.customer, query.meter
        merchant_id = merchant_of(request).merchant_id
        connection_id = await self._connection_id(merchant_id, customer) if customer else None
        meter_id = await self._meter_id(merchant_id, meter) if meter else None
        if (customer and connection_id is None) or (meter and meter_id is None):
            return json_response(listing([], query.limit, "request_id"))
        filters = RequestFilter(connection_id=connection_id, meter_id=meter_id, metadata=query.metadata_filters)
        rows = await self._pages.page(merchant_id, filters, before=query.cursor, limit=query.limit + 1)
        answer = listing([await self._shown(row) for row in rows], query.limit, "request_id")
        if answer["has_more"]:  # a report shows its caller's id, which says nothing about where it stands
            answer["next_cursor"] = rows[query.limit - 1]["request_id"]
        return json_response(answer)

    async def one(self, request: web.Request) -> web.Response:
        """One request; one that has only just ended is waited for a moment."""
        row = await self._row(merchant_of(request).merchant_id, path_reference(request, "request_id"))
        if row is None:
            raise NotFound("No request of yours has this id. A call that is still running appears here when it has ended.")
        return json_response(await self._shown(row))

    async def _row(self, merchant_id: str, request_id: str) -> dict[str, Any] | None:
        row = await self._ledger.request(merchant_id, request_id)
        if row is not None:
            return row
        loop = asyncio.get_running_loop()
        begun = loop.time()
        settled_at = begun + (_SETTLE_WAIT_S if _may_be_settling(request_id) else 0)
        waited_for: dict[int, tuple[int, int]] | None = None
        while True:
            try:
                waited_for = await (self._outbox.ends() if waited_for is None else self._outbox.behind(waited_for))
            except StoreError:  # what Postgres has is all that can be said
                waited_for = {}
            row = await self._ledger.request(merchant_id, request_id)
            is_over = not waited_for and loop.time() >= settled_at
            if row is not None or is_over or loop.time() >= begun + _FLUSH_WAIT_S:
                return row
            await asyncio.sleep(_POLL_S)

    async def _connection_id(self, merchant_id: str, reference: str) -> str | None:
        """The id behind a filter; an id is used as it is when unknown, for deleted customers keep their requests."""
        found = await self._catalog.connection(merchant_id, reference)
        if found is not None:
            return found.connection_id
        return reference if reference.startswith("con_") else None

    async def _meter_id(self, merchant_id: str, reference: str) -> str | None:
        found = await self._catalog.meter(merchant_id, reference)
        if found is not None:
            return found.meter_id
        return reference if reference.startswith("prd_") else None

    async def _shown(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return request_object(row, await self._version(row["meter_version"]))

    async def _version(self, version_id: int | None) -> MeterVersion | None:
        """Meter versions never change, so each is read once."""
        if version_id is None:
            return None
        if version_id not in self._versions:
            if len(self._versions) >= _VERSIONS_MAX:
                self._versions.clear()
            self._versions[version_id] = await self._catalog.meter_version(version_id)
        return self._versions[version_id]


def _may_be_settling(request_id: str) -> bool:
    """Is it the id of a call that could have ended a moment ago? Hosts' clocks may differ a little either way."""
    try:
        age_ms = time.time_ns() // 1_000_000 - created_ms(request_id)
    except ValueError:
        return False
    return -10_000 <= age_ms <= _SETTLE_AGE_MS
