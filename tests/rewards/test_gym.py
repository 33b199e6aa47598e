"""reasoning-gym: rows that survive files, and the task's own scores."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefopt.errors import RecipeError
from prefopt.rewards import ScoreFailure, reasoning_gym_rows
from tests.rewards.attempts import said, scorer

pytest.importorskip("reasoning_gym", reason="needs the extra reasoning")


def test_rows_of_a_task_are_scored_by_it_after_a_way_through_files(tmp_path: Path) -> None:
    rows = [
        *reasoning_gym_rows("chain_sum", 2, 7, {"min_terms": 2, "max_terms": 2}),
        # Entries of this one hold tuples, which come back from a file as lists and are then no longer right.
        *reasoning_gym_rows("arc_agi", 1, 7),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    kept = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert kept == rows == json.loads(json.dumps(rows))
    grader = scorer("reasoning_gym")
    right = [said(f" {row['answer']}\n", **row) for row in kept]
    assert grader.score(right) == [1.0, 1.0, 1.0]
    assert all(score < 1.0 for score in grader.score([said("no", **row) for row in kept]))  # type: ignore[operator]
    assert (grader.low, grader.high) == (0.0, 1.0)


def test_the_same_seed_gives_the_same_rows_and_another_gives_others() -> None:
    first, again, other = (list(reasoning_gym_rows("chain_sum", 3, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert first[0]["prompt"][0]["role"] == "user"


def test_a_row_of_another_version_or_of_no_task_is_a_failure() -> None:
    [row] = reasoning_gym_rows("chain_sum", 1, 7)
    changed = {**row, "reasoning_gym": {**row["reasoning_gym"], "question": "0"}}
    version, none = scorer("reasoning_gym").score([said("4", **changed), said("4", "4")])
    assert isinstance(version, ScoreFailure)
    assert "makes another question" in version.reason
    assert isinstance(none, ScoreFailure)
    assert "make rows by `reasoning_gym_rows`" in none.reason


def test_a_task_or_setting_that_there_is_not_is_told() -> None:
    with pytest.raises(RecipeError, match="has no task 'chain_summ'; did you mean 'chain_sum'"):
        next(reasoning_gym_rows("chain_summ", 1, 0))
    with pytest.raises(RecipeError, match="refuses these settings of chain_sum"):
        next(reasoning_gym_rows("chain_sum", 1, 0, {"terms": 3}))
