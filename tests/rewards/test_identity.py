"""The identity of a reward changes when its scores could, and only then."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import ModelError, RecipeError
from prefopt.rewards import RewardConfig, reward_identity
from tests.models.loading import edit


def identity(section: Any) -> str:
    return reward_identity(RewardConfig.model_validate(section))


def test_settings_weights_and_the_rule_for_thinking_are_part_of_it() -> None:
    plain = identity("exact")
    assert plain == identity({"scorers": {"exact": {"kind": "exact", "column": "answer"}}})
    others = [
        {"ignore_case": True},
        {"weight": 2},
        {"column": "right"},
        {"thinking": {}},
        {"thinking": {"if_broken": 0}},
    ]
    assert len({plain, *(identity({"kind": "exact", **more}) for more in others)}) == 6


def test_the_content_of_a_function_is_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    section = {"kind": "python", "function": f"{path}:f"}
    with pytest.raises(RecipeError, match="can't be read"):
        identity(section)
    path.write_text("def f(a): return 1")
    first = identity(section)
    assert identity(section) == first
    path.write_text("def f(a): return 2")
    assert identity(section) != first


def test_the_files_of_a_reward_model_are_part_of_it_wherever_they_are_read(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    section = {"kind": "model", "name": str(folder)}
    first = identity(section)
    assert identity(section) == first
    edit(folder / "config.json", rms_norm_eps=1e-3)
    assert identity(section) != first
    with pytest.raises(ModelError, match="there is no directory"):
        identity({"kind": "model", "name": str(tmp_path / "nothing")})
