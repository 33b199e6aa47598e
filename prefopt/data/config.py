"""The recipe's `data:` section, and the options it shares with `load_preferences`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from prefopt.config import Section

FormatName = Literal[
    "auto",
    "pairs",
    "implicit_pairs",
    "labels",
    "lists",
    "demonstrations",
    "question_pairs",
    "shp",
    "safe_rlhf",
    "safer_rlhf",
    "strengths",
    "ultrafeedback",
    "helpsteer",
    "ranked",
    "rewards",
    "messages",
]
FieldName = Literal[
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "label",
    "completions",
    "scores",
    "score_chosen",
    "score_rejected",
    "system",
    "tools",
]


class DataOptions(Section):
    """How preferences are read and tokenized, wherever they come from."""

    format: FormatName = Field(
        default="auto", description="What a row is: found out from columns and values, or named here."
    )
    columns: dict[FieldName, str] = Field(
        default_factory=dict,
        description="Which column holds a field, where it isn't called like it: {prompt: question}.",
    )
    score: str | dict[str, float] | None = Field(
        default=None,
        description="Which rating of a rated answer is its score: an attribute, or a weight for each of several.",
    )
    prefer: Literal["better", "safer"] = Field(
        default="better", description="Which judgement makes the pairs, where a data set has two of them."
    )
    ties: Literal["drop", "keep", "as_lists"] = Field(
        default="keep",
        description="What becomes of a pair whose scores are equal: it is left out, kept, or all pairs that have "
        "scores become lists of two. A preference for neither is never a pair.",
    )
    duplicates: Literal["keep", "drop"] = Field(
        default="keep", description="What becomes of a row that repeats an earlier one: 'drop' leaves it out."
    )
    contradictions: Literal["keep", "drop", "keep_first"] = Field(
        default="keep",
        description="What becomes of pairs that prefer the same two completions both ways: 'drop' leaves out all of "
        "them, 'keep_first' those that contradict the first.",
    )
    config: str | None = Field(default=None, description="Configuration of a Hugging Face dataset.")
    split: str = Field(default="train", description="Split of a Hugging Face dataset.")
    revision: str | None = Field(
        default=None, description="Revision (branch, tag or commit) of a Hugging Face dataset."
    )
    as_chat: bool = Field(
        default=False, description="Take plain strings as a user's and an assistant's turn instead of as one document."
    )
    max_length: int = Field(default=1024, ge=2, description="Longest prompt with completion, in tokens.")
    truncation: Literal["drop", "keep_end", "cut_completion"] = Field(
        default="drop",
        description="What becomes of a row that is longer than max_length: 'drop' rejects it, 'keep_end' keeps the end "
        "of its prompt, 'cut_completion' the start of its completions; each is counted.",
    )
    thinking: Literal["keep", "drop"] = Field(
        default="keep",
        description="Whether completions keep their thoughts (<think>...</think>), and the chat template is asked for "
        "answers with or without one.",
    )
    cache: bool = Field(
        default=True, description="Keep tokenized files and datasets on disk, for the next run with the same options."
    )
    workers: int | None = Field(
        default=None,
        ge=0,
        description="Processes that tokenize, and prepare training data ahead of the steps. Unset, large files are "
        "tokenized by one a core, and everything else is done in the run's own process.",
    )
    max_rejected: float = Field(
        default=0.01, ge=0.0, le=1.0, description="Share of rows that may be rejected before the load fails."
    )


class WeightedSource(Section):
    """A source of a mixture."""

    source: str = Field(description="File, glob or Hugging Face dataset name.")
    weight: float = Field(gt=0, allow_inf_nan=False, description="Its share of what is learned from, beside others.")


class DataConfig(DataOptions):
    """Where the preferences are and how they are read."""

    train: str | tuple[str, ...] | tuple[WeightedSource, ...] = Field(
        description="File, glob, Hugging Face dataset name, or a list of them, each with a weight or none."
    )
    eval: str | tuple[str, ...] | None = Field(default=None, description="The same for held-out preferences.")
    eval_split: str | None = Field(
        default=None, description="Split of a Hugging Face dataset named by eval; else `split`."
    )

    streaming: bool = Field(default=False, description="Read the training data as they are needed, window by window.")
    window: int = Field(default=8192, ge=1, description="Examples of a stream that are held and shuffled together.")
    group_prompts: bool = Field(
        default=True, description="Let examples that share a prompt stand in one step, where its tokens count once."
    )

    @field_validator("train", mode="before")
    @classmethod
    def _check_train(cls, value: Any) -> Any:
        """Say what is wrong with a mixture in one sentence, before it is taken for a list of names."""
        items = value if isinstance(value, list | tuple) else []
        mixed = [isinstance(item, Mapping | WeightedSource) for item in items]
        if any(mixed) and not all(mixed):
            raise ValueError(
                "data.train gives some sources a weight and others none; write a weight for each or for none"
            )
        for item in items:
            if isinstance(item, Mapping):
                if set(item) != set(WeightedSource.model_fields):
                    raise ValueError(
                        f"data.train holds {dict(item)}; a source of a mixture is {{source: NAME, weight: NUMBER}}"
                    )
                weight = item["weight"]
                if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
                    raise ValueError(
                        f"data.train gives {item['source']} the weight {weight!r}; it must be a number above 0"
                    )
        return value

    @property
    def train_names(self) -> str | tuple[str, ...]:
        """What `train` names, without weights."""
        if isinstance(self.train, str):
            return self.train
        return tuple(one.source if isinstance(one, WeightedSource) else one for one in self.train)

    @property
    def train_weights(self) -> tuple[WeightedSource, ...]:
        """The weighted sources of `train`; none where it gives no weights."""
        sources = () if isinstance(self.train, str) else self.train
        return tuple(one for one in sources if isinstance(one, WeightedSource))

    def options(self, part: Literal["train", "eval"] = "train") -> dict[str, Any]:
        """Return the keyword options of `load_preferences` for the train or the eval source."""
        options = {name: value for name, value in self.model_dump().items() if name in DataOptions.model_fields}
        if part == "eval" and self.eval_split is not None:
            options["split"] = self.eval_split
        return options
