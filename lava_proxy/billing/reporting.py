"""Reported usage: check, price, debit and deduplicate reports of calls that went elsewhere. The second hot path.

One script call decides: an id that Redis knows gets its first answer (or a conflict), any other is debited in the same step.
What Redis has forgotten Postgres knows, which is asked before the debit; while it cannot answer, reports go on, and the flusher
gives back what was debited twice. There is no balance check: the usage has happened, so a balance may go below zero.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter_ns
from typing import Any, NamedTuple

import structlog

from lava_proxy import tasks, telemetry
from lava_proxy.billing.report_answers import Changing, ReportAnswers, reported_row
from lava_proxy.billing.report_body import ReportBody, read_report
from lava_proxy.billing.request_object import request_object
from lava_proxy.billing.rows import breakdown_text, packed
from lava_proxy.domain import fees
from lava_proxy.domain.calendar import month_cycle_id
from lava_proxy.domain.catalog import Grant, MeterVersion
from lava_proxy.domain.errors import CallerError, Forbidden, LavaError, NotFound, StoreError
from lava_proxy.domain.money import AMOUNT_NANOS_MAX
from lava_proxy.domain.prices import Cost, PriceBook
from lava_proxy.domain.usage import Outcome, Provenance, Usage
from lava_proxy.settings import Reports as ReportSettings
from lava_proxy.stores.balance_store import BalanceStore, Moved, Report, ReportConflict, Reported, report_record
from lava_proxy.stores.billing_terms import BillingTerms
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.hot_redis import Ambiguous
from lava_proxy.stores.ids import at_ms, created_at, created_ms, new_id
from lava_proxy.stores.ledger_store import LedgerStore, as_stored
from lava_proxy.stores.outbox import OutboxEntry
from lava_proxy.stores.report_rows import report_row, report_start

NO_PROVIDER = "reported"  # where a report names none

_SLICE = 100  # reports priced before other work of this process has its turn
_ROUNDS_MAX = 1000  # prices of one report: again whenever others of its wallet have moved the tier counter meanwhile
_AMBIGUOUS_ROUNDS_MAX = 3
_CACHE_MAX = 50_000
_PLACES_MAX = 4096
_LOOK_UP_S = 3.0
_AWAY_S = 1.0  # Postgres did not answer: not asked again for so long
_COMPLETED, _REPORTED = Outcome.COMPLETED.value, Provenance.REPORTED.value
_NULL = b"null"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_log = structlog.get_logger("reporting")


@dataclass(frozen=True, slots=True)
class Answer:
    """A report that is debited: the id its caller chose, ours, and the request as JSON."""

    request_key: str
    request_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class ProviderName:
    """A provider as rows and prices spell it; `label` is for metrics, whose names must stay few."""

    name: str
    price_id: str
    label: str


_UNNAMED = ProviderName(NO_PROVIDER, "", NO_PROVIDER)


class _Place(NamedTuple):
    """What all reports of a grant's customer by its meter, of one provider and cycle, have in common."""

    grant: Grant
    tier_field: str
    row_start: bytes
    named: tuple[bytes, bytes]  # the beginning and the end of what fingerprints are made of


@dataclass(slots=True)
class _Item:
    """One report on its way. Bytes are JSON; empty where the report says nothing."""

    said: ReportBody
    grant: Grant
    meter: MeterVersion
    provider: ProviderName
    place: _Place
    request_key: bytes
    usage_json: bytes
    metadata: bytes
    model: bytes
    fingerprint: str
    request_id: str
    usage: Usage
    cost: Cost | None
    now: datetime
    charge: fees.Charge = fees.NOTHING
    rounds: int = 0
    ambiguous: int = 0


class Reporting:
    """Takes reports. What it knows of customers and meters is dropped by `forget`."""

    def __init__(
        self,
        store: BalanceStore,
        catalog: CatalogStore,
        ledger: LedgerStore,
        prices: PriceBook,
        provider_name: Callable[[str], ProviderName],
        settings: ReportSettings,
        tally: telemetry.Tally,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._ledger = ledger
        self._prices = prices
        self._provider_name = provider_name
        self._tally = tally
        self._clock = clock
        self._keep_ms = settings.keep_s * 1000
        self._check = _LedgerCheck(ledger, settings.ledger_check_ms / 1000) if settings.ledger_check_ms else None
        self._places: dict[tuple[int, str, str], _Place] = {}
        self._answers = ReportAnswers()
        self._grants: dict[tuple[str, str, str], Grant] = {}
        self._of_connection: dict[str, set[tuple[str, str, str]]] = {}  # which of them are a connection's
        self._positions: dict[tuple[str, str], int] = {}  # where tier counters stood lately: a guess that the script checks
        self._versions: dict[int, MeterVersion | None] = {}
        self._generation = 0

    def forget(self) -> None:
        """The catalogue has changed: ask again."""
        self._generation += 1
        self._grants.clear()
        self._of_connection.clear()

    def forget_connection(self, connection_id: str) -> None:
        """A connection's subscription has changed: ask for what it means again."""
        self._generation += 1
        for names in self._of_connection.pop(connection_id, ()):
            self._grants.pop(names, None)

    async def report(self, merchant_id: str, values: Sequence[object]) -> list[Answer | LavaError]:
        """Debit each report (a decoded JSON body, or the LavaError of one that is not JSON) once; an answer each, in order.

        CallerError: that report was refused and changed nothing. StoreError: it may be sent again, nothing can be charged twice.
        """
        answers: list[Answer | LavaError | None] = [None] * len(values)
        said: dict[int, ReportBody] = {}
        for index, value in enumerate(values):
            if isinstance(value, LavaError):
                answers[index] = value
                continue
            try:
                said[index] = read_report(value)
            except CallerError as error:
                answers[index] = error
            if index % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
        grants = await self._grants_of(merchant_id, said.values())
        stored = await self._check.find(merchant_id, [body.request_key for body in said.values()]) if self._check else {}
        waiting: dict[int, _Item] = {}
        now = self._clock()
        month = month_cycle_id(now)
        for index, body in said.items():
            grant = grants[body.customer_ref, body.meter_ref]
            try:
                if isinstance(grant, LavaError):
                    raise grant
                item = self._item(body, grant, now, month)
                row = stored.get(body.request_key)
                if row is not None:
                    answers[index] = await self._stored_answer(item, row)
                else:
                    waiting[index] = item
            except LavaError as error:
                answers[index] = error
            if index % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
        while waiting:
            await self._round(waiting, answers)
        found = [answer for answer in answers if answer is not None]
        assert len(found) == len(answers), "no round leaves what it waits for"
        return found

    # -- who and what

    async def _grants_of(self, merchant_id: str, bodies: Any) -> dict[tuple[str, str], Grant | LavaError]:
        """The grant of each pair of references; those not known yet are looked up once each, until Postgres does not answer."""
        found: dict[tuple[str, str], Grant | LavaError] = {}
        away: StoreError | None = None
        for body in bodies:
            pair = (body.customer_ref, body.meter_ref)
            if pair in found:
                continue
            known = self._grants.get((merchant_id, *pair))
            if known is not None:
                found[pair] = known
                continue
            if away is not None:
                found[pair] = away  # a batch names many customers: waiting in vain for each would take it an hour
                continue
            try:
                found[pair] = await self._bounded(merchant_id, *pair)
            except StoreError as error:
                found[pair] = away = error
            except LavaError as error:
                found[pair] = error
        return found

    async def _bounded(self, merchant_id: str, customer_ref: str, meter_ref: str) -> Grant:
        """A look-up, given up after a while: a frozen Postgres answers neither a query nor its cancellation."""
        generation = self._generation
        task = tasks.start("report-look-up", self._look_up(merchant_id, customer_ref, meter_ref))
        await asyncio.wait({task}, timeout=_LOOK_UP_S)
        if not task.done():
            task.cancel()  # not awaited
        if not task.done() or task.cancelled():  # a driver cancels itself when its connection dies
            raise StoreError("The catalogue does not answer; try again shortly.", code="database_unavailable")
        grant = task.result()
        if isinstance(grant, LavaError):
            raise grant
        if generation == self._generation:
            if len(self._grants) >= _CACHE_MAX:
                self._grants.clear()
                self._of_connection.clear()
            self._grants[merchant_id, customer_ref, meter_ref] = grant
            self._of_connection.setdefault(grant.connection_id or "", set()).add((merchant_id, customer_ref, meter_ref))
        return grant

    async def _look_up(self, merchant_id: str, customer_ref: str, meter_ref: str) -> Grant | LavaError:
        """The error is returned: one that a task raises is logged as a fault of ours."""
        try:
            connection = await self._catalog.connection(merchant_id, customer_ref)
            meter = await self._catalog.meter(merchant_id, meter_ref)
            terms = BillingTerms()
            if connection is not None and meter is not None:
                terms = await self._catalog.billing_terms(connection.connection_id, meter.meter_id)
        except StoreError as error:
            return error
        if connection is None:
            also = "" if meter is not None else f" Nor is there a meter {meter_ref[:60]!r}."
            return NotFound(
                f"No customer of yours has the id, reference or secret {customer_ref[:60]!r}.{also}", code="connection_not_found"
            )
        if meter is None:
            return NotFound(
                f"No meter of yours has the slug, id or secret {meter_ref[:60]!r}; an archived one charges no more.",
                code="meter_not_found",
            )
        if connection.status == "disabled":
            return Forbidden("This customer has been disabled; its usage is not charged.", code="connection_disabled")
        grant = Grant(
            merchant_id=merchant_id,
            wallet_id=connection.wallet_id,
            connection_id=connection.connection_id,
            meter=meter.version,
        )
        return terms.on(grant)

    def _item(self, said: ReportBody, grant: Grant, now: datetime, month: str) -> _Item:
        """The report with what it costs; raises CallerError where its meter needs a cost that is not known."""
        meter = grant.meter
        assert meter is not None
        provider = self._provider_name(said.provider) if said.provider else _UNNAMED
        usage = Usage(said.usage)
        cost = None
        if "provider_cost_usd" in said.usage or (said.provider and said.model):
            cost = self._prices.cost_of(provider.price_id, said.model, usage, at=now)
        if cost is None and meter.rate_type == "percentage":
            raise _no_cost(said, meter)
        if cost is not None and cost.nanos > AMOUNT_NANOS_MAX:
            raise _too_much("The provider's cost")
        place = self._places.get((id(grant), provider.name, month)) or self._place(grant, meter, provider.name, month)
        usage_json = packed(said.usage)
        metadata = packed(said.metadata) if said.metadata else b""
        model = packed(said.model) if said.model else b""
        begin, end = place.named
        return _Item(
            said,
            grant,
            meter,
            provider,
            place,
            packed(said.request_key),
            usage_json,
            metadata,
            model,
            _digest(b"%b%b,%b,%b%b" % (begin, usage_json, metadata or _NULL, model or _NULL, end)),
            new_id("req"),
            usage,
            cost,
            now,
        )

    def _place(self, grant: Grant, meter: MeterVersion, provider: str, month: str) -> _Place:
        tier_field = f"t:{meter.meter_id}:{grant.cycle_id or month}"
        start = report_start(
            merchant_id=grant.merchant_id, connection_id=grant.connection_id or "", meter_id=meter.meter_id,
            meter_version=meter.version_id, provider=packed(provider), tier_field=tier_field,
        )  # fmt: skip
        # A fingerprint is of the list [connection id, meter id, usage, metadata, model, provider].
        named = (packed([grant.connection_id, meter.meter_id])[:-1] + b",", b",%b]" % packed(provider))
        if len(self._places) >= _PLACES_MAX:
            self._places.clear()
        # The grant is kept in its place, so that its address cannot come to mean another one.
        made = self._places[id(grant), provider, month] = _Place(grant, tier_field, start, named)
        return made

    # -- the debit

    async def _round(self, waiting: dict[int, _Item], answers: list[Answer | LavaError | None]) -> None:
        """Price what waits, send all of it at once, and take out what is answered."""
        reports: dict[int, Report] = {}
        ahead: dict[tuple[str, str], int] = {}
        for count, (index, item) in enumerate(list(waiting.items()), 1):
            try:
                reports[index] = self._priced(item, ahead)
            except LavaError as error:
                answers[index] = error
                del waiting[index]
            if count % _SLICE == 0:
                await asyncio.sleep(0)
        if not reports:
            return
        began_ns = perf_counter_ns()
        replies = await self._store.report(list(reports.values()), self._keep_ms)
        self._tally.observe(telemetry.SCRIPT_REPORT, perf_counter_ns() - began_ns)
        for count, (index, reply) in enumerate(zip(reports, replies, strict=True), 1):
            item = waiting[index]
            if isinstance(reply, Moved):
                self._at(item, reply.position)
                item.rounds += 1
                if item.rounds < _ROUNDS_MAX:
                    continue
                answers[index] = StoreError("This customer's reports overtook each other too often; send this one again.")
            elif isinstance(reply, Ambiguous) and item.ambiguous < _AMBIGUOUS_ROUNDS_MAX:
                item.ambiguous += 1  # the record tells whether it was applied, so the same report is sent again
                continue
            elif isinstance(reply, LavaError):
                answers[index] = reply
            elif reply.fresh:
                if len(item.meter.tiers) > 1:
                    self._at(item, reply.position + item.charge.units)
                self._count(item)
                answers[index] = self._fresh_answer(item, reply)
            else:
                try:
                    answers[index] = await self._first_answer(item, reply)
                except LavaError as error:
                    answers[index] = error
            del waiting[index]
            if count % _SLICE == 0:
                await asyncio.sleep(0)

    def _priced(self, item: _Item, ahead: dict[tuple[str, str], int]) -> Report:
        """The report's debit for where its tier counter is thought to stand; `ahead` counts those sent before it in the round."""
        grant, meter, said, tier_field = item.grant, item.meter, item.said, item.place.tier_field
        position = 0
        is_tiered = len(meter.tiers) > 1
        if is_tiered:
            place = (grant.wallet_id, tier_field)
            position = ahead.get(place, -1)
            if position < 0:
                position = self._positions.get(place, 0)
        charge = item.charge = fees.charge(meter, item.usage, item.cost, position)
        if charge.amount_nanos > AMOUNT_NANOS_MAX:
            raise _too_much("The charge")
        if is_tiered:
            ahead[place] = min(position + charge.units, fees.POSITION_MAX)
        cost = item.cost
        row = report_row(
            item.place.row_start,
            request_key=item.request_key,
            fingerprint=item.fingerprint,
            model=item.model,
            usage=item.usage_json,
            metadata=item.metadata,
            cost_nanos=cost.nanos if cost is not None else 0,
            breakdown=_breakdown(charge, cost),
            price_version=packed(self._prices.version) if cost is not None else b"",
            priced_at_ms=_milliseconds(item.now),
            units=charge.units,
        )
        return Report(
            wallet_id=grant.wallet_id,
            request_id=item.request_id,
            record=report_record(grant.merchant_id, said.request_key),
            fingerprint=item.fingerprint,
            charge_nanos=charge.amount_nanos,
            units=charge.units,
            tier_field=tier_field,
            position_lo=charge.position_lo,
            position_hi=charge.position_hi,
            row=row,
            at=item.now,
            overdraft_nanos=grant.overdraft_nanos,
            plan_linked=grant.plan_linked,
        )

    def _at(self, item: _Item, position: int) -> None:
        if len(item.meter.tiers) > 1:
            if len(self._positions) >= _CACHE_MAX:
                self._positions.clear()
            self._positions[item.grant.wallet_id, item.place.tier_field] = position

    # -- the answer

    async def _first_answer(self, item: _Item, reply: Reported) -> Answer:
        """The answer of a debit that was made before. Raises ReportConflict."""
        if reply.row:
            return await self._stored_answer(item, as_stored(_entry(item, reply)))
        try:
            rows = await self._ledger.reported([item.grant.merchant_id], [item.said.request_key])
        except StoreError:
            rows = {}
        row = rows.get((item.grant.merchant_id, item.said.request_key))
        if row is not None:
            return await self._stored_answer(item, row)
        return self._shown(item, self._row_of(item, reply, status="pending"))

    async def _stored_answer(self, item: _Item, row: Mapping[str, Any]) -> Answer:
        """The answer of the report that had this id first. Raises ReportConflict where that one said something else."""
        if row["fingerprint"] != item.fingerprint:
            raise ReportConflict("by a call through this gateway" if row["request_key"] is None else "")
        return self._shown(item, row, await self._version(row["meter_version"], item.meter))

    async def _version(self, version_id: int, present: MeterVersion) -> MeterVersion | None:
        """The meter as it was when the report was charged."""
        if version_id == present.version_id:
            return present
        if version_id not in self._versions:
            if len(self._versions) >= _CACHE_MAX:
                self._versions.clear()
            self._versions[version_id] = await self._catalog.meter_version(version_id)
        return self._versions[version_id]

    def _shown(self, item: _Item, row: Mapping[str, Any], version: MeterVersion | None = None) -> Answer:
        return Answer(item.said.request_key, row["request_id"], packed(request_object(row, version or item.meter)))

    def _fresh_answer(self, item: _Item, reply: Reported) -> Answer:
        said, charge = item.said, item.charge
        template = None
        if item.cost is None:
            template = self._answers.template(item.grant, item.meter, item.provider.name, said.model, said.usage, charge)
        if template is None:
            return self._shown(item, self._row_of(item, reply))
        tokens = said.usage  # of a template they are whole numbers
        values = Changing(
            item.request_key,
            item.metadata or b"{}",
            reply.flags,
            tokens.get("input_tokens", 0),  # type: ignore[arg-type]
            tokens.get("output_tokens", 0),  # type: ignore[arg-type]
            charge.units,
            reply.charge_nanos,
            created_ms(reply.request_id) // 1000,
            reply.at_ms // 1000,
        )
        return Answer(said.request_key, reply.request_id, template.body(values))

    def _row_of(self, item: _Item, reply: Reported, status: str = "completed") -> dict[str, Any]:
        """The row as it will be read from Postgres: what `request_object` looks at."""
        said, cost = item.said, item.cost
        row = reported_row(
            item.grant,
            item.meter,
            provider=item.provider.name,
            model=said.model,
            cost_nanos=cost.nanos if cost is not None else 0,
            price_version=self._prices.version if cost is not None else None,
        )
        lines = [(line.tier.start, line.tier.rate, line.units, line.cost_nanos) for line in item.charge.breakdown]
        return row | {
            "request_id": reply.request_id,
            "request_key": said.request_key,
            "status": status,
            "usage": said.usage,
            "charge_nanos": reply.charge_nanos,
            "breakdown": {"charge": lines},
            "flags": reply.flags,
            "metadata": said.metadata,
            "created_at": created_at(reply.request_id),
            "completed_at": at_ms(reply.at_ms),
        }

    def _count(self, item: _Item) -> None:
        usage, cost = item.usage, item.cost
        self._tally.call(
            item.provider.label,
            _COMPLETED,
            _REPORTED,
            item.charge.amount_nanos,
            cost.nanos if cost is not None else 0,
            usage.input_tokens,
            usage.output_tokens,
        )


_Found = dict[tuple[str, str], dict[str, Any]]


class _LedgerCheck:
    """Asks Postgres for ids that were charged before; what arrives while a question is open goes into the next one."""

    def __init__(self, ledger: LedgerStore, wait_s: float) -> None:
        self._ledger = ledger
        self._wait_s = wait_s
        self._loop = asyncio.get_running_loop()
        self._next: dict[tuple[str, str], None] = {}
        self._waiting: list[asyncio.Future[_Found]] = []
        self._asking = False
        self._away_until = 0.0

    async def find(self, merchant_id: str, request_keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Request key -> its stored request, of those that Postgres has; {} while it does not answer in time."""
        if self._loop.time() < self._away_until or not request_keys:
            return {}
        for request_key in request_keys:
            self._next[merchant_id, request_key] = None
        answer: asyncio.Future[_Found] = self._loop.create_future()
        self._waiting.append(answer)
        if not self._asking:
            self._asking = True
            self._loop.call_soon(self._ask)
        found = await answer
        if not found:
            return {}
        return {key: row for key in request_keys if (row := found.get((merchant_id, key))) is not None}

    def _ask(self) -> None:
        pairs, self._next = list(self._next), {}
        waiting, self._waiting = self._waiting, []
        if not waiting:
            self._asking = False
            return
        tasks.start("exchange-ledger-check", self._asked(pairs, waiting))

    async def _asked(self, pairs: list[tuple[str, str]], waiting: list[asyncio.Future[_Found]]) -> None:
        query = tasks.start("ledger-check", self._query(pairs))
        found: _Found | None = None
        try:
            await asyncio.wait({query}, timeout=self._wait_s)
            if not query.done():
                query.cancel()  # not awaited: a frozen server does not answer that either
            elif not query.cancelled() and query.exception() is None:  # a dying connection may end it in either way
                found = query.result()
        finally:
            if found is None:
                if self._loop.time() >= self._away_until:
                    _log.warning("Reports go on without looking old ids up in Postgres", action="ledger_check_skipped")
                self._away_until = self._loop.time() + _AWAY_S
            for answer in waiting:
                if not answer.done():
                    answer.set_result(found or {})
            self._ask()

    async def _query(self, pairs: list[tuple[str, str]]) -> _Found | None:
        try:
            return await self._ledger.reported([merchant for merchant, _ in pairs], [key for _, key in pairs])
        except StoreError:
            return None


def _breakdown(charge: fees.Charge, cost: Cost | None) -> bytes:
    """What `breakdown_text` says; most charges are one line without a cost."""
    if cost is None and len(charge.breakdown) == 1:
        line = charge.breakdown[0]
        return b'{"charge":[[%d,%d,%d,%d]],"cost":[]}' % (line.tier.start, line.tier.rate, line.units, line.cost_nanos)
    return breakdown_text(charge, cost).encode()


def _digest(content: bytes) -> str:
    """What tells whether two reports say the same, however they were spelled: the same customer and meter by any of their names."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def _no_cost(said: ReportBody, meter: MeterVersion) -> CallerError:
    if said.model and said.provider:
        return CallerError(
            f"The model {said.model[:100]!r} of {said.provider[:60]} has no price here, and the meter {meter.slug!r} charges by "
            "provider cost. Send the cost with the report, or add the price to config/prices.toml.",
            code="model_not_priced",
        )
    return CallerError(
        f"The meter {meter.slug!r} charges a percentage of the provider's cost: send provider and model, or cost "
        '(dollars as decimal text, such as "0.0025").',
        code="cost_required",
    )


def _too_much(what: str) -> CallerError:
    return CallerError(f"{what} of this report is above what a wallet can hold ($9,000,000).", code="amount_out_of_bounds")


def _entry(item: _Item, reply: Reported) -> OutboxEntry:
    """The outbox entry of a debit that Postgres does not have yet; what only its ledger line needs is left at nothing."""
    return OutboxEntry(
        part=0, epoch=0, pseq=0, kind="s", request_id=reply.request_id, wallet_id=item.grant.wallet_id, wseq=0,
        amount_nanos=-reply.charge_nanos, balance_nanos=0, plan_nanos=0, funds_nanos=0, position=reply.position,
        flags=reply.flags, debt_nanos=0, at_ms=reply.at_ms, raw=reply.row,
    )  # fmt: skip


def _milliseconds(at: datetime) -> int:
    """Milliseconds since 1970 of an aware time, in integers."""
    delta = at - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000
