"""User-facing errors: each is one sentence that says what, where, what is allowed and what to do next.

The command line prints these without a traceback; anything else that escapes is a defect of prefopt.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PrefoptError(Exception):
    """Something the user can mend. The message is the whole explanation."""


class RecipeError(PrefoptError):
    """A recipe, an override or a combination of settings that can't work."""


class DataError(PrefoptError):
    """Preference data that can't be read, recognised or used."""


class ModelError(PrefoptError):
    """A model, tokenizer or reference that can't be loaded or can't do what was asked."""


class RunError(PrefoptError):
    """A run directory or checkpoint that can't be written, read or resumed."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest of `allowed`, or an empty string when none is close."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
