"""Make the sentences that the demo ships: `python -m prefopt.demo.build_data SOURCE [OUT]`.

SOURCE is JSON Lines (gzipped or not) of all rated sentences, one object a line with id, text and ratings;
PROVENANCE.md says where it comes from. The output has the same form, holds the usable sentences only, and is the
same bytes for the same input and zlib.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefopt.demo.pairs import DATA, MAX_WORDS, MIN_WORDS, same_sentence


def usable(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield each sentence of 4 to 40 words once, its text mended."""
    seen: set[str] = set()
    for row in rows:
        text = mend(str(row["text"]))
        key = same_sentence(text)
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS and key not in seen:
            seen.add(key)
            yield {"id": int(row["id"]), "text": text, "ratings": [int(rating) for rating in row["ratings"]]}


def mend(text: str) -> str:
    """Undo UTF-8 that was read as latin-1: a few hundred letters of the source with accents, and its dashes."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def build(source: Path, out: Path) -> int:
    """Write the usable sentences of `source` to `out`; return how many they are."""
    raw = source.read_bytes()
    # Lines of bytes: as text, a sentence may hold a character that Python takes for the end of a line.
    lines = (gzip.decompress(raw) if source.suffix == ".gz" else raw).splitlines()
    kept = list(usable(map(json.loads, lines)))
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in kept)
    # A time stamp inside would make every build another file.
    out.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    return len(kept)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m prefopt.demo.build_data SOURCE [OUT]")
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else DATA
    print(f"{target}: {build(Path(sys.argv[1]), target)} sentences, {target.stat().st_size} bytes")
