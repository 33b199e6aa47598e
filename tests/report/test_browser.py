"""Every kind of page in a real browser: it opens quietly, its switches work, it fits, and it can be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefopt.report import write_reports
from tests.report.browser import CONTRAST, FLAGS, FOCUSABLE, FOCUSED, HEADINGS, OVERFLOW, Opened, executable
from tests.report.fixture_evals import write_evals
from tests.report.fixture_rounds import write_rounds
from tests.report.fixture_run import write_run

ATTACK = '<script>alert(1)</script><img src="x" onerror="alert(2)"> \u202etail </blockquote></main> "quoted"'
KINDS = ("run", "going", "rounds", "rounds going", "several")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests of the file."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright, of the extra dev, is not installed")
    path = executable()
    if path is None:
        pytest.skip("this machine has no Chromium; install Debian's chromium, or name one in CHROMIUM")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of every kind, with words from outside that would be markup, in all that a run holds."""
    folder = tmp_path_factory.mktemp("pages")
    run = write_evals(write_run(folder / "reviews"))
    (run / "samples.json").write_text(json.dumps(_samples()))
    going = write_run(folder / "going", steps=17, finished=False)
    rounds, more = write_rounds(folder / "rounds"), write_rounds(folder / "more", rounds=1, finished=False)
    return {
        "run": write_reports([run]),
        "going": write_reports([going]),
        "rounds": write_reports([rounds]),
        "rounds going": write_reports([more]),
        "several": write_reports([run, going, rounds, more], folder / "several.html"),
    }


def _samples() -> list[dict[str, Any]]:
    words = {"a ": 0.1, "warm ": 3.0, "and ": 0.5, "dull ": -4.0, "<b>film</b> ": -1.5}
    pieces = [[word, value] for word, value in words.items()]
    shaded = {"before_tokens": [pieces], "after_tokens": [pieces], "chosen": ["fine"], "rejected": ["poor"]}
    text = "".join(piece for piece, _ in pieces)
    first = {"prompt": "Say it of a film.", "before": [text], "after": [text], **shaded}
    return [
        first,
        {"prompt": ATTACK, "before": [ATTACK], "after": [f"{ATTACK} changed"]},
        {"prompt": "Something about cheese.", "before": ["Gouda"], "after": ["Brie"]},
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_of_the_verdict_reaches_into_the_next(browser: Any, pages: dict[str, Path], kind: str) -> None:
    longest = "23.0 % \u2192 57.4 %"
    with Opened(browser, pages[kind], width=1280, scheme="light") as opened:
        opened.page.eval_on_selector_all(
            ".tiles dd:not(.note)", f"all => all.forEach(one => {{ one.textContent = '{longest}'; }})"
        )
        for media, widths in (("screen", (320, 390, 600, 768, 1024, 1280)), ("print", (700,))):
            opened.page.emulate_media(media=media)
            for width in widths:
                opened.page.set_viewport_size({"width": width, "height": 900})
                wide = opened.page.eval_on_selector_all(
                    ".tiles > div",
                    "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.innerText)",
                )
                assert wide == [], (media, width)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_opens_quietly_fits_and_can_be_read(browser: Any, pages: dict[str, Path], kind: str) -> None:
    views = [(1280, "light"), (390, "dark"), *([(1280, "dark"), (390, "light")] if kind == "run" else [])]
    with Opened(browser, pages[kind], width=1280, scheme="light") as opened:
        assert opened.page.locator("h1").count() == 1
        assert opened.page.evaluate(HEADINGS) == []
        opened.page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
        for width, scheme in views:
            opened.page.set_viewport_size({"width": width, "height": 900})
            opened.page.emulate_media(color_scheme=scheme)
            assert opened.page.evaluate(OVERFLOW) == [], (width, scheme)
            found = opened.page.evaluate(CONTRAST)
            assert found["found"] == [], (width, scheme)
            assert found["seen"] > 150
        names = opened.page.eval_on_selector_all(
            "figure", "all => all.map(one => (one.querySelector('svg[role=img]') || one).getAttribute('aria-label'))"
        )
        assert len(names) >= 4
        assert all(name and len(name) > 30 for name in names)
        assert opened.page.locator("th:not([scope])").count() == 0
        assert opened.wrong == []
        assert opened.asked == [opened.own]


def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["run"], width=390, scheme="dark") as opened:
        page, reached = opened.page, []
        assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "smooth"
        page.emulate_media(reduced_motion="reduce")
        assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
        for _ in range(page.locator(FOCUSABLE).count()):
            page.keyboard.press("Tab")
            reached.append(page.evaluate(FOCUSED))
        assert all(seen["outline"] >= 2 for seen in reached), [seen for seen in reached if seen["outline"] < 2]
        assert [seen["at"] for seen in reached] == sorted({seen["at"] for seen in reached})  # in the page's order
        assert {"BUTTON", "A", "INPUT", "SELECT", "BLOCKQUOTE", "SUMMARY"} <= {seen["tag"] for seen in reached}


def test_the_theme_that_is_asked_for_goes_before_the_systems(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["run"], width=1280, scheme="light") as opened:
        switch, ground = opened.page.locator("[data-theme-switch]"), "getComputedStyle(document.body).backgroundColor"
        light = opened.page.evaluate(ground)
        switch.click()
        assert switch.inner_text() == "Theme: light"
        assert opened.page.evaluate(ground) == light
        switch.click()
        assert switch.inner_text() == "Theme: dark"
        assert opened.page.evaluate(ground) != light
        assert opened.page.evaluate(CONTRAST)["found"] == []
        switch.click()
        assert opened.page.evaluate(ground) == light
    with Opened(browser, pages["run"], width=1280, scheme="dark") as opened:
        opened.page.locator("[data-theme-switch]").click()
        assert opened.page.evaluate(ground) == light


def test_samples_are_found_by_their_words_and_by_what_changed(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["run"], width=390, scheme="light") as opened:
        page, search = opened.page, opened.page.locator("[data-search]")
        assert opened.shown("[data-sample]") == 3
        search.press_sequentially("CHEESE br")
        assert opened.shown("[data-sample]") == 1
        assert page.locator("[data-found]").inner_text() == "1 of 3 shown"
        search.fill("nowhere to be found")
        assert opened.shown("[data-sample]") == 0
        search.fill("")
        page.locator("[data-choice=changed]").select_option("no")
        assert opened.shown("[data-sample]") == 1
        page.locator("[data-choice=changed]").select_option("")
        assert opened.shown("[data-sample]") == 3


def test_sides_of_samples_go_and_come_back(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["run"], width=1280, scheme="light") as opened:
        button = opened.page.locator("[data-kind=before]")
        assert opened.shown("[data-of=before]") == 3
        button.click()
        assert button.get_attribute("aria-pressed") == "false"
        assert opened.shown("[data-of=before]") == 0
        assert opened.shown("[data-of=after]") == 3
        button.click()
        assert opened.shown("[data-of=before]") == 3


def test_a_word_says_its_number_to_the_mouse_and_to_the_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["run"], width=1280, scheme="light") as opened:
        page, told = opened.page, opened.page.locator(".told")
        shaded = page.locator("[data-shaded]").first
        assert "−1.90 nats over 5 pieces" in (shaded.get_attribute("aria-label") or "")
        assert told.is_hidden()
        shaded.locator(".u3").hover()
        assert told.inner_text() == "“warm”: +3.00 nats"
        page.mouse.move(0, 0)
        assert told.is_hidden()
        shaded.focus()
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        assert told.inner_text() == "“dull”: −4.00 nats"
        lines = "one => getComputedStyle(one).textDecorationStyle"
        assert shaded.locator(".u3").evaluate(lines) == "solid"  # not by colour alone
        assert shaded.locator(".d3").evaluate(lines) == "dotted"
        page.locator("[data-shading]").click()
        assert shaded.locator(".u3").evaluate("one => getComputedStyle(one).backgroundColor") == "rgba(0, 0, 0, 0)"


def test_rounds_are_chosen_by_click(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["rounds"], width=1280, scheme="light") as opened:
        assert opened.shown("[data-of='round-0']") == opened.shown("[data-sample]") == 8
        opened.page.locator("[data-kind='round-0']").click()
        assert opened.shown("[data-of='round-0']") == 0
        assert opened.shown("[data-of='round-1']") == 8
        kept = 0
        for outcome in ("rose", "fell", "same"):
            opened.page.locator("[data-choice=outcome]").select_option(outcome)
            kept += opened.shown("[data-sample]")
        assert kept == 8


def test_a_run_is_taken_out_of_figures_and_tables(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["several"], width=1280, scheme="light") as opened:
        lines, rows = "svg [id$='-run1']", "tr[data-of-run='1']"
        before, others = opened.shown(lines), opened.shown("svg [id$='-run0']")
        assert before >= 4
        assert opened.shown(rows) == 1
        opened.page.locator("[data-run='1']").click()
        assert opened.shown(lines) == opened.shown(rows) == 0
        assert opened.shown("svg [id$='-run0']") == others
        opened.page.locator("[data-run='1']").click()
        assert opened.shown(lines) == before
        assert opened.shown("svg [id$='-run2']") >= 4  # a run of rounds


@pytest.mark.parametrize("kind", ["run", "rounds"])
def test_markup_in_a_completion_stays_text(browser: Any, pages: dict[str, Path], kind: str) -> None:
    with Opened(browser, pages[kind], width=1280, scheme="light") as opened:
        assert opened.wrong == []  # no alert either
        assert opened.page.locator("script").count() == 1
        assert opened.page.locator("img, blockquote b").count() == 0
        if kind != "rounds":
            assert ATTACK in opened.page.locator("blockquote", has_text="alert(1)").first.text_content()


@pytest.mark.parametrize("kind", ["run", "rounds"])
def test_without_scripts_the_page_is_whole_and_its_switches_are_not_there(
    browser: Any, pages: dict[str, Path], kind: str
) -> None:
    with Opened(browser, pages[kind], width=1280, scheme="light", script=False) as opened:
        assert opened.shown("button, input, select") == 0
        assert opened.shown("figure svg") >= 4
        assert opened.shown("[data-sample]") == opened.page.locator("[data-sample]").count()


def test_a_printed_page_is_light_and_has_no_switches(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["run"], width=794, scheme="dark") as opened:
        opened.page.locator("[data-theme-switch]").click()
        opened.page.locator("[data-theme-switch]").click()  # asked for dark
        opened.page.emulate_media(media="print")
        assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert opened.shown("button, input, select, nav") == 0
        assert opened.page.evaluate(CONTRAST)["found"] == []
