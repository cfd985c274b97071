"""The explorer in a real browser: as a web page served by Voilà, and in JupyterLab.

Run with ``-s`` to see how long a stroke and the first picture take.
"""

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "mae_core" / "explore" / "page"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
WAIT = 120_000  # milliseconds; on a machine that does other work, too


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of what the notebook needs, without data sets: it shows the published pictures."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "params", "outputs/laptop"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return folder


@contextlib.contextmanager
def served(project, command, path):
    """Start a server in the project and yield the address of a path, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_PATH": str(PAGE), "HOME": str(project)}
    log = open(project / "server.txt", "wb")  # noqa: SIM115 (closed with the server)
    server = subprocess.Popen(
        [*command, f"--port={port}"], cwd=project, env=env, stdout=log, stderr=log, start_new_session=True
    )
    address = f"http://127.0.0.1:{port}{path}"
    try:
        for _ in range(600):
            with contextlib.suppress(ConnectionError):
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            if server.poll() is not None:
                pytest.fail((project / "server.txt").read_text(encoding="utf-8"))
            time.sleep(0.1)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        log.close()


@pytest.fixture(scope="module")
def voila(project):
    pytest.importorskip("voila", reason="voila is not installed: pip install -e '.[web]'")
    (command,) = re.findall(r"voila notebooks.+", (ROOT / "Makefile").read_text(encoding="utf-8"))
    with served(project, [*command.split(), "--no-browser"], "/") as address:
        yield address


@contextlib.contextmanager
def opened(browser, address, width, **more):
    """A page: ``errors`` of its console, ``crashes`` (uncaught errors), and ``foreign`` (its requests)."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **more)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.errors, page.crashes, page.foreign = [], [], []
    page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
    page.on("pageerror", lambda error: (page.errors.append(str(error)), page.crashes.append(str(error))))
    page.on("request", lambda request: request.url.startswith("http") and page.foreign.append(request.url))
    page.goto(address, wait_until="commit")
    yield page
    context.close()


def picture(page, case="random-75"):
    return page.eval_on_selector(f".mae-card[data-case='{case}'] canvas", "canvas => canvas.toDataURL()")


def hidden(page):
    return page.locator(".mae-patches .hidden").count()


def after(page, act):
    """Do something, wait until Python has answered, and return the seconds that took."""
    before = page.eval_on_selector(".mae", "root => Number(root.dataset.stroke)")
    began = time.perf_counter()
    act()
    page.wait_for_function("n => Number(document.querySelector('.mae').dataset.stroke) > n", arg=before)
    return time.perf_counter() - began


def drop(page, name, content):
    """Drop a file onto the explorer."""
    page.evaluate(
        """([name, bytes]) => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(bytes)], name, { type: "image/jpeg" }));
            for (const kind of ["dragover", "drop"])
                document.querySelector(".mae-board").dispatchEvent(
                    new DragEvent(kind, { dataTransfer: files, bubbles: true, cancelable: true }));
        }""",
        [name, list(content)],
    )


def place(page, row, column):
    """The middle of a patch, on the screen."""
    box = page.locator(".mae-patches").bounding_box()
    return box["x"] + (column + 0.5) * box["width"] / 8, box["y"] + (row + 0.5) * box["height"] / 8


def click(page, row, column):
    return after(page, lambda: page.mouse.click(*place(page, row, column)))


def drag(page, *places):
    def stroke():
        page.mouse.move(*place(page, *places[0]))
        page.mouse.down()
        for to in places[1:]:
            page.mouse.move(*place(page, *to), steps=3)
        page.mouse.up()

    after(page, stroke)
    page.wait_for_timeout(300)


def press(page, button):
    page.locator(".mae-left").get_by_role("button", name=button, exact=True).click()


def a_jpeg():
    file = io.BytesIO()
    Image.new("RGB", (80, 60), (200, 30, 30)).save(file, "JPEG")
    return file.getvalue()


def paint_by_hand(page):
    """Click, drag and type on the image; each changes exactly the patches touched, and the reconstruction."""
    press(page, "none")
    page.wait_for_function("document.querySelectorAll('.mae-patches .hidden').length === 0")
    clear = picture(page)
    click(page, 2, 3)
    assert hidden(page) == 1
    clicked = picture(page)
    assert clicked != clear
    drag(page, (4, 1), (4, 6))
    assert hidden(page) == 7
    assert picture(page) != clicked
    drag(page, (4, 6), (4, 5))
    assert hidden(page) == 5
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "row 6, column 7, visible"
    after(page, lambda: page.keyboard.press("Space"))
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "row 6, column 7, hidden"
    assert hidden(page) == 6


def test_the_web_page_paints_compares_and_opens_a_picture(browser, voila, capsys):
    began = time.perf_counter()
    with opened(browser, voila, 1280) as page:
        page.wait_for_selector(".mae[data-stroke]")
        first = time.perf_counter() - began
        assert "masked autoencoders" in page.title()
        assert page.locator(".mae-patches").bounding_box()["width"] >= 256
        assert not page.locator(".mae-still").first.is_visible()
        assert page.locator("pre.jp-InputArea-editor, .cm-editor").count() == 0  # no code
        paint_by_hand(page)

        page.get_by_role("checkbox", name="grid-75").set_checked(False)
        page.wait_for_function("!document.querySelector('[data-case=grid-75]')")
        page.get_by_role("checkbox", name="grid-75").set_checked(True)
        page.wait_for_selector("[data-case=grid-75]")
        assert picture(page, "grid-75") != picture(page)

        before = picture(page)
        upload = page.locator(".mae input[type=file]")
        upload.set_input_files({"name": "red.jpg", "mimeType": "image/jpeg", "buffer": a_jpeg()})
        page.wait_for_function("document.querySelector('.mae-title').textContent === 'your picture'")
        assert picture(page) != before
        upload.set_input_files({"name": "text.jpg", "mimeType": "image/jpeg", "buffer": b"no image"})
        page.wait_for_function("document.querySelector('.mae-message').textContent.includes('no image in a format')")
        after(page, lambda: page.get_by_label("next image").click())
        assert page.locator(".mae-title").inner_text().startswith("image 2 of 10")
        drop(page, "blue.jpg", a_jpeg())
        page.wait_for_function("document.querySelector('.mae-title').textContent === 'your picture'")
        assert not page.locator(".mae-drop").count()
        after(page, lambda: page.get_by_label("next image").click())

        times = [click(page, n // 8, n % 8) for n in range(20)]
        with capsys.disabled():
            print(f"\nVoilà: first picture after {first:.1f} s, a stroke in {1000 * statistics.median(times):.0f} ms")
        assert statistics.median(times) < 1  # on an idle machine a tenth of it
        assert not page.errors
        assert not [url for url in page.foreign if not url.startswith(voila)]


def test_the_web_page_says_what_is_wrong_with_the_parameters(browser, voila, project):
    path = project / "notebooks" / "explore.ipynb"
    usual = path.read_text(encoding="utf-8")
    path.write_text(usual.replace(r"study: str = \"laptop\"", r"study: str = \"nowhere\""), encoding="utf-8")
    try:
        with opened(browser, voila, 1280) as page:
            page.wait_for_selector("text=/ParameterError: there are no weights in outputs.nowhere/")
            assert "Traceback" not in page.inner_text("body")
    finally:
        path.write_text(usual, encoding="utf-8")


def test_a_new_mask_comes_after_strokes_that_undo_each_other(browser, voila):
    """Python may see only the last of them, which changes nothing, and answers without a picture."""
    with opened(browser, voila, 1280) as page:
        page.wait_for_selector(".mae-card[data-case='random-75'] canvas")
        masks = "() => [...document.querySelectorAll('.mae-patches [role=gridcell]')].map(c => c.className).join()"
        for n in (7, 6):
            page.locator(".mae-patches [tabindex='0']").focus()
            for _ in range(n):
                page.keyboard.press(" ")
            assert hidden(page) % 2 == n % 2  # else the strokes wait, and what changes next need not be the mask
            before = page.evaluate(masks)
            page.get_by_role("button", name="random", exact=True).click()
            page.wait_for_function(f"before => ({masks})() !== before", arg=before)
            assert hidden(page) == 48
        assert not page.crashes


def test_the_web_page_fits_a_phone_and_is_accessible(browser, voila):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with opened(browser, voila, 390, color_scheme="light", has_touch=True) as page:
        page.wait_for_selector(".mae[data-stroke]")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        before, visible = picture(page), hidden(page)
        page.locator(".mae-patches").scroll_into_view_if_needed()
        after(page, lambda: page.touchscreen.tap(*place(page, 0, 0)))
        assert abs(hidden(page) - visible) == 1
        assert picture(page) != before
        backgrounds = set()
        for scheme, width in (("light", 390), ("dark", 390), ("dark", 1280), ("light", 1280)):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 900})
            backgrounds.add((scheme, page.evaluate("getComputedStyle(document.body).backgroundColor")))
            found = axe.Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
        assert len({colour for _, colour in backgrounds}) == len(backgrounds) == 2
        assert not page.errors


@pytest.fixture(scope="module")
def lab(project):
    command = [
        "jupyter",
        "lab",
        "--no-browser",
        "--ip=127.0.0.1",
        "--ServerApp.token=",
        "--allow-root",
        "--LabApp.news_url=",
    ]
    with served(project, command, "/lab/tree/notebooks") as address:
        yield address


def choose(page, menu, entry):
    page.locator(".lm-MenuBar-item", has_text=menu).first.click()
    page.locator(".lm-Menu-item", has_text=entry).first.click()


def test_pre_training_draws_while_it_runs_and_goes_on_after_stop(browser, project, lab):
    path = project / "notebooks" / "pretrain.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace("epochs: int = 3", "epochs: int = 900"), encoding="utf-8")
    with opened(browser, f"{lab}/pretrain.ipynb?reset", 1280) as page:
        page.set_viewport_size({"width": 1280, "height": 3000})  # JupyterLab draws only what is in sight
        page.wait_for_selector("text=/ipykernel.* Idle/")
        choose(page, "Run", "Run All Cells")
        first = page.locator(".jp-RenderedImage img").get_attribute("src")
        page.wait_for_function("before => document.querySelector('.jp-RenderedImage img').src !== before", arg=first)
        choose(page, "Kernel", "Interrupt Kernel")
        told = page.locator("pre", has_text="StoppedError").inner_text()
        assert re.fullmatch(r"StoppedError: stopped (at step \d+ of|after) epoch .*: run again to continue", told.strip())
        choose(page, "Run", "Run All Cells")
        page.wait_for_selector("text=/resumed at step/")
        first = page.locator(".jp-RenderedImage img").get_attribute("src")
        page.wait_for_function("before => document.querySelector('.jp-RenderedImage img').src !== before", arg=first)
        printed = page.locator("pre", has_text="resumed at step").inner_text()
        choose(page, "Kernel", "Interrupt Kernel")
        page.wait_for_selector("text=/StoppedError/")
    assert len(re.findall("^pretrain: ", printed, re.M)) == 1  # the bar stays on its line


def test_jupyterlab_runs_the_notebook_and_paints(browser, lab, capsys):
    with opened(browser, f"{lab}/explore.ipynb?reset", 1280) as page:
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        page.wait_for_selector("text=/ipykernel.* Idle/")
        began = time.perf_counter()
        choose(page, "Run", "Run All Cells")
        page.wait_for_selector(".mae[data-stroke]")
        first = time.perf_counter() - began
        page.locator(".mae-patches").scroll_into_view_if_needed()
        paint_by_hand(page)
        times = [click(page, n // 8, n % 8) for n in range(20)]
        with capsys.disabled():
            print(f"\nJupyterLab: first picture after {first:.1f} s, a stroke in {1000 * statistics.median(times):.0f} ms")
        assert statistics.median(times) < 1
        assert not page.crashes
        assert not [text for text in page.errors if "mae" in text or "anywidget" in text]
