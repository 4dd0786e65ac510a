"""The form that a request carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from lava_proxy.domain.errors import CallerError


async def posted_form(request: web.Request) -> Mapping[str, Any]:
    """The fields by name. Raises CallerError `invalid_form` for what is no form."""
    try:
        return await request.post()
    except (ValueError, LookupError, AssertionError) as error:  # bytes that are no text, an unknown charset, broken parts
        raise CallerError("The body must be a form: URL-encoded or multipart, in UTF-8.", code="invalid_form") from error
