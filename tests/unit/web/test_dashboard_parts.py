"""The small parts that the dashboard's pages are made of: forms, charts, amounts."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest

from lava_proxy.stores.audit_log import Actor, AuditEntry
from lava_proxy.web.dashboard.charts import Chart, Series
from lava_proxy.web.dashboard.forms import Form
from lava_proxy.web.dashboard.sign_in import _next_of
from lava_proxy.web.pages import money

USD = 1_000_000_000


def test_a_form_tells_the_problems_of_all_fields_and_keeps_what_was_typed() -> None:
    form = Form({"name": " Acme ", "long": "x" * 300, "rate": "ten", "count": "-1", "kind": "c", "tab": "a\tb"})
    assert form.text("name") == "Acme" and form.is_good
    assert form.text("missing") is None and form.text("long") is None and form.text("tab") is None
    assert form.usd("rate") is None and form.integer("count") is None and form.choice("kind", ("a", "b")) is None
    assert set(form.errors) == {"missing", "long", "tab", "rate", "count", "kind"}
    assert form.value("rate") == "ten" and form.errors["kind"] == "Choose one of a, b."


@pytest.mark.parametrize(
    ("typed", "nanos"),
    [("25", 25 * USD), ("$1,000.50", 1_000 * USD + USD // 2), ("0.000000001", 1), ("1e-10", None), ("NaN", None), ("-1", None)],
)
def test_dollars_are_read_exactly_or_not_at_all(typed: str, nanos: int | None) -> None:
    form = Form({"amount": typed})
    assert form.usd("amount") == nanos and form.is_good is (nanos is not None)


def test_bounds_are_inclusive_and_what_is_not_required_may_be_empty() -> None:
    form = Form({"a": "5", "b": "", "c": "5.00"})
    assert form.integer("a", least=5, most=5) == 5 and form.integer("b", is_required=False) is None
    assert form.usd("c", least=5 * USD, most=5 * USD) == 5 * USD and form.usd("b", is_required=False) is None
    assert form.text("b", is_required=False) is None and form.is_good
    assert form.usd("c", most=4 * USD) is None and not form.is_good


def test_a_chart_and_its_table_say_the_same() -> None:
    chart = Chart(
        label="Money",
        times=[datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)],
        series=[Series(label="Charged", values=[1, 1_500_000_000], unit="nanos"), Series(label="Calls", values=[0, 1234])],
    )
    assert chart.rows == [["2026-01-02", "$1.50", "1,234"], ["2026-01-01", "$0.000000001", "0"]]
    drawn = orjson.loads(chart.json)
    assert [one["values"] for one in drawn["series"]] == [["0.000000001", "1.500000000"], ["0", "1234"]]
    assert drawn["times"] == [1767225600, 1767312000]


def test_amounts_in_lists_are_short_and_never_show_nothing_for_something() -> None:
    assert [money(n) for n in (0, 1_234_567_890_000, 1_005_000, -2_500_000_000, None)] == [
        "$0.00", "$1,234.57", "$0.001005", "-$2.50", "–"
    ]  # fmt: skip
    assert money(1) == "<$0.000001" and money(-1) == "-<$0.000001"


def test_an_entry_of_the_audit_log_tells_only_what_differs() -> None:
    entry = AuditEntry(
        audit_id="aud_1", actor=Actor(kind="cli", id="r", name="r"), action="meter.change", object_kind="meter", object_id="prd_1",
        before={"rate": "20", "name": "a"}, after={"rate": "15", "name": "a", "unit": "x"}, at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    assert entry.changes() == [("rate", "20", "15"), ("unit", None, "x")]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("/dashboard/requests?status=error", "/dashboard/requests?status=error"),
        ("/auth/connect?state=a&port=1", "/auth/connect?state=a&port=1"),
        ("/dashboard/requests?next=a/../b", "/dashboard/requests?next=a/../b"),
        ("/dashboard/../..//x.example", "/dashboard"), ("/dashboard/%2e%2E//x.example", "/dashboard"),
        ("/dashboard/./..//x.example", "/dashboard"), ("/dashboard/..", "/dashboard"), ("/dashboard//x.example", "/dashboard"),
        ("/dashboardx", "/dashboard"), ("/dashboard\n", "/dashboard"), ("//x", "/dashboard"), ("", "/dashboard"),
    ],
)  # fmt: skip
def test_a_sign_in_leads_to_the_dashboard_or_to_connecting_a_program(text: str, target: str) -> None:
    assert _next_of(text) == target
