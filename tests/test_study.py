"""The reader study: its design, its packet, its server under attack and under a kill, and its commands."""

import hashlib
import http.client
import io
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from starlette.testclient import TestClient

from commands import study as commands
from reader_study import app, design, packet, ratings
from reader_study.store import Store, Taken
from stages import _secrets
from stages import raters as scores
from synthmri import imageset
from synthmri.errors import UserError
from synthmri.reporting import comparison

ROOT = Path(__file__).parent.parent
P = design.Study(seed=3, design="rating", raters=3, cases=8, repeats=0.1, controls=0)
ANSWER = {"realism": 4, "verdict": "real", "plausibility": 5, "seconds": 3.2, "tags": ["blur"], "comment": "fine"}


def head(level: float, contrast: str, rng: np.random.Generator) -> np.ndarray:
    """A disc as wide as its level is deep, dark on bright or bright on dark by contrast; no anatomy."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    disc = np.hypot(x, y) < 0.2 + level / 150
    bright = (200, 60) if contrast == "T1w" else (60, 200)
    return np.clip(np.where(disc, *bright) + rng.normal(0, 3, disc.shape), 0, 255).astype(np.uint8)


def real_slices(people: int = 6) -> imageset.ImageSet:
    rng = np.random.default_rng(0)
    rows = [(f"s{i}", c, str(d)) for i in range(people) for c in ("T1w", "FLAIR") for d in (20.0, 40.0, 60.0, 80.0)]
    images = np.stack([head(float(d), c, rng) for _, c, d in rows])
    return imageset.ImageSet(images, pd.DataFrame(rows, columns=["subject", "contrast", "depth_mm"]))


def model(seed: int, n: int = 40) -> imageset.ImageSet:
    rng = np.random.default_rng(seed)
    images = np.stack([head(rng.choice([20, 40, 60, 80]), rng.choice(["T1w", "FLAIR"]), rng) for _ in range(n)])
    return imageset.ImageSet(images, pd.DataFrame({"model": ["m"] * n, "seed": [str(i) for i in range(n)]}))


MODELS = {name: model(i + 1) for i, name in enumerate(comparison.MODELS)}


# Design --------------------------------------------------------------------------------------------------------------


def test_cases_are_equally_many_distinct_and_matched():
    items = design.choose(real_slices(), MODELS, P)
    assert Counter(item.source for item in items) == dict.fromkeys(["real", *comparison.MODELS], P.cases)
    for source in ["real", *comparison.MODELS]:
        part = [item for item in items if item.source == source]
        assert len({item.row for item in part}) == P.cases and {item.case for item in part} == set(range(P.cases))
    for same, gap in design.mismatch(items).values():
        assert same == 1 and gap < 10


def test_the_level_of_a_synthetic_slice_is_seen_in_its_image():
    """The discs of `model` have levels that its manifest does not tell."""
    rng = np.random.default_rng(9)
    rows = [(level, contrast) for level in (20, 40, 60, 80) for contrast in ("T1w", "FLAIR")]
    images = np.stack([head(*row, rng) for row in rows])
    known = imageset.ImageSet(images, pd.DataFrame({"seed": ["0"] * 8}))
    items = [item for item in design.choose(real_slices(), {"m": known}, P) if item.source == "m"]
    assert {(item.level_mm, item.contrast) for item in items} == set(rows)
    assert all((item.level_mm, item.contrast) == rows[item.row] for item in items)


def test_real_slices_are_of_as_many_people_as_there_are():
    sets = real_slices(people=8)
    items = design.choose(sets, MODELS, P)
    assert sets.manifest["subject"].iloc[[i.row for i in items if i.source == "real"]].nunique() == 8


def test_pictures_without_people_contrast_or_level_can_be_studied():
    bare = imageset.ImageSet(real_slices().images, pd.DataFrame({"source": [""] * 48}))
    items = design.choose(bare, MODELS, P)
    assert len(items) == 48 and all(np.isnan(item.level_mm) for item in items)


def test_sets_that_cannot_be_compared_are_refused():
    small = MODELS | {"vae": model(1, n=7)}
    with pytest.raises(UserError, match=r"vae: 7 images for study.cases = 8; lower it"):
        design.choose(real_slices(), small, P)
    wide = imageset.ImageSet(np.zeros((40, 32, 40), np.uint8), MODELS["vae"].manifest)
    with pytest.raises(UserError, match="size would give them away"):
        design.choose(real_slices(), MODELS | {"vae": wide}, P)


def test_order_is_balanced_in_blocks_and_differs_between_raters():
    items = design.choose(real_slices(), MODELS, P)
    orders = [design.order(items, P, rater, 7) for rater in range(P.raters)]
    assert orders == [design.order(items, P, rater, 7) for rater in range(P.raters)]
    assert len({tuple(order) for order in orders}) == P.raters
    for order in orders:
        shown = [i for i, again in order if not again]
        assert sorted(shown) == list(range(len(items)))
        for block, cases in ((shown[:30], 5), (shown[30:], 3)):  # eight cases, five to a block
            assert set(Counter(items[i].source for i in block).values()) == {cases}


def test_repeats_are_of_every_source_and_far_from_the_first_time():
    items = design.choose(real_slices(), MODELS, P)
    for rater in range(20):
        order = design.order(items, P, rater, 7)
        again = [i for i, repeat in order if repeat]
        assert set(Counter(items[i].source for i in again).values()) == {1} and len(again) == 6
        first = {i: place for place, (i, repeat) in enumerate(order) if not repeat}
        assert all(place - first[i] >= 10 for place, (i, repeat) in enumerate(order) if repeat)
    assert not any(repeat for _, repeat in design.order(items, P.model_copy(update={"repeats": 0.0}), 0, 7))


def test_power_is_what_simulated_studies_have():
    """Simulated ratings, normal and not rounded, at the difference that is promised to be found in 4 of 5."""
    p = P.model_copy(update={"cases": 20, "raters": 4})
    gap = design.detectable_difference(p, models=5)
    rng = np.random.default_rng(0)
    shape = (1000, p.raters, p.cases)
    real, fake = (
        rng.normal(0, design.CASE_SD, (1000, 1, p.cases)) + rng.normal(0, design.RATER_SD, shape) for _ in range(2)
    )
    found = stats.wilcoxon((fake - real - gap).mean(axis=1), axis=1).pvalue < 0.05 / 5
    assert 0.75 < found.mean() < 0.86
    assert gap > design.detectable_difference(p.model_copy(update={"cases": 80}), models=5)
    assert design.detectable_difference(p.model_copy(update={"cases": 6}), models=5) is None


PAIRS = P.model_copy(update={"design": "forced_choice", "controls": 2})
TWO = {name: MODELS[name] for name in ("vae", "latent_diffusion")}


def test_no_real_slice_comes_in_two_pairs():
    """It would be told by its return. 48 test slices: 8 for each of two models, and 4 for the controls."""
    items = design.choose(real_slices(), TWO, PAIRS)
    real = [item.row for item in items if item.source == "real"]
    control = [item.row for item in items if item.source == "control"]
    assert len(real) == len(set(real)) == 2 * 8 + 2 and len(control) == 2 and not set(real) & set(control)
    pairs = [(items[a], items[b]) for a, b in design.trials(items, PAIRS)]
    assert Counter(other.source for _, other in pairs) == {"vae": 8, "latent_diffusion": 8, "control": 2}
    assert all(one.source == "real" and one.case == other.case for one, other in pairs)
    for same, gap in design.mismatch(items).values():
        assert same == 1 and gap < 10
    for name in TWO:  # of nearly all six people, for each model
        cases = {item.case for item in items if item.source == name}
        rows = [item.row for item in items if item.source == "real" and item.case in cases]
        assert real_slices().manifest["subject"].iloc[rows].nunique() >= 5
    with pytest.raises(UserError, match=r"need 44 test slices; these are 40: lower study.cases to 7"):
        few = real_slices(people=5)
        design.choose(few, {**MODELS}, PAIRS)


def test_the_real_one_is_as_often_on_either_side(tmp_path):
    opened = packet.read(write_packet(tmp_path, PAIRS, TWO))
    key = packet.read_key(tmp_path / f"key-{opened.hash}.csv", opened)
    for order in opened.orders:
        left = [key["source"][name.split("-")[0]] == "real" for name, _ in order]
        assert sorted([left.count(True), left.count(False)]) == [len(order) // 2, len(order) - len(order) // 2]
    places = [[name for name, _ in order] for order in opened.orders]
    assert len({tuple(map(tuple, map(sorted, (n.split("-") for n in order)))) for order in places}) == 3
    assert opened.design == "forced_choice"


@pytest.mark.parametrize("kind", ["rating", "forced_choice"])
def test_controls_are_spread_over_the_order_and_change_no_other_place(kind):
    p = P.model_copy(update={"design": kind, "controls": 4, "cases": 5})
    items = design.choose(real_slices(people=8), TWO, p)
    shown = design.trials(items, p)
    without = P.model_copy(update={"design": kind, "cases": 5})
    for rater in range(10):
        order = design.order(items, p, rater, 7)
        is_control = [items[shown[i][-1]].source == "control" for i, _ in order]
        assert sum(is_control) == 4
        quarter = len(order) / 4
        assert Counter(int(place // quarter) for place, bad in enumerate(is_control) if bad).most_common(1)[0][1] <= 2
        rest = [trial for trial, bad in zip(order, is_control, strict=True) if not bad]
        plain = design.choose(real_slices(people=8), TWO, without)
        of = [(items[shown[i][-1]].source, items[shown[i][-1]].row, again) for i, again in rest]
        there = design.trials(plain, without)
        want = [
            (plain[there[i][-1]].source, plain[there[i][-1]].row, again)
            for i, again in design.order(plain, without, rater, 7)
        ]
        assert of == want


def test_a_control_has_the_greys_of_its_slice_and_is_no_head():
    image = real_slices().images[0]
    bad = design.spoiled(image)
    assert np.array_equal(np.sort(bad, axis=None), np.sort(image, axis=None)) and bad.dtype == np.uint8
    assert np.array_equal(bad, design.spoiled(image))
    assert np.corrcoef(bad.ravel(), image.ravel())[0, 1] < 0.3
    odd = design.spoiled(np.arange(35 * 41, dtype=np.uint16).reshape(35, 41).astype(np.uint8))
    assert odd.shape == (35, 41)


def test_power_of_a_forced_choice_is_what_simulated_studies_have():
    p = PAIRS.model_copy(update={"cases": 20})
    share = design.detectable_proportion(p, models=5)
    hits = np.random.default_rng(0).binomial(p.cases, share, 2000)
    found = np.mean([stats.binomtest(int(k), p.cases, 0.5).pvalue <= 0.05 / 5 for k in hits])
    assert 0.78 < found < 0.84
    assert f"{100 * share:.0f} %" in (ROOT / "docs/reader_study.md").read_text()
    assert design.detectable_proportion(p.model_copy(update={"cases": 7}), models=5) is None


# Packet --------------------------------------------------------------------------------------------------------------


def write_packet(home: Path, p: design.Study = P, models: dict = MODELS, secret: str = "secret") -> Path:
    items = design.choose(real_slices(), models, p)
    images = design.pictures(items, real_slices(), models)
    home.mkdir(exist_ok=True)
    name = packet.write(home / "new", home / "key.csv", items, images, p, secret=secret, simulated=True)
    (home / "key.csv").rename(home / f"key-{name}.csv")
    return (home / "new").rename(home / f"packet-{name}")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("study")
    write_packet(home)
    return home


def test_packet_is_the_same_for_the_same_images_and_another_for_others(home, tmp_path):
    assert write_packet(tmp_path / "a").name == packet.find(home, "").name
    assert write_packet(tmp_path / "b", models=MODELS | {"vae": model(77)}).name != packet.find(home, "").name


def test_names_and_orders_are_known_to_nobody_without_the_secret(home, tmp_path):
    """The code and the seed are public, so neither may tell which images are real, nor where they come in the order."""
    mine, yours = (packet.read(packet.find(folder, "")) for folder in (home, write_packet(tmp_path, secret="b").parent))
    assert not set(mine.images) & set(yours.images)
    pixels = {digest: name for name, digest in yours.hashes.items()}
    same = [
        pixels[mine.hashes[name]] == other
        for (name, _), (other, _) in zip(mine.orders[0], yours.orders[0], strict=True)
    ]
    assert np.mean(same) < 0.2


def test_a_server_open_to_the_network_is_told_its_name_first(home):
    with pytest.raises(UserError, match="--host 0.0.0.0 needs --name"):
        commands.serve(host="0.0.0.0", port=0, name=None, packet_name="", home=home)


def test_nothing_about_a_file_tells_its_source(home):
    """One format and size in bytes, no metadata, names and their order unrelated to the source."""
    opened = packet.read(packet.find(home, ""))
    key = packet.read_key(home / f"key-{opened.hash}.csv", opened)
    assert len({len(data) for data in opened.images.values()}) == 1
    for data in opened.images.values():
        image = Image.open(io.BytesIO(data))
        assert image.mode == "L" and not image.info
        chunks = re.findall(rb"[A-Za-z]{4}", data[:8] + data[12:16] + data[37:41] + data[-8:-4])
        assert set(chunks) <= {b"IHDR", b"IDAT", b"IEND"}
    by_name = [key["source"][name] for name in sorted(opened.images)]
    changes = sum(a != b for a, b in zip(by_name, by_name[1:], strict=False))
    assert changes > 30  # of 47; sorted by source it would be 5
    assert all(re.fullmatch(r"[0-9a-f]{16}", name) for name in opened.images)
    served = (packet.find(home, "") / "packet.json").read_text()
    assert not any(name in served for name in comparison.MODELS)


@pytest.mark.parametrize("what", ["pixel", "order", "key"])
def test_a_changed_packet_is_refused(tmp_path, what):
    folder = write_packet(tmp_path)
    key = next(tmp_path.glob("key-*.csv"))
    if what == "pixel":
        file = next((folder / "images").iterdir())
        file.write_bytes(packet.png(255 - np.asarray(Image.open(file))))
    elif what == "order":
        text = (folder / "packet.json").read_text()
        (folder / "packet.json").write_text(text.replace('"seed": 3', '"seed": 4'))
    else:
        key.write_text(key.read_text().replace(",vae,", ",dcgan,"))
    with pytest.raises(UserError, match="changed"):
        packet.read_key(key, packet.read(folder))


def test_the_packet_must_be_named_where_there_are_several(tmp_path):
    with pytest.raises(UserError, match="make one with"):
        packet.find(tmp_path, "")
    a = write_packet(tmp_path)
    assert packet.find(tmp_path, "") == a
    b = write_packet(tmp_path, P.model_copy(update={"seed": 8}))
    with pytest.raises(UserError, match=f"several packets: name one of .*{b.name}"):
        packet.find(tmp_path, "")
    assert packet.find(tmp_path, b.name) == packet.find(tmp_path, b.name.removeprefix("packet-")) == b


# Server --------------------------------------------------------------------------------------------------------------

ORIGIN = "http://localhost"


@pytest.fixture
def served(home, tmp_path):
    """A client, the link of the first rater, the packet and the store."""
    opened = packet.read(packet.find(home, ""))
    db = Store(tmp_path / "r.db", opened.hash, P.raters)
    client = TestClient(app.create(opened, db, ["localhost"]), base_url=ORIGIN, headers={"origin": ORIGIN})
    return client, f"/r/{db.raters()[0]['token']}/", opened, db


def answer(opened: packet.Packet, place: int, slot: int = 0, **change) -> dict:
    return ANSWER | {"position": place, "image": opened.orders[slot][place][0]} | change


def test_a_rater_signs_in_rates_undoes_and_finishes(served):
    client, link, opened, db = served
    assert client.get(link + "state").json() == {"pseudonym": None}
    state = client.post(link + "sign-in", json={"pseudonym": "Anna"}).json()
    order = opened.orders[0]
    assert state == {
        "pseudonym": "Anna",
        "done": 0,
        "total": 54,
        "position": 0,
        "image": order[0][0],
        "next": order[1][0],
    }
    for i in range(54):
        state = client.post(link + "ratings", json=answer(opened, i)).json()
        assert state["done"] == i + 1
    assert state["position"] is None and state["image"] is None
    for _ in range(2):  # the second as if the reply to the first had been lost
        back = client.post(link + "undo", json={"done": 54}).json()
        assert back["position"] == 53 and back["answers"] == ANSWER and back["done"] == 53
    again = client.post(link + "ratings", json=answer(opened, 53, realism=1)).json()
    assert again["done"] == 54
    assert [(row["realism"], row["revision"]) for row in db.ratings(0)][-2:] == [(4, 0), (1, 1)]


def test_a_post_that_cannot_be_read_is_answered_without_an_echo(served):
    client, link, opened, db = served
    client.post(link + "sign-in", json={"pseudonym": "Anna"})
    text = json.dumps(answer(opened, 0)).replace('"seconds": ', '"seconds": NaN, "x": ')
    reply = client.post(link + "ratings", content=text, headers={"content-type": "application/json"})
    assert reply.status_code == 422 and "seconds" in reply.json()["detail"] and not db.ratings()


def test_a_rating_posted_twice_is_kept_once_and_another_is_refused(served):
    client, link, opened, db = served
    client.post(link + "sign-in", json={"pseudonym": "Anna"})
    for _ in range(2):
        assert client.post(link + "ratings", json=answer(opened, 0)).status_code == 200
    other = client.post(link + "ratings", json=answer(opened, 0, realism=1))
    assert other.status_code == 409 and "another window" in other.json()["detail"]
    assert [row["realism"] for row in db.ratings()] == [4]


def test_pseudonyms_belong_to_one_reader(served):
    client, link, _, db = served
    second = f"/r/{db.raters()[1]['token']}/"
    assert client.post(link + "sign-in", json={"pseudonym": "Anna"}).status_code == 200
    assert client.post(link + "sign-in", json={"pseudonym": "Anna"}).status_code == 200  # its reply may have been lost
    assert client.post(link + "sign-in", json={"pseudonym": "Berta"}).status_code == 409
    assert client.post(second + "sign-in", json={"pseudonym": "anna"}).status_code == 409
    assert client.post(second + "sign-in", json={"pseudonym": "Berta"}).status_code == 200


def test_an_undo_of_a_window_that_stayed_behind_withdraws_nothing(served):
    """Or the answers of one image would be shown, and stored, beside another."""
    _, _, opened, database = served
    database.sign_in(2, "carla")
    order = opened.orders[2]
    for position in range(6):
        database.add(2, position, order[position][0], ANSWER | {"tags": ""})
    with pytest.raises(Taken):
        database.undo(2, 3)
    assert len(database.ratings(2)) == 6
    assert database.undo(2, 6)["position"] == database.undo(2, 6)["position"] == 5
    assert len(database.ratings(2)) == 5


def test_a_pair_is_served_chosen_undone_and_refused(tmp_path):
    opened = packet.read(write_packet(tmp_path, PAIRS, TWO))
    db = Store(tmp_path / "r.db", opened.hash, PAIRS.raters, opened.design)
    client = TestClient(app.create(opened, db, ["localhost"]), base_url=ORIGIN, headers={"origin": ORIGIN})
    link = f"/r/{db.raters()[0]['token']}/"
    state = client.post(link + "sign-in", json={"pseudonym": "Anna"}).json()
    pair = opened.orders[0][0][0]
    assert state["image"] == pair and state["total"] == 2 * 8 + 2 * 1 + 2
    for name in pair.split("-"):
        assert client.get(link + f"images/{name}").content == opened.images[name]
    assert client.get(link + f"images/{pair}").status_code == 404
    given = {"position": 0, "image": pair, "chosen": "left", "seconds": 2.0, "comment": "fine"}
    turned = "-".join(reversed(pair.split("-")))
    for bad, status in (
        (given | {"chosen": "both"}, 422), (given | {"realism": 3}, 422), (given | {"image": turned}, 409),
        (given | {"image": pair.split("-")[0]}, 409), (answer(opened, 0), 422), (given | {"position": 1}, 409),
    ):  # fmt: skip
        assert client.post(link + "ratings", json=bad).status_code == status
    assert client.post(link + "ratings", json=given).json()["done"] == 1
    back = client.post(link + "undo", json={"done": 1}).json()
    assert back["answers"] == {"chosen": "left", "seconds": 2.0, "comment": "fine"} and back["image"] == pair
    client.post(link + "ratings", json=given | {"chosen": "right"})
    assert [(row["chosen"], row["revision"]) for row in db.ratings(0)] == [("right", 1)]
    assert "right" in client.get(link + "ratings").text
    assert "plausible" not in client.get(link).text  # nothing of the other design


@pytest.mark.parametrize(
    "name", ["", "a", "a" * 21, "1abc", "-abc", "a b", "<b>", "=a1", "../x", "anna\n", "änne", None, 7]
)
def test_pseudonyms_are_words(served, name):
    client, link, *_ = served
    assert client.post(link + "sign-in", json={"pseudonym": name}).status_code == 422


@pytest.mark.parametrize(
    "change",
    [
        {"realism": 0}, {"realism": 6}, {"realism": "4"}, {"realism": 4.5}, {"realism": True}, {"verdict": "maybe"},
        {"plausibility": None}, {"seconds": -1.0}, {"seconds": 1e9}, {"tags": ["no such tag"]}, {"tags": ["blur"] * 99},
        {"comment": "x" * 501}, {"position": -1}, {"image": "../packet.json"}, {"extra": 1}, {"source": "real"},
    ],
)  # fmt: skip
def test_answers_out_of_bounds_are_refused(served, change):
    client, link, opened, db = served
    client.post(link + "sign-in", json={"pseudonym": "Anna"})
    assert client.post(link + "ratings", json=answer(opened, 0, **change)).status_code == 422
    assert db.ratings() == []


def test_an_image_can_be_rated_at_its_own_place_alone(served):
    client, link, opened, _ = served
    client.post(link + "sign-in", json={"pseudonym": "Anna"})
    for bad in (answer(opened, 0, position=1), answer(opened, 0, position=54), answer(opened, 0, image="0" * 16)):
        assert client.post(link + "ratings", json=bad).status_code == 409


def test_nothing_is_there_without_a_link(served):
    client, link, opened, _ = served
    name = next(iter(opened.images))
    for path in ("state", "ratings", f"images/{name}", ""):
        assert client.get(f"/r/{'x' * 22}/{path}").status_code == 404
    assert client.get(link + f"images/{name}").status_code == 403  # not signed in yet
    assert client.post(link + "ratings", json=answer(opened, 0)).status_code == 403
    for path in ("/openapi.json", "/docs", "/redoc", "/packet.json", "/images/" + name):
        assert client.get(path).status_code == 404


def test_no_route_leads_out_of_the_packet(served, home):
    client, link, opened, _ = served
    client.post(link + "sign-in", json={"pseudonym": "Anna"})
    name = next(iter(opened.images))
    reply = client.get(link + f"images/{name}")
    assert reply.status_code == 200 and reply.content == opened.images[name]
    key = next(home.glob("key-*.csv")).name
    for bad in (
        f"../../{key}", f"..%2f..%2f{key}", f"%2e%2e/%2e%2e/{key}", "packet.json", "..%5c" + key, f"{name}.png",
        f"{name}%00", "%2fetc%2fpasswd", "/etc/passwd", "....//packet.json",
    ):  # fmt: skip
        for base in (link + "images/", "/static/", link):
            reply = client.get(base + bad)
            assert reply.status_code in (404, 422), base + bad
    for bad in ("page.html", "ratings.html", "../app.py", "..%2fapp.py"):
        assert client.get("/static/" + bad).status_code == 404


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"origin": "http://evil.example"}, 403), ({"origin": "null"}, 403), ({"origin": ""}, 403),
        ({"origin": "https://localhost"}, 403), ({"origin": "http://localhost:81"}, 403),
        ({"content-type": "text/plain"}, 415), ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"host": "evil.example", "origin": "http://evil.example"}, 400),  # DNS rebinding
    ],
)  # fmt: skip
def test_posts_from_elsewhere_are_refused(served, headers, status):
    client, link, *_, db = served
    send = {"content-type": "application/json"} | headers
    assert client.post(link + "sign-in", content='{"pseudonym": "Anna"}', headers=send).status_code == status
    assert db.raters()[0]["pseudonym"] is None


def test_long_and_endless_posts_are_refused(served):
    client, link, *_ = served
    send = {"content-type": "application/json"}
    assert client.post(link + "sign-in", content=b" " * 20_000, headers=send).status_code == 413
    assert client.post(link + "sign-in", content=iter([b"{}"]), headers=send).status_code == 411
    assert client.post(link + "sign-in", content=b"{", headers=send).status_code == 422


def raw_post(address: str, path: str, *lines: str, body: bytes = b"") -> bytes:
    """The first bytes of the answer to a post that is written by hand, to a real server."""
    host, port = re.match(r"http://([^:]+):(\d+)", address).groups()
    head = [f"POST {path} HTTP/1.1", f"Host: {host}:{port}", f"Origin: http://{host}:{port}"]
    head += ["Content-Type: application/json", *lines]
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
        return connection.recv(12)


def test_the_server_reads_no_more_than_it_admits_and_nothing_of_strangers(tmp_path):
    write_packet(tmp_path)
    process, links = start(tmp_path)
    path = re.sub(r"http://[^/]+", "", links[0]) + "sign-in"
    try:
        # Chunks go before a length (RFC 9112, 6.3), so a bound on the length alone would bound nothing.
        both = ("Content-Length: 20", "Transfer-Encoding: chunked")
        endless = b"4e20\r\n" + b" " * 20_000 + b"\r\n0\r\n\r\n"
        assert raw_post(links[0], path, *both, body=endless) == b"HTTP/1.1 411"
        # Of a body that is announced and does not come, nothing is waited for where the token is not known.
        assert raw_post(links[0], f"/r/{'x' * 22}/sign-in", "Content-Length: 20") == b"HTTP/1.1 404"
    finally:
        process.terminate()
        process.wait(10)


def test_every_reply_forbids_what_it_should(served):
    client, link, *_ = served
    for path in (link, "/", "/static/page.js", link + "state", "/nothing"):
        headers = client.get(path).headers
        assert headers["cache-control"] == "no-store" and headers["referrer-policy"] == "no-referrer"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    page = client.get(link).text
    assert not re.search(r"<script(?! src=\"/static/)|<style|style=|\son\w+=|https?://", page)


def test_comments_are_shown_escaped(served):
    client, link, opened, _ = served
    client.post(link + "sign-in", json={"pseudonym": "Anna"})
    evil = "<script>alert(1)</script>\n\"'&\x00\u202e end"
    assert client.post(link + "ratings", json=answer(opened, 0, comment=evil)).status_code == 200
    text = client.get(link + "ratings").text
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\x00" not in text and "\u202e" not in text


def test_reading_waits_for_no_writer(served):
    """Another writes for long: links, states and what was rated are shown meanwhile."""
    client, link, opened, db = served
    client.post(link + "sign-in", json={"pseudonym": "Anna"})
    client.post(link + "ratings", json=answer(opened, 0))
    with closing(sqlite3.connect(db.path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        assert client.get(link + "state").json()["done"] == 1
        assert [row["done"] for row in db.raters()] == [1, 0, 0] and len(db.ratings()) == 1
        assert time.monotonic() - began < 10  # a lock would be waited for 30 s, and not be had


def test_what_is_for_its_owner_is_made_so_and_older_files_are_warned_of(tmp_path, capsys):
    before = os.umask(0o022)
    try:
        home = tmp_path / "home"
        folder = write_packet(home, secret=_secrets.secret(tmp_path / "home-secret"))
        opened, db = commands._open(home, "")
        with closing(sqlite3.connect(db.path)) as reading:  # an open one keeps the log from being put away
            reading.execute("SELECT * FROM reader").fetchone()
            db.sign_in(0, "Anna")
            kept = [tmp_path / "home-secret", home / f"key-{opened.hash}.csv", db.path]
            files = [*kept, *home.glob("ratings-*.db-*")]
            assert len(files) == 5 and {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        assert capsys.readouterr().err == ""
        for file in kept:
            file.chmod(0o644)
        commands._open(home, folder.name)
        _secrets.secret(tmp_path / "home-secret")
        said = capsys.readouterr().err
        assert all(f"others on this machine can read {file}; close it with `chmod 600" in said for file in kept)
    finally:
        os.umask(before)


def test_a_database_belongs_to_one_packet(tmp_path):
    Store(tmp_path / "r.db", "a" * 16, 2)
    with pytest.raises(UserError, match="another packet"):
        Store(tmp_path / "r.db", "b" * 16, 2)


# The real server, killed ---------------------------------------------------------------------------------------------


def start(home: Path, *options: str) -> tuple[subprocess.Popen, list[str]]:
    """The command as users run it, and the links that it prints."""
    command = [sys.executable, "-m", "commands.study", "serve", "--port", "0", "--home", str(home), *options]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    links = []
    for line in process.stdout:
        links += re.findall(r"http://\S+", line)
        if line.startswith("Ctrl-C"):
            return process, links
    raise AssertionError(f"the server ended with {process.wait()}")


def post(url: str, content: dict) -> dict:
    origin = re.match(r"http://[^/]+", url)[0]
    headers = {"Content-Type": "application/json", "Origin": origin}
    with urllib.request.urlopen(
        urllib.request.Request(url, json.dumps(content).encode(), headers), timeout=30
    ) as reply:
        return json.load(reply)


def test_a_kill_in_the_middle_of_200_posts_loses_nothing_acknowledged(tmp_path):
    p = P.model_copy(update={"raters": 4, "repeats": 0.25})
    folder = write_packet(tmp_path, p)
    opened = packet.read(folder)
    process, links = start(tmp_path)
    acknowledged: set[tuple[int, int]] = set()
    enough = threading.Event()

    def rate(job: tuple[int, int]) -> None:
        slot, position = job
        try:
            post(links[slot] + "ratings", answer(opened, position, slot, realism=1 + (slot + position) % 5))
        except (OSError, http.client.HTTPException):
            return  # refused, or cut off within the answer: not acknowledged
        acknowledged.add(job)
        if len(acknowledged) >= 60 and not enough.is_set():  # here: the main thread may wake when all are through
            enough.set()
            os.kill(process.pid, signal.SIGKILL)

    jobs = [(slot, position) for position in range(50) for slot in range(4)]
    try:
        for slot, link in enumerate(links):
            post(link + "sign-in", {"pseudonym": f"rater{slot}"})
        with ThreadPoolExecutor(len(jobs)) as pool:
            running = [pool.submit(rate, job) for job in jobs]
            assert enough.wait(60)
            for future in running:
                future.result()
    finally:
        process.kill()
        process.wait()
    before = set(acknowledged)
    assert 60 <= len(before) < 200, "the kill was to come in the middle"
    process, again = start(tmp_path)
    try:
        assert [link.split("/r/")[1] for link in again] == [link.split("/r/")[1] for link in links]
        stored = Store(tmp_path / f"ratings-{opened.hash}.db", opened.hash, 4).ratings()
        kept = {(row["slot"], row["position"]): row["realism"] for row in stored}
        assert before <= set(kept) and len(kept) == len(stored)
        assert all(realism == 1 + sum(job) % 5 for job, realism in kept.items())
        links = again
        with ThreadPoolExecutor(len(jobs)) as pool:  # whoever had no reply sends again, and nothing is there twice
            list(pool.map(rate, jobs))
        assert len(acknowledged) == 200
        assert len(Store(tmp_path / f"ratings-{opened.hash}.db", opened.hash, 4).ratings()) == 200
    finally:
        process.terminate()
        process.wait(10)


# Commands ------------------------------------------------------------------------------------------------------------


def command(*words: str, ok: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "commands.study", *words],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_create_rate_export_score(tmp_path, monkeypatch, capsys):
    """From samples to ratings.csv, by the commands; the raters are simulated."""
    sets = {"real": real_slices(), **MODELS}
    for name, found in sets.items():
        imageset.write(tmp_path / "samples" / name, found)
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("  cases: 20 ", "  cases: 8 "))
    monkeypatch.chdir(tmp_path)
    home, out = tmp_path / "home", tmp_path / "ratings.csv"
    for _ in range(2):  # the second time it is there already
        commands.create(tmp_path / "samples/real", tmp_path / "samples", home)
    said = capsys.readouterr().out
    assert "52 images, 8 of each of 6 sources, 4 controls; 58 to rate" in said and "latent_diffusion: 100 %" in said
    assert "power: 4 raters find a mean difference" in said
    assert len(list(home.glob("[!.]*"))) == 2
    opened = packet.read(packet.find(home, ""))
    db = Store(home / f"ratings-{opened.hash}.db", opened.hash, 4)
    for slot in range(2):
        db.sign_in(slot, f"rater{slot}")
        for position, (name, _) in enumerate(opened.orders[slot][: 58 - 4 * slot]):
            db.add(slot, position, name, ANSWER | {"tags": "blur;noise", "comment": "=1+1"})
    db.sign_in(0, "RATER0")  # another window, another spelling: the same rater
    commands.export(out, "", home)
    assert "rater1 has rated 54 of 58, and must not see" in capsys.readouterr().err
    frame = ratings.read(out)
    assert len(frame) == 112 and frame["repeat"].sum() >= 6 and set(frame["source"]) == {*sets, "control"}
    here = {name: {design.sha256(image) for image in found.images} for name, found in sets.items()}
    here["control"] = {design.sha256(design.spoiled(image)) for image in sets["real"].images}
    assert all(row.sha256 in here[row.source] for row in frame.itertuples())
    assert set(frame["comment"]) == {"'=1+1"} and set(frame["tags"]) == {"blur;noise"}
    assert frame["reader"].str.fullmatch(r"rater[01]\.[0-9a-f]{6}").all()
    before = out.read_bytes()
    commands.export(out, "", home)
    assert out.read_bytes() == before  # again: nothing counts twice
    commands.merge([out, out], tmp_path / "merged.csv")
    assert (tmp_path / "merged.csv").read_bytes() == before
    # What other sites have rated is joined with what is there.
    ratings.write(tmp_path / "other.csv", frame.assign(reader="rater9." + frame["reader"].str[-6:]))
    commands.merge([tmp_path / "other.csv"], tmp_path / "merged.csv")
    assert len(ratings.read(tmp_path / "merged.csv")) == 224
    db.undo(1, len(db.ratings(1)))  # a rating that was exported and then withdrawn is gone
    commands.export(out, "", home)
    assert len(ratings.read(out)) == 111


def test_packets_and_databases_from_before_the_second_design_are_read(tmp_path):
    """A packet's content is under its hash, so an old one says nothing of designs and controls."""
    folder = write_packet(tmp_path)
    content = json.loads((folder / "packet.json").read_text())
    content["study"] = {"seed": 3, "readers": 3, "cases": 8, "repeats": 0.1}
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    (folder / "packet.json").write_text(text)
    old = tmp_path / f"packet-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    folder.rename(old)
    opened = packet.read(old)
    assert (opened.design, opened.controls) == ("rating", 0)
    with closing(sqlite3.connect(tmp_path / "r.db", isolation_level=None)) as db:
        db.executescript(
            "CREATE TABLE packet (hash TEXT PRIMARY KEY); CREATE TABLE reader (slot INTEGER PRIMARY KEY, token TEXT NOT"
            " NULL UNIQUE, id TEXT NOT NULL UNIQUE, pseudonym TEXT UNIQUE COLLATE NOCASE);"
            f"INSERT INTO packet VALUES ('{opened.hash}'); INSERT INTO reader VALUES (0, 'token', 'abc123', 'Anna');"
        )
    there = Store(tmp_path / "r.db", opened.hash, len(opened.orders), opened.design)
    assert there.rater("token")["pseudonym"] == "Anna" and len(there.raters()) == 3


def test_a_forced_choice_from_samples_to_scores(tmp_path, monkeypatch, capsys):
    """By the commands; the raters are simulated: one finds the real slice always, one says left throughout."""
    for name, found in {"real": real_slices(people=16), **MODELS}.items():
        imageset.write(tmp_path / "samples" / name, found)
    text = (ROOT / "params.yaml").read_text().replace("  cases: 20 ", "  cases: 8 ")
    (tmp_path / "params.yaml").write_text(text.replace("design: rating ", "design: forced_choice "))
    (tmp_path / "data/reader_study").mkdir(parents=True)
    for name in ("ratings.csv", "choices.csv"):
        (tmp_path / "data/reader_study" / name).write_bytes((ROOT / "data/reader_study" / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    commands.create(tmp_path / "samples/real", tmp_path / "samples", home)
    said = capsys.readouterr().out
    assert (
        "in pairs, 8 of each of 5 models, 4 controls; 49 to rate" in said and "most raters find the real one in" in said
    )
    opened, db = commands._open(home, "")
    key = packet.read_key(home / f"key-{opened.hash}.csv", opened)
    for slot, pseudonym in enumerate(("sure", "lazy")):
        db.sign_in(slot, pseudonym)
        for position, (name, _) in enumerate(opened.orders[slot]):
            real = ("left", "right")[key["source"][name.split("-")[0]] != "real"]
            chosen = real if pseudonym == "sure" else "left"
            db.add(slot, position, name, {"chosen": chosen, "seconds": 1.0, "comment": ""})
    commands.export(None, "", home)
    before = Path("data/reader_study/choices.csv").read_bytes()
    commands.export(None, "", home)
    assert Path("data/reader_study/choices.csv").read_bytes() == before
    frame = ratings.read(Path("data/reader_study/choices.csv"), "forced_choice")
    assert len(frame) == 98 and (frame["real"] == frame["chosen"])[frame["reader"].str.startswith("sure")].all()
    scores.main(
        Path("data/reader_study/ratings.csv"), Path("data/reader_study/choices.csv"), tmp_path / "samples/real",
        tmp_path / "samples", tmp_path / "raters.json",
    )  # fmt: skip
    tree = json.loads((tmp_path / "raters.json").read_text())
    assert set(tree["forced_choice"]) == set(comparison.MODELS) and "models" not in tree
    assert all(group["inattentive"] == 1 and group["cases"] == 8 for group in tree["forced_choice"].values())
    attended = {name.split(".")[0]: of for name, of in tree["attention"].items()}
    assert attended["sure"] == {"controls": 4, "right": 1, "one_answer": 0, "inattentive": 0}
    assert attended["lazy"]["one_answer"] == attended["lazy"]["inattentive"] == 1
    assert tree["counts"]["inattentive"] == 1 and tree["counts"]["raters"] == 2


def test_errors_are_explained(tmp_path):
    assert "make one with" in command("serve", "--home", str(tmp_path), ok=False)
    with pytest.raises(UserError, match="cannot be read as ratings"):
        commands.merge([tmp_path / "none.csv"], tmp_path / "out.csv")
    with pytest.raises(UserError, match="is no ImageSet"):
        commands.create(tmp_path, tmp_path, tmp_path)
    assert list(tmp_path.iterdir()) == []
    said = command("--help")
    assert all(word in said for word in ("create", "serve", "export", "merge"))


def test_a_taken_port_is_named(tmp_path):
    write_packet(tmp_path)
    process, links = start(tmp_path)
    try:
        port = re.search(r":(\d+)/", links[0])[1]
        assert f"port {port}" in command("serve", "--home", str(tmp_path), "--port", port, ok=False)
        with pytest.raises(urllib.error.HTTPError) as refused:  # another name for this machine
            request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": f"rebound.example:{port}"})
            urllib.request.urlopen(request, timeout=10)
        assert refused.value.code == 400
    finally:
        process.terminate()
        assert process.wait(10) is not None


def test_time_in_the_store_is_short(tmp_path):
    """One transaction on the disk a rating, still far below what a rater would notice."""
    db = Store(tmp_path / "r.db", "a" * 16, 1)
    start = time.perf_counter()
    for position in range(50):
        db.add(0, position, "0" * 16, ANSWER | {"tags": ""})
    assert (time.perf_counter() - start) / 50 < 0.2
