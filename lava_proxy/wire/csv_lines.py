"""Lines of CSV (RFC 4180) that a spreadsheet does not run: text that it would take for a formula is marked as text."""

from __future__ import annotations

import re
from collections.abc import Sequence

_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_QUOTED = re.compile(r'[",\r\n]')


def csv_line(cells: Sequence[object]) -> str:
    """One line with its CRLF. None is an empty cell, booleans are true and false, numbers stay as they are."""
    return ",".join(map(_cell, cells)) + "\r\n"


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    # An apostrophe makes text of a cell (owasp.org/www-community/attacks/CSV_Injection); spaces before a formula hide nothing.
    if text.lstrip(" ").startswith(_STARTS) and not _NUMBER.fullmatch(text):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text
