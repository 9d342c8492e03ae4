"""The page of the reader study in a real browser: a whole study by keyboard, by touch, and when the server is gone.

Set CHROMIUM to a browser of that family where it is not on the PATH.
"""

import os
import re
import shutil
import time

import pytest
from test_study import MODELS, P, start, write_packet

from reader_study import design, packet
from reader_study.store import Store

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: `apt-get install chromium`, or set CHROMIUM")
SMALL = P.model_copy(update={"cases": 4, "readers": 4})  # 3 sources, 12 images, 15 with repeats
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="install the extra `dev`")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Links of a running server, its packet and its store."""
    home = tmp_path_factory.mktemp("browser")
    opened = packet.read(write_packet(home, SMALL, {name: MODELS[name] for name in ("vae", "latent_diffusion")}))
    process, links = start(home)
    yield links, opened, Store(home / f"ratings-{opened.hash}.db", opened.hash, SMALL.readers)
    process.kill()
    process.wait()


@pytest.fixture
def tab(browser):
    """A function that opens a link in a new window; nothing may fail in it, or be asked of anybody else."""
    problems = []

    def open_link(link: str, width=1280, height=800, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        page = context.new_page()
        page.set_default_timeout(15_000)
        origin = re.match(r"http://[^/]+/", link)[0]
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.on("request", lambda request: request.url.startswith(origin) or problems.append(request.url))
        page.goto(link)
        return page

    yield open_link
    assert problems == []


def until(page, expression: str) -> None:
    """Wait until it is true. (The page's own policy forbids what wait_for_function does.)"""
    end = time.monotonic() + 15
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


def at(page, place: int, total: int) -> None:
    """Wait until the image of that place is on the screen."""
    until(page, f"state?.position === {place} && slice !== null && $('view').dataset.image === state.image && !saving")
    assert page.locator("#progress").inner_text() == f"Image {place + 1} of {total}"


def sign_in(page, pseudonym: str) -> None:
    page.locator("#sign-in").wait_for()
    page.keyboard.type(pseudonym)
    page.keyboard.press("Enter")


def grey(page) -> list[int]:
    """What is drawn: mean and largest grey level of the canvas."""
    return page.evaluate(
        "() => { const d = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;"
        " let sum = 0, top = 0; for (let i = 0; i < d.length; i += 4) { sum += d[i]; top = Math.max(top, d[i]); }"
        " return [Math.round(4000 * sum / d.length) / 1000, top]; }"
    )


def test_a_whole_study_by_keyboard(served, tab):
    links, opened, store = served
    order = opened.orders[0]
    total = len(order)
    page = tab(links[0])
    sign_in(page, "Anna")
    wanted = []
    for place in range(total):
        at(page, place, total)
        realism, plausibility, verdict = 1 + place % 5, 5 - place % 5, "rs"[place % 2]
        page.keyboard.press(str(realism))
        page.keyboard.press(verdict)
        page.keyboard.press(str(plausibility))
        tags = ["blur", "ghosting"] if place == 2 else []
        for tag in tags:
            page.keyboard.press(next(key for key, name in design.TAGS.items() if name == tag))
        if place == 3:
            page.keyboard.press("c")
            page.keyboard.type("rps 12 <b>?")  # in the comment, keys are letters
            page.keyboard.press("Escape")
        if place == 5:  # the answers to this image are not saved yet, all others are
            page.reload()
            at(page, 5, total)
            assert page.locator("input:checked").count() == 0
            for key in (str(realism), verdict, str(plausibility)):
                page.keyboard.press(key)
        page.keyboard.press("Enter")
        if place == 7:  # back, with the answers there, and another one
            at(page, 8, total)
            page.keyboard.press("u")
            at(page, 7, total)
            assert page.locator("input[name=realism]:checked").get_attribute("value") == str(realism)
            page.locator("[data-question=realism] input:checked").focus()
            page.keyboard.press("5")
            realism = 5
            page.keyboard.press("Enter")
        wanted.append((place, order[place][0], realism, {"r": "real", "s": "synthetic"}[verdict], plausibility))
    page.locator("#finished").wait_for()
    rows = store.ratings(0)
    assert [
        tuple(row[n] for n in ("position", "image", "realism", "verdict", "plausibility")) for row in rows
    ] == wanted
    assert rows[2]["tags"] == "blur;ghosting" and rows[3]["comment"] == "rps 12 <b>?"
    assert rows[7]["revision"] == 1 and {row["pseudonym"] for row in rows} == {"Anna"}
    assert all(0 <= row["seconds"] < 60 for row in rows)
    page.goto(links[0])  # on another day
    page.locator("#finished").wait_for()
    page.get_by_role("link", name="look at your ratings").click()
    assert page.locator("tbody tr").count() == total and page.locator("td b").count() == 0
    assert page.get_by_text("rps 12 <b>?").is_visible()


def test_an_unanswered_question_is_asked_again(served, tab):
    links, _, store = served
    page = tab(links[1])
    sign_in(page, "Berta")
    at(page, 0, 15)
    page.keyboard.press("4")
    page.keyboard.press("Enter")
    assert page.locator("#message").inner_text() == "Real or synthetic?"
    assert page.locator("fieldset.active").get_attribute("data-question") == "verdict"
    page.keyboard.press("3")  # no answer to this question
    page.keyboard.press("s")
    page.keyboard.press("Enter")
    assert "anatomy" in page.locator("#message").inner_text()
    assert store.ratings(1) == []


def test_window_level_zoom_pause_and_reset(served, tab):
    links, *_ = served
    page = tab(links[1])
    at(page, 0, 15)
    until(page, "canvas.width > 600")
    neutral = grey(page)
    assert neutral[1] > 150
    page.mouse.move(400, 400)
    page.mouse.down()
    page.mouse.move(400, 500, steps=4)  # level up: darker
    page.mouse.up()
    until(page, "view.level > 170")
    page.wait_for_timeout(100)
    assert grey(page)[0] < neutral[0] - 10
    page.keyboard.press("0")
    page.mouse.wheel(0, -400)
    until(page, "view.zoom > 2")
    page.mouse.dblclick(400, 400)
    until(page, "view.zoom === 1 && view.level === 128")
    for key, change in (("ArrowLeft", "view.width < 256"), ("ArrowUp", "view.level < 128"), ("+", "view.zoom > 1")):
        page.keyboard.press(key)
        until(page, change)
    page.keyboard.press("Shift+ArrowLeft")
    until(page, "view.x !== 0")
    page.keyboard.press("0")
    page.wait_for_timeout(100)
    assert grey(page) == neutral
    page.keyboard.press("p")
    assert page.locator("#paused").is_visible() and grey(page)[1] == 0  # nothing to go on looking at
    page.keyboard.press("4")
    page.keyboard.press("p")
    page.locator("#paused").wait_for(state="hidden")
    assert grey(page) == neutral and page.locator("input:checked").count() == 0
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("?")
    page.locator("#keys").wait_for(state="hidden")


@pytest.mark.parametrize("width, height", [(820, 1180), (1180, 820)])
def test_a_tablet(served, tab, width, height):
    """By touch; everything that must be answered fits on the screen, beside an image that is the larger part."""
    links, _, store = served
    slot = 2 if width < height else 3
    page = tab(links[slot], width, height, has_touch=True)
    page.locator("#pseudonym").fill(f"tablet{slot}")
    page.get_by_role("button", name="Begin").tap()
    at(page, 0, 15)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in ("[data-question=realism]", "[data-question=verdict]", "[data-question=plausibility]", "#save"):
        box = page.locator(name).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height, name
    stage = page.locator("#stage").bounding_box()
    assert min(stage["width"], stage["height"]) >= 640
    page.get_by_text("probably a real scan").tap()
    page.locator("label", has_text="synthetic").tap()
    page.get_by_text("minor errors").tap()
    page.get_by_text("blur", exact=True).tap()
    page.locator("#save").tap()
    at(page, 1, 15)
    row = store.ratings(slot)[0]
    assert (row["realism"], row["verdict"], row["plausibility"], row["tags"]) == (4, "synthetic", 3, "blur")


def test_answers_stay_when_the_server_is_gone(tmp_path, browser):
    """Saved when it is back, and once."""
    folder = write_packet(tmp_path, SMALL, {"vae": MODELS["vae"]})
    process, links = start(tmp_path)
    try:
        page = browser.new_page()
        page.goto(links[0])
        sign_in(page, "Anna")
        at(page, 0, 10)
        process.kill()
        process.wait()
        for key in ("2", "s", "3", "Enter"):
            page.keyboard.press(key)
        page.get_by_text("The server does not answer").wait_for()
        assert page.locator("input:checked").count() == 3
        process, _ = start(tmp_path, "--port", re.search(r":(\d+)/", links[0])[1])
        page.keyboard.press("Enter")
        at(page, 1, 10)
    finally:
        process.kill()
        process.wait()
    hashed = folder.name.removeprefix("packet-")
    assert [row["realism"] for row in Store(tmp_path / f"ratings-{hashed}.db", hashed, 4).ratings()] == [2]
