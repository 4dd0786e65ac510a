"""Money out: reserve the most a call can cost, settle what it used. One reserve, one settle, whatever happens in between."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from time import perf_counter_ns
from typing import Any

import structlog

from lava_proxy import tasks, telemetry
from lava_proxy.billing.rows import RowStarts, breakdown_text, closing_row, json_text, opening_row
from lava_proxy.domain import fees
from lava_proxy.domain.calendar import month_cycle_id
from lava_proxy.domain.catalog import Grant
from lava_proxy.domain.errors import CallerError, LimitExceeded, StoreError
from lava_proxy.domain.money import AMOUNT_NANOS_MAX, Nanos
from lava_proxy.domain.prices import Cost, Facts, ModelPrice, PriceBook, ceiling_cost, facts_of, tier_with
from lava_proxy.domain.usage import TOKEN_KEYS, Outcome, Provenance, Reading, Usage, token_usage
from lava_proxy.providers.base import Call, Provider
from lava_proxy.providers.ceilings import likely_input_tokens
from lava_proxy.providers.clamp import lowest_limit, with_limit
from lava_proxy.providers.endpoints import FETCH_APIS
from lava_proxy.providers.estimate import estimate
from lava_proxy.settings import Reserve
from lava_proxy.stores.balance_store import (
    BalanceStore,
    Claim,
    Held,
    Moved,
    NotCovered,
    Once,
    ScopeUse,
    Settled,
    SettleMode,
    report_record,
)
from lava_proxy.stores.hot_redis import Ambiguous

# A refusal while calls of the same wallet are in flight may be only because one that has ended is not settled yet: look again
# once, after the time a settle takes.
_GRACE_S = 0.01
_FREED_BY_A_SETTLE = frozenset({"concurrency_limit_exceeded", "spend_limit_exceeded", "token_limit_exceeded"})
_MOVED_ATTEMPTS_MAX = 1000
_CEILING_STEP = 256
_CEILINGS_MAX = 16384
_RETRY_DELAY_MAX_S = 1.0
_NOTHING_DELIVERED = "n"  # on the record of an ended call: its idempotency key may be used again
_FOLLOW_PERCENT = 75  # of its hold: a stream that has used so much gets a larger one ...
_FOLLOW_STEP_PERCENT = 150  # ... of so much of the present one, or of what it has used: few steps, little held for nothing
_FETCHED_USAGE = token_usage(32_768, 16_384)  # a fetched job does not say beforehand what it used: usually less than this,
_FETCHED_COST_NANOS = 500_000_000  # and $0.50; a wallet that has less is held for all it has
_JOB_STARTED = ("job",)
_JOB_KEEP_MS = 30 * 24 * 3600 * 1000  # that a job was charged; OpenAI keeps responses for 30 days, the ledger knows it for ever
_BOUNDED_PERCENT = 150  # a call that names its own limit cannot outgrow its hold, as far as an estimate can tell

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_log = structlog.get_logger("charging")


@dataclass(slots=True, kw_only=True)
class Hold:
    """An open hold and what is needed to price its end. Owned by one exchange; `settled` marks its one end."""

    request_id: str
    grant: Grant
    provider: Provider
    call: Call
    amount_nanos: int
    position: int
    tier_field: str
    byok: bool
    needs_cost: bool
    opened_at: datetime
    row_start: bytes = field(repr=False)
    settled: bool = False
    clamped_to: int = 0  # the output limit that the call was given, because the balance affords no more
    used_nanos: int = 0  # what the call would be charged, at the last look
    is_dry: bool = False  # all used, and the balance could not follow

    @property
    def room_nanos(self) -> int:
        """What may still be used before the hold should be larger (or, where it cannot be, before it is dry)."""
        return self.amount_nanos * (_FOLLOW_PERCENT if self.call.open_ended else _BOUNDED_PERCENT) // 100 - self.used_nanos


@dataclass(slots=True, kw_only=True)  # not frozen: made for every call, and freezing doubles what that costs
class Ending:
    """How a call ended, as the gateway saw it."""

    reading: Reading
    outcome: Outcome
    http_status: int | None
    delivered: bool  # did any byte of a success response arrive from upstream
    timings: dict[str, int] = field(default_factory=dict)  # microseconds


@dataclass(slots=True, kw_only=True)
class _Priced:
    usage: Usage
    provenance: Provenance
    billable: bool
    cost: Cost | None
    charge: fees.Charge
    price_model: str | None = None  # whose price was used, when the row's own model has none
    facts: Facts = ()
    unpriced: bool = False  # used and chargeable by cost, but no price was known
    unseen: tuple[str, ...] = ()  # used beside what the charge is made of
    once_key: str | None = None  # of a job that can be fetched many times: charged once for ever under this name
    is_absurd: bool = False  # the reported usage cannot be true and was replaced by an estimate


class Charging:
    """Reserve, checkpoint, settle. Raises CallerError for refusals and StoreError when Redis cannot answer."""

    def __init__(
        self,
        store: BalanceStore,
        prices: PriceBook,
        reserve: Reserve,
        tally: telemetry.Tally,
        clock: Callable[[], datetime],
        note_refused: Callable[[str, int], None] | None = None,
    ) -> None:
        """`note_refused(wallet_id, needed_nanos)`: a call was refused that an automatic bundle may let pass; must not wait."""
        self._note_refused = note_refused
        self._store = store
        self._prices = prices
        self._tally = tally
        self._clock = clock
        self._starts = RowStarts()
        self._ceilings: dict[tuple[Any, ...], int] = {}
        self._lease_ms = reserve.lease_s * 1000
        self._keep_ms = reserve.keep_s * 1000

    async def reserve(
        self,
        request_id: str,
        grant: Grant,
        provider: Provider,
        call: Call,
        *,
        endpoint: str,
        key_type: str,
        metadata: dict[str, str] | None,
        idempotency_key: bytes | None = None,
        longest_s: int = 0,
    ) -> Hold:
        """Hold the most this call can be charged, or refuse; then nothing was changed.

        With an idempotency key only its first call passes, for as long as a call may take and the record is kept.
        """
        now = self._clock()
        meter = grant.meter
        byok = key_type == "unmanaged"
        pays = call.billable and not grant.disable_billing
        needs_cost = pays and (meter.rate_type == "percentage" if meter else not byok)
        amount = self._ceiling(grant, provider, call, now, byok, needs_cost) if pays else 0
        tier_field = f"t:{meter.meter_id}:{grant.cycle_id or month_cycle_id(now)}" if meter and pays else ""
        start = self._starts.start(
            grant=grant,
            provider=provider.name,
            key_type=key_type,
            endpoint=endpoint,
            api=call.api,
            streamed=call.stream,
            metadata=metadata,
            tier_field=tier_field,
        )
        claim: Claim | None = None
        if idempotency_key is not None:
            claim = Claim(digest=_digest(grant, idempotency_key), keep_ms=longest_s * 1000 + self._keep_ms)
        row = opening_row(start, call.model)
        began_ns = perf_counter_ns()
        clamped_to = 0
        try:
            held = await self._reserve(request_id, grant, amount, tier_field, row, now, _scope_uses(grant, call, now), claim)
        except NotCovered as refused:
            if call.api in FETCH_APIS and refused.spendable_nanos:
                amount = refused.spendable_nanos
            elif grant.clamp_floor:
                affordable = self._clamped(grant, provider, call, now, byok, needs_cost, refused.spendable_nanos)
                if affordable is None:
                    self._wake_top_up(grant, amount)
                    raise
                call, amount = affordable
                clamped_to = call.ceiling.output_tokens
            else:
                self._wake_top_up(grant, amount)
                raise
            held = await self._reserve(request_id, grant, amount, tier_field, row, now, _scope_uses(grant, call, now), claim)
        self._tally.observe(telemetry.SCRIPT_RESERVE, perf_counter_ns() - began_ns)
        return Hold(
            request_id=request_id,
            grant=grant,
            provider=provider,
            call=call,
            amount_nanos=amount,
            position=held.position,
            tier_field=tier_field,
            byok=byok,
            needs_cost=needs_cost,
            opened_at=now,
            row_start=start,
            clamped_to=clamped_to,
        )

    def _wake_top_up(self, grant: Grant, needed_nanos: int) -> None:
        """A bundle's credit is the plan's: only what may draw on the plan wakes its purchase."""
        if grant.tops_up and grant.plan_linked and self._note_refused is not None:
            self._note_refused(grant.wallet_id, needed_nanos)

    def _clamped(
        self, grant: Grant, provider: Provider, call: Call, now: datetime, byok: bool, needs_cost: bool, spendable_nanos: int
    ) -> tuple[Call, int] | None:
        """The call with the highest output limit that the balance affords, and its price; None when the floor is too dear."""

        def price(limit: int) -> int:
            ceiling = Usage({**call.ceiling.units, "output_tokens": limit})
            return self._priced_ceiling(grant, provider, call, ceiling, now, byok, needs_cost)

        lowest = lowest_limit(call)
        low, high = max(grant.clamp_floor, lowest), call.ceiling.output_tokens
        if not lowest or low >= high or price(low) > spendable_nanos:
            return None
        while high - low > 1:  # price(low) is affordable, price(high) is not
            middle = (low + high) // 2
            if price(middle) <= spendable_nanos:
                low = middle
            else:
                high = middle
        lowered = with_limit(call, low)
        return None if lowered is None else (lowered, price(low))

    async def _reserve(
        self,
        request_id: str,
        grant: Grant,
        amount: int,
        tier_field: str,
        row: bytes,
        now: datetime,
        scopes: tuple[ScopeUse, ...],
        claim: Claim | None,
    ) -> Held:
        for attempt in (1, 2):
            try:
                return await self._store.reserve(
                    grant.wallet_id,
                    request_id,
                    amount,
                    row=row,
                    lease_ms=self._lease_ms,
                    overdraft_nanos=grant.overdraft_nanos,
                    plan_linked=grant.plan_linked,
                    tier_field=tier_field,
                    scopes=scopes,
                    claim=claim,
                    at=now,
                )
            except NotCovered as refused:
                if attempt == 2 or not refused.held_nanos:
                    raise
            except LimitExceeded as limit:
                if attempt == 2 or limit.code not in _FREED_BY_A_SETTLE:
                    raise
            except Ambiguous:
                # The caller is refused, so a hold that was made after all must end with nothing.
                tasks.start("exchange-abandon", self._abandon(request_id, grant.wallet_id, tier_field, row))
                raise
            await asyncio.sleep(_GRACE_S)
        raise AssertionError("unreachable")

    def _ceiling(self, grant: Grant, provider: Provider, call: Call, now: datetime, byok: bool, needs_cost: bool) -> int:
        """The most the call can be charged, in nano-USD; refuses a model whose price is needed and not known.

        Input tokens are rounded up to the next _CEILING_STEP: a hold may be a little large, and like calls find their answer made.
        """
        if call.api in FETCH_APIS:
            assumed = Cost(_FETCHED_COST_NANOS, 1, Nanos(_FETCHED_COST_NANOS)) if needs_cost else None
            return fees.ceiling_charge(grant.meter, _FETCHED_USAGE, assumed, 0, byok=byok)
        units = call.ceiling.units
        input_tokens = -(-call.ceiling.input_tokens // _CEILING_STEP) * _CEILING_STEP
        meter = grant.meter
        key = (
            meter.version_id if meter else 0, provider.name, call.model, byok, now.day, input_tokens, call.ceiling.output_tokens,
            call.service_tier, call.facts,
        )  # fmt: skip
        is_plain = len(units) == len(TOKEN_KEYS)
        if is_plain and (known := self._ceilings.get(key)) is not None:
            return known
        ceiling = Usage({**units, "input_tokens": input_tokens}) if is_plain else call.ceiling
        amount = self._priced_ceiling(grant, provider, call, ceiling, now, byok, needs_cost)
        if is_plain:
            if len(self._ceilings) >= _CEILINGS_MAX:
                self._ceilings.clear()
            self._ceilings[key] = amount
        return amount

    def _priced_ceiling(
        self, grant: Grant, provider: Provider, call: Call, ceiling: Usage, now: datetime, byok: bool, needs_cost: bool
    ) -> int:
        cost: Cost | None = None
        if needs_cost:
            price = self._prices.price_for(provider.price_id or provider.name, call.model, at=now) if call.model else None
            if price is None:
                self._tally.add(telemetry.UNPRICED)
                raise CallerError(
                    f"The model {call.model!r} of {provider.name} has no price here, and this call is charged by provider cost. "
                    "Use a priced model, a meter with a fixed rate, or add the price to config/prices.toml.",
                    code="model_not_priced",
                )
            cost = ceiling_cost(price, ceiling)
            if call.model and (tier := tier_with(call.service_tier, call.facts)) is not None:
                # Asked for at another price; whether the provider grants it is known when it has answered.
                asked = self._prices.price_for(provider.price_id or provider.name, call.model, at=now, service_tier=tier)
                cost = max(cost, ceiling_cost(asked or price, ceiling), key=lambda found: found.nanos)
        # Position 0: the counter is known only after the reserve, so every tier counts as reachable.
        return fees.ceiling_charge(grant.meter, ceiling, cost, 0, byok=byok)

    async def _abandon(self, request_id: str, wallet_id: str, tier_field: str, row: bytes) -> None:
        await self._until_answered(
            wallet_id, request_id, fees.NOTHING, tier_field, row, mode="held", fingerprint=_NOTHING_DELIVERED
        )

    def price_of(self, hold: Hold, model: str | None) -> ModelPrice | None:
        """The price of a model that an open call has turned to; None when it has none here."""
        return self._prices.price_for(hold.provider.price_id or hold.provider.name, model, at=hold.opened_at) if model else None

    async def checkpoint(self, hold: Hold, ending: Ending) -> bool:
        """Move a live stream's lease on, and keep what it would be charged now, should this process die."""
        priced = self._price(hold, ending, hold.position)
        row = self._closing_row(hold, priced, ending)
        lease = self._store.lease(hold.grant.wallet_id, hold.request_id, lease_ms=self._lease_ms, row=row)
        hold.used_nanos = priced.charge.amount_nanos
        if not hold.call.stream or hold.used_nanos == 0 or hold.room_nanos > 0:
            return await lease
        lives, _ = await asyncio.gather(lease, self._extend(hold))  # in one tick: one trip
        return lives

    async def _extend(self, hold: Hold) -> None:
        """Make the hold larger than what was used; as large as the balance allows; mark it dry when that is not enough.

        While Redis cannot answer the stream goes on: its customer is not to blame.
        """
        target = max(hold.amount_nanos, hold.used_nanos) * _FOLLOW_STEP_PERCENT // 100
        for _ in (1, 2):
            try:
                ceiling = min(target, AMOUNT_NANOS_MAX)
                held = await self._store.extend(hold.grant.wallet_id, hold.request_id, ceiling, at=self._clock())
            except NotCovered as refused:
                target = hold.amount_nanos + refused.spendable_nanos
                if refused.spendable_nanos:
                    continue
                break
            except StoreError as error:
                _log.warning("A hold was not extended", action="extend_failed", request_id=hold.request_id, error=error.message)
                return
            if held is None:
                return  # ended meanwhile
            hold.amount_nanos = sum(held)
            break
        limit = hold.amount_nanos * (100 if hold.call.open_ended else _BOUNDED_PERCENT) // 100
        hold.is_dry = hold.used_nanos >= limit

    async def settle(self, hold: Hold, ending: Ending) -> Settled:
        """End the hold with the charge of what was used; retried until Redis answers. The one exit of a hold."""
        assert not hold.settled, "a hold ends once"
        hold.settled = True
        position = hold.position
        began_ns = perf_counter_ns()
        for _ in range(_MOVED_ATTEMPTS_MAX):
            priced = self._price(hold, ending, position)
            row = self._closing_row(hold, priced, ending)
            settled = await self._until_answered(
                hold.grant.wallet_id, hold.request_id, priced.charge, hold.tier_field, row, tokens=_tokens(hold, priced),
                fingerprint="" if ending.delivered else _NOTHING_DELIVERED, once=self._once(hold, priced, ending),
            )  # fmt: skip
            if isinstance(settled, Moved):
                position = settled.position
                continue
            assert settled is not None
            self._tally.observe(telemetry.SETTLE_SECONDS, perf_counter_ns() - began_ns)
            self._count(hold, _uncharged(priced) if settled.seen else priced, ending, settled)
            return settled
        raise StoreError("A settle was overtaken too often; the reaper will end this hold.")

    async def _until_answered(
        self,
        wallet_id: str,
        request_id: str,
        charge: fees.Charge,
        tier_field: str,
        row: bytes,
        mode: SettleMode = "late",
        tokens: int | None = None,
        fingerprint: str = "",
        once: Once | None = None,
    ) -> Settled | Moved | None:
        """One settle, repeated through outages; None when `mode` is held and there is no hold."""
        delay_s, said = 0.05, False
        while True:
            try:
                return await self._store.settle(
                    wallet_id,
                    request_id,
                    charge.amount_nanos,
                    row=row,
                    keep_ms=self._keep_ms,
                    units=charge.units if tier_field else 0,
                    tier_field=tier_field,
                    position_lo=charge.position_lo,
                    position_hi=charge.position_hi,
                    mode=mode,
                    tokens=tokens,
                    fingerprint=fingerprint,
                    once=once,
                    at=self._clock(),
                )
            except StoreError as error:
                if not said:
                    _log.warning(
                        "A settle is retried until Redis answers",
                        action="settle_retried",
                        request_id=request_id,
                        error=error.message,
                    )
                said = True
            except CallerError:
                if mode == "held":
                    return None
                raise
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _RETRY_DELAY_MAX_S)

    def _price(self, hold: Hold, ending: Ending, position: int) -> _Priced:
        """What this ending costs and is charged, for a tier counter at `position`. Pure."""
        found = self._price_reading(hold, ending, ending.reading, position)
        if _is_possible(found):
            return found
        # Above what a wallet can hold, or beyond any number: a settle of it would be refused for ever. Guess instead.
        distrusted = replace(ending.reading, usage=None, provenance=Provenance.NONE)
        return replace(self._price_reading(hold, ending, distrusted, position), is_absurd=True)

    def _price_reading(self, hold: Hold, ending: Ending, reading: Reading, position: int) -> _Priced:
        usage, provenance, billable = _usage_of(hold, ending, reading)
        price_id = hold.provider.price_id or hold.provider.name
        cost: Cost | None = None
        price_model: str | None = None
        facts = facts_of(hold.call.facts, reading.facts) if hold.call.facts or reading.facts else ()
        tier = tier_with(reading.service_tier, facts)
        if billable and usage.units:
            for model in (reading.model, hold.call.model):
                cost = self._prices.cost_of(price_id, model, usage, at=hold.opened_at, service_tier=tier)
                if cost is not None:
                    price_model = model if model != (reading.model or hold.call.model) else None
                    break
        billable = billable and not hold.grant.disable_billing and hold.call.billable
        unpriced = False
        if billable and hold.needs_cost and cost is None:
            # The ceiling was priced, so usually only the usage is missing; if it is there, its price is, which is counted.
            billable, unpriced = False, bool(usage.units)
        charge = fees.charge(hold.grant.meter, usage, cost, position, byok=hold.byok, billable=billable)
        unseen = _unseen(hold, usage, cost, charge, reading) if billable else _left(hold, ending, reading, unpriced)
        if not unseen and charge.amount_nanos == 0 and _is_unmetered(hold, ending):
            unseen = ("unmetered",)
        return _Priced(
            usage=usage,
            provenance=provenance,
            billable=billable,
            cost=cost,
            charge=charge,
            price_model=price_model,
            facts=facts,
            unpriced=unpriced,
            unseen=unseen,
            once_key=_once_key(hold, reading) if billable else None,
        )

    def _once(self, hold: Hold, priced: _Priced, ending: Ending) -> Once | None:
        """For a job: its name, and the row of a call that only shows again what was charged."""
        if priced.once_key is None:
            return None
        return Once(
            digest=report_record(hold.grant.merchant_id, priced.once_key),
            keep_ms=_JOB_KEEP_MS,
            free_row=self._closing_row(hold, _uncharged(priced), ending),
        )

    def _closing_row(self, hold: Hold, priced: _Priced, ending: Ending) -> bytes:
        reading, charge, cost, outcome = ending.reading, priced.charge, priced.cost, ending.outcome
        is_whole = outcome is Outcome.COMPLETED or outcome is Outcome.CLIENT_GONE
        return closing_row(
            hold.row_start,
            {
                "model": reading.model or hold.call.model,
                "status": "completed" if is_whole and (ending.http_status or 0) < 400 else "error",
                "outcome": outcome.value,
                "provenance": priced.provenance.value,
                "response_id": reading.response_id,
                "http_status": ending.http_status,
                "billed": priced.billable,
                "usage": json_text(priced.usage.units),
                "cost_nanos": cost.nanos if cost is not None else 0,
                "charge_nanos": charge.amount_nanos,
                "breakdown": breakdown_text(
                    charge, cost, price_model=priced.price_model, unpriced=priced.unpriced, unseen=priced.unseen, facts=priced.facts
                ),
                "price_model": priced.price_model,
                "price_version": self._prices.version if cost is not None else None,
                "priced_at_ms": _milliseconds(hold.opened_at),
                "service_tier": reading.service_tier,
                "tier_units": charge.units if hold.tier_field else 0,
                "position_lo": charge.position_lo,
                "position_hi": charge.position_hi,
                "timings": json_text(ending.timings) if ending.timings else None,
            }
            | ({"once_key": priced.once_key} if priced.once_key is not None else {}),
        )

    def _count(self, hold: Hold, priced: _Priced, ending: Ending, settled: Settled) -> None:
        add, name, usage, cost = self._tally.add, hold.provider.name, priced.usage, priced.cost
        charged = priced.charge.amount_nanos
        self._tally.call(
            name,
            ending.outcome.value,
            priced.provenance.value,
            charged,
            cost.nanos if cost is not None else 0,
            usage.input_tokens,
            usage.output_tokens,
        )
        if cost is None and (priced.billable or priced.unpriced) and usage.units:
            add(telemetry.UNPRICED)
        if priced.is_absurd or (cost is not None and cost.anomaly):
            add(telemetry.ANOMALIES)
        is_unseen = bool(priced.unseen) and priced.unseen != _JOB_STARTED
        if is_unseen or (priced.billable and charged == 0 and usage.output_tokens and not hold.byok):
            add(telemetry.USAGE_CHARGE_ZERO)
        if "o" in settled.flags:
            add(telemetry.OVERSHOOT, charged - hold.amount_nanos)


def _uncharged(priced: _Priced) -> _Priced:
    """A call that shows again what another one was charged for: it used nothing itself."""
    return _Priced(usage=Usage(), provenance=priced.provenance, billable=False, cost=None, charge=fees.NOTHING)


def _is_job(call: Call, reading: Reading) -> bool:
    """Is it a job that can be fetched? The answer says so itself; until it has said anything, the request does."""
    return reading.deferred or (call.deferred and reading.response_id is None)


def _once_key(hold: Hold, reading: Reading) -> str | None:
    """The name of the job that a billed call started or fetched; None where it is no job, or has no name."""
    if reading.response_id is None or not _is_job(hold.call, reading):
        return None
    return f"job/{hold.provider.name}/{reading.response_id}"


def _tokens(hold: Hold, priced: _Priced) -> int | None:
    """What token limits count in the end."""
    return max(0, priced.usage.input_tokens + priced.usage.output_tokens) if hold.grant.scopes else None


def _scope_uses(grant: Grant, call: Call, now: datetime) -> tuple[ScopeUse, ...]:
    """What the call counts as; its tokens as they are likely to be, set right by the settle: a hold's allowances are for money."""
    if not grant.scopes:
        return ()
    tokens = 0
    if call.billable and any(scope.limits.tokens_per_minute is not None for scope in grant.scopes):
        tokens = min(likely_input_tokens(call.body), call.ceiling.input_tokens) + call.ceiling.output_tokens
    return tuple(ScopeUse(scope=scope, tokens=tokens, at=now) for scope in grant.scopes)


def _digest(grant: Grant, idempotency_key: bytes) -> str:
    """A caller's key, scoped by merchant and wallet; the key itself is kept nowhere."""
    scope = f"{grant.merchant_id}\0{grant.wallet_id}\0".encode()
    return hashlib.blake2b(scope + idempotency_key, digest_size=16).hexdigest()


def _is_possible(priced: _Priced) -> bool:
    """Can these amounts be kept: counts exact in a double, money within what a wallet holds?"""
    cost_nanos = priced.cost.nanos if priced.cost is not None else 0
    return max(cost_nanos, priced.charge.amount_nanos) <= AMOUNT_NANOS_MAX and _is_countable(priced.usage.units)


def _is_countable(units: Mapping[str, Any]) -> bool:
    for value in units.values():
        if type(value) is int:
            if not -fees.POSITION_MAX <= value <= fees.POSITION_MAX:
                return False
        elif isinstance(value, Decimal):
            if not value.is_finite() or abs(value.adjusted()) > 15 + 12 or len(value.as_tuple().digits) > 60:
                return False
        elif isinstance(value, Mapping) and not _is_countable(value):
            return False
    return True


def _left(hold: Hold, ending: Ending, reading: Reading, unpriced: bool) -> tuple[str, ...]:
    """The mark of a call that started a job and is not charged itself: a later call will show what was used."""
    is_start = ending.delivered and hold.call.billable and hold.call.api not in FETCH_APIS and not hold.grant.disable_billing
    return _JOB_STARTED if is_start and not unpriced and _is_job(hold.call, reading) else ()


def _is_unmetered(hold: Hold, ending: Ending) -> bool:
    """An API that is not known here: what it used, if anything, nobody has counted (batches, fine-tuning, new APIs)."""
    call = hold.call
    return call.api == "other" and call.billable and ending.delivered and not hold.grant.disable_billing


def _unseen(hold: Hold, usage: Usage, cost: Cost | None, charge: fees.Charge, reading: Reading) -> tuple[str, ...]:
    """What a billed call used that its charge does not contain, by unit or by the provider's name for it."""
    meter = hold.grant.meter
    if meter is not None and meter.rate_type == "fixed":
        if charge.units and len(usage.units) == len(TOKEN_KEYS):
            return reading.unseen  # the usual call: plain tokens, and counted
        return (*reading.unseen, *fees.unseen_units(meter, usage))
    if cost is None or cost.reported or not hold.needs_cost:
        return ()  # what a provider names as its cost is all of it; with the caller's own key it bills the caller
    return (*reading.unseen, "unpriced_units") if cost.uncovered else reading.unseen


def _usage_of(hold: Hold, ending: Ending, reading: Reading) -> tuple[Usage, Provenance, bool]:
    """The usage to bill, where it comes from, and whether it is billed at all."""
    if not ending.delivered or (ending.http_status or 500) >= 400:
        return Usage(), Provenance.NONE, False
    if hold.call.api in FETCH_APIS and not reading.deferred:
        return Usage(), Provenance.NONE, False  # the call that made it was charged; to read it again is free
    if reading.usage is not None and reading.provenance is Provenance.PROVIDER_FINAL:
        return reading.usage, reading.provenance, True
    if _is_job(hold.call, reading):
        return Usage(), Provenance.NONE, False  # charged by the call that will show its usage
    if ending.outcome is Outcome.CLIENT_GONE and hold.provider.disconnect == "none":
        return Usage(), Provenance.NONE, False
    if reading.error and reading.usage is None and reading.output_text_bytes == 0:
        return Usage(), Provenance.NONE, False  # an error in a 200, nothing generated
    if hold.call.ceiling.units:  # a token API that did not say (or not to the end): never billed as nothing
        # Looks at a running stream are many, and what they find is replaced at its end: they need no tokenizer.
        is_look = ending.outcome is Outcome.ORPHANED
        return estimate(hold.provider, hold.call, reading, quick=is_look), Provenance.ESTIMATED, True
    return reading.usage or Usage(), reading.provenance, True


def _milliseconds(at: datetime) -> int:
    """Milliseconds since 1970 of an aware time, in integers."""
    delta = at - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000
