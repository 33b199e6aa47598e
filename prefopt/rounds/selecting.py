"""The stage that selects: scored rollouts in, groups to train on out."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from prefopt.errors import RunError
from prefopt.rounds.hinting import HINT_SCORES
from prefopt.rounds.run import Plan, Run
from prefopt.rounds.sampling import HINT_ROLLOUTS, ROLLOUTS
from prefopt.rounds.scoring import SCORES, pairs_of
from prefopt.rounds.select import build_selector, target_warning
from prefopt.rounds.select_records import Candidate, Selection
from prefopt.rounds.stage import Manifest, Stage
from prefopt.rounds.tables import GroupRow, ScoreRow, read_scores, rows_hash, write_groups
from prefopt.sampling import Rollout, read_rollouts

GROUPS = "groups.parquet"

Scored = tuple[Rollout, ScoreRow]


def plan_selection(run: Run, number: int) -> Plan:
    """Select of what a round sampled and scored."""
    inputs = {
        "rollouts": run.made[number, "sample"].content(ROLLOUTS),
        "scores": run.made[number, "score"].content(SCORES),
    }
    if run.recipe.rounds.rationalise is not None:
        inputs["hinted rollouts"] = run.made[number, "hint-sample"].content(HINT_ROLLOUTS)
        inputs["hinted scores"] = run.made[number, "hint-score"].content(HINT_SCORES)
    stage = Stage(
        "select",
        run.round_folder(number),
        inputs=inputs,
        parameters={"select": run.recipe.select.model_dump(mode="json"), "round": number, "bound": bound_of(run)},
        seed=run.recipe.rounds.seed,
    )
    return Plan(stage, lambda: run.ranks.of_main(lambda: _select(run, stage, number)))


def bound_of(run: Run) -> float | None:
    """Return the highest score that the scorers can give, where the selector has no bound of its own and needs one."""
    config = run.recipe.select
    if config.selector != "rejection" or config.bound is not None:
        return None
    from prefopt.rewards import build_scorer

    return build_scorer(run.recipe.score).high


def _select(run: Run, stage: Stage, number: int) -> Manifest:
    config, sample = run.recipe.select, run.recipe.sample
    selector = build_selector(config, n=sample.n, high=stage.parameters["bound"])
    q: dict[str, Any] = {"engine": sample.engine}
    if sample.engine != "file":  # which says nothing of how its completions were drawn
        q |= {"temperature": sample.temperature, "top_p": sample.top_p, "top_k": sample.top_k}
    if warning := target_warning(config, q):
        warnings.warn(warning, stacklevel=2)
    scored = _scored(run, stage)
    rows: list[GroupRow] = []
    selections: list[Selection] = []
    for prompt_id, group in groupby(scored, key=lambda pair: pair[0].prompt_id):
        by_sample = {rollout.sample: (rollout, row) for rollout, row in group}
        candidates = [
            Candidate(sample, rollout.token_ids, row.score, len(rollout.token_ids), row.correct)
            for sample, (rollout, row) in by_sample.items()
        ]
        selection = selector.of_prompt(candidates, seed=stage.seed, round_=number, prompt_id=prompt_id)
        selections.append(selection)
        rows += _rows(selection, by_sample, as_list=config.made_as == "lists")
    counts = counts_of(selections, rows) | {"q": q}
    if not rows:
        why = "; ".join(f"{reason} ({prompts} prompts)" for reason, prompts in counts["reasons"].items())
        raise RunError(
            f"round {number} selected nothing to train on: {why}. Sample more (sample.n), lower what select asks for, "
            "or choose prompts that the model sometimes answers well; rollouts and scores are kept."
        )
    write_groups(stage.folder / GROUPS, rows)
    return stage.commit({GROUPS: rows_hash(rows)}, counts)


def _scored(run: Run, stage: Stage) -> list[Scored]:
    """Return what may be selected, a prompt's candidates together; what was sampled with a hint is among them."""
    scored = pairs_of(read_rollouts(stage.folder / ROLLOUTS), read_scores(stage.folder / SCORES))
    if run.recipe.rounds.rationalise is None:
        return scored
    place = {prompt_id: at for at, prompt_id in enumerate(dict.fromkeys(one.prompt_id for one, _ in scored))}
    scored += pairs_of(read_rollouts(stage.folder / HINT_ROLLOUTS), read_scores(stage.folder / HINT_SCORES))
    return sorted(scored, key=lambda pair: place[pair[0].prompt_id])


def _rows(selection: Selection, by_sample: Mapping[int, Scored], *, as_list: bool) -> list[GroupRow]:
    """Return the examples that a selection makes of its prompt."""
    made: list[tuple[tuple[int, ...], bool | None]] = [(pair, None) for pair in selection.pairs]
    made += [((sample,), label) for sample, label in selection.labels]
    if as_list and selection.accepted:
        best_first = sorted(selection.accepted, key=lambda sample: -(by_sample[sample][1].score or 0.0))
        made.append((tuple(best_first), None))
    else:
        made += [((sample,), True) for sample in selection.accepted]
    return [_row(samples, label, by_sample) for samples, label in made]


def _row(samples: tuple[int, ...], label: bool | None, by_sample: Mapping[int, Scored]) -> GroupRow:
    rollouts = [by_sample[sample][0] for sample in samples]
    return GroupRow(
        rollouts[0].prompt_id,
        rollouts[0].prompt_ids,
        samples,
        tuple(rollout.token_ids for rollout in rollouts),
        tuple(float(by_sample[sample][1].score or 0.0) for sample in samples),
        tuple(rollout.finish == "length" for rollout in rollouts),
        label,
    )


def counts_of(selections: Sequence[Selection], rows: Sequence[GroupRow]) -> dict[str, Any]:
    """Return what to tell people of a selection."""
    candidates, passed = (sum(getattr(one, name) for one in selections) for name in ("candidates", "passed"))
    return {
        "examples": len(rows),
        "prompts": len(selections),
        "prompts_used": sum(not one.empty for one in selections),
        "candidates": candidates,
        "passed": passed,
        "acceptance": passed / candidates if candidates else None,
        "failed": sum(one.failed for one in selections),
        "duplicates": sum(one.duplicates for one in selections),
        "reasons": dict(Counter(one.reason for one in selections if one.empty).most_common()),
    }
