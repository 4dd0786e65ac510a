"""tests/invariants.md names only tests that exist, and every id that a money test claims is in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
TABLES = (TESTS / "invariants.md").read_text()


def functions() -> dict[str, str]:
    """Name -> first line of the docstring, of every test."""
    found = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found[node.name] = (ast.get_docstring(node) or "").partition("\n")[0]
    return found


def test_every_test_that_the_tables_name_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", TABLES))
    assert len(named) > 60
    assert named - set(functions()) == set()


def test_every_id_that_a_test_claims_is_in_the_tables() -> None:
    listed = set(re.findall(r"^\| ([A-L]?\d+) \|", TABLES, re.MULTILINE))
    claimed = {}
    for name, line in functions().items():
        head = line.partition(":")[0].rstrip(".")
        if re.fullmatch(r"[A-L]?\d{1,3}(, [A-L]?\d{1,3})*", head):
            claimed.update(dict.fromkeys(head.split(", "), name))
    # Cases of the card and of the calendar (54 to 106) come with payments and plans.
    unknown = {
        case: name for case, name in claimed.items() if case not in listed and not (case.isdigit() and 54 <= int(case) <= 106)
    }
    assert unknown == {}


def test_every_line_says_what_guards_it() -> None:
    rows = re.findall(r"^\| ([A-L]?\d+) \|([^|]*)\|([^|]*)\|$", TABLES, re.MULTILINE)
    assert len(rows) > 190
    assert [row for row in rows if not row[1].strip() or not row[2].strip()] == []
