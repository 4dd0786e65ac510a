"""Spend keys, providers' keys, forward tokens and the master key, from the command line."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from lava_proxy import settings as settings_module
from lava_proxy.cli_installation import DATA_DIR, MERCHANT, check_name, config_from_environment, merchant_of, show, with_stores
from lava_proxy.cli_limits import limit_options, limits_of
from lava_proxy.domain.errors import CallerError, NotFound
from lava_proxy.settings import Settings


@click.group("spend-key")
def spend_key() -> None:
    """Spend keys (lava_sk_...): draw on the merchant's own wallet at provider cost, within limits."""


@spend_key.command("create")
@MERCHANT
@click.option("--name", required=True)
@click.option(
    "--shape", type=click.Choice(["openai", "anthropic"]), default="openai", show_default=True, help="API of its model routes."
)
@click.option("--model", "models", multiple=True, help="Allowed model, `*` for any characters. Repeatable; none: all.")
@click.option("--provider", "providers", multiple=True, help="Allowed provider. Repeatable; none: all.")
@click.option("--expires-at", default=None, help="ISO 8601, such as 2026-12-31T23:59:59Z.")
@limit_options
@DATA_DIR
def spend_key_create(
    merchant_id: str | None, name: str, shape: str, models: tuple[str, ...], providers: tuple[str, ...], expires_at: str | None,
    rpm: int | None, burst: int | None, tpm: int | None, concurrency: int | None, requests: str | None, spend: str | None,
    data_dir: Path | None,
) -> None:  # fmt: skip
    """Make a spend key; prints its secret, shown only here."""
    from lava_proxy.api.spend_keys import parse_rules, spend_key_object
    from lava_proxy.domain.limits import KeyRules, parse_limits

    check_name(name)
    limits = parse_limits(limits_of(rpm, burst, tpm, concurrency, requests, spend))
    asked = {"request_shape": shape, "allowed_models": list(models) or None, "allowed_providers": list(providers) or None}
    rules = parse_rules(asked | {"expires_at": expires_at}, KeyRules())

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        owner = await merchant_of(stores, merchant_id)
        made = await stores.catalog.create_spend_key(owner.merchant_id, name=name, rules=rules, limits=limits)
        return {**spend_key_object(made, {}, made.created_at), "merchant_id": owner.merchant_id, "key": made.secret}

    show(with_stores(data_dir, work))


@click.group("provider-key")
def provider_key() -> None:
    """Provider keys stored for a merchant, encrypted."""


@provider_key.command("set")
@MERCHANT
@click.option("--provider", required=True, help="Provider name, such as openai.")
@click.option(
    "--key",
    default=None,
    help="The key; asked for (or read from standard input) when left out, which keeps it out of the shell's history.",
)
@DATA_DIR
def provider_key_set(merchant_id: str | None, provider: str, key: str | None, data_dir: Path | None) -> None:
    """Store a provider key for a merchant's calls."""
    secret = (key or (click.prompt("Key", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline())).strip()
    if not 8 <= len(secret) <= 4096 or not secret.isascii() or any(c.isspace() for c in secret):
        raise CallerError("A provider key is 8 to 4096 printable ASCII characters without spaces.")

    async def work(stores: Any, settings: Settings) -> dict[str, Any]:
        from lava_proxy.providers.registry import load_registry

        known = load_registry(settings.providers_table).by_name(provider)
        if known is None:
            raise NotFound(f"No provider {provider!r}; the names are in config/providers.toml.")
        owner = await merchant_of(stores, merchant_id)
        await stores.catalog.set_provider_key(owner.merchant_id, known.name, secret)
        return {"merchant_id": owner.merchant_id, "provider": known.name, "hint": f"...{secret[-4:]}"}

    show(with_stores(data_dir, work))


@click.group()
def token() -> None:
    """Forward tokens: merchant key, customer and meter in one credential."""


@token.command("mint")
@click.option("--secret-key", required=True, envvar="LAVA_SECRET_KEY", help="Or LAVA_SECRET_KEY, which `ps` does not show.")
@click.option("--customer", default=None, help="Customer (connection) id or reference id.")
@click.option("--meter", "meter_slug", default=None, help="Meter slug.")
@click.option(
    "--provider-key",
    "own_key",
    default=None,
    envvar="LAVA_PROVIDER_KEY",
    help="Call the provider with this key (or LAVA_PROVIDER_KEY).",
)
@click.option("--disable-billing", is_flag=True, default=None, help="Proxy and record, charge nothing.")
def token_mint(
    secret_key: str, customer: str | None, meter_slug: str | None, own_key: str | None, disable_billing: bool | None
) -> None:
    """Make a token; nothing is looked up."""
    from lava_proxy.wire.forward_token import mint

    if customer is not None and meter_slug is None:
        raise CallerError("A customer needs a meter: add --meter.")
    show({"forward_token": mint(secret_key, customer, meter_slug, own_key, disable_billing or None)})


@token.command("inspect")
@click.argument("text")
def token_inspect(text: str) -> None:
    """Show what a token holds, secrets shortened. TEXT `-` reads it from standard input."""
    from lava_proxy.wire.forward_token import parse_credential

    found = parse_credential(sys.stdin.read().strip() if text == "-" else text)

    def short(secret: str | None) -> str | None:
        return None if secret is None else f"{secret[:9]}...{secret[-4:]}" if len(secret) > 20 else "..."

    shown_customer = short(found.customer_ref) if found.customer_field == "connection_secret" else found.customer_ref
    shown_meter = short(found.meter_ref) if found.meter_field in ("product_secret", "meter_secret") else found.meter_ref
    show({
        "kind": found.kind, "secret_key": short(found.secret_key),
        "customer": shown_customer, "customer_field": found.customer_field,
        "meter": shown_meter, "meter_field": found.meter_field,
        "provider_key": short(found.provider_key), "disable_billing": found.disable_billing,
    })  # fmt: skip


@click.group()
def keys() -> None:
    """The master key, which stored secrets are sealed with."""


@keys.command("rotate")
@click.option(
    "--new-key-env",
    default=None,
    help="The environment variable with the key to seal with [LAVA_MASTER_KEY_NEXT if it is set, else LAVA_MASTER_KEY].",
)
def keys_rotate(new_key_env: str | None) -> None:
    """Seal every stored secret anew; prints how many. See deploy/RUNBOOK.md for the order of things.

    What is sealed now is opened with LAVA_MASTER_KEY or LAVA_MASTER_KEY_PREVIOUS. All or nothing; may be run again.
    """
    settings = settings_module.load()
    environment = settings.environment
    name = new_key_env or ("LAVA_MASTER_KEY_NEXT" if environment.get("LAVA_MASTER_KEY_NEXT") else "LAVA_MASTER_KEY")
    new_key = environment.get(name)
    if not new_key:
        raise CallerError(f"{name} is not set; make a key with: openssl rand -base64 32.")
    config = config_from_environment(settings)

    async def run() -> dict[str, Any]:
        from lava_proxy.stores import postgres
        from lava_proxy.stores.key_rotation import rotate
        from lava_proxy.stores.vault import Vault

        vault = Vault(new_key, (config.master_key, config.previous_master_key))
        pool = await postgres.connect(config.database_url, size_max=1)
        try:
            return {"sealed_with": name, **(await rotate(pool, vault))}
        finally:
            await pool.close()

    show(asyncio.run(run()))


COMMANDS = (spend_key, provider_key, token, keys)
