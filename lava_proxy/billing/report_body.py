"""A report's body, checked by hand: this is a hot path, and every problem of a body is told at once. Pure.

Unknown members are ignored: public SDKs send more than is documented.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from lava_proxy.domain.errors import CallerError
from lava_proxy.domain.usage import UnitValue

COUNT_MAX = 1_000_000_000_000
SECONDS_MAX = 1_000_000_000
COST_MAX = 9_000_000
CUSTOMER_FIELDS = ("customer_id", "connection_id", "connection_secret")
METER_FIELDS = ("meter_slug", "meter_id", "product_secret", "meter_secret", "product_id")

# In the order in which jsonb keeps keys (shorter first, then by bytes), so that an answer is the same whoever it is read from.
_QUANTITIES = (
    "input_tokens", "input_seconds", "output_tokens", "output_seconds", "input_characters", "output_characters",
)  # fmt: skip
_SECONDS = frozenset({"input_seconds", "output_seconds"})
_TEXT_CHARS_MAX = 255
_METADATA_PAIRS_MAX = 100
_METADATA_KEY = re.compile(r"[A-Za-z0-9_]{1,255}")
_COST = re.compile(r"[0-9]{1,7}(?:\.[0-9]{1,20})?")
_MICROSECOND = Decimal("0.000001")
_SHOWN_CHARS = 60


@dataclass(slots=True, kw_only=True)  # not frozen: made for every report
class ReportBody:
    """What a merchant reports: its own id for it, whose usage by which meter, and how much."""

    request_key: str
    customer_ref: str
    meter_ref: str
    usage: dict[str, UnitValue]
    metadata: dict[str, str] | None
    model: str | None
    provider: str | None


def read_report(value: object) -> ReportBody:
    """The report in a decoded JSON value (fractions may be floats). Raises CallerError naming each problem."""
    if type(value) is not dict:
        raise CallerError(f"The report is {_kind(value)}; accepted is a JSON object.", code="invalid_json")
    problems: list[str] = []
    request_key = _text(value, "request_id", problems)
    customer_ref = _reference(value, CUSTOMER_FIELDS, problems)
    meter_ref = _reference(value, METER_FIELDS, problems)
    usage: dict[str, UnitValue] = {}
    for name in _QUANTITIES:
        if (amount := value.get(name)) is not None:
            if type(amount) is int and 0 <= amount <= SECONDS_MAX:
                usage[name] = amount
            elif (read := _seconds(amount) if name in _SECONDS else _count(amount)) is not None:
                usage[name] = read
            else:
                accepted = "a number of seconds" if name in _SECONDS else "a whole number"
                most = SECONDS_MAX if name in _SECONDS else COUNT_MAX
                problems.append(f"{name} is {_shown(amount)}; accepted is {accepted} from 0 to {most:,}.")
    if (dollars := value.get("cost")) is not None:
        cost = _cost(dollars)
        if cost is None:
            problems.append(
                f"cost is {_shown(dollars)}; accepted is the provider's cost in dollars as decimal text, "
                f'such as "0.0025", up to {COST_MAX:,}.'
            )
        else:
            usage["provider_cost_usd"] = cost
    model = _text(value, "model", problems, required=False)
    provider = _text(value, "provider", problems, required=False)
    metadata = value.get("metadata")
    if metadata is not None:
        metadata = _metadata(metadata, problems)
    if problems:
        raise CallerError(" ".join(problems), code="invalid_parameter")
    return ReportBody(
        request_key=request_key,
        customer_ref=customer_ref,
        meter_ref=meter_ref,
        usage=usage,
        metadata=metadata or None,
        model=model or None,
        provider=provider or None,
    )


def _text(value: Mapping[str, Any], name: str, problems: list[str], *, required: bool = True) -> str:
    text = value.get(name)
    if type(text) is str and 0 < len(text) <= _TEXT_CHARS_MAX and "\0" not in text:
        return text
    if text is None:
        if required:
            problems.append(f"{name} is missing; accepted are 1 to {_TEXT_CHARS_MAX} characters.")
    else:
        problems.append(f"{name} is {_shown(text)}; accepted are 1 to {_TEXT_CHARS_MAX} characters, none of them NUL.")
    return ""


def _reference(value: Mapping[str, Any], names: tuple[str, ...], problems: list[str]) -> str:
    """The first of several names for one thing."""
    for name in names:
        if value.get(name) is not None:
            return _text(value, name, problems)
    problems.append(f"{names[0]} is missing; accepted are {', '.join(names[:-1])} or {names[-1]}, 1 to 255 characters.")
    return ""


def _count(amount: object) -> int | None:
    """A whole number, also where a client wrote 10.0 for 10."""
    if type(amount) is float and amount.is_integer():
        amount = int(amount)
    return amount if type(amount) is int and 0 <= amount <= COUNT_MAX else None


def _seconds(amount: object) -> int | Decimal | None:
    """Seconds to the microsecond (half-even); the digits of a float are those that it was written with."""
    if type(amount) is not float and type(amount) is not Decimal:
        return None
    exact = Decimal(repr(amount)) if type(amount) is float else Decimal(str(amount))
    if not exact.is_finite() or not 0 <= exact <= SECONDS_MAX:
        return None
    exact = exact.quantize(_MICROSECOND, ROUND_HALF_EVEN)
    whole = int(exact)
    return whole if whole == exact else exact.normalize()


def _cost(dollars: object) -> Decimal | None:
    if type(dollars) is float or type(dollars) is int:
        dollars = format(Decimal(repr(dollars)), "f")
    if type(dollars) is not str or not _COST.fullmatch(dollars):
        return None
    cost = Decimal(dollars)
    return cost if cost <= COST_MAX else None


def _metadata(value: object, problems: list[str]) -> dict[str, str]:
    """Pairs in the order in which jsonb keeps them."""
    if type(value) is not dict:
        problems.append(f"metadata is {_kind(value)}; accepted is an object of text values.")
        return {}
    if len(value) > _METADATA_PAIRS_MAX:
        problems.append(f"metadata has {len(value)} pairs; accepted are at most {_METADATA_PAIRS_MAX}.")
        return {}
    for key, text in value.items():
        if not _METADATA_KEY.fullmatch(key):
            problems.append(f"metadata has the key {_shown(key)}; accepted are 1 to 255 letters, digits and underscores.")
        elif type(text) is not str or not 0 < len(text) <= _TEXT_CHARS_MAX or "\0" in text:
            problems.append(f"metadata.{key[:_SHOWN_CHARS]} is {_shown(text)}; accepted is text of 1 to 255 characters.")
    return dict(sorted(value.items(), key=_jsonb_order)) if len(value) > 1 else value


def _jsonb_order(pair: tuple[str, str]) -> tuple[int, str]:
    return len(pair[0]), pair[0]


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "something else")


def _shown(value: object) -> str:
    """What came, short enough for a sentence."""
    if isinstance(value, str):
        text = repr(value[:_SHOWN_CHARS])
        return f"{text} and more ({len(value)} characters)" if len(value) > _SHOWN_CHARS else text
    if value is None or isinstance(value, bool | list | dict):
        return _kind(value)
    return repr(value)[:_SHOWN_CHARS]
