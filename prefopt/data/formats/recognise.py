"""Which format a sample of rows has, told by its columns and values, with the reason in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prefopt.data.config import DataOptions
from prefopt.data.formats.extras import with_extras
from prefopt.data.formats.format import FIELDS, FORMS, PAIR_SCORES, Format
from prefopt.data.formats.schemas import SCHEMAS, Schema
from prefopt.data.formats.transcripts import TRANSCRIPT_ANSWER
from prefopt.data.formats.values import listed, share
from prefopt.data.read import as_messages, plain
from prefopt.data.row_error import RowError
from prefopt.errors import DataError, nearest

SAMPLE = 200
"""Rows that are looked at."""
LAST = 2
"""The rank of demonstrations: rows are taken for them only where they are nothing that says what is preferred."""
JUDGED = {"label", "labels", "desirable", "score", "scores", "reward", "rewards", "rating", "ratings", "preference"}
"""Columns beside prompt and completion that say how good the completion is."""

TRAINABLE = ("pairs", "implicit_pairs", "labels", "lists", "demonstrations", *SCHEMAS)
SCORABLE = (
    *(name for name in FIELDS if name not in ("lists", "demonstrations")),
    *(name for name, schema in SCHEMAS.items() if FORMS[schema.becomes] == "paired"),
)
"""Of a row that is only to be scored its completions count, in the order in which they stand."""


@dataclass(frozen=True)
class _Candidate:
    """A format that the rows may have."""

    name: str
    columns: tuple[str, ...]
    schema: Schema | None = None
    rank: int = 0


def recognise(
    rows: Sequence[Mapping[str, Any]], options: DataOptions, *, source: str, allowed: Sequence[str] = TRAINABLE
) -> Format:
    """Tell what `rows`, a sample of a source, are.

    Raises:
        DataError: the rows fit no format, or several; or `options` name a format or column that isn't there.
    """
    found = sorted({name for row in rows for name in row if isinstance(name, str)})
    renamed: dict[str, str] = {str(name): column for name, column in options.columns.items()}
    columns = {name: renamed.get(name, name) for fields in (*FIELDS.values(), PAIR_SCORES) for name in fields}
    for name, column in renamed.items():
        if column not in found:
            raise DataError(
                f"data.columns says that '{name}' is in the column '{column}', but {source} has the columns "
                f"{listed(found)}{nearest(column, found)}."
            )
    filled = {name for name in found if share(rows, lambda r, c=name: r.get(c) is not None) >= 0.5}
    chosen = _choose(rows, options, columns, filled, found, source, allowed)
    if chosen.schema is None:
        reason = "data.format says so" if options.format != "auto" else ""
        held = {field_: columns[field_] for field_ in FIELDS[chosen.name]}
        format_ = _by_values(chosen.name, held, rows, reason)
        own = rows
    else:
        format_ = _of_schema(chosen, options)
        own = _rewritten(rows, format_)
    if idle := _idle(chosen.schema, options):
        format_ = replace(format_, why=f"{format_.why}; {' and '.join(idle)} change nothing here")
    return with_extras(format_, rows, own, found, options, source)


def _idle(schema: Schema | None, options: DataOptions) -> list[str]:
    """Return the options that say something about other schemas than this one."""
    of_choice = schema is not None and schema.for_option is not None
    idle = {"data.score": options.score is not None and not (schema is not None and schema.is_rated)}
    idle["data.prefer"] = options.prefer != "better" and not of_choice
    return [name for name, found in idle.items() if found]


def _choose(
    rows: Sequence[Mapping[str, Any]],
    options: DataOptions,
    columns: Mapping[str, str],
    filled: Collection[str],
    found: list[str],
    source: str,
    allowed: Sequence[str],
) -> _Candidate:
    present = {name for name, column in columns.items() if column in filled}
    own = [
        _Candidate(name, tuple(columns[f] for f in fields), rank=LAST if name == "demonstrations" else 0)
        for name, fields in FIELDS.items()
        if present >= set(fields)
    ]
    renames = {str(name) for name in options.columns} & {name for fields in FIELDS.values() for name in fields}
    schemas = [
        _Candidate(schema.name, variant, schema, schema.rank)
        for schema in SCHEMAS.values()
        if not renames  # columns that are named are those of the library's own formats
        for variant in schema.variants_in(rows, set(filled), options)
    ]
    if options.format != "auto":
        return _named(options, [*own, *schemas], columns, present, found, source)
    fitting = [c for c in (*own, *schemas) if c.name in allowed and _says_nothing_more(c, rows, found)]
    fitting = [c for c in fitting if c.rank == min(other.rank for other in fitting)]
    fitting = [a for a in fitting if not any(set(a.columns) < set(b.columns) for b in fitting)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = [c.name for c in fitting]
        which = [c.name if names.count(c.name) == 1 else f"{c.name} by {listed(c.columns)}" for c in fitting]
        raise DataError(
            f"{source} could be {' or '.join(which)}: it has the columns {listed(found)}. Say which with data.format"
            f"{' or data.columns' if len(set(names)) < len(names) else ''}."
        )
    raise _unknown(columns, present, found, source, allowed)


def _says_nothing_more(candidate: _Candidate, rows: Sequence[Mapping[str, Any]], found: Sequence[str]) -> bool:
    """A prompt and a completion are a demonstration only where no other column seems to judge the completion."""
    if candidate.name != "demonstrations":
        return True
    others = [name for name in found if name not in candidate.columns]
    judged = [
        name
        for name in others
        if name.lower() in JUDGED or share(rows, lambda r, c=name: isinstance(plain(r.get(c)), bool)) >= 0.5
    ]
    return not judged


def _named(
    options: DataOptions,
    candidates: Sequence[_Candidate],
    columns: Mapping[str, str],
    present: Collection[str],
    found: Sequence[str],
    source: str,
) -> _Candidate:
    """Return the format that `data.format` names."""
    wanted = options.format
    fitting = [candidate for candidate in candidates if candidate.name == wanted]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        twice = " or ".join(listed(candidate.columns) for candidate in fitting)
        raise DataError(
            f"data.format is {wanted}, and {source} has its columns twice: {twice}. Say which with data.columns and "
            "one of the formats pairs, labels or lists."
        )
    if wanted in SCHEMAS:
        needed = SCHEMAS[wanted].spellings(options)
        more = f" (or other spellings, {len(needed)} in all)" if len(needed) > 1 else ""
        raise DataError(
            f"data.format is {wanted}, which needs {listed(needed[0])}{more} with the values of such sets, but "
            f"{source} has the columns {listed(found)}. Leave data.format out to have the format found, or name "
            "columns with data.columns."
        )
    lacking = [columns[f] for f in FIELDS[wanted] if f not in present]
    raise DataError(
        f"data.format is {wanted}, which needs {listed(FIELDS[wanted])}, but {source} lacks {listed(lacking)} in "
        f"most rows; it has the columns {listed(found)}. Rename with data.columns, for instance "
        f"data.columns.{lacking[0]}={found[0] if found else 'NAME'}."
    )


def _unknown(
    columns: Mapping[str, str],
    present: Collection[str],
    found: Sequence[str],
    source: str,
    allowed: Sequence[str],
) -> DataError:
    own = [name for name in allowed if name in FIELDS]
    closest = min(own, key=lambda name: (len(set(FIELDS[name]) - set(present)), -len(FIELDS[name])))
    lacking = [columns[f] for f in FIELDS[closest] if f not in present]
    known = "; ".join(f"{name} ({', '.join(FIELDS[name])})" for name in own)
    published = ", ".join(name for name in allowed if name in SCHEMAS)
    hint = nearest(lacking[0], [f for f in found if f not in FIELDS[closest]]) if lacking else ""
    advice = (
        f"which lacks {listed(lacking)}{hint or ';'} name the column that holds it with data.columns, for instance "
        f"data.columns.{lacking[0]}=NAME."
        if lacking
        else "but another column seems to say how good each completion is: name it with data.columns.label, or set "
        f"data.format={closest}."
    )
    return DataError(
        f"{source} is not recognised: it has the columns {listed(found)}, and the formats known are {known}; and the "
        f"published schemas {published}. The nearest is {closest}, {advice}"
    )


def _of_schema(chosen: _Candidate, options: DataOptions) -> Format:
    schema = chosen.schema
    assert schema is not None
    held = {name: name for name in FIELDS[schema.becomes]}
    reason = "data.format says so; " if options.format != "auto" else ""
    return Format(
        schema.name,
        FORMS[schema.becomes],
        held,
        is_chat=True,
        rewrite=schema.rewriting(chosen.columns, options),
        read=chosen.columns,
        joins_neighbours=schema.joins_neighbours,
        why=f"{reason}it has the columns {listed(chosen.columns)}: {schema.about}",
    )


def _rewritten(rows: Sequence[Mapping[str, Any]], format_: Format) -> list[Mapping[str, Any]]:
    """Rewrite the rows of a sample, without those that can't be."""
    assert format_.rewrite is not None
    found: list[Mapping[str, Any]] = []
    for row in rows:
        try:
            found.append(format_.rewrite(row))
        except RowError:
            continue
    return found


def _by_values(name: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], reason: str) -> Format:
    """Look at what the columns hold: strings or messages, with the prompt repeated or not."""
    format_ = Format(name, FORMS[name], dict(columns))
    words = [reason or f"it has the columns {listed(columns.values())}"]
    if name in ("lists", "completions"):
        return replace(format_, why=words[0])
    answers = [columns[f] for f in ("chosen", "rejected", "completion") if f in columns]
    prompt = columns.get("prompt")
    strings = [row for row in rows if all(isinstance(as_messages(row.get(c)), str) for c in answers)]
    if len(strings) * 2 > len(rows) and prompt is not None:
        asked = [row for row in strings if isinstance(row.get(prompt), str) and row[prompt]]
        repeats = bool(asked) and share(asked, lambda r: all(r[c].startswith(r[prompt]) for c in answers)) >= 0.9
        words.append("the completions are strings" + (" that begin with the prompt" if repeats else ""))
        format_ = replace(format_, repeats_prompt=repeats)
    elif len(strings) * 2 > len(rows):
        transcript = share(strings, lambda r: all(TRANSCRIPT_ANSWER in r[c] for c in answers)) >= 0.9
        words.append(
            "they are transcripts, and the prompt ends with their last 'Assistant:'"
            if transcript
            else "they are strings, and the prompt is what both begin with, cut at a space"
        )
        format_ = replace(format_, transcript=transcript)
    else:
        messages = share(rows, lambda r: all(isinstance(as_messages(r.get(c)), list | tuple) for c in answers))
        words.append("the completions are messages" if messages > 0.5 else "they hold strings and messages")
    if name == "demonstrations":
        words.append("each is an answer to imitate")
    return replace(format_, why="; ".join(words))
