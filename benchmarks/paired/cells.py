"""What is compared: a model and what of it trains, the length of prompts, the loss. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

MODELS = ("smollm2", "gemma-shaped")
"""SmolLM2-135M-Instruct; random weights of the shape of Gemma-3-270m, whose vocabulary is 262,144."""
PROMPTS = {"short": 128, "long": 512}
"""Name -> mean words of a prompt."""
LOSSES = ("dpo", "kto")
TRL_VARIANTS = {"lora": ("default", "autocast", "bf16", "bf16-autocast"), "full": ("default", "autocast")}
"""Settings of TRL that are tried. Weights that train are kept in float32: bfloat16 loses most of their updates."""
OURS = {"lora": "default", "full": "autocast"}


@dataclass(frozen=True)
class Cell:
    """One comparison."""

    model: str = "smollm2"
    policy: str = "lora"
    """`lora` or `full`."""
    prompts: str = "short"
    loss: str = "dpo"

    @property
    def name(self) -> str:
        return f"{self.model} {self.policy}, {self.prompts} prompts, {self.loss}"


CELLS = tuple(
    Cell(model, policy, prompts, loss)
    for (model, policy), prompts, loss in product(
        (("smollm2", "lora"), ("smollm2", "full"), ("gemma-shaped", "lora")), PROMPTS, LOSSES
    )
)
