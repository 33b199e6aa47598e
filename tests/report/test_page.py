"""The page of a whole, an unfinished, a damaged and a hostile run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from prefopt.errors import RunError
from prefopt.report import write_report
from prefopt.report.read import read_run
from tests.report.fixture_run import write_run

VOID = {"meta", "br", "wbr", "img", "input", "link", "hr", "path", "use", "rect", "circle", "line"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.mark.usefixtures("undrawn")
def test_a_finished_run_gives_every_section_with_its_numbers(run: Path) -> None:
    page = page_of(run)
    after = json.loads((run / "eval" / "after.json").read_text())["metrics"]["reward"]
    assert f"It learned the preferences: {100 * after['value']:.1f} % of held-out pairs ranked right" in page.text
    assert f"{after['right']} of {after['right'] + after['wrong']} pairs" in page.text
    assert f"{100 * after['low']:.1f} to {100 * after['high']:.1f} %" in page.text
    for words in (
        "SmolLM2-135M-Instruct",
        "dpo, beta 0.1",
        "One rater",
        "190 pairs",
        "Further pairs: by gap",
        "A warm, funny and beautifully acted film",
        "2 rejected rows",
        "the completion is empty",
        "2 rows left out by a rule: tie",
        "reviews-train.jsonl: explicit",
        "target_modules: all-linear",
        "packages.torch",
    ):
        assert words in page.text
    assert [part["id"] for part in page.all("section") if "id" in part] == [
        "training",
        "held-out",
        "samples",
        "data",
        "cost",
        "recipe",
        "environment",
    ]
    assert "not finished" not in page.text


def test_the_page_is_one_file_that_loads_nothing_and_runs_nothing_but_its_own_script(finished_page: Path) -> None:
    text = finished_page.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "xlink:href", "src"):
                assert value is not None
                assert value.startswith("#"), (tag, value)
    assert not re.search(r"@import|@font-face", text)
    assert not re.findall(r"url\((?!#)", text)
    assert set(re.findall(r"https?://[^\"' <]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    (policy,) = (m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    [script] = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_every_figure_has_a_text_alternative_and_unique_ids(finished_page: Path) -> None:
    page = Page(finished_page.read_text(encoding="utf-8"))
    drawings = page.all("svg")
    assert len(drawings) == 11
    for attributes in drawings:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"] or "") > 40
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = {a["href"][1:] for _, a in page.elements if a.get("href")}
    clips = set(re.findall(r"url\(#([^)]*)\)", finished_page.read_text()))
    assert referred | clips <= set(ids)


def test_figures_take_their_colours_from_the_page(finished_page: Path) -> None:
    text = finished_page.read_text()
    for drawing in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        assert not re.findall(r"#[0-9a-f]{6}\b", drawing)
        assert "var(--" in drawing


def test_text_from_data_and_models_stays_text(run: Path) -> None:
    attack = '<script>alert(1)</script><img src=x onerror="alert(2)"> & {{ 7 * 7 }} $\\frac{1}{0}$ \u2028 \u202e'
    torn = f"{attack} \ud800"  # half of a surrogate pair: no text in UTF-8
    shaded = [[[attack, 1.0], ['"><b>', -2.0]]]
    samples = {"prompt": torn, "before": [torn], "after": [attack + "z" * 1_000_000], "after_tokens": shaded}
    (run / "samples.json").write_text(json.dumps([samples]))
    row = {"source": attack, "line": 1, "reason": attack, "row": {attack: attack}}
    (run / "rejected_rows.jsonl").write_text(json.dumps(row) + "\n")
    (run / "recipe.yaml").write_text(f"model: {{name: {json.dumps(attack)}}}\nloss: {json.dumps(attack)}\n")
    (run / "environment.json").write_text(json.dumps({attack: attack}))
    data = {
        "train": {"rows_read": 1, "form": attack, "notes": [attack], "lengths": {attack: {"p50": attack}}},
        attack: {},
    }
    (run / "data.json").write_text(json.dumps(data))
    for name in ("before", "after"):
        path = run / "eval" / f"{name}.json"
        evaluation = json.loads(path.read_text())
        evaluation["slice_by"] = torn
        for part in evaluation["slices"]:
            part["label"] = torn
        path.write_text(json.dumps(evaluation))
    text = write_report(run).read_text()
    page = Page(text)
    assert len(page.all("script")) == text.count("<script") == 1  # the page's own
    assert not page.all("img")
    assert not page.all("b")
    assert any("z" * 1_000_000 in (quoted.get("aria-label") or "") for quoted in page.all("blockquote"))
    assert "49" not in re.findall(r"alert\(2\).{0,40}", page.text)[0]
    assert page.text.count("<script>alert(1)</script>") > 10


@pytest.mark.usefixtures("undrawn")
def test_bins_show_what_was_measured_before_and_after_beside_people(run: Path) -> None:
    page = page_of(run)
    before, after = (
        json.loads((run / "eval" / f"{half}.json").read_text())["slices"][0] for half in ("before", "after")
    )
    row = page.text[page.text.index("3 to 4 190 pairs") :][:200]
    shown = [before["logprob_per_token"], after["logprob_per_token"], after["reward"], after["human"]]
    expected = [f"{100 * measure['value']:.1f} %" for measure in shown]
    found = re.findall(r"(?<!to )\b\d+\.\d %", row.replace("\u00a0", " "))
    assert found[:4] == expected


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_is_still_going_says_what_is_missing(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "going", steps=17, finished=False))
    assert "Not finished" in page.text
    assert "The last logged step is 17" in page.text
    assert "The measurement after training is not there yet." in page.text
    assert "No samples yet" in page.text
    assert "all ties" in page.text
    assert len(page.all("svg")) == 4


@pytest.mark.parametrize("step_files", [["recipe.yaml"], ["metrics.jsonl"], ["recipe.yaml", "environment.json"]])
@pytest.mark.usefixtures("undrawn")
def test_a_run_with_only_its_first_files_gives_a_page(run: Path, step_files: list[str], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in step_files:
        (bare / name).write_text((run / name).read_text())
    page = page_of(bare)
    assert "No held-out evaluation yet" in page.text
    assert "No data summary yet" in page.text


@pytest.mark.parametrize(
    "missing",
    [
        ["eval/before.json"],
        ["eval/after.json", "data.json"],
        ["samples.json", "recipe.yaml"],
        ["metrics.jsonl", "environment.json", "rejected_rows.jsonl"],
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_any_file_may_be_missing(run: Path, missing: list[str]) -> None:
    for name in missing:
        (run / name).unlink()
    assert "reviews" in page_of(run).text


@pytest.mark.usefixtures("undrawn")
def test_any_file_may_be_half_written(run: Path) -> None:
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) == 10
    for path in files:
        kept = path.read_text()
        path.write_text(kept[: len(kept) // 2])
        if path.suffix == ".json":
            assert f"{path.name} is not whole JSON; it may be being written." in read_run(run).problems
        else:
            read_run(run)
    text = page_of(run).text
    assert text.count("is not whole JSON") == 7
    assert "Not finished" in text or "Trained, but not evaluated" in text


@pytest.mark.parametrize("value", ["null", "3", "[]", "{}", '"text"', "[3]"])
@pytest.mark.usefixtures("undrawn")
def test_files_that_hold_something_else_are_left_out(run: Path, value: str) -> None:
    for path in run.rglob("*.json"):
        path.write_text(value)
    assert "reviews" in page_of(run).text


@pytest.mark.usefixtures("undrawn")
def test_torn_lines_are_left_out_and_counted(run: Path) -> None:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[5] = lines[5][:20]  # a resumed run goes on behind a line that a kill tore
    path.write_text("\n".join(lines) + '\n{"step": 121, "lo')
    page = page_of(run)
    assert "2 lines of metrics.jsonl could not be read and are left out" in page.text
    assert "at step 120" in page.text


@pytest.mark.usefixtures("undrawn")
def test_a_step_that_was_logged_twice_counts_as_it_was_last(run: Path) -> None:
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows.append({**next(row for row in rows if row["step"] == 120), "loss": 0.0777})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "to 0.0777 at step 120" in page_of(run).text


@pytest.mark.usefixtures("undrawn")
def test_values_that_are_not_numbers_are_not_drawn(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 0.5}\n{"step": "x", "loss": 1}\n{"step": 3, "loss": null}\n'
    )
    assert "Loss 0.500 at step 2" in page_of(run).text


def test_what_is_no_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no run directory"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"neither recipe.yaml nor metrics.jsonl"):
        write_report(tmp_path)


def test_writing_again_replaces_the_page_whole_and_gives_the_same(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert sorted(path.name for path in run.iterdir() if "report" in path.name) == ["report.html"]


@pytest.mark.usefixtures("undrawn")
def test_labelled_data_without_pairs_is_reported_as_not_evaluated(run: Path) -> None:
    for name in ("before", "after"):
        (run / "eval" / f"{name}.json").unlink()
    page = page_of(run)
    assert "Trained, but not evaluated" in page.text


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.usefixtures("undrawn")
def test_text_and_figures_have_enough_contrast_in_both_schemes(run: Path) -> None:
    style = re.search(r"<style>(.*?)</style>", write_report(run).read_text(), flags=re.DOTALL).group(1)
    blocks = dict(re.findall(r"(:root[^ ]*) \{(.*?)\}", style, flags=re.DOTALL)[::-1])
    colours = {name: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for name, block in blocks.items()}
    light = colours[":root"]
    asked, chosen = colours[':root:not([data-theme="light"])'], colours[':root[data-theme="dark"]']
    assert asked == chosen  # what a dark system shows, and what a reader may ask for
    dark = light | asked
    assert light["paper"] != dark["paper"]
    for scheme in (light, dark):
        for name in scheme.keys() - {"paper", "card", "wash", "rule"}:
            # WCAG AA: 4.5 for text; 3 for graphics, which `before` only is
            least = 3.0 if name == "before" else 4.5
            for surface in ("paper", "card", "wash"):
                low, high = sorted((_luminance(scheme[surface]), _luminance(scheme[name])))
                assert (high + 0.05) / (low + 0.05) >= least, (surface, name)
