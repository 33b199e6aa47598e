"""The modules of `evaluate` are doors to the functions: the same numbers, loaded by path without a network."""

from pathlib import Path

import pytest

import prefopt.eval
from prefopt.eval.kl import sequence_kl
from prefopt.eval.winrate import win_rate

evaluate = pytest.importorskip("evaluate")
METRICS = Path(prefopt.eval.__file__).parent / "metrics"


def test_sequence_kl_is_the_function(tmp_path: Path) -> None:
    metric = evaluate.load(str(METRICS / "sequence_kl"), cache_dir=str(tmp_path))
    columns = {"kl": [0.4, 0.3, 0.5], "log_ratio": [0.9, -0.2, 0.6], "prompts": ["a", "a", "b"]}
    more = {"length": [12, 9, 24], "truncated": [False, False, True]}
    found = metric.compute(**columns, **more, resamples=100)
    assert found == sequence_kl(**columns, **more, resamples=100).to_dict()
    assert found["kl"]["value"] == pytest.approx((0.35 + 0.5) / 2)
    assert found["truncated"] == pytest.approx(1 / 3)
    assert "nats" in metric.inputs_description


def test_length_controlled_winrate_is_the_function(tmp_path: Path) -> None:
    metric = evaluate.load(str(METRICS / "length_controlled_winrate"), cache_dir=str(tmp_path))
    outcomes, a, b = [1.0, 0.5, 0.0, 1.0], [40.0, 22.0, 31.0, 9.0], [25.0, 22.0, 30.0, 12.0]
    prompts = ["p", "p", "q", "r"]
    found = metric.compute(outcomes=outcomes, length_a=a, length_b=b, prompts=prompts, resamples=100)
    assert found == win_rate(outcomes, a, b, prompts, resamples=100).to_dict()
    assert found["raw"]["value"] == pytest.approx((0.75 + 0 + 1) / 3)
    assert "2404.04475" in metric.citation
