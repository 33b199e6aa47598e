"""The options of every command that samples: which prompts, how much of each, and how much at once."""

from __future__ import annotations

from typing import Annotated

import typer

PromptColumn = Annotated[str | None, typer.Option(help="Which of its columns holds the prompt.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use the first of the prompts.")]
SamplesPerPrompt = Annotated[int, typer.Option(min=1)]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens a sample may have.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples computed at once: memory and time.")]
TokenBudget = Annotated[
    int | None, typer.Option(min=1, help="Tokens scored at once: memory and time. Default: what suits the device.")
]
