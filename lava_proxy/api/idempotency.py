"""POST with an Idempotency-Key: a repeat gets the first answer, and nothing is done again.

Kept for a day: answers of success. A refusal (4xx) has changed nothing, so its key can be used again with a mended request; after
a failure of ours (5xx) too, since only another try can mend that.
"""

from __future__ import annotations

import hashlib

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from lava_proxy.api.authentication import has_merchant, merchant_of
from lava_proxy.api.envelope import Handler
from lava_proxy.domain.errors import CallerError, StoreError
from lava_proxy.stores.idempotent_answers import IdempotentAnswers, KeptAnswer
from lava_proxy.wire.texts import TEXT_CHARS_MAX, is_reference

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
_log = structlog.get_logger("idempotency")


def idempotency(answers: IdempotentAnswers) -> Middleware:
    """A middleware around every POST of a merchant. Raises Conflict (409) as IdempotentAnswers.claim does."""

    @web.middleware
    async def once(request: web.Request, handler: Handler) -> web.StreamResponse:
        key = idempotency_key_of(request)
        if key is None or request.method != hdrs.METH_POST or not has_merchant(request):
            return await handler(request)
        merchant_id, request_hash = merchant_of(request).merchant_id, await _hash_of(request)
        claim = await answers.claim(merchant_id, key, request_hash)
        if isinstance(claim, KeptAnswer):
            return web.Response(body=claim.body, status=claim.status, content_type=claim.media_type, headers={REPLAYED: "true"})
        try:
            response = await handler(request)
        except Exception:
            await _drop(answers, merchant_id, key, claim)
            raise
        if response.status < 400 and isinstance(response, web.Response):
            await _fill(answers, merchant_id, key, claim, response)
        else:
            await _drop(answers, merchant_id, key, claim)
        return response

    return once


def idempotency_key_of(request: web.Request) -> str | None:
    """The request's key, None without one. Raises CallerError 400 for text that can be none."""
    key = request.headers.get(HEADER)
    if key is None or request.method != hdrs.METH_POST:
        return None
    if not is_reference(key):
        raise CallerError(
            f"{HEADER} must be 1 to {TEXT_CHARS_MAX} printable characters, such as a UUID.", code="invalid_idempotency_key"
        )
    return key


async def _hash_of(request: web.Request) -> bytes:
    """What makes two requests the same: path, query and body."""
    digest = hashlib.sha256(request.raw_path.encode("utf-8", "surrogateescape"))
    digest.update(b"\n" + await request.read())
    return digest.digest()


async def _fill(answers: IdempotentAnswers, merchant_id: str, key: str, claim: str, response: web.Response) -> None:
    body = response.body
    assert isinstance(body, bytes)
    kept = KeptAnswer(status=response.status, media_type=response.content_type, body=body)
    try:
        await answers.fill(merchant_id, key, claim, kept)
    except StoreError:  # the work is done and its answer is right; a repeat is refused until the claim is given up
        _log.warning("An answer could not be kept for its Idempotency-Key", action="idempotent_answer_lost")


async def _drop(answers: IdempotentAnswers, merchant_id: str, key: str, claim: str) -> None:
    try:
        await answers.drop(merchant_id, key, claim)
    except StoreError:
        _log.warning("An Idempotency-Key could not be given back; it is in a while", action="idempotency_key_kept")
