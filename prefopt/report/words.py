"""Numbers as a reader wants them, for tables and sentences. What has no value is an en dash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

NONE = "–"


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a JSON value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def percent(value: Any) -> str:
    """0.9523 -> `95.2 %` (with a no-break space)."""
    return f"{100 * value:.1f}\u00a0%" if is_number(value) else NONE


def number(value: Any, digits: int = 3) -> str:
    """-3.14159 -> `−3.14`, with `digits` significant digits and a real minus; whole numbers whole."""
    if not is_number(value):
        return NONE
    if value == 0:
        return "0"  # also for -0.0
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1):
        return f"{int(value):,}".replace(",", "\u202f").replace("-", "−")
    text = f"{value:.{digits}g}"
    if "e" not in text and abs(value) < 10**digits:
        # Keep trailing zeros: 0.690 and 0.214 then align and say how precise they are.
        places = max(0, digits - 1 - math.floor(math.log10(abs(float(text)))))
        text = f"{value:.{places}f}"
    return text.replace("-", "−")


def percent_interval(measure: Mapping[str, Any] | None) -> str:
    """`93.7 to 96.4 %`, or a dash."""
    if not measure or not is_number(measure.get("low")) or not is_number(measure.get("high")):
        return NONE
    return f"{100 * measure['low']:.1f} to {percent(measure['high'])}"


def interval(measure: Mapping[str, Any] | None, digits: int = 3) -> str:
    """`−1.20 to 3.40`, or a dash."""
    if not measure or not is_number(measure.get("low")) or not is_number(measure.get("high")):
        return NONE
    return f"{number(measure['low'], digits)} to {number(measure['high'], digits)}"


def duration(seconds: Any) -> str:
    """75 -> `1 min 15 s`."""
    if not is_number(seconds):
        return NONE
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plural(count: int, noun: str) -> str:
    """(1, "pair") -> `1 pair`; (2, "pair") -> `2 pairs`."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"
