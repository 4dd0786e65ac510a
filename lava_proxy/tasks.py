"""The one place that starts tasks: each is named, referenced until it ends, and its failure is logged, never lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

_log = structlog.get_logger("tasks")
_running: set[asyncio.Task[Any]] = set()


def start(name: str, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a background task; an exception in it is logged with its name."""
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if task.cancelled():
        return
    error = task.exception()
    if error is not None:
        _log.error("A background task failed", action="task_failed", task=task.get_name(), exc_info=error)


async def stop(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and wait until each has ended."""
    waiting = [task for task in tasks if task is not None and not task.done()]
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def drain(prefix: str, timeout_s: float) -> int:
    """Wait for running tasks whose name starts with `prefix`; how many were still running at the end."""
    waiting = [task for task in _running if task.get_name().startswith(prefix)]
    if not waiting:
        return 0
    _, pending = await asyncio.wait(waiting, timeout=timeout_s)
    return len(pending)
