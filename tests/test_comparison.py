"""The table: order, arrows, and bold only for a lead that is larger than its uncertainty."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages import progression as stage
from synthmri.errors import UserError
from synthmri.evaluation import scorecard
from synthmri.reporting import comparison
from synthmri.training import snapshots

ROOT = Path(__file__).parent.parent


def models(**change):
    tree = {name: {"fd_alexnet": 10.0 - i, "fd_alexnet_std": 0.1, "ssim": 0.5, "n": 200.0, "parameters": 2e6}
            for i, name in enumerate(comparison.MODELS)}  # fmt: skip
    for name, values in change.items():
        tree[name] = tree[name] | values
    return tree


REFERENCES = {name: {"fd_alexnet": 1.0, "ssim": 0.9, "n": 200.0} for name in comparison.REFERENCES}


def test_rows_are_in_the_order_of_the_original_then_the_references():
    frame = comparison.table(models(), REFERENCES)
    assert list(frame.index) == [
        "vae", "dcgan", "ddpm", "unet_gan", "latent_diffusion", "held_out", "blurred", "mean_image", "train_copies",
    ]  # fmt: skip
    assert list(frame.columns) == ["fd_alexnet", "ssim", "manual_score", "n", "parameters", "fd_alexnet_std"]
    assert frame["manual_score"].isna().all()  # nobody has rated: shown, and empty


@pytest.mark.parametrize("spread, leader", [(0.1, "latent_diffusion"), (0.6, "latent_diffusion"), (0.8, None)])
def test_best_needs_a_lead_beyond_the_uncertainty(spread, leader):
    """The two best differ by 1; the combined spread of two equal ones is sqrt(2) of it."""
    tree = models(**{name: {"fd_alexnet_std": spread} for name in comparison.MODELS})
    assert comparison.best(tree, "fd_alexnet") == leader


def test_resemblance_is_never_best():
    assert comparison.best(models(vae={"ssim": 0.99, "ssim_std": 0.0}), "ssim") is None


def test_a_score_without_uncertainty_is_never_best():
    tree = models()
    del tree["latent_diffusion"]["fd_alexnet_std"]
    assert comparison.best(tree, "fd_alexnet") is None


def test_markdown_has_arrows_uncertainty_and_one_bold_cell():
    text = comparison.markdown(models(), REFERENCES)
    head, _, *rows = text.splitlines()
    assert "FD AlexNet ↓" in head and "| SSIM |" in head
    assert text.count("**") == 2 and "**6 ± 0.100**" in rows[4] and rows[4].startswith("| latent diffusion |")
    assert rows[5].startswith("| *real, other people* | 1 |")
    assert "| 2.0 M |" in rows[0]
    assert comparison.CAPTION in text


def test_readme_shows_the_committed_table():
    if not json.loads((ROOT / "metrics/data.json").read_text(encoding="utf-8"))["simulated"]:
        pytest.skip("metrics/ are of data of your own")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.split("<!-- comparison -->")[1].split("<!-- /comparison -->")[0]
    assert shown.strip() == (ROOT / "metrics/comparison.md").read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("epochs, points, shown", [(3, 8, [0, 1, 2, 3]), (100, 4, [0, 25, 50, 75, 100]), (0, 8, [0])])
def test_epochs_shown(epochs, points, shown):
    assert snapshots.epochs_shown(epochs, points) == shown


def test_store_keeps_what_was_drawn(tmp_path):
    first = np.zeros((2, 4, 4), np.uint8)
    snapshots.Store(tmp_path / "s").put(0, first)
    store = snapshots.Store(tmp_path / "s")
    with pytest.raises(UserError, match=r"has lost images .* remove it and .*s\.pt, and the training starts anew"):
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
    for name, effort in (("latent_diffusion", {"epochs": 5.0}), ("vae", {})):
        np.save(f"snapshots/{name}.npy", rng.integers(0, 255, (3, 2, 64, 64)).astype(np.uint8))
        Path(f"efforts/{name}.json").write_text(json.dumps({"images_seen": 100.0} | effort))
    np.save("features/alexnet.npy", rng.random((4, 256)).astype(np.float32))
    stage.main(*map(Path, ("snapshots", "efforts", "features", "ours.csv", "all.csv", "curve.png", "strips")))
    table = pd.read_csv("all.csv")
    assert list(table[table.model == "latent_diffusion"].images_seen) == [0, 40, 100]
    assert list(table[table.model == "vae"].images_seen) == [0, 50, 100]
    assert list(pd.read_csv("ours.csv").epoch) == [0, 2, 5]


# the scorecard: each way of failing moves the score that should catch it


@pytest.fixture(scope="module")
def world():
    from skimage import data

    from synthmri.evaluation import features

    rng = np.random.default_rng(0)
    whole = np.stack([data.camera(), data.brick(), data.grass(), data.gravel(), data.moon()])
    crops = np.stack([whole[i % 5, y : y + 64, x : x + 64] for i, (y, x) in enumerate(rng.integers(0, 448, (90, 2)))])
    train, test, fresh = crops[:30], crops[30:60], crops[60:]
    values = {name: {"alexnet": features.alexnet(part)} for name, part in
              (("train", train), ("test", test))}  # fmt: skip
    subjects = pd.Series([f"h{i // 5}" for i in range(30)])
    reference = scorecard.Reference(train, test, values["train"], values["test"], subjects)
    p = scorecard.Evaluate(
        batch_size=16,
        min_images=8,
        inception_weights="",
        pairwise_features=100,
        pairwise_images=100,
        subsample_rounds=5,
        subsample_fraction=0.5,
        seed=0,
    )
    lpips = features.lpips_model()

    def measure(images):
        result, _, correlation, which = scorecard.score(
            images, {"alexnet": features.alexnet(images)}, np.arange(len(images)), reference, p, lpips
        )
        return result | {"correlations": correlation, "which": which}

    return {
        "train": train, "measure": measure, "fresh": measure(fresh), "images": fresh, "reference": reference, "p": p,
        "lpips": lpips, "values": {"alexnet": features.alexnet(fresh)},
    }  # fmt: skip


def test_every_number_is_finite_and_has_its_spread(world):
    fresh = {name: value for name, value in world["fresh"].items() if name not in ("correlations", "which")}
    assert all(math.isfinite(value) for value in fresh.values())
    for name in ("fd_alexnet", "kid_alexnet"):
        assert fresh[f"{name}_std"] > 0
    assert {"precision_std", "recall_std", "density_std", "coverage_std"} < set(fresh)


def test_blur_raises_the_distances(world):
    from scipy.ndimage import gaussian_filter

    blurred = world["measure"](np.stack([gaussian_filter(image, 2) for image in world["images"]]))
    assert blurred["fd_alexnet"] > 1.5 * world["fresh"]["fd_alexnet"]
    assert blurred["kid_alexnet"] > world["fresh"]["kid_alexnet"]


def test_collapse_lowers_coverage_and_recall(world):
    collapsed = world["measure"](np.repeat(world["images"][:2], 15, axis=0))
    assert collapsed["coverage"] < 0.5 * world["fresh"]["coverage"]
    assert collapsed["recall"] < world["fresh"]["recall"]


def test_copies_are_caught_although_they_look_best(world):
    copies = world["measure"](world["train"])
    assert copies["memorised"] == 1 and copies["largest_correlation"] == pytest.approx(1)
    assert copies["ssim"] == pytest.approx(1) and copies["lpips"] == pytest.approx(0, abs=1e-6)
    assert (copies["which"] == np.arange(30)).all()
    assert world["fresh"]["memorised"] < 0.3


def test_rows_are_those_that_are_scored_and_bounds_leave_the_frechet_distance(world):
    rows = np.arange(2, 30)
    arguments = world["images"], world["values"], rows, world["reference"]
    whole, *_ = scorecard.score(*arguments, world["p"], world["lpips"])
    few = world["p"].model_copy(update={"pairwise_features": 25, "pairwise_images": 4})
    bounded, compared, correlation, which = scorecard.score(*arguments, few, world["lpips"])
    assert whole["n"] == bounded["n"] == 28 and len(compared) == len(correlation) == len(which) == 4
    assert set(compared) < set(rows)
    assert bounded["fd_alexnet"] == whole["fd_alexnet"] and bounded["kid_alexnet"] != whole["kid_alexnet"]
    alone = world["measure"](world["images"][rows])
    assert {name: alone[name] for name in whole} == pytest.approx(whole, rel=1e-5)


def test_draw_is_ascending_and_takes_all_where_there_are_few():
    assert scorecard.draw(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    rows = np.arange(10, 60, 5)
    found = scorecard.draw(rows, 4, 0)
    assert len(set(found)) == 4 and set(found) < set(rows) and (np.diff(found) > 0).all()
    assert found.tolist() != scorecard.draw(rows, 4, 1).tolist()
