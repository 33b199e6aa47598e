"""The upper part of a run's report as a picture: `python -m tests.report.screenshot RUN FILE.png`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from prefopt.report import write_reports
from tests.report.browser import FLAGS, executable

WIDTH, HEIGHT = 1120, 1280
_COLOURS = 64
"""Of the picture: text and lines need no more, and it stays small."""


def take(run: Path, out: Path) -> None:
    """Write the run's report to a place of its own, open it in a light browser, and keep what stands at its top."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_path = write_reports([run], Path(folder) / "report.html")
        browser = playwright.chromium.launch(executable_path=executable(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(page_path.as_uri())
        out.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(out))
        browser.close()
    with Image.open(out) as picture:
        small = picture.convert("RGB").quantize(_COLOURS)
    small.save(out, optimize=True)


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]))
