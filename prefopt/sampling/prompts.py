"""Prompts as token ids, and the tokens at which a completion ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, cast

from jinja2 import TemplateError

from prefopt.data.thinking import ASKED, Thinking
from prefopt.errors import DataError

Message = Mapping[str, Any]
_MARK = "completion"


def is_token_ids(prompt: Sequence[Message] | Sequence[int]) -> TypeGuard[Sequence[int]]:
    """Return whether a prompt is token ids already."""
    return all(isinstance(item, int) for item in prompt)


def encode_prompt(
    tokenizer: Any, prompt: str | Sequence[Message] | Sequence[int], *, thinking: Thinking = "keep"
) -> list[int]:
    """Return the token ids that a completion follows.

    A string is tokenized as it stands; messages go through the chat template, up to where the assistant speaks;
    token ids are taken as they are. `thinking` is what the model was trained with (`data.thinking`): "drop" asks the
    template for an answer without a thought.

    Raises:
        DataError: when messages meet a tokenizer without chat template, or the template refuses them, or nothing
            is left.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    elif is_token_ids(prompt):
        ids = list(prompt)
    elif tokenizer.chat_template is None:
        raise DataError(
            "the prompt is a conversation and the tokenizer has no chat template: set model.tokenizer.chat_template, "
            "or write prompts as plain text."
        )
    else:
        try:
            ids = tokenizer.apply_chat_template(
                [dict(cast(Message, message)) for message in prompt],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **ASKED[thinking],
            )
        except (TemplateError, KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"the chat template refuses the prompt: {error}.") from error
    if not ids:
        raise DataError("the prompt is empty, so there is nothing to continue.")
    return list(ids)


def end_of_turn_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids at which generation stops: the model's, the tokenizer's, and the end of a turn in the template."""
    config = model.generation_config
    own = config.eos_token_id if config is not None else None
    found = [] if own is None else [own] if isinstance(own, int) else list(own)
    if tokenizer.eos_token_id is not None:
        found.append(tokenizer.eos_token_id)
    if (turn := _template_end(tokenizer)) is not None:
        found.append(turn)
    return list(dict.fromkeys(found))


def _template_end(tokenizer: Any) -> int | None:
    """Return the special token that stands right behind an assistant's message in the chat template."""
    if tokenizer.chat_template is None:
        return None
    turn = [{"role": "user", "content": "prompt"}, {"role": "assistant", "content": _MARK}]
    try:
        text = tokenizer.apply_chat_template(turn, tokenize=False)
    except (TemplateError, KeyError, TypeError, ValueError, IndexError):
        return None  # a template that wants another kind of conversation; the other ends remain
    after = text.rpartition(_MARK)[2].lstrip()
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    return ids[0] if ids and ids[0] in special_ids(tokenizer) else None


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids that are left out of decoded text."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)
