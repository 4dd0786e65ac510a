"""GET /v1/requests/export: every request of a filter as CSV or as lines of JSON, streamed a page at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import structlog
from aiohttp import web
from pydantic import Field

from lava_proxy.api.authentication import merchant_of
from lava_proxy.api.operations import Operation
from lava_proxy.api.queries import Query, read_choice, read_moment, shown
from lava_proxy.api.request_scope import RequestScope, ScopeQuery
from lava_proxy.billing.request_file import MEDIA_TYPES, RequestFile
from lava_proxy.domain.errors import LavaError
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.request_export import RequestExport, RequestFilter

_STATUSES = ("completed", "error")
_log = structlog.get_logger("api")


class ExportQuery(ScopeQuery):
    """The parameters of GET /v1/requests/export."""

    format: str | None = Field(None, description="csv (default) or ndjson: the Request objects, one a line.")
    status: str | None = Field(None, description="completed or error.")
    provider: str | None = Field(None, description="A provider's name, such as openai.")
    model: str | None = Field(None, description="A model's name, as the requests have it.")


class Exports:
    """Downloads of stored requests."""

    def __init__(self, catalog: CatalogStore, export: RequestExport) -> None:
        self._catalog = catalog
        self._export = export
        self._file = RequestFile(catalog)

    def operations(self) -> list[Operation]:
        return [
            Operation(
                method="GET",
                path="/v1/requests/export",
                handler=self.requests,
                tag="Requests",
                summary="Download requests as CSV or lines of JSON",
                query=ExportQuery,
                media_type="text/csv",
            )
        ]

    async def requests(self, request: web.Request, _: ExportQuery) -> web.StreamResponse:
        """Newest first. The first page is read before the answer begins, so that what fails at once has a status of its own."""
        query = Query(request.query)
        file_format = read_choice(query, "format", ("csv", "ndjson"))
        filters, is_nobody = await self._filters(query, merchant_of(request).merchant_id)
        pages = _none() if is_nobody else self._export.pages(merchant_of(request).merchant_id, filters)
        page: list[dict[str, Any]] = await anext(pages, [])
        response = web.StreamResponse(
            headers={
                "Content-Type": MEDIA_TYPES[file_format],
                "Content-Disposition": f'attachment; filename="requests.{file_format}"',
            }
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            await response.write(self._file.head(file_format))
            while page:
                await response.write(await self._file.lines(page, file_format))  # waits for a slow reader
                page = await anext(pages, [])
        except LavaError as error:
            # The status is gone: only a cut connection tells the reader that the file is not whole.
            _log.warning("An export ended early", action="export_cut", error=error.message[:200])
            if request.transport is not None:
                request.transport.abort()
        else:
            await response.write_eof()
        return response

    async def _filters(self, query: Query, merchant_id: str) -> tuple[RequestFilter, bool]:
        """What is asked for; and whether a customer or meter was named that is nobody's."""
        start, end = read_moment(query, "start"), read_moment(query, "end")
        if start is not None and end is not None and end.after <= start.at:
            query.problems.append("End is before start.")
        scope = RequestScope.read(query)
        provider, model, status = query.text("provider"), query.text("model"), query.values.get("status")
        if status is not None and status not in _STATUSES:
            query.problems.append(f"status is {shown(status)}; accepted: {', '.join(_STATUSES)}.")
        query.check()
        connection_id, meter_id, is_nobody = await scope.ids(self._catalog, merchant_id)
        filters = RequestFilter(
            connection_id=connection_id, meter_id=meter_id, metadata=scope.metadata, status=status, provider=provider, model=model,
            start=start.at if start else None, end=end.after if end else None,
        )  # fmt: skip
        return filters, is_nobody


async def _none() -> AsyncIterator[list[dict[str, Any]]]:
    return
    yield
