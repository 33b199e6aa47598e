"""What every page is: a template that escapes, one style sheet, one script, and a policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from prefopt.errors import RunError

_HERE = Path(__file__).parent


def render_page(template: str, *, scripted: bool = False, **content: Any) -> str:
    """Return a page of this room's `template`; whatever is put into it is escaped.

    Args:
        template: its file.
        scripted: whether search, filters and switches go with it. The page is whole without them.
        content: what the template asks for.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = (_HERE / "page.js").read_text(encoding="utf-8") if scripted else ""
    return environment.get_template(template).render(
        breakable=_breakable, style=page_style(), script=Markup(script), policy=_policy(script), **content
    )


def _breakable(key: str) -> Markup:
    """Return a setting's dotted name that may wrap where a reader would break it."""
    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(key))))


def page_style() -> Markup:
    """Return the style sheet: ours, without any text from outside.

    The colours of a dark page stand in it once, for a system that is dark, and here a second time, for a reader who
    asks for them.
    """
    text = (_HERE / "style.css").read_text(encoding="utf-8")
    dark = re.search(r"prefers-color-scheme: dark\) \{\n  :root[^{]*\{(.*?)\n  \}\n\}\n", text, flags=re.DOTALL)
    assert dark is not None  # a test checks the sheet
    chosen = f':root[data-theme="dark"] {{{dark[1]}\n}}\n'
    return Markup(text[: dark.end()] + chosen + text[dark.end() :])


def write_page(path: Path, text: str) -> Path:
    """Write a page whole or not at all and return its path.

    Raises:
        RunError: it can't be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Half of a surrogate pair, which only broken data holds, is no text in UTF-8.
        draft.write_text(text, encoding="utf-8", errors="replace")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise RunError(
            f"The report can't be written to {path}: {error.strerror or error}; name a place that can be written."
        ) from error
    return path


def _policy(script: str) -> str:
    """Return the page's Content-Security-Policy: nothing is loaded, and no script runs but ours, by its hash."""
    rules = ["default-src 'none'", "style-src 'unsafe-inline'"]
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        rules.append(f"script-src 'sha256-{digest}'")
    return "; ".join(rules)
