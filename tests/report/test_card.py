"""A model card says what was trained, on what and with which result, and nothing of the machine it was made on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from prefopt.errors import RunError
from prefopt.report.card import write_card
from prefopt.workflow.merge import Drift, Merged
from tests.report.fixture_run import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "reviews")
    (run / "adapter").mkdir(exist_ok=True)
    (run / "adapter/adapter_config.json").write_text("{}")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"]["name"] = "someone/base-model"
    recipe["data"] |= {"train": ["someone/pairs", "/home/me/secret/pairs.jsonl"], "eval": "/home/me/held_out.jsonl"}
    recipe["train"]["output_dir"] = "/home/me/runs/reviews"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return run


def test_the_metadata_names_base_licence_data_and_library_as_the_hub_reads_them(run: Path) -> None:
    card = ModelCard.load(write_card(run, run / "adapter", license="apache-2.0"))
    assert card.data.base_model == "someone/base-model"
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["someone/pairs"]
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["prefopt", "preference-optimization", "dpo"]


def test_the_card_tells_the_result_the_recipe_and_shows_the_curves(run: Path) -> None:
    text = write_card(run, run / "adapter").read_text()
    assert "| Implicit-reward accuracy | – (all ties) |" in text
    assert "PeftModel.from_pretrained" in text
    shown = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert shown["data"]["train"] == ["someone/pairs", "pairs.jsonl"]
    assert shown["train"]["output_dir"] == "reviews"
    assert "/home/me" not in text
    for number in range(text.count("](figures/")):
        svg = (run / f"adapter/figures/{number}.svg").read_text()
        assert svg.startswith("<svg")
        assert "--ink:#" in svg
    assert text.count("](figures/") >= 2


def test_the_card_of_a_merged_model_says_how_far_it_is_from_the_policy(run: Path, tmp_path: Path) -> None:
    merged = Merged(tmp_path, "bfloat16", True, Drift(64, 900, 0.0012, 0.031, 0.01, 0.2))
    text = write_card(run, tmp_path, merged=merged).read_text()
    assert "quantized weights, and those, unpacked" in text
    assert "64 completions differ by 0.0012 nats a token on average and 0.031 at most" in text
    assert "library_name: transformers" in text
    assert "base_model_relation: finetune" in text


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("int8", {"load_in_8bit": True, "llm_int8_threshold": 0.0}),
        (
            {"type": "nf4", "double_quant": True},
            {
                "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
                "bnb_4bit_compute_dtype": "bfloat16",
            },
        ),
    ],
)  # fmt: skip
def test_an_adapter_of_a_quantized_model_is_used_on_the_same_quantized_weights(
    run: Path, tmp_path: Path, asked: object, said: dict[str, object]
) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"]["quantization"] = asked
    recipe["data"]["thinking"] = "drop"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (call,) = re.findall(
        r"quantized = BitsAndBytesConfig\((.*)\)", text := write_card(run, run / "adapter").read_text()
    )
    assert eval(f"dict({call})") == said
    assert 'from_pretrained("someone/base-model", quantization_config=quantized)' in text
    assert "enable_thinking=False" in text
    merged = write_card(run, tmp_path).read_text()
    assert "BitsAndBytesConfig" not in merged.split("## Result")[0], "what was merged is plain"


def test_a_base_that_lies_in_a_folder_is_called_what_the_hub_calls_it_where_that_is_known(
    run: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"_name_or_path": "someone/base-model"}')
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    for place in (base, tmp_path / "hub/models--someone--base-model/snapshots/0123"):
        recipe["model"]["name"] = str(place)
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        path = write_card(run, run / "adapter")
        assert ModelCard.load(path).data.base_model == "someone/base-model"
        assert 'from_pretrained("someone/base-model")' in path.read_text()


def test_a_base_with_a_card_of_its_own_hands_down_its_licence(run: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"]["name"] = str(base)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    card = ModelCard.load(write_card(run, run / "adapter"))
    assert card.data.license == "mit"
    assert card.data.base_model is None


def test_a_folder_that_is_no_run_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="so it is no run"):
        write_card(tmp_path, tmp_path)


def test_nothing_of_the_machine_is_told_in_whatever_way_a_place_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models/llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"]["name"] = "models/llama"
    recipe["data"]["train"] = [
        "data/train.txt", "someone/pairs", "file:///home/me/x.jsonl", r"C:\Users\me\y.jsonl", "../secret/z.jsonl",
        "https://me:word@host.org/a/b.jsonl?token=word#part",
    ]  # fmt: skip
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    path = write_card(run, run / "adapter")
    text, card = path.read_text(), ModelCard.load(path)
    assert card.data.base_model is None
    assert card.data.datasets == ["someone/pairs"]
    assert "huggingface.co/models" not in text
    shown = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert shown["model"]["name"] == "llama"
    assert shown["data"]["train"] == [
        "train.txt", "someone/pairs", "x.jsonl", "y.jsonl", "z.jsonl", "https://host.org/a/b.jsonl",
    ]  # fmt: skip
    assert not [word for word in ("secret/", "Users", "home/me", "word@", "=word") if word in text]
