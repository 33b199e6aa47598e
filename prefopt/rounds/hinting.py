"""The stages that rationalise: what was answered wrong is asked again with a hint, which is then taken away.

Rationalisation as in STaR, arXiv:2203.14465.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefopt.errors import DataError
from prefopt.rounds.config import RationaliseSection
from prefopt.rounds.run import Plan, Run
from prefopt.rounds.sampling import HINT_ROLLOUTS, ROLLOUTS, plan_shards
from prefopt.rounds.scoring import SCORES, plan_scores
from prefopt.rounds.tables import read_scores
from prefopt.sampling import Prompt, read_rollouts

HINT_SCORES = "hint-scores.parquet"


def plan_hint_sampling(run: Run, number: int) -> Plan | None:
    """Sample the prompts of a round again that it answered wrong each time, with a hint; None where none is asked for.

    The completions are kept behind the prompt without the hint, with their log-probs there, as samples n, n + 1, ...
    """
    section = run.recipe.rounds.rationalise
    if section is None:
        return None
    folder = run.round_folder(number)
    right = {row.prompt_id for row in read_scores(folder / SCORES) if row.correct}
    failed = [prompt for prompt in run.round_prompts(number) if prompt.prompt_id not in right]
    sample = run.recipe.sample
    hinted = [hinted_prompt(prompt, section) for prompt in failed]
    return plan_shards(
        run,
        number,
        "hint-sample",
        hinted,
        sample.model_copy(update={"n": section.n or sample.n}),
        policy=number - 1,
        output=HINT_ROLLOUTS,
        hint=section.model_dump(mode="json"),
        asked=lambda: _asked(run, number),
    )


def plan_hint_scoring(run: Run, number: int) -> Plan | None:
    """Score what was sampled with a hint, as if it had been sampled without; None where none is asked for."""
    if run.recipe.rounds.rationalise is None:
        return None
    sampled = run.made[number, "hint-sample"]
    return plan_scores(run, number, "hint-score", sampled, HINT_ROLLOUTS, HINT_SCORES, run.round_prompts(number))


def hinted_prompt(prompt: Prompt, section: RationaliseSection) -> Prompt:
    """Return the prompt with its row's answer in it, under the same id.

    Raises:
        DataError: the row has no answer, or the conversation nothing that a user says.
    """
    answer = prompt.row.get(section.column)
    answer = answer[0] if isinstance(answer, list | tuple) and answer else answer
    if answer is None:
        raise DataError(
            f"rounds.rationalise needs the answer of every row in the column '{section.column}', and one has "
            f"{', '.join(map(str, prompt.row)) or 'no other column than the prompt'}: name the right one in "
            "rounds.rationalise.column."
        )

    def with_hint(text: str) -> str:
        # One after the other would put the answer into a prompt that speaks of "{answer}" itself.
        before, _, behind = section.hint.partition("{prompt}")
        return before.replace("{answer}", str(answer)) + text + behind.replace("{answer}", str(answer))

    if isinstance(prompt.prompt, str):
        return replace(prompt, prompt=with_hint(prompt.prompt))
    messages: list[Mapping[str, Any]] = list(prompt.prompt)
    last = next((at for at in reversed(range(len(messages))) if messages[at]["role"] == "user"), None)
    if last is None or not isinstance(messages[last].get("content"), str):
        raise DataError(
            "rounds.rationalise writes the answer into what the user said last, and a conversation has nothing of the "
            "kind; leave such prompts out."
        )
    messages[last] = {**messages[last], "content": with_hint(messages[last]["content"])}
    return replace(prompt, prompt=tuple(messages))


def check_hints(prompts: Sequence[Prompt], section: RationaliseSection) -> None:
    """Refuse prompts that can't be asked with a hint, before anything is sampled. Raises `DataError`."""
    for prompt in prompts:
        hinted_prompt(prompt, section)


def _asked(run: Run, number: int) -> dict[str, tuple[int, ...]]:
    """Return the token ids of each prompt of a round as it was asked without a hint."""
    return {one.prompt_id: one.prompt_ids for one in read_rollouts(run.round_folder(number) / ROLLOUTS)}
