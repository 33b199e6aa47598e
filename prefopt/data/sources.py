"""What the user named -> rows: files, globs, URLs, saved or published Hugging Face datasets, or rows in memory."""

from __future__ import annotations

import difflib
import glob
import hashlib
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from prefopt.data.config import DataOptions
from prefopt.data.read import Place, RawRow, read_dataset, read_file, read_opened, read_rows
from prefopt.errors import DataError, nearest

Source: TypeAlias = "str | Path | Iterable[str | Path] | Iterable[Mapping[str, Any]]"

FILE_SUFFIXES = (
    *(".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".arrow", ".feather", ".txt"),
    *(".gz", ".zst", ".xz", ".bz2", ".zip"),
)
HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
BARE_FILE = re.compile(r"[^/]+\.[A-Za-z]\w*")  # a name with a suffix and no owner
URL = re.compile(r"([A-Za-z][\w+.-]+)://.*", re.DOTALL)
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # what `save_to_disk` of a Dataset and of a DatasetDict writes


@dataclass(frozen=True)
class Identity:
    """What tells a source's content from any other."""

    content: str
    size: int
    """In bytes."""
    state: tuple[int, ...] = ()
    """As the source's own when it was identified, so that a change while it is read is seen."""


@dataclass(frozen=True)
class NamedRows:
    """One source: its name, and what reads its rows, from the start or from a place behind one of them."""

    name: str
    read: Callable[[Place | None], Generator[RawRow, None, None]]
    identify: Callable[[], Identity] | None = None
    """What tells the content from any other; None where nothing does."""
    state: Callable[[], tuple[int, ...]] | None = None
    """Changes when the source is written to; None where it can't be, or `identify` is None."""
    in_memory: bool = False
    """Rows that are objects of the caller."""


def open_sources(source: Source, options: DataOptions) -> Iterator[NamedRows]:
    """Resolve everything that `source` names, before a row is read.

    Raises:
        DataError: a missing file, a glob without match, a name that is neither file nor dataset, or nothing at all.
    """
    if isinstance(source, (str, Path)):
        return iter(_resolve(source, options))
    items = list(source)
    if not items:
        raise DataError("No data was named: the list of sources is empty.")
    if all(isinstance(item, (str, Path)) for item in items):
        return iter([named for item in items if isinstance(item, (str, Path)) for named in _resolve(item, options)])
    return iter([NamedRows("rows", partial(read_rows, items, "rows"), in_memory=True)])


def _resolve(name: str | Path, options: DataOptions) -> list[NamedRows]:
    if isinstance(name, str) and is_url(name):
        return _url(name)
    path = Path(name).expanduser()
    if path.is_file():
        return [_file(path)]
    if path.is_dir():
        return [_saved(path, options)]
    text = str(name)
    if glob.has_magic(text):
        return _glob(path)
    if isinstance(name, Path) or _looks_like_a_file(text):
        raise DataError(f"The file {path} is missing{_nearest_file(path) or '.'}")
    if not HUB_NAME.fullmatch(text):
        raise DataError(f"'{text}' is neither a file nor the name of a Hugging Face dataset.")
    return [NamedRows(text, partial(_hub, text, options), partial(_hub_identity, text, options))]


def _file(path: Path) -> NamedRows:
    return NamedRows(str(path), partial(read_file, path), partial(_file_identity, path), partial(_file_state, path))


def _file_identity(path: Path) -> Identity:
    state = _file_state(path)  # before its bytes: what is written while they are read is a change
    try:
        with path.open("rb") as file:
            return Identity(hashlib.file_digest(file, "sha256").hexdigest(), state[0], state)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error


def _file_state(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error
    return status.st_size, status.st_mtime_ns, status.st_ino


def is_url(name: str) -> bool:
    """Whether `name` is a URL, as `memory://a.jsonl` or `zip://a.jsonl::archive.zip`."""
    return URL.fullmatch(name) is not None


def _url(url: str) -> list[NamedRows]:
    """Find the files of a URL, or of a glob in one, by whatever fsspec knows its scheme by."""
    import fsspec

    scheme = url.partition("://")[0].lower()
    known = fsspec.available_protocols()
    if scheme not in known:
        raise DataError(f"'{url}' has the scheme '{scheme}', which fsspec doesn't know{nearest(scheme, known) or '.'}")
    try:
        system, path = fsspec.core.url_to_fs(url)
        found = sorted(system.glob(path)) if glob.has_magic(path) else [path] if system.isfile(path) else []
    except ImportError as error:
        raise DataError(f"'{url}' needs a package that is not installed: {error}.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"'{url}' can't be opened: {' '.join(str(error).split())[:300]}.") from error
    if not found:
        raise DataError(f"No file matches '{url}'." if glob.has_magic(path) else f"There is no file at '{url}'.")
    names = [url] if found == [path] else [str(system.unstrip_protocol(own)) for own in found]
    return [
        NamedRows(name, partial(read_opened, name, partial(system.open, own, "rb")))
        for name, own in zip(names, found, strict=True)
    ]


def _saved(folder: Path, options: DataOptions) -> NamedRows:
    """A directory that `datasets` saved."""
    if (folder / SAVED_SPLITS).is_file():
        splits = sorted(path.name for path in folder.iterdir() if (path / SAVED).is_file())
        if options.split not in splits:
            raise DataError(
                f"{folder} has the splits {', '.join(splits) or 'none'}, and data.split is {options.split}"
                f"{nearest(options.split, splits) or '; name one of them.'}"
            )
        folder = folder / options.split
    if not (folder / SAVED).is_file():
        raise DataError(
            f"{folder} is a directory, and no dataset that `save_to_disk` wrote; name its files, for instance "
            f"'{folder}/*.jsonl'."
        )
    return NamedRows(str(folder), partial(_from_disk, folder))


def _from_disk(folder: Path, start: Place | None) -> Generator[RawRow, None, None]:
    import datasets
    import pyarrow

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, LookupError, pyarrow.ArrowException) as error:
        sentence = " ".join(str(error).split())
        raise DataError(f"The dataset in {folder} has no rows or is damaged: {sentence[:300]}.") from error
    yield from read_dataset(found, str(folder), start)


def _glob(pattern: Path) -> list[NamedRows]:
    anchor = Path(pattern.anchor)
    found = sorted(str(path) for path in anchor.glob(str(pattern.relative_to(anchor))) if path.is_file())
    if not found:
        raise DataError(f"No file matches '{pattern}'.")
    return [_file(Path(path)) for path in found]


def _looks_like_a_file(text: str) -> bool:
    return (
        text.endswith(FILE_SUFFIXES)
        or text.startswith((".", "/", "~"))
        or "\\" in text
        or text.count("/") > 1
        or bool(BARE_FILE.fullmatch(text))
    )


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f", and so is its folder {folder}."
    names = sorted(other.name for other in folder.iterdir() if other.is_file())
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; did you mean '{folder / close[0]}'?" if close else ""


def _hub(name: str, options: DataOptions, start: Place | None) -> Generator[RawRow, None, None]:
    """Rows of a dataset on the Hugging Face Hub, or in its local cache."""
    yield from read_dataset(_hub_dataset(name, options), name, start)


def _hub_identity(name: str, options: DataOptions) -> Identity:
    found = _hub_dataset(name, options)
    return Identity(str(found._fingerprint), int(found.data.nbytes))


def _hub_dataset(name: str, options: DataOptions) -> Any:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return datasets.load_dataset(name, options.config, split=options.split, revision=options.revision)
    except (datasets.exceptions.DatasetsError, HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        sentence = " ".join(str(error).split())
        raise DataError(
            f"The dataset '{name}' (config {options.config or 'default'}, split {options.split}) is no file here and "
            f"could not be loaded from the Hugging Face Hub: {sentence[:300]}"
        ) from error
