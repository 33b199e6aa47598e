"""Rows out of files of every kind. A row that can't be read is kept as that, with the reason."""

from prefopt.data.read.cells import Cell, as_list, as_messages, plain
from prefopt.data.read.kinds import READABLE, read_file, read_opened
from prefopt.data.read.row import Place, RawRow, read_dataset, read_rows

__all__ = [
    "READABLE",
    "Cell",
    "Place",
    "RawRow",
    "as_list",
    "as_messages",
    "plain",
    "read_dataset",
    "read_file",
    "read_opened",
    "read_rows",
]
