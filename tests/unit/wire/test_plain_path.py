"""wire/plain_path.py: how servers may take a path."""

from __future__ import annotations

import pytest

from lava_proxy.wire.plain_path import has_dot_segment, plain_path


@pytest.mark.parametrize(
    "path",
    [
        "/v1/a/b", "/v1/%61/b", "/v1/%2561/b", "/v1//a/b/", "/v1;x=1/a;y/b", "\\v1\\a\\b", "/v1/a/b%20", "/v1/a/b%3Fx=/c",
        "/v1/a%2Fb.",
    ],
)  # fmt: skip
def test_every_spelling_of_a_path_is_one(path: str) -> None:
    assert plain_path(path) == "/v1/a/b"


@pytest.mark.parametrize(
    "path",
    [
        "/a/../b", "/a/..", "/./a", "/a/%2e%2E/b", "/a/..%2fb", "/a%2f..%2fb", "/a\\..\\b", "/a/%252e%252e/b", "/a/..;/b", "..",
        "/a%5c..",
    ],
)  # fmt: skip
def test_a_dot_segment_is_one_however_it_is_written(path: str) -> None:
    assert has_dot_segment(path)


@pytest.mark.parametrize("path", ["/v1/gpt-4.1", "/v1/a..b", "/v1/.well-known/x", "/v1/models/m:generateContent", "/v1/...", "/"])
def test_other_dots_are_none(path: str) -> None:
    assert not has_dot_segment(path)
