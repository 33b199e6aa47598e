"""Work on what a model wrote, in a process of its own: it can be ended when it takes too long or too much memory."""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import time
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

_PDEATHSIG = 1
"""prctl's number for the signal that a process gets when the one that started it ends."""

Work = Callable[[dict[str, Any]], dict[str, Any]]


class TookTooLongError(Exception):
    """The work was ended at its time limit."""


class Isolated:
    """Calls one function in another process, which starts with the first call and ends with this object.

    It is ended with the process that started it, too, also when that is killed and it is busy (on Linux; elsewhere when
    it next waits for a call). It is no sandbox: the function does what it likes with the user's rights.

    Args:
        work: `module:function`; the function takes and returns what JSON can hold. It is called with {} first, to
            load what it needs, without a time limit.
        seconds: that one call may take.
    """

    def __init__(self, work: str, seconds: float) -> None:
        self._work = work
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._replies = -1

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
            line = _line(self._replies, self._seconds)
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
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            # Replies have a pipe of their own: what the function prints, also from C or a program that it starts, is
            # none.
            self._replies, theirs = os.pipe()
            try:
                # Not by multiprocessing: nothing of the user's program runs a second time, and no lock is inherited.
                process = subprocess.Popen(
                    # Without the working directory among the places to import from, and without the user's secrets.
                    [sys.executable, "-P", "-m", __name__, self._work, str(theirs), str(os.getpid())],
                    env={name: value for name, value in os.environ.items() if not _SECRET.search(name)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    bufsize=0,
                    pass_fds=[theirs],
                )
            except OSError:
                os.close(self._replies)
                raise
            finally:
                os.close(theirs)
            self._process = process
            self._ending = weakref.finalize(self, _kill, process, self._replies)
            if not _line(self._replies, _START):
                self._end()
                raise RuntimeError("the process that does it does not start")
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._ending()
            self._process = None


def _line(replies: int, seconds: float) -> bytes | None:
    """Return the next line that the process writes; b"" where it ended, None where it took longer."""
    until = time.monotonic() + seconds
    waiting = select.poll()
    waiting.register(replies, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        if not waiting.poll(max(0.0, until - time.monotonic()) * 1000):
            return None
        part = os.read(replies, 1 << 16)
        if not part:
            return b""
        line += part
    return line


def _kill(process: subprocess.Popen[bytes], replies: int) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
    os.close(replies)


def _end_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, whatever it is busy with then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # which ended before that
        os._exit(1)


def main(name: str, replies: int, parent: int) -> None:
    """Be that process: a line of JSON in, a line out, until the input ends."""
    _end_with(parent)
    with suppress(ImportError, ValueError, OSError):  # where there is no such limit, or a lower one
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    os.set_inheritable(replies, False)
    out = os.fdopen(replies, "w")
    requests = os.fdopen(os.dup(0))  # of which the function reads nothing either
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    logging.disable()
    module, _, function = name.partition(":")
    work: Work = getattr(importlib.import_module(module), function)
    work({})

    def say(reply: dict[str, Any]) -> None:
        out.write(json.dumps(reply) + "\n")
        out.flush()

    say({})
    for line in requests:
        try:
            reply = work(json.loads(line))
        except Exception as error:  # noqa: BLE001 - whatever the library raises is told
            reply = {"raised": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        say(reply)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
