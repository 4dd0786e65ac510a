"""The Node packages of a folder beside this file, installed once into a cache outside the tree, exactly as its lock file says."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent / "node"  # the SDKs
CHECKOUT_FOLDER = Path(__file__).parent / "node_checkout"  # the browser library and a bundler
NODE_MAJOR_MIN = 18
_INSTALL_TIMEOUT_S = 120
_INSTALL_FILES = ("package.json", "package-lock.json", ".npmrc")


class NotHere(Exception):
    """Node or its packages cannot be had on this machine; the text says why and what to do."""


def node() -> str:
    """The path of a Node that is new enough. Raises NotHere."""
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        raise NotHere("node and npm are missing: apt-get install -y nodejs npm (./lava test does it as root)")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < NODE_MAJOR_MIN:
        raise NotHere(f"node {version} is too old: {NODE_MAJOR_MIN} or newer is needed")
    return found


def installed(source: Path = FOLDER) -> Path:
    """The node_modules folder; the first use needs npm's registry and some seconds. Raises NotHere."""
    node()
    files = [(source / name).read_bytes() for name in _INSTALL_FILES]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lava-proxy"
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(b"\0".join(files)).hexdigest()
    folder = cache / f"node-{digest[:16]}"
    with (cache / "node.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes start together
        if not folder.exists():
            _install(source, folder)
    return folder / "node_modules"


def _install(source: Path, folder: Path) -> None:
    scratch = folder.with_suffix(".new")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for name in _INSTALL_FILES:
        shutil.copy(source / name, scratch)
    try:
        done = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=scratch, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise NotHere(f"npm ci did not end within {_INSTALL_TIMEOUT_S} s; is a package registry reachable?") from error
    if done.returncode != 0:
        raise NotHere(f"npm ci failed; is a package registry reachable? {done.stderr.strip()[-300:]}")
    scratch.rename(folder)
