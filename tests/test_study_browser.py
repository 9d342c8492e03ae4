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
SMALL = P.model_copy(update={"cases": 4, "raters": 4})  # 3 sources, 12 images, 15 with repeats
PAIRS = SMALL.model_copy(update={"design": "forced_choice", "controls": 2})  # 8 pairs, 2 with controls, 2 repeats
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
    yield links, opened, Store(home / f"ratings-{opened.hash}.db", opened.hash, SMALL.raters)
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
    until(page, f"state?.position === {place} && slices !== null && $('view').dataset.image === state.image && !saving")
    assert page.locator("#progress").inner_text() in (f"Image {place + 1} of {total}", f"Pair {place + 1} of {total}")


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
    until(page, "!planned")  # it is drawn
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
    until(page, "!planned")  # it is drawn
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


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    """The same of a forced choice."""
    home = tmp_path_factory.mktemp("pairs")
    opened = packet.read(write_packet(home, PAIRS, {name: MODELS[name] for name in ("vae", "latent_diffusion")}))
    process, links = start(home)
    yield links, opened, Store(home / f"ratings-{opened.hash}.db", opened.hash, PAIRS.raters, opened.design)
    process.kill()
    process.wait()


def test_a_forced_choice_by_keyboard(paired, tab):
    links, opened, store = paired
    total = len(opened.orders[0])
    page = tab(links[0])
    assert "One of each pair is a real scan" in page.locator("#sign-in").inner_text()
    assert "spoiled on" in page.locator("#sign-in").inner_text()
    sign_in(page, "Anna")
    wanted = []
    for place in range(total):
        at(page, place, total)
        if place == 1:
            page.keyboard.press("Enter")
            assert page.locator("#message").inner_text() == "Which is the real one?"
            for key in "5rsq":  # answers of the other design
                page.keyboard.press(key)
            assert page.locator("input:checked").count() == 0
        side = "12"[place % 2]
        page.keyboard.press(side)
        if place == 2:
            page.keyboard.press("c")
            page.keyboard.type("12 odd")
            page.keyboard.press("Escape")
            page.reload()  # before it is saved: the pair is there again, and no answer to it
            at(page, 2, total)
            assert page.locator("input:checked").count() == 0
            page.keyboard.press(side)
        page.keyboard.press("Enter")
        if place == 4:
            at(page, 5, total)
            page.keyboard.press("u")
            at(page, 4, total)
            assert page.locator("input[name=chosen]:checked").get_attribute("value") == "left"
            page.keyboard.press("2")
            side = "2"
            page.keyboard.press("Enter")
        wanted.append((place, opened.orders[0][place][0], {"1": "left", "2": "right"}[side]))
    page.locator("#finished").wait_for()
    rows = store.ratings(0)
    assert [(row["position"], row["image"], row["chosen"]) for row in rows] == wanted
    page.get_by_role("link", name="look at your ratings").click()
    assert page.locator("tbody tr").count() == total and page.locator("tbody td", has_text="right").count() > 0


def halves(page) -> list[float]:
    """Mean grey level of the left and of the right half of what is drawn."""
    return page.evaluate(
        "() => [0, 1].map((half) => { const w = Math.floor(canvas.width / 2);"
        " const d = canvas.getContext('2d').getImageData(half * w, 0, w, canvas.height).data;"
        " let sum = 0; for (let i = 0; i < d.length; i += 4) sum += d[i]; return 4 * sum / d.length; })"
    )


def test_both_images_of_a_pair_are_windowed_and_zoomed_alike(paired, tab):
    links, opened, _ = paired
    page = tab(links[1])
    sign_in(page, "Berta")
    at(page, 0, len(opened.orders[1]))
    until(page, "canvas.width > 600")
    neutral = halves(page)
    assert min(neutral) > 10  # both are there
    page.mouse.move(200, 400)
    page.mouse.down()
    page.mouse.move(200, 500, steps=4)
    page.mouse.up()
    until(page, "view.level > 170")
    until(page, "!planned")  # it is drawn
    assert all(now < before - 10 for now, before in zip(halves(page), neutral, strict=True))
    page.keyboard.press("0")
    for place in (0.25, 0.75):  # what is in the middle of either image stays there when the wheel turns over it
        box = page.locator("#view").bounding_box()
        page.mouse.move(box["x"] + place * box["width"], box["y"] + box["height"] / 2)
        page.mouse.wheel(0, -400)
        until(page, "view.zoom > 2")
        assert page.evaluate("Math.hypot(view.x, view.y)") < 1
        page.keyboard.press("0")
        until(page, "view.zoom === 1")
    page.keyboard.press("+")
    until(page, "view.zoom > 1")
    page.keyboard.press("0")
    until(page, "!planned")  # it is drawn
    assert halves(page) == neutral


@pytest.mark.parametrize("design", ["rating", "forced_choice"])
def test_every_control_is_reached_by_tab_and_has_a_name(served, paired, tab, design):
    links, *_ = served if design == "rating" else paired
    page = tab(links[3])
    until(page, "state !== null")
    if page.locator("#sign-in").is_visible():
        sign_in(page, "Dora")
    until(page, "slices !== null")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.name"))
    wanted = {"save", "undo", "pause", "help", "reset", "invert", "comment"}
    wanted |= {"realism", "verdict", "plausibility", "tag"} if design == "rating" else {"chosen"}
    assert wanted - reached <= {"undo"}  # there is nothing to undo yet
    tree = page.locator("#rating").aria_snapshot()
    assert "Which is the real one?" in tree if design == "forced_choice" else "How real does it look?" in tree
    assert all(f'button "{name}' in tree for name in ("Save and next", "Undo", "Pause", "Keys"))


@pytest.mark.parametrize("width, height", [(820, 1180), (1180, 820)])
def test_a_pair_on_a_tablet(paired, tab, width, height):
    links, opened, store = paired
    page = tab(links[2], width, height, has_touch=True)
    until(page, "state !== null")
    if page.locator("#pseudonym").is_visible():
        page.locator("#pseudonym").fill("tablet")
        page.get_by_role("button", name="Begin").tap()
    until(page, "slices !== null")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in ("[data-question=chosen]", "#save"):
        box = page.locator(name).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height, name
    stage = page.locator("#stage").bounding_box()
    assert stage["width"] >= 780 and stage["height"] >= 640
    before = len(store.ratings(2))
    page.locator("label", has_text="right").tap()
    page.locator("#save").tap()
    until(page, f"state?.done === {before + 1}")
    assert store.ratings(2)[-1]["chosen"] == "right"
