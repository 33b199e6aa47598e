"""The command line in a process of its own, and what it ended with."""

import subprocess
import sys
from typing import NamedTuple


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def process(*arguments: str) -> Ended:
    """Run the console script's function in a process of its own."""
    script = "from prefopt.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    return Ended(done.returncode, done.stdout, done.stderr)
