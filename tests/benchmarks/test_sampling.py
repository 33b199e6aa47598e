"""The benchmark of sampling: both sides draw what they are timed for."""

import json
from pathlib import Path

import pytest

from benchmarks import sampling


def test_every_side_draws_the_same_number_of_tokens(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--prompts", "1", "3", "--n", "2", "--prompt-tokens", "9", "--new-tokens", "5", "--rounds", "1"]
    assert sampling.main(["--model", str(tiny_model), "--threads", "1", *sizes]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [cell["prompts"] for cell in found["cells"]] == [1, 3]
    for cell in found["cells"]:
        assert set(cell["seconds"]) == {"generate", "ours", "scored"}
        assert cell["ratio"]["ours"] == pytest.approx(cell["seconds"]["generate"][0] / cell["seconds"]["ours"][0])


def test_a_side_that_draws_fewer_tokens_is_refused() -> None:
    with pytest.raises(RuntimeError, match="3 tokens were drawn instead of 4"):
        sampling.timed(lambda: [(1, 2), (3,)], 4)
