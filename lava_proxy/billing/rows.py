"""The request row as it travels through the outbox: built at reserve (should the process die), at checkpoints and at settle.

JSON parts (usage, breakdown, metadata, timings) are text inside it, so that digits reach Postgres as they were read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import orjson

from lava_proxy.domain.catalog import Grant
from lava_proxy.domain.fees import Charge
from lava_proxy.domain.prices import Cost, Facts


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return orjson.Fragment(format(value, "f").encode())
    return dict(value)


def packed(value: Any) -> bytes:
    """Compact JSON; a Decimal keeps its digits as a number. Never fails on what strangers sent: see `_cleaned`."""
    try:
        return orjson.dumps(value, default=_plain)
    except TypeError:
        return orjson.dumps(_cleaned(value), default=_plain)


def _cleaned(value: Any) -> Any:
    """Lone surrogates (JSON may spell them, UTF-8 may not) as "?", integers beyond 64 bits as text."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 63:
        return format(Decimal(value), ".17E")
    if isinstance(value, Mapping):
        return {_cleaned(str(key)): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    return value


def json_text(value: Any) -> str:
    """`packed` as text."""
    return packed(value).decode()


# The part of a row that only its end can tell, as it stands until then: a call that ended with nothing delivered.
_NOTHING_YET = packed(
    {
        "status": "error",
        "outcome": "orphaned",
        "provenance": "none",
        "response_id": None,
        "http_status": None,
        "billed": False,
        "usage": "{}",
        "cost_nanos": 0,
        "charge_nanos": 0,
        "breakdown": "{}",
        "price_model": None,
        "price_version": None,
        "priced_at_ms": None,
        "service_tier": None,
        "tier_units": 0,
        "position_lo": 0,
        "position_hi": 0,
        "timings": None,
    }
)[1:]
_STARTS_MAX = 4096


class RowStarts:
    """The facts of a call that never change, as the beginning of its row's JSON; remembered, since calls repeat them."""

    def __init__(self) -> None:
        self._starts: dict[tuple[Any, ...], tuple[Grant, bytes]] = {}

    def start(
        self,
        *,
        grant: Grant,
        provider: str,
        key_type: str,
        endpoint: str,
        api: str,
        streamed: bool,
        metadata: Mapping[str, str] | None,
        tier_field: str,
    ) -> bytes:
        """Everything up to the model, without the closing brace."""
        # The grant is kept beside its start, so that its address cannot come to mean another one.
        key = (id(grant), provider, api, endpoint, key_type, streamed, tier_field)
        found = self._starts.get(key) if not metadata else None
        if found is not None:
            return found[1]
        meter = grant.meter
        text = packed(
            {
                "merchant_id": grant.merchant_id,
                "connection_id": grant.connection_id,
                "meter_id": meter.meter_id if meter else None,
                "meter_version": meter.version_id if meter else None,
                "provider": provider,
                "provider_key_type": key_type,
                "endpoint": endpoint,
                "api": api,
                "streamed": streamed,
                "tier_field": tier_field,
                "metadata": json_text(metadata) if metadata else None,
            }
            | ({"spend_key_id": grant.spend_key_id} if grant.spend_key_id is not None else {})
        )[:-1]
        if not metadata:
            if len(self._starts) >= _STARTS_MAX:
                self._starts.clear()
            self._starts[key] = (grant, text)
        return text


def opening_row(start: bytes, model: str | None) -> bytes:
    """The row of a call whose process dies before it says more."""
    return b'%b,"model":%b,%b' % (start, packed(model), _NOTHING_YET)


def closing_row(start: bytes, facts: dict[str, Any]) -> bytes:
    """A row with what the end (or a checkpoint) knows; `facts` has the model and every key of an opening row's rest."""
    return b"%b,%b" % (start, packed(facts)[1:])


def breakdown_text(
    charge: Charge,
    cost: Cost | None,
    *,
    price_model: str | None = None,
    unpriced: bool = False,
    unseen: Sequence[str] = (),
    facts: Facts = (),
) -> str:
    """How the charge and the cost came about: {"charge": [[tier start, rate, units, nanos]], "cost": [[unit, quantity]]}.

    `price_model` (shown as "model"): whose price was used, where the row's model has none. `unpriced`: used, but not charged,
    because no price was known. `unseen`: what was used beside what the charge is made of. `facts`: what the price depended on,
    beside model, tier and time.
    """
    found: dict[str, Any] = {}
    if charge.breakdown or cost is not None:
        found["charge"] = [[line.tier.start, line.tier.rate, line.units, line.cost_nanos] for line in charge.breakdown]
        found["cost"] = [[line.unit, line.quantity] for line in cost.lines] if cost is not None else []
        if price_model is not None:
            found["model"] = price_model
        if facts:
            found["facts"] = dict(facts)
    elif unpriced:
        found["unpriced"] = True
    if unseen:
        found["unseen"] = list(unseen)
    return json_text(found) if found else "{}"
