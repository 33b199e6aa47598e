"""Recipes: what they read, what they refuse and in which words, and that what is written reads back the same."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.errors import RecipeError
from prefopt.recipe import Recipe, dump_recipe, load_recipe
from prefopt.recipe.source import read, write

GOOD = """\
model:
  name: some/model
data:
  train: pairs.jsonl
loss:
  name: dpo
  beta: 0.2
train:
  output_dir: runs/one
  learning_rate: 5e-4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and its data, which is not the working directory."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    (there / "recipe.yaml").write_text(GOOD)
    (there / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    return there


def refusal(folder: Path, text: str, *overrides: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).replace(f"{folder}/", "")


def test_a_recipe_holds_what_the_file_says_and_defaults_for_the_rest(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.model.name == "some/model"
    assert recipe.loss.build().beta == 0.2
    assert (recipe.train.model_extra or {})["learning_rate"] == 5e-4
    assert recipe.reference.kind == "auto"
    assert recipe.data.eval is None


def test_compiled_layers_and_an_engine_that_lays_weights_anew_are_refused(folder: Path) -> None:
    said = refusal(folder, GOOD, "model.compile=true", "train.deepspeed={zero_optimization: {stage: 2}}")
    assert "model.compile is true and train.deepspeed is set" in said


def test_a_dumped_recipe_loads_to_an_equal_one_from_anywhere(folder: Path, tmp_path: Path) -> None:
    (folder / "held.jsonl").write_text("{}")
    recipe = load_recipe(
        folder / "recipe.yaml",
        [
            f"data.eval=[{folder}/held.jsonl]",
            "train.eval_strategy=no",
            "train.warmup_steps=0.1",
            "eval.slice_by='1e-4'",
        ],
    )
    copy = tmp_path / "elsewhere.yaml"
    copy.write_text(dump_recipe(recipe))
    again = load_recipe(copy)
    assert again == recipe
    assert (again.train.model_extra, again.eval.slice_by) == ({**(recipe.train.model_extra or {})}, "1e-4")
    assert dump_recipe(again) == dump_recipe(recipe)


def test_a_url_of_data_is_no_path_and_stays_as_it_is(folder: Path) -> None:
    urls = ("memory://room/a.jsonl", f"zip://a.jsonl::{folder}/a.zip", "zip://a.jsonl::memory://room/a.zip")
    assert load_recipe(folder / "recipe.yaml", [f"data.train=[{', '.join(urls)}]"]).data.train == urls


def test_an_archive_beside_the_recipe_is_found_from_anywhere(folder: Path) -> None:
    recipe = folder / "archive.yaml"
    recipe.write_text(GOOD.replace("pairs.jsonl", "zip://*.jsonl::a.zip"))
    assert load_recipe(recipe).data.train == f"zip://*.jsonl::{folder}/a.zip"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1_000", 1000),
        ("010", 10),
        ("0x1f", 31),
        ("1:30", "1:30"),
        ("2024-01-31", "2024-01-31"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("'5e-4'", "5e-4"),
        (".inf", math.inf),
        ("1.2.3", "1.2.3"),
        ("[1e-3, x]", [1e-3, "x"]),
    ],
)
def test_values_are_read_by_the_rules_of_yaml_1_2(folder: Path, text: str, value: object) -> None:
    (folder / "r.yaml").write_text(f"train:\n  x: {text}\n")
    found = read(folder / "r.yaml").get(("train", "x"))
    assert found == value
    assert type(found) is type(value)
    assert read(folder / "recipe.yaml", [f"train.x={text}"]).get(("train", "x")) == value


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))


@given(
    value=st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1), SCALARS | st.lists(SCALARS, max_size=3), max_size=4
    )
)
def test_every_written_value_reads_back_as_itself(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_bytes(write({"train": value}).encode())
    found = read(path).get(("train",))
    assert found == value
    assert json.dumps(found) == json.dumps(value)  # 1, 1.0 and True are equal in Python, and not in YAML


def test_an_override_replaces_a_value_and_is_read_as_yaml(folder: Path) -> None:
    recipe = load_recipe(
        folder / "recipe.yaml",
        ["train.learning_rate=1e-5", "loss=ipo", "loss.beta=0.3", "model.lora.r=8", "reference.model=another/model"],
    )
    assert (recipe.train.model_extra or {})["learning_rate"] == 1e-5
    assert (recipe.loss.name, recipe.loss.build().beta) == ("ipo", 0.3)
    assert recipe.model.lora is not None
    assert recipe.model.lora.r == 8
    assert (recipe.reference.kind, recipe.reference.model) == ("model", "another/model")


def test_a_hyper_parameter_can_be_overridden_where_the_loss_is_one_word(folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text("model: some/model\ndata: {train: pairs.jsonl}\nloss: ipo\ntrain: {output_dir: out}\n")
    recipe = load_recipe(path, ["loss.beta=0.7"])
    assert (recipe.model.name, recipe.loss.name, recipe.loss.build().beta) == ("some/model", "ipo", 0.7)


def test_inputs_count_from_the_recipe_and_outputs_and_overrides_from_the_working_directory(folder: Path) -> None:
    here = Path.cwd()
    (here / "mine.jsonl").write_text("{}")
    (folder / "a-model").mkdir()
    path = folder / "recipe.yaml"
    path.write_text(GOOD.replace("some/model", "./a-model").replace("pairs.jsonl", "../there/pairs.jsonl"))
    recipe = load_recipe(path)
    assert recipe.data.train == str(folder / "pairs.jsonl")
    assert recipe.model.name == str(folder / "a-model")
    assert recipe.train.output_dir == here / "runs/one"
    assert load_recipe(path, ["data.train=mine.jsonl"]).data.train == str(here / "mine.jsonl")
    assert load_recipe(path, ["data.train=[mine.jsonl]"]).data.train == (str(here / "mine.jsonl"),)


def test_names_on_the_hub_stay_names(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml", ["data.train=org/preferences", "reference.model=org/other"])
    assert (recipe.data.train, recipe.model.name, recipe.reference.model) == (
        "org/preferences",
        "some/model",
        "org/other",
    )


def test_a_recipe_of_a_moved_run_loads_without_its_data(folder: Path) -> None:
    (folder / "pairs.jsonl").unlink()
    assert load_recipe(folder / "recipe.yaml", check_files=False).data.train == str(folder / "pairs.jsonl")


REFUSED = {
    "an unknown key": (
        ("  name: some/model", "  name: some/model\n  dtpye: float32"),
        "recipe.yaml:3: model.dtpye is not a setting; model takes name, revision, dtype,",
        "did you mean 'dtype'?",
    ),
    "an unknown section": (
        ("model:", "modle: {}\nmodel:"),
        "recipe.yaml:1: a recipe has no section modle; it has",
        "did you mean 'model'?",
    ),
    "a word that is not one of a few": (
        ("  name: some/model", "  name: some/model\n  dtype: bfloat"),
        "recipe.yaml:3: model.dtype is \"bfloat\"; it must be 'auto', 'bfloat16',",
        "did you mean 'bfloat16'?",
    ),
    "text for a number": (
        ("pairs.jsonl", "pairs.jsonl\n  max_length: long"),
        'recipe.yaml:5: data.max_length is "long"; it must be a whole number.',
        "",
    ),
    "a number out of range": (
        ("pairs.jsonl", "pairs.jsonl\n  max_rejected: 2"),
        "recipe.yaml:5: data.max_rejected is 2; it must be at most 1",
        "",
    ),
    "a value for a section": (
        ("\ntrain:", "\neval: 7\ntrain:"),
        "recipe.yaml:8: eval is 7; it must be a section of keys.",
        "",
    ),
    "a missing key": (
        ("  name: some/model", "  dtype: float32"),
        "recipe.yaml:1: model.name is missing: ",
        "; add it.",
    ),
    "a missing section": (("model:\n  name: some/model\n", ""), "recipe.yaml: the section model is missing: ", ""),
    "beta of zero": (
        ("0.2", "0"),
        "recipe.yaml:7: loss.beta: beta = 0 is not allowed for the loss dpo: it must be a number greater than 0.",
        "",
    ),
    "an unknown loss": (
        ("name: dpo", "name: dop"),
        "recipe.yaml:5: loss: There is no loss named 'dop': choose alphapo, ",
        "did you mean 'dpo'?",
    ),
    "an unknown hyper-parameter": (
        ("beta", "bta"),
        "recipe.yaml:7: loss.bta: The loss dpo has no hyper-parameter 'bta'",
        "did you mean 'beta'?",
    ),
    "an unknown training argument": (
        ("learning_rate", "learning_rat"),
        "recipe.yaml:10: train.learning_rat is neither",
        "did you mean 'learning_rate'?",
    ),
    "an argument that prefopt owns": (
        ("learning_rate: 5e-4", "gradient_accumulation_steps: 4"),
        "recipe.yaml:10: train.gradient_accumulation_steps can't be set here: write train.token_budget",
        "",
    ),
    "an unknown LoRA setting": (
        ("  name: some/model", "  name: some/model\n  lora: {rnak: 3}"),
        "recipe.yaml:3: model.lora.rnak: 'rnak' is neither one of r, alpha,",
        "",
    ),
    "a missing file": (
        ("pairs.jsonl", "pears.jsonl"),
        "recipe.yaml:4: data.train: there is no pears.jsonl; did you mean 'pairs.jsonl'?",
        "",
    ),
    "a glob without a match": (
        ("pairs.jsonl", "'*.parquet'"),
        "recipe.yaml:4: data.train: no file matches *.parquet.",
        "",
    ),
    "a missing model folder": (("some/model", "./model"), "recipe.yaml:2: model.name: there is no model", ""),
    "a reference that the loss needs": (
        ("\ntrain:", "\nreference: none\ntrain:"),
        "recipe.yaml:8: reference.kind is none, but the loss dpo compares the policy with a reference; ",
        "write reference: auto, or choose a loss that needs none.",
    ),
    "an adapter to switch off where there is none": (
        ("  name: some/model", "  name: some/model\n  lora: null\nreference: adapter_off"),
        "recipe.yaml:4: reference.kind is adapter_off, but model.lora is null",
        "",
    ),
    "weights in parts and a reference that moves": (
        ("5e-4", "5e-4\n  shard_weights: true\nreference: {kind: moving, every: 2}"),
        "recipe.yaml:12: reference.kind is moving and train.shard_weights is true",
        "leave one of the two out.",
    ),
    "weights in parts and a reference that is looked up": (
        ("5e-4", "5e-4\n  shard_weights: true\nreference: {cache: true}"),
        "recipe.yaml:12: reference.cache is true and train.shard_weights is true",
        "leave one of the two out.",
    ),
    "a missing configuration of DeepSpeed": (
        ("5e-4", "5e-4\n  deepspeed: zero.json"),
        "recipe.yaml:11: train.deepspeed: there is no",
        "",
    ),
    "evaluation without data": (
        ("5e-4", "5e-4\n  eval_strategy: steps"),
        "recipe.yaml:11: train.eval_strategy is steps, but there is no data.eval",
        "",
    ),
    "slices without data": (
        ("\ntrain:", "\neval: {human: agreement}\ntrain:"),
        "recipe.yaml:8: eval.human",
        "there is no data.eval",
    ),
    "a key that stands twice": (
        ("\ntrain:", "\nmodel: {}\ntrain:"),
        "recipe.yaml:8: model stands twice (first on line 1); remove one of them.",
        "",
    ),
    "a tab": (
        ("  output_dir", "\toutput_dir"),
        "recipe.yaml:9:1: this is not YAML: ",
        "(indent with spaces, not tabs).",
    ),
    "an open bracket": (("pairs.jsonl", "[pairs.jsonl"), "recipe.yaml:5:5: this is not YAML: ", ""),
    "a Python object": (
        ("0.2", "!!python/object:os.system {}"),
        "recipe.yaml:7:9: this is not YAML: could not determine a constructor",
        "",
    ),
    "a key that is a number": (("beta:", "7:"), "recipe.yaml:7: keys are words, and '7' is none.", ""),
    "a section that contains itself": (
        ("beta: 0.2", "beta: &b\n    c: *b"),
        "recipe.yaml:",
        "contains itself through an alias.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_recipe_is_refused_in_one_sentence_with_its_place(folder: Path, case: str) -> None:
    (old, new), start, end = REFUSED[case]
    assert old in GOOD
    message = refusal(folder, GOOD.replace(old, new, 1))
    assert message.startswith(start)
    assert end in message
    assert "\n" not in message
    assert message[-1] in ".?"


def test_every_mistake_is_named_on_a_line_of_its_own(folder: Path) -> None:
    text = GOOD.replace("name: some/model", "name: some/model\n  dtpye: x\n  dtype: y").replace("0.2", "-1")
    lines = refusal(folder, text).splitlines()
    assert [line.split(" ")[0] for line in sorted(lines)] == ["recipe.yaml:3:", "recipe.yaml:4:", "recipe.yaml:9:"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.beta=-1", "override 'loss.beta=-1': loss.beta: beta = -1 is not allowed"),
        ("train.max_step=3", "override 'train.max_step=3': train.max_step is neither"),
        ("data.train=pair.jsonl", "override 'data.train=pair.jsonl': data.train: there is no "),
        ("reference=none", "override 'reference=none': reference.kind is none, but the loss dpo"),
        ("model.name.x=1", "override 'model.name.x=1': model.name is 'some/model', a value and not a section"),
        ("train.learning_rate", "override 'train.learning_rate' is not of the form section.key=value"),
        ("train..x=1", "override 'train..x=1' is not of the form section.key=value"),
        ("eval.samples=[1", "override 'eval.samples=[1': the value is not YAML"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_typed(folder: Path, override: str, message: str) -> None:
    assert refusal(folder, GOOD, override).startswith(message)


def test_a_file_in_the_working_directory_is_pointed_out_and_not_taken(folder: Path) -> None:
    (Path.cwd() / "local.jsonl").write_text("{}")
    message = refusal(folder, GOOD.replace("pairs.jsonl", "local.jsonl"))
    assert message.endswith("count from the recipe's folder: write ../here/local.jsonl.")


def test_a_recipe_that_is_not_there_names_a_near_one(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"There is no recipe .*recipes\.yaml; did you mean '.*recipe\.yaml'\?"):
        load_recipe(folder / "recipes.yaml")
    with pytest.raises(RecipeError, match="is a directory; name the recipe file itself"):
        load_recipe(folder)


def test_files_that_are_no_recipes_are_refused(folder: Path) -> None:
    assert refusal(folder, "- a\n- b\n") == (
        "recipe.yaml holds a list, not sections; a recipe starts like `model:`, `data:`, `train:`."
    )
    assert "the section model is missing" in refusal(folder, "")
    (folder / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        load_recipe(folder / "recipe.yaml")


def test_a_recipe_made_in_python_is_checked_the_same_way() -> None:
    sections = {"model": {"name": "m"}, "data": {"train": "org/d"}, "train": {"output_dir": "o"}}
    assert Recipe.model_validate(sections).loss.name == "dpo"
    with pytest.raises(RecipeError, match=r"reference\.kind is none, but the loss dpo"):
        Recipe.model_validate({**sections, "reference": "none"})
