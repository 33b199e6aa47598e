"""Runs to report on: made once, copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from prefopt.report import write_reports
from tests.report.fixture_run import write_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "reviews")


@pytest.fixture(scope="session")
def finished_page(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its page with every figure drawn, to read."""
    return write_reports([finished_run], tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run that the test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "reviews"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paint figures but skip turning them into SVG, which takes most of a page's time: for tests of the text."""
    empty = '<svg viewBox="0 0 1 1"></svg>'
    monkeypatch.setattr(Figure, "savefig", lambda figure, buffer, **options: buffer.write(empty))
