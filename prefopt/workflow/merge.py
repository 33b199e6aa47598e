"""A trained adapter put into its model: plain weights that need no adapter, measured against what was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from prefopt.data import build_packs
from prefopt.data.sources import open_sources
from prefopt.errors import DataError, ModelError, RecipeError, RunError, nearest
from prefopt.models import ModelConfig, load_policy
from prefopt.models.dtypes import DTYPES
from prefopt.models.modes import evaluating
from prefopt.models.packed import PackedModel
from prefopt.models.quantization import dense_weight, quantized_layers
from prefopt.models.scoring import fitting_budget
from prefopt.recipe import Recipe
from prefopt.records import Group, Pack
from prefopt.train.checkpoint import staged
from prefopt.workflow.directory import ADAPTER, MODEL
from prefopt.workflow.finished import load_run, run_recipe
from prefopt.workflow.inputs import load_held_out

_OTHER_DATA = "Give other data by --data FILE, or --rows 0 to measure no drift."

Scored = tuple[Pack, Tensor]
"""A pack and the log-probs of its N completion tokens, (N,) float64, nats."""


@dataclass(frozen=True)
class Drift:
    """How far the merged model's log-probs are from those of the policy with its adapter on, nats."""

    completions: int
    tokens: int
    token_mean: float
    """Mean |difference| of a token's log-prob."""
    token_max: float
    completion_mean: float
    """Mean |difference| of a completion's log-prob, the sum over its tokens."""
    completion_max: float


@dataclass(frozen=True)
class Merged:
    """A merged model on disk."""

    path: Path
    dtype: str
    quantized: bool
    """Whether the adapter was trained on quantized weights: the model holds those unpacked, not the original ones."""
    drift: Drift | None
    """None where nothing was measured."""


def merge_run(
    run: Path, out: Path, *, dtype: str = "auto", data: str | Sequence[str] | None = None, rows: int = 32
) -> Merged:
    """Merge a run's adapter into its model, in float32, and save it with its tokenizer in safetensors.

    Args:
        run: a finished run directory with an adapter.
        out: the folder to write: new or empty.
        dtype: of the saved weights: bfloat16, float16, float32, or auto for the policy's.
        data: preferences to measure the drift on, instead of the recipe's `data.eval` (or, without one, `data.train`).
        rows: examples that are measured; 0 measures nothing.

    Raises:
        RecipeError: there is no such dtype.
        RunError: `run` has no finished adapter, or `out` is taken.
        DataError: there is no data to measure on.
        ModelError: the adapter can't be merged.
    """
    if dtype not in ("auto", *DTYPES):
        raise RecipeError(f"dtype is '{dtype}'; it must be one of auto, {', '.join(DTYPES)}{nearest(dtype, DTYPES)}")
    recipe = run_recipe(run)
    if not (run / ADAPTER).is_dir() and (run / MODEL).is_dir():
        raise RunError(f"{run} trained all weights, so there is nothing to merge: its model is {run / MODEL}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} is not empty; name a folder that is new.")
    source = _source(recipe, data) if rows else None
    policy, tokenizer, _ = load_run(run)
    before = None if source is None else _scored(policy, _packs(policy, tokenizer, recipe, source, rows))
    kept = str(policy.get_base_model().dtype).removeprefix("torch.") if dtype == "auto" else dtype
    model = merged_model(policy, run / ADAPTER, recipe.model)
    with staged(out) as folder:
        model.to(DTYPES[kept]).save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    quantized = any(True for _ in quantized_layers(policy))
    del policy, model
    drift = None if before is None else _drift(before, out, recipe, kept)
    return Merged(out, kept, quantized, drift)


def _source(recipe: Recipe, data: str | Sequence[str] | None) -> str | Sequence[str]:
    source = data or recipe.data.eval or recipe.data.train_names
    try:
        open_sources(source, recipe.data)  # a missing file is told before a model loads
    except DataError as error:
        raise DataError(f"{error} {_OTHER_DATA}") from error
    return source


def merged_model(policy: Any, adapter: Path, config: ModelConfig) -> Any:
    """Return the policy's model with its adapter merged, in float32, from the very weights that it was trained on.

    Args:
        policy: the model with its adapter, quantized or not.
        adapter: where the adapter is saved.
        config: the recipe's `model` section.

    Raises ModelError when the adapter can't be merged.
    """
    dtype = str(policy.get_base_model().dtype).removeprefix("torch.")
    lora = {} if config.lora is None else {"dtype": config.lora.dtype}
    plain: dict[str, Any] = {"quantization": None, "peft": None, "dtype": dtype, "lora": lora}
    dense, _ = load_policy(config, trainable=False, adapter=str(adapter), **plain)
    assert isinstance(dense, PeftModel)
    places = dict(dense.named_modules())
    dense.float()
    with torch.no_grad():
        for name, layer in quantized_layers(policy):
            places[name].weight.copy_(dense_weight(layer))
    _untie(dense)
    try:
        merged: Any = dense.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError, TypeError, RuntimeError) as error:
        raise ModelError(f"the adapter {adapter} can't be merged: {error}. Use it as it is.") from error
    return merged


def _untie(model: Any) -> None:
    """Give the head a weight of its own where an adapter changes it, or the embedding, but not both."""
    base = model.get_base_model()
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    adapted = [isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper) for m in (head, embedding)]
    if not base.config.tie_word_embeddings or not any(adapted):
        return
    layer: nn.Module = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
    layer = getattr(layer, "original_module", layer)
    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)  # type: ignore[operator]
    base.config.tie_word_embeddings = False


def _packs(
    model: Any, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, source: str | Sequence[str], rows: int
) -> list[Pack]:
    try:
        data = load_held_out(recipe, tokenizer, source)
    except DataError as error:  # a round's training learned from groups of token ids, which no recipe reads
        raise DataError(f"{error} {_OTHER_DATA}") from error
    groups = [Group(example.prompt, (c,)) for example in islice(data, rows) for c in example.completions]
    policy = PackedModel(model)
    budget = fitting_budget(recipe.eval.token_budget, policy, groups)
    return build_packs(groups, token_budget=budget, shared=policy.admission.shared, one_row=policy.admission.one_row)


@torch.no_grad()
def _scored(model: Any, packs: Sequence[Pack]) -> list[Scored]:
    packed = PackedModel(model)
    device = packed.head_weight.device
    with evaluating(model), packed.attached():
        return [(pack, packed.logprobs(pack.to(device), "none").double().cpu()) for pack in packs]


def _drift(before: Sequence[Scored], out: Path, recipe: Recipe, dtype: str) -> Drift:
    """Load what was written, as anybody would, and compare it on the same packs."""
    model, _ = load_policy(
        str(out),
        trainable=False,
        device=recipe.model.device,
        dtype=dtype,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    after = _scored(model, [pack for pack, _ in before])
    tokens, sums = [], []
    for (pack, old), (_, new) in zip(before, after, strict=True):
        difference = new - old
        tokens.append(difference.abs())
        sums.append(torch.zeros(pack.num_sequences, dtype=torch.float64).index_add_(0, pack.segment.cpu(), difference))
    token, completion = torch.cat(tokens), torch.cat(sums).abs()
    return Drift(
        completion.numel(),
        token.numel(),
        float(token.mean()),
        float(token.max()),
        float(completion.mean()),
        float(completion.max()),
    )
