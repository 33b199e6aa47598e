"""`python -m tests.train.forks`: starts prefopt as often as asked, without the seconds of import that each start costs.

Reads one JSON line a job, see `Forks.prefopt`. For each rank it forks a process that becomes `prefopt ARGV`; the
processes are as real, and end as finally, as any other. The answer is one JSON line, their exit codes.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.train.launch import ROOT, environment, free_port

IMPORTED = (
    "prefopt.cli",
    "prefopt.report",
    "prefopt.workflow",
    "prefopt.rounds.loop",
    "transformers.models.llama.modeling_llama",
)


class Ended(NamedTuple):
    """How the processes of one start ended, rank by rank."""

    codes: list[int]
    out: list[str]
    err: list[str]


class Forks:
    """The asking side: keeps one such process, which has everything imported."""

    def __init__(self) -> None:
        fixed = {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.train.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **fixed},
        )
        self._number = 0

    def prefopt(
        self,
        folder: Path,
        *argv: str,
        ranks: int = 1,
        kill: tuple[int, str, int] | None = None,
        full_at: int = 0,
        kill_after: float = 0.0,
    ) -> Ended:
        """Run `prefopt ARGV` as `ranks` processes, one of which kills itself at the number-th time at a point.

        `full_at`: bytes that a file may have at most, as on a disk that is full; 0 for any number.
        `kill_after`: seconds after which every process that is still there is killed from outside; 0 for never.
        """
        self._number += 1
        logs = folder / f"start-{self._number}"
        logs.mkdir(parents=True)
        job = {"argv": argv, "ranks": ranks, "kill": kill, "folder": str(logs), "full_at": full_at}
        job["kill_after"] = kill_after
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        codes = json.loads(self._server.stdout.readline())
        texts = {end: [(logs / f"rank-{rank}.{end}").read_text() for rank in range(ranks)] for end in ("out", "err")}
        return Ended(codes, **texts)

    def close(self) -> None:
        self._server.terminate()
        self._server.wait()


def serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        port = free_port()
        started = [_fork(job, rank, port) for rank in range(job["ranks"])]
        print(json.dumps(_wait(started, kill_after=job["kill_after"])), flush=True)


def _fork(job: dict[str, Any], rank: int, port: str) -> int:
    if child := os.fork():
        return child
    try:
        for name, end in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{job['folder']}/rank-{rank}.{name}", os.O_CREAT | os.O_WRONLY), end)
        if job["ranks"] > 1:
            os.environ.update(environment(rank, job["ranks"], port))
        if job["full_at"]:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (job["full_at"], job["full_at"]))
        if job["kill"] and job["kill"][0] == rank:
            from tests.train.killed import arm

            arm(job["kill"][1], job["kill"][2])
        sys.argv = ["prefopt", *job["argv"]]
        from prefopt.cli import main

        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - the end of a process, as Python would write it
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(children: list[int], seconds: float = 300, kill_after: float = 0.0) -> list[int]:
    """Return the exit codes; what has not ended in time is killed, and its code is that of SIGALRM."""
    codes: dict[int, int] = {}
    until = time.monotonic() + seconds
    killed_at = time.monotonic() + kill_after if kill_after else float("inf")
    while len(codes) < len(children):
        for child in set(children) - codes.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > killed_at:
                os.kill(child, signal.SIGKILL)
            elif time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                codes[child] = -signal.SIGALRM
        time.sleep(0.002)
    return [codes[child] for child in children]


if __name__ == "__main__":
    serve()
