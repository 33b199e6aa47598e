"""Load a tokenizer that fits a model, with a padding token and without changing its vocabulary."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from transformers import AutoTokenizer

from prefopt.errors import ModelError
from prefopt.models.config import ModelConfig
from prefopt.models.source import Source, find_folder, find_model

_SPARE = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>", "[UNK]")
"""Tokens that models carry and no text contains, in the order in which they make a good padding token."""


def tokenizer_of(name: str) -> Any:
    """Return the tokenizer of a model alone: from a directory that has one, or from where the model is found.

    Raises:
        ModelError: as `load_tokenizer`, or when there is no model of that name.
    """
    if Path(name).is_dir():
        source = Source(name, Path(name))
    else:
        cache = Path(constants.HF_HOME) / "prefopt"
        source = find_model(name, revision=None, remote_code=False, dtype="bfloat16", cache=cache)
    return load_tokenizer(ModelConfig(name=name), source, rows=sys.maxsize)  # no embedding to compare with


def load_tokenizer(config: ModelConfig, source: Source, rows: int) -> Any:
    """Return the tokenizer of the model at `source`.

    A missing padding token is set to one that exists: the vocabulary never grows. `rows` is the number of rows of
    the model's embedding.

    Raises:
        ModelError: when it can't be loaded, has ids beyond the embedding, or the chat template can't be read.
    """
    other = config.tokenizer.name
    folder = find_folder(other, "tokenizer", revision=None, remote_code=False) if other else source.folder
    name = other or source.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"the tokenizer of {name} can't be loaded ({(str(error).strip().splitlines() or ['no reason'])[0]}): name "
            "another with the same token ids in model.tokenizer.name."
        ) from error
    tokenizer.name_or_path = name
    if (most := max(tokenizer.get_vocab().values())) >= rows:
        raise ModelError(
            f"the tokenizer of {name} has token ids up to {most}, but the model {source.name} only knows those below "
            f"{rows}: they don't belong together."
        )
    if config.tokenizer.chat_template is not None:
        tokenizer.chat_template = _template(config.tokenizer.chat_template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = padding_token(tokenizer)
    return tokenizer


def _template(text: str) -> str:
    if "{" in text or "\n" in text:  # no file is called like that
        return text
    path = Path(text).expanduser()
    if not path.is_file():
        raise ModelError(f"model.tokenizer.chat_template: there is no file {text}, and it is no Jinja template either.")
    return path.read_text(encoding="utf-8")


def padding_token(tokenizer: Any) -> str:
    """Return a token to pad with: one that is not the end-of-text token, where there is another.

    Packs and generation mask padding, but code that compares ids with the padding token would take a real
    end-of-text for it.
    """
    vocabulary, end = tokenizer.get_vocab(), tokenizer.eos_token
    spare = [token for token in (*_SPARE, tokenizer.unk_token) if token in vocabulary and token != end]
    special = [token for token in tokenizer.all_special_tokens if token in vocabulary and token != end]
    found = [*spare, *special, *([end] if end else [])]
    if not found:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} has no special token, so there is none to pad with."
        )
    return str(found[0])
