"""api/csv_lines.py: what a CSV reader reads is what was written, and no cell is a formula."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lava_proxy.wire.csv_lines import csv_line


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=2, max_size=5))
def test_a_line_reads_back_as_its_cells_but_for_the_apostrophe(cells: list[str]) -> None:
    (read,) = csv.reader(io.StringIO(csv_line(cells), newline=""), strict=True)
    assert [cell.removeprefix("'") for cell in read] == [cell.removeprefix("'") for cell in cells]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "  =1", '=HYPERLINK("http://x")', "-", "--1"])
def test_what_a_spreadsheet_would_run_becomes_text(text: str) -> None:
    (read,) = csv.reader(io.StringIO(csv_line([text, "x"]), newline=""))
    assert read == ["'" + text, "x"]
    assert not read[0].lstrip().startswith(("=", "+", "-", "@"))


def test_numbers_stay_numbers_and_nothing_is_an_empty_cell() -> None:
    assert csv_line(["-0.0045000001", -5, "12", None, True, "a,b", 'say "hi"']) == (
        '-0.0045000001,-5,12,,true,"a,b","say ""hi"""\r\n'
    )
