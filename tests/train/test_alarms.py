"""Alarms: each said when its condition holds, once, also over a resume; and none on a healthy run."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefopt.train.alarms import Alarms, find
from prefopt.train.config import AlarmConfig

QUIET: dict[str, float] = {"loss": 0.6, "rewards/accuracies": 0.8, "log_ratios/chosen_per_token": 0.01}


def kinds(history: list[dict[str, float]], **config: Any) -> list[str]:
    return [kind for kind, _ in find(AlarmConfig(**config), history)]


def test_a_healthy_run_raises_no_alarm() -> None:
    assert kinds([QUIET] * 100 + [{"eval_loss": 0.5, "eval_kl_per_token": 0.1}]) == []


def test_the_chosen_alarm_is_about_the_mean_of_a_whole_window_against_the_reference() -> None:
    falling = {**QUIET, "log_ratios/chosen_per_token": -0.5}
    assert kinds([QUIET] * 2 + [falling] * 2, window=4, chosen_falling=0.24) == ["chosen_falling"]  # mean -0.245
    assert kinds([QUIET] * 2 + [falling] * 2, window=4, chosen_falling=0.25) == []
    assert kinds([falling] * 3, window=4, chosen_falling=0.1) == []  # not a whole window yet
    assert kinds([falling] * 9, chosen_falling=None) == []


def test_without_a_reference_the_chosen_alarm_compares_with_the_first_window() -> None:
    first, later = ({"loss": 1.0, "logps/chosen_per_token": value} for value in (-2.0, -2.5))
    assert kinds([first] * 3 + [later] * 3, window=3, chosen_falling=0.4) == ["chosen_falling"]
    assert kinds([first] * 3 + [later] * 2, window=3, chosen_falling=0.1) == []  # the windows would overlap
    assert kinds([later] * 3 + [first] * 3, window=3, chosen_falling=0.1) == []  # rising


def test_the_accuracy_alarm_needs_every_step_of_the_window_at_one() -> None:
    right = {**QUIET, "rewards/accuracies": 1.0}
    assert kinds([QUIET] + [right] * 5, window=5) == ["accuracy_pinned"]
    assert kinds([right] * 4 + [QUIET] + [right] * 4, window=5) == []
    assert kinds([right] * 9, window=5, accuracy_pinned=False) == []
    assert kinds([{"loss": 0.1}] * 9, window=5) == []  # labelled data has no accuracy


def test_the_kl_alarm_looks_at_the_newest_evaluation() -> None:
    far, near = {"eval_kl_per_token": 0.9}, {"eval_kl_per_token": 0.2}
    assert kinds([near, far]) == ["kl"]
    assert kinds([far, near]) == []
    assert kinds([far], kl=None) == []


def run(alarms: Alarms, history: list[dict[str, float]], until: int, *, since: int = 0) -> None:
    state: Any = SimpleNamespace(global_step=since, log_history=history[:since])
    control: Any = None
    args: Any = None
    alarms.on_train_begin(args, state, control)
    for step in range(since + 1, until + 1):
        state.global_step, state.log_history = step, history[:step]
        alarms.on_log(args, state, control)


def test_an_alarm_is_said_once_a_run_also_where_the_run_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "alarms.jsonl"
    pinned = [{**QUIET, "rewards/accuracies": 1.0}] * 12
    config = AlarmConfig(window=5)
    said: list[str] = []
    run(Alarms(config, said.append, path), pinned, 8)
    assert len(said) == 1
    assert said[0].startswith("alarm at step 5: every pair of the last 5 logged steps")
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [5]

    run(Alarms(config, said.append, path), pinned, 12, since=6)  # resumed behind the alarm: it was said
    assert len(said) == 1
    run(Alarms(config, said.append, path), pinned, 12, since=3)  # resumed before it: it is said again, and kept once
    assert len(said) == 2
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [5]


@pytest.mark.parametrize("wrong", [{"window": 0}, {"kl": 0.0}, {"chosen_falling": -1.0}, {"chosen": 1.0}])
def test_limits_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AlarmConfig.model_validate(wrong)
