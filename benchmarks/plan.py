"""What a plan says a run will take, beside what the run takes: peak memory of this process, recipe by recipe.

    python benchmarks/plan.py            # the table
    python benchmarks/plan.py NAME ...   # some of its rows

Each recipe runs two steps in a process of its own, through the trainer. Measured is the largest resident size less that
before the model was loaded. glibc is told to map what is 64 KiB or larger (MALLOC_MMAP_THRESHOLD_) in one arena
(MALLOC_ARENA_MAX), the same for all: memory that is freed then goes back at once, and what is measured is what the
program held, not what its allocator kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "recipes" / "data"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
GEMMA: dict[str, Any] = {
    "model_type": "gemma3_text",
    "vocab_size": 262144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "sliding_window": 512,
    "query_pre_attn_scalar": 256,
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
TOKENS = 55
"""Of a pair of the data, on average."""
LORA = ("model.dtype=bfloat16",)
FULL = ("model.lora=null", "model.dtype=float32")
CHECKPOINTS = ("train.activation_checkpointing=true",)
RECIPES: dict[str, tuple[str | dict[str, Any], tuple[str, ...]]] = {
    "SmolLM2 LoRA bf16, 1,024 tokens": (SMOLLM2, (*LORA, "train.token_budget=1024")),
    "SmolLM2 LoRA bf16, 4,096 tokens": (SMOLLM2, (*LORA, "train.token_budget=4096")),
    "SmolLM2 LoRA fp32, 1,024 tokens": (SMOLLM2, ("model.dtype=float32", "train.token_budget=1024")),
    "SmolLM2 LoRA bf16, checkpoints": (SMOLLM2, (*LORA, *CHECKPOINTS, "train.token_budget=4096")),
    "SmolLM2 LoRA bf16, KTO": (SMOLLM2, (*LORA, "loss=kto", "train.token_budget=2048")),
    "SmolLM2 full fp32": (SMOLLM2, (*FULL, "train.token_budget=512")),
    "SmolLM2 full fp32, checkpoints": (SMOLLM2, (*FULL, *CHECKPOINTS, "train.token_budget=1024")),
    "Gemma-3-270m shape LoRA bf16": (GEMMA, (*LORA, "train.token_budget=1024")),
    "Gemma-3-270m shape full fp32": (GEMMA, (*FULL, "train.token_budget=512")),
    "Llama shape LoRA bf16": (LLAMA, (*LORA, "train.token_budget=2048")),
}


def main() -> None:
    """Print the table, or what a process of its own found of one recipe."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measured(sys.argv[2], sys.argv[3], tuple(sys.argv[4:]))))
        return
    if sys.argv[1:2] == ["--predict"]:
        print(json.dumps(predicted(sys.argv[2], sys.argv[3], tuple(sys.argv[4:]))))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="*", metavar="NAME", help=f"some of: {'; '.join(RECIPES)} (default: all)")
    wanted = parser.parse_args().recipe or list(RECIPES)
    if unknown := sorted({*wanted} - {*RECIPES}):
        parser.error(f"no recipe is called {unknown[0]!r}; there are: {'; '.join(RECIPES)}")
    print(f"| recipe | predicted MiB | measured MiB | ratio |\n{'| --- ' * 4}|")
    with tempfile.TemporaryDirectory() as scratch:
        for name in wanted:
            model, overrides = RECIPES[name]
            folder = model if isinstance(model, str) else made(Path(scratch) / name.split()[0], model)
            says, takes = (in_a_process(kind, folder, scratch, overrides) for kind in ("--predict", "--measure"))
            ratio = says["total"] / takes["peak"]
            print(f"| {name} | {says['total'] / 2**20:,.0f} | {takes['peak'] / 2**20:,.0f} | {ratio:.2f} |", flush=True)
            if os.environ.get("VERBOSE"):
                print({key: round(value / 2**20, 1) for key, value in {**says, **takes}.items()}, flush=True)


def in_a_process(kind: str, model: str, scratch: str, overrides: tuple[str, ...]) -> dict[str, float]:
    """Return what this file prints when it is started with these arguments."""
    command = [sys.executable, __file__, kind, model, scratch, *overrides]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def made(folder: Path, values: dict[str, Any]) -> str:
    """Write a random model of this shape with SmolLM2's tokenizer, in bfloat16."""
    if not folder.exists():
        import torch
        from transformers import AutoModelForCausalLM

        from prefopt.models.plan.policy import settings_of
        from prefopt.models.tokenizer import tokenizer_of

        AutoModelForCausalLM.from_config(settings_of(values), dtype=torch.bfloat16).save_pretrained(folder)
        tokenizer_of(SMOLLM2).save_pretrained(folder)
    return str(folder)


def recipe_of(model: str, scratch: str, overrides: tuple[str, ...]) -> Any:
    """Return the recipe of a row: steps that are a little longer than its budget, so that they are cut into packs."""
    from prefopt.recipe import load_recipe

    kind = "kto.yaml" if "loss=kto" in overrides else "dpo.yaml"
    out = tempfile.mkdtemp(dir=scratch)
    budget = next(int(text.partition("=")[2]) for text in overrides if "token_budget" in text)
    examples = int(1.4 * budget / TOKENS)
    own = (f"model.name={model}", f"train.examples_per_step={examples}", f"train.output_dir={out}", "train.max_steps=2")
    return load_recipe(DATA.parent / kind, [*own, "train.save_strategy='no'", *overrides])


def predicted(model: str, scratch: str, overrides: tuple[str, ...]) -> dict[str, float]:
    """Return the bytes that the plan of a recipe names."""
    from prefopt.workflow.plan import plan_recipe

    plan = plan_recipe(recipe_of(model, scratch, overrides), search=False).to_dict()
    return {**plan["parts"], "total": plan["total"]}


def measured(model: str, scratch: str, overrides: tuple[str, ...]) -> dict[str, float]:
    """Run two steps of a recipe; return the bytes by which the process grew at most."""
    import resource

    from prefopt.models import load_policy
    from prefopt.train.trainer import PreferenceTrainer
    from prefopt.workflow.inputs import load_data

    recipe = recipe_of(model, scratch, overrides)
    args, loss = recipe.train.arguments(), recipe.loss.build()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    model_, tokenizer = load_policy(recipe.model)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    data, _ = load_data(recipe, tokenizer, Path(args.output_dir))
    trainer = PreferenceTrainer(model_, data, loss, recipe.reference, args, tokenizer=tokenizer)
    ready = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() - before
    steps = iter(trainer.get_train_dataloader())
    pack = max(pack.tokens.numel() for _ in range(2) for pack in next(steps)["micro"])
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": peak - before, "after loading": loaded, "before training": ready, "largest pack": pack * 2**20}


if __name__ == "__main__":
    main()
