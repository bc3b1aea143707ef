"""The report as a browser shows it: nothing from elsewhere, nothing broken, all of it reachable by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from browser import CONTRAST, Browser, find_chromium
from report.example_report import example_report, surface

pytestmark = [
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    surfaces = [surface("shsy5y"), surface("astro", (0, 0, 0, 0))]
    return example_report().write(tmp_path_factory.mktemp("report"), surfaces)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser, page: Path) -> Browser:
    """The page, freshly loaded in a wide window."""
    chromium.requests.clear()
    chromium.complaints.clear()
    chromium.show(1280, 900)
    chromium.open(page)
    return chromium


def test_nothing_is_fetched_and_nothing_complains(browser: Browser, page: Path) -> None:
    browser.evaluate("new Promise((done) => setTimeout(done, 300))")
    assert browser.requests == [page.as_uri()]
    assert browser.complaints == []
    assert (
        browser.evaluate("performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length")
        == 0
    )


def test_the_policy_forbids_what_the_page_does_not_hold(browser: Browser) -> None:
    browser.evaluate("void document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))")
    browser.evaluate("new Promise((done) => setTimeout(done, 300))")
    assert any("Content Security Policy" in told for told in browser.complaints), browser.complaints


@pytest.mark.parametrize("dark", [False, True])
def test_all_images_load_and_say_what_they_show(browser: Browser, page: Path, dark: bool) -> None:
    browser.show(1280, 900, dark=dark)
    browser.open(page)
    images = browser.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.getAttribute('alt')])")
    assert len(images) == 7 + 4 + 5  # plots, cuts, pictures
    for complete, width, alt in images:
        assert complete and width > 0 and len(alt) > 30
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(18, 22, 26)" if dark else "rgb(244, 246, 248)")
    sources = "document.querySelector('.plots img').currentSrc === document.querySelector('.plots source').srcset"
    assert browser.evaluate(sources) is dark


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_legible(browser: Browser, page: Path, dark: bool) -> None:
    browser.show(1280, 900, dark=dark)
    browser.open(page)
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate(CONTRAST) == []


def test_every_link_has_a_target_and_pictures_and_rows_lead_to_each_other(browser: Browser) -> None:
    targets = browser.evaluate("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
    assert len(targets) > 15
    ids = browser.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert {target.removeprefix("#") for target in targets} <= set(ids)
    labels = browser.evaluate(
        "[...document.querySelectorAll('[aria-labelledby]')].map(e => e.getAttribute('aria-labelledby'))"
    )
    assert set(labels) <= set(ids)
    for number in (1, 3, 4, 5, 6):
        assert browser.evaluate(f"document.querySelector('#row-{number} a').getAttribute('href')") == f"#image-{number}"
        assert browser.evaluate(f"!!document.querySelector('#image-{number} a[href=\"#row-{number}\"]')")
    assert browser.evaluate("document.querySelector('#row-2 a')") is None  # neither worst nor best


def test_landmarks_and_headings(browser: Browser) -> None:
    assert browser.evaluate("document.documentElement.lang") == "en"
    for name in ("header", "nav", "main", "footer", "h1"):
        assert browser.evaluate(f"document.querySelectorAll('{name}').length") == 1, name
    levels = browser.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    headers = "document.querySelectorAll('th').length === document.querySelectorAll('th[scope]').length"
    assert browser.evaluate(headers)


def test_the_keyboard_reaches_everything_in_the_order_of_the_page(browser: Browser) -> None:
    # Of the details' content, the summary is what can be reached.
    wanted = browser.evaluate(
        "(() => { window.stops = [...document.querySelectorAll("
        "'a[href], button, input, summary, [tabindex=\"0\"]')]; return stops.length; })()"
    )
    reached = []
    for _ in range(wanted):
        browser.press("Tab", 9)
        reached.append(browser.evaluate("stops.indexOf(document.activeElement)"))
    assert reached == list(range(wanted))
    assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_skip_link_comes_first_and_leads_to_the_report(browser: Browser) -> None:
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.className") == "skip"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    browser.press("Enter", 13, "\r")
    assert browser.evaluate("location.hash") == "#main"


def test_a_row_leads_to_its_picture_and_back_by_keyboard(browser: Browser) -> None:
    browser.evaluate("document.querySelector('#row-3 a').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.evaluate("document.querySelector(':target').id") == "image-3"
    browser.evaluate("document.querySelector('#image-3 a').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.evaluate("document.querySelector(':target').id") == "row-3"


def test_tables_sort_by_their_headings(browser: Browser) -> None:
    def column(number: int) -> list[str]:
        return browser.evaluate(
            f"[...document.querySelectorAll('table.sortable tbody tr')].map(r => r.cells[{number}].textContent)"
        )

    scores = column(3)
    assert scores == sorted(scores)
    press = "document.querySelectorAll('table.sortable th button')[{}].click()"
    browser.evaluate(press.format(3))
    assert column(3) == sorted(scores, reverse=True)
    browser.evaluate(press.format(0))
    assert column(0) == sorted(column(0), key=str.casefold) or len(set(column(0))) == 6
    assert browser.evaluate("[...document.querySelectorAll('[aria-sort]')].map(h => h.textContent)") == ["image"]
    for _ in range(2):  # rising, then falling: what is undefined stays last
        browser.evaluate(press.format(9))
        assert column(9)[-1] == "–"


def test_outlines_can_be_taken_away_and_pictures_enlarged(browser: Browser) -> None:
    count = "[...document.querySelectorAll('.layers .miss')].filter(p => getComputedStyle(p).display !== 'none').length"
    assert browser.evaluate(count) == 5 + 3
    browser.evaluate("document.getElementById('show-miss').focus()")
    browser.press(" ", 32, " ")
    assert browser.evaluate(count) == 0
    width = "document.querySelector('.layers img').getBoundingClientRect().width"
    before = browser.evaluate(width)
    browser.evaluate("document.getElementById('enlarge').click()")
    assert browser.evaluate(width) > 1.5 * before


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_page_never_scrolls_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.show(width, 800)
    browser.open(page)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    small = browser.evaluate(
        "[...document.querySelectorAll('nav a, label, button, summary')]"
        ".filter(e => e.getBoundingClientRect().height < 24).map(e => e.textContent)"
    )
    assert small == []  # a finger must hit it: WCAG 2.5.8


def test_it_reads_without_script(browser: Browser, page: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(page)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    rows = "document.querySelectorAll('table.sortable tbody tr').length"
    assert browser.evaluate(rows) == 6
    assert browser.evaluate("document.querySelectorAll('th button').length") == 0
