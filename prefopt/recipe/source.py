"""Recipe text: YAML that remembers on which line each key stands, and overrides laid over it.

YAML is read by the 1.2 core rules, so that `5e-4` is a number, `no` is a word, and a date is text.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prefopt.errors import RecipeError, nearest

Key = tuple[str, ...]

# Sections that may be written as one word, and the key which that word then stands for.
SHORTHAND = {"model": "name", "loss": "name"}

_RULES: tuple[tuple[str, str, str], ...] = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - PyYAML's own way to replace the inherited table


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read back as text."""

    def analyze_scalar(self, scalar: str) -> Any:
        analysis = super().analyze_scalar(scalar)
        if re.search("[\x85\u2028\u2029\ufeff]", scalar):  # a reader folds these unless they are written as escapes
            analysis.allow_flow_plain = analysis.allow_block_plain = False
            analysis.allow_single_quoted = analysis.allow_block = False
        return analysis


for _tag, _pattern, _first in _RULES:
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), [*_first, *([""] if _tag == "null" else [])]
        )


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    return int(text, 0) if text.startswith(("0x", "0o")) else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


@dataclass(frozen=True)
class Source:
    """What a recipe file and its overrides say, and where each of their keys was said."""

    path: Path
    data: dict[str, Any]
    lines: Mapping[Key, int] = field(default_factory=dict)
    """Line of each key in the file, counted from 1."""
    overrides: Mapping[Key, str] = field(default_factory=dict)
    """The override, as typed, that set a key."""

    def where(self, key: Key) -> str:
        """Return `override 'a.b=c'` or `recipe.yaml:12` for the innermost known part of `key`."""
        for stop in range(len(key), 0, -1):
            if key[:stop] in self.overrides:
                return f"override '{self.overrides[key[:stop]]}'"
            if key[:stop] in self.lines:
                return f"{self.path}:{self.lines[key[:stop]]}"
        return str(self.path)

    def base(self, key: Key) -> Path:
        """Return the folder from which a relative path under `key` counts."""
        typed = any(key[:stop] in self.overrides for stop in range(1, len(key) + 1))
        return Path.cwd() if typed else self.path.resolve().parent

    def get(self, key: Key) -> Any:
        """Return the value at `key`, or None."""
        found: Any = self.data
        for part in key:
            found = found.get(part) if isinstance(found, Mapping) else None
        return found

    def replaced(self, key: Key, value: Any) -> Source:
        """Return the same source with another value at `key`."""
        data = copy.deepcopy(self.data)
        parent = data
        for part in key[:-1]:
            parent = parent[part]
        parent[key[-1]] = value
        return Source(self.path, data, self.lines, self.overrides)


def read(path: Path, overrides: Iterable[str] = ()) -> Source:
    """Return the parsed recipe at `path` with `overrides` laid over it.

    Raises RecipeError when the file can't be read, is not YAML (with line and column), names a key twice, or an
    override has no place.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe {path}{_neighbours(path)}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a directory; name the recipe file itself, such as {path}/recipe.yaml.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text (byte {error.start}), so it is not a recipe.") from None
    except OSError as error:
        raise RecipeError(f"{path} can't be read: {error.strerror}.") from None
    data, lines = _parse(text, path)
    _spell_out(data)
    return _overridden(Source(path, data, lines), overrides)


def write(data: Mapping[str, Any]) -> str:
    """Return YAML that `read` reads back to an equal mapping."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _neighbours(path: Path) -> str:
    found = sorted(str(p) for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    return nearest(str(path), found) or (f"; there is {', '.join(found[:5])}." if found else ".")


def _parse(text: str, path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    lines: dict[Key, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _walk(node, (), lines, path, set())
        data = loader.construct_document(node) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        hint = " (indent with spaces, not tabs)" if "'\\t'" in str(error.problem) else ""
        raise RecipeError(f"{place}: this is not YAML: {error.problem or error.context}{hint}.") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: this is not YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(data, dict):
        raise RecipeError(
            f"{path} holds a {type(data).__name__}, not sections; a recipe starts like `model:`, `data:`, `train:`."
        )
    return data, lines


def _walk(node: yaml.Node | None, key: Key, lines: dict[Key, int], path: Path, above: set[int]) -> None:
    """Note the line of every key under `node`; refuse a key that stands twice, is no text, or holds itself."""
    if not isinstance(node, yaml.MappingNode):
        return
    if id(node) in above:
        raise RecipeError(f"{path}:{node.start_mark.line + 1}: {'.'.join(key)} contains itself through an alias.")
    for name, value in node.value:
        line = name.start_mark.line + 1
        if name.tag == "tag:yaml.org,2002:merge":
            continue
        if not isinstance(name, yaml.ScalarNode) or name.tag != "tag:yaml.org,2002:str":
            raise RecipeError(f"{path}:{line}: keys are words, and {getattr(name, 'value', 'this')!r} is none.")
        here = (*key, name.value)
        if here in lines:
            raise RecipeError(
                f"{path}:{line}: {'.'.join(here)} stands twice (first on line {lines[here]}); remove one of them."
            )
        lines[here] = line
        _walk(value, here, lines, path, above | {id(node)})


def _overridden(source: Source, overrides: Iterable[str]) -> Source:
    data, origins = copy.deepcopy(source.data), dict(source.overrides)
    for text in overrides:
        dotted, equals, value = text.partition("=")
        key = tuple(dotted.strip().split("."))
        if not equals or not all(key):
            raise RecipeError(
                f"override '{text}' is not of the form section.key=value, as in train.learning_rate=1e-5."
            )
        try:
            parsed = yaml.load(value, Loader=_Loader)  # derived from SafeLoader
        except yaml.YAMLError:
            raise RecipeError(
                f"override '{text}': the value is not YAML; quote it, as in {dotted}='\"...\"'."
            ) from None
        _section(data, key[:-1], text)[key[-1]] = parsed
        _spell_out(data)
        origins[key] = text
    return Source(source.path, data, source.lines, origins)


def _spell_out(data: dict[str, Any]) -> None:
    """Turn `loss: ipo` into `loss: {name: ipo}`, in place, so that overrides find a section."""
    for section, key in SHORTHAND.items():
        if isinstance(data.get(section), str):
            data[section] = {key: data[section]}


def _section(data: dict[str, Any], key: Key, text: str) -> dict[str, Any]:
    """Return the mapping at `key`, made where it is missing."""
    for depth, part in enumerate(key):
        value = data.get(part)
        if isinstance(value, dict):
            pass
        elif value is None or (depth == 0 and isinstance(value, str)):  # `reference: auto` gives way to its keys
            data[part] = {}
        else:
            name = ".".join(key[: depth + 1])
            raise RecipeError(f"override '{text}': {name} is {value!r}, a value and not a section with keys.")
        data = data[part]
    return data
