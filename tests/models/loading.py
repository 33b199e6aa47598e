"""What tests of loaded models share."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from prefopt.models import load_policy
from tests.toys import byte_tokenizer


def copy(model: Path, to: Path) -> Path:
    shutil.copytree(model, to)
    return to


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(*args: Any, **kwargs: Any) -> Any:
    return load_policy(*args, **{"device": "cpu", "dtype": "float32", **kwargs})


def gpt2(folder: Path, *, positions: int = 64) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=positions)
    GPT2LMHeadModel(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
