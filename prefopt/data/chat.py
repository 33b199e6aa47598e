"""Messages -> text by the tokenizer's chat template: what the model reads when asked, and what it should answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template

from prefopt.data.rows import Dialogue, Message, RowError
from prefopt.data.thinking import ASKED, CLOSE, OPEN, Thinking, thought_of
from prefopt.data.tracing import Layout, trace_layout
from prefopt.data.words import lone_tokens
from prefopt.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "Zq8answer8qZ"
"""Stands for an answer where we ask the template what it writes before and after one."""

PROBED = 4
"""Dialogues of a call that are also written by the template itself."""
MOST_LAYOUTS = 1000
"""Sequences of roles that are told apart; dialogues with others are written by the template itself."""

HARD = (
    " \n a\t\n ",
    "<think>\nb\n</think>\n\nc",
    "d</think>e",
    '"f"\\n{{ g }}{% h %}&lt;',
    "<tool_response>i</tool_response>",
)
"""Texts that templates treat in ways of their own."""

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
        marks: all such tokens that the template writes.
        gave_up: what layouts write was found to differ from what the template writes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, thinking: Thinking = "keep") -> None:
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
        self._switches = ASKED[thinking]
        self._ends = _end_tokens(tokenizer)
        question: Message = {"role": "user", "content": "a"}
        try:
            asked = self._write([[question]], ask=True)[0]
            whole = self._write([[question, _marked({})]], ask=False)[0]
        except TEMPLATE_ERRORS:
            asked = whole = ""  # a template with demands on its rows: each row is then asked by itself
        self.openers = tuple(text for text in lone_tokens(tokenizer) if text in asked)
        self.marks = tuple(text for text in lone_tokens(tokenizer) if text in asked + whole)
        self._tail: str | None = whole.rpartition(MARK)[2] if MARK in whole else None
        self.end, self.end_id = self._end(self._tail or "")
        self._layouts: dict[tuple[str, ...], Layout | None] = {}
        self._follows = self._tail is not None
        self.gave_up = False

    def render(self, dialogues: Sequence[Dialogue]) -> list[Rendered | RowError]:
        """Write each dialogue; an error stands in the place of one that the template refuses.

        Most are written by the layout that the template was found to give their roles. Some of every call are
        written by the template as well; should they differ, layouts are given up.
        """
        rendered: list[Rendered | RowError | None] = [self._by_layout(dialogue) for dialogue in dialogues]
        checked = [index for index, found in enumerate(rendered) if found is not None][:PROBED]
        exact = self._by_template([dialogues[index] for index in checked])
        if any(rendered[index] != found for index, found in zip(checked, exact, strict=True)):
            self.give_up()
            return self._by_template(dialogues)
        rest = [index for index, found in enumerate(rendered) if found is None]
        for index, own in zip(rest, self._by_template([dialogues[index] for index in rest]), strict=True):
            rendered[index] = own
        return [found for found in rendered if found is not None]

    def give_up(self) -> None:
        """Let the template write everything from now on."""
        self._follows, self.gave_up = False, True

    def _by_layout(self, dialogue: Dialogue) -> Rendered | None:
        if not self._follows or dialogue.tools or any(len(m) != 2 for m in (*dialogue.prompt, *dialogue.completions)):
            return None
        roles = tuple([message["role"] for message in dialogue.prompt])
        if roles not in self._layouts:
            self._layouts[roles] = self._layout(roles)
        layout = self._layouts[roles]
        if layout is None or any(message["role"] != "assistant" for message in dialogue.completions):
            return None
        prompt = layout.prompt([message["content"] for message in dialogue.prompt])
        if prompt is None:
            return None
        answers = [layout.answer(message["content"]) for message in dialogue.completions]
        written = tuple([answer + self.end for answer in answers if answer is not None])
        return Rendered(prompt, written) if len(written) == len(answers) else None

    def _layout(self, roles: tuple[str, ...]) -> Layout | None:
        """Trace the template for these roles, and compare with what it writes for texts that are hard to follow."""
        if len(self._layouts) >= MOST_LAYOUTS:
            return None
        template = _compile_jinja_template(self._tokenizer.get_chat_template())
        known = {**self._tokenizer.special_tokens_map, **self._switches}

        def write(messages: list[dict[str, Any]], ask: bool) -> str:
            found = template.render(messages=messages, tools=None, documents=None, add_generation_prompt=ask, **known)
            return str(found)

        try:
            layout = trace_layout(write, roles, self._tail or "")
            return layout if layout is not None and _writes_hard_texts(layout, write, roles) else None
        except TEMPLATE_ERRORS:
            return None

    def _by_template(self, dialogues: Sequence[Dialogue]) -> list[Rendered | RowError]:
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
        if any(dialogue.tools for dialogue in dialogues) and len(dialogues) > 1:
            return [self._render_one(dialogue) for dialogue in dialogues]
        tools = next((dialogue.tools for dialogue in dialogues), ())
        prompts = self._write([list(d.prompt) for d in dialogues], ask=True, tools=tools)
        wholes = iter(self._write([[*d.prompt, c] for d in dialogues for c in d.completions], ask=False, tools=tools))
        rendered: list[Rendered | RowError] = []
        for dialogue, prompt in zip(dialogues, prompts, strict=True):
            own = [next(wholes) for _ in dialogue.completions]
            if any(_lost_thought(c, w) for c, w in zip(dialogue.completions, own, strict=True)):
                rendered.append(self._render_verbatim(dialogue, prompt))
            elif self._tail is not None and all(w.startswith(prompt) and w.endswith(self._tail) for w in own):
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
        closed = self._write([list(dialogue.prompt)], ask=False, tools=dialogue.tools)[0]
        opening = prompt[len(closed) :] if prompt.startswith(closed) else ""
        opening = opening or _behind(prompt, dialogue.prompt[-1]["content"])
        found: set[str] = set()
        answers: list[str] = []
        for completion, whole in zip(dialogue.completions, wholes, strict=True):
            marked = self._write([[*dialogue.prompt, _marked(completion)]], ask=False, tools=dialogue.tools)[0]
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

    def _render_verbatim(self, dialogue: Dialogue, prompt: str) -> Rendered | RowError:
        """Put the answers as they stand where the template writes one: it would leave out what they think."""
        answers: list[str] = []
        for completion in dialogue.completions:
            marked = self._write([[*dialogue.prompt, _marked({})]], ask=False, tools=dialogue.tools)[0]
            before, _, after = marked.rpartition(MARK)
            text = completion["content"]
            if (before + text).startswith(prompt):
                answer = (before + text)[len(prompt) :]
            elif prompt.startswith(before) and prompt[len(before) :].strip() == OPEN and OPEN not in text:
                answer = text  # the prompt opens the thought
            else:
                return RowError("refused by the chat template", "it leaves out what the answer thinks")
            answers.append(answer + self._end(after)[0])
        return Rendered(prompt, tuple(answers))

    def _write(
        self, conversations: list[list[Message]], *, ask: bool, tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[str]:
        if not conversations:
            return []
        written = self._tokenizer.apply_chat_template(
            conversations,
            tools=[dict(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=ask,
            **self._switches,
        )
        return list(written)

    def _end(self, tail: str) -> tuple[str, int | None]:
        """Cut what follows an answer behind its first token that is no plain text, and name that token."""
        found = [(at, -len(text), text) for text in self._ends if (at := tail.find(text)) >= 0]
        if not found:
            return tail.rstrip(), None
        at, _, text = min(found)
        return tail[: at + len(text)], self._ends[text]


def _writes_hard_texts(
    layout: Layout, write: Callable[[list[dict[str, Any]], bool], str], roles: Sequence[str]
) -> bool:
    """Whether a layout writes what the template writes, of hard texts."""
    for text in HARD:
        turns = [{"role": role, "content": text} for role in roles]
        prompt, answer = layout.prompt([text] * len(roles)), layout.answer(text)
        if prompt is not None and prompt != write(turns, True):
            return False
        whole = write([*turns, {"role": "assistant", "content": text}], False)
        if prompt is not None and answer is not None and not whole.startswith(prompt + answer):
            return False
    return True


def _behind(prompt: str, content: str) -> str:
    """Return what a prompt has behind its last message's text; "" where that isn't found."""
    _, found, after = prompt.rpartition(content.strip())
    return after if found else ""


def _lost_thought(message: Message, whole: str) -> bool:
    text = message["content"]
    return CLOSE in text and thought_of(text) not in whole


def _marked(message: Message) -> Message:
    return {**message, "role": "assistant", "content": MARK}


def _end_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return text -> id of the tokens that are no plain text; runs of whitespace, which some add, are."""
    added = {str(token): int(index) for index, token in tokenizer.added_tokens_decoder.items()}
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {text: index for text, index in {**added, **special}.items() if text.strip()}
