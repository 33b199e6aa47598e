"""The measures of a real model are those of the arrays, by the columns of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prefopt.data import load_preferences
from prefopt.errors import DataError
from prefopt.eval import EvalConfig, accuracy_by_agreement, calibration, evaluate_pairs
from prefopt.eval.calibration import sigmoid
from prefopt.models import load_policy
from prefopt.models.packed import PackedModel
from prefopt.models.references import build_reference
from tests.toys import pair_rows, save_tiny_model, write_rows

ROWS = [
    {**row, "raters": share, "single": share, "topic": topic}
    for row, share, topic in zip(
        pair_rows(6), (0.6, 0.7, 0.8, 0.9, 1.0, 0.55), ("a", "b", "a", "b", "a", "c"), strict=True
    )
]


def test_raters_calibrate_the_margin_and_set_the_ceiling(tmp_path: Path, tiny_model: Path) -> None:
    policy, tokenizer = load_policy(tiny_model, device="cpu", dtype="float32")
    other = save_tiny_model(tmp_path / "other", seed=1)
    packed = PackedModel(policy)
    reference = build_reference({"model": str(other)}, packed, needed=True)
    data = load_preferences(str(write_rows(tmp_path / "held.jsonl", ROWS)), tokenizer)
    config = EvalConfig(slice_by="topic", human="single", agreement="raters", resamples=100)
    found = evaluate_pairs(packed, reference, data, config, beta=10)
    margins = found.pairs.margins
    assert np.abs(margins).max() > 0.03
    raters = [0.6, 0.7, 0.8, 0.9, 1.0, 0.55]
    assert found.calibration == calibration(sigmoid(10 * margins), raters, resamples=100)
    assert found.by_agreement == accuracy_by_agreement(margins, raters, raters, resamples=100)
    assert [(part.label, part.n) for part in found.slices] == [("a", 3), ("b", 2), ("c", 1)]
    with pytest.raises(DataError, match=r"'topic', which has no numbers.*raters, single"):
        evaluate_pairs(packed, None, data, EvalConfig(agreement="topic"))
    with pytest.raises(DataError, match=r"holds words such as 'a'; leave eval.slice_edges out"):
        evaluate_pairs(packed, None, data, EvalConfig(slice_by="topic", slice_edges=(0, 1)))
