"""The recipe's `reward` section: one scorer, or several by weight, and how thinking is split off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, model_validator
from pydantic_core import PydanticCustomError

from prefopt.config import Section
from prefopt.errors import nearest
from prefopt.rewards.kinds import (
    ExactSection,
    ImplicitSection,
    JudgeSection,
    LengthSection,
    MathSection,
    ModelSection,
    NumericSection,
    PythonSection,
    ReasoningGymSection,
    RegexSection,
    SentimentSection,
)

ScorerSection = Annotated[
    ExactSection
    | RegexSection
    | NumericSection
    | MathSection
    | PythonSection
    | LengthSection
    | SentimentSection
    | ReasoningGymSection
    | ModelSection
    | ImplicitSection
    | JudgeSection,
    Field(discriminator="kind"),
]

KINDS: dict[str, type[Section]] = {
    "exact": ExactSection,
    "regex": RegexSection,
    "numeric": NumericSection,
    "math": MathSection,
    "python": PythonSection,
    "length": LengthSection,
    "sentiment": SentimentSection,
    "reasoning_gym": ReasoningGymSection,
    "model": ModelSection,
    "implicit": ImplicitSection,
    "judge": JudgeSection,
}
"""Every kind of scorer, by the name that recipes use."""
_FILE_KEYS = {"python": "function", "model": "name"}
"""The key of a kind that may name a file or folder."""


class ThinkingSection(Section):
    """How thinking is found in a completion, and what one is worth whose thinking is missing or broken."""

    open: str = Field(default="<think>", min_length=1, description="The tag that opens thinking.")
    close: str = Field(default="</think>", min_length=1, description="The tag that closes it.")
    required: bool = Field(default=False, description="Whether a completion without thinking counts as broken.")
    if_broken: Literal["as_it_is", "fail"] | FiniteFloat = Field(
        default="as_it_is",
        description="as_it_is: the scorers see what stands behind the last closing tag. fail: the completion gets no "
        "score. A number: its score, whatever it says.",
    )

    @model_validator(mode="after")
    def _check_tags(self) -> ThinkingSection:
        if self.open == self.close:
            raise _fail("open and close are the same tag: thinking could not be told from the answer.")
        return self


class RewardConfig(Section):
    """What completions are scored by: `reward: {kind: numeric}`, or `scorers` with several, and `thinking`."""

    scorers: dict[str, ScorerSection] = Field(
        min_length=1,
        description="Scorers by names of your choice; the score is the sum of weight times score over all of them.",
    )
    thinking: ThinkingSection | None = Field(
        default=None, description="How thinking is split off; null takes a completion whole as its answer."
    )

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            return value
        if "kind" in value:
            if "scorers" in value:
                raise _fail("kind is one scorer and scorers are several: write one of the two.")
            own = {key: part for key, part in value.items() if key != "thinking"}
            value = {"scorers": {str(value["kind"]): own}, **{k: v for k, v in value.items() if k == "thinking"}}
        if "scorers" not in value:
            raise _fail(f"there is no scorer: write a kind ({', '.join(KINDS)}), or scorers with several.")
        if isinstance(scorers := value["scorers"], Mapping):
            for name, part in scorers.items():
                _check_scorer(str(name), part)
        return value

    @model_validator(mode="after")
    def _check_weights(self) -> RewardConfig:
        if all(part.weight == 0 for part in self.scorers.values()):
            raise _fail("every weight is 0, so nothing is scored: give one scorer another weight.")
        return self

    @property
    def columns(self) -> frozenset[str]:
        """The columns that every row needs: known before anything is sampled."""
        return frozenset().union(*(part.columns for part in self.scorers.values()))


def absolute_files(value: Any, base: Path) -> Any:
    """Return a `reward` section as written, its files absolute: relative paths in it count from the folder `base`.

    A model's name that is no path and no folder there stays, as a name on the Hugging Face Hub.
    """
    if not isinstance(value, Mapping):
        return value
    if isinstance(scorers := value.get("scorers"), Mapping):
        return {**value, "scorers": {name: absolute_files(part, base) for name, part in scorers.items()}}
    key = _FILE_KEYS.get(str(value.get("kind")), "")
    if not isinstance(name := value.get(key), str):
        return value
    file, colon, function = name.rpartition(":") if value["kind"] == "python" else (name, "", "")
    path = base / Path(file).expanduser()
    named = bool(colon) or file.startswith((".", "~")) or path.exists()
    return {**value, key: f"{path.absolute()}{colon}{function}"} if named else value


def _check_scorer(name: str, value: Any) -> None:
    """Refuse a kind or a key that there is not, in words that name what there is."""
    if not isinstance(value, Mapping):
        raise _fail(f"scorers.{name} must be a section with a kind, as {{kind: exact}}.")
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise _fail(f"kind is {kind!r} in the scorer {name}; it must be one of {', '.join(KINDS)}"
                    f"{nearest(str(kind), KINDS) or '.'}")  # fmt: skip
    known = KINDS[kind].model_fields
    for key in value:
        if key not in known:
            raise _fail(f"{key} is no setting of the scorer {kind}; it takes {', '.join(known)}"
                        f"{nearest(str(key), known) or '.'}")  # fmt: skip


def _fail(sentence: str) -> PydanticCustomError:
    return PydanticCustomError("reward", "{sentence}", {"sentence": sentence})
