"""Charging on real stores with made-up prices: a model `m` at $1 in and $10 out per million tokens, others unpriced."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from lava_proxy import telemetry
from lava_proxy.billing.charging import Charging, Ending, Hold
from lava_proxy.billing.rating import Rating
from lava_proxy.domain.catalog import Grant, MeterVersion, Tier
from lava_proxy.domain.prices import DatedPrice, PriceBook, compile_price
from lava_proxy.domain.usage import Outcome, Provenance, Reading, Usage, token_usage
from lava_proxy.providers.base import Call, Provider
from lava_proxy.settings import Reserve
from lava_proxy.stores.balance_store import BalanceStore
from lava_proxy.stores.ids import new_id
from lava_proxy.workers.hold_reaper import HoldReaper
from tests.billing_world import RESERVE, World

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
USD = 1_000_000_000
PRICE = compile_price("m", "test", {"input_tokens": 1 * USD, "output_tokens": 10 * USD})
PROVIDER = Provider(name="test", family="openai_chat", hosts=("test",), base="https://test")
CEILING = token_usage(256, 1_000)  # input in whole steps, as holds count it


class OneModel:
    """Prices the model `m` only."""

    def dated(self, price_id: str, model: str, service_tier: str | None, at: datetime) -> DatedPrice:
        return DatedPrice(PRICE if model == "m" else None)


def prices() -> PriceBook:
    return PriceBook("test-1", OneModel())


def call(**changes: Any) -> Call:
    return replace(Call(api="chat", model="m", stream=False, body=b"x" * 400, ceiling=CEILING), **changes)


def done(input_tokens: int = 100, output_tokens: int = 50, *, outcome: Outcome = Outcome.COMPLETED, status: int | None = 200,
         delivered: bool = True, **changes: Any) -> Ending:  # fmt: skip
    """A call that ended with reported usage; `usage=None` for one that did not say."""
    usage = changes.pop("usage", token_usage(input_tokens, output_tokens))
    reading = Reading(
        usage=usage, provenance=Provenance.PROVIDER_FINAL if usage is not None else Provenance.NONE,
        model=changes.pop("model", "m"), terminal=True, **changes,
    )  # fmt: skip
    return Ending(reading=reading, outcome=outcome, http_status=status, delivered=delivered)


@dataclass(slots=True)
class Till:
    """Charging and its helpers over a world."""

    world: World
    charging: Charging
    rating: Rating
    tally: telemetry.Tally
    prices: PriceBook

    async def fixed(self, *tiers: tuple[int, int], tier_type: Any = "tokens_1m") -> MeterVersion:
        """A stored fixed meter; rates in nano-USD per million tokens (or per request)."""
        made = await self.world.catalog.create_meter(
            self.world.merchant_id, name="fixed", slug=new_id("slug"), rate_type="fixed", tier_type=tier_type,
            tiers=tuple(Tier(start=start, rate=rate) for start, rate in tiers or ((0, 2 * USD),)),
        )  # fmt: skip
        return made.version

    async def percentage(self, ppm: int = 200_000) -> MeterVersion:
        made = await self.world.catalog.create_meter(
            self.world.merchant_id, name="percentage", slug=new_id("slug"), rate_type="percentage", tier_type="tokens_1m",
            tiers=(Tier(start=0, rate=ppm),),
        )  # fmt: skip
        return made.version

    def grant(self, wallet_id: str, meter: MeterVersion | None, **changes: Any) -> Grant:
        return Grant(merchant_id=self.world.merchant_id, wallet_id=wallet_id, meter=meter, **changes)

    async def reserve(self, grant: Grant, asked: Call | None = None, *, key_type: str = "managed", provider: Provider = PROVIDER,
                      request_id: str | None = None) -> Hold:  # fmt: skip
        return await self.charging.reserve(
            request_id or new_id("req"), grant, provider, asked or call(), endpoint="POST /x", key_type=key_type, metadata=None
        )

    async def charge(self, grant: Grant, ending: Ending, asked: Call | None = None, **options: Any) -> int:
        """A whole call; what was charged."""
        return (await self.charging.settle(await self.reserve(grant, asked, **options), ending)).charge_nanos

    def with_settings(self, reserve: Reserve, store: BalanceStore | None = None) -> Charging:
        return Charging(store or self.world.balances, self.prices, reserve, self.tally, lambda: NOW)

    def reaper(self) -> HoldReaper:
        return HoldReaper(self.world.outbox, self.world.balances, self.rating, 3600)

    async def row(self) -> dict[str, Any]:
        """The one request of the ledger."""
        await self.world.flush()
        rows = await self.world.fetch("SELECT * FROM request")
        assert len(rows) == 1
        return rows[0]


def till(world: World) -> Till:
    tally = telemetry.Tally()
    book = prices()
    charging = Charging(world.balances, book, RESERVE, tally, lambda: NOW)
    return Till(world, charging, Rating(world.catalog, book, {"test": "test"}), tally, book)


__all__ = ["CEILING", "NOW", "PROVIDER", "USD", "Till", "Usage", "call", "done", "till"]
