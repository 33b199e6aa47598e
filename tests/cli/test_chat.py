"""`prefopt chat` with a finished run, by lines of a pipe."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from tests.cli.processes import Ended


def test_chat_answers_every_piped_line_with_both_models(
    prefopt: Callable[..., Ended], finished: tuple[Ended, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(text: str, *options: str) -> Ended:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return prefopt("chat", str(finished[1]), "--max-new-tokens", "8", "--temperature", "0", *options)

    code, out, _ = said("Hello\n\n/new\nHello\n", "--json")
    assert code == 0
    first, again = (json.loads(line) for line in out.splitlines())
    assert first["prompt"] == "Hello"
    assert first == again, "/new forgets what was said"
    assert first["base"] != first["tuned"]
    code, out, _ = said("Hello\nHello\n", "--json")
    assert json.loads(out.splitlines()[1]) != first, "the conversation goes on"
    code, out, _ = said("Hello [bold]you\n")
    assert code == 0
    assert "Hello [bold]you" in out
    assert "base" in out
    assert "tuned" in out


def test_chat_asks_as_the_data_of_the_run_were_asked(
    prefopt: Callable[..., Ended], finished: tuple[Ended, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[1], run)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "data": {**recipe["data"], "thinking": "drop"}}))
    asked = []
    monkeypatch.setattr(
        import_module("prefopt.sampling.generation"), "encode_prompt", lambda *_, **how: asked.append(how) or [5, 6]
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    assert prefopt("chat", str(run), "--max-new-tokens", "2")[0] == 0
    assert asked == [{"thinking": "drop"}] * 2
