"""Routes and head plans: remembered for callers who were let in, bounded, never wrong."""

from __future__ import annotations

import pytest

from lava_proxy.domain.errors import CallerError
from lava_proxy.gateway import head_plans
from lava_proxy.gateway.head_plans import Routes
from tests.unit.gateway.fake_registry import REGISTRY

_TARGET = b"/v1/forward/openai/v1/chat/completions"
_HEADERS = [(b"Host", b"x"), (b"Authorization", b"Bearer a-token-of-some-length"), (b"Content-Type", b"application/json")]


def test_what_a_known_caller_used_is_remembered_and_nothing_else() -> None:
    routes = Routes(REGISTRY)
    stranger = routes.find("POST", _TARGET)
    assert stranger is not None and routes.find("POST", _TARGET) is not stranger
    plan = stranger.plan(_HEADERS)
    routes.keep(stranger, plan)
    route = routes.find("POST", _TARGET)
    assert route is stranger and route.plan(list(_HEADERS)) is plan
    assert routes.find("GET", _TARGET) is not route
    assert route.plan([*_HEADERS, (b"X-Other", b"1")]) is not plan


def test_paths_of_the_control_plane_have_no_route_and_refusals_are_raised_each_time() -> None:
    routes = Routes(REGISTRY)
    assert routes.find("GET", b"/v1/meters") is None
    for _ in range(2):
        with pytest.raises(CallerError):
            routes.find("POST", b"/v1/forward?u=ftp://x")


def test_memory_is_bounded_whatever_callers_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_plans, "_BYTES_MAX", 100_000)
    routes = Routes(REGISTRY)
    for number in range(1000):
        route = routes.find("POST", _TARGET)
        assert route is not None
        routes.keep(route, route.plan([*_HEADERS, (b"X-Trace", b"%d" % number)]))
    last = routes.find("POST", _TARGET)
    assert last is not None and len(last.plans) < 100


def test_the_upstream_head_is_made_once_a_key_and_carries_each_bodys_length() -> None:
    route = Routes(REGISTRY).find("POST", _TARGET)
    assert route is not None
    plan = route.plan(_HEADERS)
    first = plan.upstream_head("sk-provider", 12, force_identity=False)
    assert first.endswith(b"content-length: 12\r\n\r\n") and b"Bearer sk-provider" in first
    assert plan.upstream_head("sk-provider", 345, force_identity=False) == first.replace(b"length: 12", b"length: 345")
    assert b"content-length" not in plan.upstream_head("sk-provider", None, force_identity=False)
    assert b"a-token-of-some-length" not in first
    assert b"sk-other" in plan.upstream_head("sk-other", 1, force_identity=True)
