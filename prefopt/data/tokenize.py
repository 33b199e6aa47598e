"""Documents and dialogues -> token ids, with the boundary between prompt and completion checked token by token."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from prefopt.data.chat import ChatTemplate, Rendered
from prefopt.data.rows import Dialogue, Document, RowError
from prefopt.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]

ANCHORS = ("\n", "a", ".", " ", ":", "1", ">")
"""What a completion is tokenized behind where its first token would merge with the prompt's last."""
PROBED = 4
"""Rows of a batch whose tokens are compared with those of the whole conversation."""
PARALLEL_FROM = 64
"""Texts from which threads are worth it."""


@dataclass(frozen=True)
class Encoded:
    """A prompt and its completions as token ids."""

    prompt: Ids
    completions: tuple[Ids, ...]
    fallback: bool = False
    """A token would have spanned the boundary, so that a completion was tokenized behind an anchor instead."""
    altered: bool = False
    """The chat template writes the prompt otherwise when an answer follows it."""


class TooLongError(RowError):
    """A row that is longer than `max_length`; `needed` is the length that would hold it."""

    def __init__(self, reason: str, needed: int) -> None:
        super().__init__(reason, f"{needed} tokens")
        self.needed = needed


class Encoder:
    """Tokenizes rows so that the prompt's tokens are those that the model sees when asked.

    A dialogue is written once by the chat template, and its completion ends with the template's end-of-turn. A
    document is prompt + completion as they stand, after the tokenizer's BOS if it has one, and ends with EOS.

    Prompt and completion are tokenized jointly, and the joint tokens must begin with the prompt's. For a dialogue the
    joint text begins at the prompt's last special token, since tokenizers cut texts there; some rows of every batch
    are compared with the tokens of the whole conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._chat: ChatTemplate | None = None
        self._eos: int | None = tokenizer.eos_token_id
        self._bos: int | None = tokenizer.bos_token_id
        self._before = _prefix(tokenizer)
        self._cuts_openings = True
        self._threads = os.cpu_count() or 1

    def encode(self, rows: Sequence[Document | Dialogue], *, max_length: int | None = None) -> list[Encoded | RowError]:
        """Tokenize rows in one batched call; an error stands in the place of a row that can't be used.

        Args:
            rows: documents and dialogues.
            max_length: tokens a prompt and its longest completion may have together; None for any number.

        Raises:
            DataError: dialogues without a chat template, or an end that no token can mark.
        """
        texts = self._texts(rows)
        joints = [joint for joint in texts if isinstance(joint, _Joint)]
        distinct = list(dict.fromkeys(piece for joint in joints for piece in joint.pieces()))
        ids = dict(zip(distinct, self._ids(distinct), strict=True))
        if not self._same_as_whole([joint for joint in joints if joint.opening != joint.prompt], ids):
            self._cuts_openings = False
            return self.encode(rows, max_length=max_length)
        encoded: list[Encoded | RowError] = []
        for text in texts:
            try:
                encoded.append(text if isinstance(text, RowError) else self._assemble(text, ids, max_length))
            except RowError as error:
                encoded.append(error)
        return encoded

    def _texts(self, rows: Sequence[Document | Dialogue]) -> list[_Joint | RowError]:
        dialogues = [row for row in rows if isinstance(row, Dialogue)]
        if dialogues and self._chat is None:
            self._chat = ChatTemplate(self._tokenizer)
        rendered = iter(self._chat.render(dialogues) if self._chat and dialogues else [])
        return [
            _Joint(row.prompt, row.prompt, row.completions) if isinstance(row, Document) else self._turn(next(rendered))
            for row in rows
        ]

    def _turn(self, text: Rendered | RowError) -> _Joint | RowError:
        if isinstance(text, RowError) or self._chat is None:
            return text if isinstance(text, RowError) else RowError("refused by the chat template")
        opening = self._chat.opening(text.prompt) if self._cuts_openings else text.prompt
        return _Joint(text.prompt, opening, text.answers, self._chat.end_id, document=False, altered=text.altered)

    def _same_as_whole(self, joints: Sequence[_Joint], ids: dict[str, Ids]) -> bool:
        """Compare some rows with the tokens of the whole conversation: all that cutting at an opening relies on."""
        for joint in joints[:PROBED]:
            kept = ids[joint.prompt][: len(ids[joint.prompt]) - len(ids[joint.opening])]
            for answer in joint.answers:
                if self._ids([joint.prompt + answer])[0] != kept + ids[joint.opening + answer]:
                    return False
        return True

    def _ids(self, texts: list[str]) -> list[Ids]:
        """Tokenize texts as they stand, without BOS or EOS, on all cores."""
        if not self._tokenizer.is_fast:
            return [list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]
        if len(texts) < PARALLEL_FROM:
            return _backend_ids(self._tokenizer, texts)
        size = -(-len(texts) // (4 * self._threads))
        pieces = [texts[at : at + size] for at in range(0, len(texts), size)]
        with ThreadPoolExecutor(self._threads) as pool:
            return [ids for found in pool.map(partial(_backend_ids, self._tokenizer), pieces) for ids in found]

    def _assemble(self, joint: _Joint, ids: dict[str, Ids], max_length: int | None) -> Encoded:
        asked, opening = ids[joint.prompt], ids[joint.opening]
        whole = asked[len(asked) - len(opening) :] == opening
        fallback = False
        completions: list[Ids] = []
        for answer in joint.answers:
            both = ids[joint.opening + answer]
            if whole and both[: len(opening)] == opening:
                completions.append(both[len(opening) :])
            else:
                completions.append(self._behind_anchor(asked, answer, joint.prompt))
                fallback = True
        prompt = asked
        if joint.document and asked[: len(self._before)] != self._before:
            prompt = self._before + asked
        completions = [self._ended(completion, joint.end) for completion in completions]
        self._check(prompt, completions, max_length)
        return Encoded(prompt, tuple(completions), fallback, joint.altered)

    def _behind_anchor(self, asked: Ids, answer: str, prompt: str) -> Ids:
        """Tokenize a completion that begins a token of its own, and check that nothing was lost."""
        (whole,) = self._ids([prompt + answer])
        for anchor in ANCHORS:
            front, both = self._ids([anchor, anchor + answer])
            completion = both[len(front) :]
            if both[: len(front)] == front and self._decode(asked + completion) == self._decode(whole):
                return completion
        raise RowError("no boundary", "no token can begin where the completion does")

    def _decode(self, ids: Ids) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    def _ended(self, completion: Ids, end: int | None) -> Ids:
        """Let the completion end with exactly one end-of-turn."""
        if end is None:
            if self._eos is None:
                name = self._tokenizer.name_or_path or "this model"
                raise DataError(
                    f"The tokenizer of {name} has no EOS token, so a completion would have no end; set "
                    "tokenizer.eos_token."
                )
            end = self._eos
            if completion[-1:] != [end]:
                completion = [*completion, end]
        if completion[-1:] != [end]:
            raise RowError("no end-of-turn", "the chat template ends this answer otherwise than others")
        inner = completion[:-1]
        if end in inner or self._eos in inner:
            held = self._decode([end if end in inner else inner[inner.index(self._eos or 0)]])
            raise RowError(
                "end-of-turn inside the completion", f"its text holds {held}; was a chat template applied already?"
            )
        return completion

    def _check(self, prompt: Ids, completions: Sequence[Ids], max_length: int | None) -> None:
        if not prompt:
            raise RowError("empty prompt", "and the tokenizer adds no BOS that could stand for it")
        if self._bos is not None and self._bos != self._eos and prompt[:2] == [self._bos, self._bos]:
            raise RowError("doubled BOS", "the prompt's text begins with the BOS token that is added anyway")
        if any(len(completion) < 2 for completion in completions):
            raise RowError("empty completion", "nothing is left of it but its end")
        if max_length is None:
            return
        needed = len(prompt) + max(map(len, completions))
        if len(prompt) >= max_length:
            raise TooLongError("prompt longer than max_length", needed)
        if needed > max_length:
            raise TooLongError("longer than max_length", needed)


@dataclass(frozen=True)
class _Joint:
    """What of a row is tokenized: the prompt once, and each answer behind as much of the prompt as it could touch."""

    prompt: str
    opening: str
    """The end of the prompt; all of it in a document."""
    answers: tuple[str, ...]
    end: int | None = None
    """The end-of-turn token that the answers hold already."""
    document: bool = True
    altered: bool = False

    def pieces(self) -> Iterator[str]:
        yield self.prompt
        yield self.opening
        yield from (self.opening + answer for answer in self.answers)


def _backend_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Ids]:
    """Token ids without the offsets that nobody asked for; releases the interpreter's lock."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def _prefix(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Return what the tokenizer puts before a text (BOS, or nothing), and switch its truncation and padding off."""
    plain = tokenizer("a", add_special_tokens=False, truncation=False, padding=False)["input_ids"]
    dressed = tokenizer("a", truncation=False, padding=False)["input_ids"]
    for start in range(len(dressed) - len(plain) + 1):
        if dressed[start : start + len(plain)] == plain:
            return list(dressed[:start])
    return []
