"""Messages -> text by the tokenizer's chat template: what the model reads when asked, and what it should answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2

from prefopt.data.rows import Dialogue, Message, RowError
from prefopt.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "Zq8answer8qZ"
"""Stands for an answer where we ask the template what it writes before and after one."""

# What a template can raise on a row that it isn't made for.
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)


@dataclass(frozen=True)
class Rendered:
    """A prompt as the model sees it, and the answers as text that follows it."""

    prompt: str
    answers: tuple[str, ...]
    """Each ends with the end-of-turn, where the template has one."""
    altered: bool = False
    """The template writes the prompt otherwise when an answer follows it."""


class ChatTemplate:
    """A tokenizer's chat template.

    Attributes:
        end: the text that ends an assistant's turn, up to and including its end-of-turn token.
        end_id: the id of that token; None where the template writes none.
        openers: special tokens that the template writes in a prompt and that always stand by themselves, so that
            what comes before one is tokenized independently of what begins with it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Find out how the template ends a turn.

        Raises:
            DataError: the tokenizer has no chat template.
        """
        if not tokenizer.chat_template:
            name = tokenizer.name_or_path or "this model"
            raise DataError(
                f"The data holds conversations, but the tokenizer of {name} has no chat template to write them with. "
                "Use the model's instruct version, set tokenizer.chat_template to a template, or give plain-text data."
            )
        self._tokenizer = tokenizer
        self._ends = _end_tokens(tokenizer)
        question: Message = {"role": "user", "content": "a"}
        try:
            asked = self._write([[question]], ask=True)[0]
            whole = self._write([[question, _marked({})]], ask=False)[0]
        except TEMPLATE_ERRORS:
            asked = whole = ""  # a template with demands on its rows: each row is then asked by itself
        self.openers = tuple(text for text in _lone_tokens(tokenizer) if text in asked)
        self._tail: str | None = whole.rpartition(MARK)[2] if MARK in whole else None
        self.end, self.end_id = self._end(self._tail or "")

    def render(self, dialogues: Sequence[Dialogue]) -> list[Rendered | RowError]:
        """Write each dialogue; an error stands in the place of one that the template refuses."""
        try:
            return self._render(dialogues)
        except TEMPLATE_ERRORS:
            return [self._render_one(dialogue) for dialogue in dialogues]

    def opening(self, prompt: str) -> str:
        """Return the end of a prompt, from its last opener on; the whole prompt where it has none."""
        return prompt[max([0, *(prompt.rfind(opener) for opener in self.openers)]) :]

    def _render_one(self, dialogue: Dialogue) -> Rendered | RowError:
        try:
            return self._render([dialogue])[0]
        except TEMPLATE_ERRORS as error:
            return RowError("refused by the chat template", " ".join(str(error).split())[:200])

    def _render(self, dialogues: Sequence[Dialogue]) -> list[Rendered | RowError]:
        prompts = self._write([list(d.prompt) for d in dialogues], ask=True)
        wholes = iter(self._write([[*d.prompt, c] for d in dialogues for c in d.completions], ask=False))
        rendered: list[Rendered | RowError] = []
        for dialogue, prompt in zip(dialogues, prompts, strict=True):
            own = [next(wholes) for _ in dialogue.completions]
            if self._tail is not None and all(w.startswith(prompt) and w.endswith(self._tail) for w in own):
                stop = len(self._tail)
                answers = tuple(w[len(prompt) : len(w) - stop] + self.end for w in own)
                rendered.append(Rendered(prompt, answers))
            else:
                rendered.append(self._render_altered(dialogue, prompt, own))
        return rendered

    def _render_altered(self, dialogue: Dialogue, prompt: str, wholes: Sequence[str]) -> Rendered | RowError:
        """Find the answers where the whole conversation doesn't begin with the prompt, or ends in its own way.

        The prompt stays as the model sees it when asked, if what opens the answer is the same in both; otherwise
        (a template that opens a thinking block only when asked) it is what the whole conversation has before it.
        """
        closed = self._write([list(dialogue.prompt)], ask=False)[0]
        opening = prompt[len(closed) :] if prompt.startswith(closed) else ""
        found: set[str] = set()
        answers: list[str] = []
        for completion, whole in zip(dialogue.completions, wholes, strict=True):
            marked = self._write([[*dialogue.prompt, _marked(completion)]], ask=False)[0]
            before, mark, after = marked.rpartition(MARK)
            if not (mark and whole.startswith(before) and whole.endswith(after)):
                return RowError("refused by the chat template", "it rewrites the answer so that it can't be found")
            own, start = prompt, len(prompt)
            if not whole.startswith(prompt):
                at = before.rfind(opening) if opening else -1
                own, start = (prompt, at + len(opening)) if at >= 0 else (before, len(before))
            found.add(own)
            answers.append(whole[start : len(whole) - len(after)] + self._end(after)[0])
        if len(found) > 1:
            return RowError("refused by the chat template", "it writes the prompt otherwise for each answer")
        (own,) = found
        return Rendered(own, tuple(answers), altered=not all(w.startswith(prompt) for w in wholes))

    def _write(self, conversations: list[list[Message]], *, ask: bool) -> list[str]:
        written = self._tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=ask)
        return list(written)

    def _end(self, tail: str) -> tuple[str, int | None]:
        """Cut what follows an answer behind its first token that is no plain text, and name that token."""
        found = [(at, -len(text), text) for text in self._ends if (at := tail.find(text)) >= 0]
        if not found:
            return tail.rstrip(), None
        at, _, text = min(found)
        return tail[: at + len(text)], self._ends[text]


def _marked(message: Message) -> Message:
    return {**message, "role": "assistant", "content": MARK}


def _end_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return text -> id of the tokens that are no plain text; runs of whitespace, which some add, are."""
    added = {str(token): int(index) for index, token in tokenizer.added_tokens_decoder.items()}
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {text: index for text, index in {**added, **special}.items() if text.strip()}


def _lone_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [
        str(token)
        for token in tokenizer.added_tokens_decoder.values()
        if not (token.lstrip or token.rstrip or token.single_word or token.normalized)
    ]
