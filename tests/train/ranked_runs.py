"""`python -m tests.train.ranked_runs MODEL FOLDER`: short runs of the trainer, and steps, as one of several ranks.

Each rank writes what its runs came to into FOLDER, for a test to compare with the same runs in one process.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

import prefopt
from prefopt.data import PreferenceStream
from prefopt.errors import PrefoptError
from prefopt.losses import build
from prefopt.train import PreferenceArguments, PreferenceTrainer
from prefopt.train.ranks import ranks_of_this_run
from tests.toys import pair_rows, write_rows
from tests.train import ranked_shards, ranked_steps

STEPS = {"max_steps": 5, "learning_rate": 1e-2, "save_strategy": "no", "lr_scheduler_type": "constant"}
# 24 pairs in steps of 7 leave a step of 3; of 48 labels one of 6. A budget of 120 holds one or two pairs.
MANY, FEW = {"examples_per_step": 7, "token_budget": 120}, {"examples_per_step": 2, "token_budget": 4000}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("dpo", {**MANY, "eval_strategy": "steps", "eval_steps": 2}),
    "full": ("dpo", {**MANY, "optim": "sgd"}),
    "kto": ("kto", {**MANY, "logging_steps": 2}),
    "a stream": ("dpo", {**MANY}),
    "less than a pack a rank": ("bco", FEW),
    "out of memory": ("dpo", {"examples_per_step": 7, "token_budget": 200}),
    "out of memory in bco": ("bco", {"examples_per_step": 7, "token_budget": 200}),
    "lora in parts": ("dpo", {**MANY, "shard_weights": True, "max_grad_norm": 0.1}),
}


def rows() -> list[dict[str, Any]]:
    """Pairs of which every prompt has two, so that prompts are shared."""
    found = pair_rows(12)
    return [*found, *({**row, "rejected": [{"role": "assistant", "content": "never"}]} for row in found)]


def make(case: str, model: Path, folder: Path, **options: Any) -> PreferenceTrainer:
    loss, settings = CASES[case]
    policy, tokenizer = prefopt.load_policy(str(model), dtype="float32", lora=None if case == "full" else {"r": 4})
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:  # a B of zeros would leave A without a gradient
            torch.nn.init.normal_(parameter, std=0.05)
    if case == "a stream":
        file = write_rows(folder / "rows.jsonl", rows()) if ranks_of_this_run().main else folder / "rows.jsonl"
        ranks_of_this_run().meet()
        data: Any = PreferenceStream(str(file), tokenizer, window=10)
    else:
        data = prefopt.load_preferences(rows(), tokenizer)
    args = PreferenceArguments(output_dir=str(folder / case), **STEPS | settings | options)
    held_out = prefopt.load_preferences(pair_rows(9, seed=1), tokenizer)
    return PreferenceTrainer(policy, data, build(loss), "auto", args, eval_data=held_out, tokenizer=tokenizer)


ROOM = 130
"""Tokens of a pack that rank 1 has memory for."""


def run_out_of_memory(trainer: PreferenceTrainer) -> None:
    """Let rank 1 run out of memory behind the backward pass of a large pack: its gradients are there already."""
    if trainer.ranks.rank != 1:
        return
    sizes, logprobs, backward = [0], trainer.packed.logprobs, trainer.accelerator.backward

    def forward(pack: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        sizes.append(pack.tokens.numel())
        return logprobs(pack, *args, **kwargs)

    def behind(value: torch.Tensor) -> None:
        backward(value)
        if sizes[-1] > ROOM:
            raise MemoryError

    trainer.packed.logprobs = forward
    trainer.accelerator.backward = behind


def weights(trainer: PreferenceTrainer) -> list[torch.Tensor]:
    """The weights that train, whole."""
    trained = [p.detach() for p in trainer.model.parameters() if p.requires_grad]
    return [(p.full_tensor() if isinstance(p, DTensor) else p).clone() for p in trained]


def result(trainer: PreferenceTrainer) -> dict[str, Any]:
    ignored = ("runtime", "per_second", "total_flos", "memory_bytes", "flops_share")
    logs = [{k: v for k, v in log.items() if not k.endswith(ignored)} for log in trainer.state.log_history]
    return {"logs": logs, "weights": weights(trainer)}


def run(case: str, model: Path, folder: Path) -> dict[str, Any]:
    trainer = make(case, model, folder)
    start = weights(trainer)
    if case.startswith("out of memory"):
        run_out_of_memory(trainer)
    trainer.train()
    return {**result(trainer), "start": start, "limit": trainer._limit.tokens}


class FailsOnRank(TrainerCallback):
    """Raises on one rank when a step begins."""

    def __init__(self, rank: int, error: Exception) -> None:
        self.rank, self.error = rank, error

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2 and ranks_of_this_run().rank == self.rank:
            raise self.error


class StopsOnRank(TrainerCallback):
    """Asks for the end of training on one rank alone, as a clock would."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step == 3 and ranks_of_this_run().rank == 1


def said(trainer: PreferenceTrainer) -> str:
    try:
        trainer.train()
    except (PrefoptError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return f"ended after step {trainer.state.global_step}"


def failures(model: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Say how runs end that can't go on, or shall not, on one rank."""
    for name, callback in (
        ("a sentence on rank 1", FailsOnRank(1, PrefoptError("the disk is on fire"))),
        ("a defect on rank 0", FailsOnRank(0, ValueError("boom"))),
        ("a stop on rank 1", StopsOnRank()),
    ):
        trainer = make("lora", model, folder)
        trainer.add_callback(callback)
        yield name, said(trainer)


def failure_in_the_middle(model: Path, folder: Path) -> str:
    """Say how a run in parts ends where rank 1 fails while rank 0 and 2 wait for its part of a layer's weights."""
    trainer = make("lora in parts", model, folder)

    def fail(*_: Any) -> None:
        raise PrefoptError("the layer is on fire")

    if trainer.ranks.rank == 1:
        trainer.model.get_base_model().model.layers[0].register_forward_hook(fail)
    return said(trainer)


def main(model: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    PreferenceArguments(output_dir=str(folder))  # as `train_run` does first: it joins the processes
    found: dict[str, Any] = {case: run(case, model, folder) for case in CASES}
    found["failures"] = dict(failures(model, folder))
    ranks = ranks_of_this_run()
    torch.save(found, folder / f"rank-{ranks.rank}.pt")
    ranked_steps.compare(ranks, ranked_steps.FEW, folder / "steps.json")
    ranked_shards.compare(ranks, folder / "shards.json")
    # Last, since nothing goes on behind it.
    (folder / f"middle-{ranks.rank}").write_text(failure_in_the_middle(model, folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
