"""/dashboard/meters: the prices of usage, what a call would cost by them, and what they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, cast, get_args
from urllib.parse import urlencode

from aiohttp import web

from lava_proxy.domain import fees
from lava_proxy.domain.catalog import MeterVersion, RateType, Tier, TierType, TokenBasis
from lava_proxy.domain.errors import Conflict, NotFound
from lava_proxy.domain.prices import Cost, PriceBook
from lava_proxy.domain.usage import Usage, token_usage
from lava_proxy.providers.registry import Registry
from lava_proxy.stores.catalog_store import CatalogStore, Meter
from lava_proxy.stores.meter_store import ArchivedMeter, MeterStore, checked_slug
from lava_proxy.web.dashboard.acts import Acts, is_id
from lava_proxy.web.dashboard.forms import Form
from lava_proxy.web.dashboard.frame import View, session_of
from lava_proxy.web.dashboard.inputs import checked, sentence
from lava_proxy.wire.texts import checked_name

PAGE_ROWS = 50
_BASE = "/dashboard/meters"
_QUANTITY_MAX = 10**12
_EXAMPLE = {"calc_model": "gpt-4o-mini", "calc_input": 1200, "calc_output": 300, "calc_quantity": 1200, "calc_position": 0}
TIER_TYPES: tuple[tuple[TierType, str], ...] = (
    ("tokens_1m", "Tokens (per 1,000,000)"),
    ("characters_1m", "Characters (per 1,000,000)"),
    ("minutes", "Minutes"),
    ("requests", "Calls"),
)
_START_UNITS: Mapping[TierType, str] = {
    "tokens_1m": "tokens", "characters_1m": "characters", "minutes": "minutes", "requests": "calls",
}  # fmt: skip
_RATE_UNITS: Mapping[TierType, str] = {
    "tokens_1m": "$ per 1,000,000 tokens", "characters_1m": "$ per 1,000,000 characters", "minutes": "$ per minute",
    "requests": "$ per call",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What one call would come to by a price; amounts in nano-USD. `problem`: why it cannot be said."""

    said: str = ""
    provider: str = ""
    cost_nanos: int | None = None
    charge_nanos: int | None = None
    lines: tuple[tuple[str, str, int], ...] = ()  # (quantity, rate, nano-USD)
    problem: str = ""

    @property
    def margin_nanos(self) -> int | None:
        """What the merchant earns: charged less the provider's cost."""
        if self.charge_nanos is None or self.cost_nanos is None:
            return None
        return self.charge_nanos - self.cost_nanos


class Meters:
    """The list, one meter, its editor with the calculator, its history."""

    def __init__(
        self, view: View, acts: Acts, *, catalog: CatalogStore, meters: MeterStore, registry: Registry, prices: PriceBook
    ) -> None:
        self._view = view
        self._acts = acts
        self._catalog = catalog
        self._meters = meters
        self._registry = registry
        self._prices = prices

    def routes(self) -> list[web.RouteDef]:
        one = _BASE + "/{meter}"
        return [
            web.get(_BASE, self.many),
            web.get(_BASE + "/new", self.new),
            web.get(_BASE + "/tier", self.tier),
            web.post(_BASE + "/quote", self.quote),
            web.post(_BASE, self.create),
            web.get(one, self.one),
            web.post(one, self.change),
            web.post(one + "/secret", self.secret),
            web.post(one + "/archive", self.archive),
        ]

    async def many(self, request: web.Request) -> web.StreamResponse:
        """Newest first; those in use, or the archived ones."""
        merchant_id, before = session_of(request).merchant.merchant_id, request.query.get("cursor", "")
        cursor = before if is_id(before, "prd") else None
        is_archived = request.query.get("status") == "archived"
        found: Sequence[Meter | ArchivedMeter]
        if is_archived:
            found = await self._meters.archived(merchant_id, before=cursor, limit=PAGE_ROWS + 1)
        else:
            found = await self._catalog.meters(merchant_id, before=cursor, limit=PAGE_ROWS + 1)
        kept = {"status": "archived"} if is_archived else {}
        more = {**kept, "cursor": found[PAGE_ROWS - 1].meter_id} if len(found) > PAGE_ROWS else None
        return self._view.page(
            request, "meters.html", "meters", meters=found[:PAGE_ROWS], priced=priced, status_shown=kept.get("status", ""),
            first=_address(kept) if cursor else "", next=_address(more) if more else "",
        )  # fmt: skip

    async def new(self, request: web.Request) -> web.StreamResponse:
        form = Form({"rate_type": "fixed", "tier_type": "tokens_1m", "token_basis": "input+output", **_EXAMPLE})
        form.lists = {"start": ["0"], "rate": ["20"]}
        return self._editor(request, form, None)

    async def tier(self, request: web.Request) -> web.StreamResponse:
        """One more row for the editor."""
        return self._view.part(request, "meter_tier.html", start="", rate="", index=new_index(request), error="")

    async def quote(self, request: web.Request) -> web.StreamResponse:
        """The calculator's answer to the form as it stands; nothing is stored."""
        form = await Form.read(request)
        rate_type, tier_type = form.value("rate_type"), cast(TierType, form.value("tier_type"))
        return self._view.part(
            request, "meter_quote.html", quote=self._quoted(form), rate_unit=_rate_unit(rate_type, tier_type),
            start_unit=_start_unit(rate_type, tier_type),
        )  # fmt: skip

    async def create(self, request: web.Request) -> web.StreamResponse:
        form = await Form.read(request)
        name = checked(form, "name", checked_name)
        slug = checked(form, "slug", checked_slug, is_required=False)
        draft = _draft(form)
        if form.is_good and name is not None and draft is not None:
            try:
                async with self._acts.transaction() as db:
                    made = await self._meters.create(
                        session_of(request).merchant.merchant_id, name=name, slug=slug, rate_type=draft.rate_type,
                        tier_type=draft.tier_type, tiers=draft.tiers, token_basis=draft.token_basis, db=db,
                    )  # fmt: skip
                    await self._acts.note(db, request, "meter.create", made.meter_id, after=_facts(made.version))
            except Conflict as error:
                form.fail("slug", error.message)
            else:
                return self._view.redirect(request, f"{_BASE}/{made.meter_id}", "The meter has been created.")
        return self._editor(request, form, None, status=422)

    async def one(self, request: web.Request) -> web.StreamResponse:
        """The editor; of an archived meter what it was, to be read."""
        merchant_id, identifier = session_of(request).merchant.merchant_id, request.match_info["meter"]
        archived = await self._meters.archived(merchant_id, limit=1, meter_id=identifier) if is_id(identifier, "prd") else []
        if archived:
            versions = await self._meters.versions(merchant_id, identifier)
            return self._view.page(
                request, "meter_archived.html", "meters", meter=archived[0], versions=versions, priced=priced
            )  # fmt: skip
        meter = await self._found(request)
        return await self._page(request, meter, _form_of(meter.version))

    async def change(self, request: web.Request) -> web.StreamResponse:
        """Adds a version: new calls are charged by it, old rows keep theirs. Unit and kind of rate stay."""
        meter, form = await self._found(request), await Form.read(request)
        form.values.update(rate_type=meter.version.rate_type, tier_type=meter.version.tier_type)
        name, draft = checked(form, "name", checked_name), _draft(form)
        if not form.is_good or name is None or draft is None:
            return await self._page(request, meter, form, status=422)
        async with self._acts.transaction() as db:
            changed = await self._meters.add_version(
                meter.merchant_id, meter.meter_id, name=name, tiers=draft.tiers, token_basis=draft.token_basis, db=db
            )
            if changed is None:
                raise _no_such_meter()
            if changed.version != meter.version:
                before, after = _facts(meter.version), _facts(changed.version)
                await self._acts.note(db, request, "meter.change", meter.meter_id, before=before, after=after)
        if changed.version == meter.version:
            return self._view.redirect(request, f"{_BASE}/{meter.meter_id}", "Nothing was different, so nothing has been changed.")
        said = "Saved. New calls are charged by this price within a second; what was charged before stays as it was."
        return self._view.redirect(request, f"{_BASE}/{meter.meter_id}", said)

    async def secret(self, request: web.Request) -> web.StreamResponse:
        """The meter's secret, which older clients build their tokens from; looking at it is written down."""
        meter = await self._found(request)
        await self._acts.note(None, request, "meter.reveal_secret", meter.meter_id)
        return self._view.part(request, "meter_secret.html", secret=meter.secret)

    async def archive(self, request: web.Request) -> web.StreamResponse:
        meter = await self._found(request)
        async with self._acts.transaction() as db:
            await self._meters.archive(meter.merchant_id, meter.meter_id, db=db)
            await self._acts.note(db, request, "meter.archive", meter.meter_id, before=_facts(meter.version))
        return self._view.redirect(request, _BASE, "The meter has been archived: new calls by it are refused within a second.")

    # -- helpers

    async def _found(self, request: web.Request) -> Meter:
        identifier = request.match_info["meter"]
        meter = None
        if is_id(identifier, "prd"):
            meter = await self._catalog.meter(session_of(request).merchant.merchant_id, identifier)
        if meter is None:
            raise _no_such_meter()
        return meter

    def _editor(self, request: web.Request, form: Form, meter: Meter | None, *, status: int = 200, **more: Any) -> web.Response:
        tier_type = cast(TierType, form.value("tier_type"))
        return self._view.page(
            request, "meter.html", "meters", status=status, form=form, meter=meter, quote=self._quoted(_copy(form)),
            tiers=_typed_tiers(form), tier_types=TIER_TYPES, rate_unit=_rate_unit(form.value("rate_type"), tier_type),
            start_unit=_start_unit(form.value("rate_type"), tier_type), **more,
        )  # fmt: skip

    async def _page(self, request: web.Request, meter: Meter, form: Form, *, status: int = 200) -> web.Response:
        versions = await self._meters.versions(meter.merchant_id, meter.meter_id)
        for name, value in _EXAMPLE.items():
            form.values.setdefault(name, str(value))
        return self._editor(request, form, meter, status=status, versions=versions, priced=priced)

    def _quoted(self, form: Form) -> Quote:
        """What the call of the calculator's fields comes to by the price in the editor."""
        draft = _draft(form)
        if draft is None:
            return Quote(problem="The price above is not complete yet.")
        usage = _usage(form, draft.tier_type)
        position = form.integer("calc_position", is_required=False, most=_QUANTITY_MAX) or 0
        if usage is None or not form.is_good:
            return Quote(problem="The quantities must be numbers.")
        model = form.value("calc_model").strip()
        provider, cost = self._cost(model, usage)
        if cost is None and draft.rate_type == "percentage":
            return Quote(problem=f"The provider's price of {model or 'this model'} is not known, and this meter is a part of it.")
        units = position * (1_000_000_000 if draft.rate_type == "percentage" else _units_per_start(draft.tier_type))
        if units > fees.POSITION_MAX:
            return Quote(problem="So much use in one cycle is more than can be counted.")
        charge = fees.charge(draft, usage, cost, units)
        return Quote(
            said=_said(form, draft.tier_type, model),
            provider=provider,
            cost_nanos=None if cost is None else cost.nanos,
            charge_nanos=charge.amount_nanos,
            lines=tuple((_quantity(draft, line.units), _rate(draft, line.tier), line.cost_nanos) for line in charge.breakdown),
        )

    def _cost(self, model: str, usage: Usage) -> tuple[str, Cost | None]:
        """(provider, its cost) for a model's name; ("", None) where none is known."""
        found = self._registry.by_model(model) if model else None
        if found is None:
            return "", None
        provider, name = found
        return provider.name, self._prices.cost_of(provider.price_id or provider.name, name, usage, at=self._acts.now())


def _address(query: Mapping[str, str]) -> str:
    return f"{_BASE}?{urlencode(query)}" if query else _BASE


def priced(version: MeterVersion) -> str:
    """A price in a few words."""
    tier_type, tiers = version.tier_type, version.tiers
    if version.rate_type == "percentage":
        shown = f"provider cost + {_rate(version, tiers[0])}"
    else:
        shown = f"${_rate(version, tiers[0]).removeprefix('$')} {_RATE_UNITS[tier_type].removeprefix('$ ')}"
    more = f", {len(tiers)} tiers" if len(tiers) > 1 else ""
    return shown + more + (", output only" if version.token_basis == "output" else "")


def new_index(request: web.Request) -> int:
    """A number for a row that is added, so that its fields' labels have ids of their own."""
    text = request.query.get("n", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 1


def _draft(form: Form) -> MeterVersion | None:
    """The price as typed, as a version that is not stored; its problems are noted."""
    rate_type = form.choice("rate_type", get_args(RateType))
    tier_type = form.choice("tier_type", get_args(TierType))
    basis = form.value("token_basis") or "input+output"
    if basis not in get_args(TokenBasis):
        form.fail("token_basis", "Choose what is counted.")
    if rate_type is None or tier_type is None or not form.is_good:
        return None
    raw = [{"start": start, "rate": rate} for start, rate in _typed_tiers(form) if start or rate]
    try:
        tiers = fees.parse_tiers(cast(RateType, rate_type), cast(TierType, tier_type), raw)
    except ValueError as error:
        form.fail("tiers", sentence(error).replace("Tiers[", "Tier [").replace("tiers[", "tier ["))
        return None
    return MeterVersion(
        version_id=0, meter_id="", slug="", name="", rate_type=cast(RateType, rate_type), tier_type=cast(TierType, tier_type),
        tiers=tiers, token_basis=cast(TokenBasis, basis),
    )  # fmt: skip


def _typed_tiers(form: Form) -> list[tuple[str, str]]:
    starts, rates = form.all("start"), form.all("rate")
    plain = [text.strip().replace(",", "").removeprefix("$").removesuffix("%") for text in (*starts, *rates)]
    return list(zip(plain[: len(starts)], plain[len(starts) :], strict=False))


def _form_of(version: MeterVersion) -> Form:
    form = Form(
        {
            "name": version.name, "slug": version.slug, "rate_type": version.rate_type, "tier_type": version.tier_type,
            "token_basis": version.token_basis, **_EXAMPLE,
        }
    )  # fmt: skip
    shown = [fees.format_tier(version.rate_type, version.tier_type, tier) for tier in version.tiers]
    form.lists = {"start": [str(tier["start"]) for tier in shown], "rate": [tier["rate"] for tier in shown]}
    return form


def _copy(form: Form) -> Form:
    """The same fields, whose problems are the calculator's own."""
    copied = Form(form.values)
    copied.lists = form.lists
    return copied


def _usage(form: Form, tier_type: TierType) -> Usage | None:
    """The call of the calculator's fields; None where they are no numbers."""
    found = form.integer("calc_input", is_required=False, most=_QUANTITY_MAX)
    output = form.integer("calc_output", is_required=False, most=_QUANTITY_MAX)
    extra: dict[str, Any] = {}
    text = form.value("calc_quantity").strip().replace(",", "")
    if tier_type in ("characters_1m", "minutes") and text:
        try:
            quantity = Decimal(text)
        except InvalidOperation:
            return None
        if not quantity.is_finite() or not 0 <= quantity <= _QUANTITY_MAX or quantity.adjusted() < -6:
            return None
        extra = {"input_characters": int(quantity)} if tier_type == "characters_1m" else {"audio_seconds": quantity}
    return token_usage(found or 0, output or 0, **extra)


def _said(form: Form, tier_type: TierType, model: str) -> str:
    """The call in words: "1,200 in / 300 out on gpt-4o-mini"."""
    found = f"{_count(form, 'calc_input')} in / {_count(form, 'calc_output')} out"
    if tier_type == "characters_1m":
        found += f" with {form.value('calc_quantity') or 0} characters"
    if tier_type == "minutes":
        found += f" with {form.value('calc_quantity') or 0} seconds"
    return found + (f" on {model}" if model else "")


def _count(form: Form, name: str) -> str:
    return f"{form.integer(name, is_required=False, most=_QUANTITY_MAX) or 0:,}"


def _quantity(version: MeterVersion, units: int) -> str:
    if version.rate_type == "percentage":
        return "provider cost"
    if version.tier_type == "minutes":
        return f"{Decimal(units) / 1_000_000:f} s"
    return f"{units:,} {_START_UNITS[version.tier_type]}"


def _rate(version: MeterVersion, tier: Tier) -> str:
    text = fees.format_tier(version.rate_type, version.tier_type, tier)["rate"]
    return f"{text} %" if version.rate_type == "percentage" else f"${text}"


def _rate_unit(rate_type: str, tier_type: TierType) -> str:
    return "% of the provider's cost" if rate_type == "percentage" else _RATE_UNITS.get(tier_type, "$")


def _start_unit(rate_type: str, tier_type: TierType) -> str:
    return "$ of provider cost" if rate_type == "percentage" else _START_UNITS.get(tier_type, "")


def _units_per_start(tier_type: TierType) -> int:
    return 60_000_000 if tier_type == "minutes" else 1


def _facts(version: MeterVersion) -> dict[str, Any]:
    return {
        "name": version.name, "slug": version.slug, "rate_type": version.rate_type, "tier_type": version.tier_type,
        "token_basis": version.token_basis,
        "tiers": [fees.format_tier(version.rate_type, version.tier_type, tier) for tier in version.tiers],
    }  # fmt: skip


def _no_such_meter() -> NotFound:
    return NotFound("No meter of yours has this id.")
