"""Transcripts: one string with the turns of `Human:` and `Assistant:`."""

from __future__ import annotations

from typing import Any

from prefopt.data.row_error import RowError

TRANSCRIPT_QUESTION = "\n\nHuman:"
TRANSCRIPT_ANSWER = "\n\nAssistant:"


def transcript_turns(prompt: str) -> list[dict[str, Any]]:
    """Return the turns of a transcript that ends where the next answer begins.

    Raises:
        RowError: no question comes before the answer.
    """
    turns: list[dict[str, Any]] = []
    for asked in prompt.removesuffix(TRANSCRIPT_ANSWER).split(TRANSCRIPT_QUESTION)[1:]:
        question, *answers = asked.split(TRANSCRIPT_ANSWER)
        turns.append({"role": "user", "content": question.strip()})
        turns += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    if not turns or turns[-1]["role"] != "user":
        raise RowError("no question in the transcript", f"{TRANSCRIPT_QUESTION!r} doesn't come before the answer")
    return turns
