"""`customer fund`, `customer adjust` and `card add`: money and cards from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lava_proxy.cli_installation import DATA_DIR, MERCHANT, installation, merchant_of, show, with_stores
from lava_proxy.domain.errors import CallerError, NotFound
from lava_proxy.domain.money import AMOUNT_NANOS_MAX, format_usd, nanos_of_cents, parse_usd
from lava_proxy.settings import Settings

TEST_CARD = "4242424242424242"


@click.command("fund")
@MERCHANT
@click.argument("customer_ref")
@click.argument("amount")
@click.option("--card", is_flag=True, help="Charge the customer's default card; else the funds are a gift.")
@DATA_DIR
def fund(merchant_id: str | None, customer_ref: str, amount: str, card: bool, data_dir: Path | None) -> None:
    """Add AMOUNT dollars to a customer's funds."""
    nanos = signed_usd(amount)
    if nanos < 0:
        raise CallerError("AMOUNT must be above 0; `customer adjust` takes.")

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        owner = await merchant_of(stores, merchant_id)
        found = await _customer(stores, owner, customer_ref)
        cards, funding = _cards(stores, installation(settings, data_dir), settings)
        services = _services(cards, stores, funding, installation(settings, data_dir))
        try:
            if not card:
                reference = await funding.fund(owner.merchant_id, found.wallet_id, nanos, "customer fund")
                return {"customer_id": found.connection_id, "credit_id": reference, "amount": format_usd(nanos)}
            charge = await services.accounts.fund(owner.merchant_id, found.wallet_id, nanos, return_url=services.public_url)
            return {
                "customer_id": found.connection_id, "payment_id": charge.charge_id, "status": charge.state,
                "amount": format_usd(nanos_of_cents(charge.amount_cents)), "redirect_url": charge.action_url,
            }  # fmt: skip
        finally:
            await cards.close()

    show(with_stores(data_dir, work))


@click.command("adjust", context_settings={"ignore_unknown_options": True})
@MERCHANT
@click.argument("customer_ref")
@click.argument("amount")
@click.option("--reason", required=True, help="Kept with the ledger entry.")
@DATA_DIR
def adjust(merchant_id: str | None, customer_ref: str, amount: str, reason: str, data_dir: Path | None) -> None:
    """Change a customer's funds by AMOUNT dollars, such as 5.00 or -2.50; below zero it may leave debt."""
    nanos = signed_usd(amount)

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        owner = await merchant_of(stores, merchant_id)
        found = await _customer(stores, owner, customer_ref)
        config = installation(settings, data_dir)
        cards, funding = _cards(stores, config, settings)
        try:
            adjust_id = await _services(cards, stores, funding, config).accounts.adjust(
                owner.merchant_id, found.wallet_id, nanos, reason, made_by="command line"
            )
        finally:
            await cards.close()
        return {
            "customer_id": found.connection_id, "adjustment_id": adjust_id, "amount": format_usd(nanos), "reason": reason,
        }  # fmt: skip

    show(with_stores(data_dir, work))


@click.group("card")
def card_group() -> None:
    """Stored cards."""


@card_group.command("add")
@MERCHANT
@click.option("--customer", "customer_ref", default=None, help="A customer; else the merchant's own wallet.")
@click.option("--test", "number", default=TEST_CARD, show_default=True, help="A test card's number (sandbox only).")
@DATA_DIR
def add(merchant_id: str | None, customer_ref: str | None, number: str, data_dir: Path | None) -> None:
    """Store a test card as the default one; real cards are entered in the checkout."""

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.api.payments import payment_method_object
        from lava_proxy.payments.processor import CardDetails

        owner = await merchant_of(stores, merchant_id)
        payer = owner if customer_ref is None else await _customer(stores, owner, customer_ref)
        cards, _ = _cards(stores, installation(settings, data_dir), settings)
        try:
            person_id = await cards.store.wallet_person_made(payer.wallet_id, cards.clock())
            added = await cards.cards.add(person_id, CardDetails(number=number, expiry_month=12, expiry_year=2034))
        finally:
            await cards.close()
        shown = payment_method_object(added)
        return {"wallet_id": payer.wallet_id, **shown}

    show(with_stores(data_dir, work))


def signed_usd(text: str) -> int:
    """Nanos of dollars such as 25.00 or -2.50. Raises CallerError."""
    try:
        amount = parse_usd(text)
    except ValueError as error:
        raise CallerError(f"AMOUNT takes dollars such as 25.00: {error}.") from error
    if not 0 < abs(amount) <= AMOUNT_NANOS_MAX:
        raise CallerError(f"AMOUNT must not be 0 and at most 9000000 either way, not {text}.")
    return amount


async def _customer(stores: Any, owner: Any, customer_ref: str) -> Any:
    found = await stores.catalog.connection(owner.merchant_id, customer_ref)
    if found is None:
        raise NotFound(f"No customer {customer_ref!r}.")
    return found


def _cards(stores: Any, config: Any, settings: Settings) -> Any:
    from lava_proxy.app.card_payments import open_card_payments
    from lava_proxy.app.run_config import business_clock
    from lava_proxy.billing.funding import Funding

    funding = Funding(stores.catalog, stores.balances, business_clock(config))
    return open_card_payments(stores.pool, funding, config, settings), funding


def _services(cards: Any, stores: Any, funding: Any, config: Any) -> Any:
    from lava_proxy.app.payment_services import payment_services

    return payment_services(cards, stores.pool, funding, config)


COMMANDS = (card_group,)
OF_CUSTOMER = (fund, adjust)
"""Commands of the group `customer`."""
