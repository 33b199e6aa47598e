"""What this machine can do: facts for `environment.json`, and what `prefopt doctor` makes of them.

The facts go into reports, so they hold no user, host or path.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGES = (
    "prefopt",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "safetensors",
    "tokenizers",
    "bitsandbytes",
    "triton",
    "gguf",
    "numpy",
    "pydantic",
    "trl",
    "vllm",
)
_COMPILERS = ("cc", "gcc", "clang", "cl")
_GIB = 1 << 30


@dataclass(frozen=True)
class Capability:
    """Something a machine may have."""

    name: str
    available: bool
    detail: str
    """What was found, or why it is absent."""
    cost_of_absence: str
    """What prefopt does without it; one sentence."""


def describe() -> dict[str, Any]:
    """Return the facts of this machine as JSON values: nothing is installed, fetched or compiled to find them."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": _platform(),
        "cpu": _cpu(),
        "memory_gib": _memory_gib(),
        "threads": torch.get_num_threads(),
        "devices": _devices(),
        "cuda": torch.version.cuda or torch.version.hip,
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "triton": importlib.util.find_spec("triton") is not None,
        "bitsandbytes": importlib.util.find_spec("bitsandbytes") is not None,
        "c_compiler": next((name for name in _COMPILERS if shutil.which(name)), None),
    }


def capabilities(description: Mapping[str, Any]) -> list[Capability]:
    """Return what the machine that `describe` described has and lacks, in the order in which it matters."""
    devices: list[Mapping[str, Any]] = description["devices"]
    cuda = [device for device in devices if device["type"] == "cuda"]
    return [
        _accelerator(description, devices),
        _bfloat16(description, devices),
        _triton(description, cuda),
        _bitsandbytes(description),
        Capability(
            "C compiler",
            description["c_compiler"] is not None,
            description["c_compiler"] or "none of cc, gcc, clang and cl is on the path",
            "torch.compile and Triton can't build code; prefopt needs neither to train on a CPU.",
        ),
    ]


def _accelerator(description: Mapping[str, Any], devices: list[Mapping[str, Any]]) -> Capability:
    found = ", ".join(
        device["name"] + (f" ({device['memory_gib']:.0f} GiB)" if device["memory_gib"] else "") for device in devices
    )
    absent = "torch was built without CUDA" if description["cuda"] is None else "torch sees no GPU"
    return Capability(
        "GPU",
        bool(devices),
        found or absent,
        "Training runs on the CPU: right for small models, slow for those of a billion parameters and more.",
    )


def _bfloat16(description: Mapping[str, Any], devices: list[Mapping[str, Any]]) -> Capability:
    if devices:
        able = all(device["bf16"] for device in devices)
        return Capability(
            "bfloat16",
            able,
            "on the GPU" if able else "a GPU computes it by emulation or not at all",
            "Models run in float32 or float16 there: set model.dtype by hand, and expect less speed.",
        )
    cpu = description["cpu"]
    return Capability(
        "bfloat16",
        cpu["bf16"],
        ", ".join(cpu["bf16_by"]) if cpu["bf16"] else "this CPU has no AVX512-BF16, AMX or Arm BF16 instructions",
        "Matrix products run in float32: three to five times slower, in twice the memory.",
    )


def _triton(description: Mapping[str, Any], cuda: list[Mapping[str, Any]]) -> Capability:
    """Triton emits tensor-core code from compute capability 8.0 on."""
    able = [device for device in cuda if float(device["compute_capability"]) >= 8]
    version = description["packages"].get("triton", "of unknown version")
    if not description["triton"]:
        detail = "not installed"
    elif not cuda:
        detail = f"{version} is installed, but there is no CUDA GPU for it"
    elif not able:
        detail = f"{version} is installed, but it has no tensor-core code for {cuda[0]['name']}"
    else:
        detail = version
    return Capability(
        "Triton",
        description["triton"] and bool(able),
        detail,
        "Log-probs are computed by the torch backend, in tiles: exact, and slower than kernels on a GPU.",
    )


def _bitsandbytes(description: Mapping[str, Any]) -> Capability:
    return Capability(
        "bitsandbytes",
        description["bitsandbytes"],
        description["packages"].get("bitsandbytes", "not installed"),
        "Models can't be loaded in 4 or 8 bits, and 8-bit optimizers are missing.",
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _platform() -> str:
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {system}"
    except (OSError, KeyError):
        return system


def _cpu() -> dict[str, Any]:
    import torch

    able = torch.cpu.get_capabilities()
    by = [name for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16") if able.get(name)]
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return {
        "model": _cpu_model(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "bf16": bool(by),
        "bf16_by": by,
        "vectors": torch.backends.cpu.get_cpu_capability(),
    }


def _cpu_model() -> str:
    """Return the processor's name; `platform.processor()` is empty or just the architecture on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, "") or platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    """Return the memory that this process may use, in GiB: the machine's, or its container's limit if that is less."""
    sizes = []
    if hasattr(os, "sysconf") and {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= os.sysconf_names.keys():
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            sizes.append(int(Path(limit).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return round(min(sizes) / _GIB, 1) if sizes else None


def available_memory() -> int | None:
    """Return the bytes of main memory that this process could still take, or None where nothing tells.

    That is what the machine has left, or the rest of its container's or process's limit if that is less.
    """
    sizes = []
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        sizes.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            sizes.append(int(Path(limit).read_text(encoding="ascii")) - int(Path(used).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    if (own := _process_limit()) is not None:
        sizes.append(own)
    return max(0, min(sizes)) if sizes else None


def _process_limit() -> int | None:
    """Return what is left of the address space that the process may have (`ulimit -v`), or None without a limit."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return None
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        return limit - pages * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return None


def _devices() -> list[dict[str, Any]]:
    """Return the accelerators that torch sees."""
    import torch

    devices: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            devices.append(
                {
                    "type": "cuda",
                    "index": index,
                    "name": facts.name,
                    "memory_gib": round(facts.total_memory / _GIB, 1),
                    "compute_capability": f"{facts.major}.{facts.minor}",
                    "bf16": facts.major >= 8 or torch.version.hip is not None,
                }
            )
    if torch.backends.mps.is_available():
        name = f"{platform.machine()} GPU"
        devices.append({"type": "mps", "index": 0, "name": name, "memory_gib": None, "bf16": False})
    return devices
