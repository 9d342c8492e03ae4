"""The page of results in a real browser: by keyboard, on a phone, in the dark, printed, and examined by axe."""

import re

import pandas as pd
import pytest
from test_report import ROOT, change, made, results
from test_study_browser import CHROMIUM, browser  # noqa: F401

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: `apt-get install chromium`, or set CHROMIUM")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of results with all there can be on it."""
    place = results(tmp_path_factory.mktemp("report"))
    agreed = {"level_error_cm": 1.4, "levels": {"2": 0.5, "6": 2.2}, "label_seen": 0.6, "labels": {"lesions": 0.6}}
    tree = place.metrics / "comparison.json"
    change(tree, models__latent_diffusion__asked=agreed, models__latent_diffusion__asked_of_real=agreed)
    change(tree, references__real__likeness_bound=0.62)
    place.params = place.out.with_name("params.yaml")
    place.params.write_text((place.defaults.parent.parent / "params.yaml").read_text().replace("seed: 0 ", "seed: 1 "))
    made(place)
    return place.out.as_uri()


@pytest.fixture
def tab(browser, address):  # noqa: F811
    """A function that opens the page; nothing may fail in it, or be asked of anybody."""
    problems = []

    def open_page(width=1280, height=900, **options):
        page = browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.on("request", lambda request: request.url.startswith((address, "data:")) or problems.append(request.url))
        page.goto(address)
        return page

    yield open_page
    assert problems == []


def open_all(page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(tab, scheme):
    """All folds open: names, order of headings, contrasts, what is scrolled by keyboard."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="install the extra `dev`")
    page = tab(color_scheme=scheme)
    open_all(page)
    found = axe.Axe().run(page).response
    assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found["violations"]] == []
    assert len(found["passes"]) > 20
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background.removeprefix("rgb(").rstrip(")").split(","))) < 200) == (scheme == "dark")


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_scrolls_sideways_but_the_wide_tables(tab, width):
    page = tab(width)
    open_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    short = page.locator("table.short").bounding_box()
    assert short["x"] >= 0 and short["x"] + short["width"] <= width  # all seven columns
    wide = page.get_by_role("region", name="All columns of the comparison")
    assert wide.evaluate("(box) => box.scrollWidth > box.clientWidth")
    wide.focus()
    page.keyboard.press("ArrowRight")
    wide.evaluate(  # the scrolling is animated
        """async (box) => { while (!box.scrollLeft) await new Promise((done) => requestAnimationFrame(done)); }"""
    )


def test_the_training_is_gone_through_by_keyboard(tab):
    page = tab()
    slider = page.get_by_role("slider")
    points = page.locator(".point")
    last = points.count() - 1
    curve = pd.read_csv(ROOT / "metrics/fd_progression.csv")
    kept = curve.loc[curve["kept"] == 1, "epoch"].item()  # where it opens
    assert last > 2 and len([i for i in range(last + 1) if points.nth(i).is_visible()]) == 1
    assert slider.get_attribute("aria-valuetext").startswith(f"Epoch {kept}: ")
    slider.focus()
    page.keyboard.press("Home")
    assert [i for i in range(last + 1) if points.nth(i).is_visible()] == [0]
    assert slider.get_attribute("aria-valuetext").startswith("Epoch 0: 0 slices seen")
    page.keyboard.press("ArrowRight")
    assert [i for i in range(last + 1) if points.nth(i).is_visible()] == [1]
    assert re.match(r"Epoch [1-9]\d*: [1-9]", slider.get_attribute("aria-valuetext"))  # of the next snapshot


def test_a_fold_opens_by_keyboard_and_a_link_leads_to_its_section(tab):
    page = tab(reduced_motion="reduce")  # a jump: smooth scrolling waits for frames that a busy machine does not draw
    fold = page.locator("details").first
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert fold.evaluate("(fold) => fold.open") and "FD AlexNet" in fold.inner_text()
    page.get_by_role("link", name="Nearest training slices").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#nearest').getBoundingClientRect().top < 900")


def test_without_script_all_of_the_training_is_there(tab):
    page = tab(java_script_enabled=False)
    points = page.locator(".point")
    assert points.count() > 2 and all(points.nth(i).is_visible() for i in range(points.count()))
    assert not page.locator("#player").is_visible()


def test_it_prints_on_a4(tab):
    """Whatever the slider shows, all points are printed, and what is folded is not; nothing is cut off at the right."""
    page = tab(width=718)  # A4 less its margins, at 96 px to the inch and 13 mm
    page.emulate_media(media="print")
    points = page.locator(".point")
    assert (
        all(points.nth(i).is_visible() for i in range(points.count()))
        and not page.locator("summary").first.is_visible()
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    pdf = page.pdf(prefer_css_page_size=True, print_background=True)
    box = [float(value) for value in pdf.partition(b"/MediaBox [")[2].partition(b"]")[0].split()]
    assert box[2:] == pytest.approx([595, 842], abs=1.5)  # points
    assert 3 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 12
