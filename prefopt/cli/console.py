"""Where the verbs write: messages to stderr, results to stdout."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def messages() -> Console:
    """Return the console for everything that is not a result: progress, warnings, errors."""
    return Console(stderr=True)


def results() -> Console:
    """Return the console for what was asked for."""
    return Console()


def say(line: str) -> None:
    """Tell what is being done, or where something lies, on stderr: not wrapped, nothing in it is markup."""
    messages().print(line, soft_wrap=True, highlight=False, markup=False)


def print_json(value: Any) -> None:
    """Print one JSON document to stdout, plain, for programs."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
