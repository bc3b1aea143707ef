"""The page of a run of `predict` as a browser shows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import CONTRAST, Browser, find_chromium
from report.example_run import example_run

from kernel.report.run_page import write_run_page

pytestmark = [
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("run")
    write_run_page(folder / "report.html", "Cells found", example_run(folder))
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.show(1280, 900)
        browser.open(folder / "report.html")
        yield browser


@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_fetches_nothing_and_shows_all(browser: Browser, dark: bool) -> None:
    browser.show(1280, 900, dark=dark)
    browser.evaluate("new Promise((done) => setTimeout(done, 300))")
    assert [address for address in browser.requests if not address.startswith("file:")] == []
    assert len(browser.requests) == 1 and browser.complaints == []
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    widths = browser.evaluate("[...document.querySelectorAll('.layers svg')].map(s => s.getBoundingClientRect().width)")
    assert len(widths) == 3 and min(widths) > 200
    assert browser.evaluate(CONTRAST) == []


def test_outlines_can_be_taken_away(browser: Browser) -> None:
    count = "[...document.querySelectorAll('.found path')].filter(p => p.getClientRects().length > 0).length"
    assert browser.evaluate(count) == 3
    browser.evaluate("document.getElementById('show-found').click()")
    assert browser.evaluate(count) == 0
    browser.evaluate("document.getElementById('show-found').click()")
    assert browser.evaluate(count) == 3


def test_links_lead_somewhere_and_tables_sort(browser: Browser) -> None:
    targets = browser.evaluate("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
    ids = browser.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids)) and {target.removeprefix("#") for target in targets} <= set(ids)
    browser.evaluate("document.querySelectorAll('table.sortable th button')[1].click()")
    column = "[...document.querySelectorAll('table.sortable tbody tr')].map(r => r.cells[1].textContent)"
    assert browser.evaluate(column) == ["0", "1", "2", "–"]


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_page_never_scrolls_sideways(browser: Browser, width: int) -> None:
    browser.show(width, 800)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
