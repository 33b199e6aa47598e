"""The texts of a run beside those of the model that it began with."""

import json
from collections.abc import Callable
from pathlib import Path

from prefopt.workflow.text import TextOptions, text_of_run


def test_a_run_is_measured_beside_its_start(train: Callable[..., Path]) -> None:
    run = train("lora: {r: 4}, dtype: float32")
    found = text_of_run(run, limit=3, options=TextOptions(samples_per_prompt=2, max_new_tokens=6, resamples=100))
    held = json.loads((run / "eval" / "text.json").read_text())
    assert held == found.to_dict()
    assert (held["kind"], held["prompts"]) == ("text", 3)
    assert found.base.completions == found.tuned.completions == 6
    assert found.base.perplexity is not None
    assert found.tuned.perplexity is not None
    assert found.base.perplexity.n == 12
    assert found.base.perplexity.value != found.tuned.perplexity.value
    assert found.base.entropy.value is not None
    assert 0 < found.base.entropy.value < 5.6  # log of the vocabulary
    assert any(line.startswith("Perplexity") for line in found.drift)
