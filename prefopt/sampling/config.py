"""The recipe's `sample` section: how many completions of each prompt, drawn by what and how."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from prefopt.config import Section

EngineName = Literal["hf", "vllm", "file"]


class SampleConfig(Section):
    """What is sampled of each prompt, and by which engine."""

    engine: EngineName = Field(
        default="hf",
        description="What samples: 'hf', the model in training itself; 'vllm', on a GPU; 'file', made elsewhere.",
    )
    n: int = Field(default=8, ge=1, description="Completions of each prompt.")
    max_new_tokens: int = Field(default=256, ge=1, description="Tokens a completion may have; a longer one is cut.")
    temperature: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="1 is the model's own distribution; 0 takes the likeliest token each time.",
    )
    top_p: float = Field(default=1.0, gt=0, le=1, description="Draw from the likeliest tokens that make up this share.")
    top_k: int = Field(default=0, ge=0, description="Draw from the k likeliest tokens; 0 for all.")
    batch_size: int = Field(default=64, ge=1, description="Completions computed at once; memory and time.")
    token_budget: int | None = Field(
        default=None,
        ge=1,
        description="Tokens scored at once: memory and time, never the numbers. None: 8,192, or 2,048 on a CPU.",
    )
    path: str | None = Field(
        default=None, description="Of engine 'file': JSON Lines or Parquet with prompts and their completions."
    )

    @model_validator(mode="after")
    def _fits_the_engine(self) -> Self:
        if self.engine == "file" and self.path is None:
            raise ValueError("sample.path is missing; sample.engine=file reads completions from it")
        if self.engine != "file" and self.path is not None:
            raise ValueError(
                f"sample.path is set, but sample.engine={self.engine} samples by itself; leave it out, or set "
                "sample.engine=file"
            )
        if self.temperature == 0 and self.n > 1 and self.engine != "file":
            raise ValueError(
                f"sample.temperature is 0, which makes {self.n} equal completions of each prompt; raise it, or set "
                "sample.n=1"
            )
        return self
