"""Query strings and path references read and checked; all problems of one request are told together.

Unknown parameters are ignored, as clients of later versions send them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from lava_proxy.domain.errors import CallerError, NotFound
from lava_proxy.domain.usage_window import Moment, parse_moment
from lava_proxy.stores.ids import created_ms

LIMIT_DEFAULT = 10
LIMIT_MAX = 100
TEXT_CHARS_MAX = 255
FILTER_PAIRS_MAX = 100

_LIMIT = re.compile(r"[0-9]{1,3}")
_METADATA_KEY = re.compile(r"[A-Za-z0-9_]{1,255}")
_METADATA_ACCEPTED = 'a JSON array of at most 100 ["key", "value"] pairs of text'


@dataclass(frozen=True, slots=True)
class Page:
    """`before`: the id of the last item the caller has seen; None for the first page."""

    before: str | None
    limit: int


@dataclass(slots=True)
class Query:
    """A query string being read. Each reader notes what is wrong and returns a harmless value; `check` raises for all of it."""

    values: Any  # aiohttp's MultiMapping[str]
    problems: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises CallerError naming each problem: the field, what it was, what is accepted."""
        if self.problems:
            raise CallerError(" ".join(self.problems), code="invalid_parameter")

    def page(self, prefix: str) -> Page:
        """`limit` (1 to 100, 10 when absent) and `cursor` (an id that starts with `prefix`)."""
        limit_text = self.values.get("limit", str(LIMIT_DEFAULT))
        limit = int(limit_text) if _LIMIT.fullmatch(limit_text) else 0
        if not 1 <= limit <= LIMIT_MAX:
            self.problems.append(f"limit is {shown(limit_text)}; accepted is a whole number from 1 to {LIMIT_MAX}.")
            limit = LIMIT_DEFAULT
        cursor = self.values.get("cursor") or None
        if cursor is not None and not _is_id(cursor, prefix):
            self.problems.append(f"cursor is {shown(cursor)}; accepted is the next_cursor of the page before ({prefix}_...).")
            cursor = None
        return Page(cursor, limit)

    def text(self, *names: str) -> str | None:
        """The value of a parameter that has several names; None when absent."""
        found = {self.values[name]: name for name in names if name in self.values}
        if len(found) > 1:
            self.problems.append(f"{' and '.join(found.values())} are names of one filter but have different values; send one.")
            return None
        for value, name in found.items():
            if not is_reference(value):
                self.problems.append(f"{name} is {shown(value)}; accepted are 1 to {TEXT_CHARS_MAX} printable characters.")
                return None
            return str(value)
        return None

    def metadata_filters(self) -> dict[str, str]:
        """`metadata_filters`: key -> value, all of which a request must have; empty when absent."""
        text = self.values.get("metadata_filters")
        if text is None:
            return {}
        pairs = _pairs(text)
        if pairs is None:
            self.problems.append(f"metadata_filters is {shown(text)}; accepted is {_METADATA_ACCEPTED}.")
            return {}
        filters: dict[str, str] = {}
        for key, value in pairs:
            if filters.setdefault(key, value) != value:
                self.problems.append(f"metadata_filters has {shown(key)} twice with different values; no request can match both.")
        return filters


def read_moment(query: Query, name: str) -> Moment | None:
    """A time; None when it is absent, or wrong, which is noted."""
    text = query.values.get(name)
    if not text:
        return None
    try:
        return parse_moment(text)
    except ValueError as error:
        query.problems.append(f"{name} is {shown(text)}: {error}.")
        return None


def read_choice(query: Query, name: str, accepted: Sequence[str]) -> str:
    """One of the words, the first when absent or wrong; what is wrong is noted."""
    text = query.values.get(name, accepted[0])
    if text in accepted:
        return str(text)
    query.problems.append(f"{name} is {shown(text)}; accepted: {', '.join(accepted)}.")
    return accepted[0]


def shown(text: str) -> str:
    """A caller's value for an error sentence: quoted and short."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def path_reference(request: web.Request, name: str) -> str:
    """An id, reference id or secret in the path. Raises NotFound for text that can be none of these."""
    value = request.match_info[name]
    if not is_reference(value):
        raise NotFound("No such thing of yours.")
    return value


def is_reference(value: str) -> bool:
    """Can this be an id or a reference id? (Never a NUL, which Postgres refuses.)"""
    return 0 < len(value) <= TEXT_CHARS_MAX and value.isprintable()


def _is_id(text: str, prefix: str) -> bool:
    try:
        created_ms(text)
    except ValueError:
        return False
    return text.startswith(f"{prefix}_") and len(text) <= TEXT_CHARS_MAX and text.isascii() and text.isprintable()


def _pairs(text: str) -> Sequence[tuple[str, str]] | None:
    """The pairs, or None when the text is anything else."""
    try:
        value = orjson.loads(text.encode("utf-8", "replace"))
    except orjson.JSONDecodeError:
        return None
    if not isinstance(value, list) or len(value) > FILTER_PAIRS_MAX:
        return None
    return [(pair[0], pair[1]) for pair in value] if all(_is_pair(pair) for pair in value) else None


def _is_pair(pair: object) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        return False
    key, value = pair
    return bool(_METADATA_KEY.fullmatch(key)) and 0 < len(value) <= TEXT_CHARS_MAX and "\0" not in value
