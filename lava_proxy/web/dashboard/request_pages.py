"""/dashboard/requests: every call, the running ones first, filtered, paged, exported; and one call with all that made its price."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import structlog
from aiohttp import hdrs, web

from lava_proxy.billing.request_file import MEDIA_TYPES, RequestFile
from lava_proxy.billing.request_object import request_object
from lava_proxy.domain.catalog import MeterVersion, Tier
from lava_proxy.domain.errors import CallerError, LavaError, NotFound, StoreError
from lava_proxy.domain.fees import format_tier
from lava_proxy.domain.usage_window import parse_moment
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.dashboard_store import DashboardStore
from lava_proxy.stores.ledger_store import LedgerStore
from lava_proxy.stores.open_calls import OpenCall, OpenCalls
from lava_proxy.stores.references import MeterVersions, connection_id_of, meter_id_of
from lava_proxy.stores.request_export import RequestExport, RequestFilter
from lava_proxy.web.dashboard.forms import Form
from lava_proxy.web.dashboard.frame import View, session_of
from lava_proxy.web.dashboard.said import SAID

PAGE_ROWS = 50
OPEN_CALLS_MAX = 20
_LIST_TIMEOUT_S = 5
_MODELS_DAYS = 90
_STATUSES = ("completed", "error", "pending")
_FILTERS = ("customer", "meter", "provider", "model", "status", "metadata", "from", "to")
_PAIR = re.compile(r"\s*([A-Za-z0-9_]{1,255})\s*[=:]\s*(\S(?:.{0,254}\S)?)\s*")
_log = structlog.get_logger("dashboard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What the visitor wants to see. `is_nobody`: a customer or meter that does not exist."""

    form: Form
    filters: RequestFilter
    before: str | None = None
    is_nobody: bool = False
    is_pending_only: bool = False
    given: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_live(self) -> bool:
        """Does the list follow what happens now? Not on older pages, nor in a time that is over."""
        return self.before is None and self.filters.end is None and self.form.is_good and not self.is_nobody

    @property
    def shows_open(self) -> bool:
        return self.is_live and self.filters.status is None and not self.filters.metadata

    def address(self, path: str, **more: str) -> str:
        query = urlencode({**self.given, **more})
        return f"{path}?{query}" if query else path

    def wants(self, call: OpenCall) -> bool:
        """Does an open call belong to the list?"""
        wanted = self.filters
        return (
            wanted.connection_id in (None, call.connection_id)
            and wanted.meter_id in (None, call.meter_id)
            and wanted.provider in (None, call.provider)
            and wanted.model in (None, call.model)
            and (wanted.start is None or call.started_at >= wanted.start)
        )


class RequestPages:
    """The list, its rows, its file, and one request."""

    def __init__(
        self,
        view: View,
        catalog: CatalogStore,
        ledger: LedgerStore,
        export: RequestExport,
        open_calls: OpenCalls,
        store: DashboardStore,
        clock: Callable[[], datetime],
    ) -> None:
        self._view = view
        self._catalog = catalog
        self._ledger = ledger
        self._export = export
        self._open_calls = open_calls
        self._store = store
        self._clock = clock
        self._versions = MeterVersions(catalog)
        self._file = RequestFile(catalog)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/dashboard/requests", self.page),
            web.get("/dashboard/requests/rows", self.rows),
            web.get("/dashboard/requests/export", self.export),
            web.get("/dashboard/requests/{request_id:.+}", self.one),
        ]

    async def page(self, request: web.Request) -> web.StreamResponse:
        """The list with its filters; an id that is typed leads to its request."""
        merchant_id = session_of(request).merchant.merchant_id
        wanted_id = request.query.get("id", "").strip()
        if wanted_id:
            wanted_id = await self._our_id(merchant_id, wanted_id)
            return self._view.redirect(request, f"/dashboard/requests/{quote(wanted_id, safe='')}")
        chosen = await self._chosen(request)
        meters, models, values = await asyncio.gather(
            self._store.meter_names(merchant_id),
            self._store.models(merchant_id, self._clock() - timedelta(days=_MODELS_DAYS)),
            self._list(request, chosen),
        )
        return self._view.page(
            request, "requests.html", "requests", status=200 if chosen.form.is_good else 422, meters=meters,
            models=sorted({model for _, model in models if model}), providers=sorted({provider for provider, _ in models}),
            statuses=_STATUSES, **values,
        )  # fmt: skip

    async def rows(self, request: web.Request) -> web.StreamResponse:
        """The list alone, as it is asked for every two seconds."""
        chosen = await self._chosen(request)
        return self._view.part(request, "request_rows.html", **await self._list(request, chosen))

    async def export(self, request: web.Request) -> web.StreamResponse:
        """All that the filters let through, streamed. The first page is read before the answer begins, so that it can fail."""
        chosen = await self._chosen(request)
        file_format = request.query.get("format", "csv")
        if file_format not in MEDIA_TYPES:
            raise CallerError("A file is csv or ndjson.", code="invalid_parameter")
        if not chosen.form.is_good:
            raise CallerError(" ".join(chosen.form.errors.values()), code="invalid_parameter")
        merchant_id = session_of(request).merchant.merchant_id
        pages = self._export.pages(merchant_id, chosen.filters)
        is_empty = chosen.is_nobody or chosen.is_pending_only
        page: list[dict[str, Any]] = [] if is_empty else await anext(pages, [])
        response = web.StreamResponse(
            headers={
                hdrs.CONTENT_TYPE: MEDIA_TYPES[file_format],
                hdrs.CONTENT_DISPOSITION: f'attachment; filename="requests.{file_format}"',
            }
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            await response.write(self._file.head(file_format))
            while page:
                await response.write(await self._file.lines(page, file_format))
                page = await anext(pages, [])
        except LavaError as error:
            # The status is gone: only a cut connection tells the reader that the file is not whole.
            _log.warning("An export ended early", action="export_cut", error=error.message[:200])
            if request.transport is not None:
                request.transport.abort()
        else:
            await response.write_eof()
        return response

    async def one(self, request: web.Request) -> web.StreamResponse:
        """One request; while it runs, a page that says so and asks again."""
        merchant_id, request_id = session_of(request).merchant.merchant_id, request.match_info["request_id"]
        if len(request_id) > 255 or not request_id.isprintable():
            raise NotFound("No request of yours has this id.")
        row = await self._ledger.request(merchant_id, request_id)
        if row is None:
            running = await self._running(merchant_id, request_id)
            if running is None:
                raise NotFound("No request of yours has this id.")
            return self._view.page(request, "request_open.html", "requests", call=running)
        version, movement = await asyncio.gather(
            self._versions.get(row["meter_version"]), self._store.movement(row["wallet_id"], row["wseq"])
        )
        names = await self._store.customer_names(merchant_id, [row["connection_id"]] if row["connection_id"] else [])
        found = request_object(row, version)
        return self._view.page(
            request, "request.html", "requests", row=row, found=found, version=version, movement=movement,
            customer=names.get(row["connection_id"] or "", row["connection_id"]), lines=_charge_lines(row, version),
            said=SAID, cost_lines=row["breakdown"].get("cost", []), timings=_timings(row["timings"]), flags=_flags(row["flags"]),
            margin=row["charge_nanos"] - (0 if row["provider_key_type"] == "unmanaged" else row["cost_nanos"]),
        )  # fmt: skip

    async def _our_id(self, merchant_id: str, typed: str) -> str:
        """The id of a request that somebody typed: merchants' own ids may be anything, also the name of a page."""
        row = await self._ledger.request(merchant_id, typed) if len(typed) <= 255 and typed.isprintable() else None
        if row is not None:
            return str(row["request_id"])
        if not typed.startswith("req_"):
            raise NotFound("No request of yours has this id.")
        return typed

    async def _running(self, merchant_id: str, request_id: str) -> OpenCall | None:
        calls = await self._open_calls.of_merchant(merchant_id, 1, lambda call: call.request_id == request_id)
        return calls[0] if calls else None

    async def _list(self, request: web.Request, chosen: Chosen) -> dict[str, Any]:
        """What the rows' template shows."""
        merchant_id = session_of(request).merchant.merchant_id
        open_calls: list[OpenCall] = []
        is_blind = False
        if chosen.shows_open:
            try:
                open_calls = await self._open_calls.of_merchant(merchant_id, OPEN_CALLS_MAX, chosen.wants)
            except StoreError:  # what has ended can still be shown
                is_blind = True
        rows: list[dict[str, Any]] = []
        if chosen.form.is_good and not chosen.is_nobody and not chosen.is_pending_only:
            try:
                rows = await self._export.page(
                    merchant_id, chosen.filters, before=chosen.before, limit=PAGE_ROWS + 1, timeout_s=_LIST_TIMEOUT_S
                )
            except CallerError as error:
                chosen.form.fail("from", error.message)
        ended = {row["request_id"] for row in rows}
        open_calls = [call for call in open_calls if call.request_id not in ended]
        shown = rows[:PAGE_ROWS]
        ids = {row["connection_id"] for row in shown} | {call.connection_id for call in open_calls}
        names = await self._store.customer_names(merchant_id, [one for one in ids if one is not None])
        return {
            "chosen": chosen,
            "form": chosen.form,
            "open_calls": open_calls,
            "is_blind": is_blind,
            "rows": [
                {**row, "tokens": _tokens(row["usage"]), "shown_id": row["request_key"] or row["request_id"]} for row in shown
            ],
            "names": names,
            "said": SAID,
            "next": chosen.address("/dashboard/requests", before=shown[-1]["request_id"]) if len(rows) > PAGE_ROWS else "",
            "first": chosen.address("/dashboard/requests") if chosen.before else "",
            "again": chosen.address("/dashboard/requests/rows"),
            "is_filtered": bool(chosen.given),
        }

    async def _chosen(self, request: web.Request) -> Chosen:
        """The filters of the address. What is wrong with them stands in the form's errors."""
        merchant_id = session_of(request).merchant.merchant_id
        given = {name: value for name in _FILTERS if (value := request.query.get(name, "").strip())}
        form = Form({name: given.get(name, "") for name in _FILTERS})
        for name, value in given.items():
            if len(value) > 1000 or not value.isprintable():
                form.fail(name, "At most 1,000 printable characters.")
        before = request.query.get("before") or None
        if before is not None and (len(before) > 255 or not before.isprintable()):
            form.fail("from", "The address of this page is not one of ours.")
        start, end = _moment(form, "from"), _moment(form, "to")
        if start is not None and end is not None and end <= start:
            form.fail("to", "This is before the start.")
        metadata = _metadata(form)
        status = form.value("status")
        if status and status not in _STATUSES:
            form.fail("status", f"Choose one of {', '.join(_STATUSES)}.")
        connection_id = meter_id = None
        if form.is_good and "customer" in given:
            connection_id = await connection_id_of(self._catalog, merchant_id, given["customer"])
        if form.is_good and "meter" in given:
            meter_id = await meter_id_of(self._catalog, merchant_id, given["meter"])
        filters = RequestFilter(
            connection_id=connection_id, meter_id=meter_id, metadata=metadata, provider=given.get("provider"),
            status=status if status in ("completed", "error") else None, model=given.get("model"), start=start, end=end,
        )  # fmt: skip
        is_nobody = ("customer" in given and connection_id is None) or ("meter" in given and meter_id is None)
        return Chosen(
            form=form, filters=filters, before=before, is_nobody=is_nobody, is_pending_only=status == "pending", given=given
        )  # fmt: skip


def _moment(form: Form, name: str) -> datetime | None:
    text = form.value(name)
    if not text:
        return None
    try:
        moment = parse_moment(text)
    except ValueError as error:
        form.fail(name, f"This is no time: {error}.")
        return None
    return moment.after if name == "to" else moment.at


def _metadata(form: Form) -> dict[str, str]:
    """`key=value` pairs, separated by commas; all must be there."""
    text = form.value("metadata")
    found: dict[str, str] = {}
    for part in text.split(",") if text else ():
        pair = _PAIR.fullmatch(part)
        if pair is None:
            form.fail("metadata", "Write it as key=value; several with commas between them.")
            return {}
        found[pair[1]] = pair[2]
    return found


def _tokens(usage: Mapping[str, Any]) -> tuple[int, int]:
    """Of the input and of the output; what strangers reported as something else counts as nothing."""
    found = [usage.get(name) for name in ("input_tokens", "output_tokens")]
    read, made = (value if isinstance(value, int) else 0 for value in found)
    return read, made


def _charge_lines(row: Mapping[str, Any], version: MeterVersion | None) -> list[dict[str, Any]]:
    """How the charge came about, tier by tier: what, how many units at which rate, nano-USD."""
    if version is None:
        return []
    unit = {"tokens_1m": "tokens", "characters_1m": "characters", "minutes": "seconds", "requests": "requests"}[version.tier_type]
    found = []
    for start, rate, units, nanos in row["breakdown"].get("charge", ()):
        tier = format_tier(version.rate_type, version.tier_type, Tier(start=start, rate=rate))
        if version.rate_type == "percentage":
            line = {"units": units, "unit": "cost", "rate": f"{tier['rate']} % on top"}
        elif version.tier_type == "minutes":
            line = {"units": units // 1_000_000, "unit": unit, "rate": f"${tier['rate']} a minute"}
        elif version.tier_type == "requests":
            line = {"units": units, "unit": unit, "rate": f"${tier['rate']} each"}
        else:
            line = {"units": units, "unit": unit, "rate": f"${tier['rate']} per million"}
        found.append({**line, "start": tier["start"], "nanos": nanos})
    return found


def _timings(timings: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What took how long, in milliseconds; and what was counted, such as delivered bytes or tries."""
    titles = {"ttfb_us": "First byte from the provider", "total_us": "The whole call", "overhead_us": "Of it by the gateway"}
    return [
        (
            titles.get(name, name.removesuffix("_us").replace("_", " ").capitalize()),
            f"{value // 1000:,}.{value % 1000:03d} ms" if name.endswith("_us") else f"{value:,}",
        )
        for name, value in (timings or {}).items()
        if isinstance(value, int)
    ]


def _flags(flags: str) -> list[str]:
    said = {
        "l": "Settled late: its hold had ended before",
        "o": "Used more than was held for it",
        "b": "Took the balance below its line",
    }
    return [said.get(flag, flag) for flag in flags]
