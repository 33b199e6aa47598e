"""A recipe in, a reward model out: a language model's backbone with a scalar head, trained on the recipe's pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase, TrainerCallback

from prefopt import environment
from prefopt.data import PreferenceData
from prefopt.errors import ModelError, RecipeError
from prefopt.eval import held_out_pairs, pair_logprobs
from prefopt.eval.rewards import RewardEvaluation, reward_evaluation
from prefopt.losses.config import LossConfig
from prefopt.models import ReferenceConfig, load_policy
from prefopt.models.adapters import save_weights
from prefopt.models.classifier import head_modules
from prefopt.models.rewards import HEAD
from prefopt.models.tokenizer import padding_token
from prefopt.recipe import Recipe
from prefopt.rewards.reward_model import END_OF_TURN, READS
from prefopt.train.callbacks import MetricsFile, ProgressLine
from prefopt.train.checkpoint import staged
from prefopt.train.ranks import ranks_of_this_run
from prefopt.train.reward import RewardTrainer, save_head
from prefopt.workflow.directory import (
    AFTER,
    DATA,
    ENVIRONMENT,
    METRICS,
    REWARD_ADAPTER,
    REWARD_MODEL,
    claim_directory,
    write_evaluation,
    write_json,
)
from prefopt.workflow.inputs import load_data, weights_of
from prefopt.workflow.merge import merged_model

"""Where in a run directory the trained weights lie, and the whole model that they make."""


@dataclass(frozen=True)
class RewardRun:
    """A finished reward model."""

    path: Path
    """The run directory."""
    model: Path
    """The sequence classifier: what `AutoModelForSequenceClassification` and the scorer `model` load."""
    evaluation: RewardEvaluation | None
    """Held-out pairs; None where there are none."""


def train_reward(
    recipe: Recipe,
    *,
    resume: bool = False,
    console: Console | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> RewardRun:
    """Train a reward model on the pairs of a recipe (of lists: best against worst) and measure it on those held out.

    The language model's head gives way to one number on the state of a completion's last token, its end of turn.
    The adapter is merged at the end, and the model saved as a sequence classifier of its architecture.

    Raises:
        RecipeError: the recipe says what a reward model has not, or asks for what is not done here.
        ModelError: the architecture has no sequence classifier of a backbone and one linear head.
        PrefoptError: what the rooms below say of models, data and settings.
    """
    _check_recipe(recipe)
    args = recipe.train.arguments()
    if ranks_of_this_run().size > 1:
        raise RecipeError("a reward model is trained by one process: start it without torchrun.")
    run = recipe.train.output_dir
    say = console.print if console else _silent
    claim_directory(run, recipe, resume=resume)
    model, tokenizer = load_policy(recipe.model, seed=args.seed)
    pad = padding_token(tokenizer)
    classifier = _empty_classifier(model)
    write_json(run / ENVIRONMENT, environment.describe())
    data, held_out = load_data(recipe, tokenizer, run)
    assert isinstance(data, PreferenceData)
    _check_ends(data, tokenizer, pad)
    pairs = None if held_out is None else held_out_pairs(held_out)
    progress = [ProgressLine(console)] if console else []
    trainer = RewardTrainer(
        model,
        data,
        args,
        eval_data=held_out,
        tokenizer=tokenizer,
        callbacks=[MetricsFile(run / METRICS), *progress, *callbacks],
        group_prompts=recipe.data.group_prompts,
        weights=weights_of(recipe),
        workers=recipe.data.workers or 0,
    )
    write_json(run / DATA, {"train": trainer.data.summary.to_dict(), "eval": pairs and pairs.summary.to_dict()})
    say(f"reward model: {trainer.packed.admission.reason}")
    try:
        trainer.train(resume_from_checkpoint=resume)
    finally:
        for line in progress:
            line.close()
    evaluation = None
    if pairs is not None:
        scores = pair_logprobs(trainer.packed, pairs, token_budget=recipe.eval.token_budget)
        evaluation = reward_evaluation(scores, resamples=recipe.eval.resamples, seed=args.seed)
        write_evaluation(run / AFTER, "reward", evaluation.to_dict())
    _save(trainer, classifier, tokenizer, pad, recipe)
    return RewardRun(run, run / REWARD_MODEL, evaluation)


def _check_recipe(recipe: Recipe) -> None:
    """Refuse what would be passed over."""
    # A recipe that was saved has every section: only what differs from the default says something.
    if recipe.loss != LossConfig.model_validate({}):
        raise RecipeError(
            "the section loss is for policies; that of a reward model is Bradley and Terry's: leave it out."
        )
    if recipe.reference != ReferenceConfig():
        raise RecipeError("the section reference is for policies; a reward model has none: leave it out.")
    if recipe.data.streaming:
        raise RecipeError("data.streaming is true, but a reward model is trained on data in memory: leave it out.")
    if recipe.model.lora is None:
        raise RecipeError("model.lora is null, but a reward model trains an adapter and its head: leave it out.")
    if recipe.train.shard_weights:
        raise RecipeError("train.shard_weights is true, but a reward model is trained by one process: leave it out.")
    if recipe.train.token_budget == "auto":
        raise RecipeError("train.token_budget is auto, which is found for policies: write a number of tokens.")


def _empty_classifier(model: Any) -> Any:
    """Return the sequence classifier of the model's architecture, without weights.

    Raises ModelError unless it is the model's own kind of backbone with one linear head of one number behind it.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    settings = base.config.to_dict()
    settings.pop("quantization_config", None)  # what is saved is unpacked
    config = type(base.config).from_dict(settings)
    config.num_labels = 1
    try:
        with torch.device("meta"):
            found = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ModelError(
            f"{type(base).__name__} has no sequence classifier in transformers: choose another."
        ) from error
    heads = head_modules(found)
    plain = len(heads) == 1 and isinstance(heads[0], nn.Linear) and heads[0].bias is None
    if not plain or type(found.base_model) is not type(base.base_model):
        raise ModelError(
            f"{type(found).__name__} is no backbone of {type(base).__name__} with one linear head behind it, so a "
            "reward model of it could not be saved: choose another architecture, such as Llama or Qwen."
        )
    return found


def _check_ends(data: PreferenceData, tokenizer: PreTrainedTokenizerBase, pad: str) -> None:
    """Refuse completions that end with the token that stands for padding: a classifier would read the one before."""
    padding = tokenizer.convert_tokens_to_ids(pad)
    if any(completion[-1] == padding for example in data for completion in example.completions):
        raise ModelError(
            f"the tokenizer has no token to pad with but {pad}, with which completions end: a sequence classifier "
            "finds the end of a text by what is no padding. Add a padding token to the model's tokenizer."
        )


def _save(
    trainer: RewardTrainer, classifier: Any, tokenizer: PreTrainedTokenizerBase, pad: str, recipe: Recipe
) -> None:
    """Write the adapter with its head, then the whole model that they make."""
    run = recipe.train.output_dir
    policy: Any = trainer.model
    weight = trainer.packed.reward_head.weight.detach().cpu().clone()
    with staged(run / REWARD_ADAPTER) as folder:
        save_weights(policy, folder)
        save_head(trainer.packed, folder)
        tokenizer.save_pretrained(folder)
    delattr(policy, HEAD)
    dtype = policy.get_base_model().dtype
    merged = merged_model(policy, run / REWARD_ADAPTER, recipe.model).cpu()
    setattr(classifier, classifier.base_model_prefix, merged.base_model)
    [head] = [name for name, _ in classifier.named_children() if name != classifier.base_model_prefix]
    setattr(classifier, head, nn.Linear(weight.shape[1], 1, bias=False))
    getattr(classifier, head).weight = nn.Parameter(weight)
    tokenizer.pad_token = pad
    classifier.config.pad_token_id = tokenizer.pad_token_id
    classifier.config.name_or_path = recipe.model.name
    setattr(classifier.config, READS, END_OF_TURN)
    with staged(run / REWARD_MODEL) as folder:
        classifier.to(dtype).save_pretrained(str(folder))
        tokenizer.save_pretrained(folder)


def _silent(text: str) -> None:
    """Say nothing."""
