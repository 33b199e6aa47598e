"""A tiny task for rounds: byte-level prompts, and a reward that a random model earns in part."""

from __future__ import annotations

import json
from pathlib import Path

from prefopt.rounds.files import bytes_hash
from prefopt.rounds.stage import read_manifest

SCORER = '''
def letters(attempt):
    """The share of letters in an answer."""
    return sum(c.isascii() and c.isalpha() for c in attempt.text) / max(1, len(attempt.text))


def spoken(attempt):
    if not letters(attempt):
        raise ValueError("nothing was said")
    return letters(attempt)
'''

RECIPE = """
model: {{name: {model}, dtype: float32, lora: {{r: 4, alpha: 8}}}}
prompts: {{train: prompts.jsonl, eval: held_out.jsonl}}
sample: {{n: 4, max_new_tokens: 6}}
score: {{kind: python, function: "scorer.py:letters", low: 0, high: 1}}
select: {{selector: best_vs_worst}}
loss: {{name: dpo, beta: 0.1}}
reference: {{cache: false}}
train:
  output_dir: {run}
  examples_per_step: 4
  num_train_epochs: 2
  learning_rate: 5e-3
  lr_scheduler_type: constant
  save_strategy: steps
  save_steps: 2
rounds: {{count: {count}, shard: 3}}
eval: {{n: 2, resamples: 100, correct: 0.5}}
"""


def write_task(folder: Path, model: Path, run: str = "run", *, count: int = 2) -> Path:
    """Write prompts, scorer and recipe into a folder; returns the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, first, size in (("prompts", 0, 8), ("held_out", 100, 4)):
        rows = [{"prompt": f"say {number}", "answer": str(number)} for number in range(first, first + size)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "scorer.py").write_text(SCORER)
    path = folder / f"{run}.yaml"
    path.write_text(RECIPE.format(model=model, run=folder / run, count=count))
    return path


def contents(run: Path) -> dict[str, str]:
    """Return the content hash of everything that a run made: stage and file -> hash."""
    found = {}
    for path in sorted(run.glob("*/*.json")):
        if path.name == "metrics.json":
            continue
        manifest = read_manifest(path)
        assert manifest is not None, path
        for name, output in manifest.outputs.items():
            assert bytes_hash(path.parent / name) == output.bytes, "what the manifest speaks of lies there"
            found[f"{path.parent.name}/{path.stem}/{name}"] = output.content
    return found
