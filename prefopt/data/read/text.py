"""JSON Lines and JSON arrays."""

from __future__ import annotations

import io
import json
from collections.abc import Generator
from typing import IO

from prefopt.data.read.packing import skip_to
from prefopt.data.read.row import Place, RawRow, checked, read_rows
from prefopt.errors import DataError

BOM = b"\xef\xbb\xbf"


def read_lines(
    name: str, lines: io.BufferedReader, place: Place | None, readable: str
) -> Generator[RawRow, None, None]:
    """Read JSON Lines: every line that isn't blank is a row, or a row with a problem.

    Raises:
        DataError: the file is empty, or none of its lines is a JSON object; `readable` says what else there is.
    """
    seen = parsed = 0
    byte = number = 0
    if place is not None:
        byte, number = place["byte"], place["line"]
        skip_to(lines, byte)
    for line in lines:
        byte, number = byte + len(line), number + 1
        if number == 1:
            line = line.removeprefix(BOM)
        if not line.strip():
            continue
        raw = _parse_line(name, number, line, {"byte": byte, "line": number})
        seen += 1
        parsed += raw.row is not None
        yield raw
    if not seen and place is None:
        raise DataError(f"{name} is empty.")
    if seen and not parsed and place is None:
        raise DataError(
            f"{name} is not JSON Lines: none of its {seen} lines is a JSON object. prefopt reads {readable}."
        )


def _parse_line(source: str, number: int, line: bytes, after: Place) -> RawRow:
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        return RawRow(source, number, None, f"not UTF-8: at byte {error.start}", line.decode("utf-8", "replace"), after)
    try:
        return checked(source, number, json.loads(text), text, after)
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg} at column {error.colno}"
    except RecursionError:
        problem = "not JSON that can be read: nested too deeply"
    except ValueError:  # an integer of more than 4,300 digits
        problem = "not JSON that can be read: a number is too long"
    return RawRow(source, number, None, problem, text, after)


def read_array(name: str, file: IO[bytes], place: Place | None) -> Generator[RawRow, None, None]:
    """Read a JSON array of objects, whole.

    Raises:
        DataError: it is no JSON, or an empty array.
    """
    try:
        rows = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} begins like a JSON array but is not one: {error}.") from error
    if not rows:
        raise DataError(f"{name} is an empty array.")
    yield from read_rows(rows, name, place)
