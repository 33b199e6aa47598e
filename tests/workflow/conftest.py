"""Small finished runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.recipe import load_recipe
from prefopt.workflow import train_run
from tests.toys import pair_rows, write_rows

Train = Callable[..., Path]


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Train:
    """Return a function that trains three steps with these lines of the model section (and more), and gives the run."""
    known: dict[str, Path] = {}

    def run(options: str, model: Path = tiny_model, more: str = "") -> Path:
        key = f"{model} {options} {more}"
        if key not in known:
            folder = tmp_path_factory.mktemp("run")
            data = write_rows(folder / "pairs.jsonl", pair_rows(12))
            path = folder / "recipe.yaml"
            path.write_text(
                f"model: {{name: {model}, {options}}}\n"
                f"data: {{train: {data}, eval: {data}}}\n"
                f"train: {{output_dir: {folder / 'mine'}, examples_per_step: 6, max_steps: 3, learning_rate: 2e-2,\n"
                "  save_strategy: 'no'}\n"
                f"eval: {{samples: 0, resamples: 100}}\n{more}\n"
            )
            known[key] = train_run(load_recipe(path)).path
        return known[key]

    return run


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of four prompts."""
    rows: list[dict[str, object]] = [{"prompt": f"say {n}"} for n in range(4)]
    return str(write_rows(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows))


@pytest.fixture
def reward(tmp_path: Path) -> Path:
    """A file with a score section: the number of letters."""
    code = "def letters(attempt):\n    return sum(c.isalpha() for c in attempt.text)\n"
    (tmp_path / "own.py").write_text(code)
    path = tmp_path / "reward.yaml"
    path.write_text("score: {kind: python, function: 'own.py:letters'}\n")
    return path
