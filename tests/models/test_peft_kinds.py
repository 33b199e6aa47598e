"""Every kind of adapter that a recipe may name: packed as apart, its reference, and its way to disk and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import prefopt
from prefopt.errors import ModelError
from prefopt.models import ModelConfig, PackedModel
from prefopt.models.adapters import adapter_disabled, save_weights
from prefopt.models.peft_section import KINDS, OVER_QUANTIZED
from prefopt.models.quantization import dense_weight, quantized_layers
from prefopt.models.references import build_reference
from prefopt.recipe import load_recipe
from prefopt.workflow import eval_pairs_run, train_run
from tests.models.loading import load
from tests.models.stepping import distance, packs_of, shake, step
from tests.toys import pair_rows, write_rows

PLACES = {"target_modules": ["q_proj", "o_proj"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "BOFT": {"boft_block_size": 4, **PLACES},
    "C3A": {"block_size": 8, **PLACES},
    "DELORA": {"r": 4, **PLACES},
    "FOURIERFT": {"n_frequency": 20, **PLACES},
    "GRALORA": {"r": 4, "gralora_k": 2, **PLACES},
    "HIRA": {"r": 4, **PLACES},
    "HRA": {"r": 4, **PLACES},
    "IA3": {},
    "LN_TUNING": {},
    "LOHA": {"r": 4, **PLACES},
    "LOKR": {"r": 4, **PLACES},
    "MISS": {"r": 4, **PLACES},
    "OFT": {"oft_block_size": 4, "r": 0, **PLACES},
    "RANDLORA": {"r": 4, **PLACES},
    "ROAD": {"group_size": 8, **PLACES},
    "SHIRA": {"r": 2, **PLACES},
    "VBLORA": {"num_vectors": 16, "vector_length": 8, "r": 2, "topk": 2, **PLACES},
    "VERA": {"r": 4, **PLACES},
}
LORA: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA by iterations": {"init_lora_weights": "pissa_niter_4"},
    "OLoRA": {"init_lora_weights": "olora"},
    "a head that trains whole": {"modules_to_save": ["lm_head"], **PLACES},
    "some layers": {"layers_to_transform": [1], "rank_pattern": {"q_proj": 2}, **PLACES},
}
EVERY = [
    *({"peft": {"peft_type": kind, **more}} for kind, more in SETTINGS.items()),
    *({"lora": {"r": 4, **more}} for more in LORA.values()),
]
NAMES = [*SETTINGS, *LORA]


def apart(model: Any, tokenizer: Any) -> Tensor:
    """Return the completions' log-probs by passes of one sequence each over full logits."""
    found = []
    for example in prefopt.load_preferences(pair_rows(4), tokenizer):
        for completion in example.completions:
            tokens = torch.tensor([[*example.prompt, *completion]])
            logits = model(input_ids=tokens, use_cache=False).logits[0, len(example.prompt) - 1 : -1]
            found.append(logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum())
    return torch.stack(found)


def gradient(value: Tensor, model: Any) -> Tensor:
    model.zero_grad()
    value.backward()
    found = [p.grad for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten().double() for g in found if g is not None])


def test_every_kind_is_tried() -> None:
    assert SETTINGS.keys() == KINDS


@pytest.mark.parametrize("options", EVERY, ids=NAMES)
def test_an_adapter_computes_packed_what_it_computes_apart(tiny_model: Path, tmp_path: Path, options: Any) -> None:
    policy, tokenizer = load(tiny_model, **options)
    packed = PackedModel(policy)
    assert packed.admission.shared
    reference = build_reference("auto", packed, needed=True)
    nothing_yet = [{"r": 4, **LORA[name]} for name in ("rsLoRA", "some layers")]
    assert reference.name == ("adapter_off" if options.get("lora") in nothing_yet else "frozen_copy")
    with torch.no_grad():
        start = apart(policy, tokenizer)
    assert step(policy, tokenizer, reference="auto")[0].first_log_ratio == 0.0

    shake(policy)
    _, packs = packs_of(tokenizer, packed)
    with packed.attached():
        together = torch.cat([packed.logprobs(pack) for pack in packs])
        found = gradient(together.sum(), policy)
    separate = apart(policy, tokenizer)
    assert distance(together.sort()[0].detach(), separate.sort()[0].detach()) < 1e-6
    assert distance(found, gradient(separate.sum(), policy)) < 1e-5
    with reference.attached():  # the policy as it was
        frozen = torch.cat([reference.logprobs(pack) for pack in packs])
    assert distance(frozen.sort()[0], start.sort()[0]) < 1e-6

    save_weights(policy, tmp_path)
    again, _ = load(tiny_model, adapter=str(tmp_path))
    assert distance(apart(again, tokenizer).detach(), separate.detach()) < 1e-7
    assert sum(p.numel() for p in again.parameters() if p.requires_grad) == sum(
        p.numel() for p in policy.parameters() if p.requires_grad
    )
    assert build_reference("auto", PackedModel(again), needed=True).name == "frozen_copy"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_base_is_the_original_model_with_an_adapter_of_any_kind_off(tiny_model: Path, kind: str) -> None:
    base, tokenizer = load(tiny_model, trainable=False)
    policy, _ = load(tiny_model, peft={"peft_type": kind, **SETTINGS[kind]})
    shake(policy)
    with torch.no_grad(), adapter_disabled(policy):
        assert torch.equal(apart(policy, tokenizer), apart(base, tokenizer))


@pytest.mark.parametrize("kind", sorted(OVER_QUANTIZED))
@pytest.mark.parametrize("quantization", ["nf4", pytest.param("int8", marks=pytest.mark.soak)])
def test_an_adapter_on_quantized_weights_has_the_gradients_of_one_on_the_same_weights_unpacked(
    tiny_model: Path, kind: str, quantization: str
) -> None:
    section = {"peft_type": kind, **SETTINGS[kind]}
    policy, tokenizer = load(tiny_model, peft=section, quantization=quantization)
    dense, _ = load(tiny_model, peft=section)
    plain = dict(dense.named_modules())
    with torch.no_grad():
        for name, layer in quantized_layers(policy):
            plain[name].weight.copy_(dense_weight(layer))
    expected = step(shake(dense), tokenizer)[1]
    assert distance(step(shake(policy), tokenizer)[1], expected) < 1e-5


def test_dora_on_eight_bits_is_dora_on_the_unpacked_weights_and_on_four_it_is_refused_here(tiny_model: Path) -> None:
    policy, tokenizer = load(tiny_model, lora={"r": 4, "use_dora": True}, quantization="int8")
    dense, _ = load(tiny_model, trainable=False)
    plain = dict(dense.named_modules())
    with torch.no_grad():
        for name, layer in quantized_layers(policy):
            plain[name.removeprefix("base_model.model.").replace(".base_layer", "")].weight.copy_(dense_weight(layer))
    assert distance(apart(policy, tokenizer).detach(), apart(dense, tokenizer).detach()) < 1e-6
    with pytest.raises(ModelError, match=r"misreads rows that are no multiple of 64: leave use_dora out"):
        load(tiny_model, lora={"use_dora": True}, quantization="nf4")


@pytest.mark.parametrize("options", ["peft: {peft_type: IA3}", "lora: {r: 4, init_lora_weights: pissa_niter_4}"])
def test_a_run_of_another_kind_resumes_bitwise_and_is_measured_as_it_was(
    tmp_path: Path, tiny_model: Path, options: str
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", pair_rows(16))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{name: {tiny_model}, dtype: float32, {options}}}\n"
        f"data: {{train: {data}, eval: {data}}}\n"
        "train: {output_dir: run, examples_per_step: 8, max_steps: 4, learning_rate: 1e-2, save_steps: 2}\n"
        "eval: {samples: 0, resamples: 100}\n"
    )
    whole = train_run(load_recipe(path, [f"train.output_dir={tmp_path / 'whole'}"]))
    cut = load_recipe(path, [f"train.output_dir={tmp_path / 'cut'}"])
    train_run(cut)
    for left in ("checkpoint-4", "adapter"):
        (tmp_path / "cut" / left).rename(tmp_path / f"lost-{left}")
    train_run(cut, resume=True)
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert whole.before is not None
    assert whole.after is not None
    assert whole.before.metrics != whole.after.metrics
    again = eval_pairs_run(tmp_path / "whole")
    assert again.metrics.margin.value == pytest.approx(whole.after.metrics.margin.value, abs=1e-5)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "adds tokens to each sequence.*choose LoRA, or one of BOFT"),
        ({"peft_type": "ADAPTION_PROMPT"}, "adds tokens to each sequence"),
        ({"peft_type": "LORA"}, r"LoRA is model\.lora"),
        ({"peft_type": "IA33"}, "IA33 is not a kind of adapter .* did you mean 'IA3'"),
        ({"peft_type": "ADALORA"}, "ADALORA is not a kind of adapter"),
        ({"peft_type": "LOHA", "rank": 4}, "'rank' is no setting of PEFT's LoHaConfig"),
        ({"peft_type": "LOHA", "target_module": "x"}, "did you mean 'target_modules'"),
        ({"peft_type": "IA3", "target_modules": ["a"], "feedforward_modules": ["b"]}, "PEFT refuses these settings"),
    ],
)
def test_a_wrong_kind_or_setting_is_told_before_a_model_loads(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModelConfig.model_validate({"name": "x", "peft": section})


def test_peft_excludes_lora_another_adapter_and_weights_that_it_could_not_read() -> None:
    for more in ({"lora": {"r": 4}}, {"lora": None}, {"adapter": "y"}):
        with pytest.raises(ValidationError, match="'peft' takes the place of 'lora' and 'adapter'"):
            ModelConfig.model_validate({"name": "x", "peft": {"peft_type": "IA3"}, **more})
    with pytest.raises(ValidationError, match="LOHA computes with the weights themselves"):
        ModelConfig.model_validate({"name": "x", "peft": {"peft_type": "LOHA"}, "quantization": "nf4"})
    kept = ModelConfig.model_validate({"name": "x", "peft": {"peft_type": "OFT", "oft_block_size": 4, "r": 0}})
    assert ModelConfig.model_validate(kept.model_dump(mode="json")) == kept


def test_an_adapter_of_a_kind_that_adds_tokens_is_refused_when_it_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    base, _ = load(tiny_model, trainable=False)
    get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="can't be used: PROMPT_TUNING adds tokens"):
        load(tiny_model, adapter=str(tmp_path))


def test_a_start_that_needs_data_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="eva is computed from data before training"):
        load(tiny_model, lora={"init_lora_weights": "eva"})


def test_dropout_of_any_kind_is_warned_about(tiny_model: Path) -> None:
    with pytest.warns(UserWarning, match="the policy has dropout"):
        load(tiny_model, peft={"peft_type": "LOHA", "module_dropout": 0.1, **PLACES})
