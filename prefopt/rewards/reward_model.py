"""The scorer that is a reward model: a sequence classifier that reads prompt and completion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from prefopt.data import tokenize_rows
from prefopt.errors import DataError, ModelError, RecipeError
from prefopt.models.classifier import load_classifier
from prefopt.rewards.attempts import Attempt
from prefopt.rewards.kinds import ModelSection
from prefopt.rewards.scorer import Score, ScoreFailure

READS = "prefopt_reads"
"""Key of a reward model's configuration that says which texts it was trained on."""
END_OF_TURN = "end_of_turn"
"""Texts as prefopt tokenizes preferences: up to the end of the turn, without what the template writes behind it."""


class RewardModel:
    """The number that a sequence classifier gives to a prompt with its completion; of one `label`, its probability.

    A conversation is written by the model's own chat template, once and whole: no token is added to it. Where that has
    none, prompt and completion are the two texts that an encoder takes, and one text for a decoder. A model that
    `prefopt reward train` made reads what it was trained on, which ends with the end of the turn.

    Texts are computed in batches of similar length. Another batch can change the last bits of a score; with
    `token_budget: 0` each text is computed alone, and its score depends on nothing else. Equal texts are computed once.

    Raises:
        ModelError: the model can't be loaded, or gives several numbers and `label` names none of them.
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
        labels = self._model.config.num_labels
        if section.label is None and labels != 1:
            raise ModelError(
                f"{section.name} gives {labels} numbers: write which is the score as label, 0 to {labels - 1}."
            )
        if section.label is not None and not (labels > 1 and section.label < labels):
            raise RecipeError(f"label is {section.label}, and {section.name} has {labels}: leave it out, or lower it.")
        self.low: float | None = None if section.label is None else 0.0
        self.high: float | None = None if section.label is None else 1.0
        longest = getattr(self._model.config, "max_position_embeddings", None)
        self._longest = section.max_length or (longest if isinstance(longest, int) else None)

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        read = [self._ids(attempt) for attempt in attempts]
        texts = {ids for ids in read if isinstance(ids, tuple)}
        scores: dict[tuple[int, ...], float] = {}
        for batch in _batches(sorted(texts, key=lambda ids: (len(ids), ids)), self._section.token_budget):
            scores.update(zip(batch, self._forward(batch), strict=True))
        return [scores[ids] if isinstance(ids, tuple) else ids for ids in read]

    @torch.no_grad()
    def _forward(self, batch: Sequence[tuple[int, ...]]) -> list[float]:
        width = max(map(len, batch))
        pad = self._model.config.pad_token_id
        device = self._model.device
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in batch], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=device)
        logits = self._model(input_ids=ids, attention_mask=mask).logits.float()
        if self._section.label is not None:
            logits = logits.softmax(-1)[:, self._section.label, None]
        found: list[float] = logits[:, 0].tolist()
        return found

    def _ids(self, attempt: Attempt) -> tuple[int, ...] | ScoreFailure:
        try:
            ids = self._read(attempt.prompt, getattr(attempt, self._section.of))
        except Exception as error:  # noqa: BLE001 - a template raises whatever it likes
            return ScoreFailure(f"model: the text can't be written for it ({' '.join(str(error).split())[:200]}).")
        if self._longest is not None and len(ids) > self._longest:
            return ScoreFailure(f"model: the text has {len(ids)} tokens, and the model reads {self._longest} at most.")
        return ids

    def _read(self, prompt: str | tuple[Any, ...], text: str) -> tuple[int, ...]:
        tokenizer = self._tokenizer
        if getattr(self._model.config, READS, None) == END_OF_TURN:
            row: dict[str, Any] = {"prompt": prompt, "completion": text}
            if not isinstance(prompt, str):
                row = {"prompt": list(prompt), "completion": [{"role": "assistant", "content": text}]}
            [example] = tokenize_rows([row], tokenizer)
            return (*example.prompt, *example.completions[0])
        if isinstance(prompt, str) or tokenizer.chat_template is None:
            if not isinstance(prompt, str):
                if len(prompt) > 1:
                    raise DataError("it has no chat template, and the prompt is a conversation")
                prompt = str(prompt[0]["content"])
            encoder = getattr(self._model.config, "is_decoder", True) is False
            return tuple(tokenizer(prompt, text)["input_ids"] if encoder else tokenizer(prompt + text)["input_ids"])
        messages = [*(dict(message) for message in prompt), {"role": "assistant", "content": text}]
        written = tokenizer.apply_chat_template(messages, tokenize=False)
        return tuple(tokenizer(written, add_special_tokens=False)["input_ids"])


def _batches(texts: Sequence[tuple[int, ...]], budget: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield runs of texts, shortest first, whose padded size is within the budget; at least one each."""
    held: list[tuple[int, ...]] = []
    for text in texts:
        if held and (len(held) + 1) * len(text) > budget:
            yield held
            held = []
        held.append(text)
    if held:
        yield held
