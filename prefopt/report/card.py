"""A model card: README.md beside an adapter or a merged model, as the Hugging Face Hub shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml
from huggingface_hub import ModelCardData

from prefopt.errors import RunError
from prefopt.models.config import QuantizationSection
from prefopt.models.source import public_name
from prefopt.report import figures, tables
from prefopt.report.read import RunFiles, read_run
from prefopt.report.verdict import judge
from prefopt.report.words import NONE
from prefopt.workflow.merge import Merged

CARD = "README.md"
FIGURES = "figures"
_FILE = re.compile(
    r"\.(gguf|safetensors|bin|pt|jsonl?|parquet|arrow|csv|tsv|txt|gz|bz2|xz|zst|zip|tar)$", re.IGNORECASE
)
_STYLE = Path(__file__).parent / "style.css"


def write_card(run: Path, folder: Path, *, merged: Merged | None = None, license: str | None = None) -> Path:
    """Write README.md, and the curves of the run as SVG files, beside weights that a run made; return its path.

    Files and folders of this machine appear by their last name alone.

    Args:
        run: the run directory.
        folder: where the weights lie; a card that is there is replaced.
        merged: what `merge_run` returned, where the weights are a merged model.
        license: an identifier of the Hub; None takes that of the base model where its folder has a card.

    Raises:
        RunError: `run` is no run, or `folder` can't be written.
    """
    files = read_run(run)
    curves = figures.training_curves(files)
    try:
        if curves:
            (folder / FIGURES).mkdir(exist_ok=True)
        for number, curve in enumerate(curves):
            (folder / FIGURES / f"{number}.svg").write_text(_standalone(str(curve.svg)), encoding="utf-8")
        text = "\n\n".join(_parts(files, folder, merged, license, curves)) + "\n"
        (folder / CARD).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"The model card can't be written to {folder}: {error.strerror}.") from error
    return folder / CARD


def _parts(
    run: RunFiles, folder: Path, merged: Merged | None, license: str | None, curves: list[figures.Drawing]
) -> Iterator[str]:
    recipe = run.recipe
    named, loss = str(_of(recipe, "model", "name")), str(_of(recipe, "loss", "name") or NONE)
    base = public_name(named)
    kind = "adapter" if (folder / "adapter_config.json").is_file() else "model"
    yield f"---\n{_metadata(recipe, base, loss, kind, license or _license(named))}\n---"
    name = run.path.resolve().name
    yield f"# {name}"
    link = f"[{base}](https://huggingface.co/{base})" if _on_hub(base) else f"`{_shown(base)}`"
    made = {"adapter": "A PEFT adapter of", "model": "A fine-tune of"}[kind]
    yield f"{made} {link}, trained on preferences with the loss `{loss}` by prefopt."
    yield _use(recipe, base, kind, folder)
    verdict = judge(run)
    yield "\n\n".join(["## Result", f"**{verdict.title}.**", *verdict.sentences])
    if lines := tables.held_out(run):
        yield "## Held-out pairs\n\n" + _table(["measure", "before", "after"], lines)
    if run.data and (lines := tables.data_lines(run)):
        yield "## Data\n\n" + _table(["", *tables.data_columns(run)], lines)
    for number, curve in enumerate(curves):
        yield f"![{curve.title}]({FIGURES}/{number}.svg)\n\n{curve.words}"
    if merged is not None:
        yield _merged(merged)
    yield f"## Recipe\n\n```yaml\n{yaml.safe_dump(_public(recipe), sort_keys=False, allow_unicode=True).rstrip()}\n```"


def _metadata(recipe: Mapping[str, Any], base: str, loss: str, kind: str, license: str | None) -> str:
    trained = _of(recipe, "data", "train")
    names = [str(s.get("source") if isinstance(s, Mapping) else s) for s in _listed(trained)]
    data = ModelCardData(
        base_model=base if _on_hub(base) else None,
        base_model_relation=("adapter" if kind == "adapter" else "finetune") if _on_hub(base) else None,
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag="text-generation",
        license=license,
        datasets=[name for name in names if _on_hub(name)] or None,
        tags=["prefopt", "preference-optimization", *re.findall(r"[a-z_]+(?=\(|$| \+)", loss)[:3]],
    )
    return str(data.to_yaml())


def _use(recipe: Mapping[str, Any], base: str, kind: str, folder: Path) -> str:
    here, quantized = f'"{folder.name}"', _quantized(recipe) if kind == "adapter" else None
    names = ["AutoModelForCausalLM", "AutoTokenizer", *(["BitsAndBytesConfig"] if quantized else [])]
    lines = ["from peft import PeftModel"] if kind == "adapter" else []
    lines += [f"from transformers import {', '.join(names)}", ""]
    if quantized:
        lines += ["# The adapter was trained on weights that were quantized like this.", f"quantized = {quantized}"]
        lines += [f'base = AutoModelForCausalLM.from_pretrained("{_shown(base)}", quantization_config=quantized)']
        lines += [f"model = PeftModel.from_pretrained(base, {here})"]
    elif kind == "adapter":
        lines += [f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{_shown(base)}"), {here})']
    else:
        lines += [f"model = AutoModelForCausalLM.from_pretrained({here})"]
    lines += [f"tokenizer = AutoTokenizer.from_pretrained({here})"]
    if _of(recipe, "data", "thinking") == "drop":
        lines += [
            "# It was trained to answer without a thought: ask with",
            "# tokenizer.apply_chat_template(..., add_generation_prompt=True, enable_thinking=False)",
        ]
    return "\n".join(["## Use", "", "```python", *lines, "```"])


def _quantized(recipe: Mapping[str, Any]) -> str | None:
    """Return the call that makes the base's quantization, or None where it has none."""
    asked = _of(recipe, "model", "quantization")
    if asked is None:
        return None
    section = QuantizationSection.model_validate(asked)
    if section.type == "int8":
        options = ["load_in_8bit=True", "llm_int8_threshold=0.0"]
    else:
        dtype = section.compute_dtype if section.compute_dtype != "auto" else str(_of(recipe, "model", "dtype"))
        options = ["load_in_4bit=True", f'bnb_4bit_quant_type="{section.type}"']
        options += ["bnb_4bit_use_double_quant=True"] if section.double_quant else []
        options += [f'bnb_4bit_compute_dtype="{"bfloat16" if dtype == "auto" else dtype}"']
    if section.skip_modules:
        options.append(f"llm_int8_skip_modules={[*section.skip_modules, 'lm_head']}")
    return f"BitsAndBytesConfig({', '.join(options)})"


def _merged(merged: Merged) -> str:
    text = f"## Merged\n\nThe adapter was added to the weights in float32 and saved as {merged.dtype}."
    if merged.quantized:
        text += " It was trained on quantized weights, and those, unpacked, are what this model holds."
    if (drift := merged.drift) is not None:
        text += (
            f" Against the policy with its adapter on, log-probs of {drift.completions} completions differ by "
            f"{drift.token_mean:.2g} nats a token on average and {drift.token_max:.2g} at most."
        )
    return text


def _table(columns: list[str], lines: list[tables.Line]) -> str:
    rows = [[line.label, *(f"{c.value} ({c.note})" if c.note else c.value for c in line.cells)] for line in lines]
    text = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in text)


def _standalone(svg: str) -> str:
    """Return a figure of the report's page with the page's colours inside."""
    colours: dict[str, str] = {}
    for name, colour in re.findall(r"(--[a-z]+): (#[0-9a-f]{6})", _STYLE.read_text(encoding="utf-8")):
        colours.setdefault(name, colour)  # the first are those of a light page
    rules = ";".join(f"{name}:{colour}" for name, colour in colours.items())
    style = f"<style>svg{{{rules};background:var(--card)}}text{{font-family:sans-serif}}</style>"
    return svg.replace(">", f">{style}", 1)


def _public(value: Any) -> Any:
    """Return the recipe without this machine's folders, and without what is null."""
    if isinstance(value, Mapping):
        return {key: _public(child) for key, child in value.items() if child is not None}
    if isinstance(value, list):
        return [_public(child) for child in value]
    return _shown(value) if isinstance(value, str) else value


def _shown(text: str) -> str:
    """Return a path by its last name and an address without what may be secret in it; other text as it is."""
    if "\n" in text:
        return text
    if re.match(r"file:|[A-Za-z]:[\\/]|\\\\", text):
        return PureWindowsPath(text.removeprefix("file:")).name
    if "://" in text:
        parts = urlsplit(text)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    if text.startswith(("/", "~", "./", "../", ".\\", "..\\")) or (
        "/" in text and (_FILE.search(text) or _is_here(text))
    ):
        return PureWindowsPath(text).name
    return text


def _is_here(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long, or with a zero byte: no path
        return False


def _on_hub(name: str) -> bool:
    """Whether this is a name on the Hub rather than a path."""
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", name)) and not _FILE.search(name) and not _is_here(name)


def _license(base: str) -> str | None:
    card = Path(base) / CARD
    if not card.is_file() or not (found := re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL)):
        return None
    try:
        metadata = yaml.safe_load(found[1])
    except yaml.YAMLError:  # somebody else's card: ours does without
        return None
    return metadata.get("license") if isinstance(metadata, dict) else None


def _of(recipe: Mapping[str, Any], section: str, key: str) -> Any:
    value = recipe.get(section)
    return value.get(key) if isinstance(value, Mapping) else value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
