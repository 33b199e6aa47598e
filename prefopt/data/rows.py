"""One row -> one dialogue: a prompt and its completions as text or as messages, or the reason why it can't be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from prefopt.data.formats import TRANSCRIPT_ANSWER, Format, transcript_turns
from prefopt.data.formats.extras import tools_of, without_nulls
from prefopt.data.formats.values import field as field_of
from prefopt.data.formats.values import is_number, number
from prefopt.data.read import as_list, as_messages, plain
from prefopt.data.row_error import RowError as RowError

Message: TypeAlias = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Document:
    """A prompt and its completions as plain text: prompt + completion is the document, nothing between."""

    prompt: str
    completions: tuple[str, ...]
    label: bool | None = None
    scores: tuple[float, ...] = ()
    """One for each completion, or none at all; a list's completions stand in their order, the highest first."""


@dataclass(frozen=True)
class Dialogue:
    """A prompt as messages, and for each completion the one assistant message that answers it."""

    prompt: tuple[Message, ...]
    completions: tuple[Message, ...]
    label: bool | None = None
    scores: tuple[float, ...] = ()
    """As a document's."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """The schemas of the tools that the assistant may call."""


def normalise(row: Mapping[str, Any], format_: Format, *, as_chat: bool = False) -> Document | Dialogue:
    """Read one row by its format.

    Raises:
        RowError: a field is missing or of the wrong type, a completion is empty, chosen equals rejected, a role is
            unknown, the turns don't make a prompt and one answer each, or scores and completions don't match.
    """
    return normalise_joined(rewritten(row, format_), row, format_, as_chat=as_chat)


def rewritten(row: Mapping[str, Any], format_: Format) -> Mapping[str, Any]:
    """Return a row in the columns that its format reads.

    Raises:
        RowError: a row of a published schema that lacks something.
    """
    return row if format_.rewrite is None else format_.rewrite(row)


def join(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Make one list of rewritten rows with the same prompt."""
    lists = {name: [item for row in rows for item in row[name]] for name in ("completions", "scores")}
    return {**rows[0], **lists}


def normalise_joined(
    own: Mapping[str, Any], row: Mapping[str, Any], format_: Format, *, as_chat: bool = False
) -> Document | Dialogue:
    """Read `own`, a rewritten row or several of them joined; `row`, as it stood, has what comes before the prompt.

    Raises:
        RowError: as `normalise`.
    """
    read, scores = _answers(own, format_, as_chat=as_chat or format_.is_chat)
    if isinstance(read, Dialogue):
        read = _with_context(read, row, format_)
    if format_.form == "paired":
        if read.completions[0] == read.completions[1]:
            raise RowError("chosen = rejected")
        scores = _pair_scores(own, format_.score_columns, strict=format_.scores_named)
    elif format_.form == "listwise" and format_.score_columns:
        read, scores = _list_of_two(read, own, format_)
    if format_.form == "listwise":
        check_list(read.completions, scores)
    if format_.form == "demonstration":
        read = replace(read, label=True)
    return replace(read, scores=scores) if scores else read


def _answers(
    row: Mapping[str, Any], format_: Format, *, as_chat: bool
) -> tuple[Document | Dialogue, tuple[float, ...]]:
    """Read the prompt and its completions, and the scores of a list."""
    prompt = as_messages(_field(row, format_, "prompt")) if "prompt" in format_.columns else None
    scores: tuple[float, ...] = ()
    if "completions" in format_.columns:
        completions = as_list(_field(row, format_, "completions"))
        if not isinstance(completions, list | tuple):
            raise RowError("wrong type", f"'completions' is {_kind(completions)}, not a list of completions")
        if not completions:
            raise RowError("empty completion", "a list of no completions")
        if "scores" in format_.columns:
            completions, scores = _best_first(completions, as_list(_field(row, format_, "scores")))
    else:
        names = ("completion",) if "completion" in format_.columns else ("chosen", "rejected")
        completions = [as_messages(_field(row, format_, name)) for name in names]
    label = _label(_field(row, format_, "label")) if "label" in format_.columns else None
    if all(isinstance(value, str) for value in completions) and (prompt is None or isinstance(prompt, str)):
        read = _document(prompt, completions, label, format_)
        return (_as_dialogue(read, format_) if as_chat else read), scores
    return _dialogue(prompt, completions, label), scores


def _with_context(read: Dialogue, row: Mapping[str, Any], format_: Format) -> Dialogue:
    """Put the system turn before the others, and the tools beside them."""
    if format_.tools is not None:
        read = replace(read, tools=tools_of(row.get(format_.tools)))
    system = row.get(format_.system) if format_.system is not None else None
    if not system:
        return read
    turn: Message = {"role": "system", "content": _text(system, f"'{format_.system}'")}
    if read.prompt[0]["role"] != "system":
        return replace(read, prompt=(turn, *read.prompt))
    if read.prompt[0]["content"].strip() != turn["content"].strip():
        raise RowError("two system turns", f"'{format_.system}' and the first message differ")
    return read


def _list_of_two(
    read: Document | Dialogue, row: Mapping[str, Any], format_: Format
) -> tuple[Document | Dialogue, tuple[float, ...]]:
    """Make a pair with scores a list of two, the best first."""
    if read.completions[0] == read.completions[1]:
        raise RowError("chosen = rejected")
    found = _pair_scores(row, format_.score_columns, strict=True)
    if not found:
        raise RowError("field missing", f"{' or '.join(map(repr, format_.score_columns))} (data.ties is as_lists)")
    completions, scores = _best_first(read.completions, found)
    reordered: Any = tuple(completions)  # of strings in a document, of messages in a dialogue
    return replace(read, completions=reordered), scores


def _pair_scores(row: Mapping[str, Any], columns: Sequence[str], *, strict: bool) -> tuple[float, ...]:
    """Return the scores of (chosen, rejected), or () where the row doesn't have both.

    What is no number is an error where scores are asked for (`strict`), and otherwise no score.
    """
    found = [row.get(column) for column in columns]
    if any(value is None or value != value for value in found):  # a missing number may be NaN
        return ()
    if not strict and not all(map(is_number, found)):
        return ()
    return tuple(number(value, column) for value, column in zip(found, columns, strict=True))


def _best_first(completions: Sequence[Any], scores: Any) -> tuple[list[Any], tuple[float, ...]]:
    """Return completions and their scores in descending order; equal scores keep theirs."""
    if not isinstance(scores, list | tuple):
        raise RowError("wrong type", f"'scores' is {_kind(scores)}, not a list of numbers")
    if len(scores) != len(completions):
        raise RowError("scores don't match", f"{len(scores)} scores for {len(completions)} completions")
    found = [_list_score(value) for value in scores]
    order = sorted(range(len(found)), key=lambda i: -found[i])
    return [completions[i] for i in order], tuple(found[i] for i in order)


def _list_score(value: Any) -> float:
    if value is None:
        raise RowError("wrong type", "'scores' holds None; a score must be a finite number (of float32)")
    return number(value, "scores")


def check_list(completions: Sequence[object], scores: Sequence[float]) -> None:
    """Raise RowError for a list that compares nothing: it needs two different completions, and one score for each."""
    if all(completion == completions[0] for completion in completions):
        raise RowError("nothing to compare", "the list has only one distinct completion")
    for index, completion in enumerate(completions):
        if any(scores[i] != scores[index] for i in range(index) if completions[i] == completion):
            raise RowError("the same completion with two scores")


def scalars(row: Mapping[str, Any], format_: Format) -> dict[str, Any]:
    """Return the columns that the format doesn't use and that hold a number, a truth value or a short string."""
    used = {*(format_.read or format_.columns.values()), format_.system, format_.tools}
    values = {name: plain(value) for name, value in row.items() if name not in used}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 200)
    }


def _field(row: Mapping[str, Any], format_: Format, name: str) -> Any:
    return field_of(row, format_.columns[name])


def _label(value: Any) -> bool:
    value = plain(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise RowError("wrong type", f"'label' is {value!r:.40}; it must be true or false, or 1 or 0")


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RowError("wrong type", f"{what} is {_kind(value)}, not a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowError("not Unicode", f"{what} has half a surrogate pair at character {error.start}") from error
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


# ---- plain text ----


def _document(prompt: str | None, completions: Sequence[str], label: bool | None, format_: Format) -> Document:
    texts = [_text(value, "a completion") for value in completions]
    if prompt is None:
        prompt, texts = _transcript(texts) if format_.transcript else _common_prefix(texts)
    else:
        prompt = _text(prompt, "the prompt")
        if format_.repeats_prompt:
            if not all(text.startswith(prompt) for text in texts):
                raise RowError("prompt not repeated", "the other rows' completions begin with their prompt")
            texts = [text[len(prompt) :] for text in texts]
    if not all(text.strip() for text in texts):
        raise RowError("empty completion")
    return Document(prompt, tuple(texts), label)


def _transcript(texts: Sequence[str]) -> tuple[str, list[str]]:
    """Cut transcripts behind their last `Assistant:`."""
    cuts = [text.rfind(TRANSCRIPT_ANSWER) for text in texts]
    if min(cuts) < 0:
        raise RowError("no answer in the transcript", f"{TRANSCRIPT_ANSWER!r} is missing")
    stops = [cut + len(TRANSCRIPT_ANSWER) for cut in cuts]
    prompt = texts[0][: stops[0]]
    if any(text[:stop] != prompt for text, stop in zip(texts, stops, strict=True)):
        raise RowError("different prompts", "the transcripts differ before their last answer")
    return prompt, [text[stop:] for text, stop in zip(texts, stops, strict=True)]


def _common_prefix(texts: Sequence[str]) -> tuple[str, list[str]]:
    """Cut at the last whitespace inside the longest common prefix: spaces go to the completion, a newline stays."""
    if texts[0] == texts[1]:
        raise RowError("chosen = rejected")
    first, last = min(texts), max(texts)
    size = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    stop = size
    while stop and not first[stop - 1].isspace():
        stop -= 1
    start = stop
    while start and first[start - 1].isspace():
        start -= 1
    newline = first.rfind("\n", start, stop)
    cut = start if newline < 0 else newline + 1
    return first[:cut], [text[cut:] for text in texts]


# ---- messages ----


def _dialogue(prompt: Any, completions: Sequence[Any], label: bool | None) -> Dialogue:
    turns = [_messages(value, "a completion", role="assistant") for value in completions]
    if isinstance(prompt, list | tuple):
        before = _messages(prompt, "the prompt", role="user")
        turns = [own[len(before) :] if own[: len(before)] == before else own for own in turns]
    else:
        before = []
    shared = _shared(turns)
    if isinstance(prompt, str):
        asked = _text(prompt, "the prompt")
        if not shared:
            before = [{"role": "user", "content": asked}]
        elif not any(m["role"] == "user" and m["content"].strip() == asked.strip() for m in shared):
            raise RowError("different prompts", "the prompt column is no user turn of the messages")
    elif prompt is not None and not isinstance(prompt, list | tuple):
        raise RowError("wrong type", f"the prompt is {_kind(prompt)}, not a string or a list of messages")
    before = before + shared
    answers = tuple(_answer(own[len(shared) :]) for own in turns)
    if not before:
        raise RowError("empty prompt", "no message comes before the answers")
    if any(turn["role"] == "user" and not turn["content"].strip() for turn in before):
        raise RowError("empty turn", "a user's message has no text")
    if before[-1]["role"] == "assistant":
        raise RowError("prompt ends with an assistant turn", "an answer must follow a user's or a tool's turn")
    return Dialogue(tuple(before), answers, label)


def _messages(value: Any, what: str, *, role: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": role, "content": _text(value, what)}]
    if not isinstance(value, list | tuple):
        raise RowError("wrong type", f"{what} is {_kind(value)}, not a string or a list of messages")
    if not value:
        raise RowError("empty prompt" if role == "user" else "empty completion", "a list of no messages")
    return [_message(item, what) for item in value]


def _message(value: Any, what: str) -> Message:
    if type(value) is dict and len(value) == 2:  # as most are: only role and content, and sound
        role, content = value.get("role"), value.get("content")
        if type(role) is str and role in ROLES and type(content) is str and content.isascii():
            return value
    if not isinstance(value, Mapping):
        raise RowError("wrong type", f"a message of {what} is {_kind(value)}, not role and content")
    if value.get("content") is None and value.get("tool_calls"):
        value = {**value, "content": ""}
    for key in ("role", "content"):
        if value.get(key) is None:
            raise RowError("field missing", f"a message of {what} has no '{key}'")
    role = value["role"]
    if role not in ROLES:
        raise RowError("unknown role", f"{role!r:.40} is none of {', '.join(ROLES)}")
    _text(value["content"], "a message's content")
    # A table with types fills in the keys that a row lacks.
    return {k: v if isinstance(v, str) else without_nulls(v) for k, v in value.items() if v is not None}


def _shared(turns: Sequence[Sequence[Message]]) -> list[Message]:
    """Leading messages that all have in common; each keeps its last message."""
    room = min(map(len, turns)) - 1
    size = 0
    while size < room and all(own[size] == turns[0][size] for own in turns):
        size += 1
    return list(turns[0][:size])


def _answer(turns: Sequence[Message]) -> Message:
    if not turns:
        raise RowError("empty completion", "it repeats the prompt and answers nothing")
    if len(turns) != 1:
        raise RowError("several turns in a completion", f"{len(turns)} messages differ; only the last answer may")
    if turns[0]["role"] != "assistant":
        raise RowError("completion is no assistant turn", f"its role is '{turns[0]['role']}'")
    if not turns[0]["content"].strip() and not turns[0].get("tool_calls"):
        raise RowError("empty completion")
    return turns[0]


def _as_dialogue(read: Document, format_: Format) -> Dialogue:
    """Take strings as turns: a transcript as all of its turns, anything else as one question and its answers."""
    if format_.transcript:
        prompt = transcript_turns(read.prompt)
    else:
        prompt = [{"role": "user", "content": read.prompt.strip() if format_.name == "implicit_pairs" else read.prompt}]
    spaced = "prompt" not in format_.columns or format_.repeats_prompt  # a separator was cut off with the completion
    answers = tuple({"role": "assistant", "content": t.strip() if spaced else t} for t in read.completions)
    return Dialogue(tuple(prompt), answers, read.label)
