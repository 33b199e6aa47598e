"""Steps whose loss or gradient is NaN or infinite: found before the optimizer sees them, with the rows to blame."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from prefopt.data.layout import contents
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.records import Pack
from prefopt.train.ranks import Ranks
from prefopt.train.whole import passable

FILE = "non_finite.jsonl"
_NAMED = 5
Tokens = tuple[int, ...]


def is_finite(loss: float, parameters: Iterable[nn.Parameter]) -> bool:
    """Whether a step's loss and all of its gradients are numbers; of weights in parts, those of this rank."""
    held = [parameter.grad for parameter in parameters if parameter.grad is not None]
    local = [g.to_local() if isinstance(g, DTensor) else g for g in held]
    gradients = [g for g in local if g.numel()]  # a rank's part of a small weight may be nothing
    if not math.isfinite(loss) or not gradients:
        return math.isfinite(loss)
    return bool(torch.isfinite(get_total_norm(gradients, norm_type=math.inf)))


class Culprits:
    """The completions of a step that was not finite: those whose own log-prob is not, or else all of them."""

    @classmethod
    def among(cls, policy: PackedModel, reference: Reference | None, packs: Sequence[Pack], ranks: Ranks) -> Culprits:
        """Score every completion of the step again, without gradient; all ranks call this and find the same.

        Without a reference that computes, the policy alone is looked at.
        """
        rows: list[dict[str, Any]] = []
        for pack in packs:
            if not (pack.num_sequences or ranks.sharded):
                continue
            with torch.no_grad():
                whole = passable(pack)
                own = policy.logprobs(whole)
                compared = None if reference is None else reference.logprobs(whole)
            if pack.num_sequences:
                frozen = [None] * pack.num_sequences if compared is None else compared.tolist()
                rows += [
                    {"prompt": prompt, "completion": completion, "policy": log_prob, "reference": other}
                    for (prompt, completion), log_prob, other in zip(contents(pack), own.tolist(), frozen, strict=True)
                ]
        return cls([row for part in ranks.gather(rows) for row in part])

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        broken = [row for row in rows if not _finite(row["policy"]) or not _finite(row["reference"])]
        self.scored = bool(broken)
        """Whether the log-probs themselves are not finite; otherwise only the gradient was."""
        self.rows = broken or rows

    def write(self, path: Path, step: int, sources: dict[tuple[Tokens, Tokens], str], tokenizer: Any) -> None:
        """Append the rows to `path`: step, where the row came from, texts, token ids, log-probs."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            for row in self.rows:
                texts = {}
                if tokenizer is not None:
                    texts = {f"{part}_text": tokenizer.decode(list(row[part])) for part in ("prompt", "completion")}
                source = sources.get((row["prompt"], row["completion"]))
                numbers = {side: _json_number(row[side]) for side in ("policy", "reference")}
                file.write(json.dumps({"step": step, "source": source, **texts, **row, **numbers}) + "\n")

    def sentence(self, step: int, sources: dict[tuple[Tokens, Tokens], str], path: Path) -> str:
        """Say what is not finite and in which rows."""
        found = (sources.get((row["prompt"], row["completion"])) for row in self.rows)
        names = list(dict.fromkeys(name for name in found if name))
        shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        what = "log-probs are NaN or infinite" if self.scored else "log-probs are finite, but not the loss or gradient,"
        where = f" ({shown})" if shown else ""
        return f"step {step}: {what} for {len(self.rows)} completions{where}; they are listed in {path}."


def _finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)


def _json_number(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
