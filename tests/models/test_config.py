"""The sections of a recipe about models: what they take and what they say."""

from typing import Any

import pytest
from pydantic import ValidationError

from prefopt.errors import RecipeError
from prefopt.models import LoraSection, ModelConfig, ReferenceConfig, load_policy


def test_unknown_options_name_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match=r"'dtpye' is no setting of a model.*did you mean 'dtype'"):
        load_policy("x", dtpye="float32")
    with pytest.raises(RecipeError, match=r"model\.dtype"):
        load_policy("x", dtype="int3")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"rank": 3}, "'rank' is neither one of r, alpha"),
        ({"use_rslroa": True}, "did you mean 'use_rslora'"),
        ({"lora_alpha": 3}, "'lora_alpha' is called 'alpha' here"),
        ({"task_type": "CAUSAL_LM"}, "'task_type' is neither"),
        ({"r": 0}, "greater than or equal to 1"),
        ({"dropout": 1.0}, "less than 1"),
        ({"dtype": "float16"}, "'auto', 'bfloat16' or 'float32'"),
    ],
)
def test_a_wrong_lora_section_says_what_is_wrong(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LoraSection.model_validate(section)


def test_an_adapter_excludes_settings_for_a_new_one_but_not_its_dtype() -> None:
    with pytest.raises(ValidationError, match="brings its own settings"):
        ModelConfig.model_validate({"name": "x", "adapter": "y", "lora": {"r": 4}})
    with pytest.raises(ValidationError, match="leave one out"):
        ModelConfig.model_validate({"name": "x", "adapter": "y", "lora": None})
    kept = ModelConfig.model_validate({"name": "x", "adapter": "y", "lora": {"dtype": "bfloat16"}})
    assert ModelConfig.model_validate(kept.model_dump()) == kept


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("auto", "auto"),
        ("none", "none"),
        (None, "none"),
        ("adapter_off", "adapter_off"),
        ({"model": "x", "dtype": "bfloat16"}, "model"),
        ({"model": "x", "quantization": "nf4", "device": "cpu"}, "model"),
        ({"kind": "moving", "every": 512, "mix": 0.6}, "moving"),
        ({"cache": True, "cache_dir": "kept"}, "auto"),
        ({}, "auto"),
    ],
)
def test_a_reference_is_a_word_or_a_model(value: Any, kind: str) -> None:
    config = ReferenceConfig.model_validate(value)
    assert config.kind == kind
    assert ReferenceConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("adapteroff", "did you mean 'adapter_off'"),
        ({"kind": "model"}, "needs the model's name"),
        ({"kind": "none", "model": "x"}, "model belong to a reference of kind 'model'"),
        ({"modle": "x"}, "modle"),
        ({"kind": "moving"}, "needs to know when it moves: write {kind: moving, every: STEPS}"),
        ({"kind": "moving", "every": 0}, "greater than or equal to 1"),
        ({"kind": "moving", "every": 5, "mix": 0}, "greater than 0"),
        ({"kind": "moving", "every": 5, "cache": True}, "other log-probs after every move"),
        ({"model": "x", "every": 5}, "every belong to a reference of kind 'moving', not of kind 'model'"),
        ({"kind": "frozen_copy", "device": "cpu"}, "device belong to a reference of kind 'model'"),
        ({"cache": True, "kind": "none"}, "no log-probs to keep"),
    ],
)
def test_a_wrong_reference_says_what_is_wrong(value: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ReferenceConfig.model_validate(value)
