"""Documents and dialogues -> token ids, with the boundary between prompt and completion checked token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from prefopt.data.chat import ChatTemplate, Rendered
from prefopt.data.fit import Truncation, fit
from prefopt.data.packed import WIDTH, holds, pack, unpack
from prefopt.data.rows import Dialogue, Document, RowError
from prefopt.data.thinking import Thinking, without_thoughts
from prefopt.data.words import Words
from prefopt.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHORS = ("\n", "a", ".", " ", ":", "1", ">")
"""What a completion is tokenized behind where its first token would merge with the prompt's last."""
PROBED = 4
"""Rows of a batch whose tokens are compared with those of the whole conversation."""


@dataclass(frozen=True)
class Encoded:
    """A prompt and its completions as packed token ids (see `packed`)."""

    prompt: bytes
    completions: tuple[bytes, ...]
    fallback: bool = False
    """A token would have spanned the boundary, so that a completion was tokenized behind an anchor instead."""
    altered: bool = False
    """The chat template writes the prompt otherwise when an answer follows it."""
    prompt_cut: bool = False
    """The start of the prompt is missing."""
    cut: tuple[bool, ...] = ()
    """Of each completion, whether its end is missing, its end-of-turn with it; () where none is cut."""


class Shortcuts(NamedTuple):
    """What is relied on until a probe finds it wrong."""

    layouts: bool = True
    """That what a chat template writes is known from the roles."""
    cuts: bool = True
    """That texts can be cut at openings and words."""


class Encoder:
    """Tokenizes rows so that the prompt's tokens are those that the model sees when asked.

    A dialogue is written once by the chat template, and its completion ends with the template's end-of-turn. A
    document is prompt + completion as they stand, after the tokenizer's BOS if it has one, and ends with EOS.

    Prompt and completion are tokenized jointly, and the joint tokens must begin with the prompt's. For a dialogue the
    joint text begins at the prompt's last special token, since tokenizers cut texts there; some rows of every batch
    are compared with the tokens of the whole conversation.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, truncation: Truncation = "drop", thinking: Thinking = "keep"
    ) -> None:
        self._tokenizer = tokenizer
        self._truncation: Truncation = truncation
        self._thinking: Thinking = thinking
        self._chat: ChatTemplate | None = None
        self._eos = None if tokenizer.eos_token_id is None else pack([tokenizer.eos_token_id])
        self._bos = None if tokenizer.bos_token_id is None else pack([tokenizer.bos_token_id])
        self._before = _prefix(tokenizer)
        self._shortcuts = Shortcuts()
        self._words = Words(tokenizer)

    @property
    def shortcuts(self) -> Shortcuts:
        """What is relied on so far."""
        layouts = self._shortcuts.layouts and not (self._chat is not None and self._chat.gave_up)
        return Shortcuts(layouts, self._shortcuts.cuts)

    def rely_on(self, shortcuts: Shortcuts) -> None:
        """Rely on no more than `shortcuts`."""
        self._shortcuts = Shortcuts(*(mine and other for mine, other in zip(self.shortcuts, shortcuts, strict=True)))
        if not self._shortcuts.cuts:
            self._words.cuts = False
        if not self._shortcuts.layouts and self._chat is not None:
            self._chat.give_up()

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
        ids = dict(zip(distinct, self._words.packed(distinct), strict=True))
        if not self._same_as_whole(joints, ids):
            self.rely_on(Shortcuts(cuts=False))
            return self.encode(rows, max_length=max_length)
        encoded: list[Encoded | RowError] = []
        for text in texts:
            try:
                encoded.append(text if isinstance(text, RowError) else self._assemble(text, ids, max_length))
            except RowError as error:
                encoded.append(error)
        return encoded

    def _texts(self, rows: Sequence[Document | Dialogue]) -> list[_Joint | RowError]:
        own = [self._thoughtless(row) for row in rows] if self._thinking == "drop" else rows
        dialogues = [row for row in own if isinstance(row, Dialogue)]
        if dialogues and self._chat is None:
            self._chat = ChatTemplate(self._tokenizer, thinking=self._thinking)
            self._words.cut_before(self._chat.marks)
            self.rely_on(self._shortcuts)
        rendered = iter(self._chat.render(dialogues) if self._chat and dialogues else [])
        texts: list[_Joint | RowError] = []
        for row in own:
            if isinstance(row, Dialogue):
                texts.append(self._turn(next(rendered)))
            elif isinstance(row, Document):
                texts.append(_Joint(row.prompt, row.prompt, row.completions))
            else:
                texts.append(row)
        return texts

    def _thoughtless(self, row: Document | Dialogue) -> Document | Dialogue | RowError:
        try:
            return without_thoughts(row)
        except RowError as error:
            return error

    def _turn(self, text: Rendered | RowError) -> _Joint | RowError:
        if isinstance(text, RowError) or self._chat is None:
            return text if isinstance(text, RowError) else RowError("refused by the chat template")
        opening = self._chat.opening(text.prompt) if self._shortcuts.cuts else text.prompt
        return _Joint(text.prompt, opening, text.answers, self._chat.end_id, document=False, altered=text.altered)

    def _same_as_whole(self, joints: Sequence[_Joint], ids: dict[str, bytes]) -> bool:
        """Compare some rows with the tokens of the whole text: all that cutting at openings and words relies on."""
        if not self._shortcuts.cuts:
            return True
        for joint in joints[:PROBED]:
            kept = ids[joint.prompt][: len(ids[joint.prompt]) - len(ids[joint.opening])]
            wholes = self._words.whole([joint.prompt, *(joint.prompt + answer for answer in joint.answers)])
            if wholes != [ids[joint.prompt], *(kept + ids[joint.opening + answer] for answer in joint.answers)]:
                return False
        return True

    def _assemble(self, joint: _Joint, ids: dict[str, bytes], max_length: int | None) -> Encoded:
        asked, opening = ids[joint.prompt], ids[joint.opening]
        whole = asked.endswith(opening)
        fallback = False
        completions: list[bytes] = []
        for answer in joint.answers:
            both = ids[joint.opening + answer]
            if whole and both.startswith(opening):
                completions.append(both[len(opening) :])
            else:
                completions.append(self._behind_anchor(asked, answer, joint.prompt))
                fallback = True
        prompt = asked
        if joint.document and not asked.startswith(self._before):
            prompt = self._before + asked
        completions = [self._ended(completion, joint.end) for completion in completions]
        self._check(prompt, completions)
        encoded = Encoded(prompt, tuple(completions), fallback, joint.altered)
        if max_length is None:
            return encoded
        fitted = fit(prompt, completions, max_length, self._truncation, bos=self._bos)
        if fitted is None:
            return encoded
        return Encoded(fitted.prompt, fitted.completions, fallback, joint.altered, fitted.prompt_cut, fitted.cut)

    def _behind_anchor(self, asked: bytes, answer: str, prompt: str) -> bytes:
        """Tokenize a completion that begins a token of its own, and check that nothing was lost."""
        (whole,) = self._words.whole([prompt + answer])
        for anchor in ANCHORS:
            front, both = self._words.whole([anchor, anchor + answer])
            completion = both[len(front) :]
            if both.startswith(front) and self._decode(asked + completion) == self._decode(whole):
                return completion
        raise RowError("no boundary", "no token can begin where the completion does")

    def _decode(self, ids: bytes) -> str:
        text = self._tokenizer.decode(list(unpack(ids)), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    def _ended(self, completion: bytes, end_id: int | None) -> bytes:
        """Let the completion end with exactly one end-of-turn."""
        if end_id is None:
            if self._eos is None:
                name = self._tokenizer.name_or_path or "this model"
                raise DataError(
                    f"The tokenizer of {name} has no EOS token, so a completion would have no end; set "
                    "tokenizer.eos_token."
                )
            end = self._eos
            if completion[-WIDTH:] != end:
                completion += end
        else:
            end = pack([end_id])
        if completion[-WIDTH:] != end:
            raise RowError("no end-of-turn", "the chat template ends this answer otherwise than others")
        inner = completion[:-WIDTH]
        for token in (end, self._eos):
            if token is not None and holds(inner, token):
                raise RowError(
                    "end-of-turn inside the completion",
                    f"its text holds {self._decode(token)}; was a chat template applied already?",
                )
        return completion

    def _check(self, prompt: bytes, completions: Sequence[bytes]) -> None:
        if not prompt:
            raise RowError("empty prompt", "and the tokenizer adds no BOS that could stand for it")
        if self._bos is not None and self._bos != self._eos and prompt.startswith(self._bos * 2):
            raise RowError("doubled BOS", "the prompt's text begins with the BOS token that is added anyway")
        if any(len(completion) < 2 * WIDTH for completion in completions):
            raise RowError("empty completion", "nothing is left of it but its end")


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


def _prefix(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """Return what the tokenizer puts before a text (BOS, or nothing), and switch its truncation and padding off."""
    plain = tokenizer("a", add_special_tokens=False, truncation=False, padding=False)["input_ids"]
    dressed = tokenizer("a", truncation=False, padding=False)["input_ids"]
    for start in range(len(dressed) - len(plain) + 1):
        if dressed[start : start + len(plain)] == plain:
            return pack(dressed[:start])
    return b""
