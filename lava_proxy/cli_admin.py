"""Merchants, customers, meters, checkouts, and links to the dashboard, from the command line."""

from __future__ import annotations

import os
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import click

from lava_proxy import settings as settings_module
from lava_proxy.cli_installation import DATA_DIR, MERCHANT, check_name, installation, is_line, merchant_of, show, usd, with_stores
from lava_proxy.cli_limits import limit_options, limits_of
from lava_proxy.cli_plans import OVERAGE_HELP, overage_of
from lava_proxy.domain.catalog import RateType, TierType
from lava_proxy.domain.errors import CallerError, NotFound
from lava_proxy.settings import Settings


@click.group()
def merchant() -> None:
    """Merchants: who sells AI calls here."""


@merchant.command("set")
@MERCHANT
@click.option("--clamp-floor", type=int, default=None, help="Lower max_tokens to what a balance affords, at least to this; 0: off.")
@click.option("--overage", default=None, help=f"Where neither customer nor plan says otherwise: {OVERAGE_HELP}")
@DATA_DIR
def merchant_set(merchant_id: str | None, clamp_floor: int | None, overage: str | None, data_dir: Path | None) -> None:
    """Change a merchant's options; running servers follow at once."""
    if clamp_floor is None and overage is None:
        raise CallerError("Name an option to set: --clamp-floor, --overage.")
    policy = None if overage is None else overage_of(overage)

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.domain.plans import overage_document
        from lava_proxy.stores.plan_store import PlanStore

        owner, plans = await merchant_of(stores, merchant_id), PlanStore(stores.pool, stores.catalog.clock)
        if clamp_floor is not None:
            owner = await stores.catalog.set_clamp_floor(owner.merchant_id, clamp_floor)
        if overage is not None:
            await plans.set_merchant_overage(owner.merchant_id, policy)
        found = await plans.merchant_overage(owner.merchant_id)
        return {
            "merchant_id": owner.merchant_id, "name": owner.name, "clamp_floor": owner.clamp_floor,
            "overage": None if found is None else overage_document(found),
        }  # fmt: skip

    show(with_stores(data_dir, work))


@merchant.command("create")
@click.option("--name", required=True)
@click.option("--funds", default=None, help="Dollars for the merchant's own wallet, such as 100.00.")
@DATA_DIR
def merchant_create(name: str, funds: str | None, data_dir: Path | None) -> None:
    """Make a merchant; prints its first secret key, shown only here."""
    amount = usd(funds) if funds is not None else 0
    check_name(name)

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.billing.funding import Funding
        from lava_proxy.wire.forward_token import mint

        made = await stores.catalog.create_merchant(name)
        key = await stores.catalog.create_secret_key(made.merchant_id, "First key")
        funding = Funding(stores.catalog, stores.balances, stores.catalog.clock)
        await funding.open_wallet(made.wallet_id)
        if amount:
            await funding.fund(made.merchant_id, made.wallet_id, amount, "merchant create")
        return {
            "merchant_id": made.merchant_id,
            "name": name,
            "wallet_id": made.wallet_id,
            "secret_key": key,
            "self_forward_token": mint(key),
            "dashboard_link": await _dashboard_link(stores, installation(settings, data_dir), made.merchant_id),
        }

    show(with_stores(data_dir, work))


@click.group()
def dashboard() -> None:
    """The dashboard in the browser."""


@dashboard.command("link")
@MERCHANT
@DATA_DIR
def dashboard_link(merchant_id: str | None, data_dir: Path | None) -> None:
    """Print an address that signs a browser in, once, within an hour."""

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        owner = await merchant_of(stores, merchant_id)
        link = await _dashboard_link(stores, installation(settings, data_dir), owner.merchant_id)
        return {"merchant_id": owner.merchant_id, "dashboard_link": link}

    show(with_stores(data_dir, work))


async def _dashboard_link(stores: Any, config: Any, merchant_id: str) -> str:
    """Without a public URL it leads to where a server said it serves; when none has, only the path is known."""
    from lava_proxy.stores.audit_log import Actor, AuditLog
    from lava_proxy.stores.dashboard_sessions import DashboardSessions

    actor = Actor(kind="cli", id=f"uid {os.getuid()}", name="Command line")
    await AuditLog(stores.pool).note(merchant_id, actor, "session.link", merchant_id)
    sessions = DashboardSessions(stores.redis)
    code = await sessions.create_link(merchant_id)
    address = config.base_url.removesuffix("v1/") or await sessions.address() or "/"
    return f"{address}dashboard/enter/{code}"


@click.group()
def payments() -> None:
    """Card payments."""


@payments.command("reconcile")
@click.option("--day", default=None, help="UTC day, such as 2026-11-23 [yesterday].")
@DATA_DIR
def payments_reconcile(day: str | None, data_dir: Path | None) -> None:
    """Compare what the card processor captured on a day with what the ledger credits; exit 1 when they differ."""
    try:
        chosen = date.fromisoformat(day) if day else datetime.now(UTC).date() - timedelta(days=1)
    except ValueError:
        raise CallerError(f"--day takes a date such as 2026-11-23, not {day!r}.") from None

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.app.card_payments import open_card_payments
        from lava_proxy.billing.funding import Funding
        from lava_proxy.billing.reconciliation import reconcile

        cards = open_card_payments(
            stores.pool, Funding(stores.catalog, stores.balances, stores.catalog.clock), installation(settings, data_dir), settings
        )
        try:
            return await reconcile(cards.store, cards.processor, chosen)
        finally:
            await cards.close()

    report = with_stores(data_dir, work)
    show(report)
    if not report["met"]:
        sys.exit(1)


@click.group()
def customer() -> None:
    """Customers (connections): whose balance a call draws on."""


@customer.command("create")
@MERCHANT
@click.option("--funds", default=None, help="Dollars to start with, such as 25.00.")
@click.option("--reference-id", default=None, help="Your own id of this customer.")
@click.option("--email", default=None)
@click.option("--phone", default=None)
@DATA_DIR
def customer_create(
    merchant_id: str | None,
    funds: str | None,
    reference_id: str | None,
    email: str | None,
    phone: str | None,
    data_dir: Path | None,
) -> None:
    """Make a customer with a wallet."""
    amount = usd(funds) if funds is not None else 0
    if reference_id is not None and (not is_line(reference_id) or reference_id.startswith("con_")):
        raise CallerError("--reference-id takes 1 to 255 printable characters and may not start with con_.")

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.billing.funding import Funding
        from lava_proxy.domain.money import format_usd

        owner = await merchant_of(stores, merchant_id)
        contact = {name: value for name, value in (("email", email), ("phone", phone)) if value}
        made = await stores.catalog.create_connection(owner.merchant_id, reference_id=reference_id, contact=contact)
        funding = Funding(stores.catalog, stores.balances, stores.catalog.clock)
        await funding.open_wallet(made.wallet_id)
        if amount:
            await funding.fund(owner.merchant_id, made.wallet_id, amount, "customer create")
        return {
            "customer_id": made.connection_id, "connection_id": made.connection_id, "connection_secret": made.secret,
            "reference_id": reference_id, "merchant_id": owner.merchant_id, "wallet_id": made.wallet_id,
            "balance": format_usd(amount),
        }  # fmt: skip

    show(with_stores(data_dir, work))


@customer.command("limit")
@MERCHANT
@click.argument("customer_ref")
@limit_options
@DATA_DIR
def customer_limit(
    merchant_id: str | None, customer_ref: str, rpm: int | None, burst: int | None, tpm: int | None, concurrency: int | None,
    requests: str | None, spend: str | None, data_dir: Path | None,
) -> None:  # fmt: skip
    """Replace a customer's limits with the given ones; none given lifts them all."""
    from lava_proxy.domain.limits import Limits, limits_document, parse_limits

    limits = parse_limits(limits_of(rpm, burst, tpm, concurrency, requests, spend))

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        owner = await merchant_of(stores, merchant_id)
        found = await stores.catalog.connection(owner.merchant_id, customer_ref)
        if found is None:
            raise NotFound(f"No customer {customer_ref!r}.")
        chosen = None if limits == Limits() else limits
        await stores.catalog.set_connection_limits(owner.merchant_id, found.connection_id, chosen)
        return {"customer_id": found.connection_id, **limits_document(limits)}

    show(with_stores(data_dir, work))


@click.group()
def checkout() -> None:
    """Hosted checkouts: pages on which customers pay."""


@checkout.command("link")
@MERCHANT
@click.option("--plan", "plan_id", default=None, help="The plan to subscribe to.")
@click.option("--customer", "customer_ref", default=None, help="An id or reference_id; without it, a new customer.")
@click.option("--email", default=None, help="Send the link there, too.")
@click.option("--origin", default=None, help="Where the page leads back to [the server].")
@DATA_DIR
def checkout_link(
    merchant_id: str | None,
    plan_id: str | None,
    customer_ref: str | None,
    email: str | None,
    origin: str | None,
    data_dir: Path | None,
) -> None:
    """Make a checkout and print its link: a plan's, else a top-up's (--customer) or a new customer's."""
    config = installation(settings_module.load(), data_dir)

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.app.hosted_checkout import make_link

        owner = await merchant_of(stores, merchant_id)
        return await make_link(
            stores.pool, stores.redis, stores.catalog, stores.balances, stores.outbox, config, settings,
            merchant_id=owner.merchant_id, plan_id=plan_id, customer=customer_ref, email=email, origin_url=origin,
        )  # fmt: skip

    show(with_stores(data_dir, work))


@click.group()
def meter() -> None:
    """Meters: what a customer's usage costs."""


@meter.command("create")
@MERCHANT
@click.option("--name", required=True)
@click.option("--slug", default=None, help="Name in tokens; made from the name when left out.")
@click.option("--rate-type", type=click.Choice(["fixed", "percentage"]), default="fixed", show_default=True)
@click.option(
    "--tier-type",
    type=click.Choice(["tokens_1m", "characters_1m", "minutes", "requests"]),
    default="tokens_1m",
    show_default=True,
)
@click.option("--token-basis", type=click.Choice(["input+output", "output"]), default="input+output", show_default=True)
@click.option(
    "--tier", "tiers", multiple=True, metavar="[START:]RATE",
    help="Graduated tiers in order, e.g. --tier 0:20 --tier 1000000:15 (dollars per 1M tokens or characters, per minute, per "
    "request; percent of provider cost for percentage meters). A single rate needs no start.",
)  # fmt: skip
@DATA_DIR
def meter_create(
    merchant_id: str | None,
    name: str,
    slug: str | None,
    rate_type: str,
    tier_type: str,
    token_basis: str,
    tiers: tuple[str, ...],
    data_dir: Path | None,
) -> None:
    """Make a meter; prints its id, slug and secret."""
    import re

    from lava_proxy.domain.fees import format_tier, parse_tiers

    check_name(name)
    if not tiers:
        raise CallerError("A meter needs at least one --tier, such as --tier 20.")
    pairs = [tier.rpartition(":") for tier in tiers]
    by, per = cast(RateType, rate_type), cast(TierType, tier_type)  # of those that the options let through
    parsed = parse_tiers(by, per, [{"start": start or "0", "rate": rate} for start, _, rate in pairs])
    chosen = slug or re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "meter"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", chosen):
        raise CallerError("--slug takes 1 to 100 letters, digits, - and _.")

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        owner = await merchant_of(stores, merchant_id)
        made = await stores.catalog.create_meter(
            owner.merchant_id,
            name=name,
            slug=chosen,
            rate_type=rate_type,
            tier_type=tier_type,
            tiers=parsed,
            token_basis=token_basis,
        )
        return {
            "meter_id": made.meter_id, "meter_slug": chosen, "product_secret": made.secret, "merchant_id": owner.merchant_id,
            "rate_type": rate_type, "token_basis": token_basis,
            "tiers": [format_tier(by, per, tier) for tier in parsed],
        }  # fmt: skip

    show(with_stores(data_dir, work))


COMMANDS = (merchant, dashboard, payments, customer, checkout, meter)
