"""The classifier and its arms: on pictures whose answer is known, and the stage as it is run."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pydantic import ValidationError
from sklearn.metrics import f1_score, roc_auc_score

from stages import utility as stage
from synthmri import imageset
from synthmri.evaluation import downstream

SMALL = downstream.Utility(
    image_px=16, steps=30, batch_size=16, learning_rate=5e-3, synthetic_share=0.5, fractions=(0.25, 1.0),
    trainings=2,
)  # fmt: skip


def pictures(labels: np.ndarray, *, seed: int, truth: bool = True) -> np.ndarray:
    """uint8 (N, 16, 16): noise with a bright square, small in class 0 and large in class 1; without truth at random."""
    rng = np.random.default_rng(seed)
    shown = labels if truth else rng.integers(0, 2, len(labels))
    images = rng.integers(0, 60, (len(labels), 16, 16))
    for image, label in zip(images, shown, strict=True):
        x, y, side = *rng.integers(3, 7, 2), 3 + 4 * label
        image[y : y + side, x : x + side] += 150
    return images.astype(np.uint8)


def labelled(people: int, *, seed: int, truth: bool = True, each: int = 6) -> downstream.Labelled:
    who = np.repeat(np.arange(people), each)
    labels = who % 2
    return downstream.Labelled(downstream.shrunk(pictures(labels, seed=seed, truth=truth), 16), labels, who)


def synthetic(*, truth: bool, n: int = 80):
    labels = np.arange(n) % 2
    return downstream.shrunk(pictures(labels, seed=9, truth=truth), 16), labels


@pytest.fixture(scope="module")
def learned():
    """Synthetic slices that show the classes, and real training slices whose labels are wrong half of the time."""
    return downstream.measured(
        labelled(8, seed=1, truth=False), labelled(10, seed=2), synthetic(truth=True), 2, SMALL, seed=0
    )  # fmt: skip


def test_useful_synthetic_slices_are_found_useful(learned):
    share = learned["both_augmented"]["100"]
    assert share["auroc"] > 0.8 and share["auroc_gain_low"] > 0 and share["auroc_p"] < 0.05
    assert learned["synthetic_augmented"]["0"]["auroc_low"] > 0.7
    assert downstream.sentence(learned, ["a", "b"]).startswith("**Synthetic slices helped**")


def test_every_arm_and_share_is_there(learned):
    assert list(learned) == list(downstream.ARMS)
    assert list(learned["real"]) == ["25", "100"] and list(learned["synthetic_augmented"]) == ["0"]
    assert learned["real"]["25"]["train_subjects"] == 2 and learned["real"]["100"]["train_slices"] == 48
    assert "auroc_gain" not in learned[downstream.RIVAL]["100"]
    for line in downstream.markdown(learned).splitlines():
        assert line.count("|") == 7


def test_useless_synthetic_slices_are_not_found_useful():
    result = downstream.measured(labelled(8, seed=1), labelled(10, seed=2), synthetic(truth=False), 2, SMALL, seed=0)
    assert result["real"]["100"]["auroc_low"] > 0.7
    assert result["synthetic_augmented"]["0"]["auroc_gain_high"] < 0
    assert "Synthetic slices helped" not in downstream.sentence(result, ["a", "b"])


def test_a_task_that_cannot_be_learnt_is_called_so():
    chance = {"auroc": 0.52, "auroc_low": 0.3, "auroc_high": 0.7}
    gain = {"auroc_gain": 0.1, "auroc_gain_low": 0.05, "auroc_gain_high": 0.2, "auroc_p": 0.01}
    result = {downstream.RIVAL: {"100": chance}, downstream.JUDGED: {"100": chance | gain}}
    assert "Nothing can be said" in downstream.sentence(result, ["a", "b"])


def test_scores_are_those_of_scikit_learn():
    rng, test = np.random.default_rng(0), labelled(9, seed=0)
    values = rng.dirichlet([1, 1, 1], (2, 54))
    test = downstream.Labelled(test.images, test.who % 3, test.who)
    scores = downstream._scores(values, test)
    areas = [roc_auc_score(test.labels, each, multi_class="ovr") for each in values]
    f1 = [f1_score(test.labels, each.argmax(1), average="macro") for each in values]
    assert scores["auroc"] == pytest.approx(np.mean(areas)) and scores["f1"] == pytest.approx(np.mean(f1))
    assert scores["auroc_low"] < scores["auroc"] < scores["auroc_high"]


def test_p_is_uniform_where_nothing_differs():
    """Two arms of random predictions, alike within a person: a test that took slices for people would reject often."""
    rng, test = np.random.default_rng(0), labelled(10, seed=0)
    rejected = 0
    for _ in range(100):
        first, second = (rng.random(10)[test.who] + 0.05 * rng.random(60) for _ in range(2))
        arms = [np.stack([1 - each, each], 1)[None] for each in (first, second)]
        rejected += downstream._against(*arms, test)["auroc_p"] < 0.05
    assert rejected <= 12


def test_an_arm_against_itself_gains_nothing():
    values = np.random.default_rng(0).dirichlet([1, 1], (2, 60))
    found = downstream._against(values, values, labelled(10, seed=0))
    assert found["auroc_gain"] == found["f1_gain"] == found["auroc_gain_low"] == found["auroc_gain_high"] == 0
    assert found["auroc_p"] == found["f1_p"] == 1


def test_predictions_depend_on_their_seed_alone():
    real = labelled(4, seed=1)
    arguments = ([(real.images, real.labels)], [1.0], real.images, 2, SMALL)
    first = downstream.predictions(*arguments, augment=True, seed=3)
    torch.rand(5)
    assert np.array_equal(first, downstream.predictions(*arguments, augment=True, seed=3))
    assert not np.allclose(first, downstream.predictions(*arguments, augment=True, seed=4))


def test_fewer_people_are_whole_and_nested_and_of_every_class():
    train = labelled(20, seed=0, each=3)
    before = set()
    for fraction, people in ((0.01, 2), (0.25, 4), (0.5, 10), (1.0, 20)):
        rows = downstream.few(train.labels, train.who, fraction, seed=5)
        kept = set(train.who[rows])
        assert len(kept) == people and len(rows) == 3 * people and before <= kept
        assert set(train.labels[rows]) == {0, 1}
        before = kept


def test_people_with_slices_of_both_labels_are_a_kind_of_their_own():
    labels, who = np.array([0, 1, 0, 0, 1, 1, 0, 1]), np.array([0, 0, 1, 1, 2, 2, 3, 3])
    kinds = downstream.kinds(labels, who)
    assert list(kinds[[1, 2]]) == [0, 1] and kinds[0] == kinds[3] > 1
    assert downstream.obstacle(labels, (labels, who), np.array([0, 1]), ["a", "b"]) == ""
    found = downstream.obstacle(labels, (labels[2:6], who[2:6]), np.array([0, 1]), ["a", "b"])
    assert found.startswith("1 test subject(s) have the label `a`")


def test_the_verdict_is_about_all_real_slices():
    with pytest.raises(ValidationError, match="1.0 must be one of them"):
        downstream.Utility(**SMALL.model_dump() | {"fractions": (0.1, 0.5)})


def test_augmentation_keeps_what_it_shows():
    x = downstream.shrunk(pictures(np.arange(40) % 2, seed=0), 16)
    y = downstream.augmented(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape and not torch.allclose(x, y) and torch.isfinite(y).all()
    bright = (y > 0.4).float().sum((1, 2, 3))
    assert bright[1::2].mean() > 2 * bright[0::2].mean()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A place to run the stage in: ImageSets of 8 and 6 people, synthetic slices with labels, small parameters."""
    shutil.copy("params.yaml", tmp_path)
    tree = yaml.safe_load((tmp_path / "params.yaml").read_text())
    tree["utility"] = SMALL.model_dump(mode="json") | {"steps": 4, "trainings": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(tmp_path)
    for name, people in (("train", 8), ("test", 6), ("samples", 4)):
        who = np.repeat(np.arange(people), 5)
        manifest = pd.DataFrame({"label": np.array(["none", "lesions"])[who % 2]})
        manifest["subject"] = "" if name == "samples" else [f"sub-{name}-{i}" for i in who]
        imageset.write(tmp_path / name, imageset.ImageSet(pictures(who % 2, seed=len(name)), manifest))
    return tmp_path


def run(folder):
    names = {key: folder / f"utility.{key}" for key in ("json", "md", "png")}
    stage.main(*(folder / name for name in ("train", "test", "samples")), *names.values())
    return json.loads(names["json"].read_text()), names["md"].read_text(), names["png"].read_bytes()


def change(folder, name, column, values):
    found = imageset.read(folder / name)
    images, manifest = np.array(found.images), found.manifest.assign(**{column: values})
    imageset.write(folder / name, imageset.ImageSet(images, manifest, {"data": {"border_gap": 5}}))


def test_stage_says_whether_it_helped_and_gives_the_same_bytes_again(folder):
    tree, text, picture = run(folder)
    assert tree["train_subjects"] == 8 and tree["test_subjects"] == 6 and tree["synthetic_slices"] == 20
    assert set(downstream.ARMS) < set(tree) and "macro F1" in text and text.startswith("**")
    assert run(folder) == (tree, text, picture)


@pytest.mark.parametrize(
    "name, column, value, why",
    [
        ("train", "label", "none", "1 label(s)"),
        ("test", "label", "none", "0 test subject(s) have the label `lesions`"),
        ("samples", "label", "", "no synthetic slice was drawn for the label `lesions`"),
    ],
)
def test_stage_says_why_it_cannot_measure(folder, name, column, value, why):
    change(folder, name, column, value)
    tree, text, picture = run(folder)
    assert why in text and "was not measured" in text and "real" not in tree and len(picture) > 1000
    assert all(isinstance(number, float) for number in tree.values())


def test_stage_without_labels_at_all(folder):
    for name in ("train", "test", "samples"):
        change(folder, name, "label", "")
    assert "0 label(s)" in run(folder)[1]


def test_pictures_without_subjects_are_called_optimistic(folder):
    for name in ("train", "test"):
        change(folder, name, "subject", "")
    _, text, _ = run(folder)
    assert "runs of 5 files stand for people, so the intervals are optimistic" in text
