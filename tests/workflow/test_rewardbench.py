"""RewardBench's rows through a real model: log-probs by plain transformers, and what a file may hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.errors import DataError
from prefopt.workflow import rewardbench_run
from tests.toys import write_rows

ROWS: list[dict[str, object]] = [
    {"prompt": "Do you like tea?", "chosen": "Very much.", "rejected": "No, never.", "subset": "shp", "id": 1},
    {"prompt": "And rain?", "chosen": "I do not.", "rejected": "Why not", "subset": "shp", "id": 2},
    {"prompt": [{"role": "user", "content": "Chess?"}], "chosen": "a", "rejected": "bb", "subset": "math-prm", "id": 3},
]


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{name: {tiny_model}, dtype: float32}}\ndata: {{train: pairs.jsonl}}\ntrain: {{output_dir: run}}\n"
    )
    return path


def test_a_recipes_model_is_scored_by_the_sum_of_log_probs(recipe: Path, tiny_model: Path, tmp_path: Path) -> None:
    file, out = write_rows(tmp_path / "bench.jsonl", ROWS), tmp_path / "scores.json"
    found = rewardbench_run(recipe, str(file), out=out)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def logprob(prompt: object, answer: object) -> float:
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        start = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        head = tokenizer(start, add_special_tokens=False)["input_ids"]
        ids = tokenizer(f"{start}{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(logits[at - 1, ids[at]]) for at in range(len(head), len(ids)))

    right = {name: [logprob(r["prompt"], r["chosen"]) > logprob(r["prompt"], r["rejected"])
                    for r in ROWS if r["subset"] == name] for name in ("shp", "math-prm")}  # fmt: skip
    assert found.mode == "log-prob"
    for name, rows in right.items():
        assert found.scores.subsets[name].correct.count == sum(rows)
    written = json.loads(out.read_text())
    assert (written["kind"], written["mode"], written["overall"]) == ("rewardbench", "log-prob", None)
    assert written["subsets"]["shp"]["n"] == 2


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**ROWS[0], "subset": "shq"}, "no subset 'shq'"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, r"bench.jsonl:1 has no subset"),
    ],
)
def test_rows_that_are_not_of_the_schema_are_refused_before_a_model_loads(
    recipe: Path, tmp_path: Path, row: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefopt.workflow.rewardbench.load_measured", None)
    with pytest.raises(DataError, match=words):
        rewardbench_run(recipe, str(write_rows(tmp_path / "bench.jsonl", [row])))
