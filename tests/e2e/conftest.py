"""One daemon for the e2e tests of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.daemon import Daemon, running


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("dev"), "--workers", "2") as started:
        yield started
