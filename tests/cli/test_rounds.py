"""`prefopt rounds` takes a recipe where other groups take a verb."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rounds.toy import write_task

Run = Callable[..., tuple[int, str, str]]


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


def test_a_report_that_fails_is_a_sentence_and_the_run_goes_on(
    prefopt: Run, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(recipe).parent / "run"
    written: list[Path] = []

    def refuse(path: Path) -> Path:
        written.append(path)
        raise ValueError("the page [bold]can't[/] be drawn")

    with monkeypatch.context() as patched:
        patched.setattr("prefopt.report.page.write_report", refuse)
        code, out, err = prefopt("rounds", recipe, "rounds.count=1")
    assert (code, out.split()[-1]) == (0, str(run))
    assert f"The report of {run} was not written: the page [bold]can't[/] be drawn" in err
    assert written == [run, run]  # after the round, and at the end
    assert not (run / "report.html").exists()
    code, _, err = prefopt("rounds", recipe, "rounds.count=1")  # nothing is left to do but the page
    assert (code, f"report: {run / 'report.html'}" in err) == (0, True)
    assert "prefopt rounds" in (run / "report.html").read_text()


def test_the_report_of_runs_is_written_where_it_is_asked_for(prefopt: Run, recipe: str, tmp_path: Path) -> None:
    run = Path(recipe).parent / "run"
    out = tmp_path / "new folder" / "page.html"
    assert prefopt("report", str(run), "--out", str(out))[:2] == (0, f"{out}\n")
    assert "Samples by round" in out.read_text()
    code, _, err = prefopt("report", str(tmp_path / "nothing"))
    assert (code, "There is no run directory" in err) == (2, True)
