"""Masks: how networks learn to draw them, and what synthetic pairs bring, on pictures whose answer is known."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from stages import sample
from stages import segment as stage
from synthmri import imageset
from synthmri.errors import UserError
from synthmri.evaluation import pairs, segmentation
from synthmri.training import masks

SIZE = 32


def drawn(people: int, *, seed: int, wrong: bool = False, each: int = 4) -> segmentation.Pairs:
    """Noise with a bright square, the lesion, and a darker one, which is none; people of odd numbers have neither.
    wrong: masks that are anywhere."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(people), each)
    images = rng.integers(0, 60, (len(who), SIZE, SIZE)).astype(np.uint8)
    marks = np.zeros_like(images)
    for image, mask, person in zip(images, marks, who, strict=True):
        top, left, other, place = rng.integers(0, SIZE - 8, 4)
        if person % 2 == 0:
            image[top : top + 8, left : left + 8] = 200
            if wrong:
                top, left = rng.integers(0, SIZE - 8, 2)
            mask[top : top + 8, left : left + 8] = 255
        else:
            image[other : other + 8, place : place + 8] = 110
    return segmentation.Pairs(images, marks, who)


def test_crops_are_pieces_of_the_images_some_of_them_mirrored():
    source = np.arange(2 * 20 * 20).reshape(2, 20, 20).astype(np.uint8)
    source[1] += 100
    (crops,) = masks.crops([source], 40, 8, torch.Generator().manual_seed(0))
    windows = np.lib.stride_tricks.sliding_window_view(source, (8, 8), axis=(1, 2)).reshape(-1, 8, 8)
    plain = [any((crop == w).all() for w in windows) for crop in crops]
    mirrored = [any((crop[:, ::-1] == w).all() for w in windows) for crop in crops]
    assert all(a or b for a, b in zip(plain, mirrored, strict=True)) and any(plain) and any(mirrored)


def test_crops_with_masks_are_cut_alike_and_hold_lesions_far_more_often():
    images = np.random.default_rng(0).integers(0, 255, (20, 64, 64)).astype(np.uint8)
    marks = np.zeros_like(images)
    marks[3, 0, 63] = marks[3, 63, 0] = 255  # in corners of one slice: crops must stay within it
    images[marks > 0] = 255
    found, their_marks = masks.crops([images, marks], 200, 16, torch.Generator().manual_seed(0), masks.marked(marks))
    assert found.shape == their_marks.shape == (200, 16, 16)
    assert (found[their_marks > 0] == 255).all()
    with_lesion = their_marks.any(axis=(1, 2)).mean()
    assert 0.25 <= with_lesion < 0.3  # by chance alone about 0.0004


def test_marked_are_those_with_a_lesion_however_many_there_are(monkeypatch):
    monkeypatch.setattr(masks, "PIECE", 3)
    marks = np.zeros((8, 4, 4), np.uint8)
    marks[[1, 6, 7], 2, 2] = 255
    np.testing.assert_array_equal(masks.marked(marks), [1, 6, 7])


def test_the_loss_is_least_for_the_mask_itself():
    inside = torch.from_numpy(drawn(2, seed=0).masks[:4] > 127).float()
    right, nothing = 20 * (2 * inside - 1), torch.full_like(inside, -20)
    assert masks.loss(right, inside) == pytest.approx(0, abs=1e-3)
    # Nothing drawn: Dice is lost, 1 - 1 / (1 + pixels), and cross-entropy is 20 for each pixel inside.
    pixels = float(inside.sum())
    expected = 1 - 1 / (1 + pixels) + 20 * float(inside.mean())
    assert masks.loss(nothing, inside) == pytest.approx(expected, rel=1e-4)


def test_dice_of_known_overlap():
    a, b = np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8), np.uint8)
    a[0, :4], b[0, 2:6] = 255, 255  # 32 pixels each, 16 in common
    assert pairs.dice(a, b) == 0.5
    assert pairs.dice(a, a) == 1 and pairs.dice(a * 0, b * 0) == 1 and pairs.dice(a, b * 0) == 0
    with pytest.raises(UserError):
        pairs.dice(a, b[:1])


def test_shrinking_keeps_a_pixel_where_most_of_what_it_covers_is_inside():
    marks = np.zeros((1, 4, 4), np.uint8)
    marks[0, :2, :2] = 255
    marks[0, 0, 2:] = 255  # two of four: not most
    marks[0, 2, 2] = 255
    found = segmentation.pairs(marks, marks, np.zeros(1, int), 2)
    np.testing.assert_array_equal(found.masks[0], [[255, 255], [0, 0]])
    np.testing.assert_array_equal(found.images[0], [[255, 128], [0, 64]])


def test_dice_of_a_person_counts_all_slices_and_people_without_lesions_are_left_out():
    part = drawn(4, seed=0)
    found = part.masks.copy()
    found[part.who == 2] = 0
    found[part.who == 3] = 255
    np.testing.assert_array_equal(segmentation.dice(found, part), [1, 0])


def test_a_slice_without_lesions_is_clear_where_none_is_drawn():
    part = drawn(4, seed=0)  # people 1 and 3 have none, in four slices each
    found = part.masks.copy()
    found[4, 0, 0] = 255
    assert segmentation.clear(found, part) == 7 / 8
    assert np.isnan(segmentation.clear(found[:4], segmentation.Pairs(*(each[:4] for each in part))))


def test_the_smallest_p_is_that_of_all_swapped():
    for people in (3, 5, 8):
        least = segmentation.smallest_p(people)
        assert least == 2 / 2**people and segmentation._swapped(np.ones(people)) == least
    assert segmentation.smallest_p(30) == 1 / 1001


def test_few_people_are_part_of_more_and_one_has_lesions():
    part = drawn(20, seed=0)
    for seed in range(5):
        small, large = (set(part.who[segmentation.few(part, share, seed)]) for share in (0.1, 0.5))
        assert len(small) == 2 and len(large) == 10 and small < large
        assert any(person % 2 == 0 for person in small)
    assert len(segmentation.few(part, 1.0, 0)) == len(part.who)


@pytest.fixture(scope="module")
def helped():
    """One real training person of ten has wrong masks, and so have the others: synthetic pairs alone know it."""
    return segmentation.measured(
        drawn(10, seed=1, wrong=True), drawn(6, seed=2), drawn(24, seed=3), drawn(20, seed=4), 40, seed=0
    )


def test_a_known_gain_is_found(helped):
    assert list(helped["real"]) == list(helped["both"]) == ["10", "100"] and list(helped["synthetic"]) == ["0"]
    scores = helped["synthetic"]["0"]
    assert scores["dice"] > 0.8 and segmentation.effect(scores) == 1
    assert scores["dice_low"] <= scores["dice"] <= scores["dice_high"]
    assert sum(helped[name]["100"]["rival"] for name in segmentation.RIVALS) == 1
    rival = next(helped[name]["100"] for name in segmentation.RIVALS if helped[name]["100"]["rival"])
    assert scores["gain"] == pytest.approx(scores["dice"] - rival["dice"])
    assert scores["p"] <= scores["p_holm"] < 0.05
    text = segmentation.sentence(helped)
    assert text.startswith("**Synthetic pairs helped** to draw masks of lesions: with all real people")
    assert "10 % of the people (1)" in text


def test_pairs_of_wrong_masks_do_harm_or_nothing():
    found = segmentation.measured(
        drawn(10, seed=1), drawn(6, seed=2), drawn(24, seed=3), drawn(20, seed=4, wrong=True), 40, seed=0
    )
    effects = [segmentation.effect(scores) for arm in found.values() for scores in arm.values() if "p" in scores]
    assert max(effects) <= 0 and min(effects) == -1
    assert "did not measurably help" in segmentation.sentence(found) or "did harm" in segmentation.sentence(found)


def test_equal_arms_are_seldom_told_apart():
    """Both arms score by luck alone: the swapping test calls about one in twenty a difference."""
    rng = np.random.default_rng(0)
    hits = sum(segmentation._swapped(rng.normal(size=12)) < 0.05 for _ in range(200))
    assert 2 <= hits <= 20


def test_the_same_seed_trains_the_same_network():
    part = drawn(4, seed=0)
    once, again, other = (
        segmentation.trained(part, part, segmentation.ARMS["both"], 3, seed=seed).last.weight for seed in (0, 0, 1)
    )
    assert torch.equal(once, again) and not torch.equal(once, other)


@pytest.mark.parametrize(
    "change, why",
    [
        ({"train": 0}, "0 training"), ({"val": 0}, "0 validation"), ({"test": 0}, "0 test"),
        ({"synthetic": 0}, "no synthetic slice has a lesion"), ({}, ""),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_told(change, why):
    parts = {name: drawn(6, seed=k) for k, name in enumerate(("train", "val", "test", "synthetic"))}
    parts |= {name: part._replace(masks=part.masks * 0) for name, part in parts.items() if name in change}
    assert why in segmentation.obstacle(*parts.values()) and bool(segmentation.obstacle(*parts.values())) == bool(why)


def _write(folder, part: segmentation.Pairs, *, real: bool, masked: bool = True):
    labels = np.where(part.masks.any(axis=(1, 2)), "lesions", "none")
    manifest = pd.DataFrame({"subject": [f"p{folder.name}{i}" for i in part.who], "label": labels})
    manifest = manifest if real else manifest.drop(columns="subject")
    imageset.write(folder, imageset.ImageSet(part.images, manifest, {}, part.masks if masked else None))


@pytest.fixture
def place(tmp_path, monkeypatch):
    tree = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    tree["utility"] |= {"steps": 2, "image_px": 32}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    for number, name in enumerate(("train", "val", "test", "samples")):
        _write(tmp_path / name, drawn(6, seed=number), real=name != "samples")
    return tmp_path


def run(place, train="train"):
    names = (train, "val", "test", "samples", "s.json", "s.md", "s.png")
    stage.main(*(place / name for name in names))
    return json.loads((place / "s.json").read_text()), (place / "s.md").read_text()


def test_the_stage_writes_numbers_words_and_a_picture(place):
    tree, text = run(place)
    assert tree["test_subjects_with_lesions"] == 3 and tree["synthetic_slices_with_lesions"] == 12
    assert tree["marked"] == {label: {"training": share, "synthetic": share} for label, share in
                              (("lesions", 1.0), ("none", 0.0))}  # fmt: skip
    assert "Of those called lesions: 100 % of the synthetic and 100 % of the training slices." in text
    assert set(segmentation.ARMS) <= set(tree) and "| trained on |" in text and "3 people with lesions" in text
    before = {name: (place / name).read_bytes() for name in ("s.json", "s.md", "s.png")}
    run(place)
    assert before == {name: (place / name).read_bytes() for name in before}


def test_pairs_against_their_label_are_left_out(place):
    before, _ = run(place)
    samples = imageset.read(place / "samples")
    masks = np.array(samples.masks)
    ill = masks.any(axis=(1, 2))
    masks[np.flatnonzero(~ill)[:2], 3:9, 3:9] = 255  # "none" with a lesion
    masks[np.flatnonzero(ill)[:3]] = 0  # "lesions" without
    imageset.write(place / "wrong", imageset.ImageSet(np.array(samples.images), samples.manifest, {}, masks))
    (place / "samples").rename(place / "right")
    (place / "wrong").rename(place / "samples")
    tree, text = run(place)
    assert before["synthetic_slices_against_their_label"] == 0 and tree["synthetic_slices_against_their_label"] == 5
    assert " 5 synthetic slices whose mask is against their label" in text and set(segmentation.ARMS) <= set(tree)
    odd = imageset.read(place / "train").manifest.assign(label="mixed")
    train = imageset.read(place / "train")
    imageset.write(place / "mixed", imageset.ImageSet(np.array(train.images), odd, {}, np.array(train.masks)))
    assert run(place, "mixed")[0]["synthetic_slices_against_their_label"] == 0  # of such labels nothing is known


def test_a_leak_is_caught(place):
    test = imageset.read(place / "test")
    imageset.write(place / "samples", imageset.ImageSet(test.images, test.manifest[["label"]], {}, test.masks))
    assert "no synthetic slice has a lesion" in run(place)[1]  # all of them were test slices, and left out
    again = drawn(6, seed=0)
    imageset.write(place / "leaking", imageset.ImageSet(again.images, test.manifest, {}, again.masks))
    with pytest.raises(UserError, match=r"6 subject\(s\) of the test slices are in training too; split them anew"):
        run(place, "leaking")


def test_without_masks_the_stage_says_so_and_goes_on(place):
    _write(place / "samples", drawn(6, seed=9), real=False, masked=False)
    tree, text = run(place)
    assert tree["synthetic_slices_with_lesions"] == 0 and tree["training_slices_with_lesions"] == 12
    assert set(tree).isdisjoint(segmentation.ARMS)
    assert "there are no masks of the synthetic slices" in text and (place / "s.png").is_file()


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
def test_samples_of_a_model_that_draws_masks_come_with_them(place, tiny_model):
    shutil.copytree(tiny_model, place / "model")
    tree = yaml.safe_load((place / "params.yaml").read_text())
    tree["sample"] |= {"n": 3, "steps": 2, "batch_size": 2}
    (place / "params.yaml").write_text(yaml.safe_dump(tree))
    words = pd.DataFrame(
        {"subject": ["a"], "contrast": "FLAIR", "plane": "axial", "depth_mm": "60", "label": "lesions"}
    )
    slices = np.random.default_rng(0).integers(0, 255, (1, 64, 64)).astype(np.uint8)
    imageset.write(place / "train", imageset.ImageSet(slices, words))

    def drawn() -> imageset.ImageSet:
        sample.main("latent_diffusion", place / "model", place / "train", place / "drawn", place / "sheet.png")
        return imageset.read(place / "drawn")

    without = np.array(drawn().images)
    assert drawn().masks is None
    config = place / "model/vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"third_channel": "mask"}))
    found = drawn()
    assert found.masks.shape == (3, 64, 64) and set(np.unique(found.masks)) <= {0, 255}
    assert not (found.images == without).all()  # blue is no part of the image any more
    assert (np.abs(found.images.astype(int) - without) < 120).all()
