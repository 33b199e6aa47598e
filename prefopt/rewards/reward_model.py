"""The scorer that is a reward model: a sequence classifier that reads prompt and completion."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from prefopt.data import tokenize_rows
from prefopt.errors import DataError, ModelError, RecipeError, nearest
from prefopt.models.classifier import load_classifier
from prefopt.rewards.attempts import Attempt
from prefopt.rewards.kinds import ModelSection
from prefopt.rewards.scorer import Score, ScoreFailure

READS = "prefopt_reads"
"""Key of a reward model's configuration that says which texts it was trained on."""
END_OF_TURN = "end_of_turn"
"""Texts as prefopt tokenizes preferences: up to the end of the turn, without what the template writes behind it."""
_TABLES = ("position_embeddings", "wpe")
"""What tables with a row for each position are called."""


@dataclass(frozen=True, order=True)
class _Text:
    """What the model reads of an attempt; sorts by length."""

    length: int
    ids: tuple[int, ...]
    types: tuple[int, ...] | None
    """Which of two texts each token is of; None where the tokenizer doesn't say."""


class RewardModel:
    """The number that a sequence classifier gives to a prompt with its completion; of several, that of one `label`.

    A conversation is written by the model's own chat template, once and whole: no token is added to it. Where that has
    none, prompt and completion are the two texts that an encoder takes, and one text for a decoder. A model that
    `prefopt reward train` made reads what it was trained on, which ends with the end of the turn.

    Texts are computed in batches of similar length. Another batch can change the last bits of a score; with
    `token_budget: 0` each text is computed alone, and its score depends on nothing else. Equal texts are computed once.

    Raises:
        ModelError: the model can't be loaded, or gives several numbers and `label` names none of them.
        RecipeError: it has no such label, or the activation makes nothing of its number.
    """

    name = "model"

    def __init__(self, section: ModelSection) -> None:
        self._section = section
        self._model, self._tokenizer = load_classifier(
            section.name,
            revision=section.revision,
            dtype=section.dtype,
            quantization=section.quantization,
            device=section.device,
            trust_remote_code=section.trust_remote_code,
        )
        self._label = _label(section, self._model.config)
        self._activation = _activation(section, self._model.config)
        probability = self._activation != "none"
        self.low: float | None = 0.0 if probability else None
        self.high: float | None = 1.0 if probability else None
        self._longest = _longest(self._model, section.max_length)
        self._types = _tells_texts_apart(self._model)

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        read = [self._text(attempt) for attempt in attempts]
        texts = {text for text in read if isinstance(text, _Text)}
        scores: dict[_Text, float] = {}
        for batch in _batches(sorted(texts), self._section.token_budget):
            scores.update(zip(batch, self._forward(batch), strict=True))
        return [scores[text] if isinstance(text, _Text) else text for text in read]

    @torch.no_grad()
    def _forward(self, batch: Sequence[_Text]) -> list[float]:
        pad = self._model.config.get_text_config().pad_token_id
        if pad is None and len(batch) > 1:
            pad = self._unused(batch)
            if pad is None:
                return [score for text in batch for score in self._forward([text])]
            with _padded_with(self._model.config.get_text_config(), pad):
                return self._numbers(batch, pad)
        return self._numbers(batch, pad or 0)

    def _numbers(self, batch: Sequence[_Text], pad: int) -> list[float]:
        width = max(text.length for text in batch)
        device = self._model.device

        def padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
            return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=device)

        given = {
            "input_ids": padded([text.ids for text in batch], pad),
            "attention_mask": padded([[1] * text.length for text in batch], 0),
        }
        if batch[0].types is not None:
            given["token_type_ids"] = padded([text.types or () for text in batch], 0)
        logits = self._model(**given).logits.float()
        if self._activation == "softmax":
            logits = logits.softmax(-1)
        elif self._activation == "sigmoid":
            logits = logits.sigmoid()
        found: list[float] = logits[:, self._label].tolist()
        return found

    def _unused(self, batch: Sequence[_Text]) -> int | None:
        """Return a token that no text of the batch has, to find their ends by; None where all occur."""
        seen = {token for text in batch for token in text.ids}
        rows = self._model.get_input_embeddings().weight.shape[0]
        return next((token for token in range(rows) if token not in seen), None)

    def _text(self, attempt: Attempt) -> _Text | ScoreFailure:
        try:
            text = self._read(attempt.prompt, getattr(attempt, self._section.of))
        except Exception as error:  # noqa: BLE001 - a template raises whatever it likes
            return ScoreFailure(f"model: the text can't be written for it ({' '.join(str(error).split())[:200]}).")
        if self._longest is not None and text.length > self._longest:
            most = self._longest
            return ScoreFailure(f"model: the text has {text.length} tokens, and the model reads {most} at most.")
        return text

    def _read(self, prompt: str | tuple[Any, ...], text: str) -> _Text:
        tokenizer = self._tokenizer
        if getattr(self._model.config, READS, None) == END_OF_TURN:
            row: dict[str, Any] = {"prompt": prompt, "completion": text}
            if not isinstance(prompt, str):
                row = {"prompt": list(prompt), "completion": [{"role": "assistant", "content": text}]}
            [example] = tokenize_rows([row], tokenizer)
            ids = (*example.prompt, *example.completions[0])
            return _Text(len(ids), ids, None)
        if isinstance(prompt, str) or tokenizer.chat_template is None:
            if not isinstance(prompt, str):
                if len(prompt) > 1:
                    raise DataError("it has no chat template, and the prompt is a conversation")
                prompt = str(prompt[0]["content"])
            pair = _reads_pairs(self._model.config)
            return _encoded(tokenizer(prompt, text) if pair else tokenizer(prompt + text), types=self._types)
        messages = [*(dict(message) for message in prompt), {"role": "assistant", "content": text}]
        written = tokenizer.apply_chat_template(messages, tokenize=False)
        return _encoded(tokenizer(written, add_special_tokens=False), types=self._types)


def _encoded(found: Any, *, types: bool) -> _Text:
    kinds = found.get("token_type_ids") if types else None
    return _Text(len(found["input_ids"]), tuple(found["input_ids"]), None if kinds is None else tuple(kinds))


def _tells_texts_apart(model: Any) -> bool:
    """Whether token types are for this model what they are for BERT; GPT-2's would be added to its words."""
    takes = "token_type_ids" in inspect.signature(model.forward).parameters
    return takes and _reads_pairs(model.config) and getattr(model.config, "type_vocab_size", 2) > 1


def _reads_pairs(config: Any) -> bool:
    """Whether a model is an encoder, which takes prompt and completion as two texts."""
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "is_encoder_decoder", False)
    return bool(encoder) or getattr(config, "is_decoder", True) is False


def _label(section: ModelSection, config: Any) -> int:
    """Return the place of the number that is the score."""
    names = [str(config.id2label[place]) for place in range(config.num_labels)]
    listed = ", ".join(f"{place} {name!r}" for place, name in enumerate(names))
    if section.label is None:
        if len(names) != 1:
            raise ModelError(
                f"{section.name} gives {len(names)} numbers: write which is the score as label, 0 to {len(names) - 1} "
                f"or its name ({listed})."
            )
        return 0
    if len(names) == 1:
        raise RecipeError(f"label is {section.label!r}, but {section.name} gives one number: leave it out.")
    if isinstance(section.label, int):
        if not 0 <= section.label < len(names):
            raise RecipeError(f"label is {section.label}, but {section.name} has {len(names)}: {listed}.")
        return section.label
    if names.count(section.label) != 1:
        raise RecipeError(
            f"label is {section.label!r}, but {section.name} has {listed}"
            f"{nearest(section.label, names) or ': write a name that there is once, or a place.'}"
        )
    return names.index(section.label)


def _activation(section: ModelSection, config: Any) -> str:
    """Return what is made of the number: what the recipe says, or what the model was trained for."""
    if section.activation == "softmax" and config.num_labels == 1:
        raise RecipeError(
            f"activation is softmax, but {section.name} gives one number, whose softmax is 1: leave it out."
        )
    if section.activation is not None:
        return section.activation
    if config.num_labels == 1 or config.problem_type == "regression":
        return "none"
    return "sigmoid" if config.problem_type == "multi_label_classification" else "softmax"


def _longest(model: Any, wanted: int | None) -> int | None:
    """Return how many tokens a model reads; a table of positions holds no more than its rows behind the padding's."""
    made_for = getattr(model.config, "max_position_embeddings", None)
    limits = [wanted or made_for]
    for name, part in model.named_modules():
        if isinstance(part, nn.Embedding) and name.rpartition(".")[2] in _TABLES and part.num_embeddings == made_for:
            limits.append(made_for - (0 if part.padding_idx is None else part.padding_idx + 1))
    return min((limit for limit in limits if isinstance(limit, int)), default=None)


@contextmanager
def _padded_with(config: Any, token: int) -> Iterator[None]:
    config.pad_token_id = token
    try:
        yield
    finally:
        config.pad_token_id = None


def _batches(texts: Sequence[_Text], budget: int) -> Iterator[list[_Text]]:
    """Yield runs of texts, shortest first, whose padded size is within the budget; at least one each."""
    held: list[_Text] = []
    for text in texts:
        if held and (len(held) + 1) * text.length > budget:
            yield held
            held = []
        held.append(text)
    if held:
        yield held
