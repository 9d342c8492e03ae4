"""The classifier and its arms: on pictures whose answer is known, and the stage as it is run."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from stages import utility as stage
from synthmri import imageset
from synthmri.errors import UserError
from synthmri.evaluation import auroc, classifier, downstream, features, usefulness

SMALL = downstream.Utility(
    image_px=32, views=2, steps=40, fractions=(0.25, 1.0),
    trainings=3, external="",
)  # fmt: skip
NAMES = ["lesions", "none"]


@pytest.fixture(autouse=True, scope="module")
def _small():
    """Trainings of few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "BATCH", 32)
        patch.setattr(classifier, "LEARNING_RATE", 1e-2)
        yield


def pictures(labels: np.ndarray, *, seed: int) -> np.ndarray:
    """uint8 (N, 32, 32): coarse noise with a bright square, small in class 0 and large in class 1."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 90, (len(labels), 8, 8)).repeat(4, 1).repeat(4, 2)
    for image, label in zip(images, labels, strict=True):
        x, y, side = *rng.integers(4, 14, 2), 4 + 8 * label
        image[y : y + side, x : x + side] += 120
    return images.astype(np.uint8)


def labelled(people: int, *, seed: int, shift: float = 1.5, wrong: float = 0, each: int = 6) -> classifier.Labelled:
    """Features of which one tells the classes apart and one the person; labels are wrong in a share of the slices.
    People of even numbers have both classes."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(people), each)
    labels = np.where(who % 2, rng.integers(0, 2, len(who)), np.arange(len(who)) % 2)
    views = rng.normal(size=(len(who), 2, 8)).astype(np.float32)
    views[:, :, 0] += shift * labels[:, None]
    views[:, :, 1] += rng.normal(size=people)[who, None]
    told = np.where(rng.random(len(who)) < wrong, 1 - labels, labels)
    return classifier.Labelled(views, told, who)


def test_features_are_of_the_size_asked_for_and_the_first_view_is_the_slice():
    images = pictures(np.arange(5) % 2, seed=0)
    found = classifier.seen(images, SMALL.image_px, count=3, seed=0)
    assert found.shape == (5, 3, 1280) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], features.effnet(images), rtol=1e-4, atol=1e-4)  # 32 px as they are
    again = classifier.seen(images, SMALL.image_px, count=3, seed=1)
    np.testing.assert_array_equal(found[:, 0], again[:, 0])
    assert all(np.abs(found[:, 0] - x).mean() > 1e-3 for x in (found[:, 1], found[:, 2], again[:, 1]))


@pytest.fixture(scope="module")
def learned():
    """Synthetic slices that show the classes, and real training slices whose labels are wrong half of the time."""
    return downstream.measured(
        labelled(8, seed=1, wrong=0.5), labelled(6, seed=3), {"test": labelled(12, seed=2)},
        labelled(20, seed=4, shift=3), NAMES, SMALL, seed=0,
    )["test"]  # fmt: skip


def test_a_known_gain_is_found(learned):
    scores = learned["both_4"]["100"]
    assert scores["auroc"] > 0.8 and downstream.effect(scores) == 1 and scores["brier_gain"] < 0
    assert learned["synthetic"]["0"]["auroc_low"] > 0.7
    assert usefulness.sentence(learned, NAMES).startswith("**Synthetic slices helped** to tell lesions from none")
    assert downstream.effect(learned["both_4"]["25"]) == 1
    assert "With 25 % of the people (2) **they helped**" in usefulness.sentence(learned, NAMES)


def test_every_arm_and_share_is_there(learned):
    assert list(learned) == list(downstream.ARMS)
    assert list(learned["real"]) == ["25", "100"] and list(learned["synthetic"]) == ["0"]
    assert learned["real"]["25"]["train_subjects"] == 2 and learned["real"]["100"]["train_slices"] == 48
    assert learned["both_1"]["25"]["synthetic_slices"] == 120 and learned["real"]["25"]["synthetic_slices"] == 0
    for share in ("25", "100"):
        area = {name: learned[name][share]["val_auroc"] for name in downstream.RIVALS}
        (rival,) = [name for name in downstream.RIVALS if learned[name][share]["rival"]]
        assert area[rival] == max(area.values())
    assert all(("auroc_gain" in rows["25"]) == bool(downstream.ARMS[name].synthetic)
               for name, rows in learned.items() if name != "synthetic")  # fmt: skip
    for line in usefulness.markdown(learned).splitlines():
        assert line.count("|") == 9


def test_holm_is_over_the_arms_of_a_share(learned):
    rows = [scores["25"] for scores in learned.values() if "auroc_p" in scores.get("25", {})]
    assert len(rows) == 6
    rank = sorted(rows, key=lambda row: row["auroc_p"])
    assert rank[0]["auroc_p_holm"] == pytest.approx(min(1, 6 * rank[0]["auroc_p"]))
    assert rank[-1]["auroc_p_holm"] >= rank[-1]["auroc_p"]
    assert learned["synthetic"]["0"]["auroc_p_holm"] >= learned["synthetic"]["0"]["auroc_p"]


def test_copies_of_the_real_slices_are_seldom_found_useful(monkeypatch):
    """Nothing is to be gained from what the real arms know: 20 seeds, each with seven arms of such slices. One in
    twenty may be found by chance, three by bad luck (P = 0.016 for more). Harm is looked for in the arm that trains for
    as long as the longest rival: of the shorter ones it may be true."""
    monkeypatch.setattr(auroc, "ROUNDS", 400)
    p = SMALL.model_copy(update={"fractions": (1.0,), "steps": 20})
    helped = harmed = 0
    for seed in range(20):
        train = labelled(8, seed=seed)
        test, val = labelled(12, seed=100 + seed), labelled(4, seed=200 + seed)
        found = downstream.measured(train, val, {"test": test}, train, NAMES, p, seed=seed)["test"]
        effects = [downstream.effect(shares["100" if "100" in shares else "0"]) for name, shares in found.items()
                   if downstream.ARMS[name].synthetic]  # fmt: skip
        helped += max(effects) > 0
        harmed += downstream.effect(found["both_4"]["100"]) < 0
    assert helped <= 3 and harmed <= 3


def test_useless_synthetic_slices_are_not_found_useful():
    result = downstream.measured(
        labelled(8, seed=1), labelled(6, seed=3), {"test": labelled(12, seed=2)}, labelled(20, seed=4, wrong=0.5),
        NAMES, SMALL, seed=0,
    )["test"]  # fmt: skip
    assert result["real_augmented"]["100"]["auroc_low"] > 0.7
    assert downstream.effect(result["synthetic"]["0"]) == -1
    assert "Synthetic slices helped" not in usefulness.sentence(result, NAMES)


def test_where_nothing_is_learnt_nothing_is_said():
    result = downstream.measured(
        labelled(8, seed=1, shift=0), labelled(6, seed=3, shift=0), {"test": labelled(12, seed=5, shift=0)},
        labelled(8, seed=4, shift=0), NAMES, SMALL, seed=0,
    )["test"]  # fmt: skip
    assert usefulness.sentence(result, NAMES).startswith("**Nothing can be said")


def tree(**arms) -> dict:
    """Of each arm at 100 %: its AUROC, gain, ends and p by Holm; the first is the rival."""
    rows = {}
    for name, arm in downstream.ARMS.items():
        value, gain, low, high, p = arms.get(name, (0.8, 0.0, -0.1, 0.1, 1.0))
        row = {"auroc": value, "auroc_low": value - 0.1, "auroc_high": value + 0.1, "train_subjects": 9.0}
        row |= (
            {"auroc_gain": gain, "auroc_gain_low": low, "auroc_gain_high": high, "auroc_p_holm": p}
            if arm.synthetic else {"rival": float(name == "real_repeated")}
        )  # fmt: skip
        rows[name] = {"100" if arm.real else "0": row}
    return rows


def test_the_sentence_is_about_the_best_arm_against_the_best_without_synthetic_slices():
    said = usefulness.sentence(tree(), NAMES)
    assert "did not measurably help" in said and downstream.ARMS["real_repeated"].title in said
    helped = tree(both_4=(0.9, 0.1, 0.05, 0.15, 0.01), rarest=(0.95, 0.2, -0.01, 0.4, 0.01))
    said = usefulness.sentence(helped, NAMES)
    assert "**Synthetic slices helped**" in said and "1 : 4" in said  # the larger gain is not sure
    harm = (0.7, -0.1, -0.15, -0.05, 0.01)
    said = usefulness.sentence(tree(synthetic=harm, both_4=harm), NAMES)
    assert "did not measurably help" in said and "2 of 7 arms with synthetic slices did harm" in said
    said = usefulness.sentence(tree(**dict.fromkeys(downstream.ARMS, harm)), NAMES)
    assert "**Synthetic slices did harm**" in said


def test_scores_are_those_of_scikit_learn():
    rng, test = np.random.default_rng(0), labelled(9, seed=0)
    values = rng.dirichlet([1, 1, 1], (2, 54))
    test = classifier.Labelled(test.views, test.who % 3, test.who)
    scores = downstream._scores(values, test, ["a", "b", "c"])
    areas = [roc_auc_score(test.labels, each, multi_class="ovr") for each in values]
    f1 = [f1_score(test.labels, each.argmax(1), average="macro") for each in values]
    assert scores["auroc"] == pytest.approx(np.mean(areas)) and scores["f1"] == pytest.approx(np.mean(f1))
    assert scores["auroc_low"] < scores["auroc"] < scores["auroc_high"]
    weights = np.repeat(1 / np.bincount(test.labels), 18)[np.argsort(np.argsort(test.labels, kind="stable"))]
    brier = [((each - np.eye(3)[test.labels]) ** 2).sum(1) @ weights / weights.sum() for each in values]
    assert scores["brier"] == pytest.approx(np.mean(brier))
    recall = np.mean([recall_score(test.labels, each.argmax(1), average=None) for each in values], axis=0)
    assert [row["recall"] for row in scores["labels"].values()] == pytest.approx(list(recall))
    one = np.mean([roc_auc_score(test.labels == 1, each[:, 1]) for each in values])
    assert scores["labels"]["b"]["auroc"] == pytest.approx(one)


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
    for name in downstream.SCORES:
        assert found[f"{name}_gain"] == found[f"{name}_gain_low"] == found[f"{name}_gain_high"] == 0
        assert found[f"{name}_p"] == 1


def test_classifiers_side_by_side_are_those_of_one_after_the_other():
    pool = labelled(6, seed=1)
    plans = [[classifier.Phase(20, ((rows, 1.0),))] for rows in (np.arange(36), np.arange(12))]
    arguments = {"augment": True}
    both = classifier.predictions(pool, plans, [pool.views[:, 0]], 2, seeds=[3, 4], **arguments)[0]
    for k, seed in enumerate((3, 4)):
        alone = classifier.predictions(pool, [plans[k]], [pool.views[:, 0]], 2, seeds=[seed], **arguments)[0]
        np.testing.assert_allclose(both[k], alone[0], atol=1e-5)
    assert not np.allclose(both[0], both[1], atol=1e-3)


def test_a_linear_classifier_learns_what_logistic_regression_does():
    """The same direction, found by another library (without a penalty, on the same slices)."""
    pool = labelled(20, seed=1)
    p = SMALL.model_copy(update={"steps": 800})
    plans = [[classifier.Phase(p.steps, ((np.arange(120), 1.0),))]]
    found = classifier.predictions(pool, plans, [pool.views[:, 0]], 2, augment=False, seeds=[0])[0][0, :, 1]
    model = LogisticRegression(class_weight="balanced").fit(pool.views[:, 0], pool.labels)
    assert np.corrcoef(found, model.predict_proba(pool.views[:, 0])[:, 1])[0, 1] > 0.98


def test_a_batch_has_of_each_class_as_much_and_of_each_source_its_share():
    labels = np.array([0] * 90 + [1] * 10 + [0] * 50)
    phase = classifier.Phase(500, ((np.arange(100), 1.0), (np.arange(100, 150), 4.0)))
    rows = classifier.batches(phase, labels, 32, np.random.default_rng(0))
    assert rows.shape == (500, 32)
    assert (labels[rows] == 1).mean() == pytest.approx(0.5, abs=0.02)  # of the first source alone, which holds it
    assert (rows[labels[rows] == 0] >= 100).mean() == pytest.approx(0.8, abs=0.02)


def test_an_arm_sees_as_many_real_slices_whatever_it_has_of_synthetic_ones():
    real, made = np.arange(10), np.arange(10, 30)
    steps = {name: [phase.steps for phase in downstream.plan(arm, real, made, SMALL)]
             for name, arm in downstream.ARMS.items()}  # fmt: skip
    assert steps == {
        "real": [40], "real_augmented": [40], "real_repeated": [200], "synthetic": [40], "both_quarter": [50],
        "both_1": [80], "both_4": [200], "synthetic_first": [40, 40], "filtered": [80], "rarest": [80],
    }  # fmt: skip
    sources = downstream.plan(downstream.ARMS["both_4"], real, made, SMALL)[0].sources
    assert [share / sum(s for _, s in sources) * 200 for _, share in sources] == [40, 160]
    first, after = downstream.plan(downstream.ARMS["synthetic_first"], real, made, SMALL)
    assert first.sources[0][0] is made and after.sources[0][0] is real
    (alone,) = downstream.plan(downstream.ARMS["filtered"], real, made[:0], SMALL)
    assert len(alone.sources) == 1 and alone.steps == 80


def test_the_filter_keeps_what_is_recognised_and_lies_near():
    rng = np.random.default_rng(0)
    real, found = rng.normal(size=(30, 4)), rng.normal(size=(40, 4))
    found[7] += 50
    sure = np.full((40, 2), 0.5)
    sure[:20] = [0.9, 0.1]
    kept = downstream.filtered(sure, np.zeros(40, int), found, real, 0.6)
    assert not kept[7] and not kept[20:].any() and kept[:20].sum() >= 16


def test_fewer_people_are_whole_and_nested_and_of_every_class():
    who = np.repeat(np.arange(20), 3)
    train = classifier.Labelled(np.zeros((60, 1, 1)), who % 2, who)
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
    x = torch.from_numpy(pictures(np.arange(40) % 2, seed=0))[:, None].float() / 255
    y = classifier.augmented(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape and not torch.allclose(x, y) and torch.isfinite(y).all()
    bright = (y > 0.4).float().sum((1, 2, 3))
    assert bright[1::2].mean() > 2 * bright[0::2].mean()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A place to run the stage in: ImageSets of 8, 4 and 6 people, a second hospital's of 5, synthetic slices with
    labels, small parameters."""
    shutil.copy("params.yaml", tmp_path)
    tree = yaml.safe_load((tmp_path / "params.yaml").read_text())
    tree["utility"] = SMALL.model_dump(mode="json") | {"steps": 4, "trainings": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "external").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(auroc, "ROUNDS", 50)
    for name, people in (("train", 8), ("val", 4), ("test", 6), ("samples", 4), ("external/other", 5)):
        who = np.repeat(np.arange(people), 5)
        manifest = pd.DataFrame({"label": np.array(["none", "lesions"])[who % 2]})
        manifest["subject"] = "" if name == "samples" else [f"sub-{name}-{i}" for i in who]
        imageset.write(tmp_path / name, imageset.ImageSet(pictures(who % 2, seed=sum(name.encode())), manifest))
    return tmp_path


def run(folder):
    names = {key: folder / f"utility.{key}" for key in ("json", "md", "png")}
    sets = ("train", "val", "test", "samples", "external")
    stage.main(*(folder / name for name in sets), *names.values())
    return json.loads(names["json"].read_text()), names["md"].read_text(), names["png"].read_bytes()


def change(folder, name, column, values):
    found = imageset.read(folder / name)
    images, manifest = np.array(found.images), found.manifest.assign(**{column: values})
    imageset.write(folder / name, imageset.ImageSet(images, manifest, {"data": {"border_gap": 5}}))


def test_stage_says_whether_it_helped_and_gives_the_same_bytes_again(folder):
    tree, text, picture = run(folder)
    assert tree["train_subjects"] == 8 and tree["test_subjects"] == 6 and tree["synthetic_slices"] == 20
    assert set(downstream.ARMS) < set(tree) and "macro F1" in text and text.startswith("**")
    assert tree["synthetic_slices_left_out"] == 0 and "external" not in tree and "left out" not in text
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
    for name in ("train", "val", "test", "samples"):
        change(folder, name, "label", "")
    assert "0 label(s)" in run(folder)[1]


def test_where_validation_people_cannot_tell_the_rival_is_the_one_that_augments(folder):
    change(folder, "val", "label", "none")
    tree, text, _ = run(folder)
    for share in tree["real"]:
        assert [name for name in downstream.RIVALS if tree[name][share]["rival"]] == ["real_augmented"]
    assert not any("val_auroc" in scores for name in downstream.ARMS for scores in tree[name].values())
    assert "as those hold one label, the one with augmentation" in text


def test_one_family_of_tests_is_that_of_all_people_and_one_that_of_fewer():
    def arm(*values):
        return {share: {"auroc_p": p} for share, p in zip(("10", "25", "100"), values, strict=False)}

    tree = {"a": arm(0.01, 0.02, 0.03), "b": arm(0.2, 0.3, 0.02), "c": {"0": {"auroc_p": 0.5}}}
    downstream._correct(tree, "100")
    assert [tree["a"][share]["auroc_p_holm"] for share in ("10", "25")] == pytest.approx([0.04, 0.06])
    assert [tree[name]["100"]["auroc_p_holm"] for name in "ab"] == pytest.approx([0.06, 0.06])
    assert tree["c"]["0"]["auroc_p_holm"] == 0.5


def test_pictures_without_subjects_are_called_optimistic(folder):
    for name in ("train", "test"):
        change(folder, name, "subject", "")
    _, text, _ = run(folder)
    assert "runs of 5 files stand for people, so intervals are optimistic" in text


def add(folder, name, images, **columns):
    """Images more in a set, with the columns of a manifest."""
    found = imageset.read(folder / name)
    manifest = pd.concat([found.manifest, pd.DataFrame(columns)], ignore_index=True).fillna("")
    imageset.write(folder / name, imageset.ImageSet(np.concatenate([found.images, images]), manifest, found.meta))


def test_synthetic_slices_that_are_test_slices_are_left_out(folder):
    """Also mirrored, and with noise: the numbers are those of before they leaked in."""
    before, _, _ = run(folder)
    test = imageset.read(folder / "test")
    leaked = np.array(test.images[:12])
    leaked[4:8] = leaked[4:8, :, ::-1]
    noise = np.random.default_rng(0).integers(-3, 4, leaked[8:].shape)
    leaked[8:] = (leaked[8:].astype(int) + noise).clip(0, 255)
    add(folder, "samples", leaked, label=list(test.manifest["label"][:12]))
    tree, text, _ = run(folder)
    assert tree == before | {"synthetic_slices_left_out": 12}
    assert "with 20 synthetic slices. Left out, as they are test slices: 12 synthetic slices." in text


def test_training_on_test_people_is_refused(folder):
    test = imageset.read(folder / "test")
    change(folder, "test", "subject", ["sub-train-0"] * 5 + list(test.manifest["subject"][5:]))
    with pytest.raises(UserError, match=r"1 subject\(s\) of the test slices are in train too"):
        run(folder)


@pytest.mark.parametrize("name", ["train", "val"])
def test_nothing_is_learnt_or_chosen_by_test_slices(folder, name):
    before, _, _ = run(folder)
    add(folder, name, np.array(imageset.read(folder / "test").images[:2]), label=["none"] * 2, subject=["sub-x"] * 2)
    tree, text, _ = run(folder)
    key = {"train": "train", "val": "validation"}[name]
    assert tree == before | {f"{key}_slices_left_out": 2} and f"as they are test slices: 2 {key} slices" in text


def external(folder, name):
    tree = yaml.safe_load((folder / "params.yaml").read_text())
    tree["utility"]["external"] = str(folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))


def test_a_second_hospital_is_tested_on_too(folder):
    before, _, _ = run(folder)
    external(folder, "external/other")
    tree, text, _ = run(folder)
    assert tree["external_subjects"] == 5 and tree["external_slices"] == 25
    assert {name: tree[name] for name in before} == before  # the first test does not notice
    assert set(tree["external"]) == set(downstream.ARMS) and tree["external"]["real"] != tree["real"]
    assert tree["external"]["real"]["100"]["val_auroc"] == tree["real"]["100"]["val_auroc"]
    own, other = text.split("## On the external set")
    assert "25 slices of 5 people" in other and "macro F1" in own and "macro F1" in other


def test_a_second_hospital_with_one_label_or_elsewhere_is_told(folder):
    external(folder, "external/other")
    change(folder, "external/other", "label", "none")
    tree, text, _ = run(folder)
    own, other = text.split("## On the external set")
    assert "of the external set, 0 test subject(s) have the label `lesions`" in other
    assert own.startswith("**") and set(downstream.ARMS) < set(tree) and "external" not in tree
    external(folder, "test")
    with pytest.raises(UserError, match="utility.external = .* lies outside of .*external"):
        run(folder)
