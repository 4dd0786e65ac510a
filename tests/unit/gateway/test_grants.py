"""Grants: asked once, kept until the catalogue changes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from lava_proxy import settings
from lava_proxy.domain.errors import BadToken, CallerError, Forbidden, StoreError
from lava_proxy.domain.limits import KeyRules, Limits, Scope
from lava_proxy.gateway.grants import Grants
from lava_proxy.providers.base import Call
from lava_proxy.stores.catalog_store import Merchant, SpendKey
from tests.unit.gateway.fake_registry import OPENAI

KEY = b"aks_test_1"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


class FakeCatalog:
    """One merchant; `gate` holds its answers back."""

    def __init__(self) -> None:
        self.asked = 0
        self.known = True
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def merchant_by_key(self, secret_key: str) -> Merchant | None:
        self.asked += 1
        known = self.known
        await self.gate.wait()
        if self.is_away:
            raise StoreError("away")
        return Merchant(merchant_id="mer_1", name="M", wallet_id="wal_1") if known else None

    async def provider_keys(self, merchant_id: str) -> dict[str, str]:
        return {}


def grants_of(catalog: Any, **cache: int) -> Grants:
    return Grants(catalog, replace(settings.load({}).cache, **cache))


async def test_a_known_credential_is_not_asked_for_again() -> None:
    catalog = FakeCatalog()
    grants = grants_of(catalog)
    assert grants.known(KEY) is None
    payer = await grants.resolve(KEY)
    assert payer.grant.wallet_id == "wal_1"
    assert await grants.resolve(KEY) is payer is grants.known(KEY)
    assert catalog.asked == 1


async def test_callers_that_wait_for_the_same_credential_share_one_question() -> None:
    """E8: the first requests of a caller nobody knows yet come together."""
    catalog = FakeCatalog()
    catalog.gate.clear()
    grants = grants_of(catalog)
    waiting = [asyncio.ensure_future(grants.resolve(KEY)) for _ in range(50)]
    await asyncio.sleep(0)
    catalog.gate.set()
    assert len(set(map(id, await asyncio.gather(*waiting)))) == 1
    assert catalog.asked == 1


async def test_a_change_of_the_catalogue_forgets_what_is_known() -> None:
    catalog = FakeCatalog()
    grants = grants_of(catalog)
    await grants.resolve(KEY)
    catalog.known = False
    grants.forget()
    with pytest.raises(BadToken):
        await grants.resolve(KEY)


async def test_an_answer_older_than_a_change_is_not_kept() -> None:
    catalog = FakeCatalog()
    catalog.gate.clear()
    grants = grants_of(catalog)
    waiting = asyncio.ensure_future(grants.resolve(KEY))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the look-up runs in a task of its own
    grants.forget()  # the key is revoked while its answer is on the way
    catalog.gate.set()
    await waiting
    assert grants.known(KEY) is None


async def test_a_refusal_older_than_a_change_is_not_kept() -> None:
    catalog = FakeCatalog()
    catalog.known = False
    catalog.gate.clear()
    grants = grants_of(catalog)
    waiting = asyncio.ensure_future(grants.resolve(KEY))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the look-up runs in a task of its own
    catalog.known = True
    grants.forget()  # the key is made while the answer that there is none is on the way
    catalog.gate.set()
    with pytest.raises(BadToken):
        await waiting
    assert (await grants.resolve(KEY)).grant.wallet_id == "wal_1"


async def test_a_refusal_is_remembered_for_a_moment_only() -> None:
    catalog = FakeCatalog()
    catalog.known = False
    grants = grants_of(catalog)
    for _ in range(3):
        with pytest.raises(BadToken):
            await grants.resolve(KEY)
    assert catalog.asked == 1
    [(digest, refusal)] = grants._refused.items()
    grants._refused[digest] = (0.0, *refusal[1:])  # the moment is over
    catalog.known = True
    assert (await grants.resolve(KEY)).grant.wallet_id == "wal_1"


async def test_an_outage_is_not_remembered_as_a_refusal() -> None:
    catalog = FakeCatalog()
    catalog.is_away = True
    grants = grants_of(catalog)
    with pytest.raises(StoreError):
        await grants.resolve(KEY)
    catalog.is_away = False
    assert (await grants.resolve(KEY)).grant.wallet_id == "wal_1"


async def test_no_more_credentials_are_kept_than_the_bound_says() -> None:
    catalog = FakeCatalog()
    grants = grants_of(catalog, grants_max=10)
    for number in range(30):
        await grants.resolve(b"aks_test_%d" % number)
    assert len(grants._known) == 10
    catalog.known = False
    for number in range(30, 60):
        with pytest.raises(BadToken):
            await grants.resolve(b"aks_test_%d" % number)
    assert len(grants._refused) <= 10


async def test_what_strangers_send_is_not_kept() -> None:
    """A head may have 64 KB: as many of them as there are places for refusals would be gigabytes."""
    grants = grants_of(FakeCatalog(), grants_max=50_000)
    for number in range(300):
        with pytest.raises(BadToken):
            await grants.resolve(b"x%d" % number + b"!" * 60_000)
    assert len(grants._refused) == 300 and not grants._asking
    assert sum(len(kept) + sum(len(str(fact)) for fact in facts) for kept, facts in grants._refused.items()) < 300 * 500


class SpendKeyCatalog(FakeCatalog):
    def __init__(self, key: SpendKey | None) -> None:
        super().__init__()
        self.key = key

    async def spend_key_by_secret(self, secret: str) -> SpendKey | None:
        return self.key


def spend_key(status: str = "active", **rules: Any) -> SpendKey:
    return SpendKey(
        spend_key_id="spk_1", merchant_id="mer_1", wallet_id="wal_1", name="K", key_preview="lava_sk_abcd****", status=status,
        rules=KeyRules(**rules), limits=Limits(concurrent_calls=3), created_at=NOW,
    )  # fmt: skip


async def test_a_spend_key_draws_on_the_merchants_wallet_at_provider_cost_within_its_limits() -> None:
    payer = await grants_of(SpendKeyCatalog(spend_key())).resolve(b"lava_sk_1")
    assert (payer.grant.wallet_id, payer.grant.meter, payer.grant.connection_id) == ("wal_1", None, None)
    assert payer.grant.scopes == (Scope(scope_id="spk_1", limits=Limits(concurrent_calls=3)),)
    assert payer.rules == KeyRules()


async def test_an_unknown_spend_key_is_401_and_a_paused_one_403() -> None:
    with pytest.raises(BadToken) as unknown:
        await grants_of(SpendKeyCatalog(None)).resolve(b"lava_sk_1")
    with pytest.raises(Forbidden) as paused:
        await grants_of(SpendKeyCatalog(spend_key("paused"))).resolve(b"lava_sk_1")
    assert (unknown.value.code, paused.value.code) == ("invalid_spend_key", "spend_key_paused")


@pytest.mark.parametrize(
    ("rules", "target", "model", "code", "status"),
    [
        ({}, b"/v1/chat/completions", "gpt-4o", None, 0),
        ({"expires_at": NOW}, b"/v1/chat/completions", "gpt-4o", "spend_key_expired", 403),
        ({"expires_at": NOW + timedelta(seconds=1)}, b"/v1/chat/completions", "gpt-4o", None, 0),
        ({}, b"/v1/messages?beta=true", "claude-1", "request_shape_mismatch", 400),
        ({"request_shape": "anthropic"}, b"/v1/messages", "claude-1", None, 0),
        ({"request_shape": "anthropic"}, b"/v1/forward/openai/v1/chat/completions", "gpt-4o", None, 0),
        ({"allowed_providers": ("OpenAI",)}, b"/v1/chat/completions", "gpt-4o", None, 0),
        ({"allowed_providers": ("groq",)}, b"/v1/chat/completions", "gpt-4o", "provider_not_allowed", 403),
        ({"allowed_models": ("gpt-4o-*", "openai/o3")}, b"/v1/chat/completions", "gpt-4o-mini", None, 0),
        ({"allowed_models": ("gpt-4o-*", "openai/o3")}, b"/v1/chat/completions", "o3", None, 0),
        ({"allowed_models": ("gpt-4o-*", "openai/o3")}, b"/v1/chat/completions", "gpt-4o", "forward_model_invalid", 400),
        ({"allowed_models": ()}, b"/v1/chat/completions", "gpt-4o", "forward_model_invalid", 400),
        ({"allowed_models": ("gpt-4o",)}, b"/v1/forward/openai/v1/x", None, "forward_model_invalid", 400),
    ],
)
async def test_a_spend_key_calls_only_what_its_rules_let_it(
    rules: dict[str, Any], target: bytes, model: str | None, code: str | None, status: int
) -> None:
    grants = Grants(SpendKeyCatalog(None), settings.load({}).cache, lambda: NOW)  # type: ignore[arg-type]
    asked = Call(api="chat", model=model, stream=False, body=b"{}")
    if code is None:
        grants.check(KeyRules(**rules), target, OPENAI, asked)
        return
    with pytest.raises(CallerError) as refused:
        grants.check(KeyRules(**rules), target, OPENAI, asked)
    assert (refused.value.code, refused.value.status) == (code, status)


async def test_a_remembered_refusal_is_a_new_exception_each_time() -> None:
    """One object raised again and again would gather the frames, and with them the request bodies, of all its callers."""
    catalog = FakeCatalog()
    catalog.known = False
    grants = grants_of(catalog)
    seen = []
    for _ in range(3):
        with pytest.raises(BadToken) as refused:
            await grants.resolve(KEY)
        seen.append(refused.value)
    assert len({id(error) for error in seen}) == 3
    assert len({(error.message, error.code, error.status) for error in seen}) == 1


class DyingCatalog(FakeCatalog):
    """A database whose connection dies under the question: the driver cancels itself."""

    async def merchant_by_key(self, secret_key: str) -> Merchant | None:
        raise asyncio.CancelledError


async def test_a_driver_that_cancels_itself_is_an_outage_for_all_who_wait_and_not_the_end_of_their_exchanges() -> None:
    """G7: a CancelledError that left `resolve` would end the exchange without an answer."""
    grants = grants_of(DyingCatalog())
    found = await asyncio.gather(*(grants.resolve(KEY) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in found] == [StoreError] * 3


async def test_a_refused_credential_is_no_fault_of_ours_in_the_log() -> None:
    catalog = FakeCatalog()
    catalog.known = False
    with structlog.testing.capture_logs() as lines, pytest.raises(BadToken):
        await grants_of(catalog).resolve(KEY)
    await asyncio.sleep(0)
    assert lines == []
