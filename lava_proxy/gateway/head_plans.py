"""What a request head means, worked out once: SDKs repeat the same headers on every call, so a tuple compare replaces the work.

A plan is keyed by the exact headers (without Content-Length) of one route; any difference makes a new plan, so it can never
be wrong, only missed.
"""

from __future__ import annotations

from datetime import UTC, datetime

from lava_proxy.gateway import headers as hygiene
from lava_proxy.gateway import sigv4
from lava_proxy.gateway.routes import ModelRoute, Registry, Target, model_route, resolve
from lava_proxy.gateway.upstream import Headers, Origin

_BYTES_MAX = 16 * 1024 * 1024  # of remembered heads, a worker
_OVERHEAD_BYTES = 1024  # Python's own, a plan


class HeadPlan:
    """The credential, metadata and content type of a head, and the upstream heads made from it by provider key."""

    __slots__ = (
        "_aws_region", "_aws_service", "_heads", "_method", "_target", "content_type", "credential", "headers", "idempotency_key",
        "is_kept", "metadata",
    )  # fmt: skip

    def __init__(self, method: str, target: Target, headers: Headers) -> None:
        """Raises CallerError when the head asks for what is not built, has no credential or bad metadata."""
        hygiene.refuse_unbuilt(headers)
        self._method = method
        self._target = target
        self._aws_region = sigv4.region_of(target.url) if target.provider.name.startswith("bedrock") else None
        self._aws_service = sigv4.service_of(target.url)
        self.headers = headers
        self.is_kept = False
        self._heads: dict[tuple[str | None, bool], bytes] = {}
        self.credential = hygiene.credential_of(headers, target)
        self.metadata = hygiene.metadata_of(headers, target.metadata_from_query)
        self.idempotency_key = hygiene.idempotency_key_of(headers)
        self.content_type = next((v.decode("latin-1") for n, v in headers if n.lower() == b"content-type"), "")

    def upstream_head(self, key: str | None, body_length: int | None, *, force_identity: bool, body: bytes = b"") -> bytes:
        """The request head for upstream with this provider key; `body` is looked at only where AWS wants it signed."""
        if self._aws_region is not None and key is not None and (access_key := sigv4.access_key_of(key)) is not None:
            plain = self.upstream_head(None, body_length, force_identity=force_identity)[:-2]
            signed = sigv4.signed(
                plain, body, access_key, region=self._aws_region, service=self._aws_service, now=datetime.now(UTC)
            )
            return signed + b"\r\n"
        start = self._heads.get((key, force_identity))
        if start is None:
            if len(self._heads) > 16:
                self._heads.clear()
            whole = hygiene.upstream_head(self._method, self._target, self.headers, key, None, force_identity)
            start = self._heads[key, force_identity] = whole[:-2]
        if body_length is None:
            return start + b"\r\n"
        return b"%bcontent-length: %d\r\n\r\n" % (start, body_length)


class Route:
    """One request target: where it goes, and the plans of the heads seen on it."""

    __slots__ = ("endpoint", "method", "origin", "plans", "raw_target", "target")

    def __init__(self, method: str, raw_target: bytes, target: Target) -> None:
        self.method = method
        self.raw_target = raw_target
        self.target = target
        self.endpoint = f"{method} {target.url}"  # as the row shows it
        self.origin = Origin(target.host, target.port, target.scheme == "https", target.provider.override is None)
        self.plans: dict[tuple[tuple[bytes, bytes], ...], HeadPlan] = {}

    def plan(self, headers: Headers) -> HeadPlan:
        """The plan of a head, remembered or new. Raises CallerError as HeadPlan does."""
        return self.plans.get(tuple(headers)) or HeadPlan(self.method, self.target, headers)


class Routes:
    """The routes and plans of calls that were let in; bounded in number and size, dropped whole when full.

    Only what a known credential has used is kept: strangers cannot fill it.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: dict[tuple[str, bytes], Route] = {}
        self._bytes = 0

    def find(self, method: str, raw_target: bytes) -> Route | ModelRoute | None:
        """The route of a request target; None when it is not the gateway's. Raises CallerError as `resolve` does."""
        route = self._known.get((method, raw_target))
        if route is not None:
            return route
        target = resolve(method, raw_target, self._registry)
        return model_route(method, raw_target) if target is None else Route(method, raw_target, target)

    def choose(self, route: ModelRoute, body: bytes) -> tuple[Route, bytes]:
        """The provider's own route for a model, and the body to send there. Raises CallerError as `ModelRoute.choose` does."""
        raw_target, body = route.choose(body, self._registry)
        found = self.find("POST", raw_target)
        assert isinstance(found, Route), "a provider's own route is one"
        return found, body

    def keep(self, route: Route, plan: HeadPlan) -> None:
        """Remember what a call with a valid credential used."""
        if plan.is_kept or plan.idempotency_key is not None:  # heads with such a key do not come again
            return
        key = tuple(plan.headers)
        self._bytes += _OVERHEAD_BYTES + 3 * sum(len(name) + len(value) for name, value in key) + len(route.raw_target)
        if self._bytes > _BYTES_MAX:
            for known in self._known.values():
                known.plans = {}
            self._known.clear()
            self._bytes = 0
        self._known[route.method, route.raw_target] = route
        route.plans[key] = plan
        plan.is_kept = True
