"""Prompts that hold earlier turns between marks, as HelpSteer 2 writes them."""

from __future__ import annotations

import re
from typing import Any

_MARK = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def marked_turns(prompt: Any) -> Any:
    """Return the turns of a prompt with marks as messages; any other prompt as it is."""
    if not isinstance(prompt, str) or not _MARK.search(prompt):
        return prompt
    first, *rest = _MARK.split(prompt)
    turns = [{"role": "user", "content": first}] if first.strip() else []
    return turns + [{"role": role.lower(), "content": text} for role, text in zip(rest[::2], rest[1::2], strict=True)]
