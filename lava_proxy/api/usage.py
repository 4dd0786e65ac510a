"""GET /v1/usage: what requests add up to, by day or finer, in the caller's time zone, as JSON or CSV."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, cast, get_args

from aiohttp import web
from pydantic import Field

from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.envelope import json_response
from lava_proxy.api.formats import seconds
from lava_proxy.api.operations import Answer, Operation
from lava_proxy.api.queries import Query, read_choice, read_moment, shown
from lava_proxy.api.request_scope import RequestScope, ScopeQuery
from lava_proxy.domain.money import format_usd
from lava_proxy.domain.usage_window import BUCKET_LENGTHS, BucketName, UsageWindow, iso, window_of
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.usage_store import Dimension, UsageFilter, UsageStore, UsageSums
from lava_proxy.wire.csv_lines import csv_line

GROUPS_DEFAULT = 100
GROUPS_MAX = 1000
_GROUPS = get_args(Dimension)
_METADATA_GROUP = re.compile(r"metadata:([A-Za-z0-9_]{1,255})")
_NOTHING = format_usd(0)


class UsageQuery(ScopeQuery):
    """The parameters of GET /v1/usage."""

    start: str | None = Field(None, description="Required. ISO 8601; its UTC offset is the time zone of the buckets (UTC if none).")
    metadata_filters: str | None = Field(
        None, description='A JSON array of ["key", "value"] pairs; reads rows, so it takes longer.'
    )
    bucket: str | None = Field(None, description="day (default, at most 400 days), hour (32 days) or 15m (8 days).")
    group_by: str | None = Field(None, description="customer, meter, model, provider or metadata:<key>; adds `groups`.")
    group_limit: str | None = Field(None, description="How many groups at most, by charge: 1 to 1000, 100 when absent.")
    format: str | None = Field(None, description="json (default) or csv: the items, or the groups where group_by is given.")


class UsageAnswer(Answer):
    """`items`: one for every bucket; `totals`: their sum; with group_by also `groups` and `groups_rest`, what they leave out."""

    items: list[dict[str, Any]]
    totals: dict[str, Any]


class Usage:
    """The usage resource, read-only."""

    def __init__(self, catalog: CatalogStore, usage: UsageStore, clock: Callable[[], datetime]) -> None:
        self._catalog = catalog
        self._usage = usage
        self._clock = clock

    def operations(self) -> list[Operation]:
        return [
            Operation(
                method="GET",
                path="/v1/usage",
                handler=self.show,
                tag="Usage",
                summary="Requests, tokens, costs and charges by day",
                query=UsageQuery,
                answer=UsageAnswer,
            )
        ]

    async def show(self, request: web.Request, _: UsageQuery) -> web.Response:
        """Buckets, totals and, where asked for, groups."""
        query = Query(request.query)
        window = read_window(query, self._clock())
        scope = RequestScope.read(query)
        group_by, group_limit = _read_group(query), _read_group_limit(query)
        as_csv = read_choice(query, "format", ("json", "csv")) == "csv"
        query.check()
        assert window is not None
        merchant_id = merchant_of(request).merchant_id
        connection_id, meter_id, is_nobody = await scope.ids(self._catalog, merchant_id)
        filters = UsageFilter(connection_id=connection_id, meter_id=meter_id, metadata=scope.metadata)
        groups: list[tuple[str, UsageSums]] | None = None
        if is_nobody:
            series = [(first, UsageSums()) for first in window.first_instants()]
            groups = [] if group_by is not None else None
        else:
            series = await self._usage.series(merchant_id, window, filters)
            if group_by is not None:
                groups = await self._grouped(merchant_id, window, group_by, group_limit, filters)
        if as_csv:
            return _csv(series, window.length, groups)
        return json_response(_document(series, window.length, groups))

    async def _grouped(
        self, merchant_id: str, window: UsageWindow, group_by: str, limit: int, filters: UsageFilter
    ) -> list[tuple[str, UsageSums]]:
        by_metadata = _METADATA_GROUP.fullmatch(group_by)
        if by_metadata:
            return await self._usage.top_metadata(merchant_id, window, by_metadata[1], limit, filters)
        return await self._usage.top(merchant_id, window, _dimension(group_by), limit, filters)


def read_window(query: Query, now: datetime) -> UsageWindow | None:
    """`start`, `end` and `bucket`; None when something is wrong with them, which is noted."""
    bucket = read_choice(query, "bucket", tuple(BUCKET_LENGTHS))
    start, end = read_moment(query, "start"), read_moment(query, "end")
    if not query.values.get("start"):
        query.problems.append("start is required: an ISO 8601 time such as 2026-01-31T00:00:00+01:00.")
    if start is None or (end is None and query.values.get("end")):
        return None
    try:
        return window_of(start, end, now=now, bucket=_bucket(bucket))
    except ValueError as error:
        text = str(error)
        query.problems.append(f"{text[:1].upper()}{text[1:]}.")
        return None


def _read_group(query: Query) -> str | None:
    text: str | None = query.values.get("group_by")
    if text is None or text in _GROUPS or _METADATA_GROUP.fullmatch(text):
        return text
    query.problems.append(f"group_by is {shown(text)}; accepted: {', '.join(_GROUPS)} or metadata:<key>.")
    return None


def _read_group_limit(query: Query) -> int:
    text = query.values.get("group_limit", str(GROUPS_DEFAULT))
    limit = int(text) if re.fullmatch(r"[0-9]{1,4}", text) else 0
    if 1 <= limit <= GROUPS_MAX:
        return limit
    query.problems.append(f"group_limit is {shown(text)}; accepted is a whole number from 1 to {GROUPS_MAX}.")
    return GROUPS_DEFAULT


def _dimension(text: str) -> Dimension:
    assert text in _GROUPS
    return cast(Dimension, text)


def _bucket(text: str) -> BucketName:
    assert text in BUCKET_LENGTHS
    return cast(BucketName, text)


def _document(
    series: Sequence[tuple[datetime, UsageSums]], length: timedelta, groups: Sequence[tuple[str, UsageSums]] | None
) -> dict[str, Any]:
    totals = sum((sums for _, sums in series), UsageSums())
    found: dict[str, Any] = {
        "items": [{**_bucket_fields(first, length), **usage_fields(sums)} for first, sums in series],
        "totals": usage_fields(totals),
    }
    if groups is not None:
        rest = totals - sum((sums for _, sums in groups), UsageSums())
        found["groups"] = [{"group": value or None, **usage_fields(sums)} for value, sums in groups]
        found["groups_rest"] = usage_fields(rest)
    return found


def _csv(
    series: Sequence[tuple[datetime, UsageSums]], length: timedelta, groups: Sequence[tuple[str, UsageSums]] | None
) -> web.Response:
    rows: list[Mapping[str, Any]]
    if groups is not None:
        rows = [{"group": value, **usage_fields(sums)} for value, sums in groups]
        header = ["group", *usage_fields(UsageSums())]
    else:
        rows = [{**_bucket_fields(first, length), **usage_fields(sums)} for first, sums in series]
        header = ["date", "start", "end", *usage_fields(UsageSums())]
    text = csv_line(header) + "".join(csv_line([row[name] for name in header]) for row in rows)
    return web.Response(
        body=text.encode(),
        headers={"Content-Type": "text/csv; charset=utf-8", "Content-Disposition": 'attachment; filename="usage.csv"'},
    )


def _bucket_fields(first: datetime, length: timedelta) -> dict[str, str]:
    """First and last second of the bucket, in the zone of the question."""
    return {"date": first.date().isoformat(), "start": iso(first), "end": iso(first + length - timedelta(seconds=1))}


def usage_fields(sums: UsageSums) -> dict[str, Any]:
    """The sums by their newest names and those that older clients read; exact decimal dollars with ten places.

    `total_gross_volume` is what customers were charged, `total_net_volume` what is left of it after the providers' cost.
    """
    return {
        "total_requests": sums.requests,
        "total_usage_tokens": sums.input_tokens + sums.output_tokens,
        "total_cost": format_usd(sums.cost_nanos),
        "total_charge": format_usd(sums.charge_nanos),
        "total_errors": sums.errors,
        "total_input_tokens": sums.input_tokens,
        "total_output_tokens": sums.output_tokens,
        "total_characters": sums.input_characters + sums.output_characters,
        "total_seconds": seconds(sums.input_micros + sums.output_micros),
        "total_usage_cost": format_usd(sums.cost_nanos),
        "total_fee_amount": format_usd(sums.fee_nanos),
        "total_service_charge_amount": _NOTHING,
        "total_request_cost": format_usd(sums.wallet_nanos + sums.merchant_nanos),
        "total_wallet_cost": format_usd(sums.wallet_nanos),
        "total_merchant_cost": format_usd(sums.merchant_nanos),
        "total_gross_volume": format_usd(sums.wallet_nanos),
        "total_net_volume": format_usd(sums.net_nanos),
    }
