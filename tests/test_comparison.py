"""The table: order, arrows, ratios, and bold only for a lead that is surely one."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from stages import compare as compare_stage
from stages import progression as stage
from synthmri import imageset
from synthmri.errors import UserError
from synthmri.evaluation import copies, scorecard
from synthmri.reporting import comparison
from synthmri.training import snapshots

ROOT = Path(__file__).parent.parent


def models(**change):
    tree = {name: {"fd_effnet": 10.0 - i, "fd_effnet_std": 0.1, "fd_alexnet": 3.0, "ssim": 0.5, "n": 200.0,
                   "parameters": 2e6, "test_people": 9.0}
            for i, name in enumerate(comparison.MODELS)}  # fmt: skip
    for name, values in change.items():
        tree[name] = tree[name] | values
    return tree


REFERENCES = {
    name: {"fd_effnet": 2.0, "fd_alexnet": 1.5, "ssim": 0.9, "n": 200.0} for name in comparison.REFERENCES
}  # fmt: skip


def test_rows_are_in_the_order_of_the_original_then_the_references():
    frame = comparison.table(models(), REFERENCES)
    assert list(frame.index) == [
        "vae", "dcgan", "ddpm", "unet_gan", "latent_diffusion", "base", "base_adapted", "real", "blurred",
        "mean_image", "train_copies", "train_copies_mirrored",
    ]  # fmt: skip
    assert list(frame.columns) == [
        "fd_effnet", "fd_alexnet", "ssim", "manual_score", "n", "parameters", "fd_effnet_std", "fd_effnet_ratio",
        "fd_alexnet_ratio",
    ]  # fmt: skip
    assert frame["manual_score"].isna().all()  # nobody has rated: shown, and empty
    assert frame["fd_effnet_ratio"]["vae"] == 5 and frame["fd_effnet_ratio"]["real"] == 1
    assert frame["fd_alexnet_ratio"]["vae"] == 2


def test_markdown_has_arrows_uncertainty_ratios_and_one_bold_cell():
    text = comparison.markdown(models(), REFERENCES, {"fd_effnet": "latent_diffusion", "ssim": None}, 0.95)
    first, others = text.split(comparison.OTHERS)
    head, _, *rows = first.splitlines()
    assert "FD EffNet ↓" in head and "FD AlexNet (seen by a loss) ↓" in head and "| SSIM |" in head
    assert text.count("**") == 2 and "**6 ± 0.100 (3×)**" in rows[4] and rows[4].startswith("| latent diffusion |")
    assert "| 3 (2×) |" in rows[4]
    assert rows[7].startswith("| *real, other people* | 2 (1×) |")
    assert "2.0 M" not in first and "| VAE | 2.0 M |" in others and "| SSIM |" not in others
    assert "with 95 % confidence" in text and "{" not in text


@pytest.mark.parametrize(
    "values, words",
    [
        ((100, 80, 20), "100 of the base, 80 (20 % less) with its decoder adapted, 20 (75 % less) fine-tuned"),
        ((100, 100.2, 130), "100 of the base, 100 (unchanged) with its decoder adapted, 130 (30 % more) fine-tuned"),
    ],
)
def test_a_sentence_tells_the_decoder_from_fine_tuning_and_worse_from_better(values, words):
    base, adapted, tuned = ({"fd_effnet": value, "n": 200.0} for value in values)
    text = comparison.finetuning({"latent_diffusion": tuned}, {"base": base, "base_adapted": adapted})
    assert words in text and " -" not in text and "fell" not in text


def compare(folder, monkeypatch, rounds):
    """The stage on models of which each is better than the one before; rounds: model -> its fd_effnet in each."""
    monkeypatch.chdir(folder)
    for name in ("metrics", "rounds", "training"):
        Path(name).mkdir()

    def put(name, tree):
        Path(name).write_text(json.dumps(tree))

    for name, row in models().items():
        row |= {"fd_effnet": row["fd_effnet"], "kid_effnet": 0.1, "coverage": 0.2}
        put(f"metrics/{name}.json", row)
        put(f"training/{name}.json", {"parameters": 2e6, "images_seen": 10.0, "teraflop": 1.0})
        pd.DataFrame({"fd_effnet": rounds[name]}).to_csv(f"rounds/{name}.csv", index=False)
    rows = {name: row | {"kid_effnet": 0.01, "coverage": 0.9} for name, row in REFERENCES.items()}
    for name in comparison.BASES:
        put(f"metrics/{name}.json", rows.pop(name))
    put("metrics/references.json", rows)
    put("metrics/raters.json", {"counts": {"ratings": 0.0, "of_other_images": 0.0, "simulated": 0.0}})
    compare_stage.main(*map(Path, ("metrics", "rounds", "training", "t.csv", "t.json", "t.md", "t.png")))
    return Path("t.md").read_text()


def test_bold_is_a_lead_that_the_same_people_agree_on(tmp_path, monkeypatch):
    """The models differ by 1, and people by 3: a lead where all models find the same people hard, else none."""
    rng = np.random.default_rng(0)
    people, alone = rng.normal(0, 3, 12), {name: rng.normal(0, 3, 12) for name in comparison.MODELS}
    for name in ("paired", "apart"):
        (tmp_path / name).mkdir()
    shared = {name: people + 0.01 * own for name, own in alone.items()}
    assert "**6 ± 0.100 (3×)**" in compare(tmp_path / "paired", monkeypatch, shared)
    assert "**" not in compare(tmp_path / "apart", monkeypatch, alone)


def test_without_rounds_nobody_leads(tmp_path, monkeypatch):
    assert "**" not in compare(tmp_path, monkeypatch, dict.fromkeys(comparison.MODELS, []))


def test_readme_shows_the_committed_table():
    if not json.loads((ROOT / "metrics/data.json").read_text(encoding="utf-8"))["simulated"]:
        pytest.skip("metrics/ are of data of your own")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.split("<!-- comparison -->")[1].split("<!-- /comparison -->")[0]
    first, _ = (ROOT / "metrics/comparison.md").read_text(encoding="utf-8").split(comparison.OTHERS)
    assert shown.strip() == first.strip()


@pytest.mark.parametrize("epochs, points, shown", [(3, 8, [0, 1, 2, 3]), (100, 4, [0, 25, 50, 75, 100]), (0, 8, [0])])
def test_epochs_shown(epochs, points, shown):
    assert snapshots.epochs_shown(epochs, points) == shown


def test_store_keeps_what_was_drawn(tmp_path):
    first = np.zeros((2, 4, 4), np.uint8)
    snapshots.Store(tmp_path / "s").put(0, first)
    store = snapshots.Store(tmp_path / "s")
    with pytest.raises(UserError, match=rf"has lost images .* remove {tmp_path}, with its checkpoint"):
        store.stack(3)
    store.put(1, first + 1)
    assert store.stack(2).shape == (2, 2, 4, 4) and store.stack(2)[1].max() == 1


def test_progression_counts_the_images_of_the_epochs_that_are_shown(tmp_path, monkeypatch):
    """Of five epochs in two points the first is after two, not two and a half."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for folder in ("snapshots", "efforts", "features"):
        Path(folder).mkdir()
    rng = np.random.default_rng(0)
    shown = {"epochs": 5.0, "epochs_trained": 5.0, "epoch_kept": 2.0}
    for name, effort in (("latent_diffusion", shown), ("vae", {})):
        np.save(f"snapshots/{name}.npy", rng.integers(0, 255, (3, 2, 64, 64)).astype(np.uint8))
        Path(f"efforts/{name}.json").write_text(json.dumps({"images_seen": 100.0} | effort))
    np.save("features/effnet.npy", rng.random((4, 1280)).astype(np.float32))
    for name in ("train", "val"):
        people = pd.DataFrame({"subject": list("abcd")})
        imageset.write(Path(name), imageset.ImageSet(rng.integers(0, 255, (4, 64, 64)).astype(np.uint8), people))
    params = YAML().load(Path("params.yaml"))
    params["progression"]["points"] = 2
    YAML().dump(params, Path("params.yaml"))
    written = ("ours.csv", "all.csv", "curve.png", "strips")
    stage.main(*map(Path, ("snapshots", "efforts", "train", "val", "features", *written)))
    table = pd.read_csv("all.csv")
    assert list(table[table.model == "latent_diffusion"].images_seen) == [0, 40, 100]
    assert list(table[table.model == "vae"].images_seen) == [0, 50, 100]
    ours = pd.read_csv("ours.csv")
    assert list(ours.epoch) == [0, 2, 5] and list(ours.kept) == [0, 1, 0]
    assert set(ours) == {"epoch", "images_seen", "fd_effnet", "kid_effnet", "recall", "coverage", "memorised", "kept"}


# the scorecard: each way of failing moves the score that should catch it


@pytest.fixture(scope="module")
def world():
    from skimage import data

    from synthmri.evaluation import features
    from synthmri.training import perceptual

    rng = np.random.default_rng(0)
    whole = np.stack([data.camera(), data.brick(), data.grass(), data.gravel(), data.moon()])
    crops = np.stack([whole[i % 5, y : y + 64, x : x + 64] for i, (y, x) in enumerate(rng.integers(0, 448, (90, 2)))])
    train, test, fresh = crops[:30], crops[30:60], crops[60:]
    values = {name: {"effnet": features.effnet(part)} for name, part in
              (("train", train), ("test", test))}  # fmt: skip
    subjects = pd.Series([f"h{i // 5}" for i in range(30)])
    honest = copies.likeness(test, train).largest
    reference = scorecard.Reference(train, test, values["train"], values["test"], subjects, honest)
    p = scorecard.Evaluate(
        batch_size=16,
        min_images=8,
        inception_weights="",
        features="",
        pairwise_features=100,
        pairwise_images=100,
        subsample_rounds=5,
    )
    lpips = perceptual.lpips_model()

    def measure(images):
        rows = np.arange(len(images))
        found = scorecard.score(images, {"effnet": features.effnet(images)}, rows, reference, p, lpips)
        return found.numbers | {"which": found.pairs.closest}

    return {
        "train": train, "measure": measure, "fresh": measure(fresh), "images": fresh, "reference": reference, "p": p,
        "lpips": lpips, "values": {"effnet": features.effnet(fresh)},
    }  # fmt: skip


def test_every_number_is_finite_and_has_its_spread(world):
    fresh = {name: value for name, value in world["fresh"].items() if name != "which"}
    assert all(math.isfinite(value) for value in fresh.values())
    for name in ("fd_effnet", "kid_effnet"):
        assert fresh[f"{name}_std"] > 0
    assert {"precision_std", "recall_std", "density_std", "coverage_std"} < set(fresh)


def test_blur_raises_the_distances(world):
    from scipy.ndimage import gaussian_filter

    blurred = world["measure"](np.stack([gaussian_filter(image, 2) for image in world["images"]]))
    assert blurred["fd_effnet"] > 1.2 * world["fresh"]["fd_effnet"]
    assert blurred["kid_effnet"] > world["fresh"]["kid_effnet"]


def test_collapse_lowers_coverage_and_recall(world):
    collapsed = world["measure"](np.repeat(world["images"][:2], 15, axis=0))
    assert collapsed["coverage"] < 0.5 * world["fresh"]["coverage"]
    assert collapsed["recall"] < world["fresh"]["recall"]


def test_copies_are_caught_although_they_look_best(world):
    for images, first in ((world["train"], 0), (world["train"][:, :, ::-1], 30)):  # mirrored ones are copies too
        found = world["measure"](np.ascontiguousarray(images))
        assert found["memorised"] == 1 and found["largest_correlation"] == pytest.approx(1)
        assert found["ssim"] == pytest.approx(1) and found["lpips"] == pytest.approx(0, abs=1e-6)
        assert (found["which"] == first + np.arange(30)).all()
    assert world["fresh"]["memorised"] < 0.3


def test_rows_are_those_that_are_scored_and_bounds_leave_the_frechet_distance(world):
    rows = np.arange(2, 30)
    arguments = world["images"], world["values"], rows, world["reference"]
    whole = scorecard.score(*arguments, world["p"], world["lpips"]).numbers
    few = world["p"].model_copy(update={"pairwise_features": 25, "pairwise_images": 4})
    bounded, _, found = scorecard.score(*arguments, few, world["lpips"])
    assert whole["n"] == bounded["n"] == 28 and [len(each) for each in found] == [4, 4, 4]
    assert set(found.rows) < set(rows)
    assert bounded["fd_effnet"] == whole["fd_effnet"] and bounded["kid_effnet"] != whole["kid_effnet"]
    alone = world["measure"](world["images"][rows])
    assert {name: alone[name] for name in whole} == pytest.approx(whole, rel=1e-5)


def test_a_large_test_set_is_not_covered_less_by_the_same_model(world):
    """Of M test images and N others of the same distribution coverage is 1 - prod (M - i) / (N + M - i), i = 1 to k
    (Naeem 2020, section 3.2): .60 for M = 1000 and N = 200, and .97 for as many of each."""
    rng = np.random.default_rng(0)
    made, test = rng.normal(size=(200, 16)), rng.normal(size=(1000, 16))
    blank = np.zeros((1000, 8, 8), np.uint8)
    reference = replace(world["reference"], test=blank, test_features={scorecard.JUDGE: test}, subjects=None)
    p = world["p"].model_copy(update={"pairwise_features": 5000})
    found, _ = scorecard.distribution({scorecard.JUDGE: made}, np.arange(200), reference, p)
    assert found["coverage"] == pytest.approx(0.97, abs=0.03)


def test_draw_is_ascending_and_takes_all_where_there_are_few():
    assert scorecard.draw(5, 9).tolist() == [0, 1, 2, 3, 4]
    rows = np.arange(10, 60, 5)
    found = scorecard.draw(rows, 4)
    assert len(set(found)) == 4 and set(found) < set(rows) and (np.diff(found) > 0).all()
    assert found.tolist() == scorecard.draw(rows, 4).tolist()
