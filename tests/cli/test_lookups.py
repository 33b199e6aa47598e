"""Verbs that answer without a run: doctor, losses, plan and kernels."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.losses import available
from tests.cli.processes import Ended, process


def test_doctor_prints_what_is_here_and_json_for_programs(prefopt: Callable[..., Ended]) -> None:
    code, out, _ = prefopt("doctor")
    assert code == 0
    assert "bitsandbytes" in out
    code, out, _ = prefopt("doctor", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["packages"]["prefopt"] in process("version").out
    assert {"GPU", "bfloat16", "Triton"} <= {found["name"] for found in facts["capabilities"]}


def test_losses_lists_what_each_needs_and_json_for_programs(prefopt: Callable[..., Ended]) -> None:
    code, out, err = prefopt("losses")
    assert (code, err) == (0, "")
    assert "arXiv:2305.18290" in out
    assert "labels or pairs" in out
    found = {entry["name"]: entry for entry in json.loads(prefopt("losses", "--json").out)}
    assert list(found) == sorted(available())
    assert found["simpo"]["needs_reference"] is False
    assert found["kto"]["statistics"] == "mismatched"
    assert found["dpo"]["hyper"]["divergence"] == "reverse_kl"


def test_losses_plot_writes_a_figure_and_prints_where(prefopt: Callable[..., Ended], tmp_path: Path) -> None:
    code, out, _ = prefopt("losses", "plot", "hinge", "simpo", "--out", str(tmp_path / "two.png"))
    assert (code, out) == (0, f"{tmp_path / 'two.png'}\n")
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")


def test_plan_says_what_a_recipe_takes_and_json_for_programs(prefopt: Callable[..., Ended], recipe: Path) -> None:
    code, out, _ = prefopt("plan", str(recipe), "--gpu", "4090", "--json", "--tokens-per-example", "64")
    assert code == 0
    found = json.loads(out)
    assert found["machine"]["name"] == "RTX 4090"
    assert found["total"] == pytest.approx(sum(found["parts"].values()))
    assert found["fits"]
    code, out, _ = prefopt("plan", str(recipe), "--memory", "650MB", "--tokens-per-example", "64")
    assert code == 0
    assert "It does not fit." in out
    assert "not measured on one" in out
    code, _, err = prefopt("plan", str(recipe), "--gpu", "490")
    assert code == 2
    assert "did you mean '4090'?" in err
    code, _, err = prefopt("plan")
    assert code == 2
    assert "needs a recipe" in err


def test_roofline_predicts_for_one_gpu_and_refuses_an_unknown_one(prefopt: Callable[..., Ended]) -> None:
    code, out, _ = prefopt("kernels", "roofline", "--gpu", "4090", "--json")
    assert code == 0
    found = json.loads(out)
    rows = found["rows"]
    assert found["scores_alone"]["4090"]["faster"] == "ours, tiles"
    assert {row["gpu"] for row in rows} == {"RTX 4090"}
    assert all(row["predicted_ms"] >= max(row["compute_ms"], row["memory_ms"]) - 1e-9 for row in rows)
    code, out, _ = prefopt("kernels", "roofline", "--gpu", "4090")
    assert code == 0
    assert "1008 GB/s" in out
    assert "'one kernel' is the faster one below a hidden size of" in out
    code, _, err = prefopt("kernels", "roofline", "--gpu", "409")
    assert code == 2
    assert "did you mean '4090'?" in err


def test_kernels_check_prints_what_each_takes(prefopt: Callable[..., Ended]) -> None:
    code, out, _ = prefopt("kernels", "check", "--dtype", "float32", "--architecture", "80", "--json")
    assert code == 0
    found = json.loads(out)
    assert {(usage["dtype"], usage["capability"]) for usage in found} == {("float32", 80)}
    assert all(usage["complaints"] == [] for usage in found)
