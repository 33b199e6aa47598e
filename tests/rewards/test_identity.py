"""The identity of a reward changes when its scores could, and only then."""

import importlib.metadata
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


def test_how_a_judge_is_asked_is_part_of_it_and_what_it_may_cost_is_not() -> None:
    judge = {"kind": "judge", "enabled": True, "endpoint": "http://localhost:1/v1", "model": "m"}
    costs = {"retries": 1, "parallel": 9, "max_calls": 7, "max_total_tokens": 8, "timeout": 3, "key_variable": "KEY"}
    assert identity(judge | costs) == identity(judge)
    others = [{"model": "n"}, {"temperature": 1}, {"high": 5}, {"instruction": "{answer}?"}, {"max_tokens": 8}]
    assert len({identity(judge | more) for more in [{}, *others]}) == 6


@pytest.mark.parametrize(
    ("kind", "packages"),
    [
        ("math", ["math-verify", "latex2sympy2_extended", "sympy"]),
        ("sentiment", ["vaderSentiment"]),
        ("reasoning_gym", ["reasoning-gym", "sympy"]),
    ],
)
def test_the_versions_of_the_packages_that_score_are_part_of_it(
    kind: str, packages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity(kind)
    real = importlib.metadata.version
    for package in packages:
        monkeypatch.setattr(importlib.metadata, "version", lambda name, p=package: "0" if name == p else real(name))
        assert identity(kind) != before, package
    monkeypatch.undo()
    assert identity(kind) == before


def test_the_version_of_our_own_scorers_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity("exact")
    monkeypatch.setattr("prefopt.rewards.identity.SCORES", 0)
    assert identity("exact") != before
