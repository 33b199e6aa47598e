"""What the machine can do: the facts, and what `doctor` makes of them."""

from __future__ import annotations

import copy
import getpass
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prefopt.environment import capabilities, describe

BARE = {
    "python": "3.11.2",
    "platform": "Linux",
    "cpu": {"model": "Some CPU", "cores": 2, "bf16": False, "bf16_by": [], "vectors": "AVX2"},
    "memory_gib": 8.0,
    "threads": 2,
    "devices": [],
    "cuda": None,
    "packages": {"torch": "2.13.0"},
    "triton": False,
    "bitsandbytes": False,
    "c_compiler": None,
}
GPU = {"type": "cuda", "index": 0, "name": "Some GPU", "memory_gib": 23.7, "compute_capability": "8.9", "bf16": True}


def machine(**changes):
    return {**copy.deepcopy(BARE), **changes}


def found(description):
    return {capability.name: capability for capability in capabilities(description)}


def test_the_facts_are_json_and_those_of_this_machine():
    facts = json.loads(json.dumps(describe()))
    assert facts["python"] == platform.python_version()
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["packages"]["pydantic"]
    assert 1 <= facts["cpu"]["cores"] <= os.cpu_count()
    assert facts["cpu"]["model"]
    assert 0.1 < facts["memory_gib"] < 1e5
    assert len([device for device in facts["devices"] if device["type"] == "cuda"]) == torch.cuda.device_count()


def test_a_machine_that_has_everything_lacks_nothing():
    packages = {"torch": "2.13.0", "triton": "3.9.0", "bitsandbytes": "0.50.2"}
    full = machine(devices=[GPU], cuda="12.8", packages=packages, triton=True, bitsandbytes=True, c_compiler="gcc")
    assert all(capability.available for capability in capabilities(full))
    assert found(full)["GPU"].detail == "Some GPU (24 GiB)"
    assert found(full)["bitsandbytes"].detail == "0.50.2"


def test_every_absence_on_a_bare_machine_says_what_it_costs():
    for capability in capabilities(BARE):
        assert not capability.available
        assert capability.detail
        assert capability.cost_of_absence.endswith(".")
    assert found(BARE)["GPU"].cost_of_absence.startswith("Training runs on the CPU")
    assert found(BARE)["GPU"].detail == "torch was built without CUDA"
    assert found(machine(cuda="12.8"))["GPU"].detail == "torch sees no GPU"


def test_a_turing_gpu_has_no_triton_and_no_bfloat16():
    turing = GPU | {"name": "Tesla T4", "compute_capability": "7.5", "bf16": False}
    told = found(machine(devices=[turing], cuda="12.8", triton=True, packages={"triton": "3.9.0"}))
    assert told["GPU"].available
    assert not told["Triton"].available
    assert "Tesla T4" in told["Triton"].detail
    assert not told["bfloat16"].available


@pytest.mark.parametrize(("capability", "able"), [("7.5", False), ("8.0", True), ("9.0", True), ("12.0", True)])
def test_triton_needs_compute_capability_eight(capability, able):
    gpu = GPU | {"compute_capability": capability}
    assert found(machine(devices=[gpu], triton=True, packages={"triton": "3.9.0"}))["Triton"].available is able


def test_bfloat16_of_a_cpu_counts_where_there_is_no_gpu():
    cpu = {**BARE["cpu"], "bf16": True, "bf16_by": ["amx_bf16"]}
    told = found(machine(cpu=cpu))["bfloat16"]
    assert told.available
    assert told.detail == "amx_bf16"


def test_the_facts_hold_no_user_host_or_path():
    text = json.dumps(describe())
    private = {str(Path.home()), str(Path.cwd()), sys.prefix, platform.node()}
    private |= {getpass.getuser()} - {"root"}  # `root` is nobody's name
    assert not [word for word in private if len(word) > 3 and word in text]


def test_describing_imports_no_package_only_for_its_version():
    code = (
        "import sys, prefopt.environment as e; e.capabilities(e.describe());"
        "print([m for m in ('transformers', 'peft', 'bitsandbytes', 'triton', 'datasets') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.strip() == "[]"
