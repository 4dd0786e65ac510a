"""A role's process: its loop, its signals, its garbage collector."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import uvloop

from lava_proxy.domain.errors import LavaError

_PR_SET_PDEATHSIG = 1


def run_role(main: Coroutine[Any, Any, None], *, supervised: bool) -> None:
    """Run a role on uvloop; a supervised one dies with its supervisor, at once.

    No drain then: the engines die with the supervisor too, so there is nothing to settle into, and a successor on the same
    port and folder must not meet us. What was under way is settled by its checkpoints.
    """
    if supervised:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        uvloop.run(main)
    except LavaError as error:
        print(f"lava-proxy: {error.message}", file=sys.stderr)
        raise SystemExit(1) from error


def stop_event() -> asyncio.Event:
    """Set by SIGTERM or SIGINT, and by SIGHUP (the terminal closes) where nohup does not ask to ignore it."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, event.set)
    return event


def collect_rarely() -> None:
    """What lives for ever need not be looked at again, and calls make few cycles: collecting every 700 objects costs 8 % of a
    gateway's CPU, and a flusher, whose batches are many thousand objects at once, a fifth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
