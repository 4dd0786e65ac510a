"""stores/key_rotation.py: afterwards the new key opens everything and the old one nothing; until then nothing has changed."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from lava_proxy.domain.catalog import Tier
from lava_proxy.stores import key_rotation
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.checkout_store import CheckoutStore
from lava_proxy.stores.idempotent_answers import IdempotentAnswers, KeptAnswer
from lava_proxy.stores.key_rotation import SEALED, rotate
from lava_proxy.stores.vault import SealBroken, Vault, new_master_key
from lava_proxy.stores.webhook_store import WebhookStore
from tests.billing_world import World

OLD, NEW = new_master_key(), new_master_key()


async def _store(world: World, master_key: str, *also: str) -> CatalogStore:
    return CatalogStore(world.pool, Vault(master_key, also))


async def _fill(world: World, catalog: CatalogStore, connections: int = 5) -> list[str]:
    """Secrets of all kinds; those of the connections."""
    made = [await catalog.create_connection(world.merchant_id) for _ in range(connections)]
    await catalog.create_meter(
        world.merchant_id, name="m", slug="m", rate_type="fixed", tier_type="tokens_1m", tiers=(Tier(start=0, rate=1),)
    )  # fmt: skip
    await catalog.set_provider_key(world.merchant_id, "openai", "sk-first-secret")
    await catalog.set_provider_key(world.merchant_id, "anthropic", "sk-second-secret")
    return [connection.secret or "" for connection in made]


async def _secrets(world: World, catalog: CatalogStore) -> list[str | None]:
    connections = await catalog.connections(world.merchant_id, before=None, limit=100)
    meters = await catalog.meters(world.merchant_id, before=None, limit=100)
    keys = await catalog.provider_keys(world.merchant_id)
    return [item.secret for item in (*connections, *meters)] + [keys[name] for name in sorted(keys)]


async def test_all_secrets_come_back_under_the_new_key_and_none_under_the_old(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches too; a second run finds nothing to do."""
    monkeypatch.setattr(key_rotation, "_BATCH_ROWS", 2)
    old, new = await _store(world, OLD), await _store(world, NEW)
    secrets = await _fill(world, old)
    before = await _secrets(world, old)
    now = datetime.now(UTC)
    webhook = await WebhookStore(world.pool, Vault(OLD)).create(
        world.merchant_id, name="w", url="https://r.example", vocabulary="customer", events=None, status="active", now=now
    )
    answer = KeptAnswer(status=201, media_type="application/json", body=b'{"key":"lava_sk_secret"}')
    claim = await IdempotentAnswers(world.pool, Vault(OLD)).claim(world.merchant_id, "k", b"h")
    assert isinstance(claim, str)
    await IdempotentAnswers(world.pool, Vault(OLD)).fill(world.merchant_id, "k", claim, answer)
    checkouts = CheckoutStore(world.pool, Vault(OLD), lambda: now)
    session = await checkouts.create(world.merchant_id, "onboarding", origin_url="https://x.example", is_test=True, offer={})
    await old.check_master_key()
    with pytest.raises(SealBroken):  # a start with another key is refused before anything is sealed under it
        await new.check_master_key()
    found = await rotate(world.pool, Vault(NEW, (OLD,)))
    assert found == {
        "checkout_session": {"resealed": 1, "already": 0},
        "installation": {"resealed": 1, "already": 0},
        "connection": {"resealed": 5, "already": 0},
        "meter": {"resealed": 1, "already": 0},
        "idempotent_answer": {"resealed": 1, "already": 0},
        "provider_key": {"resealed": 2, "already": 0},
        "webhook_secret": {"resealed": 1, "already": 0},
    }
    assert await _secrets(world, new) == before and set(secrets) < set(before)
    with pytest.raises(ValueError, match="cannot be opened"):
        await _secrets(world, old)
    outgoing = await WebhookStore(world.pool, Vault(NEW)).add_test(webhook, now, timedelta(seconds=30))
    assert outgoing.secrets == (webhook.secret,)
    assert await CheckoutStore(world.pool, Vault(NEW), lambda: now).by_secret(session.secret) == session
    again = await rotate(world.pool, Vault(NEW, (OLD,)))
    assert [counts["resealed"] for counts in again.values()] == [0] * len(SEALED)
    assert await IdempotentAnswers(world.pool, Vault(NEW)).claim(world.merchant_id, "k", b"h") == answer
    await new.check_master_key()


async def test_a_server_with_both_keys_works_before_during_and_after(world: World) -> None:
    """What it seals meanwhile is under the new key already."""
    before = await _fill(world, await _store(world, OLD))
    both = await _store(world, NEW, OLD)
    await both.set_provider_key(world.merchant_id, "openai", "sk-third-secret")
    assert set(before) < set(await _secrets(world, both))
    found = await rotate(world.pool, Vault(NEW, (OLD,)))
    assert found["provider_key"] == {"resealed": 1, "already": 1}
    assert set(before) < set(await _secrets(world, both))
    assert "sk-third-secret" in await _secrets(world, await _store(world, NEW))


async def test_one_secret_that_opens_under_no_key_is_named_and_nothing_is_changed(world: World) -> None:
    """All or nothing: then it is mended and the command run again."""
    old = await _store(world, OLD)
    await _fill(world, old)
    before = await _secrets(world, old)
    stranger = await _store(world, new_master_key())
    await stranger.set_provider_key(world.merchant_id, "zai", "sk-of-nobody")
    with pytest.raises(ValueError, match=f"provider_key:{world.merchant_id}:zai: .*Nothing was changed"):
        await rotate(world.pool, Vault(NEW, (OLD,)))
    await world.pool.execute("DELETE FROM provider_key WHERE provider = 'zai'")
    assert await _secrets(world, old) == before
    await rotate(world.pool, Vault(NEW, (OLD,)))
    assert await _secrets(world, await _store(world, NEW)) == before


async def test_no_sealed_column_of_the_schema_is_forgotten(world: World) -> None:
    rows = await world.fetch(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND column_name LIKE '%sealed%'"
    )
    assert {(row["table_name"], row["column_name"]) for row in rows} == {(sealed.table, sealed.column) for sealed in SEALED}


@pytest.mark.parametrize("variable", ["LAVA_MASTER_KEY_NEXT", "MY_KEY", "LAVA_MASTER_KEY"])
async def test_the_command_reads_the_new_key_from_the_environment(world: World, variable: str) -> None:
    await _fill(world, await _store(world, OLD))
    environment = {
        "LAVA_REDIS_URL": world.redis_url, "LAVA_DATABASE_URL": world.database_url, "PATH": "/usr/bin:/bin",
        "LAVA_MASTER_KEY": OLD, "LAVA_MASTER_KEY_PREVIOUS": OLD, variable: NEW,
    }  # fmt: skip
    command = [sys.executable, "-m", "lava_proxy", "keys", "rotate", *(["--new-key-env", "MY_KEY"] if variable == "MY_KEY" else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["sealed_with"], found["connection"]["resealed"]) == (variable, 5)
    assert NEW not in done.stdout + done.stderr and OLD not in done.stdout + done.stderr
    assert len(await _secrets(world, await _store(world, NEW))) == 8


async def test_a_command_without_a_new_key_says_so_in_a_sentence(world: World) -> None:
    environment = {"PATH": "/usr/bin:/bin", "LAVA_MASTER_KEY": OLD}
    command = [sys.executable, "-m", "lava_proxy", "keys", "rotate", "--new-key-env", "NO_SUCH"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "NO_SUCH is not set" in done.stderr and "Traceback" not in done.stderr
