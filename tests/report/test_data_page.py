"""The page of an inspection: whole, closed, escaped, and with nothing that loads or runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prefopt.data import inspect_lines, inspect_source
from prefopt.errors import DataError
from prefopt.report import write_data_page
from tests.data import toy_tokenizers as toys
from tests.data.every_format import FORMATS
from tests.report.test_page import Page

HOSTILE = "<script>alert(1)</script> & <img src=x onerror=y> </style> $x$ {{ 7 * 7 }}"


def page_of(tmp_path: Path, name: str = "scored pairs", **options: object) -> tuple[Page, str]:
    inspection = inspect_source(FORMATS[name], toys.chatml(), **options)
    text = write_data_page(inspection, tmp_path / "page.html").read_text(encoding="utf-8")
    return Page(text), text


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_page_that_says_what_the_terminal_says(name: str, tmp_path: Path) -> None:
    inspection = inspect_source(FORMATS[name], toys.chatml())
    page = Page(write_data_page(inspection, tmp_path / "page.html").read_text(encoding="utf-8"))
    for line in inspect_lines(inspection):
        if "drops" not in line:  # what each max_length drops stands in a table
            assert " ".join(line.split()) in page.text
    assert len(page.all("svg")) == 1 + (inspection.statistics.scores is not None)
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in page.all("svg"))
    assert inspection.rows[0].source in page.text


def test_the_page_loads_and_runs_nothing(tmp_path: Path) -> None:
    page, text = page_of(tmp_path)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "img"}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)
    assert "prefers-color-scheme: dark" in text


def test_links_and_ids_fit_and_no_id_is_there_twice(tmp_path: Path) -> None:
    page, _ = page_of(tmp_path)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {(link["href"] or "").removeprefix("#") for link in page.all("a")} <= set(ids)


def test_text_of_the_data_stays_text(tmp_path: Path) -> None:
    rows = [{"prompt": HOSTILE, "chosen": HOSTILE + " yes", "rejected": " no", "score_chosen": 2, "score_rejected": 1}]
    held_out = tmp_path / "<b>held.jsonl"
    held_out.write_text('{"prompt": "a", "chosen": " b", "rejected": " c"}\n')
    inspection = inspect_source(rows, held_out=held_out)
    page = Page(write_data_page(inspection, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert HOSTILE in page.text
    assert not page.all("script")
    assert not page.all("b")


def test_an_older_page_is_replaced_and_a_folder_is_no_page(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("old")
    _, text = page_of(tmp_path, rows=0)
    assert "None were asked for." in text
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(DataError, match="can't be written"):
        write_data_page(inspect_source(FORMATS["labels"]), tmp_path)
