"""`prefopt eval` of a finished run: what is printed and what is kept."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.cli.processes import Ended
from tests.toys import pair_rows, write_rows


def test_eval_pairs_prints_a_table_or_json(prefopt: Callable[..., Ended], finished: tuple[Ended, Path]) -> None:
    run = str(finished[1])
    code, out, _ = prefopt("eval", "pairs", run)
    assert code == 0
    assert "8 held-out pairs" in out
    code, out, _ = prefopt("eval", "pairs", run, "--json")
    assert code == 0
    saved = json.loads((finished[1] / "eval/after.json").read_text())
    assert json.loads(out)["metrics"]["reward"] == saved["metrics"]["reward"]
    code, out, _ = prefopt("eval", "pairs", f"{finished[1].parent}/recipe.yaml", "--json")
    assert json.loads(out)["metrics"]["reward"] is None


def test_eval_pairs_keeps_what_it_measured_in_the_run_or_where_it_is_told(
    prefopt: Callable[..., Ended], finished: tuple[Ended, Path], tmp_path: Path
) -> None:
    run = finished[1]
    rows = [{**row, "topic": "tea" if at % 2 else "rain", "share": 0.9} for at, row in enumerate(pair_rows(6))]
    other = str(write_rows(tmp_path / "other.jsonl", rows))
    code, out, _ = prefopt("eval", "pairs", str(run), "--data", other, "--slice-by", "topic", "--name", "other")
    assert code == 0
    assert "rain" in out
    kept = json.loads((run / "eval/pairs_other.json").read_text())
    assert (kept["kind"], kept["source"], kept["slice_by"]) == ("pairs", [other], "topic")
    assert {(part["label"], part["n"]) for part in kept["slices"]} == {("rain", 3), ("tea", 3)}
    assert kept["calibration"]["against"] == "outcomes"
    recipe = str(run.parent / "recipe.yaml")
    raters = ["--data", other, "--slice-by", "share"]
    assert prefopt("eval", "pairs", recipe, *raters, "--out", str(tmp_path / "base.json")).code == 0
    assert json.loads((tmp_path / "base.json").read_text())["slices"][0]["label"] == "0.9 to 0.9"
    code, _, err = prefopt("eval", "pairs", recipe, "--name", "base")
    assert code == 2
    assert "--out FILE" in err
    code, _, err = prefopt("eval", "pairs", str(run), "--slice-by", "topc", "--data", other)
    assert code == 2
    assert "did you mean 'topic'?" in err


def test_eval_compare_says_that_a_run_is_no_better_than_its_copy(
    prefopt: Callable[..., Ended], finished: tuple[Ended, Path], tmp_path: Path
) -> None:
    run = finished[1]
    twin = shutil.copytree(run, tmp_path / "twin")
    code, out, _ = prefopt("eval", "compare", str(run), str(twin))
    assert code == 0
    assert "It can't be told which of run and twin" in out
    kept = json.loads((run / "eval/compare.json").read_text())
    assert (kept["kind"], kept["n"], kept["contrasts"][0]["p"]) == ("compare", 8, 1.0)
    code, _, err = prefopt("eval", "compare", str(run), str(run / ".." / run.name))
    assert code == 2
    assert "are one run, which never differs from itself" in err
    (twin / "eval/after.json").unlink()
    code, _, err = prefopt("eval", "compare", str(run), str(twin))
    assert code == 2
    assert f"prefopt eval pairs {twin} --data FILE" in err


def test_eval_rewardbench_scores_a_run_by_its_log_ratios(
    prefopt: Callable[..., Ended], finished: tuple[Ended, Path], tmp_path: Path
) -> None:
    run = finished[1]
    rows = [{**row, "prompt": row["prompt"][0]["content"], "subset": "hep-go"} for row in pair_rows(8)]
    bench = str(write_rows(tmp_path / "bench.jsonl", rows))
    code, out, _ = prefopt("eval", "rewardbench", str(run), bench)
    assert code == 0
    assert "Reasoning: - (no rows of math-prm" in out
    kept = json.loads((run / "eval/rewardbench.json").read_text())
    pairs = json.loads((run / "eval/after.json").read_text())  # the same rows
    assert (kept["kind"], kept["mode"]) == ("rewardbench", "implicit reward")
    assert kept["subsets"]["hep-go"]["accuracy"] == pairs["metrics"]["reward"]["right"] / 8
