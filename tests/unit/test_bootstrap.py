"""`./lava`: explains itself, keeps stdout clean, works from anywhere."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAVA = ROOT / "lava"


def run(*arguments: str, script: Path = LAVA, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def door(tmp_path: Path) -> dict[str, Any]:
    """The functions of a copy of the script in a folder of its own, with what an installation is made from."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("lava", "pyproject.toml", "requirements.lock", "requirements-dev.lock", "requirements-bootstrap.lock"):
        shutil.copy(ROOT / name, folder / name)
    return runpy.run_path(str(folder / "lava"))


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], ["test", "--help"], ["bench", "-h"], ["lock", "-h"]])
def test_help_is_printed_without_installing_anything(arguments: list[str], tmp_path: Path) -> None:
    shutil.copy(LAVA, tmp_path / "lava")
    (tmp_path / "benchmarks").mkdir()
    done = run(*arguments, script=tmp_path / "lava", cwd=Path("/"))
    assert done.returncode == 0 and "./lava" in done.stdout and done.stderr == ""
    assert not (tmp_path / ".venv").exists()


def test_no_command_is_a_mistake_and_shows_the_commands() -> None:
    done = run()
    assert done.returncode == 2 and "./lava dev" in done.stdout


def test_an_unknown_benchmark_lists_the_known_ones() -> None:
    done = run("bench", "speed-of-light", cwd=Path("/"))
    assert done.returncode == 2 and "gateway" in done.stdout and "_processes" not in done.stdout


def test_the_script_is_executable_and_needs_the_standard_library_alone() -> None:
    assert os.access(LAVA, os.X_OK)
    done = subprocess.run([sys.executable, "-I", "-S", str(LAVA), "--help"], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0


def test_a_stamp_changes_with_everything_the_installation_is_made_from(door: dict[str, Any]) -> None:
    folder = Path(door["ROOT"])
    stamps = {door["stamp"]("run"), door["stamp"]("dev")}
    for name in ("pyproject.toml", "requirements.lock", "requirements-bootstrap.lock"):
        with (folder / name).open("a") as file:
            file.write("\n# changed\n")
        stamps.add(door["stamp"]("run"))
    assert len(stamps) == 5


def test_nothing_is_installed_again_while_the_stamp_fits(door: dict[str, Any]) -> None:
    calls: list[str] = []
    door["ensure"].__globals__["install"] = calls.append
    bin_dir = Path(door["VENV"]) / "bin"
    bin_dir.mkdir(parents=True)
    (bin_dir / "python").symlink_to(sys.executable)
    door["ensure"]("run")
    assert calls == ["run"]
    (Path(door["VENV"]) / ".lava-dev").write_text(door["stamp"]("dev"))
    door["ensure"]("run")  # the larger set is enough
    door["ensure"]("dev")
    assert calls == ["run"]


def test_the_console_script_survives_a_long_path_with_spaces(door: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / ("long and winding " * 9)
    folder.mkdir()
    python = folder / "python"
    python.symlink_to(sys.executable)
    package = folder / "lava_proxy"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "cli.py").write_text("import sys\ndef main():\n    print(sys.argv[1:])\n    return 3\n")
    script = folder / "lava-proxy"
    script.write_text(door["CONSOLE_SCRIPT"].format(python=python))
    script.chmod(0o755)
    done = subprocess.run([str(script), "dev", "--x=a b"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "['dev', '--x=a b']\n")


def test_missing_programs_are_named_with_what_is_skipped(
    door: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = {"test": [("no-such-program", ["no-such-package"], "nothing works without it")]}
    door["system_programs"].__globals__["SYSTEM_PROGRAMS"] = programs
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    door["system_programs"]("test")
    said = capsys.readouterr()
    assert said.out == ""
    assert "no-such-program is missing (nothing works without it)" in said.err
    assert "apt-get install -y no-such-package" in said.err


def test_a_whole_run_is_parallel_unless_told_otherwise(door: dict[str, Any]) -> None:
    assert door["parallel"]([])[0] == "-n" and "loadfile" in door["parallel"](["tests/unit"])
    for own in (["-n", "0"], ["-n0"], ["--pdb"], ["-s"]):
        assert door["parallel"](own) == []


def test_the_test_command_ends_with_one_json_object_and_fails_with_its_steps(
    door: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    scope = door["test"].__globals__
    scope["ensure"] = scope["system_programs"] = lambda name: None
    codes = {"mypy": 1}

    def fake_step(name: str, command: list[str], shown: bool = False) -> dict[str, object]:
        return {"step": name, "exit_code": codes.get(name, 0), "seconds": 0.0}

    scope["run_step"] = fake_step
    assert door["test"](["--json"]) == 1
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["met"] is False and report["failed"] == ["mypy"]
    assert [step["step"] for step in report["steps"]] == ["ruff check", "ruff format", "mypy", "lint-imports", "pytest"]
    assert door["test"](["--no-checks"]) == 0
