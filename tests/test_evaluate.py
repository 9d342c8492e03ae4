import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.ndimage import gaussian_filter
from skimage import data

from stages import _cli, evaluate, features, references
from synthmri import imageset
from synthmri.evaluation import conditioning, copies, distances, pairs, scorecard

PARAMS = {
    "seed": 0,
    "runtime": {"threads": 2, "device": "cpu"},
    "sample": {
        "n": 14,
        "seed": 0,
        "steps": 1,
        "guidance_scale": 1.0,
        "scheduler": "ddim",
        "batch_size": 4,
    },
    "evaluate": {
        "batch_size": 8,
        "min_images": 10,
        "inception_weights": "",
        "features": "",
        "pairwise_features": 100,
        "pairwise_images": 100,
        "subsample_rounds": 5,
    },
}


def _crops(n, seed):
    rng = np.random.default_rng(seed)
    whole = np.stack([data.camera(), data.brick(), data.grass(), data.gravel(), data.moon()])
    return np.stack([whole[i % 5, y : y + 64, x : x + 64] for i, (y, x) in enumerate(rng.integers(0, 448, (n, 2)))])


def _write(folder, images, subjects=None):
    cells = {"subject": subjects} if subjects else {"model": "m", "seed": [str(i) for i in range(len(images))]}
    imageset.write(folder, imageset.ImageSet(images, pd.DataFrame(cells, index=range(len(images)))))


def _stage(stage, *arguments):
    """Run a stage as the command line does. Returns its status."""
    sys.argv = ["stage", *map(str, arguments)]
    try:
        _cli.run(stage.main)
    except SystemExit as stop:
        return stop.code or 0
    return 0


def _extract(name):
    return _stage(
        features, "--images", f"data/{name}", "--extractors", "models/extractors", "--out", f"features/{name}"
    )


def _evaluate(code="latent_diffusion"):
    options = ["--generator", code, "--model", "models/m"]
    for name in ("train", "validation", "test", "samples"):
        options += [f"--{name}", f"data/{name}", f"--{name}-features", f"features/{name}"]
    written = {"metrics": "m.json", "rounds": "m.csv", "picture": "m.png", "closest": "closest.png"}
    for name, file in (written | {"pairs-table": "closest.csv"}).items():
        options += [f"--{name}", f"metrics/{file}"]
    return _stage(evaluate, *options)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """Four sets of crops and their features; the samples are blurred a little."""
    folder = tmp_path_factory.mktemp("extracted")
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    _write(folder / "data/train", _crops(16, 0), [f"t{i // 4}" for i in range(16)])
    _write(folder / "data/test", _crops(12, 1), [f"h{i // 3}" for i in range(12)])
    _write(folder / "data/validation", _crops(10, 4), [f"v{i // 5}" for i in range(10)])
    _write(folder / "data/samples", np.stack([gaussian_filter(image, 0.7) for image in _crops(14, 2)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", sys.argv)
        assert [_extract(name) for name in ("train", "validation", "test", "samples")] == [0] * 4
    return folder


@contextmanager
def _copied(extracted, folder):
    """A copy of `extracted` as the working folder, beside an autoencoder that adds one grey level."""

    def load(folder, *, device):
        assert (folder, device) == (Path("models/m"), "cpu")
        return SimpleNamespace(reconstruct=reconstruct)

    def reconstruct(images, *, batch_size, precision):
        return np.minimum(images, 254) + np.uint8(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            sys.modules,
            "synthmri.generators.latent_diffusion",
            SimpleNamespace(LatentDiffusion=SimpleNamespace(load=load, reconstruct=reconstruct, prompted=True)),
        )
        patch.setattr(sys, "argv", sys.argv)
        patch.setattr(scorecard, "SUBSAMPLED", 0.8)  # four people are few
        patch.chdir(shutil.copytree(extracted, folder / "workspace"))
        yield folder / "workspace"


@pytest.fixture
def workspace(extracted, tmp_path):
    with _copied(extracted, tmp_path) as folder:
        yield folder


@pytest.fixture(scope="module")
def evaluated(extracted, tmp_path_factory):
    """Such a workspace after one run of the stage; for reading only."""
    with _copied(extracted, tmp_path_factory.mktemp("evaluated")) as folder:
        assert _evaluate() == 0
    return folder


@pytest.fixture
def said(capsys):
    return lambda: capsys.readouterr().err


def test_extract_writes_features_under_the_exact_name(workspace):
    for name, size in (("alexnet", 256), ("effnet", 1280)):
        values = np.load(workspace / f"features/train/{name}.npy")
        assert values.dtype == np.float32 and values.shape == (16, size) and np.isfinite(values).all()
    there = sorted(path.name for path in (workspace / "features").iterdir())
    assert there == ["samples", "test", "train", "validation"]


def test_metrics_are_finite_floats(evaluated):
    tree = json.loads((evaluated / "metrics/m.json").read_text())
    compared = {"fd_alexnet", "fd_effnet", "kid_effnet", "precision", "recall", "density", "coverage"}
    assert set(tree) == compared | {f"{name}_std" for name in compared} | {
        "ssim", "psnr", "lpips", "memorised", "largest_correlation", "n", "test_people",
        "recon_ssim", "recon_psnr", "recon_lpips", "recon_fd_effnet", "val_kid_effnet", "val_kid_effnet_std",
        "implausible", "implausible_of_real", "refused", "refused_of_real",
    }  # fmt: skip
    assert all(type(value) is float and np.isfinite(value) for value in tree.values())
    assert all(value == float(f"{value:.6g}") for value in tree.values())


def test_what_prompts_ask_for_is_looked_for_in_samples_and_in_real_slices(workspace):
    for name in ("train", "validation", "samples"):
        file = workspace / f"data/{name}/manifest.csv"
        manifest = pd.read_csv(file, dtype=str)
        which = range(len(manifest))
        manifest.assign(depth_mm=[f"{10 * (i % 5)}.00" for i in which]).to_csv(file, index=False)
    assert _evaluate() == 0
    tree = json.loads((workspace / "metrics/m.json").read_text())
    assert set(tree["asked"]) == set(tree["asked_of_real"]) == {"level_error_cm", "levels"}
    values, manifests = (
        {name: read(workspace / folder / name) for name in ("train", "validation", "samples")}
        for folder, read in (
            ("features", lambda path: np.load(path / "effnet.npy")),
            ("data", lambda path: imageset.read(path).manifest),
        )
    )
    for whose, name in (("asked", "samples"), ("asked_of_real", "validation")):
        found = conditioning.agreement(values["train"], manifests["train"], values[name], manifests[name])
        assert tree[whose]["level_error_cm"] == pytest.approx(found["level_error_cm"], rel=1e-4) and found["levels"]


def test_the_validation_kid_is_of_the_validation_set(evaluated):
    tree = json.loads((evaluated / "metrics/m.json").read_text())
    values = {name: np.load(evaluated / f"features/{name}/effnet.npy") for name in ("validation", "samples")}
    assert tree["val_kid_effnet"] == pytest.approx(
        distances.kernel_distance(values["samples"], values["validation"]), rel=1e-5
    )


def test_too_few_validation_images_give_no_number_and_say_what_follows(workspace, said):
    _write(workspace / "data/validation", _crops(9, 4), ["v"] * 9)
    assert _extract("validation") == 0 and _evaluate() == 0
    assert "below evaluate.min_images = 10" in (text := said()) and "champion" in text
    assert not {"val_kid_effnet", "implausible"} & set(json.loads((workspace / "metrics/m.json").read_text()))


def test_what_is_implausible_is_judged_by_validation_slices(workspace):
    """The test slices as samples have the share that the test slices have; noise is none of the kind."""
    noise = np.random.default_rng(0).integers(0, 256, (14, 64, 64), np.uint8)
    shares = []
    for images in (imageset.read(workspace / "data/test").images, noise):
        _write(workspace / "data/samples", np.array(images), ["s"] * len(images))
        assert _extract("samples") == 0 and _evaluate() == 0
        tree = json.loads((workspace / "metrics/m.json").read_text())
        shares.append((tree["implausible"], tree["implausible_of_real"]))
    assert shares[0][0] == shares[0][1] == shares[1][1] < 1 and shares[1][0] == 1


def test_metrics_are_what_their_names_say(evaluated):
    tree = json.loads((evaluated / "metrics/m.json").read_text())
    values = {
        extractor: [np.load(evaluated / f"features/{name}/{extractor}.npy") for name in ("samples", "test")]
        for extractor in ("effnet", "alexnet")
    }
    images = {name: imageset.read(evaluated / f"data/{name}").images for name in ("train", "test", "samples")}
    assert tree["n"] == 14 and tree["test_people"] == 4
    for extractor, pair in values.items():
        assert tree[f"fd_{extractor}"] == pytest.approx(distances.frechet_distance(*pair), rel=1e-5)
    assert tree["kid_effnet"] == pytest.approx(distances.kernel_distance(*values["effnet"]), rel=1e-5)
    shares = distances.precision_recall_density_coverage(*values["effnet"][::-1])
    assert {name: tree[name] for name in shares} == pytest.approx(shares, rel=1e-5)
    nearest = copies.views(images["train"], copies.closest_by_pixels(images["samples"], images["train"]).nearest)
    honest = copies.likeness(images["test"], images["train"]).largest
    found = copies.likeness(images["samples"], images["train"]).largest
    assert tree["memorised"] == pytest.approx(copies.memorised(found, honest), rel=1e-5)
    assert tree["ssim"] == pytest.approx(pairs.ssim(images["samples"], nearest), rel=1e-5)
    couples = pd.read_csv(evaluated / "metrics/closest.csv")
    assert couples["likeness"].tolist() == pytest.approx(sorted(found, reverse=True)[: evaluate.CLOSEST], rel=1e-5)
    assert couples["likeness"].tolist() == pytest.approx(found[couples["image"]], rel=1e-5)
    for row in couples.itertuples():  # the pair that it names is as alike as it says
        its = copies.views(images["train"], np.array([row.train + row.mirrored * len(images["train"])]))
        assert copies.likeness(images["samples"][[row.image]], its).largest[0] == pytest.approx(row.likeness, rel=1e-4)
    assert tree["recon_psnr"] == pytest.approx(48.13, abs=0.1)  # one grey level everywhere
    assert tree["recon_ssim"] > 0.99 and tree["recon_lpips"] < 0.01
    rounds = pd.read_csv(evaluated / "metrics/m.csv")
    assert len(rounds) == 5
    for name in ("fd_effnet", "kid_effnet"):
        assert tree[f"{name}_std"] == pytest.approx(rounds[name].std(), rel=1e-4) and tree[f"{name}_std"] > 0


def test_a_model_without_autoencoder_has_no_such_numbers(workspace):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "synthmri.generators.dcgan", SimpleNamespace(DCGAN=SimpleNamespace(prompted=False)))
        assert _evaluate("dcgan") == 0
    tree = json.loads((workspace / "metrics/m.json").read_text())
    assert not [name for name in tree if name.startswith("recon")]


def test_references_hold_the_floor_and_catch_copies(workspace):
    options = ["--metrics", "metrics/references.json"]
    for name in ("train", "test"):
        options += [f"--{name}", f"data/{name}", f"--{name}-features", f"features/{name}"]
    assert _stage(references, *options) == 0
    tree = json.loads((workspace / "metrics/references.json").read_text())
    assert list(tree) == ["real", "blurred", "mean_image", "train_copies", "train_copies_mirrored"]
    for name in ("train_copies", "train_copies_mirrored"):
        assert tree[name]["memorised"] == 1 and tree[name]["psnr"] == 100 and tree[name]["largest_correlation"] == 1
    assert tree["real"]["fd_effnet"] == tree["train_copies"]["fd_effnet"]
    assert tree["real"]["memorised"] < 0.2 and tree["real"]["ssim"] < 0.9
    sets = [imageset.read(workspace / f"data/{name}").images for name in ("test", "train")]
    below = copies.likeness(*sets).largest < tree["real"]["likeness_bound"]
    assert below.mean() == pytest.approx(0.95, abs=1 / len(below))
    assert tree["mean_image"]["recall"] == 0 and tree["mean_image"]["fd_effnet"] > tree["real"]["fd_effnet"]
    assert tree["blurred"]["fd_alexnet"] > tree["real"]["fd_alexnet"]


def test_evaluate_writes_the_same_bytes_again(evaluated, workspace):
    assert _evaluate() == 0
    for name in ("m.json", "m.csv", "m.png", "closest.png", "closest.csv"):
        assert (workspace / "metrics" / name).read_bytes() == (evaluated / "metrics" / name).read_bytes()
    assert sorted(path.name for path in (workspace / "metrics").iterdir()) == [
        "closest.csv", "closest.png", "m.csv", "m.json", "m.png",
    ]  # fmt: skip


def test_one_test_subject_has_no_uncertainty(workspace, said):
    _write(workspace / "data/test", _crops(12, 1), ["only"] * 12)
    assert _evaluate() == 0
    tree = json.loads((workspace / "metrics/m.json").read_text())
    assert "fd_effnet" in tree and [name for name in tree if name.endswith("_std")] == ["val_kid_effnet_std"]
    assert "fewer than 2 test subjects" in said()


@pytest.mark.parametrize(
    "people, why",
    [
        (["a"] * 6 + ["b"] * 6, "the subsets of test people may hold 6 images, and 7 are needed"),
        (["a"] * 6 + ["b"] * 5 + [""], "some slices are of nobody known"),
    ],
)
def test_scores_are_there_where_their_uncertainty_is_not(workspace, said, people, why):
    """Two people of six slices each: neighbourhoods of five need more than one person has."""
    _write(workspace / "data/test", _crops(12, 1), people)
    assert _evaluate() == 0
    tree = json.loads((workspace / "metrics/m.json").read_text())
    assert tree["coverage"] >= 0 and [name for name in tree if name.endswith("_std")] == ["val_kid_effnet_std"]
    assert why in said()


def test_bad_input_is_named_and_nothing_is_written(workspace, said):
    def refused(*words):
        assert _evaluate() == 1
        text = said()
        assert all(word in text for word in words) and "Traceback" not in text, text
        assert not (workspace / "metrics/m.json").exists()

    images = np.array(imageset.read(workspace / "data/samples").images)  # read now: the mapped file is written over
    file = workspace / "features/samples/effnet.npy"
    features = np.load(file)
    _write(workspace / "data/samples", images[:9])
    refused("data/samples holds 9 images", "evaluate.min_images = 10", "sample more")
    _write(workspace / "data/samples", images[:, :48, :48])
    refused("(48, 48)", "(64, 64)")
    _write(workspace / "data/samples", images)
    np.save(file, features[:-1])
    refused("features/samples/effnet.npy holds (13, 1280) features for 14 images", "dvc repro")
    features[3, 4] = np.nan
    np.save(file, features)
    refused("1 of 14 rows of features are not finite, row 3")
    file.write_text("no array")
    refused("features/samples/effnet.npy cannot be read", "dvc repro")
    file.unlink()
    refused("features/samples holds no features")


def test_sets_that_overlap_wholly_are_refused(workspace, said):
    flat = np.full((14, 64, 64), 7, np.uint8)
    for name in ("train", "test"):
        _write(workspace / f"data/{name}", flat, ["a"] * 7 + ["b"] * 7)
        assert _extract(name) == 0
    assert _evaluate() == 1
    assert "split by subject" in said()


@pytest.mark.parametrize(
    "key, value",
    [
        ("batch_size", 0),
        ("min_images", 1),
        ("subsample_rounds", 1),
        ("pairwise_features", 99),
        ("pairwise_images", 0),
    ],
)
def test_bounds_of_the_parameters(workspace, said, key, value):
    text = yaml.safe_dump(PARAMS | {"evaluate": PARAMS["evaluate"] | {key: value}})
    (workspace / "params.yaml").write_text(text)
    assert _extract("train") == 1
    assert f"evaluate.{key} = {value}" in said()
