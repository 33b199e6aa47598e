"""Nothing is pushed without being asked for, and what is pushed is the weights with their card."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

from prefopt.cli.push import push
from prefopt.errors import RunError
from prefopt.workflow.push import push_folder, weights_of
from tests.workflow.conftest import Train


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What was asked of the Hub, which is none."""
    asked: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, repo: str, **options: Any) -> Any:
            asked.append(("create", {"repo": repo, **options}))
            return SimpleNamespace(repo_id=repo)

        def create_branch(self, repo: str, **options: Any) -> None:
            asked.append(("branch", {"repo": repo, **options}))

        def upload_folder(self, **options: Any) -> Any:
            folder = options["folder_path"]
            asked.append(("upload", {**options, "files": {p.name: p for p in folder.iterdir()}}))
            if (config := folder / "adapter_config.json").is_file():
                asked[-1][1]["base"] = json.loads(config.read_text())["base_model_name_or_path"]
            return SimpleNamespace(commit_url=f"https://huggingface.co/{options['repo_id']}/commit/1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return asked


def test_training_pushes_nothing(train: Train, hub: list[Any]) -> None:
    train("dtype: float32, lora: {r: 2}")
    assert not hub


def test_a_run_is_pushed_privately_with_its_card(
    train: Train, hub: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("dtype: float32")
    push(run, "me/mine", license="mit")
    (_, created), (_, uploaded) = hub
    assert created == {"repo": "me/mine", "private": True, "exist_ok": True}
    assert uploaded["files"].keys() == {path.name for path in (run / "adapter").iterdir()}
    assert uploaded["base"] == Path(own_base(run)).name, "a path on this machine means nothing elsewhere"
    assert Path(own_base(run)).is_dir(), "and here it still does"
    assert uploaded["ignore_patterns"] == ["checkpoint.json"]
    assert "license: mit" in (run / "adapter/README.md").read_text()
    assert "huggingface.co/me/mine" in capsys.readouterr().out


def own_base(run: Path) -> str:
    return str(json.loads((run / "adapter/adapter_config.json").read_text())["base_model_name_or_path"])


def test_a_public_branch_is_asked_for_by_name(train: Train, hub: list[Any]) -> None:
    push_folder(weights_of(train("dtype: float32")), "me/mine", public=True, revision="second")
    assert [name for name, _ in hub] == ["create", "branch", "upload"]
    assert hub[0][1]["private"] is False
    assert hub[2][1]["revision"] == "second"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (HFValidationError("bad"), "is no name of a repository on the Hub"),
        (LocalTokenNotFoundError("no token"), "log in with `hf auth login`"),
        (ConnectionError("no route"), "could not be pushed to me/mine: no route"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(RunError, match=said):
        push_folder(tmp_path, "me/mine")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no weights: name a finished run"):
        weights_of(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(RunError, match="has not finished training"):
        weights_of(tmp_path)
