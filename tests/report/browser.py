"""A real browser, where this machine has one, and what the tests ask of a page in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chromium-headless-shell")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip

OVERFLOW = """() => {
  const width = document.documentElement.clientWidth;
  return Array.from(document.querySelectorAll("body *")).filter((one) => {
    if (one.closest(".scroll, nav, svg")) return false;
    const box = one.getBoundingClientRect();
    return box.width > 0 && box.height > 0 && (box.right > width + 1 || box.left < -1);
  }).map((one) => one.tagName + "." + one.className + " " + one.textContent.slice(0, 40))
    .concat(document.documentElement.scrollWidth > width ? ["the page itself"] : []);
}"""

CONTRAST = """() => {
  const parse = (text) => {
    const found = text.match(/[\\d.]+/g);
    return found === null || text === "none" ? null : found.map(Number);
  };
  const over = (above, below) => {
    const share = above.length > 3 ? above[3] : 1;
    return [0, 1, 2].map((i) => above[i] * share + below[i] * (1 - share));
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((one) => one / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    const layers = [];
    for (let at = one; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour && (colour.length < 4 || colour[3] > 0)) layers.push(colour);
      if (colour && (colour.length < 4 || colour[3] === 1)) break;
    }
    return layers.reverse().reduce((below, above) => over(above, below), [255, 255, 255]);
  };
  const found = [];
  let seen = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !one.checkVisibility() || one.closest("script, style, caption")) continue;
    const style = getComputedStyle(one);
    const colour = parse(one.closest("svg") ? style.fill : style.color);
    const ground = behind(one);
    const text = over(colour, ground);
    const [low, high] = [light(text), light(ground)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    seen += 1;
    if (ratio < (large ? 3 : 4.5))
      found.push([ratio.toFixed(2), one.tagName, one.getAttribute("class"), walker.currentNode.data.trim()].join(" "));
  }
  return { seen, found };
}"""


HEADINGS = """() => {
  const levels = Array.from(document.querySelectorAll("h1, h2, h3, h4, h5, h6")).map((one) => Number(one.tagName[1]));
  return levels.filter((level, i) => level > (i ? levels[i - 1] : 0) + 1);
}"""
"""Levels of headings that skip one."""

FOCUSABLE = "button:visible, a[href]:visible, input:visible, select:visible, summary:visible, [tabindex='0']:visible"

FOCUSED = """() => {
  const one = document.activeElement, style = getComputedStyle(one);
  return { tag: one.tagName, at: Array.from(document.querySelectorAll("*")).indexOf(one),
    outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth) };
}"""


def executable() -> str | None:
    """Return the browser of this machine, or None."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Opened:
    """A page that is open, and what went wrong in it so far."""

    def __init__(self, browser: Any, path: Path, *, width: int, scheme: str, script: bool = True) -> None:
        self._context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
        )
        self.page = self._context.new_page()
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.own = path.as_uri()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def shown(self, what: str) -> int:
        """Return how many elements of a kind are visible."""
        return sum(one.is_visible() for one in self.page.query_selector_all(what))
