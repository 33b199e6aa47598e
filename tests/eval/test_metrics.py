"""The modules of the library `evaluate`, loaded by path in a process without network, against arithmetic by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from prefopt.errors import PrefoptError
from prefopt.eval import metric_path

CALLS: dict[str, dict[str, Any]] = {
    "pair_accuracy": {"chosen": [1.0, 2.0, 0.5, 4.0], "rejected": [0.0, 3.0, 0.5, 1.0]},
    "preference_margin": {"chosen": [1.0, 2.0], "rejected": [0.0, 4.0], "beta": 0.5, "resamples": 200},
    "likelihood_displacement": {"policy": [-10.0, -12.0, -7.0], "reference": [-11.0, -9.0, -7.0]},
    "margin_calibration": {"margins": [2.0, -1.0, 0.0], "raters": [0.9, 0.6, 0.5]},
    "length_bias": {"margins": [1.0, -1.0, 2.0], "chosen_length": [9, 3, 4], "rejected_length": [5, 8, 2]},
    "pass_at_k": {"correct": [1, 0, 4], "samples": [4, 4, 4], "k": 2},
}
PROGRAM = """
import json
import sys
import evaluate
from prefopt.eval import metric_path
found = {}
for name, call in json.load(sys.stdin).items():
    metric = evaluate.load(metric_path(name))
    found[name] = {
        "result": metric.compute(**call), "description": metric.description, "citation": metric.citation,
        "features": list(metric.features), "inputs": metric.inputs_description,
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every module says and computes, in one fresh process."""
    home = tmp_path_factory.mktemp("home")
    # the library keeps what it loads; a proxy that is not there fails whatever asks for the network all the same
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "https_proxy": "127.0.0.1:9", "http_proxy": "127.0.0.1:9"}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(CALLS),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **offline},
    )
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def test_pair_accuracy(found: dict[str, Any]) -> None:
    result, call = found["pair_accuracy"]["result"], CALLS["pair_accuracy"]
    assert (result["right"], result["wrong"], result["ties"]) == (2, 1, 1)
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert [result["low"], result["high"]] == pytest.approx(proportion_confint(2, 3, method="wilson"))
    area = roc_auc_score([1] * 4 + [0] * 4, [*call["chosen"], *call["rejected"]])
    assert result["auc"] == pytest.approx(area)


def test_preference_margin(found: dict[str, Any]) -> None:
    result = found["preference_margin"]["result"]
    assert result["margin"] == pytest.approx(0.5 * (1 - 2) / 2)
    assert (result["low"], result["high"]) == (-1.0, 0.5)


def test_likelihood_displacement(found: dict[str, Any]) -> None:
    result = found["likelihood_displacement"]["result"]
    assert result["displacement"] == pytest.approx(1 / 3)
    assert [result["low"], result["high"]] == pytest.approx(proportion_confint(1, 3, method="wilson"))
    assert result["log_ratio"] == pytest.approx((1 - 3 + 0) / 3)


def test_margin_calibration(found: dict[str, Any]) -> None:
    result = found["margin_calibration"]["result"]
    p = [0.8807970779778823, 0.2689414213699951, 0.5]  # sigma of 2, -1 and 0
    weights = [0.9, 0.6, 0.5]
    expected = brier_score_loss([1] * 3 + [0] * 3, p * 2, sample_weight=weights + [1 - a for a in weights])
    assert result["brier"] == pytest.approx(expected)
    # sure by 0.8808 of what 0.9 prefer, and by 0.7311 of what 0.4 prefer
    assert result["expected_calibration_error"] == pytest.approx((0.9 - p[0] + (1 - p[1]) - 0.4) / 2)
    assert (result["ties"], result["against"]) == (1, "raters")


def test_length_bias(found: dict[str, Any]) -> None:
    result = found["length_bias"]["result"]
    assert (result["longer"]["value"], result["shorter"]["value"], result["difference"]) == (1.0, 0.0, 1.0)


def test_pass_at_k(found: dict[str, Any]) -> None:
    result = found["pass_at_k"]["result"]
    # 1 of 4 is right: 1 - C(3, 2) / C(4, 2); none; all
    assert result["pass@2"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert result["prompts"] == 3


@pytest.mark.parametrize("name", CALLS)
def test_a_module_says_what_it_is_and_what_it_takes(found: dict[str, Any], name: str) -> None:
    said = found[name]
    assert len(said["description"]) > 80
    assert said["citation"].startswith("@")
    for column in said["features"]:
        assert f"{column}: " in said["inputs"]
    readme = (Path(metric_path(name)) / "README.md").read_text()
    assert readme.startswith(f"# {name}\n")
    assert f'metric_path("{name}")' in readme
    assert said["citation"].strip() in readme


def test_a_metric_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(PrefoptError, match=r"no metric 'pair_acuracy'; there are .*did you mean 'pair_accuracy'"):
        metric_path("pair_acuracy")
