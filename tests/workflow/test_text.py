"""The texts of a run beside those of the model that it began with."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from prefopt.workflow import load_held_out, text
from prefopt.workflow.directory import evaluation_json
from prefopt.workflow.generations import SamplingOptions
from prefopt.workflow.text import text_of_run
from tests.toys import write_rows


def test_a_run_is_measured_beside_its_start(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train("lora: {r: 4}, dtype: float32")
    read: list[str] = []
    monkeypatch.setattr(text, "load_held_out", lambda *given: read.append(given[-1]) or load_held_out(*given))
    found = text_of_run(run, limit=3, options=SamplingOptions(samples_per_prompt=2, max_new_tokens=6, resamples=100))
    assert read == [str(run.parent / "pairs.jsonl")], "what is held out is tokenized once for both models"
    held = json.loads((run / "eval" / "text.json").read_text())
    assert held == evaluation_json("text", found.to_dict())
    assert (held["kind"], held["prompts"]) == ("text", 3)
    assert found.base.completions == found.tuned.completions == 6
    assert found.base.perplexity is not None
    assert found.tuned.perplexity is not None
    assert found.base.perplexity.n == 12
    assert found.base.perplexity.value != found.tuned.perplexity.value
    assert found.base.entropy.value is not None
    assert 0 < found.base.entropy.value < 5.6  # log of the vocabulary
    assert any(line.startswith("Perplexity") for line in found.drift)
    assert found.no_perplexity is None
    after = json.loads((run / "eval" / "after.json").read_text())
    chosen, tokens = (sum(pair[0] for pair in after["pairs"][name]) for name in ("policy", "length"))
    assert found.tuned.perplexity.value == pytest.approx(math.exp(-chosen / tokens), rel=1e-5)

    recipe, kept = run / "recipe.yaml", (run / "recipe.yaml").read_text()
    labelled = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "c", "completion": "d", "label": False}]
    said = yaml.safe_load(kept)
    said["data"]["eval"] = str(write_rows(tmp_path / "labelled.jsonl", labelled))
    try:
        recipe.write_text(yaml.safe_dump(said))
        options = SamplingOptions(samples_per_prompt=1, max_new_tokens=2, resamples=100)
        without = text_of_run(run, limit=2, out=tmp_path / "text.json", options=options, say=(lines := []).append)
    finally:
        recipe.write_text(kept)
    assert without.tuned.perplexity is None
    assert without.no_perplexity is not None
    assert "labelled completions" in without.no_perplexity
    assert lines[-1].startswith(f"kept in {tmp_path / 'text.json'}; a report shows only"), "it lies in no run"
