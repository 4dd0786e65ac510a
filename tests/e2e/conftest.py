"""One daemon for the e2e tests of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.daemon import Daemon, running
from tests.e2e.browser import launch_options


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("dev"), "--workers", "2") as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For the tests of a module that is marked `needs_chromium`; asynchronous tests take `browser.chromium()` instead."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(**launch_options())
        yield started
        started.close()
