"""Help and version: quick, on stdout, of every verb."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.processes import process

VERBS = [
    "demo",
    "train",
    "plan",
    "eval pairs",
    "report",
    "eval compare",
    "eval rewardbench",
    "eval frontier",
    "eval winrate",
    "eval text",
    "eval harness",
    "chat",
    "merge",
    "push",
    "data inspect",
    "data convert",
    "data split",
    "losses",
    "losses plot",
    "reference build",
    "reference status",
    "reference clear",
    "reward train",
    "rounds",
    "rounds run",
    "rounds status",
    "rounds plot",
    "doctor",
    "version",
]


def test_help_and_version_answer_without_importing_torch() -> None:
    script = """
import sys
from prefopt.cli import main
heavy = {"torch", "transformers", "datasets", "peft", "numpy"}
for arguments in VERBS:
    sys.argv = ["prefopt", *arguments.split(), "--help"]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0, arguments
    loaded = heavy & sys.modules.keys()
    assert not loaded, (arguments, loaded)
""".replace("VERBS", repr(["", *VERBS]))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_goes_to_stdout_and_ends_well(verb: str) -> None:
    code, out, err = process(*verb.split(), "--help")
    assert code == 0
    assert f"prefopt {verb}" in out
    assert err == ""


def test_the_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("prefopt")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("prefopt 0.")
