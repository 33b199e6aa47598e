"""The tasks of lm-evaluation-harness that were asked for: found, loaded and tried out before a model is loaded."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prefopt.errors import DataError, RecipeError


def load_tasks(
    names: Sequence[str],
    include: Sequence[Path] = (),
    *,
    num_fewshot: int | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Return the harness's tasks and groups by name, with their data.

    Args:
        names: tasks, groups, tags, patterns such as `arc_*`, or YAML files; none: every task in `include`.
        include: YAML files and folders of tasks of one's own.
        num_fewshot: examples shown before each question; None is what each task says.
        say: is told of what takes long.

    Raises:
        RecipeError: the harness is missing, a name is unknown, or a task can't be run here.
        DataError: a task's file can't be read, or its data isn't on this machine and can't be fetched.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise RecipeError("prefopt eval harness needs the package lm-eval: pip install 'prefopt[lm-eval]'.")
    files = [Path(name) for name in names if Path(name).suffix in (".yaml", ".yml")]
    named = [name for name in names if Path(name) not in files]
    own = _own_names([*include, *files])
    wanted = [one for path in (files if names else include) for one in own[path]]
    manager, found = _find(named, sorted({path.parent if path.is_file() else path for path in own}), say)
    wanted += found
    if not wanted:
        raise RecipeError("Nothing says what to measure: name tasks by --tasks, or own ones by --include-path.")
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for name in dict.fromkeys(wanted):
        loaded = _loaded(manager, name)
        tasks |= loaded["tasks"]
        groups |= loaded.get("groups", {})
    for name, task in tasks.items():
        _check(name, task)
        if num_fewshot is not None and task.get_config("num_fewshot") != 0:  # a task's own 0 is meant, says the harness
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return {"tasks": tasks, "groups": groups}


def _own_names(paths: Sequence[Path]) -> dict[Path, list[str]]:
    """Return the tasks and groups in each file or folder. The harness itself passes over files that it can't read."""
    from lm_eval.tasks._yaml_loader import load_yaml

    found: dict[Path, list[str]] = {}
    for path in paths:
        files = sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
        names = []
        for file in files:
            try:
                said = load_yaml(file, resolve_func=False)
            except Exception as error:  # whatever YAML and the file system raise
                raise DataError(f"{file} is no task of the harness: {_reason(error)}") from error
            # A file without either holds what others include.
            names += [one for key in ("task", "group") if isinstance(one := said.get(key), str)]
        if not names:
            raise DataError(f"{path} holds no task of the harness: a YAML file with the key task.")
        found[path] = names
    return found


def _find(names: Sequence[str], folders: Sequence[Path], say: Callable[[str], object]) -> tuple[Any, list[str]]:
    """Return a task manager that knows these names, and the names, patterns written out."""
    from lm_eval.tasks import TaskManager

    # Reading the thousands of tasks that the harness brings takes a while, and one's own rarely need them.
    manager: Any = TaskManager(include_path=list(folders), include_defaults=False)
    if not _members(manager) <= set(manager.all_tasks) or not all(manager.match_tasks([name]) for name in names):
        say("reading the harness's own tasks, some thousands of files: this takes up to a minute")
        manager = TaskManager(include_path=list(folders))
    found: list[str] = []
    for name in names:
        if not (matching := manager.match_tasks([name])):
            close = difflib.get_close_matches(name, manager.all_tasks, n=3)
            raise RecipeError(
                f"--tasks: the harness has no task '{name}'"
                + (
                    f"; did you mean {' or '.join(repr(one) for one in close)}?"
                    if close
                    else "; lm-eval ls tasks lists them."
                )
            )
        found += matching
    return manager, found


def _members(manager: Any) -> set[str]:
    """Return the names of what groups hold."""
    held = [one for name in manager.all_groups for one in manager.task_index[name].cfg.get("task") or ()]
    return {one if isinstance(one, str) else str(one.get("task", one.get("group"))) for one in held}


def _loaded(manager: Any, name: str) -> Any:
    from datasets.exceptions import DatasetsError

    try:
        return manager.load([name])
    except ImportError as error:
        raise RecipeError(f"The task '{name}' needs a package that is not installed: {_reason(error)}") from error
    except (
        OSError,
        DatasetsError,
    ) as error:  # a missing file and a hub that can't be reached are both of the first kind
        raise DataError(
            f"The data of the task '{name}' is not on this machine and can't be fetched: {_reason(error)} Fetch it "
            "where there is a network, into the same cache, or name a task whose data is in local files."
        ) from error
    except Exception as error:  # whatever a task's own code raises
        raise DataError(f"The task '{name}' can't be loaded: {_reason(error)}") from error


def _check(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise RecipeError(
            f"The task '{name}' runs code that the model writes, which prefopt doesn't: merge the run by prefopt merge "
            "and run the harness itself on it, in a sandbox."
        )
    if getattr(task, "MULTIMODAL", False):
        raise RecipeError(f"The task '{name}' shows pictures, which a causal language model doesn't read.")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."
