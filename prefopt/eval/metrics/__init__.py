"""Where the measures lie that the library `evaluate` loads: `evaluate.load(metric_path("pair_accuracy"))`."""

from __future__ import annotations

from pathlib import Path

from prefopt.errors import PrefoptError, nearest

_HERE = Path(__file__).parent


def metric_path(name: str) -> str:
    """Return the folder of a metric, for `evaluate.load`, which then needs no network.

    Raises PrefoptError where there is none of that name, with those that there are.
    """
    known = sorted(path.parent.name for path in _HERE.glob("*/README.md"))
    if name not in known:
        raise PrefoptError(f"There is no metric {name!r}; there are {', '.join(known)}{nearest(name, known)}")
    return str(_HERE / name)
