"""The page to play with: what it draws and says, what it refuses, and that no real slice leaves it."""

import base64
import io
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import copy_parameters
from PIL import Image
from starlette.testclient import TestClient
from test_study_browser import CHROMIUM, browser  # noqa: F401

from commands import demo as stage
from synthmri import imageset
from synthmri.demo import app
from synthmri.errors import UserError
from synthmri.evaluation import features, shield
from synthmri.generators import autoencoder, latent_diffusion

ROOT = Path(__file__).parent.parent
ORIGIN = "http://localhost"
WORDS = {"contrast": ["FLAIR", "T1w"], "plane": ["axial"], "label": ["lesions", "none"], "level": [3, 6]}
ASKED = {"contrast": "T1w", "plane": "axial", "label": "none", "level": 6, "seed": 100, "steps": 4}


def heads(n: int, seed: int) -> np.ndarray:
    """Ellipses with a texture of their own; no anatomy."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    images = []
    for _ in range(n):
        a, b, k = *rng.uniform(0.55, 0.75, 2), rng.uniform(5, 11, 4)
        texture = 110 + 40 * np.sin(k[0] * x + k[1]) * np.cos(k[2] * y + k[3]) + rng.normal(0, 5, x.shape)
        images.append(np.where(np.hypot(x / a, y / b) < 1, texture, 4).clip(0, 255).astype(np.uint8))
    return np.stack(images)


TRAIN, VAL = heads(24, 0), heads(20, 1)


@pytest.fixture(scope="module")
def known():
    return shield.known(TRAIN, VAL, *(features.extract(shield.JUDGE, images) for images in (TRAIN, VAL)))


@pytest.fixture
def served(known):
    """A client, and a list of what was drawn: a copy first, then other heads, and noise at the end."""
    calls = []

    def draw(text, seeds, steps):
        calls.append((text, seeds, steps))
        if steps == 13:
            raise UserError("13 denoising steps do not space evenly; take 12")
        noise = np.random.default_rng(5).integers(0, 256, (1, 64, 64), np.uint8)
        return np.concatenate([TRAIN[:1, :, ::-1], heads(6, 9), noise])[:, None]

    def prompt(asked):
        return f"{asked.contrast} {asked.level}"

    page = app.create(draw, prompt, known, words=WORDS, steps=14, simulated=True, refused=True)
    return TestClient(page, base_url=ORIGIN, headers={"origin": ORIGIN}), calls


def test_masks_are_shown_as_outlines_and_counted(known):
    images, masks = heads(8, 9), np.zeros((8, 64, 64), np.uint8)
    masks[2, 20:24, 20:24] = masks[2, 40:44, 30:34] = 255
    page = app.create(
        lambda *asked: np.stack([images, masks], axis=1), lambda asked: "", known,
        words=WORDS, steps=14, simulated=True, refused=False,
    )  # fmt: skip
    client = TestClient(page, base_url=ORIGIN, headers={"origin": ORIGIN})
    slices = client.post("/draw", json=ASKED).json()["slices"]
    assert [each["lesions"] for each in slices] == [0, 0, 2, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(pixels(slices[2]["picture"]), images[2])
    coloured = pixels(slices[2]["outlined"])
    changed = (coloured != images[2][..., None]).any(axis=-1)
    assert changed.sum() == 2 * 20 and not changed[masks[2] > 0].any()  # a line of one pixel around each
    assert not (pixels(slices[0]["outlined"]) != images[0][..., None]).any()


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def test_eight_slices_come_with_what_the_shield_says_of_them(served, known):
    client, calls = served
    answer = client.post("/draw", json=ASKED).json()
    assert calls == [("T1w 6", list(range(100, 108)), 4)] and answer["prompt"] == "T1w 6"
    slices = answer["slices"]
    assert [each["seed"] for each in slices] == list(range(100, 108))
    drawn = np.stack([pixels(each["picture"]) for each in slices])
    np.testing.assert_array_equal(drawn[1:7], heads(6, 9))
    verdict = shield.judge(drawn, known)
    assert [each["likeness"] for each in slices] == pytest.approx(verdict.likeness, abs=6e-4)
    assert [each["alike"] for each in slices] == verdict.alike.tolist()
    assert slices[0]["alike"] and slices[0]["likeness"] > 0.99  # a training slice, mirrored
    assert slices[7]["implausible"] and not slices[7]["alike"]  # noise


def test_the_page_offers_the_words_of_training_and_says_whose_it_is(served):
    client, _ = served
    reply = client.get("/")
    for value in ("FLAIR", "T1w", "axial", "lesions", "none", "3", "6"):
        assert f"<option>{value}</option>" in reply.text
    assert "simulated people" in reply.text and "The gate refuses this model" in reply.text
    assert "script-src 'self'" in reply.headers["content-security-policy"] and "<script>" not in reply.text


def test_labels_are_text_and_no_html(known):
    words = WORDS | {"label": ["<script>alert(1)</script>"]}
    page = app.create(None, None, known, words=words, steps=14, simulated=False, refused=False)
    text = TestClient(page, base_url=ORIGIN).get("/").text
    assert "<script>alert" not in text and "&lt;script&gt;" in text
    assert "fine-tuned on\nslices of people" in text and "The gate" not in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 10**9}, "less than or equal to 100"), ({"steps": 0}, "greater than or equal to 1"),
        ({"steps": "4"}, "valid integer"), ({"steps": 4.5}, "valid integer"), ({"steps": True}, "valid integer"),
        ({"steps": 13}, "take 12"), ({"seed": -1}, "greater"), ({"seed": 2**70}, "seed"), ({"seed": None}, "seed"),
        ({"label": "x" * 10_000}, "at most 60"), ({"label": "glioma"}, "choose of lesions, none, or none"),
        ({"contrast": ["T1w"]}, "valid string"), ({"plane": "../../etc/passwd"}, "choose of axial"),
        ({"level": 99}, "level"), ({"level": 5}, "level: no training slice has 5; choose of 3, 6"),
        ({"extra": 1}, "extra"),
    ],
)  # fmt: skip
def test_hostile_requests_are_refused_kindly(served, change, words):
    client, calls = served
    reply = client.post("/draw", json=ASKED | change)
    assert reply.status_code == 422 and words in reply.json()["detail"] and len(reply.text) < 500
    assert not calls or change == {"steps": 13}


def test_other_posts_and_other_hosts_are_not_even_read(served):
    client, calls = served
    assert client.post("/draw", json=ASKED, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/draw", content="x=1", headers={"content-type": "text/plain"}).status_code == 415
    assert client.post("/draw", content=b"{" + b" " * 20_000 + b"}",
                       headers={"content-type": "application/json"}).status_code == 413  # fmt: skip
    assert client.post("/draw", content=b"{", headers={"content-type": "application/json"}).status_code == 422
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400  # DNS rebinding
    for path in ("/static/app.py", "/static/%2e%2e/app.py", "/static/..%2f..%2fapp.py", "/draw", "/docs", "/slices"):
        assert client.get(path).status_code in (404, 405), path
    assert calls == []


def test_one_drawing_at_a_time(known):
    started, go = threading.Event(), threading.Event()

    def draw(text, seeds, steps):
        started.set()
        assert go.wait(30)
        return heads(8, 3)[:, None]

    page = app.create(draw, lambda asked: "", known, words=WORDS, steps=4, simulated=True, refused=False)
    with TestClient(page, base_url=ORIGIN, headers={"origin": ORIGIN}) as client:
        first: list = []
        thread = threading.Thread(target=lambda: first.append(client.post("/draw", json=ASKED)))
        thread.start()
        assert started.wait(30)
        second = client.post("/draw", json=ASKED)
        go.set()
        thread.join()
        assert second.status_code == 429 and "another window" in second.json()["detail"]
        assert first[0].status_code == 200 and client.post("/draw", json=ASKED).status_code == 200  # and then goes on


def test_no_real_slice_leaves_it(served):
    """Not a training slice, nor a picture of one, is in any answer, though each is compared with all of them."""
    client, _ = served
    answers = [client.get(path).content for path in ("/", "/static/page.js", "/static/page.css", "/favicon.ico")]
    answer = client.post("/draw", json=ASKED).json()
    assert set(answer) == {"prompt", "slices"}
    assert {name for each in answer["slices"] for name in each} == {
        "seed", "picture", "likeness", "alike", "implausible",
    }  # fmt: skip
    pictures = [pixels(each["picture"]) for each in answer["slices"]]
    assert not any(np.array_equal(picture, real) for picture in pictures for real in [*TRAIN, *VAL])
    assert not any(b"data:image" in text for text in answers)


def test_a_port_that_is_taken_is_said(tmp_path):
    listener = stage._listen(0)
    with pytest.raises(UserError, match="choose another --port"):
        stage._listen(listener.getsockname()[1])
    assert listener.getsockname()[0] == "127.0.0.1"
    listener.close()


# The command itself


@pytest.fixture(scope="module")
def running(tmp_path_factory, tiny_model):
    """`synthmri demo` with a random model: its address."""
    folder = tmp_path_factory.mktemp("demo")
    copy_parameters(folder)
    for name, images in (("train", TRAIN), ("val", VAL)):
        rows = {"contrast": "T1w", "plane": "axial", "label": "none", "depth_mm": "60.0"}
        table = pd.DataFrame([rows] * len(images))
        imageset.write(
            folder / "data/slices" / name, imageset.ImageSet(images, table, {"data": {"source": "simulated"}})
        )
        (folder / "data/features" / name).mkdir(parents=True)
        np.save(folder / "data/features" / name / "effnet.npy", features.extract(shield.JUDGE, images))
    (folder / "models").mkdir()
    pipe = latent_diffusion.load(tiny_model)
    autoencoder.mark_masked(pipe.vae, True)
    pipe.save_pretrained(folder / "models/latent_diffusion", safe_serialization=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "commands._console", "demo", "--port", "0"], cwd=folder,
        stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    line = process.stdout.readline()
    yield re.match(r"http://127\.0\.0\.1:\d+/", line)[0]
    process.kill()
    process.wait()


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: `apt-get install chromium`, or set CHROMIUM")
def test_it_is_played_with_in_a_browser(running, browser):  # noqa: F811
    problems = []
    page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
    page.set_default_timeout(120_000)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith((running, "data:")) or problems.append(request.url))
    page.goto(running)
    page.get_by_label("Steps").fill("2")
    page.get_by_label("First seed").fill("7")
    page.get_by_role("button", name="Draw eight").click()
    page.locator("figure").nth(7).wait_for()
    assert "none T1w axial brain MRI, level 6" in page.get_by_role("status").inner_text()
    captions = page.locator("figcaption").all_inner_texts()
    found = [re.match(r"seed (\d+), likeness -?\d\.\d{3}, (no|\d+) lesions?\n", text) for text in captions]
    assert [each[1] for each in found] == [str(i) for i in range(7, 15)]
    first = page.locator("img").first.get_attribute("src")
    page.get_by_label("Outlines of lesions").check()
    assert page.locator("img").first.get_attribute("src") != first
    page.get_by_label("Outlines of lesions").uncheck()
    assert page.locator("img").first.get_attribute("src") == first
    page.get_by_role("button", name="Next eight").click()
    page.get_by_text("seed 15,").wait_for()
    page.get_by_label("First seed").fill("7")
    page.keyboard.press("Enter")
    page.get_by_text("seed 7,").wait_for()
    assert page.locator("img").first.get_attribute("src") == first  # the same seed, the same pixels
    page.get_by_label("Steps").fill("5000")
    page.get_by_role("button", name="Draw eight").click()
    assert page.locator("input[name=steps]").evaluate("(field) => !field.validity.valid")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="install the extra `dev`")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = axe.Axe().run(page).response["violations"]
        assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found] == []
    assert problems == []
