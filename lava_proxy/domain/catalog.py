"""The catalogue's values: meters, connections, and the grant a credential resolves to."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from lava_proxy.domain.limits import Scope

RateType = Literal["fixed", "percentage"]
TierType = Literal["tokens_1m", "characters_1m", "minutes", "requests"]
TokenBasis = Literal["input+output", "output"]

MICROSECONDS_PER_MINUTE = 60_000_000
PPM_PER_PERCENT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One graduated step.

    `start` counts the meter's units: tokens, characters, microseconds (minutes meters), requests; for percentage meters
    nano-USD of cumulative provider cost. `rate` is nano-USD per 1,000,000 tokens or characters, per minute, per request;
    for percentage meters parts per million of provider cost ("20" percent = 200,000).
    """

    start: int
    rate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterVersion:
    """One immutable version of a merchant's meter: the price of a connection's usage."""

    version_id: int
    meter_id: str
    slug: str
    name: str
    rate_type: RateType
    tier_type: TierType
    tiers: tuple[Tier, ...]
    token_basis: TokenBasis = "input+output"

    def __post_init__(self) -> None:
        starts = [tier.start for tier in self.tiers]
        if not starts or starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
            raise ValueError("a meter has at least one tier, the first starts at 0, and starts ascend")
        if any(tier.rate < 0 for tier in self.tiers):
            raise ValueError("a rate is not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Who pays for a call, by which meter, within which limits: what a credential resolves to."""

    merchant_id: str
    wallet_id: str
    connection_id: str | None = None
    meter: MeterVersion | None = None  # None: the wallet pays provider cost
    provider_key: str | None = field(default=None, repr=False)  # BYOK from the token
    disable_billing: bool = False
    overdraft_nanos: int = 0  # the od line; 0 = policy `block`
    plan_linked: bool = False  # may this meter draw on plan credit
    scopes: tuple[Scope, ...] = ()  # whose limits and counters hold
    clamp_floor: int = 0  # lower max_tokens to what the balance affords, not below this; 0: refuse
    spend_key_id: str | None = None
    cycle_id: str | None = None  # whose tier counters count; None: the UTC calendar month's
    tops_up: bool = False  # a call refused for want of balance buys a bundle
