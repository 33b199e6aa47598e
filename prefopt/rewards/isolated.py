"""Work on what a model wrote, in a process of its own: it can be ended when it takes too long or too much memory."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import select
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_START = 120.0
"""Seconds that the process may take until it is ready: it imports what it works with."""
_MEMORY = 8 << 30
"""Bytes of addresses: a tower of powers ends the process before it ends the machine."""

_SECRET = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
"""What is in the name of an environment variable that work on a model's text must not see."""

Work = Callable[[dict[str, Any]], dict[str, Any]]


class TookTooLongError(Exception):
    """The work was ended at its time limit."""


class Isolated:
    """Calls one function in another process, which starts with the first call and ends with this object.

    Args:
        work: `module:function`; the function takes and returns what JSON can hold. It is called with {} first, to
            load what it needs, without a time limit.
        seconds: that one call may take.
    """

    def __init__(self, work: str, seconds: float) -> None:
        self._work = work
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return what the function returns.

        Raises:
            TookTooLongError: it did.
            RuntimeError: it raised, or the process ended, for instance for want of memory.
        """
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            line = _line(process, self._seconds)
        except BrokenPipeError:
            line = b""
        if line is None:
            self._end()
            raise TookTooLongError(f"it took longer than {self._seconds:g} seconds")
        if not line:
            self._end()
            raise RuntimeError("the process that does it ended, for instance for want of memory")
        reply: dict[str, Any] = json.loads(line)
        if "raised" in reply:
            raise RuntimeError(reply["raised"])
        return reply

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            # Not by multiprocessing: nothing of the user's program runs a second time, and no lock is inherited.
            process = subprocess.Popen(
                # Without the working directory among the places to import from, and without the user's secrets.
                [sys.executable, "-P", "-m", __name__, self._work],
                env={name: value for name, value in os.environ.items() if not _SECRET.search(name)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
            self._process = process
            weakref.finalize(self, _kill, process)
            if not _line(process, _START):
                self._end()
                raise RuntimeError("the process that does it does not start")
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            _kill(self._process)
            self._process = None


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """Return the next line that the process writes; b"" where it ended, None where it took longer."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() if ready else None


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def main(name: str) -> None:
    """Be that process: a line of JSON in, a line out, until the input ends."""
    with suppress(ImportError, ValueError, OSError):  # where there is no such limit, or a lower one
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    out = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints is no reply
    logging.disable()
    module, _, function = name.partition(":")
    work: Work = getattr(importlib.import_module(module), function)
    work({})

    def say(reply: dict[str, Any]) -> None:
        out.write(json.dumps(reply) + "\n")
        out.flush()

    say({})
    for line in sys.stdin:
        try:
            reply = work(json.loads(line))
        except Exception as error:  # noqa: BLE001 - whatever the library raises is told
            reply = {"raised": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        say(reply)


if __name__ == "__main__":
    main(sys.argv[1])
