"""The seeded demo of `dev`: a merchant, a customer with $25, three meters. Made once; its keys live in a 0600 file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lava_proxy.app.card_payments import CardPayments
from lava_proxy.billing.funding import Funding
from lava_proxy.domain.catalog import PPM_PER_PERCENT, RateType, Tier
from lava_proxy.domain.money import NANOS_PER_USD
from lava_proxy.payments.processor import CardDetails
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.ids import new_id, new_secret
from lava_proxy.stores.vault import new_master_key
from lava_proxy.wire.forward_token import mint

_CARD = "4242424242424242"
_CUSTOMER_NANOS = 25 * NANOS_PER_USD
_MERCHANT_NANOS = 100 * NANOS_PER_USD
_METERS: dict[str, tuple[str, RateType, tuple[Tier, ...]]] = {
    "fixed": ("$0.02 per 1K tokens", "fixed", (Tier(start=0, rate=20 * NANOS_PER_USD),)),
    "markup": ("Provider cost plus 20 %", "percentage", (Tier(start=0, rate=20 * PPM_PER_PERCENT),)),
    "tiered": (
        "$20, from 1M tokens $15, from 10M tokens $10 per 1M",
        "fixed",
        (
            Tier(start=0, rate=20 * NANOS_PER_USD),
            Tier(start=1_000_000, rate=15 * NANOS_PER_USD),
            Tier(start=10_000_000, rate=10 * NANOS_PER_USD),
        ),
    ),
}


@dataclass(slots=True, kw_only=True)
class Secrets:
    """What `dev` keeps between starts."""

    master_key: str
    secret_key: str
    customer_credit_id: str
    merchant_credit_id: str
    connection_id: str
    merchant_id: str | None = None

    def forward_token(self, meter_slug: str = "fixed") -> str:
        """The sandbox customer's token; known before the customer has been made."""
        return mint(self.secret_key, self.connection_id, meter_slug)


def load_secrets(data_dir: Path) -> Secrets:
    """The kept secrets, or fresh ones, written at once."""
    path = data_dir / "secrets.json"
    if path.exists():
        return Secrets(**json.loads(path.read_text()))
    secrets = Secrets(
        master_key=new_master_key(),
        secret_key=new_secret("aks_test_"),
        customer_credit_id=new_id("crd"),
        merchant_credit_id=new_id("crd"),
        connection_id=new_id("con"),
    )
    save_secrets(data_dir, secrets)
    return secrets


def save_secrets(data_dir: Path, secrets: Secrets) -> None:
    write_private(data_dir / "secrets.json", asdict(secrets))


def write_private(path: Path, content: dict[str, Any]) -> None:
    """Write JSON that only the owner may read; whole or not at all."""
    scratch = path.with_suffix(".new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file, indent=1)
    scratch.replace(path)


async def seed_card(cards: CardPayments, merchant_id: str, catalog: CatalogStore) -> None:
    """A test card for the merchant's own wallet, where the processor takes test cards and the merchant has none."""
    if cards.processor is None or cards.processor.name != "sandbox":
        return
    merchant = await catalog.merchant(merchant_id)
    person_id = await cards.store.wallet_person_made(merchant.wallet_id, cards.clock())
    if not await cards.cards.list(person_id):
        await cards.cards.add(person_id, CardDetails(number=_CARD, expiry_month=12, expiry_year=2034))


async def seed(catalog: CatalogStore, funding: Funding, secrets: Secrets, data_dir: Path, base_url: str) -> dict[str, Any]:
    """Make what is missing; what `dev --json` prints."""
    if secrets.merchant_id is None:
        secrets.merchant_id = (await catalog.create_merchant("Sandbox")).merchant_id
        save_secrets(data_dir, secrets)
    merchant = await catalog.merchant(secrets.merchant_id)
    await catalog.create_secret_key(merchant.merchant_id, "Sandbox", secret=secrets.secret_key)
    found = await catalog.connection(merchant.merchant_id, secrets.connection_id)
    if found is None:
        found = await catalog.create_connection(
            merchant.merchant_id, reference_id="sandbox-customer", connection_id=secrets.connection_id
        )
    for wallet_id in (merchant.wallet_id, found.wallet_id):
        await funding.open_wallet(wallet_id)
    # The credits have fixed ids, so only the first start adds money.
    await funding.fund_once(merchant.merchant_id, merchant.wallet_id, _MERCHANT_NANOS, "sandbox", secrets.merchant_credit_id)
    await funding.fund_once(merchant.merchant_id, found.wallet_id, _CUSTOMER_NANOS, "sandbox", secrets.customer_credit_id)
    meters: dict[str, dict[str, str]] = {}
    for name, (title, rate_type, tiers) in _METERS.items():
        meter = await catalog.meter(merchant.merchant_id, name)
        if meter is None:
            meter = await catalog.create_meter(
                merchant.merchant_id, name=title, slug=name, rate_type=rate_type, tier_type="tokens_1m", tiers=tiers
            )
        meters[name] = {
            "meter_id": meter.meter_id,
            "meter_slug": name,
            "product_secret": meter.secret or "",
            "forward_token": secrets.forward_token(name),
        }
    return {
        "base_url": base_url,
        "secret_key": secrets.secret_key,
        "merchant_id": merchant.merchant_id,
        "connection_id": found.connection_id,
        "connection_secret": found.secret,
        "forward_token": meters["fixed"]["forward_token"],
        "self_forward_token": mint(secrets.secret_key),
        "meters": meters,
        "dashboard_url": base_url.removesuffix("v1/"),
    }
