"""The guides do what they say: every block of shell and Python in them runs, in order, against the running daemon.

A block that needs other keys or programs is tagged `no-run`. A guide's blocks are one script: names that one sets are there for
the next.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from tests.daemon import Daemon

GUIDES = resources.files("lava_proxy.web").joinpath("guides")
NAMES = sorted(entry.name for entry in GUIDES.iterdir() if entry.name.endswith(".md"))
_BLOCK = re.compile(r"^```(\S*)( no-run)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Refusals end the script: a guide must not show a command that fails.
_HEAD = """set -euo pipefail
set -a
curl() { command curl --silent --show-error --fail "$@"; }
"""


def script_of(text: str) -> str:
    """The blocks that run, Python as programs of their own."""
    parts = [_HEAD]
    for language, no_run, block in _BLOCK.findall(text):
        if no_run:
            continue
        if language == "sh":
            parts.append(block)
        elif language == "python":
            parts.append(f"python - <<'END_OF_BLOCK'\n{block}END_OF_BLOCK\n")
    return "\n".join(parts)


@pytest.fixture(scope="module")
def customer(daemon: Daemon) -> str:
    """The customer that the guides talk of, with money."""
    merchant = daemon.info["merchant_id"]
    made = daemon.cli("customer", "create", "--merchant", merchant, "--funds", "100.00", "--reference-id", "user-42")
    return str(made["connection_id"])


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_a_guide_work(daemon: Daemon, customer: str, tmp_path: Path, name: str) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "LAVA": daemon.base_url.removesuffix("/v1/"),
        "SECRET_KEY": daemon.info["secret_key"],
        "FORWARD_TOKEN": daemon.cli_token(customer, "fixed"),
    }
    script = script_of(GUIDES.joinpath(name).read_text())
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_every_block_has_a_language_that_the_runner_knows() -> None:
    """A misspelt tag would not be run, without a word."""
    known = {"sh", "python", "js", "go", "java", "json", "html", "toml", "text", "http", "tsx", "ts", "jsx"}
    for name in NAMES:
        languages = {language for language, _, _ in _BLOCK.findall(GUIDES.joinpath(name).read_text())}
        assert languages <= known, name
