"""Why a row isn't used: because it can't be, or because a rule of the recipe leaves it out."""

from __future__ import annotations


class RowError(Exception):
    """A row that can't be used. `reason` is what is counted; `detail` is about this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class LeftOut(RowError):  # noqa: N818 - it is no error of the row
    """A row that could be used and that a rule leaves out; `rule` is the key of the recipe that says so."""

    def __init__(self, rule: str, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.rule = rule
