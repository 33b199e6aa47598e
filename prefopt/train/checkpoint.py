"""Checkpoints that are whole or absent: written aside, synced, renamed, and checked before they are trusted."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prefopt.data.files import sync
from prefopt.errors import RunError
from prefopt.train.ranks import Ranks

MANIFEST = "checkpoint.json"
_NAME = re.compile(r"checkpoint-(\d+)$")
_STAGING = ".writing-"
_REFUSALS = ("iostream error", "PytorchStreamWriter", "inline_container", "I/O error", "os error")
"""What torch.save and safetensors say when a file can't be written."""


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on success sync it with its manifest and rename it to `final`.

    On an exception, or a kill at any instant, `final` is what it was before. Raises `RunError` when the disk refuses.
    """
    staging = final.with_name(f"{_STAGING}{final.name}")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        _seal(staging)
        replaced = final.with_name(f".replaced-{final.name}")
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            final.rename(replaced)
        try:
            staging.rename(final)
        except OSError:
            if replaced.exists():
                replaced.rename(final)
            raise
        sync(final.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except Exception as error:
        shutil.rmtree(staging, ignore_errors=True)
        if not _is_the_disk(error):
            raise
        raise _refused(final, error) from error


@contextmanager
def staged_by_all(final: Path, ranks: Ranks) -> Iterator[Path]:
    """`staged` with every rank writing into the folder: rank 0 makes it, and seals it when all have written."""
    with ExitStack() as on_main:
        folder = ranks.of_main(lambda: on_main.enter_context(staged(final)))
        if not folder.is_dir():
            raise RunError(
                f"{final.parent} of rank 0 is not there on rank {ranks.rank}: name a train.output_dir on a file system "
                "that all machines of the run share."
            )
        try:
            yield folder
        except Exception as error:
            if ranks.main or not _is_the_disk(error):
                raise  # on rank 0 `staged` makes room and says it
            raise _refused(final, error) from error
        ranks.meet()
    ranks.meet()


def _is_the_disk(error: Exception) -> bool:
    """Whether a disk refused to be written: torch and safetensors say it in errors of their own."""
    return isinstance(error, OSError) or any(word in str(error) for word in _REFUSALS)


def _refused(final: Path, error: Exception) -> RunError:
    why = error.strerror or str(error) if isinstance(error, OSError) else f"the disk takes no more ({error})"
    return RunError(
        f"{final} could not be written: {why}. Checkpoints written before it are intact; "
        "free the disk or mend its permissions, then start again with --resume."
    )


def _seal(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}
    (folder / MANIFEST).write_text(json.dumps({"files": sizes}, indent=1))
    for path in (*files, folder / MANIFEST, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        sync(path)


def missing_parts(checkpoint: Path) -> list[str]:
    """Return what a checkpoint lacks to be resumed from, in words; empty when it is whole."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return [f"{MANIFEST} is missing or unreadable"]
    wrong = []
    for name, size in files.items():
        path = checkpoint / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != size:
            wrong.append(f"{name} has {path.stat().st_size} bytes of {size}")
    return wrong


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, whole or not, oldest first."""
    found = [(int(m[1]), p) for p in run.glob("checkpoint-*") if p.is_dir() and (m := _NAME.match(p.name))]
    return [path for _, path in sorted(found)]


def last_whole_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint that is whole, or None. Each incomplete one passed over is a warning."""
    for path in reversed(checkpoints(run)):
        wrong = missing_parts(path)
        if not wrong:
            return path
        warnings.warn(f"{path} is incomplete and is passed over: {'; '.join(wrong)}.", stacklevel=2)
    return None


def rotate(run: Path, keep: int | None, best: Path | None) -> None:
    """Delete the oldest checkpoints beyond `keep`; never the newest and never `best`. None keeps all."""
    if keep is None:
        return
    spared = {p.resolve() for p in (best,) if p is not None}
    for path in checkpoints(run)[: -max(keep, 1)]:
        if path.resolve() not in spared:
            shutil.rmtree(path, ignore_errors=True)
