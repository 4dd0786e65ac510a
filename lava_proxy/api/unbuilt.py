"""What clients know and this version does not have yet: each answers 501 with a sentence, so that nobody takes it for a typo."""

from __future__ import annotations

from aiohttp import web

from lava_proxy.domain.errors import CallerError

_ONE = "{id}"
# Path under /v1/ -> methods. A GET route answers HEAD too.
UNBUILT: dict[str, str] = {
    "services": "GET",
    "checkout_sessions": "GET POST",
    f"checkout_sessions/{_ONE}": "GET",
    f"plans/{_ONE}/archive": "POST",
    "flex/checkout_sessions": "POST",
    "flex/customers": "GET",
    f"flex/customers/{_ONE}/balance": "GET",
    "subscription-configs": "GET POST",
    f"subscription-configs/{_ONE}": "GET PUT DELETE",
    "active-subscriptions": "GET",
    f"active-subscriptions/{_ONE}": "GET DELETE",
}


def unbuilt_routes() -> list[web.RouteDef]:
    """A route for every path and method of UNBUILT."""
    return [web.route(method, f"/v1/{path}", _refuse) for path, methods in UNBUILT.items() for method in methods.split()]


async def _refuse(request: web.Request) -> web.StreamResponse:
    await request.read()  # bounded; the connection stays usable
    resource = request.match_info.route.resource
    assert resource is not None
    raise CallerError(
        f"{request.method} {resource.canonical} is not built in this version yet.", code="not_implemented", status=501
    )
