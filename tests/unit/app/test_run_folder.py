"""The folder of a run outlives its owner only until the next start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lava_proxy.app.run_folder import RunFolder


def test_a_folder_is_private_and_gone_with_its_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "metrics.db").write_bytes(b"x")
    folder.remove()
    assert not folder.path.exists()


def test_what_a_killed_run_left_behind_is_removed_and_what_runs_is_left_alone(tmp_path: Path) -> None:
    script = "import os, signal, sys; from pathlib import Path; from lava_proxy.app.run_folder import RunFolder; "
    script += "RunFolder(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    living = RunFolder(tmp_path)
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=60)
    (dead,) = set(tmp_path.iterdir()) - {living.path}
    being_made = tmp_path / "lava-run-being-made"
    being_made.mkdir()
    (tmp_path / "of-somebody-else").mkdir()
    another = RunFolder(tmp_path)
    assert not dead.exists()
    assert living.path.exists() and another.path.exists() and being_made.exists() and (tmp_path / "of-somebody-else").exists()
    another.remove()
    living.remove()
