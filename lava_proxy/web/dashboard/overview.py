"""/dashboard: how the business does: calls, tokens, cost, charges, margin; who and what; and how the engines do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from aiohttp import web

from lava_proxy.domain.money import round_half_even
from lava_proxy.domain.usage_window import BucketName, Moment, UsageWindow, window_of
from lava_proxy.stores.dashboard_store import AT_RISK_DAYS, PACE_DAYS, DashboardStore
from lava_proxy.stores.engine_health import Health
from lava_proxy.stores.usage_store import UsageStore, UsageSums
from lava_proxy.web.dashboard.charts import Chart, Series
from lava_proxy.web.dashboard.first_steps import FirstSteps
from lava_proxy.web.dashboard.frame import View, is_part, session_of
from lava_proxy.web.dashboard.said import SAID

RANGES: dict[str, tuple[str, int, BucketName]] = {
    "1": ("Today", 1, "hour"),
    "7": ("7 days", 7, "day"),
    "30": ("30 days", 30, "day"),
}
"""What the switch offers: value -> (title, UTC days with today, bucket)."""

_DEFAULT_RANGE = "7"
_TOP = 5
_GOOD = frozenset({"completed", "provider_final", "reported"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A part of all requests: `permille` of them."""

    name: str
    requests: int
    permille: int
    is_good: bool

    @property
    def percent(self) -> str:
        return f"{self.permille // 10}.{self.permille % 10} %"


class Overview:
    """The first page and its two parts."""

    def __init__(
        self,
        view: View,
        usage: UsageStore,
        store: DashboardStore,
        health: Health,
        steps: FirstSteps,
        clock: Callable[[], datetime],
    ) -> None:
        self._view = view
        self._steps = steps
        self._usage = usage
        self._store = store
        self._health = health
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/dashboard", self.page), web.get("/dashboard/health", self.health)]

    async def page(self, request: web.Request) -> web.StreamResponse:
        """The whole page, or for htmx the figures of another range."""
        chosen = request.query.get("range", _DEFAULT_RANGE)
        if chosen not in RANGES:
            chosen = _DEFAULT_RANGE
        title, days, bucket = RANGES[chosen]
        merchant_id, now = session_of(request).merchant.merchant_id, self._clock()
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        window = window_of(Moment(at=midnight - timedelta(days=days - 1)), None, now=now, bucket=bucket)
        series, customers, models, outcomes, provenances, at_risk = await asyncio.gather(
            self._usage.series(merchant_id, window),
            self._usage.top(merchant_id, window, "customer", _TOP),
            self._usage.top(merchant_id, window, "model", _TOP),
            self._usage.shares(merchant_id, window, "outcome"),
            self._usage.shares(merchant_id, window, "provenance"),
            self._store.at_risk(merchant_id, midnight - timedelta(days=PACE_DAYS - 1), _TOP),
        )
        totals = sum((sums for _, sums in series), UsageSums())
        names = await self._store.customer_names(merchant_id, [connection_id for connection_id, _ in customers])
        values: dict[str, Any] = {
            "ranges": RANGES,
            "chosen": chosen,
            "range_title": title,
            "totals": totals,
            "margin": _percent(totals.net_nanos, totals.wallet_nanos),
            "money": _money_chart(title, window, series),
            "calls": _calls_chart(title, window, series),
            "customers": [(one, names.get(one, one), sums) for one, sums in customers if one],
            "models": [(name or "(no model)", name, sums) for name, sums in models],
            "outcomes": _shares(outcomes),
            "provenances": _shares(provenances),
            "at_risk": at_risk,
            "at_risk_days": AT_RISK_DAYS,
            "at_risk_pace_days": PACE_DAYS,
            **await self._steps.values(request),
        }
        if is_part(request):
            return self._view.part(request, "overview_figures.html", **values)
        response = self._view.page(request, "overview.html", "", report=await self._health.report(), **values)
        self._steps.note_shown(request, response)
        return response

    async def health(self, request: web.Request) -> web.StreamResponse:
        """The engines' state as a part, asked for every few seconds."""
        return self._view.part(request, "overview_health.html", report=await self._health.report())


def _percent(part: int, whole: int) -> str:
    if whole <= 0:
        return ""
    permille = round_half_even(1000 * part, whole)
    sign, permille = ("-" if permille < 0 else ""), abs(permille)
    return f"{sign}{permille // 10}.{permille % 10} % of charges"


def _shares(found: Mapping[str, UsageSums]) -> list[Share]:
    """Largest first."""
    total = sum(sums.requests for sums in found.values())
    shares = [
        Share(
            name=SAID.get(name, name),
            requests=sums.requests,
            permille=round_half_even(1000 * sums.requests, total),
            is_good=name in _GOOD,
        )
        for name, sums in found.items()
        if sums.requests
    ]
    return sorted(shares, key=lambda share: (-share.requests, share.name))


def _money_chart(title: str, window: UsageWindow, series: list[tuple[datetime, UsageSums]]) -> Chart:
    return Chart(
        label=f"Charged to customers and provider cost, {title.lower()}",
        times=[at for at, _ in series],
        by_day=window.bucket == "day",
        series=[
            Series(label="Charged", values=[sums.wallet_nanos for _, sums in series], unit="nanos"),
            Series(label="Provider cost", values=[sums.cost_nanos for _, sums in series], unit="nanos"),
        ],
    )


def _calls_chart(title: str, window: UsageWindow, series: list[tuple[datetime, UsageSums]]) -> Chart:
    return Chart(
        label=f"Calls and failures, {title.lower()}",
        times=[at for at, _ in series],
        by_day=window.bucket == "day",
        series=[
            Series(label="Calls", values=[sums.requests for _, sums in series]),
            Series(label="Failed", values=[sums.errors for _, sums in series]),
        ],
    )
