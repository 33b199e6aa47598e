"""The settings of every kind of scorer."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

import regex
from pydantic import Field, FiniteFloat, model_validator
from pydantic_core import PydanticCustomError

from prefopt.config import Section
from prefopt.models.config import DtypeName, QuantizationSection
from prefopt.rewards.endpoint import is_local

Part = Literal["answer", "text", "thinking"]
_PART = "What is looked at: the answer, the text whole, or the thinking."
_COLUMN = "The row's column with the right answer, or a list of right ones."


class ScorerBase(Section):
    """What every scorer has: its weight in the sum."""

    free: ClassVar[frozenset[str]] = frozenset()
    """Keys that say how a score is come by, and not what it is: another value of theirs scores nothing again."""
    weight: FiniteFloat = Field(default=1.0, description="What its score is multiplied by; may be negative.")
    scale: Literal["none", "bounds"] = Field(
        default="none",
        description="bounds: its score is first moved from its bounds to 0..1, which it must have. none: as it is.",
    )

    @property
    def columns(self) -> frozenset[str]:
        """The columns that rows need for it."""
        column = getattr(self, "column", None)
        return frozenset([column]) if column is not None else frozenset()


class ExactSection(ScorerBase):
    """1 where the answer is the expected text, else 0."""

    kind: Literal["exact"]
    column: str = Field(default="answer", description=_COLUMN)
    ignore_case: bool = Field(default=False, description="Whether A and a are the same.")


class RegexSection(ScorerBase):
    """1 where what a regular expression finds in the answer is the expected text, else 0."""

    kind: Literal["regex"]
    pattern: str = Field(description="A regular expression; its first group is compared, or all of it without groups.")
    which: Literal["first", "last"] = Field(default="last", description="Which of several matches.")
    column: str | None = Field(default="answer", description=f"{_COLUMN} null: that something is found is enough.")
    ignore_case: bool = Field(default=False, description="Whether A and a are the same.")
    timeout: float = Field(default=1.0, gt=0, description="Seconds that a search may take.")

    @model_validator(mode="after")
    def _check_pattern(self) -> RegexSection:
        try:
            regex.compile(self.pattern)
        except regex.error as error:
            raise _fail(f"pattern '{self.pattern}' is no regular expression ({error}).") from error
        return self


class NumericSection(ScorerBase):
    """1 where the last number of the answer is the last one of the expected text, else 0."""

    kind: Literal["numeric"]
    column: str = Field(default="answer", description=_COLUMN)
    after: str | None = Field(
        default=None, min_length=1, description="Look only behind the last place of this text, such as '####'."
    )
    tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="Difference that is still right.")
    relative: float = Field(
        default=0.0, ge=0, lt=1, description="The same as a share of the expected number; the larger of the two counts."
    )


class MathSection(ScorerBase):
    """1 where math-verify finds the answer equal to the expected expression, else 0."""

    kind: Literal["math"]
    column: str = Field(default="answer", description=_COLUMN)
    timeout: float = Field(default=5.0, gt=0, description="Seconds that one comparison may take.")


class PythonSection(ScorerBase):
    """What a function of yours returns for a `prefopt.rewards.Attempt`."""

    kind: Literal["python"]
    function: str = Field(description="file.py:function; the file is run.")
    low: FiniteFloat | None = Field(default=None, description="No score is below it: one that is counts as failed.")
    high: FiniteFloat | None = Field(default=None, description="No score is above it: one that is counts as failed.")

    @model_validator(mode="after")
    def _check_function(self) -> PythonSection:
        if not re.fullmatch(r".+\.py:[^\W\d]\w*", self.function):
            raise _fail(f"function is '{self.function}'; it must be of the form file.py:function.")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise _fail(f"low is {self.low:g} and high is {self.high:g}; low must be the smaller one.")
        return self


class LengthSection(ScorerBase):
    """0 at a length, and less by `penalty` for each unit away from it, down to `floor`."""

    kind: Literal["length"]
    target: int = Field(ge=0, description="The length that is right.")
    unit: Literal["words", "characters", "tokens"] = Field(
        default="words", description="What is counted; tokens are those that were sampled, of the text whole."
    )
    of: Part = Field(default="answer", description=_PART)
    side: Literal["both", "longer", "shorter"] = Field(
        default="both", description="Whether too long, too short or both costs something."
    )
    penalty: float = Field(default=0.01, gt=0, allow_inf_nan=False, description="What one unit too many costs.")
    floor: float = Field(default=-1.0, lt=0, allow_inf_nan=False, description="The lowest score.")

    @model_validator(mode="after")
    def _check_unit(self) -> LengthSection:
        if self.unit == "tokens" and self.of != "text":
            raise _fail("unit is tokens, which are known of the text whole: write of: text, or unit: words.")
        return self


class SentimentSection(ScorerBase):
    """VADER's compound score of the answer, -1 (very negative) to 1 (very positive)."""

    kind: Literal["sentiment"]
    of: Part = Field(default="answer", description=_PART)


class ReasoningGymSection(ScorerBase):
    """The score, 0 to 1, that a reasoning-gym task itself gives to the answer."""

    kind: Literal["reasoning_gym"]
    timeout: float = Field(default=10.0, gt=0, description="Seconds that one score may take.")

    @property
    def columns(self) -> frozenset[str]:
        return frozenset(["reasoning_gym"])


class ModelSection(ScorerBase):
    """The score of a sequence-classification reward model."""

    kind: Literal["model"]
    name: str = Field(min_length=1, description="A name on the Hugging Face Hub, or a directory.")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub.")
    label: int | str | None = Field(
        default=None,
        description="Of a model with several labels, the one whose number is the score: its place from 0, or its name; "
        "null for a model of one number.",
    )
    activation: Literal["softmax", "sigmoid", "none"] | None = Field(
        default=None,
        description="What is made of the label's number: softmax, its probability among all labels; sigmoid, its own; "
        "none, the number as it is. null: what the model's problem_type says.",
    )
    dtype: DtypeName = Field(default="auto", description="Precision of its weights.")
    quantization: QuantizationSection | None = Field(
        default=None, description="Keep its weights in 4 or 8 bits: nf4, fp4, int8, or a section."
    )
    device: str = Field(default="auto", description="Where it computes: auto, cpu, cuda, cuda:1, mps, ...")
    trust_remote_code: bool = Field(default=False, description="Run Python code that comes with the model.")
    of: Literal["answer", "text"] = Field(
        default="answer",
        description="What it reads behind the prompt: the answer, or with its thinking the text whole.",
    )
    max_length: int | None = Field(
        default=None,
        ge=1,
        description="Tokens that it reads at most, and never more than it has positions for; a longer text fails. "
        "null: what it was made for.",
    )
    token_budget: int = Field(
        default=4096, ge=0, description="Tokens of a batch, padding included; 0 computes each text alone."
    )


class ImplicitSection(ScorerBase):
    """The policy's own implicit reward, beta * (log pi - log pi_ref), of the sampled completion."""

    kind: Literal["implicit"]
    beta: float = Field(default=0.1, gt=0, allow_inf_nan=False, description="Scales the log-ratio.")


class JudgeSection(ScorerBase):
    """A grade by a model behind an OpenAI-compatible endpoint."""

    free: ClassVar[frozenset[str]] = frozenset(
        {"enabled", "key_variable", "timeout", "retries", "parallel", "max_calls", "max_total_tokens"}
    )
    kind: Literal["judge"]
    enabled: bool = Field(
        default=False, description="Must be true: prompts and answers are sent to the endpoint, which may cost money."
    )
    endpoint: str = Field(description="Its base address, such as http://localhost:8000/v1.")
    model: str = Field(min_length=1, description="The model's name there.")
    key_variable: str | None = Field(
        default=None, description="The environment variable that holds the key; null for none."
    )
    instruction: str = Field(
        default="Grade the answer to the question from {low} (useless) to {high} (excellent). Reply with the number "
        "alone.\n\nQuestion:\n{prompt}\n\nAnswer:\n{answer}",
        description="What the judge is asked; {prompt}, {answer}, {low} and {high} stand for what they say.",
    )
    pattern: str = Field(
        default=r"(-?\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*\d+)?",
        description="What in its reply is the grade: the last match, or the first group of it.",
    )
    low: FiniteFloat = Field(default=1.0, description="The lowest grade.")
    high: FiniteFloat = Field(default=10.0, description="The highest grade.")
    temperature: float = Field(default=0.0, ge=0, description="Of the judge's sampling.")
    max_tokens: int = Field(default=16, ge=1, description="Tokens of a reply.")
    timeout: float = Field(
        default=60.0, gt=0, description="Seconds that a call may take, from its first to its last byte."
    )
    retries: Annotated[int, Field(ge=0, le=20)] = Field(
        default=4, description="How often a call that failed is tried again, after 1, 2, 4, ... seconds."
    )
    parallel: Annotated[int, Field(ge=1, le=256)] = Field(default=4, description="Calls at a time.")
    max_calls: int = Field(
        default=1000, ge=1, description="Calls that one stage of scoring may make, tries again and resumes included."
    )
    max_total_tokens: int = Field(
        default=1_000_000, ge=1, description="Tokens that it may use, as the endpoint counts them."
    )

    @model_validator(mode="after")
    def _check(self) -> JudgeSection:
        address = urlsplit(self.endpoint)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise _fail(f"endpoint is '{self.endpoint}'; it must be an address such as http://localhost:8000/v1.")
        if address.username or address.password or address.query:
            raise _fail("endpoint holds more than an address: name the variable with the key in key_variable.")
        if not self.enabled:
            raise _fail(
                f"enabled is false, and the judge would send prompts and answers to {address.netloc}: write enabled: "
                "true to let it."
            )
        if self.key_variable and address.scheme == "http" and not is_local(self.endpoint):
            raise _fail(f"endpoint is '{self.endpoint}', where the key would travel in the clear: write https.")
        if self.low >= self.high:
            raise _fail(f"low is {self.low:g} and high is {self.high:g}; low must be the smaller one.")
        if "{answer}" not in self.instruction:
            raise _fail("instruction has no {answer}, so the judge would not see what it grades.")
        try:
            regex.compile(self.pattern)
        except regex.error as error:
            raise _fail(f"pattern '{self.pattern}' is no regular expression ({error}).") from error
        return self


def _fail(sentence: str) -> PydanticCustomError:
    return PydanticCustomError("reward", "{sentence}", {"sentence": sentence})
