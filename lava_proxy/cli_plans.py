"""`lava-proxy plan` and `lava-proxy subscription`, and how an overage policy is written on a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lava_proxy.cli_installation import DATA_DIR, MERCHANT, merchant_of, show, with_stores
from lava_proxy.domain.errors import CallerError, NotFound

OVERAGE_HELP = (
    'block, auto_top_up, or charge with amounts in dollars: "charge limit=50 threshold=10 increment=1 monthly_cap=500"; '
    "default: none of its own."
)


def overage_of(text: str) -> Any:
    """An Overage; None for "default". Raises CallerError for anything else."""
    from lava_proxy.domain.plans import parse_overage

    words = text.replace(",", " ").split()
    if words == ["default"]:
        return None
    if not words or not all("=" in word for word in words[1:]):
        raise CallerError(f"--overage is {text!r}; accepted is: {OVERAGE_HELP}")
    return parse_overage({"policy": words[0]} | dict(word.split("=", 1) for word in words[1:]))


@click.group()
def plan() -> None:
    """Plans: what customers subscribe to."""


@plan.command("create")
@MERCHANT
@click.option("--name", required=True)
@click.option("--amount", required=True, help='Dollars a cycle, such as 25.00; "0" is free.')
@click.option("--every", default="month", help="day, week, month or year.", show_default=True)
@click.option("--credit", default=None, help="Dollars of credit a cycle; as much as it costs when left out.")
@click.option("--rollover", default="none", help="full: credit that is left carries over; none: it ends.", show_default=True)
@click.option("--bundle-rollover", default="full", help="The same for bundles.", show_default=True)
@click.option("--meter", "meters", multiple=True, help="Slug or id of a meter that draws on the credit; may be repeated.")
@click.option("--bundle", "bundles", multiple=True, help="NAME:COST:CREDIT of a bundle, such as Extra:8.00:10.00.")
@click.option("--overage", default=None, help=OVERAGE_HELP)
@DATA_DIR
def plan_create(
    merchant_id: str | None, name: str, amount: str, every: str, credit: str | None, rollover: str, bundle_rollover: str,
    meters: tuple[str, ...], bundles: tuple[str, ...], overage: str | None, data_dir: Path | None,
) -> None:  # fmt: skip
    """Make a plan, by the same rules as POST /v1/plans."""
    policy = overage_of(overage) if overage is not None else None

    async def work(stores: Any, settings: Any) -> dict[str, Any]:
        from lava_proxy.api.operations import checked
        from lava_proxy.api.plans import NewPlan, create_plan
        from lava_proxy.api.subscription_objects import plan_object
        from lava_proxy.domain.plans import overage_document

        owner = await merchant_of(stores, merchant_id)
        body: dict[str, Any] = {
            "name": name, "period_amount": amount, "billing_interval": every, "included_credit": credit,
            "rollover_type": rollover, "bundle_rollover_type": bundle_rollover,
            "meter_ids": [await _meter_id(stores, owner.merchant_id, meter) for meter in meters],
            "credit_bundles": [_bundle(text) for text in bundles],
            "overage": None if policy is None else overage_document(policy),
        }  # fmt: skip
        return plan_object(await create_plan(_plans(stores), owner.merchant_id, checked(NewPlan, body)))

    show(with_stores(data_dir, work))


@plan.command("list")
@MERCHANT
@DATA_DIR
def plan_list(merchant_id: str | None, data_dir: Path | None) -> None:
    """Print a merchant's plans, newest first."""

    async def work(stores: Any, settings: Any) -> dict[str, Any]:
        from lava_proxy.api.subscription_objects import plan_object

        owner = await merchant_of(stores, merchant_id)
        found = await _plans(stores).plans(owner.merchant_id, before=None, limit=1000)
        return {"plans": [plan_object(one) for one in found]}

    show(with_stores(data_dir, work))


@click.group()
def subscription() -> None:
    """Subscriptions: which customer is on which plan."""


@subscription.command("create")
@MERCHANT
@click.option("--customer", required=True, help="Customer (connection) id or reference id.")
@click.option("--plan", "plan_id", required=True)
@DATA_DIR
def subscription_create(merchant_id: str | None, customer: str, plan_id: str, data_dir: Path | None) -> None:
    """Put a customer on a plan that costs nothing, or on a cheaper one at the end of the cycle; others go by checkout."""

    async def work(stores: Any, settings: Any) -> dict[str, Any]:
        from lava_proxy.api.subscription_objects import subscription_object
        from lava_proxy.billing.funding import Funding
        from lava_proxy.billing.subscriptions import Subscriptions

        owner, plans = await merchant_of(stores, merchant_id), _plans(stores)
        connection = await stores.catalog.connection(owner.merchant_id, customer)
        found = await plans.plan(owner.merchant_id, plan_id)
        if connection is None or found is None:
            raise NotFound(f"No customer {customer!r}." if connection is None else f"No plan {plan_id!r}.")
        clock = stores.catalog.clock
        changed = await Subscriptions(plans, Funding(stores.catalog, stores.balances, clock), clock).change_unpaid(
            connection, found
        )  # fmt: skip
        state = (await stores.outbox.wallet_states([connection.wallet_id]))[connection.wallet_id]
        leads_to = [changed.pending["plan_id"]] if changed.pending and "plan_id" in changed.pending else []
        return subscription_object(changed, state, await plans.offers(None, leads_to))

    show(with_stores(data_dir, work))


def _plans(stores: Any) -> Any:
    from lava_proxy.stores.plan_store import PlanStore

    return PlanStore(stores.pool, stores.catalog.clock)


async def _meter_id(stores: Any, merchant_id: str, reference: str) -> str:
    meter = await stores.catalog.meter(merchant_id, reference)
    if meter is None:
        raise NotFound(f"No meter {reference!r}.")
    return str(meter.meter_id)


def _bundle(text: str) -> dict[str, str]:
    parts = text.rsplit(":", 2)
    if len(parts) != 3:
        raise CallerError(f"--bundle is {text!r}; accepted is NAME:COST:CREDIT, such as Extra:8.00:10.00.")
    return dict(zip(("name", "cost", "credit_amount"), parts, strict=True))


COMMANDS = (plan, subscription)
