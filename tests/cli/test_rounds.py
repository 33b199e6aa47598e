"""`prefopt rounds` takes a recipe where other groups take a verb."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt import cli
from tests.rounds.toy import write_task

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def prefopt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prefopt", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> str:
    return str(write_task(tmp_path_factory.mktemp("rounds"), tiny_model))


@pytest.mark.parametrize("before", [[], ["run"]], ids=["recipe first", "verb first"])
def test_a_recipe_may_stand_where_the_verb_would(prefopt: Run, recipe: str, before: list[str]) -> None:
    code, _, err = prefopt("rounds", *before, recipe, "rounds.count=0")
    assert code == 2
    assert "rounds.count is 0; it must be at least 1" in err


def test_options_may_stand_before_the_recipe(prefopt: Run, recipe: str) -> None:
    code, _, err = prefopt("rounds", "--until", "select", recipe, "select.k=3")
    assert code == 2
    assert "select.k" in err


def test_a_stage_that_there_is_not_is_named_with_the_nearest(prefopt: Run, recipe: str) -> None:
    code, _, err = prefopt("rounds", recipe, "--until", "selct")
    assert code == 2
    assert "is no stage" in err


def test_a_recipe_that_is_not_there_is_told_as_such(prefopt: Run, tmp_path: Path) -> None:
    code, _, err = prefopt("rounds", str(tmp_path / "nothing.yaml"))
    assert (code, "There is no recipe" in err) == (2, True)


def test_without_anything_it_shows_its_verbs(prefopt: Run) -> None:
    _, out, err = prefopt("rounds")
    assert "status" in out + err


def test_a_directory_that_is_no_run_of_rounds_is_told_as_such(prefopt: Run, tmp_path: Path) -> None:
    for verb in (["status", str(tmp_path)], ["plot", str(tmp_path), "--out", str(tmp_path / "a.png")]):
        code, _, err = prefopt("rounds", *verb)
        assert code == 2
        assert "is no run of rounds" in err
