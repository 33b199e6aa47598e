"""`prefopt chat`: the tuned model's answers beside those of the model it came from."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefopt.cli.console import messages, results

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

Turn = dict[str, str]


@dataclass
class _Speaker:
    """One of the two models, with the conversation as it went with this one."""

    name: str
    adapter: bool
    """Whether the adapter is on while it speaks."""
    turns: list[Turn] = field(default_factory=list)


def chat(
    run: Annotated[
        Path, typer.Argument(help="The run directory of a finished training.", metavar="RUN", show_default=False)
    ],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens an answer may have.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Share of probability that is sampled from.")] = 0.95,
    seed: Annotated[int, typer.Option(help="The same seed and messages give the same answers.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a message, for programs.")] = False,
) -> None:
    """Talk to a tuned model and to the model it came from, side by side.

    Each keeps its own conversation. An empty line or Ctrl-D ends it, `/new` starts another. When input is
    piped, every line is a message.

    **Examples**

    - `prefopt chat runs/mine`
    - `echo "What makes a good film?" | prefopt chat runs/mine --temperature 0 --json`
    """
    from prefopt.sampling import stream
    from prefopt.workflow import load_run

    model, tokenizer, recipe = load_run(run)
    speakers = [_Speaker("tuned", adapter=True)]
    if hasattr(model, "disable_adapter"):
        speakers.insert(0, _Speaker("base", adapter=False))
    else:
        messages().print("This run trained all weights, so its base model is not at hand: only the tuned one answers.")
    for number, text in enumerate(_said()):
        if text == "/new":
            for speaker in speakers:
                speaker.turns.clear()
            continue
        with _Answers(text, [speaker.name for speaker in speakers], as_json=as_json) as answers:
            for speaker in speakers:
                speaker.turns.append({"role": "user", "content": text})
                answer = stream(
                    model,
                    tokenizer,
                    # A model without a chat template continues plain text; it has no turns to remember.
                    speaker.turns if tokenizer.chat_template else text,
                    answers.to(speaker.name),
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    top_p=top_p,
                    seed=seed + number,
                    adapter=speaker.adapter,
                    thinking=recipe.data.thinking,
                )
                speaker.turns.append({"role": "assistant", "content": answer})


def _said() -> Iterator[str]:
    """Yield what the user says: typed lines until an empty one, or every non-empty line of a pipe."""
    if not sys.stdin.isatty():
        yield from (text for line in sys.stdin if (text := line.strip()))
        return
    while True:
        try:
            text = messages().input("[bold cyan]you>[/] ").strip()
        except EOFError:
            return
        if not text:
            return
        yield text


class _Answers:
    """The answers to one message, shown in columns as they grow, or printed as JSON when they are whole."""

    def __init__(self, prompt: str, names: list[str], *, as_json: bool) -> None:
        self._prompt = prompt
        self._texts = dict.fromkeys(names, "")
        self._as_json = as_json
        self._live: Live | None = None

    def __enter__(self) -> _Answers:
        if not self._as_json:
            from rich.live import Live

            self._live = Live(self._table(), console=results(), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif kind is None:
            typer.echo(json.dumps({"prompt": self._prompt, **self._texts}, ensure_ascii=False))

    def to(self, name: str) -> Callable[[str], None]:
        """Return what takes the pieces of one model's answer."""

        def take(piece: str) -> None:
            self._texts[name] += piece
            if self._live is not None:
                self._live.update(self._table(), refresh=self._live.console.is_terminal)

        return take

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self._prompt), title_justify="left", expand=True)
        for name in self._texts:
            table.add_column(name, ratio=1)
        # Text, not markup, and without control characters: a model may write anything.
        table.add_row(*(Text("".join(c for c in t if c.isprintable() or c == "\n")) for t in self._texts.values()))
        return table
