"""Which words a run was taught to prefer: pieces of text whose log-ratios add up to what the evaluation measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from prefopt.recipe import load_recipe
from prefopt.workflow import train_run
from prefopt.workflow.shading import cut, joined
from tests.toys import pair_rows, save_tiny_model, write_rows


class Bytes:
    """A tokenizer whose tokens are bytes: most of a character's tokens are no character."""

    def decode(self, tokens: Sequence[int], **_: object) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ["plain", "naïve – 東京 🎬!", "🎬🎬", ""])
def test_pieces_are_whole_characters_and_join_to_the_text(text: str) -> None:
    texts = cut(Bytes(), text.encode())
    assert "".join(texts) == text
    assert [one for one in texts if one] == list(text)
    assert len(texts) == len(text.encode())


def test_a_character_that_is_cut_at_the_end_is_shown_as_broken() -> None:
    assert cut(Bytes(), "a🎬".encode()[:-1]) == ["a", "", "", "\ufffd"]


def test_the_ratios_of_a_characters_tokens_add_up() -> None:
    assert joined(["a", "", "é", "", ""], [1.0, 0.25, 0.5, 0.125, 0.0625]) == [("a", 1.0), ("é", 0.9375)]
    assert joined(["", ""], [1.0, 2.0]) == []


def trained(folder: Path, model: Path, *lines: str) -> Path:
    write_rows(folder / "pairs.jsonl", pair_rows(12))
    write_rows(folder / "held_out.jsonl", pair_rows(3, seed=1))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{name: {model}, dtype: float32, lora: {{r: 4}}}}\n"
        "data: {train: pairs.jsonl, eval: held_out.jsonl}\n"
        "eval: {samples: 3, samples_per_prompt: 2, max_new_tokens: 6, resamples: 100}\n"
        f"train: {{output_dir: {folder / 'run'}, examples_per_step: 6, max_steps: 2, learning_rate: 3.0e-2,\n"
        "  save_strategy: 'no'}\n" + "".join(f"{line}\n" for line in lines)
    )
    return train_run(load_recipe(recipe)).path


def test_a_run_says_of_every_shown_word_how_far_it_moved(tmp_path: Path, tiny_model: Path) -> None:
    run = trained(tmp_path, tiny_model)
    samples = json.loads((run / "samples.json").read_text())
    pairs = json.loads((run / "eval/after.json").read_text())["pairs"]
    sides = ("chosen", "rejected")
    measured = [
        {key: policy - reference for key, policy, reference in zip(sides, ours, theirs, strict=True)}
        for ours, theirs in zip(pairs["policy"], pairs["reference"], strict=True)
    ]
    seen = 0
    for sample, ratios in zip(samples, measured, strict=True):
        assert "reference" not in sample  # the model as it began is its reference
        for key in ("before", "after", "chosen", "rejected"):
            assert len(sample[key]) == len(sample[f"{key}_tokens"]) >= 1
            for text, pieces in zip(sample[key], sample[f"{key}_tokens"], strict=True):
                assert "".join(piece for piece, _ in pieces).startswith(text)  # behind it stands the end of turn
                if key in sides:
                    assert sum(ratio for _, ratio in pieces) == pytest.approx(ratios[key], abs=2e-3)
                    seen += 1
    assert seen == 6
    assert any(abs(ratio) > 1e-3 for sample in samples for text in sample["chosen_tokens"] for _, ratio in text)


def test_a_reference_of_its_own_answers_the_same_prompts(tmp_path: Path, tiny_model: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=5)
    run = trained(tmp_path, tiny_model, f"reference: {{model: {other}}}")
    samples = json.loads((run / "samples.json").read_text())
    assert all(len(sample["reference"]) == len(sample["reference_tokens"]) == 2 for sample in samples)
    assert [sample["reference"] for sample in samples] != [sample["before"] for sample in samples]


def test_without_a_reference_there_are_texts_alone(tmp_path: Path, tiny_model: Path) -> None:
    run = trained(tmp_path, tiny_model, "loss: simpo")
    for sample in json.loads((run / "samples.json").read_text()):
        assert sample.keys() == {"prompt", "before", "after", "chosen", "rejected"}
