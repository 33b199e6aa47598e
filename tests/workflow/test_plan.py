"""`prefopt plan` on recipes: from a configuration alone, with the data's own lengths, and with advice that helps."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from prefopt.errors import ModelError, RecipeError
from prefopt.losses import build
from prefopt.models.plan.machine import GIB
from prefopt.recipe import load_recipe
from prefopt.train.arguments import PreferenceArguments
from prefopt.workflow import train_run
from prefopt.workflow.advice import changes
from prefopt.workflow.lengths import filled, shaped
from prefopt.workflow.plan import plan_recipe, prepare
from prefopt.workflow.plan_table import SIZES, WAYS, budgets, known_models
from tests.toys import pair_rows, write_rows

LLAMA_70B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
EACH = 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192
"""Weights of a layer: query and output, key and value, the MLP, two norms."""
ADAPTER = 16 * (4 * 8192 + 2 * (8192 + 1024) + 3 * (8192 + 28672))
"""Of rank 16 on each of its seven matrices."""


@pytest.fixture
def write(tmp_path: Path):
    """Writes a recipe of a model and returns it loaded."""
    write_rows(tmp_path / "pairs.jsonl", pair_rows(24))

    def recipe(model: Path, *overrides: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"model: {model}\ndata: {{train: {tmp_path}/pairs.jsonl}}\ntrain: {{output_dir: run}}\n")
        return load_recipe(path, overrides)

    return recipe


@pytest.fixture
def llama_70b(tmp_path: Path) -> Path:
    folder = tmp_path / "llama-70b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_70B))
    return folder


def test_a_model_of_70_billion_weights_is_planned_from_its_configuration_alone(write, llama_70b) -> None:
    plan = plan_recipe(write(llama_70b), gpu="h200", tokens_per_example=600, search=False)
    whole = 2 * 128256 * 8192 + 80 * EACH + 8192
    assert plan.trainable == 80 * ADAPTER
    assert plan.parameters == whole + 80 * ADAPTER
    assert plan.parts.weights == 2 * whole
    assert plan.parts.trained == plan.parts.gradients == 4 * 80 * ADAPTER
    assert plan.parts.optimizer == 8 * 80 * ADAPTER
    assert plan.parts.reference == 0
    # A product with every weight forward for reference and policy, and one back to the inputs.
    least = 2 * plan.step_tokens * 80 * EACH * 3
    assert least < plan.step_flops < 1.1 * least
    assert plan.step_flops / (989.4e12 * 0.75) < plan.step_seconds < 3 * plan.step_flops / (989.4e12 * 0.75)


def test_without_a_tokenizer_lengths_are_guessed_and_the_plan_says_so(write, llama_70b) -> None:
    footprint, _, notes = prepare(write(llama_70b), memory="80GB")
    assert footprint.lengths.source == "examples of 512 tokens"
    assert "The data was not looked at" in notes[0]


def test_lengths_are_those_of_the_data(write, tiny_model) -> None:
    footprint, _, notes = prepare(write(tiny_model, "train.examples_per_step=8"), memory="8GB")
    groups = footprint.lengths.groups
    assert not notes
    assert footprint.lengths.steps_per_epoch == 3
    assert sum(len(group.pairs) for group in groups) == 24
    assert footprint.lengths.step_tokens == pytest.approx(sum(group.tokens for group in groups) / 3)
    assert footprint.lengths.longest_step >= footprint.lengths.step_tokens


def test_a_pack_is_filled_to_the_token() -> None:
    for loss in ("dpo", "kto", "plackett_luce", "sft"):
        group = shaped(build(loss), 90)
        assert group.tokens <= 90
        for tokens in (7, 90, 91, 1000):
            assert tokens - 3 <= sum(g.tokens for g in filled([group], tokens)) <= tokens + 4


def test_the_largest_budget_fits_and_the_next_does_not(write, tiny_model) -> None:
    footprint, _, _ = prepare(write(tiny_model, "train.examples_per_step=64"), memory="1GB", tokens_per_example=256)
    room = (footprint.total(1024) + footprint.total(2048)) / 2
    found = footprint.largest_budget(room)
    assert 1024 <= found < 2048
    assert footprint.total(found) <= room < footprint.total(found + 128)
    assert footprint.largest_budget(footprint.total(256) - 1) is None
    # A budget beyond the longest step has no point.
    assert footprint.largest_budget(1e12) == 64 * 256


def test_what_does_not_fit_comes_with_changes_that_lose_the_least_first(write, llama_70b) -> None:
    # Eight layers of it on a small card.
    (llama_70b / "config.json").write_text(json.dumps(LLAMA_70B | {"num_hidden_layers": 8}))
    plan = plan_recipe(write(llama_70b), memory="12GB", tokens_per_example=600)
    assert not plan.fits
    assert plan.largest_budget is None
    *steps, last = plan.advice
    assert [advice.fits for advice in steps] == [False] * len(steps)
    assert last.fits
    assert last.total <= 12 * GIB
    assert "model.quantization=nf4" in last.overrides
    assert last.overrides.index("train.activation_checkpointing=true") < last.overrides.index("model.quantization=nf4")
    smaller = write(llama_70b, *last.overrides)
    assert plan_recipe(smaller, memory="12GB", tokens_per_example=600, search=False).fits


def test_a_smaller_budget_is_advised_before_anything_else(write, tiny_model) -> None:
    recipe = write(tiny_model, "train.examples_per_step=64", "train.token_budget=16384")
    footprint, machine, _ = prepare(recipe, memory="1GB", tokens_per_example=256)
    needed = (footprint.total(4096) + machine.context) / 0.94
    plan = plan_recipe(recipe, memory=f"{int(needed / 2**20) + 1}MB", tokens_per_example=256)
    assert not plan.fits
    [advice] = plan.advice
    assert advice.overrides == (f"train.token_budget={plan.largest_budget}",)
    assert 4096 <= plan.largest_budget < 4800


def test_full_fine_tuning_holds_gradients_two_states_and_a_reference(write, tiny_model) -> None:
    full = plan_recipe(write(tiny_model, "model.lora=null"), memory="8GB", search=False)
    assert full.trainable == full.parameters
    assert full.parts.weights == 0
    assert full.parts.trained == full.parts.gradients == full.parts.reference == 4 * full.parameters
    assert full.parts.optimizer == 8 * full.parameters


def test_another_model_as_reference_is_weighed(write, tiny_model) -> None:
    footprint, _, _ = prepare(write(tiny_model, f"reference.model={tiny_model}"), memory="8GB")
    lora = footprint.weights
    assert footprint.reference_bytes == 2 * (lora.parameters - lora.trainable)
    elsewhere = write(tiny_model, f"reference.model={tiny_model}", "reference.device=cpu")
    assert prepare(elsewhere, memory="8GB")[0].reference_bytes == 0


def test_auto_is_planned_as_the_largest_budget(write, tiny_model) -> None:
    plan = plan_recipe(write(tiny_model, "train.token_budget=auto"), memory="8GB", tokens_per_example=128)
    assert plan.token_budget == plan.largest_budget == 32 * 128


def test_no_configuration_is_a_sentence(write, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        plan_recipe(write(tmp_path / "empty"), memory="8GB")


@pytest.mark.soak
def test_the_table_grows_with_the_card_and_shrinks_with_the_way() -> None:
    values = known_models()["Llama 3.1 8B"]
    found = {way: [budget or 0 for budget in budgets(values, way)] for way in WAYS}
    assert all(row == sorted(row) and len(row) == len(SIZES) for row in found.values())
    assert found["LoRA bf16"][3] > 0  # 15 GiB of weights on 24 GiB
    assert found["LoRA bf16"][2] == 0  # and not on 16
    assert found["QLoRA nf4, checkpoints"][1] > 0
    assert found["full bf16, checkpoints"][-1] == 0  # 8 billion weights, five times in 16 bits


def test_a_reference_is_weighed_as_it_is_stored(write, tiny_model) -> None:
    named = f"reference.model={tiny_model}"
    whole = prepare(write(tiny_model, named), memory="8GB")[0].reference_bytes
    stored = prepare(write(tiny_model, named, "reference.quantization=nf4"), memory="8GB")[0].reference_bytes
    layers, largest = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64), 32 * 64
    assert whole - stored == pytest.approx(layers * (2 - 4.5 / 8) - 2 * largest, abs=16)


@pytest.mark.parametrize("setting", ["use_dora=true", "init_lora_weights=pissa", "modules_to_save=[lm_head]"])
def test_auto_takes_a_copy_of_an_adapter_that_is_not_nothing_at_first(write, tiny_model, setting) -> None:
    plain, other = (prepare(write(tiny_model, *own), memory="8GB")[0] for own in ([], [f"model.lora.{setting}"]))
    assert plain.reference_bytes == 0
    assert other.reference_bytes == other.weights.trainable_bytes > 0


def test_auto_takes_a_copy_of_an_adapter_of_another_kind(write, tiny_model) -> None:
    footprint, _, _ = prepare(write(tiny_model, "model.peft={peft_type: IA3}"), memory="8GB")
    assert footprint.reference_bytes == footprint.weights.trainable_bytes > 0


def test_a_reference_beside_the_policy_is_weighed_however_its_device_is_written(write, tiny_model, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for device in ("auto", "cpu", "cpu:0"):
        recipe = write(tiny_model, f"reference={{model: {tiny_model}, device: '{device}'}}")
        assert prepare(recipe)[0].reference_bytes > 0
    for device, beside in (("cuda", True), ("cuda:0", True), ("cuda:1", False), ("cpu", False)):
        recipe = write(tiny_model, f"reference={{model: {tiny_model}, device: '{device}'}}")
        assert (prepare(recipe, memory="8GB")[0].reference_bytes > 0) == beside


@pytest.mark.parametrize(
    "settings",
    [
        ("model.lora=null", "reference={kind: moving, every: 2}"),
        ("model.lora=null", "model.freeze=[embeddings]"),
        ("model.lora=null", "reference=frozen_copy"),
        ("model.lora=null", "train.shard_weights=true"),
        ("loss=tdpo", "model.lora=null"),
        ("model.lora.r=4", "reference=frozen_copy"),
    ],
)
def test_every_advice_is_a_recipe_that_loads(write, tiny_model, settings) -> None:
    footprint, _, _ = prepare(write(tiny_model, *settings), memory="8GB", tokens_per_example=64)
    overrides = settings
    for _, further, change in changes(footprint):
        overrides = (*overrides, *further)
        recipe, footprint = write(tiny_model, *overrides), change(footprint)
        recipe.train.arguments()
        assert recipe.model.lora == footprint.policy.config.lora
        assert recipe.reference.kind == footprint.recipe.reference.kind
    assert "train.activation_checkpointing=true" in overrides


def test_a_plan_of_weights_in_parts_says_that_it_is_for_one_process(write, tiny_model) -> None:
    _, _, notes = prepare(write(tiny_model, "train.shard_weights=true"), memory="8GB")
    assert any("train.shard_weights" in note for note in notes)


def test_a_plan_with_deepspeed_says_what_each_process_holds_instead(write, tiny_model) -> None:
    recipe = write(tiny_model, "train.deepspeed={zero_optimization: {stage: 2}}", "model.lora=null")
    _, _, notes = prepare(recipe, memory="8GB")
    assert any("train.deepspeed" in note and "float32 copy" in note for note in notes)


def test_a_run_that_cant_be_planned_begins_with_the_default_budget(write, tiny_model, tmp_path) -> None:
    own = ["model.peft={peft_type: SHIRA, r: 2}", "model.dtype=float32", "train.token_budget=auto", "eval.samples=0"]
    console = Console(file=io.StringIO(), width=300)
    steps = ["train.max_steps=1", "train.examples_per_step=4", f"train.output_dir={tmp_path}/run"]
    train_run(write(tiny_model, *own, *steps), console=console)
    said = console.file.getvalue()
    assert "this run can't be planned (" in said
    assert "for a token budget begins with 4,096" in said


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_gpu_is_planned_for_whatever_this_machine_has(write, tiny_model, monkeypatch, gpus) -> None:
    # What transformers finds on a machine with so many: without a CPU asked for, these settings are refused.
    monkeypatch.setattr(PreferenceArguments, "n_gpu", property(lambda args: 0 if args.use_cpu else gpus))
    for setting in ("fp16", "bf16", "activation_offload", "tf32"):
        recipe = write(tiny_model, f"train.{setting}=true")
        footprint, _, notes = prepare(recipe, gpu="4090", tokens_per_example=64)
        assert (footprint.args.fp16, footprint.args.bf16) == (setting == "fp16", setting == "bf16")
        assert any("offloaded" in note for note in notes) == (setting == "activation_offload")
        assert recipe.train.activation_offload == (setting == "activation_offload")
    with pytest.raises(RecipeError, match="both true"):
        prepare(write(tiny_model, "train.fp16=true", "train.bf16=true"), gpu="4090")
