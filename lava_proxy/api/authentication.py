"""Who asks: everything under /v1/ needs a secret key, alone or inside a forward token."""

from __future__ import annotations

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from lava_proxy.api.envelope import Handler
from lava_proxy.domain.errors import BadToken, Forbidden
from lava_proxy.stores.catalog_store import CatalogStore, Merchant, SpendKey
from lava_proxy.stores.ids import hash_of
from lava_proxy.wire.forward_token import parse_credential

PUBLIC = frozenset({("POST", "/v1/auth/callback"), ("GET", "/v1/services"), ("HEAD", "/v1/services")})
_MERCHANT: web.RequestKey[Merchant] = web.RequestKey("merchant", Merchant)
_SPEND_KEY: web.RequestKey[SpendKey] = web.RequestKey("spend_key", SpendKey)
_SECRET: web.RequestKey[str] = web.RequestKey("secret", str)


def merchant_of(request: web.Request) -> Merchant:
    """The merchant whose key the request carries; handlers behind `authentication` always have one."""
    return request[_MERCHANT]


def spend_key_of(request: web.Request) -> SpendKey | None:
    """The spend key the request carries, where one is accepted."""
    return request.get(_SPEND_KEY)


def has_merchant(request: web.Request) -> bool:
    """Did the request come with a merchant's key?"""
    return _MERCHANT in request


def secret_of(request: web.Request) -> str:
    """The secret key that the request came with."""
    return request[_SECRET]


def caller_hash(request: web.Request) -> str | None:
    """A name for the key that a request came with, which tells nothing of the key; None without one."""
    secret = request.get(_SECRET)
    return None if secret is None else hash_of(secret).hex()[:32]


def is_test_key(request: web.Request) -> bool:
    """Did the request come with a key of the test kind?"""
    return request[_SECRET].startswith("aks_test_")


def authentication(catalog: CatalogStore) -> Middleware:
    """A middleware that puts the Merchant on the request, or raises BadToken. A revoked key ends at once: nothing is cached."""

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _is_of_models(request):
            await _admit_to_models(request, catalog)
        elif _needs_key(request):
            await _admit(request, catalog)
        return await handler(request)

    return authenticate


def _needs_key(request: web.Request) -> bool:
    path = request.path
    return (path == "/v1" or path.startswith("/v1/")) and (request.method, path) not in PUBLIC


def _is_of_models(request: web.Request) -> bool:
    return request.path == "/v1/models" or request.path.startswith("/v1/models/")


async def _admit_to_models(request: web.Request, catalog: CatalogStore) -> None:
    """SDKs ask for models with the key of their calls, wherever they put it: a token, a secret key or a spend key."""
    value = request.headers.get("x-api-key", "") or request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")[2]
    if not value.strip():
        raise BadToken("No credential: send a secret key, forward token or spend key as `Authorization: Bearer ...`.")
    credential = parse_credential(value)
    if credential.kind != "spend_key":
        await _admit_merchant(request, credential.secret_key, catalog)
        return
    key = await catalog.spend_key_by_secret(credential.secret_key)
    if key is None:
        raise BadToken("The spend key is unknown, or was rotated or deleted.", code="invalid_spend_key")
    if key.status != "active":
        raise Forbidden("This spend key is paused.", code="spend_key_paused")
    request[_SPEND_KEY] = key
    request[_SECRET] = credential.secret_key


async def _admit_merchant(request: web.Request, secret_key: str, catalog: CatalogStore) -> None:
    merchant = await catalog.merchant_by_key(secret_key)
    if merchant is None:
        raise BadToken("This secret key is not known here, or it was revoked.")
    request[_MERCHANT] = merchant
    request[_SECRET] = secret_key


async def _admit(request: web.Request, catalog: CatalogStore) -> None:
    scheme, _, value = request.headers.get(hdrs.AUTHORIZATION, "").strip().partition(" ")
    if scheme.lower() != "bearer" or not value.strip():
        raise BadToken("No credential: send your secret key as `Authorization: Bearer aks_...`.")
    credential = parse_credential(value)
    if credential.kind == "spend_key":
        raise Forbidden("A spend key only makes model calls; use a secret key (aks_...) here.")
    await _admit_merchant(request, credential.secret_key, catalog)
