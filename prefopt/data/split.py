"""`prefopt data split`: a share of the prompts held out, by a hash of each, so that none is on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefopt.data.convert import check_outputs, listing, reading_lines, rejected_lines
from prefopt.data.load import parse_options
from prefopt.data.loading import Loading
from prefopt.data.near import fold
from prefopt.data.own_form import OwnForm
from prefopt.data.parquet import ParquetWriter, write_whole
from prefopt.data.rejected import FILE_NAME
from prefopt.data.rows import Dialogue, Document
from prefopt.data.sources import Source
from prefopt.data.survey import texts_of
from prefopt.errors import DataError

SIDES = ("train", "eval")


@dataclass(frozen=True)
class Divided:
    """What went where."""

    paths: Mapping[str, str]
    """train | eval -> its file."""
    rows: Mapping[str, int]
    prompts: Mapping[str, int]
    """Distinct prompts, white space and case folded."""
    eval_share: float
    seed: int
    rows_read: int
    rejected: Mapping[str, int]
    rejected_path: str | None
    read_with: Mapping[str, str]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able copy."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Say it in plain lines."""
        total = sum(self.rows.values())
        return [
            *(
                f"{self.paths[side]}: {self.rows[side]} rows ({self.rows[side] / total:.1%}) of {self.prompts[side]} "
                "prompts"
                for side in SIDES
            ),
            f"{self.eval_share:.1%} of the prompts were asked for, with seed {self.seed}",
            *rejected_lines(self.rejected, self.rejected_path),
            *self.notes,
            *reading_lines(self.read_with),
        ]


def split_source(
    source: Source,
    folder: str | Path,
    *,
    eval_share: float = 0.05,
    seed: int = 0,
    overwrite: bool = False,
    **options: Any,
) -> Divided:
    """Write `train.parquet` and `eval.parquet` into a folder.

    On which side a row is depends on its prompt, the share and the seed alone: more rows move none of those there are,
    and a larger share keeps every prompt that a smaller one held out.

    Args:
        source: as for `load_preferences`.
        folder: made where it is missing.
        eval_share: share of the prompts to hold out, between 0 and 1.
        seed: another one holds out other prompts.
        overwrite: replace files that are there.
        options: as for `load_preferences`.

    Raises:
        DataError: a wrong share, files that exist, a side without rows, or what `convert_source` raises.
    """
    if not 0 < eval_share < 1:
        raise DataError(f"The share to hold out is {eval_share:g}; it must lie between 0 and 1, as in 0.05.")
    paths = {side: Path(folder) / f"{side}.parquet" for side in SIDES}
    check_outputs(list(paths.values()), overwrite=overwrite)
    listed = Path(folder) / FILE_NAME
    form, prompts = OwnForm(), {side: set[bytes]() for side in SIDES}
    with ExitStack() as stack:
        rejected = stack.enter_context(listing(listed))
        writers = {side: stack.enter_context(ParquetWriter(path)) for side, path in paths.items()}
        loading = Loading(source, parse_options(options), rejected)
        for raw, format_, row in loading.rows():
            loading.use(raw)
            key = prompt_hash(row, seed)
            side = side_of(key, eval_share)
            prompts[side].add(key)
            writers[side].add(form.record(raw, format_, row), row)
        loading.check_rejected()
        _check_sides(prompts, eval_share)
        columns = write_whole(writers.values())
    return Divided(
        paths={side: str(path) for side, path in paths.items()},
        rows={side: writer.rows for side, writer in writers.items()},
        prompts={side: len(keys) for side, keys in prompts.items()},
        eval_share=eval_share,
        seed=seed,
        rows_read=loading.read,
        rejected=dict((rejected.reasons + rejected.left_out).most_common()),
        rejected_path=str(listed) if rejected.total or rejected.left_out else None,
        read_with=columns,
        notes=tuple(dict.fromkeys((*form.notes(), *(note for writer in writers.values() for note in writer.notes)))),
    )


def prompt_hash(row: Document | Dialogue, seed: int) -> bytes:
    """Hash a prompt's folded text with the seed: 8 bytes."""
    text = fold(texts_of(row)[0])
    return hashlib.sha256(f"prefopt-split-1:{seed}:{text}".encode("utf-8", "surrogatepass")).digest()[:8]


def side_of(key: bytes, eval_share: float) -> str:
    """Return "eval" for the lowest `eval_share` of all hashes, else "train"."""
    return "eval" if int.from_bytes(key, "big") < eval_share * 2**64 else "train"


def _check_sides(prompts: Mapping[str, set[bytes]], eval_share: float) -> None:
    total = sum(map(len, prompts.values()))
    for side in SIDES:
        if not prompts[side]:
            raise DataError(
                f"None of the {total} distinct prompts fell on the {side} side at a share of {eval_share:g}: sides are "
                "told by a hash of the prompt, and with few prompts one may be empty. Change the share or the seed."
            )
