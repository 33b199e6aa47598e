"""What the documentation shows is true: its recipes load, its Python runs, its keys and links exist."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from prefopt.data import DataOptions
from prefopt.data.config import DataConfig
from prefopt.data.formats import FIELDS, SCHEMAS, TRAINABLE, recognise
from prefopt.eval.config import EvalConfig
from prefopt.losses import available
from prefopt.losses.catalogue import catalogue
from prefopt.models import PeftSection
from prefopt.models.config import LoraSection, ModelConfig, QuantizationSection, TokenizerSection
from prefopt.models.reference_config import ReferenceConfig
from prefopt.recipe import load_recipe
from prefopt.rounds.config import PromptsConfig, RationaliseSection, RoundsConfig, RoundsEvalConfig, StopSection
from prefopt.train.config import AlarmConfig, TrainConfig
from tests.toys import pair_rows

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "recipes/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(language: str) -> Iterator[object]:
    for page in PAGES:
        found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for number, text in enumerate(found):
            yield pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user: pairs to train on, pairs held out, a recipe with a tiny model."""
    for name, count in (("pairs.jsonl", 8), ("held_out.jsonl", 4)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in pair_rows(count)))
    (tmp_path / "recipe.yaml").write_text(
        f"model: {tiny_model}\ndata: {{train: pairs.jsonl, eval: held_out.jsonl}}\n"
        "train: {output_dir: run, max_steps: 1, examples_per_step: 4}\n"
        "eval: {samples: 1, max_new_tokens: 2, resamples: 100}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_recipe_in_the_documentation_loads(folder: Path, text: str) -> None:
    (folder / "shown.yaml").write_text(text)
    assert load_recipe(folder / "shown.yaml").model.name == MODEL


@pytest.mark.parametrize("text", blocks("python"))
def test_python_in_the_documentation_runs(folder: Path, tiny_model: Path, text: str) -> None:
    assert "max_steps=50" in text or "PreferenceArguments" not in text
    exec(compile(text.replace(MODEL, str(tiny_model)).replace("max_steps=50", "max_steps=1"), "shown", "exec"), {})


def test_the_python_of_the_readme_is_short_and_whole() -> None:
    [text] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(text.splitlines()) <= 15
    assert {"load_policy", "load_preferences", "PreferenceTrainer"} <= {
        node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)
    }


def test_every_key_of_a_recipe_is_documented_and_no_other() -> None:
    sections: dict[str, type[BaseModel]] = {
        "model": ModelConfig,
        "model.lora": LoraSection,
        "model.peft": PeftSection,
        "model.quantization": QuantizationSection,
        "model.tokenizer": TokenizerSection,
        "data": DataConfig,
        "reference": ReferenceConfig,
        "train": TrainConfig,
        "alarms": AlarmConfig,
        "eval": EvalConfig,
    }
    keys = {f"{name}.{key}" for name, section in sections.items() for key in section.model_fields} - set(sections)
    shown = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs/recipe.md").read_text(), flags=re.MULTILINE)
    assert sorted(shown) == sorted(keys)


def test_every_key_of_rounds_is_documented_and_no_other() -> None:
    sections: dict[str, type[BaseModel]] = {
        "prompts": PromptsConfig,
        "rounds": RoundsConfig,
        "rounds.rationalise": RationaliseSection,
        "rounds.stop": StopSection,
        "eval": RoundsEvalConfig,
    }
    keys = {f"{name}.{key}" for name, section in sections.items() for key in section.model_fields} - set(sections)
    shown = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs/rounds.md").read_text(), flags=re.MULTILINE)
    assert sorted(name for name in shown if name.startswith(("prompts.", "rounds.", "eval."))) == sorted(keys)


def test_every_format_is_documented_with_its_columns_and_a_row_that_is_one() -> None:
    page = (ROOT / "docs/data.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| `(\{.*\})`", page, flags=re.MULTILINE)
    assert [name for name, _, _ in rows] == [name for name in TRAINABLE if name in FIELDS]
    for name, columns, row in rows:
        assert recognise([json.loads(row)], DataOptions(), source="docs").name == name
        assert columns == ", ".join(FIELDS[name])


def test_every_published_schema_is_documented_with_its_columns_and_what_it_becomes() -> None:
    page = (ROOT / "docs/data.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| (\w+) \| ", page, flags=re.MULTILINE)
    assert [name for name, _, _ in rows] == list(SCHEMAS)
    for name, columns, becomes in rows:
        assert tuple(columns.split(", ")) in SCHEMAS[name].spellings(DataOptions())
        assert becomes == SCHEMAS[name].becomes


def test_every_loss_is_documented_with_its_defaults_its_paper_and_what_it_needs() -> None:
    page = (ROOT / "docs/losses.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| `", page, flags=re.MULTILINE)
    shown = {name: (data, hyper) for name, data, hyper in rows}
    assert shown.keys() == available().keys()
    for entry in catalogue():
        data = entry.data if entry.needs_reference else f"{entry.data}, no reference"
        hyper = ", ".join(
            f"`{key}` {value if isinstance(value, str) else json.dumps(value).removesuffix('.0')}"
            for key, value in entry.hyper.items()
        )
        assert shown[entry.name] == (data, hyper or "none")
        assert entry.paper[:16] in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "name",
    sorted(
        str(path.relative_to(ROOT / "recipes"))
        for path in (ROOT / "recipes").rglob("*.yaml")
        if path.parent.name != "rounds"  # which tests/rounds runs
    ),
)
def test_a_recipe_that_ships_runs(name: str, folder: Path, tiny_model: Path) -> None:
    from prefopt.workflow import train_run

    recipe = load_recipe(
        ROOT / "recipes" / name,
        [
            f"model.name={tiny_model}",
            "train.output_dir=out",
            "train.max_steps=1",
            "eval.samples=1",
            "eval.max_new_tokens=4",
            "eval.resamples=100",
        ],
    )
    result = train_run(recipe)
    assert result.path == folder / "out"
    assert len((folder / "out/metrics.jsonl").read_text().splitlines()) >= 1
