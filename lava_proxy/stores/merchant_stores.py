"""The stores that the REST API writes a merchant's things with, opened together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from redis.asyncio import Redis

from lava_proxy.stores.audit_log import AuditLog
from lava_proxy.stores.call_counts import CallCounts
from lava_proxy.stores.catalog_store import CatalogStore
from lava_proxy.stores.customer_store import CustomerStore
from lava_proxy.stores.idempotent_answers import IdempotentAnswers
from lava_proxy.stores.login_codes import LoginCodes
from lava_proxy.stores.meter_store import MeterStore
from lava_proxy.stores.plan_store import PlanStore
from lava_proxy.stores.postgres import Pool
from lava_proxy.stores.secret_key_store import SecretKeyStore
from lava_proxy.stores.vault import Vault


@dataclass(frozen=True, slots=True)
class MerchantStores:
    """One of each."""

    customers: CustomerStore
    meters: MeterStore
    secret_keys: SecretKeyStore
    login_codes: LoginCodes
    call_counts: CallCounts
    idempotent_answers: IdempotentAnswers
    plans: PlanStore
    audit_log: AuditLog


def open_merchant_stores(
    pool: Pool, redis: Redis, catalog: CatalogStore, vault: Vault, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> MerchantStores:
    """Over a pool and a client that the caller closes; `clock` is business time."""
    return MerchantStores(
        CustomerStore(pool, clock),
        MeterStore(pool, catalog, clock),
        SecretKeyStore(pool, clock),
        LoginCodes(redis),
        CallCounts(redis),
        IdempotentAnswers(pool, vault, clock),
        PlanStore(pool, clock),
        AuditLog(pool, clock),
    )
