"""Processes that train together on this machine, as torchrun would start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def environment(rank: int, world: int, port: str, *, cpu: bool = True) -> dict[str, str]:
    """What torchrun tells a process, on the CPU: also said, or because there is nothing else."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    fixed = {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if not cpu:
        del fixed["ACCELERATE_USE_CPU"]
    return {**os.environ, **fixed, **{name: str(value) for name, value in told.items()}}


def together(
    world: int, *module: str, timeout: float = 300, cpu: bool = True
) -> list[subprocess.CompletedProcess[str]]:
    """Run `python -m MODULE...` as `world` ranks; the result of each, after all have ended."""
    port = free_port()
    command = [sys.executable, "-m", *module]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    started = [
        subprocess.Popen(command, env=environment(rank, world, port, cpu=cpu), **options) for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(command, process.returncode, *output)
        for process, output in zip(started, said, strict=True)
    ]
