"""Steps of a model whose weights are in parts, beside those of one process."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from prefopt.data import build_packs, shard
from prefopt.losses import build
from prefopt.models.packed import PackedModel
from prefopt.models.references import FrozenCopy, FrozenModel, Reference, build_reference
from prefopt.models.sharded import ShardedCopy, shard_weights
from prefopt.train.ranks import ALONE, Ranks
from prefopt.train.step import evaluate_step, run_step
from tests.models.tiny import tiny_causal_lm
from tests.train.test_step import all_groups, data_for

CASES = [  # loss, what trains, reference, token budget
    ("dpo", "lora", "adapter_off", 25),
    ("kto", "lora", "adapter_off", 25),
    ("tdpo", "lora", "adapter_off", 60),
    ("wpo", "lora", "frozen_copy", 25),
    ("dpo", "all", "frozen_copy", 25),
    ("dpo", "all", "frozen_copy", 10**6),
    ("bco", "all", "model", 60),
]


def policy_of(trains: str, ranks: Ranks) -> PackedModel:
    model: Any = tiny_causal_lm("llama", dtype=torch.float32)
    if trains == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return PackedModel(model)


def reference_of(kind: str, policy: PackedModel, sharded: bool) -> Reference:
    if kind == "model":
        return FrozenModel(policy, PackedModel(tiny_causal_lm("llama", dtype=torch.float32, seed=1)), "another.")
    if kind == "frozen_copy":
        return ShardedCopy(policy, "a copy in parts.") if sharded else FrozenCopy(policy, "a copy.")
    return build_reference(kind, policy, needed=True)


def run(case: tuple[str, str, str, int], ranks: Ranks) -> tuple[float, dict[str, float], torch.Tensor, float]:
    """A step, an update away from the copy, another step: loss, metrics, gradients, evaluation."""
    name, trains, kind, budget = case
    loss = build(name)
    policy = policy_of(trains, ranks)
    if ranks.sharded:
        shard_weights(policy)
    else:
        policy.inside = lambda do: do()  # as in parts, layers stay the model's own
    reference = reference_of(kind, policy, ranks.sharded)
    groups = all_groups(data_for(7, loss), loss)
    packs = shard(build_packs(groups, token_budget=budget, shared=True), ranks.rank, ranks.size)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    with policy.attached(), reference.attached():
        for turn in range(2):
            result = run_step(policy, reference, loss, packs, backward=lambda value: value.backward(), ranks=ranks)
            if turn == 0:
                torch.optim.SGD(trained, lr=0.05).step()
                policy.model.zero_grad()
        output, _ = evaluate_step(policy, reference, loss.eval(), packs, ranks)
    gradients = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in trained]
    evaluation = float(output.loss.sum() / output.weight.sum())
    return result.loss, result.metrics.means(), torch.cat([g.flatten() for g in gradients]), evaluation


def compare(launched: Ranks, file: Path) -> None:
    """Write {case: {what: difference}} of each rank to `file`, on rank 0."""
    sharded = Ranks(launched.rank, launched.size, launched._group, sharded=True)
    found = {}
    for case in CASES:
        alone, ours = run(case, ALONE), run(case, sharded)
        assert ours[1].keys() == alone[1].keys()
        found[" ".join(map(str, case))] = {
            "loss": abs(ours[0] - alone[0]),
            "metrics": max(abs(ours[1][name] - alone[1][name]) / max(1.0, abs(alone[1][name])) for name in alone[1]),
            "gradients": float((ours[2] - alone[2]).norm() / alone[2].norm()),
            "evaluation": abs(ours[3] - alone[3]),
            "size": float(alone[2].norm()),
        }
    everyone = launched.gather(found)
    if launched.main:
        file.write_text(json.dumps(everyone))
