"""Series over time as uPlot draws them, and as the table that says the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import orjson

from lava_proxy.domain.money import format_usd
from lava_proxy.web.pages import number, usd

Unit = Literal["count", "nanos"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: a number a moment, in counts or nano-USD."""

    label: str
    values: Sequence[int]
    unit: Unit = "count"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """`label` says in words what is drawn; every series has a value for each of `times`."""

    label: str
    times: Sequence[datetime]
    series: Sequence[Series]
    by_day: bool = True

    @property
    def json(self) -> str:
        """For `chart.js`: {"times": [s], "byDay": bool, "series": [{"label", "unit", "values": ["decimal"]}]}."""
        lines = [
            {"label": one.label, "unit": one.unit, "values": [_plain(value, one.unit) for value in one.values]}
            for one in self.series
        ]
        times = [int(at.timestamp()) for at in self.times]
        return orjson.dumps({"times": times, "byDay": self.by_day, "series": lines}).decode()

    @property
    def rows(self) -> list[list[str]]:
        """The table's rows, newest first: the moment, then each series' value."""
        shape = "%Y-%m-%d" if self.by_day else "%Y-%m-%d %H:%M UTC"
        found = [[at.strftime(shape), *(_shown(one.values[n], one.unit) for one in self.series)] for n, at in enumerate(self.times)]
        return found[::-1]


def _plain(value: int, unit: Unit) -> str:
    return format_usd(value, 9) if unit == "nanos" else str(value)


def _shown(value: int, unit: Unit) -> str:
    return usd(value) if unit == "nanos" else number(value)
