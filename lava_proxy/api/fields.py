"""The pieces that bodies and query strings are made of: names, references, decimal strings, times, metadata, pages.

Each is an annotated type: a check that says what is accepted, and the JSON Schema that the OpenAPI document shows. The checks
return what the program works with (nanos, aware times), so handlers convert nothing.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import Field, PlainValidator, ValidationInfo, WithJsonSchema, create_model, field_validator

from lava_proxy.api.operations import Answer, QueryString
from lava_proxy.domain.errors import NotFound
from lava_proxy.domain.money import AMOUNT_NANOS_MAX, NANOS_PER_USD, Nanos, parse_usd
from lava_proxy.stores.ids import created_ms
from lava_proxy.wire.texts import (
    EMAIL_CHARS_MAX,
    TEXT_CHARS_MAX,
    checked_email,
    checked_name,
    checked_phone,
    checked_reference_id,
    checked_text,
    is_reference,
)

METADATA_BYTES_MAX = 16_384
METADATA_DEPTH_MAX = 16
FILTER_PAIRS_MAX = 100
LIMIT_DEFAULT = 10
LIMIT_MAX = 100
WHOLE_MAX = 2**53
"""The largest whole number that every JSON reader keeps exactly."""

_LIMIT = re.compile(r"[0-9]{1,3}")
_METADATA_KEY = re.compile(r"[A-Za-z0-9_]{1,255}")
_FILTERS_ACCEPTED = 'accepted is a JSON array of at most 100 ["key", "value"] pairs of text'


# -- checks that fields share


def is_id(text: str, prefix: str) -> bool:
    """Is this an id of ours that starts with `prefix`, such as `req`?"""
    try:
        created_ms(text)
    except ValueError:
        return False
    return text.startswith(f"{prefix}_") and len(text) <= TEXT_CHARS_MAX and text.isascii() and text.isprintable()


def checked_reference(value: str, what: str = "thing") -> str:
    """An id, reference id or secret out of a path. Raises NotFound for text that can be none of these."""
    if not is_reference(value):
        raise NotFound(f"No such {what} of yours.")
    return value


def _usd(value: object) -> Nanos:
    try:
        nanos = parse_usd(value) if isinstance(value, str) else Nanos(-1)
    except ValueError:
        nanos = Nanos(-1)
    if not 0 <= nanos <= AMOUNT_NANOS_MAX:
        most = AMOUNT_NANOS_MAX // NANOS_PER_USD
        raise ValueError(f'accepted are dollars in a string, such as "25.00", from 0 to {most} with at most nine places')
    return nanos


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value <= WHOLE_MAX:
        raise ValueError(f"accepted is a whole number from 0 to {WHOLE_MAX}")
    return value


def _moment(value: object) -> datetime:
    message = 'accepted is a time such as "2026-12-31T23:59:59Z"'
    if not isinstance(value, str) or len(value) > 40:
        raise ValueError(message)
    try:
        found = datetime.fromisoformat(value)
        (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(message) from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def _metadata(value: object) -> dict[str, Any]:
    """Any JSON object of a bounded size and depth that Postgres can store: no NUL, no half of a character."""
    if not isinstance(value, dict):
        raise ValueError("accepted is a JSON object")
    if _depth(value) > METADATA_DEPTH_MAX:
        raise ValueError(f"accepted is a JSON object nested at most {METADATA_DEPTH_MAX} deep")
    if not _has_plain_numbers(value):
        raise ValueError("accepted is a JSON object whose numbers have at most 18 digits before and 18 after the point")
    if not _has_plain_texts(value):
        raise ValueError("accepted is a JSON object without NUL characters and halves of characters")
    if len(json.dumps(value, ensure_ascii=False, default=str).encode()) > METADATA_BYTES_MAX:
        raise ValueError(f"accepted is a JSON object of at most {METADATA_BYTES_MAX} bytes")
    return value


def _has_plain_numbers(value: object) -> bool:
    """Are all numbers in it of a size that every JSON reader, and Postgres, can hold?"""
    if isinstance(value, dict):
        return all(_has_plain_numbers(inner) for inner in value.values())
    if isinstance(value, list):
        return all(_has_plain_numbers(inner) for inner in value)
    if isinstance(value, Decimal):
        exponent = value.as_tuple().exponent
        return value.is_finite() and value.adjusted() < 18 and isinstance(exponent, int) and exponent >= -18
    return not isinstance(value, int) or abs(value) < 10**18


def _has_plain_texts(value: object) -> bool:
    """Has none of its texts what UTF-8 or Postgres cannot hold?"""
    if isinstance(value, dict):
        return all(_has_plain_texts(key) and _has_plain_texts(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(_has_plain_texts(inner) for inner in value)
    return not isinstance(value, str) or ("\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value))


def _depth(value: object) -> int:
    """How deep objects and arrays are nested, counted to just above what is accepted."""
    depth, level = 0, [value]
    while level and depth <= METADATA_DEPTH_MAX:
        nested = [one for one in level if isinstance(one, dict | list)]
        depth += bool(nested)
        level = [inner for one in nested for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


def _limit(value: object) -> int:
    limit = int(value) if isinstance(value, str) and _LIMIT.fullmatch(value) and value.isascii() else 0
    if not 1 <= limit <= LIMIT_MAX:
        raise ValueError(f"accepted is a whole number from 1 to {LIMIT_MAX}")
    return limit


def _filters(value: object) -> dict[str, str]:
    """`metadata_filters` as key -> value, all of which a row must have."""
    try:
        pairs = orjson.loads(str(value).encode("utf-8", "replace"))
    except orjson.JSONDecodeError:
        raise ValueError(_FILTERS_ACCEPTED) from None
    if not isinstance(pairs, list) or len(pairs) > FILTER_PAIRS_MAX or not all(_is_pair(pair) for pair in pairs):
        raise ValueError(_FILTERS_ACCEPTED)
    filters: dict[str, str] = {}
    for key, text in pairs:
        if filters.setdefault(key, text) != text:
            raise ValueError(f"{key[:60]!r} is there twice with different values; nothing can match both")
    return filters


def _is_pair(pair: object) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        return False
    key, value = pair
    return bool(_METADATA_KEY.fullmatch(key)) and 0 < len(value) <= TEXT_CHARS_MAX and "\0" not in value


# -- what bodies and query strings are made of

_LINE: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": TEXT_CHARS_MAX}

Text = Annotated[str, PlainValidator(checked_text), WithJsonSchema(_LINE)]
"""1 to 255 printable characters."""

Name = Annotated[str, PlainValidator(checked_name), WithJsonSchema(_LINE | {"examples": ["Support chat"]})]
"""1 to 255 printable characters, not only spaces."""

ReferenceId = Annotated[
    str,
    PlainValidator(checked_reference_id),
    WithJsonSchema(_LINE | {"description": "Your own id for it; not starting with con_.", "examples": ["user-42"]}),
]
"""A merchant's own id of a customer."""

Email = Annotated[
    str, PlainValidator(checked_email), WithJsonSchema({"type": "string", "format": "email", "maxLength": EMAIL_CHARS_MAX})
]
"""An address with one @; whether it exists is for a message to find out."""

Phone = Annotated[
    str,
    PlainValidator(checked_phone),
    WithJsonSchema({"type": "string", "description": "With its country code; answered in E.164.", "examples": ["+14155550123"]}),
]
"""A phone number, as E.164."""

Usd = Annotated[
    Nanos,
    PlainValidator(_usd),
    WithJsonSchema({"type": "string", "description": "Dollars, at most nine places.", "examples": ["25.00"]}),
]
"""Dollars from 0 to 9,000,000 in a decimal string; nanos inside."""

Whole = Annotated[int, PlainValidator(_whole), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": WHOLE_MAX})]
"""A count."""

Moment = Annotated[
    datetime,
    PlainValidator(_moment),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-12-31T23:59:59Z"]}),
]
"""An aware time with the offset it was sent with; UTC when it has none."""

Metadata = Annotated[
    dict[str, Any],
    PlainValidator(_metadata),
    WithJsonSchema(
        {"type": "object", "description": f"Any JSON object of at most {METADATA_BYTES_MAX} bytes.", "examples": [{"team": "red"}]}
    ),
]
"""A merchant's own facts about a thing; numbers with a point are Decimals (write them with `json_text`)."""

MetadataFilters = Annotated[
    dict[str, str],
    PlainValidator(_filters),
    WithJsonSchema(
        {
            "type": "string",
            "description": 'A JSON array of ["key", "value"] pairs, all of which must match.',
            "examples": ['[["feature","chat"]]'],
        }
    ),
]
"""Metadata pairs that all must match."""

Limit = Annotated[
    int,
    PlainValidator(_limit),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT}),
]
"""How many items a page has at most."""


class PageQuery(QueryString):
    """`limit` and `cursor` of a list. A subclass names the prefix of the ids it lists: `prefix: ClassVar[str] = "req"`."""

    prefix: ClassVar[str] = ""

    limit: Limit = LIMIT_DEFAULT
    cursor: Annotated[
        str | None,
        WithJsonSchema({"type": "string", "description": "The next_cursor of the page before; empty or absent: the first page."}),
    ] = None

    @field_validator("cursor", mode="before")
    @classmethod
    def _check_cursor(cls, value: object) -> object:
        if value and not (isinstance(value, str) and is_id(value, cls.prefix)):
            raise ValueError(f"accepted is the next_cursor of the page before ({cls.prefix}_...)")
        return value or None


class CustomerFilter(QueryString):
    """`customer_id`, or `connection_id` as older clients call it: an id or reference_id."""

    customer_id: Text | None = None
    connection_id: Text | None = None

    @field_validator("connection_id")
    @classmethod
    def _check_connection_id(cls, value: str | None, info: ValidationInfo) -> str | None:
        return same_filter(value, "connection_id", info, "customer_id")

    @property
    def customer(self) -> str | None:
        return self.customer_id or self.connection_id


class MeterFilter(QueryString):
    """`meter_id`, or `product_id` as older clients call it: an id or slug."""

    meter_id: Text | None = None
    product_id: Text | None = None

    @field_validator("product_id")
    @classmethod
    def _check_product_id(cls, value: str | None, info: ValidationInfo) -> str | None:
        return same_filter(value, "product_id", info, "meter_id")

    @property
    def meter(self) -> str | None:
        return self.meter_id or self.product_id


def same_filter(value: str | None, name: str, info: ValidationInfo, other: str) -> str | None:
    """The value, for a field validator of a parameter that has two names. Raises ValueError when both came and differ."""
    if value is not None and info.data.get(other) not in (None, value):
        raise ValueError(f"{other} and {name} are names of one filter but have different values; send one")
    return value


# -- what answers are made of

AMOUNT_SCHEMA: dict[str, Any] = {"type": "string", "pattern": r"^-?[0-9]+\.[0-9]{2,}$", "examples": ["25.0000000000"]}
Amount = Annotated[str, WithJsonSchema(AMOUNT_SCHEMA)]
"""Dollars as answers show them: a decimal string."""

Timestamp = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-01-31T08:35:42Z"]})]
"""ISO 8601 in UTC."""


class Done(Answer):
    """What the deletion of a customer, connection, subscription or key answers."""

    success: Literal[True]


class Deleted(Answer):
    """What the deletion of a meter, plan, webhook or secret key answers."""

    id: str
    deleted: Literal[True]


def list_of(item: type[Answer]) -> type[Answer]:
    """The answer of a list of such items: data, has_more, and next_cursor where there is more."""
    return create_model(
        f"{item.__name__}List",
        __base__=Answer,
        data=(list[item], ...),  # type: ignore[valid-type]
        has_more=(bool, ...),
        next_cursor=(str, Field(default="", description="Absent on the last page.")),
    )
