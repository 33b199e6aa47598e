"""A run of rounds -> its page: what each round came to, and whether the reward rose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.eval.intervals import Mean, mean
from prefopt.report import tables
from prefopt.report.cost import rounds_cost
from prefopt.report.document import render_page
from prefopt.report.measured import measured_sections
from prefopt.report.read import Json
from prefopt.report.rounds_figures import rounds_figures, rounds_training
from prefopt.report.rounds_read import RoundsFiles, Sampled
from prefopt.report.rounds_tables import held_out_table, made_table, value_of
from prefopt.report.samples import Sample, Side, kinds_of, text_of
from prefopt.report.shading import Answer
from prefopt.report.verdict import Tile, Verdict
from prefopt.report.words import NONE, duration, interval, is_number, number, percent, percent_interval, plural
from prefopt.rounds.status import RoundStatus

Measure = Mapping[str, Any]


def render_rounds(run: RoundsFiles) -> str:
    """Return the page. All text that comes from a model, a data set or a recipe is escaped by the template."""
    measured, problems = measured_sections(run)
    samples = _samples(run)
    environment = next((found.environment for _, found in run.training[::-1] if found.environment), None)
    return render_page(
        "rounds_page.html.j2",
        scripted=True,
        name=run.path.resolve().name,
        facts=_facts(run),
        verdict=judge_rounds(run),
        problems=[*run.problems, *problems, *run.status.notes],
        finished=is_whole(run),
        nav=[
            ("rounds", "Rounds"),
            ("training", "Training"),
            *((part.id, part.short) for part in measured),
            ("samples", "Samples"),
            ("cost", "Cost"),
            ("recipe", "Recipe"),
            ("environment", "Environment"),
        ],
        curves=rounds_figures({run.path.name: run}),
        tables=[part for part in (held_out_table(run), made_table(run)) if part.lines],
        training=rounds_training(run),
        measured=measured,
        samples=samples,
        kinds=kinds_of(samples),
        cost=rounds_cost(run.seconds, sum(one.tokens or 0 for one in run.status.rounds), _memory(run)),
        recipe=run.recipe_text,
        environment=tables.flat(environment) if environment else [],
    )


def is_whole(run: RoundsFiles) -> bool:
    """Whether the run did what its recipe asks for, or stopped by a rule of it."""
    section = run.recipe.get("rounds")
    asked = section.get("count") if isinstance(section, Mapping) else None
    done = sum(one.name != "start" and "evaluate" in one.done for one in run.status.rounds)
    stopped = any(note.startswith("stopped") and "--until" not in note for note in run.status.notes)
    under_way = any(note.startswith("under way") for note in run.status.notes)
    return not under_way and (stopped or (isinstance(asked, int) and done >= asked))


def paired(one: Mapping[str, float], other: Mapping[str, float]) -> Mean | None:
    """Return the mean over shared prompts of how much more reward `one` has, with its interval."""
    shared = [one[prompt] - other[prompt] for prompt in one if prompt in other]
    return mean(shared) if len(shared) > 1 else None


def judge_rounds(run: RoundsFiles) -> Verdict:
    """Return the verdict: by the held-out reward of the last evaluated round against the start, prompt by prompt."""
    measured = [(one, run.measures[one.name]) for one in run.evaluated]
    known = [(one, found) for one, found in measured if is_number((found.get("reward") or {}).get("value"))]
    if len(known) < 2 or known[0][0].name != "start":
        return _pending(run)
    (_, start), (last, now) = known[0], known[-1]
    then_value, value = start["reward"]["value"], now["reward"]["value"]
    gain = paired(run.rewards.get(last.name, {}), run.rewards.get("start", {}))
    tone, title = _headline(then_value, value, gain)
    if not is_whole(run):
        title = f"Not finished; so far: {title[0].lower()}{title[1:]}"
    return Verdict(tone, title, tuple(_sentences(known, gain)), _tiles(start, now))


def _headline(then: float, now: float, gain: Mean | None) -> tuple[str, str]:
    said = f"from {number(then)} to {number(now)} on held-out prompts"
    if gain is None or gain.low is None or gain.high is None:
        return "unclear", f"The reward went {said}; there is nothing to take an interval from"
    if gain.sign > 0:
        return "good", f"The reward rose: {said}"
    if gain.sign < 0:
        return "bad", f"The reward fell: {said}"
    return "unclear", f"No clear change of the reward: {said}"


def _sentences(known: Sequence[tuple[RoundStatus, Json]], gain: Mean | None) -> list[str]:
    (_, start), (last, now) = known[0], known[-1]
    said = []
    if gain is not None:
        way = "fallen" if (gain.value or 0) < 0 else "risen"
        said.append(
            f"After {plural(int(last.name) + 1, 'round')} the mean held-out reward has {way} by "
            f"{number(abs(gain.value or 0))} (95\u00a0% interval of the change {number(gain.low)} to "
            f"{number(gain.high)}, a bootstrap over the differences of {plural(gain.n, 'prompt')})."
        )
    best, highest = max(known, key=lambda pair: float(pair[1]["reward"]["value"]))
    if best is not last:
        name = "the start" if best.name == "start" else f"round {best.name}"
        said.append(f"The highest was {number(highest['reward']['value'])}, at {name}.")
    one, many = (value_of(now, key) for key in ("pass@1", "pass@k"))
    if is_number(one) and is_number(many):
        k = number(now.get("k"))
        was = value_of(start, "pass@1"), value_of(start, "pass@k")
        said.append(
            f"{percent(one)} of its answers are right ({percent(was[0])} at the start); at least one of {k} answers is "
            f"right for {percent(many)} of prompts ({percent(was[1])} at the start)."
        )
    if is_number(kl := value_of(now, "kl")):
        said.append(f"It has moved {number(kl)} nats an answer away from the model as it began (KL).")
    drift = now.get("drift") or {}
    if is_number(length := drift.get("length")) and abs(length - 1) > 0.1:
        way = "longer" if length > 1 else "shorter"
        was, now_long = value_of(start, "length"), value_of(now, "length")
        told = f" ({number(was)} tokens then, {number(now_long)} now)" if is_number(was) and is_number(now_long) else ""
        said.append(f"Its answers are {number(100 * abs(length - 1), 2)}\u00a0% {way} than at the start{told}.")
    if is_number(more := drift.get("duplicates")) and more > 0.1:
        said.append(
            f"{percent(now.get('duplicates'))} of its answers repeat another one to the same prompt, "
            f"{number(100 * more)} points more than at the start: it has lost variety."
        )
    return said


def _tiles(start: Json, now: Json) -> tuple[Tile, ...]:
    tiles = [
        Tile(
            "Held-out reward, start → now",
            _both(start, now, "reward", number),
            f"95 % interval {interval(now['reward'])}",
        )
    ]
    if is_number(value_of(now, "pass@1")):
        note = f"95 % interval {percent_interval(now['pass@1'])}"
        tiles.append(Tile("pass@1, start → now", _both(start, now, "pass@1", percent), note))
    if is_number(value_of(now, "kl")):
        tiles.append(Tile("KL to the first reference", number(value_of(now, "kl")), "nats an answer"))
    if is_number(value_of(now, "length")):
        tiles.append(Tile("Tokens an answer, start → now", _both(start, now, "length", number), "held-out prompts"))
    return tuple(tiles)


def _both(start: Json, now: Json, key: str, shown: Any) -> str:
    return f"{shown(value_of(start, key))} → {shown(value_of(now, key))}"


def _pending(run: RoundsFiles) -> Verdict:
    done = [one for one in run.status.rounds if one.name != "start" and "train" in one.done]
    sentences = ["Whether the reward rises is known once the start and a round after it are evaluated."]
    if done:
        sentences.append(f"{plural(len(done), 'round')} {'have' if len(done) > 1 else 'has'} trained so far.")
    rewards = [one for one in run.status.rounds if one.reward is not None]
    tiles = (
        [Tile("Reward of what was sampled", number(rewards[-1].reward), f"round {rewards[-1].name}")] if rewards else []
    )
    return Verdict("pending", "Not finished", tuple(sentences), tuple(tiles))


def _facts(run: RoundsFiles) -> list[tuple[str, str]]:
    recipe = run.recipe
    select, score = recipe.get("select"), recipe.get("score")
    scorers = score.get("scorers") if isinstance(score, Mapping) else None
    rounds = [one for one in run.status.rounds if one.name != "start"]
    facts = [
        ("Model", tables.place(recipe.get("model"), "name")),
        ("Scored by", ", ".join(map(str, scorers)) if isinstance(scorers, Mapping) else NONE),
        ("Selected by", tables.named(select, "selector")),
        ("Loss", tables.loss(recipe.get("loss"))),
        ("Prompts", tables.place(recipe.get("prompts"), "train")),
        ("Rounds", number(len(rounds))),
        ("Time", duration(sum(run.seconds.values())) if run.seconds else NONE),
    ]
    return [(label, value) for label, value in facts if value != NONE]


def _samples(run: RoundsFiles) -> list[Sample]:
    return [
        Sample(
            f"Held-out prompt {at + 1}",
            text_of(prompt.text),
            tuple(
                Side(
                    f"round-{name}",
                    "At the start" if name == "start" else f"After round {name}",
                    "before" if name == "start" else "after",
                    tuple(_answer(one) for one in answers),
                )
                for name, answers in prompt.answers.items()
            ),
            choices={"outcome": _outcome(prompt.answers)},
        )
        for at, prompt in enumerate(run.prompts)
    ]


def _answer(one: Sampled) -> Answer:
    note = "no score" if one.score is None else f"reward {number(one.score)}"
    if one.correct is not None:
        note = f"{'✓ right' if one.correct else '✗ wrong'}, {note}"
    return Answer(one.text, note=note)


def _outcome(answers: Mapping[str, Sequence[Sampled]]) -> str:
    """Return what the page's selection can keep to: rose, fell or same, by mean score of first and last round."""
    means = [
        sum(scores) / len(scores)
        for said in answers.values()
        if (scores := [o.score for o in said if o.score is not None])
    ]
    if len(means) < 2 or means[0] == means[-1]:
        return "same"
    return "rose" if means[-1] > means[0] else "fell"


def _memory(run: RoundsFiles) -> float | None:
    values = [
        row["memory_bytes"] for _, found in run.training for row in found.metrics if is_number(row.get("memory_bytes"))
    ]
    return max(values) if values else None
