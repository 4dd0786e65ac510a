"""The Node packages that the e2e tests use: pinned, hashed, and from whatever registry npm is set up with."""

from __future__ import annotations

import json

from tests.e2e.node_packages import FOLDER


def test_the_node_lock_pins_every_package_by_hash_and_holds_no_addresses() -> None:
    text = (FOLDER / "package-lock.json").read_text()
    assert "://" not in text
    packages = {name: package for name, package in json.loads(text)["packages"].items() if name}
    assert packages
    assert all(package["version"] and package["integrity"].startswith("sha512-") for package in packages.values())


def test_the_node_lock_is_that_of_the_package_file() -> None:
    wanted = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    packages = json.loads((FOLDER / "package-lock.json").read_text())["packages"]
    assert packages[""]["dependencies"] == wanted
    # An alias (`npm:<package>@<version>`) installs one version of a package beside another.
    versions = {name: version.rpartition("@")[2] for name, version in wanted.items()}
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == versions
