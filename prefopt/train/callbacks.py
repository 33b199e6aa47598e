"""What listens to a run: the metrics file, the progress line, the exact epoch, the reference."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefopt.models.references import Reference


class ExactEpoch(TrainerCallback):
    """Sets `state.epoch` from the global step: the Trainer counts from 0 again after a resume inside an epoch."""

    def __init__(self, steps_per_epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        state.epoch = state.global_step / self.steps_per_epoch


class EndOfStep(TrainerCallback):
    """Tells the reference after every optimizer step, before anything is saved."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.reference.end_step(state.global_step)


class MetricsFile(TrainerCallback):
    """Appends every log to `metrics.jsonl`, one JSON object a line, and drops what a resumed run will log again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._began = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kept, seconds = [], 0.0
        for record in read_metrics(self.path):
            if record.get("step", 0) <= state.global_step:
                kept.append(json.dumps(record))
                seconds = record.get("time", seconds)
        replace_lines(self.path, kept)
        self._began = time.monotonic() - seconds

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        record = {"step": state.global_step, **(logs or {}), "time": round(time.monotonic() - self._began, 3)}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    aside.write_text(text)
    aside.replace(path)


def replace_lines(path: Path, lines: list[str]) -> None:
    """Write a file of lines as `replace_text` does."""
    replace_text(path, "".join(f"{line}\n" for line in lines))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics file; a line torn by a kill is left out, a missing file is empty."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


class ProgressLine(TrainerCallback):
    """A live line: step, loss, accuracy, margin, tokens a second, share of peak FLOP/s, memory, time left."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._task = self._progress.add_task("train", total=state.max_steps, completed=state.global_step, numbers="")
        self._progress.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        shown = (
            ("loss", "loss", ".4f"),
            ("rewards/accuracies", "accuracy", ".2f"),
            ("rewards/margins", "margin", "+.3f"),
            ("tokens_per_second", "tokens/s", ",.0f"),
            ("flops_share", "of peak FLOP/s", ".0%"),
        )
        parts = [f"{label} {logs[key]:{form}}" for key, label, form in shown if logs and key in logs]
        if logs and "memory_bytes" in logs:
            parts.append(f"memory {logs['memory_bytes'] / 2**30:.2f} GiB")
        if parts and self._task is not None:
            self._progress.update(self._task, completed=state.global_step, numbers="  ".join(parts))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back; also after an exception, when `on_train_end` never comes."""
        self._progress.stop()
