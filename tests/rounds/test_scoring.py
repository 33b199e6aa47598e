"""The stage that scores, with a judge that costs: what was spent before a kill counts after it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefopt.rounds import scoring
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.recipe import load_rounds
from prefopt.rounds.stage import read_manifest
from prefopt.rounds.tables import read_scores
from tests.rewards.test_judge import Server, grade
from tests.rounds.toy import write_task


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server(lambda *_: grade("5", tokens=3))
    yield found
    found.close()


def stopping_at(call: int) -> Callable[..., None]:
    """Return a `write_scores` that is interrupted at this call."""
    real, calls = scoring.write_scores, iter(range(1, 100))

    def write(*arguments: Any) -> None:
        if next(calls) == call:
            raise KeyboardInterrupt
        real(*arguments)

    return write


def test_what_a_judge_spent_before_an_interruption_counts_and_what_it_may_spend_is_no_part_of_the_key(
    server: Server, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_task(tmp_path, tiny_model, count=1)
    judge = f"kind: judge, enabled: true, endpoint: '{server.address}', model: m, instruction: '{{prompt}} {{answer}}'"

    def score(most: int) -> None:
        run_rounds(load_rounds(recipe, [f"score={{{judge}, max_calls: {most}}}"]), until="score")

    with monkeypatch.context() as patched:
        patched.setattr(scoring, "write_scores", stopping_at(2))
        with pytest.raises(KeyboardInterrupt):
            score(1000)
    before = len(server.asked)
    score(before + 2)
    assert len(server.asked) == before + 2, "the second start has what the first left, whatever its budget is"
    manifest = read_manifest(tmp_path / "run/round-000/score.json")
    assert manifest is not None
    assert manifest.counts["spent"] == {"judge": {"calls": before + 2, "tokens": 3 * (before + 2)}}
    rows = read_scores(tmp_path / "run/round-000/scores.parquet")
    assert sum(row.score == 5.0 for row in rows) >= before // 2
    assert "budget" in str(rows[-1].failure)
    score(999)
    assert len(server.asked) == before + 2, "more budget scores nothing again"
