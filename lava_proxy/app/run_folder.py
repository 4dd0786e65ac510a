"""The folder of one run: metrics of its processes, `serve`'s control socket. Gone at its end, or at the next start after a kill."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX = "lava-run-"
_LOCK = "owner.lock"


class RunFolder:
    """Mode 0700, in memory where the system has that. Its owner holds a lock in it, which the kernel drops whatever ends it."""

    def __init__(self, parent: Path | None = None) -> None:
        """Makes the folder, and removes those beside it whose owners are gone. `parent`: for tests."""
        shared = Path("/dev/shm")
        in_memory = shared.is_dir() and os.access(shared, os.W_OK)
        parent = parent or (shared if in_memory else Path(tempfile.gettempdir()))
        _remove_left_behind(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        being_made = self.path / "new.lock"  # has its name once it is held: nobody can find it free meanwhile
        self._lock = os.open(being_made, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        being_made.rename(self.path / _LOCK)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)


def _remove_left_behind(parent: Path) -> None:
    """Folders of ours that nobody holds. One without a lock file is being made, or is not ours: left alone."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
