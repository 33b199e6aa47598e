"""Train a reward model on pairs: the trainer's own steps, packs and checkpoints, with a scalar for a log-prob."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from prefopt.errors import RunError
from prefopt.losses import Loss
from prefopt.losses.bradley_terry import BradleyTerry, PairRewards
from prefopt.models.rewards import PackedRewards
from prefopt.records import LossOutput, SequenceLogprobs
from prefopt.train.trainer import PreferenceTrainer

HEAD_FILE = "reward_head.safetensors"


class PairReward(Loss):
    """Bradley and Terry's loss of the rewards of pairs: -log sigma(r(chosen) - r(rejected)).

    `SequenceLogprobs.policy` holds rewards: what `PackedRewards` gives in the place of log-probs.
    """

    name = "bradley_terry"
    form = "paired"
    needs_reference = False

    def __init__(self) -> None:
        super().__init__()
        self._of_pairs = BradleyTerry()

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        chosen, rejected = seqs.policy[seqs.pair].unbind(-1)
        output = self._of_pairs(PairRewards(chosen, rejected))
        return LossOutput(loss=output.loss, weight=output.weight, reward=seqs.policy.detach())


class RewardTrainer(PreferenceTrainer):
    """Trains an adapter and a scalar head; checkpoints hold both."""

    unlogged = ("logps/",)
    packed: PackedRewards

    def __init__(self, model: PeftModel, data: Any, args: Any, **options: Any) -> None:
        super().__init__(model, data, PairReward(), "none", args, **options)
        self._work = None  # what a step computes is counted with the language model's head

    def pack_model(self, model: PreTrainedModel | PeftModel) -> PackedRewards:
        return PackedRewards(model, seed=self.arguments.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        save_head(self.packed, Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_head(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint:
            self._load_head(Path(self.state.best_model_checkpoint))

    def _load_head(self, folder: Path) -> None:
        path = folder / HEAD_FILE
        if not path.is_file():
            raise RunError(f"checkpoint {folder} has no {HEAD_FILE}, so it is none of a reward model's training.")
        with torch.no_grad():
            self.packed.reward_head.weight.copy_(load_file(path)["weight"])


def save_head(packed: PackedRewards, folder: Path) -> None:
    """Write the scalar head into a folder that is there."""
    save_file({"weight": packed.reward_head.weight.detach().cpu().contiguous()}, folder / HEAD_FILE)
