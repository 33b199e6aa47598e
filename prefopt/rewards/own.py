"""A scorer of the user's own: a function in a file of Python, which is run because the recipe names it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from prefopt.errors import RecipeError, nearest
from prefopt.rewards.attempts import Attempt
from prefopt.rewards.kinds import PythonSection
from prefopt.rewards.scorer import Score, ScoreFailure, failure

Function = Callable[[Attempt], float]


class OwnFunction:
    """What `function(attempt: prefopt.rewards.Attempt) -> float` returns; what it raises is that completion's failure.

    Raises RecipeError when the file is not there or fails, or has no such function.
    """

    name = "python"

    def __init__(self, section: PythonSection) -> None:
        self.low: float | None = section.low
        self.high: float | None = section.high
        self._function = load_function(section.function)

    def score(self, attempts: Sequence[Attempt]) -> list[Score]:
        return [self._one(attempt) for attempt in attempts]

    def _one(self, attempt: Attempt) -> float | ScoreFailure:
        try:
            return self._function(attempt)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's function raises
            return failure(self.name, error)


def load_function(name: str) -> Function:
    """Run the file of `file.py:function` once for its content, and return the function."""
    file, _, wanted = name.rpartition(":")
    path = Path(file).expanduser().resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"function names {path}, which can't be read: {error.strerror}.") from error
    digest = hashlib.sha256(f"{path} {hashlib.sha256(source).hexdigest()}".encode()).hexdigest()
    module = _run(source, path, f"prefopt_own_scorers_{digest[:16]}")
    found = {
        key: value
        for key, value in vars(module).items()
        if callable(value) and not isinstance(value, type) and not key.startswith("_")
    }
    if wanted not in found:
        listed = f"it has {', '.join(found)}{nearest(wanted, found) or '.'}" if found else "it has none."
        raise RecipeError(f"the file {path} has no function {wanted!r}: {listed}")
    function: Function = found[wanted]
    return function


def _run(source: bytes, path: Path, name: str) -> ModuleType:
    """Return the file as a module; not from cached bytecode, which goes by time and size."""
    if name in sys.modules:
        return sys.modules[name]
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = str(path)
    try:
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise RecipeError(f"the file {path} of a scorer fails: {type(error).__name__}: {error}") from error
    return module
