"""Alarms: what goes wrong in preference optimization without an error, said in words, each kind once a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefopt.train.callbacks import read_metrics, replace_lines
from prefopt.train.config import AlarmConfig

Logs = Mapping[str, float]


@dataclass(frozen=True)
class Alarm:
    """One alarm as it was said."""

    step: int
    kind: str
    sentence: str


class Alarms(TrainerCallback):
    """Says each kind of alarm once, and keeps what was said, one JSON object a line.

    Everything is read from the run's logs, which a checkpoint keeps, so a resumed run goes on as if it had never ended.

    Args:
        config: when to say what.
        say: called with the sentence.
        path: where alarms are kept; None keeps none.
    """

    def __init__(self, config: AlarmConfig, say: Callable[[str], object], path: Path | None = None) -> None:
        self.config = config
        self.said: list[Alarm] = []
        self._say = say
        self._path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._path is None:
            return
        kept = [Alarm(**record) for record in read_metrics(self._path) if record["step"] <= state.global_step]
        self.said = kept
        if self._path.is_file():  # what a resumed run will find again is dropped
            replace_lines(self._path, [json.dumps(asdict(alarm)) for alarm in kept])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        known = {alarm.kind for alarm in self.said}
        for kind, sentence in find(self.config, state.log_history):
            if kind in known:
                continue
            alarm = Alarm(state.global_step, kind, sentence)
            self.said.append(alarm)
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(json.dumps(asdict(alarm)) + "\n")
            self._say(f"alarm at step {alarm.step}: {sentence}")


def find(config: AlarmConfig, history: Iterable[Logs]) -> Iterator[tuple[str, str]]:
    """Yield (kind, sentence) of every alarm that the end of a run's logs gives cause for."""
    history = list(history)
    steps = [record for record in history if "loss" in record and "eval_loss" not in record]
    if config.chosen_falling is not None and (sentence := _chosen_falling(steps, config.window, config.chosen_falling)):
        yield "chosen_falling", sentence
    if config.accuracy_pinned and (sentence := _accuracy_pinned(steps, config.window)):
        yield "accuracy_pinned", sentence
    if config.kl is not None and (sentence := _kl(history, config.kl)):
        yield "kl", sentence


def _chosen_falling(steps: list[Logs], window: int, limit: float) -> str | None:
    """Compare with the reference, or without one with the first window of the run."""
    compared = _values(steps, "log_ratios/chosen_per_token")
    if compared:
        change, since = _mean(compared[-window:]), "than the reference finds them"
    else:
        own = _values(steps, "logps/chosen_per_token")
        change, since = _mean(own[-window:]) - _mean(own[:window]), "than at the start"
        compared = own[window:]  # the two windows don't overlap
    if len(compared) < window or change >= -limit:
        return None
    return (
        f"chosen completions have become less likely {since}, by {-change:.2g} nats a token over the last {window} "
        "logged steps: the margin grows because the rejected ones fall faster. Mix imitation in "
        "(loss: 1.0*dpo + 0.2*sft), or take dpo_positive, a larger beta or a smaller learning rate."
    )


def _accuracy_pinned(steps: list[Logs], window: int) -> str | None:
    accuracies = _values(steps, "rewards/accuracies")[-window:]
    if len(accuracies) < window or min(accuracies) < 1:
        return None
    return (
        f"every pair of the last {window} logged steps was ranked right: there is little left to learn from them, and "
        "a loss without a bound goes on pushing. Stop here, use fewer epochs, or look whether chosen and rejected "
        "differ by something trivial (prefopt data inspect)."
    )


def _kl(history: list[Logs], limit: float) -> str | None:
    measured = _values(history, "eval_kl_per_token")
    if not measured or measured[-1] <= limit:
        return None
    return (
        f"on samples the policy is {measured[-1]:.2g} nats a token away from its reference, more than alarms.kl "
        f"({limit:g}): read the samples, and take a larger beta, a smaller learning rate or an earlier checkpoint."
    )


def _values(records: list[Logs], key: str) -> list[float]:
    return [record[key] for record in records if key in record]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
