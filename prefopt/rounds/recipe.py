"""The recipe of rounds: the sections of a training recipe, and what is sampled, scored, selected and repeated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field, model_validator

from prefopt.config import Section
from prefopt.errors import RecipeError
from prefopt.losses import Loss
from prefopt.losses.config import LossConfig
from prefopt.models.config import ModelConfig
from prefopt.models.reference_config import ReferenceConfig
from prefopt.recipe import contradictions
from prefopt.recipe.paths import PathKeys
from prefopt.recipe.reading import read_recipe
from prefopt.recipe.source import Source
from prefopt.rewards.config import RewardConfig, absolute_files
from prefopt.rounds.config import VERIFIERS, PromptsConfig, RoundsConfig, RoundsEvalConfig
from prefopt.rounds.select import build_selector
from prefopt.rounds.select_config import SelectConfig
from prefopt.sampling import SampleConfig
from prefopt.train.config import AlarmConfig, TrainConfig

PATHS = PathKeys((("prompts", "train"), ("prompts", "eval"), ("sample", "path")))
_SERVES: dict[str, tuple[str, ...]] = {
    "demonstrations": ("demonstration",),
    "labels": ("unpaired", "demonstration"),
    "pairs": ("paired", "unpaired", "listwise", "demonstration"),
    "lists": ("listwise", "paired", "unpaired", "demonstration"),
}
"""What selected groups can be -> the forms of losses that they serve."""
_NEEDED = {
    "paired": "pairs",
    "listwise": "lists",
    "unpaired": "labels",
    "demonstration": "demonstrations",
}


class RoundsRecipe(Section):
    """Everything that rounds need to know. Raises `RecipeError` for sections that contradict each other."""

    model: ModelConfig = Field(description="Which model learns, in which precision, with which adapter.")
    prompts: PromptsConfig = Field(description="Which prompts it answers, and which are held out.")
    sample: SampleConfig = Field(SampleConfig(), description="How it answers them.")
    score: RewardConfig = Field(description="What answers are scored by.")
    select: SelectConfig = Field(description="Which answers are trained on, and as what.")
    loss: LossConfig = Field(default_factory=lambda: LossConfig.model_validate({}), description="What it minimises.")
    reference: ReferenceConfig = Field(ReferenceConfig(), description="What the policy is compared with.")
    train: TrainConfig = Field(description="How each round trains, and where the run directory lies.")
    alarms: AlarmConfig = Field(AlarmConfig(), description="When training says that something goes wrong.")
    rounds: RoundsConfig = Field(RoundsConfig(), description="How often it goes round, and what goes over.")
    eval: RoundsEvalConfig = Field(RoundsEvalConfig(), description="How each round is measured.")

    @model_validator(mode="after")
    def _check_together(self) -> RoundsRecipe:
        if sentences := list(_contradictions(self)):
            raise RecipeError("\n".join(sentences))
        return self

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.train.output_dir


def load_rounds(path: str | Path, overrides: Iterable[str] = (), *, check_files: bool = True) -> RoundsRecipe:
    """Read, complete and validate the recipe at `path`; no model and no data is loaded.

    Args:
        path: a YAML file. Relative paths of inputs in it count from its folder, `train.output_dir` and paths in
            overrides from the working directory.
        overrides: `section.key=value`, the value in YAML.
        check_files: whether an input that is missing is an error.

    Raises:
        RecipeError: one sentence a line for everything that is wrong: file and line, key, value, what is allowed.
    """
    return read_recipe(RoundsRecipe, Path(path), overrides, PATHS, check_files=check_files, prepare=_with_scorers_files)


def _with_scorers_files(source: Source) -> Source:
    """Make the files that scorers name absolute."""
    section = source.get(("score",))
    return source if section is None else source.replaced(("score",), absolute_files(section, source.base(("score",))))


def _contradictions(recipe: RoundsRecipe) -> Iterator[str]:
    """Yield a sentence for every two settings of different sections that can't stand together."""
    yield from contradictions(recipe.model, recipe.loss, recipe.reference, recipe.train)
    loss = recipe.loss.build()
    if recipe.rounds.stop.kl is not None and recipe.eval.temperature != 1:
        yield (
            f"rounds.stop.kl is set, but eval.temperature is {recipe.eval.temperature:g}, and KL is measured on "
            "samples of the policy itself; write eval.temperature: 1, or leave rounds.stop.kl out."
        )
    yield from _about_groups(recipe, loss)
    yield from _about_hints(recipe)
    yield from _about_references(recipe, loss)
    if recipe.train.shard_weights:
        yield (
            "train.shard_weights is true, but sampling needs the weights whole in every process; leave it out: each "
            "process then trains on its part of every step."
        )
    given = recipe.train.model_extra or {}
    if given.get("deepspeed"):
        yield (
            "train.deepspeed is set, but its engine is made for one training, and rounds train again and again; leave "
            "it out: each process then trains on its part of every step."
        )
    if str(given.get("eval_strategy", "no")).rpartition(".")[2].lower() != "no":
        yield "train.eval_strategy is set, but rounds hold out prompts and not preferences; leave it out."
    if recipe.sample.engine == "vllm" and (recipe.model.peft is not None or _kind(recipe) == "int8"):
        what = "an adapter that is no LoRA" if recipe.model.peft is not None else "weights of 8 bits"
        yield f"sample.engine is vllm, which can't sample with {what} as it is trained here; write sample.engine: hf."
    if recipe.sample.engine == "file" and recipe.rounds.count > 1:
        yield (
            f"rounds.count is {recipe.rounds.count}, but sample.engine is file, whose completions are those of one "
            "policy; write rounds.count: 1, or let another engine sample."
        )


def _kind(recipe: RoundsRecipe) -> str | None:
    return None if recipe.model.quantization is None else recipe.model.quantization.type


def _about_groups(recipe: RoundsRecipe, loss: Loss) -> Iterator[str]:
    """Yield what is wrong between what is selected and what the loss takes."""
    made, config = recipe.select.made_as, recipe.select
    if loss.form not in _SERVES[made]:
        yield (
            f"select.selector {config.selector} makes {made}, but the loss {loss.name} learns from "
            f"{_NEEDED[loss.form]}; write select.form={_NEEDED[loss.form]}, choose another selector, or a loss that "
            f"takes {made} (`prefopt losses` lists them)."
        )
    known_right = _verified(recipe)
    if config.selector in ("threshold", "correct_vs_incorrect") and config.threshold is None and not known_right:
        yield (
            f"select.selector {config.selector} needs to know which answers are right, and no scorer is a verifier "
            f"({', '.join(sorted(VERIFIERS))}); write select.threshold, the lowest score of a right answer."
        )
    # What the selector itself refuses. The scorer is not built yet: a bound that it may know is not missed here.
    known = config.model_copy(update={"bound": config.bound or 0.0}) if config.selector == "rejection" else config
    try:
        build_selector(known, n=recipe.sample.n)
    except RecipeError as error:
        yield str(error)


def _verified(recipe: RoundsRecipe) -> bool:
    """Whether something says which answers are right."""
    return recipe.eval.correct is not None or any(part.kind in VERIFIERS for part in recipe.score.scorers.values())


def _about_hints(recipe: RoundsRecipe) -> Iterator[str]:
    """Yield what is wrong with asking again with the answer given."""
    if recipe.rounds.rationalise is None:
        return
    if not _verified(recipe):
        yield (
            "rounds.rationalise is for prompts that were answered wrong, and no scorer is a verifier "
            f"({', '.join(sorted(VERIFIERS))}); write eval.correct, the lowest score of a right answer."
        )
    if recipe.select.selector in ("rejection", "rso"):
        yield (
            f"rounds.rationalise is set, but select.selector {recipe.select.selector} takes candidates as drawn from "
            "the policy, and those with a hint are not; choose another selector, or leave rounds.rationalise out."
        )
    if recipe.sample.temperature == 0 and (recipe.rounds.rationalise.n or 1) > 1:
        yield "rounds.rationalise.n is above 1, but sample.temperature is 0, and such samples are equal; write n: 1."
    if recipe.sample.engine == "file":
        yield "rounds.rationalise is set, but sample.engine is file, which answers no other prompts; leave it out."


def _about_references(recipe: RoundsRecipe, loss: Loss) -> Iterator[str]:
    """Yield what is wrong between the rule for references and the reference itself."""
    rule, kind = recipe.rounds.reference, recipe.reference.kind
    if (rule == "moving") != (kind == "moving"):
        yield (
            "rounds.reference is moving, but the section reference says not how: write "
            "reference: {kind: moving, every: STEPS}."
            if rule == "moving"
            else f"reference.kind is moving, but rounds.reference is {rule}; write rounds.reference: moving."
        )
    if rule == "previous" and kind not in ("auto", "frozen_copy"):
        yield (
            f"rounds.reference is previous, but reference.kind is {kind}, which names another one; write "
            "reference: auto."
        )
    if rule != "fixed" and not loss.needs_reference:
        yield f"rounds.reference is {rule}, but the loss {loss.name} compares with no reference; leave it out."
