"""For a control process that listens on TCP: it answers its gateways, and to others only how it does."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from aiohttp import web
from aiohttp.typedefs import Middleware

from lava_proxy.api.envelope import Handler, error_response
from lava_proxy.wire.control_hop import HEADER

_OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
"""Prometheus and load balancers ask the process itself; none of these tells of a merchant."""


def only_gateways(secrets: Sequence[str]) -> Middleware:
    """Refuses (403) what comes by TCP without one of the secrets. The Unix socket is guarded by its file mode."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        said = request.headers.get(HEADER, "").encode()
        is_tcp = request.transport is None or isinstance(request.transport.get_extra_info("sockname"), tuple)
        if not is_tcp or request.path in _OPEN_PATHS or any(hmac.compare_digest(said, secret.encode()) for secret in secrets):
            return await handler(request)
        return error_response(
            403,
            "not_from_a_gateway",
            "This port is for gateways; send requests to one of them. Gateways and control need the same LAVA_MASTER_KEY.",
        )

    return check
