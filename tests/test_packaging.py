"""What is installed: one import name, every file it needs, and versions that were tested."""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of all files in a wheel built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    [path] = folder.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def test_the_only_name_that_a_wheel_installs_is_prefopt(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"prefopt"}


def test_a_wheel_holds_every_file_of_the_package(wheel: list[str]) -> None:
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "prefopt").rglob("*") if p.is_file()}
    assert {name for name in files if "__pycache__" not in name} <= set(wheel)
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


NEVER_RUN = {"vllm"}
"""No version of it was tested: it needs a GPU and brings a torch of its own."""


def test_every_direct_dependency_is_pinned_to_a_version_that_the_project_allows() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if text := line.split("#")[0].strip():
            requirement = Requirement(text)
            [exact] = requirement.specifier
            assert exact.operator == "==", text
            assert "+" not in exact.version, f"{text}: a local version is on no registry"
            pins[canonicalize_name(requirement.name)] = exact.version
    for text in requires("prefopt") or []:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name in NEVER_RUN:
            continue
        assert name in pins, text
        assert pins[name] in requirement.specifier, f"{text}, but constraints.txt has {pins[name]}"


@pytest.mark.parametrize("name", ["constraints.txt", "Makefile", "pyproject.toml", ".ci/run"])
def test_no_file_that_installs_names_a_host(name: str) -> None:
    assert not re.search(r"https?://|index-url|find-links", (ROOT / name).read_text())


def test_continuous_integration_runs_make_test() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert lines[-1] == "exec make test"
    dry = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    for command in ("ruff check", "ruff format --check", "mypy", "lint-imports", "pytest"):
        assert command in dry.stdout
