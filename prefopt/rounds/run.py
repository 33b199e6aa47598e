"""What a run of rounds stands on: its recipe, its prompts, its model by content, and who does what of it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from rich.console import Console

from prefopt.data.config import DataOptions
from prefopt.errors import DataError
from prefopt.models.dtypes import resolve_device, resolve_dtype
from prefopt.models.source import find_adapter, find_model
from prefopt.models.tokenizer import load_tokenizer
from prefopt.rewards import reward_identity, score_settings
from prefopt.rounds.events import Events
from prefopt.rounds.files import bytes_hash, content_hash
from prefopt.rounds.recipe import RoundsRecipe
from prefopt.rounds.stage import Manifest, Stage
from prefopt.sampling import Prompt, Prompts, prompt_key, read_prompts
from prefopt.train.ranks import Ranks

START = -1
"""The round before the first: nothing but the model as it begins, measured."""
_SPLIT = 0x5B117  # tells the shares of prompts from all other random numbers of the run


@dataclass(frozen=True)
class Plan:
    """A stage that is to be done, and what does it."""

    stage: Stage
    make: Callable[[], Manifest | None]
    """Called on every rank. Commits the stage; the first rank returns the manifest."""
    spent: Callable[[], Sequence[Path]] = tuple
    """Gives the folders that only a resume needed, once the stage is done."""


@dataclass
class Run:
    """One run while it goes on."""

    recipe: RoundsRecipe
    ranks: Ranks
    events: Events
    say: Callable[[str], None]
    console: Console | None = None
    """Where training shows its progress."""
    made: dict[tuple[int, str], Manifest] = field(default_factory=dict)
    """(round, stage) -> what came of it, of all that is done."""

    @property
    def folder(self) -> Path:
        return self.recipe.run

    def round_folder(self, number: int) -> Path:
        """Return where a round's files lie; those of the start lie in one of their own."""
        return self.folder / ("start" if number == START else f"round-{number:03d}")

    def weights(self, number: int) -> Path | None:
        """Return what a round trained; None for the start, which is the recipe's model."""
        return None if number == START else self.round_folder(number) / self.weights_name(number)

    def weights_name(self, number: int) -> str:
        """Return the output of a round's training, by its name in the manifest."""
        [name] = self.made[number, "train"].outputs
        return name

    def weights_hash(self, number: int) -> str:
        """Return the content of what a round trained."""
        return "start" if number == START else self.made[number, "train"].content(self.weights_name(number))

    @cached_property
    def tokenizer(self) -> Any:
        """The policy's."""
        return load_tokenizer(self.recipe.model, self._source, sys.maxsize)

    @cached_property
    def model_hash(self) -> str:
        """Of the recipe's model: its files by content, and how they are loaded. All ranks ask for it together."""
        return self.ranks.of_main(self._model_hash)

    def _model_hash(self) -> str:
        config = self.recipe.model
        files = {path.name: bytes_hash(path) for path in sorted(self._source.folder.iterdir()) if _is_model(path)}
        adapter = None if config.adapter is None else bytes_hash(find_adapter(config.adapter).folder)
        # The device is where it computes and not what, and a name is where its files lie.
        said = config.model_dump(mode="json", exclude={"name", "device", "adapter"})
        return content_hash([files, adapter, said])

    @cached_property
    def _source(self) -> Any:
        config = self.recipe.model
        dtype = resolve_dtype(config.dtype, resolve_device(config.device), weights_train=config.lora is None)
        return find_model(
            config.name,
            revision=config.revision,
            remote_code=config.trust_remote_code,
            dtype=str(dtype).removeprefix("torch."),
            cache=Path(constants.HF_HOME) / "prefopt",
        )

    @cached_property
    def scoring(self) -> Mapping[str, Any]:
        """What decides a score beside the completion: the section, what it names by content, and what is right.

        Raises:
            RecipeError: a file or a package that a scorer needs is not there.
        """
        return {
            "score": score_settings(self.recipe.score),
            "scorers": reward_identity(self.recipe.score),
            "correct": self.recipe.eval.correct,
        }

    @cached_property
    def prompts(self) -> tuple[Prompts, Prompts]:
        """To learn from, and held out.

        Raises:
            DataError: prompts that can't be read, lack a column that a scorer needs, or stand on both sides.
        """
        config = self.recipe.prompts
        options = {"config": config.config, "revision": config.revision, "max_rejected": config.max_rejected}
        sides = []
        for name, split, limit in (
            (config.train, config.split, config.limit),
            (config.eval, config.eval_split or config.split, config.eval_limit),
        ):
            found = read_prompts(
                name,
                self.tokenizer,
                column=config.column,
                max_tokens=config.max_tokens,
                options=DataOptions(split=split, **options),  # type: ignore[arg-type]
            )
            del found[limit or len(found) :]
            self._check_columns(found, name)
            sides.append(found)
        both = set.intersection(*({prompt_key(prompt.prompt) for prompt in side} for side in sides))
        if both:
            raise DataError(
                f"{len(both)} of the held-out prompts ({config.eval}) are also learned from ({config.train}): what is "
                "measured on them would say nothing. Hold out others, for example by `prefopt data split`."
            )
        return sides[0], sides[1]

    def round_prompts(self, number: int) -> list[Prompt]:
        """Return the prompts of a round: all of them, or its share.

        Whose share a prompt is in follows from its content, the seed and the number of rounds, so that prompts that are
        added, left out or moved change no other's. Shares are therefore about equal, and not exactly.

        Raises:
            DataError: a round has no prompt.
        """
        prompts, rounds = self.prompts[0], self.recipe.rounds
        if rounds.prompts == "reused":
            return prompts
        mine = [one for one in prompts if _share(one, rounds.seed, rounds.count) == number]
        if not mine:
            raise DataError(
                f"rounds.prompts is split, but of {len(prompts)} prompts for {rounds.count} rounds round {number} has "
                "none; give more prompts, or write rounds.prompts: reused."
            )
        return mine

    def _check_columns(self, prompts: Prompts, source: Any) -> None:
        for prompt in prompts:
            if missing := sorted(self.recipe.score.columns - prompt.row.keys()):
                raise DataError(
                    f"{source}: the section score needs the column '{missing[0]}' of every row, and one has "
                    f"{', '.join(map(str, prompt.row)) or 'no other column than the prompt'}; name the right column "
                    "in score, or add it."
                )


def _share(prompt: Prompt, seed: int, rounds: int) -> int:
    """Return the round whose prompt it is, where they are split."""
    digest = hashlib.sha256(f"{_SPLIT} {seed} {prompt.prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % rounds


def prompts_hash(prompts: list[Prompt]) -> str:
    """Return the hash of prompts in their order; an id is one of prompt and row."""
    return content_hash(prompt.prompt_id for prompt in prompts)


def _is_model(path: Path) -> bool:
    return path.suffix in (".safetensors", ".json", ".py", ".jinja", ".model", ".txt")
