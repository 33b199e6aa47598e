"""Where the measures lie that the library `evaluate` loads: `evaluate.load(metric_path("pair_accuracy"))`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from prefopt.errors import PrefoptError, nearest

_HERE = Path(__file__).parent


def metric_names() -> list[str]:
    """Return the names that `metric_path` knows."""
    return sorted(path.parent.name for path in _HERE.glob("*/README.md"))


def metric_path(name: str) -> str:
    """Return the folder of a metric, for `evaluate.load`, which then needs no network.

    Raises PrefoptError where there is none of that name, with those that there are, and without that library.
    """
    known = metric_names()
    if name not in known:
        raise PrefoptError(f"There is no metric {name!r}; there are {', '.join(known)}{nearest(name, known)}")
    if find_spec("evaluate") is None:
        raise PrefoptError(f'The metric {name!r} needs the library evaluate: pip install "prefopt[metrics]".')
    return str(_HERE / name)
