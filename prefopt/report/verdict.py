"""Whether it got better, in sentences that each carry their number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefopt.report.read import RunFiles
from prefopt.report.words import is_number, number, percent, percent_interval, plural

Measure = Mapping[str, Any]


@dataclass(frozen=True)
class Tile:
    """One large number."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Verdict:
    """The head of the report."""

    tone: str
    """good, unclear, bad or pending: decides a colour and a word, never the only carrier of the message."""
    title: str
    sentences: tuple[str, ...]
    tiles: tuple[Tile, ...]


def judge(run: RunFiles) -> Verdict:
    """Return the verdict on a run from its held-out evaluation, or what its training says so far."""
    after = _metrics(run.after)
    if not after:
        return _without_evaluation(run)
    before = _metrics(run.before)
    primary = str(after.get("primary") or ("reward" if after.get("reward") else "logprob"))
    measure = _part(after, primary)
    tone, title = _headline(primary, measure, _part(before, primary))
    sentences = [
        *_primary(primary, measure),
        *_like_with_like(before, after),
        *_human(run.after),
        *_displacement(after),
        *_length_bias(after),
    ]
    return Verdict(tone, title, tuple(sentences), _tiles(run, before, after, primary))


def _headline(primary: str, measure: Measure, before: Measure) -> tuple[str, str]:
    value, low, high = measure.get("value"), measure.get("low"), measure.get("high")
    if not is_number(value) or not is_number(low) or not is_number(high):
        return "unclear", "The model makes no difference between chosen and rejected"
    if primary == "reward":
        if low > 0.5:
            return "good", f"It learned the preferences: {percent(value)} of held-out pairs ranked right"
        if high < 0.5:
            return "bad", f"It learned the opposite: {percent(value)} of held-out pairs ranked right"
        return "unclear", f"No clear preference learned: {percent(value)} of held-out pairs ranked right"
    was = before.get("value")
    if not is_number(was):
        return "unclear", f"It prefers the chosen completion in {percent(value)} of held-out pairs"
    if low > before["high"]:
        return "good", f"It got better: from {percent(was)} to {percent(value)} of held-out pairs"
    if high < before["low"]:
        return "bad", f"It got worse: from {percent(was)} to {percent(value)} of held-out pairs"
    return "unclear", f"No clear change: {percent(was)} of held-out pairs before, {percent(value)} after"


def _primary(primary: str, measure: Measure) -> list[str]:
    if not is_number(measure.get("value")):
        return ["On every held-out pair its two numbers are equal, so there is nothing to tell it apart by."]
    decided = int(measure.get("right", 0)) + int(measure.get("wrong", 0))
    asked = (
        "Compared with the reference model, it raised the chosen completion above the rejected one"
        if primary == "reward"
        else "It gives the chosen completion the higher log-probability"
    )
    sentence = (
        f"{asked} in {number(int(measure.get('right', 0)))} of {plural(decided, 'pair')} that were kept out of "
        f"training: {percent(measure['value'])}, with a 95 % interval of {percent_interval(measure)}."
    )
    if ties := int(measure.get("ties", 0)):
        sentence += f" {plural(ties, 'pair')} more {'are' if ties > 1 else 'is'} an exact tie and not counted."
    return [sentence]


def _like_with_like(before: Measure, after: Measure) -> list[str]:
    """Compare by the one question that can be asked of the model before training too."""
    then, now = _part(before, "logprob").get("value"), _part(after, "logprob").get("value")
    if not is_number(then) or not is_number(now):
        return []
    sentence = (
        f"By its log-probs alone, which can be asked of the model before training too, the chosen completion was the "
        f"more likely one in {percent(then)} of pairs before and {percent(now)} after"
    )
    then, now = (_part(metrics, "logprob_per_token").get("value") for metrics in (before, after))
    if is_number(then) and is_number(now):
        sentence += f"; per token in {percent(then)} and {percent(now)}"
    return [sentence + "."]


def _human(after: Mapping[str, Any] | None) -> list[str]:
    ceiling = (after or {}).get("human") or {}
    if not is_number(ceiling.get("value")):
        return []
    return [
        f"For comparison: one person agrees with the mean of the other raters on {percent(ceiling['value'])} of these "
        "pairs."
    ]


def _displacement(after: Measure) -> list[str]:
    fell, ratio = _part(after, "displacement"), _part(after, "chosen_log_ratio")
    if not is_number(fell.get("value")):
        return []
    average = ratio.get("value")
    moved = "less" if is_number(average) and average < 0 else "more"
    sentence = (
        f"The chosen completions themselves became {moved} likely, by {number(abs(average or 0))} nats on average; in "
        f"{percent(fell['value'])} of pairs the chosen one became less likely"
    )
    margin = _part(after, "margin").get("value")
    if moved == "less" and is_number(margin) and margin > 0:
        sentence += ". The margin comes from pushing the rejected ones down further"
    return [sentence + "."]


def _length_bias(after: Measure) -> list[str]:
    short, long = _part(after, "shorter_chosen"), _part(after, "longer_chosen")
    if not is_number(short.get("value")) or not is_number(long.get("value")):
        return []
    apart = _part(_part(after, "length_bias"), "difference")
    if is_number(apart.get("low")) and is_number(apart.get("high")):
        clear = apart["low"] > 0 or apart["high"] < 0
    else:  # an evaluation of an earlier version
        clear = short["low"] > long["high"] or long["low"] > short["high"]
    if not clear:
        return []
    favoured = "shorter" if short["value"] > long["value"] else "longer"
    return [
        f"It favours {favoured} completions: it ranks {percent(short['value'])} right where the chosen one is the "
        f"shorter, {percent(long['value'])} where it is the longer."
    ]


def _tiles(run: RunFiles, before: Measure, after: Measure, primary: str) -> tuple[Tile, ...]:
    measure = _part(after, primary)
    tiles = [
        Tile(
            "Held-out accuracy" + (", implicit reward" if primary == "reward" else ", log-probability"),
            percent(measure.get("value")),
            f"95 % interval {percent_interval(measure)}",
        )
    ]
    then, now = _part(before, "logprob_per_token"), _part(after, "logprob_per_token")
    if is_number(then.get("value")) and is_number(now.get("value")):
        tiles.append(
            Tile("Log-prob. accuracy per token, before → after", f"{percent(then['value'])} → {percent(now['value'])}",
                 "asked of both models")
        )  # fmt: skip
    margin = _part(after, "margin")
    if is_number(margin.get("value")):
        tiles.append(Tile("Mean margin", number(margin["value"]), "implicit reward, chosen − rejected"))
    human = (run.after or {}).get("human") or {}
    if is_number(human.get("value")):
        tiles.append(Tile("Human ceiling", percent(human["value"]), "one rater against the rest"))
    return tuple(tiles)


def _without_evaluation(run: RunFiles) -> Verdict:
    last = run.metrics[-1] if run.metrics else {}
    sentences, tiles = [], []
    if last:
        sentences.append(f"The last logged step is {number(last['step'])}, with a loss of {number(last.get('loss'))}.")
        tiles.append(Tile("Loss", number(last.get("loss")), f"step {number(last['step'])}"))
        if is_number(last.get("rewards/accuracies")):
            value = percent(last["rewards/accuracies"])
            tiles.append(Tile("Accuracy in training", value, "pairs it learns from: not a measure of success"))
    else:
        sentences.append("No step has been logged yet.")
    if run.finished:
        sentences.append(
            "Without held-out pairs (data.eval in the recipe) nobody can say whether it got better: "
            "the curves below are of the data it learned from."
        )
        return Verdict("unclear", "Trained, but not evaluated", tuple(sentences), tuple(tiles))
    sentences.append(
        "Whether it got better is measured on held-out pairs at the end."
        if names_held_out(run)
        else "The recipe names no held-out pairs (data.eval), so nothing will say whether it got better."
    )
    sentences.append("Write this report again later; if nothing is running, the run was stopped and can be resumed.")
    return Verdict("pending", f"Not finished{_progress(run)}", tuple(sentences), tuple(tiles))


def names_held_out(run: RunFiles) -> bool:
    """Whether the run measures held-out pairs, or may: the recipe names them, or can't be read."""
    data = run.recipe.get("data")
    return not isinstance(data, Mapping) or data.get("eval") is not None or data.get("eval_split") is not None


def _progress(run: RunFiles) -> str:
    section = run.recipe.get("train")
    steps = section.get("max_steps") if isinstance(section, Mapping) else None
    if not run.metrics or not is_number(steps) or steps <= 0:
        return ""
    return f": step {number(run.metrics[-1]['step'])} of {number(steps)}"


def _metrics(evaluation: Mapping[str, Any] | None) -> Measure:
    return (evaluation or {}).get("metrics") or {}


def _part(metrics: Measure, name: str) -> Measure:
    return metrics.get(name) or {}
