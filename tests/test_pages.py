"""The published pages in a browser: axe-core finds nothing, nothing is cut without a hint, a choice needs no script."""

import importlib.util
import shutil
from pathlib import Path

import pytest

REPORT = Path(__file__).parents[1] / "report" / "laptop"
PAGES = (
    "index",
    "notebooks/random-75-seed0-pretrain",
    "notebooks/ablations",
    "../night/notebooks/random-75-seed0-finetune",
)
QUIET = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PLAIN = "* { background-image: none !important; transition: none !important }"  # axe skips text on gradients


@pytest.fixture(scope="module")
def browser():
    """Chromium; skips the test with a reason if it or Playwright is missing."""
    for module in ("playwright", "axe_playwright_python"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install -e '.[dev]'")
    from playwright.sync_api import Error, sync_playwright

    chromium = shutil.which("chromium")
    with sync_playwright() as play:
        try:
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", *QUIET])
        except Error:
            pytest.skip("there is no Chromium: apt install chromium, or playwright install chromium")
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    """A page that may load nothing but files and data."""
    tab = browser.new_page()
    tab.asked = []
    tab.on("request", lambda request: tab.asked.append(request.url))
    yield tab
    tab.close()


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(tab, name):
    from axe_playwright_python.sync_playwright import Axe

    tab.goto((REPORT / f"{name}.html").as_uri())
    tab.add_style_tag(content=PLAIN)
    for width in (1280, 390):
        tab.set_viewport_size({"width": width, "height": 900})
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            # Only these depend on the scheme.
            rules = {"runOnly": ["color-contrast", "link-in-text-block"]} if scheme == "dark" else {}
            found = Axe().run(tab, options={"resultTypes": ["violations"], **rules}).response["violations"]
            told = {rule["id"]: [node["html"][:80] for node in rule["nodes"]] for rule in found}
            assert not told, f"{name}, {width} px, {scheme}: {told}"
        assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert all(url.startswith(("file:", "data:")) for url in tab.asked)


def test_the_page_is_dark_where_the_reader_wants_it(tab):
    tab.goto((REPORT / "index.html").as_uri())
    shades = {}
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        shades[scheme] = tab.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert shades == {"light": "rgb(255, 255, 255)", "dark": "rgb(25, 24, 23)"}
    paper = tab.evaluate("getComputedStyle(document.querySelector('figure img')).backgroundColor")
    assert paper == "rgb(255, 255, 255)"  # figures are drawn on white


def test_what_is_wider_than_a_narrow_page_scrolls_and_shows_it(tab):
    tab.set_viewport_size({"width": 390, "height": 900})
    tab.goto((REPORT / "index.html").as_uri())
    regions = tab.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).map(e => "
        "[e.getAttribute('aria-label'), e.tabIndex, getComputedStyle(e).backgroundAttachment])"
    )
    assert {"Figure 6", "Table 1", "Table 8"} <= {label for label, _, _ in regions}
    assert {(index, how) for _, index, how in regions} == {(0, "local, local, scroll, scroll")}  # shadows at the edges
    cut = tab.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
        " && !e.closest('.scroll')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert not cut
    figure = tab.locator("#fig-accuracy .scroll")
    assert figure.locator("img").bounding_box()["width"] > 550  # large enough to read its marks


def test_the_keyboard_chooses_a_picture(tab):
    tab.goto((REPORT / "index.html").as_uri())
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.tagName") == "MAIN"
    figure = tab.locator("#fig-samplings")
    shown = []
    figure.get_by_role("radio").first.focus()
    for _ in range(figure.get_by_role("radio").count()):
        (alt,) = [image.get_attribute("alt") for image in figure.locator("img").all() if image.is_visible()]
        shown.append(alt)
        tab.keyboard.press("ArrowRight")
    assert len(set(shown)) == 8
    tab.keyboard.press("ArrowRight")
    assert figure.get_by_role("radio", name="random 25 %").is_checked()
