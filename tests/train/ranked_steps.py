"""`python -m tests.train.ranked_steps FILE LOSS...`: steps cut among ranks, and whole, in float64.

Started as one of several ranks. Rank 0 writes {case: {what: difference}} to FILE.
"""

import json
import sys
from pathlib import Path

import torch
from torch import distributed as dist

from prefopt.data import build_packs, shard
from prefopt.losses import available, build
from prefopt.models.references import build_reference
from prefopt.train.ranks import ALONE, Ranks, ranks_of_this_run
from prefopt.train.step import evaluate_step, run_step
from tests.models.tiny import InFloat64
from tests.train.test_step import MIXTURES, adapted, all_groups, data_for

FEW = ["dpo", "kto", "aot", "bco", "beta_dpo", "wpo(tdpo(beta=0.5)) + 0.3*ld_dpo + 0.2*bco", "infonca + kto(beta=0.5)"]
ALL = [*sorted(available()), *MIXTURES]
BUDGETS = (25, 10**6)
"""Tokens a pack: several packs a rank, and one pack in all, so that the other ranks have nothing to do."""


class OutsideOfModes(Ranks):
    """`InFloat64` would have the float32 tensors that come in read as float64."""

    def gather(self, value):
        with torch._C.DisableTorchFunction():
            return super().gather(value)


def run(policy, name: str, packs, ranks: Ranks, seed: int) -> tuple[float, dict, torch.Tensor, list[float], float]:
    """Two steps, so that what a loss remembers counts, and an evaluation: loss, metrics, gradients, memory, loss."""
    loss = build(name)
    reference = build_reference("adapter_off", policy, needed=True)
    policy.model.zero_grad()
    with InFloat64(), policy.attached(), reference.attached():
        for _ in range(2):
            result = run_step(policy, reference, loss, packs, backward=lambda value: value.backward(), ranks=ranks)
            # What one step leaves behind is summed over the ranks already; divide it among them for the next.
            for parameter in policy.model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= ranks.size
        loss.eval()
        output, _ = evaluate_step(policy, reference, loss, packs, ranks)
    gradients = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad]) * ranks.size
    remembered = [float(x) for buffer in loss.state_dict().values() for x in buffer.flatten()]
    numbers = {**result.metrics.means(), "examples": result.examples, "widest": result.first_log_ratio}
    return result.loss, numbers, gradients, remembered, float(output.loss.sum() / output.weight.sum())


def difference(ours: dict[str, float], theirs: dict[str, float]) -> float:
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    return max((abs(ours[name] - theirs[name]) / max(1.0, abs(theirs[name])) for name in ours), default=0.0)


def compare(launched: Ranks, names: list[str], file: Path) -> None:
    ranks = OutsideOfModes(launched.rank, launched.size, launched._group)
    policy = adapted("llama")
    ranks.take_from_main(policy.model.parameters())
    found = {}
    for name in names:
        for budget in BUDGETS:
            loss = build(name)
            packs = build_packs(all_groups(data_for(budget, loss), loss), token_budget=budget, shared=True)
            whole = run(policy, name, packs, ALONE, budget)
            cut = run(policy, name, shard(packs, ranks.rank, ranks.size), ranks, budget)
            found[f"{name} {budget}"] = {
                "packs": len(packs),
                "loss": abs(cut[0] - whole[0]) / max(1.0, abs(whole[0])),
                "metrics": difference(cut[1], whole[1]),
                "gradients": float((cut[2] - whole[2]).norm() / whole[2].norm()),
                "remembered": difference(dict(enumerate(cut[3])), dict(enumerate(whole[3]))),
                "evaluation": abs(cut[4] - whole[4]) / max(1.0, abs(whole[4])),
                "size": float(whole[2].norm()),
            }
    everyone = ranks.gather(found)
    if ranks.main:
        file.write_text(json.dumps(everyone))


def main(file: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    compare(ranks_of_this_run(), names, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
