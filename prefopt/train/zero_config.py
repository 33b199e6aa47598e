"""What `train.deepspeed` may say: what DeepSpeed's JSON does, but of what a step is and how it is optimized."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.errors import RecipeError, nearest

STAGES = (1, 2)
_ZERO = "zero_optimization"
_BESIDE: dict[str, str] = {
    "optimizer": "write train.optim, train.learning_rate and the other fields of the optimizer",
    "scheduler": "write train.lr_scheduler_type and train.warmup_steps",
    "train_batch_size": "write train.examples_per_step",
    "train_micro_batch_size_per_gpu": "write train.token_budget: a step is cut into packs by tokens",
    "gradient_accumulation_steps": "write train.token_budget: a step is cut into packs by tokens",
    "gradient_clipping": "write train.max_grad_norm",
    "bf16": "write model.dtype: bfloat16",
    "fp16": "write model.dtype: bfloat16",
}
"""What the recipe says elsewhere, and where."""
_FREE = ("steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer")
_FREE_OF_ZERO = (
    "stage",
    "allgather_bucket_size",
    "allgather_partitions",
    "contiguous_gradients",
    "overlap_comm",
    "reduce_bucket_size",
    "reduce_scatter",
    "round_robin_gradients",
)
"""What changes memory and time, and no result."""


def zero_config(given: str | Mapping[str, Any], *, max_grad_norm: float) -> dict[str, Any]:
    """Return the configuration that the engine is made with, of one that was given or the JSON file of that name.

    Raises:
        RecipeError: the file can't be read, or the configuration asks for what the recipe says elsewhere, or for what
            is not known to leave a step as it is.
    """
    config = _read(given) if isinstance(given, str) else copy.deepcopy(dict(given))
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": float(max_grad_norm),
    }
    for key in config:
        if key in _BESIDE:
            _check_beside(key, config[key], ours.get(key))
        elif key not in (_ZERO, *_FREE):
            raise _unknown(key, (*_BESIDE, _ZERO, *_FREE))
    zero = config.get(_ZERO)
    if not isinstance(zero, Mapping):
        raise RecipeError(f"train.deepspeed has no {_ZERO}; write {_ZERO}: {{stage: 1}} or {{stage: 2}}.")
    for key in zero:
        if key not in _FREE_OF_ZERO:
            raise _unknown(f"{_ZERO}.{key}", [f"{_ZERO}.{name}" for name in _FREE_OF_ZERO])
    _check_stage(zero.get("stage"))
    return {**{key: value for key, value in config.items() if key not in _BESIDE}, **ours}


def _read(name: str) -> dict[str, Any]:
    path = Path(name).expanduser()
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise RecipeError(f"train.deepspeed names {path}, which can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise RecipeError(f"train.deepspeed names {path}, which is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise RecipeError(f"train.deepspeed names {path}, which holds no JSON object; see docs/distributed.md.")
    return found


def _check_beside(key: str, said: Any, ours: Any) -> None:
    """Let "auto", what is filled in anyway and 16 bits that are off pass."""
    if said == "auto" or (ours is not None and said == ours):
        return
    if key in ("bf16", "fp16") and isinstance(said, Mapping) and said.get("enabled", False) in (False, "auto"):
        return
    raise RecipeError(f"train.deepspeed says {key}, which is said elsewhere: leave it out, and {_BESIDE[key]}.")


def _check_stage(stage: Any) -> None:
    if stage == 3:
        raise RecipeError(
            "train.deepspeed asks for stage 3, whose weights only a call of their own module gathers, and a model's "
            "head is not called here; write train.shard_weights: true, which cuts the same things into parts."
        )
    if isinstance(stage, bool) or stage not in STAGES:
        raise RecipeError(
            f"train.deepspeed: {_ZERO}.stage is {stage!r}; it must be 1 or 2. For weights in parts write "
            "train.shard_weights: true."
        )


def _unknown(key: str, allowed: Any) -> RecipeError:
    return RecipeError(
        f"train.deepspeed says {key}, which is not known to leave results as they are; allowed are "
        f"{', '.join(allowed)}{nearest(key, allowed)}"
    )
