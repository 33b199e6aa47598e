"""The `reward` section: its short forms, and the sentence for every mistake in it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from prefopt.recipe.sentences import sentences
from prefopt.recipe.source import read
from prefopt.rewards import RewardConfig, ThinkingSection, absolute_files
from prefopt.rewards.config import KINDS


def complaint(folder: Path, text: str) -> str:
    """Return what a person reads who wrote this section into a recipe."""
    path = folder / "recipe.yaml"
    path.write_text(text)
    source = read(path)
    with pytest.raises(ValidationError) as caught:
        RewardConfig.model_validate(source.data["reward"])
    return "\n".join(sentences(caught.value, "reward", RewardConfig, source)).replace(f"{folder}/", "")


def test_a_word_a_kind_and_a_section_of_scorers_say_the_same() -> None:
    short = RewardConfig.model_validate("numeric")
    assert short == RewardConfig.model_validate({"kind": "numeric"})
    assert short == RewardConfig.model_validate({"scorers": {"numeric": {"kind": "numeric"}}})
    assert RewardConfig.model_validate(short.model_dump()) == short


def test_thinking_stands_beside_a_single_kind() -> None:
    config = RewardConfig.model_validate({"kind": "exact", "thinking": {"required": True, "if_broken": -1}})
    assert config.thinking is not None
    assert config.thinking.if_broken == -1
    assert list(config.scorers) == ["exact"]


def test_the_columns_that_rows_need_are_known_before_anything_is_sampled() -> None:
    config = RewardConfig.model_validate(
        {"scorers": {"a": {"kind": "exact", "column": "x"}, "b": {"kind": "reasoning_gym"}, "c": {"kind": "sentiment"},
                     "d": {"kind": "regex", "pattern": "a", "column": None}}}
    )  # fmt: skip
    assert config.columns == {"x", "reasoning_gym"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("reward: numerc", "recipe.yaml:1: reward: kind is 'numerc' in the scorer numerc; it must be one of exact,"),
        ("reward: numerc", "; did you mean 'numeric'?"),
        ("reward:\n  kind: numeric\n  tolerence: 1", "tolerence is no setting of the scorer numeric; it takes weight,"),
        ("reward:\n  kind: numeric\n  tolerence: 1", "recipe.yaml:3: reward.tolerence"),
        ("reward:\n  kind: numeric\n  tolerance: -1", "recipe.yaml:3: reward.tolerance is -1; it must be at least 0."),
        ("reward:\n  scorers:\n    a: {kind: numeric}\n    b:\n      kind: length\n",
         "reward.scorers.b.target is missing"),
        ("reward:\n  scorers:\n    a: {kind: numeric}\n    b:\n      kind: length\n      target: x\n",
         'recipe.yaml:6: reward.scorers.b.target is "x"; it must be a whole number.'),
        ("reward:\n  scorers:\n    a:\n      kind: regex\n      pattern: (\n",
         "pattern '(' is no regular expression (missing ) at position 1)."),
        ("reward: {}", "there is no scorer: write a kind (exact, regex,"),
        ("reward: {kind: exact, scorers: {}}", "write one of the two"),
        ("reward: {kind: exact, weight: 0}", "every weight is 0"),
        ("reward: {kind: exact, thinking: {open: a, close: a}}", "open and close are the same tag"),
        ("reward: {kind: python, function: f}", "it must be of the form file.py:function"),
        ("reward: {kind: length, target: 3, unit: tokens}", "write of: text"),
        ("reward: {kind: judge, model: m, endpoint: 'https://a.b/v1'}", "would send prompts and answers to a.b"),
        ("reward: {kind: judge, enabled: true, model: m, endpoint: 'a.b/v1'}", "it must be an address such as http"),
        ("reward: {kind: judge, enabled: true, model: m, endpoint: 'http://a.b', key_variable: K}", "write https"),
        ("reward: {kind: judge, enabled: true, model: m, endpoint: 'https://u:p@a.b'}", "more than an address"),
    ],
)  # fmt: skip
def test_a_wrong_section_says_where_what_and_what_is_allowed(tmp_path: Path, text: str, said: str) -> None:
    assert said in complaint(tmp_path, text)


def test_files_count_from_the_folder_of_the_recipe_and_names_of_the_hub_stay(tmp_path: Path) -> None:
    (tmp_path / "rm").mkdir()
    section: Any = {
        "scorers": {
            "own": {"kind": "python", "function": "score.py:f"},
            "near": {"kind": "model", "name": "rm"},
            "far": {"kind": "model", "name": "org/rm"},
            "text": {"kind": "exact"},
        }
    }
    found = absolute_files(section, tmp_path)["scorers"]
    assert found["own"]["function"] == f"{tmp_path}/score.py:f"
    assert found["near"]["name"] == f"{tmp_path}/rm"
    assert found["far"]["name"] == "org/rm"
    assert found["text"] == {"kind": "exact"}
    assert absolute_files("exact", tmp_path) == "exact"
    assert absolute_files(section["scorers"]["own"], tmp_path)["function"] == f"{tmp_path}/score.py:f"


def test_every_kind_and_every_setting_is_documented_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs/rewards.md").read_text()
    shown = re.findall(r"^\| `(\w+)` \| [^|]+ \| `(\{.*\})` \|", page, flags=re.MULTILINE)
    assert sorted(name for name, _ in shown) == sorted(KINDS)
    for name, section in shown:
        assert RewardConfig.model_validate(yaml.safe_load(section)).scorers[name].kind == name
    keys = {f"{kind}.{key}" for kind, section in KINDS.items() for key in section.model_fields}
    common = {f"{kind}.{key}" for kind in KINDS for key in ("kind", "weight", "scale")}
    thinking = {f"thinking.{key}" for key in ThinkingSection.model_fields}
    assert sorted(re.findall(r"^\| `(\w+\.\w+)` \|", page, flags=re.MULTILINE)) == sorted((keys - common) | thinking)
