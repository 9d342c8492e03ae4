"""The benchmarks, at tiny size: that they run, that both sides do the same work, and what they write."""

import importlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import copy_parameters
from diffusers import DDPMScheduler
from PIL import Image

from benchmarks import (
    arms,
    base,
    copies,
    effort,
    evaluation,
    few_people,
    finetuning,
    heads,
    labels,
    layouts,
    less_copying,
    measure,
    membership,
    pays,
    preprocessing,
    real,
    reconstruction,
    repro,
    sampling,
    scaling,
    variety,
    weighting,
)
from commands import profile
from synthmri import generators, imageset
from synthmri.errors import UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder of its own with the parameters of the smoke profile; results go below it."""
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    copy_parameters(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    profile.main("smoke")
    return tmp_path


def slices(n: int) -> imageset.ImageSet:
    images = evaluation.textures(n, seed=0)[:, :64, :64]
    manifest = pd.DataFrame({"contrast": ["FLAIR"] * n, "plane": ["axial"] * n, "depth_mm": ["60.0"] * n})
    return imageset.ImageSet(images, manifest, {})


def result(name: str) -> dict:
    return json.loads(Path(f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))


def test_every_benchmark_says_what_it_compares():
    for file in (ROOT / "benchmarks").glob("*.py"):
        assert importlib.import_module(f"benchmarks.{file.stem}").__doc__, file


def test_seconds_are_those_of_the_quickest_call(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    calls = []
    assert measure.seconds(lambda: calls.append(1)) == 2.0 and len(calls) == 4


def test_sampling(small, tiny_model):
    sampling.main(model=tiny_model, whole=False)
    found = result("sampling")
    rates = [found[side]["images_per_second"] for side in ("ours", "original")]
    assert found["ratio"] == pytest.approx(rates[0] / rates[1]) and found["original"]["extrapolated"]
    assert found["ratio"] == pytest.approx(np.prod(list(found["parts"].values())))


def test_finetuning(small, tiny_model):
    imageset.write(small / "set", slices(8))
    finetuning.main(base=tiny_model, images=small / "set", steps=6)
    found = result("finetuning")
    assert found["ratio"] > 0 and 0 < found["ours"]["encoding_share"] < 1


@pytest.fixture
def people(small):
    """Textures of four people in each split, two slices each, below data/slices."""
    texture = evaluation.textures(24, seed=0)[:, :64, :64]
    for k, split in enumerate(("train", "val", "test")):
        found = slices(8)
        manifest = found.manifest.assign(subject=[f"{split}-{i // 2}" for i in range(8)], label="")
        imageset.write(small / "data/slices" / split, imageset.ImageSet(texture[8 * k : 8 * k + 8], manifest, {}))
    return small


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
def test_planted_copies_are_found_and_the_table_shows_them(people, tiny_model, monkeypatch):
    monkeypatch.setattr(copies, "STRENGTHS", {name: copies.STRENGTHS[name] for name in ("unchanged", "mirrored")})
    copies.main(model=tiny_model, n=2, seeds=2)
    found = result("copies")["simulated"]
    assert (found["train"], found["others"], found["other_people"]) == (8, 16, 8)
    assert found["shares"]["unchanged 0"]["alexnet_one_view"] == [1, 0]
    assert found["shares"]["mirrored 0"]["likeness"] == [1, 0] == found["all_copies"]["likeness"]
    assert found["shares"]["mirrored 0"]["alexnet_one_view"][0] < 1
    assert copies.HONEST[2] not in found["shares"]  # there are no such images here
    copies.main(name="again", model=tiny_model, n=2, seeds=2)
    assert result("copies")["again"] == found and result("copies")["simulated"] == found
    text = copies.table(result("copies"))
    assert "| mirrored | 0." in text and f"| {copies.HONEST[0]} |" in text and "machine" not in text


@pytest.mark.parametrize("kind", copies.STRENGTHS)
@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
def test_each_kind_of_copy_is_another_image_of_the_same_slice(tiny_model, kind):
    from synthmri.generators import latent_diffusion

    images = evaluation.textures(2, seed=0)[:, :64, :64]
    made = [
        copies.planted(kind, strength, images, np.random.default_rng(0), latent_diffusion.load(tiny_model), ["T1w"] * 2)
        for strength in copies.STRENGTHS[kind]
    ]
    assert all(each.shape == images.shape and each.dtype == np.uint8 for each in made)
    assert all((each != images).any() for each in made) == (kind != "unchanged")


def test_a_slice_between_two_is_of_one_person():
    images = np.arange(5, dtype=np.uint8)[:, None, None] * np.full((1, 2, 2), 10, np.uint8)
    found, first = copies.between(images, np.array(["a", "a", "b", "b", "b"]))
    assert first.tolist() == [0, 2, 3]
    assert found[:, 0, 0].tolist() == [5, 25, 35]


@pytest.mark.parametrize("tiny_model", ["v_prediction"], indirect=True)
def test_weights_of_noise_levels_differ_in_nothing_else(small, tiny_model, monkeypatch):
    """The same form under two names scores the same to the bit; the form for x0, which `training` has not, another."""
    text = (small / "params.yaml").read_text(encoding="utf-8")
    (small / "params.yaml").write_text(text.replace("pretrained/base", str(tiny_model)), encoding="utf-8")
    monkeypatch.setattr(weighting, "FORMS", weighting.FORMS | {"again": weighting.FORMS["every level alike"]})
    made = weighting.compared(slices(8), slices(8), small, epochs=1, n=8, seeds=1, precision="fp32")["forms"]
    assert made["again"] == made["every level alike"] != made["min(SNR, 5) / (SNR + 1)"]
    table = weighting.table({"forms": made})
    assert table.count("\n") == 5 and f"| {made['again']['kid']:g} |" in table


@pytest.mark.parametrize("tiny_model", ["v_prediction"], indirect=True)
def test_ways_of_fine_tuning_differ_in_what_they_say(people, tiny_model, monkeypatch):
    """Each trains, none breaks off, and those that are the same but in name score the same."""
    from synthmri.scans import prompts

    text = (people / "params.yaml").read_text(encoding="utf-8")
    (people / "params.yaml").write_text(text.replace("pretrained/base", str(tiny_model)), encoding="utf-8")
    labelled = imageset.ImageSet(slices(8).images, slices(8).manifest.assign(label="none"), {})
    monkeypatch.setattr(less_copying.pretraining, "draw_heads", lambda run, n, generator: labelled)
    whole = less_copying.ways
    monkeypatch.setattr(less_copying, "ways", lambda *given: (made := whole(*given)) | {"again": made["as it is"]})
    train, val = (imageset.read(people / "data/slices" / split) for split in ("train", "val"))
    words = prompts.Prompt(template="{contrast} {plane} brain MRI, level {level}", token="")
    found = less_copying.compared(train, val, words, people, epochs=2, n=8, seeds=1, precision="fp32")
    assert found["again"] == found["as it is"]
    assert len({tuple(scores.values()) for scores in found.values()}) > 3
    table = less_copying.table({"open_ms": {"train_slices": 8, "val_slices": 8, "epochs": 2, "n": 8, "trainings": 1,
                                            "ways": found}, "machine": {}})  # fmt: skip
    assert table.count("\n") == len(found) + 3 and "| ambient |" in table


@pytest.mark.parametrize("tiny_model", ["v_prediction"], indirect=True)
def test_suspects_of_little_variety_are_told_apart(people, tiny_model):
    variety.main(model=tiny_model, n=8)
    found = result("variety")["simulated"]["sets"]
    assert len(found) == 6 + len(variety.LEVELS) + len(variety.CHANGES)
    assert found["training slices"]["fd"] < found["these, through the autoencoder"]["fd"]  # an untrained one
    assert found["samples"] != found["other seeds"] and found["samples"] != found["Euler"]
    variety.main(name="again", model=tiny_model, n=8)
    assert result("variety")["again"]["sets"] == found
    assert variety.table(result("variety")).count("| samples |") == 2


@pytest.mark.parametrize("tiny_model", ["v_prediction"], indirect=True)
def test_what_makes_labels_heeded_is_told_apart(people, tiny_model, monkeypatch):
    from synthmri.generators import autoencoder, latent_diffusion

    pipe = latent_diffusion.load(tiny_model)
    pipe.save_pretrained("models/base", safe_serialization=True)
    autoencoder.mark_masked(pipe.vae, True)
    pipe.vae.save_pretrained("models/autoencoder", safe_serialization=True)
    for split in ("train", "val"):
        found = imageset.read(people / "data/slices" / split)
        marks = np.zeros(found.images.shape, np.uint8)
        marks[::2, 30:40, 20:30] = 255
        manifest = found.manifest.assign(label=["lesions", "none"] * 4)
        masked = imageset.ImageSet(np.array(found.images), manifest, {}, marks)
        imageset.write(people / "data/masked" / split, masked)
    monkeypatch.setattr(labels, "SLICES", people / "data/masked")
    with pytest.raises(UserError, match="lesions.npy"):
        labels.main(epochs=1, n=8)
    Path("data/latents").mkdir()
    mean = np.random.default_rng(0).normal(size=(8, 2, 4, 8, 8)).astype(np.float32)
    np.save("data/latents/mean.npy", mean)
    np.save("data/latents/std.npy", 0 * mean)
    np.save("data/latents/lesions.npy", mean[:, :, 0] > 1)
    labels.main(epochs=1, n=8, guidance=[1.0, 3.0])
    ways = result("labels")["ways"]
    real = ways.pop("real validation slices")
    assert real == {"marked": 1, "marked_none": 0, "area": 100, "area_none": 0}
    assert len(ways) == 2 * len(labels.WAYS) and len({tuple(scores.values()) for scores in ways.values()}) == len(ways)
    assert labels.table(result("labels")).count("\n") == len(ways) + 2


def test_the_ambient_loss_is_least_for_the_network_that_knows_the_distribution(monkeypatch):
    """Of latents of N(0, 1) the best guess is a z; scaled by anything else at late timesteps, the loss is larger."""
    monkeypatch.setattr(less_copying, "AMBIENT", 100)
    scheduler = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    x0 = torch.randn(2000, 4, 4, 4, generator=torch.Generator().manual_seed(1))

    def loss(factor: float) -> float:
        def network(noisy, t):
            alpha_bar = scheduler.alphas_cumprod[t][:, None, None, None]
            a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
            late = (t > less_copying.AMBIENT)[:, None, None, None]
            return SimpleNamespace(sample=(a * noisy - torch.where(late, factor, 1.0) * a * noisy) / s)

        return less_copying.ambient(network, x0, scheduler, torch.Generator().manual_seed(0), base=None).item()

    found = {factor: loss(factor) for factor in (0.7, 0.9, 1.0, 1.1, 1.3)}
    assert min(found, key=found.get) == 1.0
    one = torch.randn(4, 4, 4)
    assert torch.equal(less_copying._own_noise(one), less_copying._own_noise(one.clone()))
    assert not torch.equal(less_copying._own_noise(one), less_copying._own_noise(one + 1))


def test_base_against_heads_of_its_own_distribution(small, tiny_model, monkeypatch):
    texture = evaluation.textures(40, seed=0)[:, :64, :64]
    monkeypatch.setattr(
        base, "simulated_slices", lambda run, n, seed: (texture[:n] if seed == base.SEED else texture[20:], [""] * n)
    )
    base.main(model=tiny_model, n=20, steps=2, sheet=small / "sheet.png")
    found = result("base")
    for extractor in ("effnet", "alexnet"):
        made, floor = (found[name][f"fd_{extractor}"] for name in ("samples", "other heads"))
        assert found[f"ratio_{extractor}"] == pytest.approx(made / floor, abs=0.01)
    assert found["other heads"]["fd_alexnet"] < found["rebuilt"]["fd_alexnet"]  # through an untrained autoencoder


def test_heads_are_those_of_the_training_and_each_is_another():
    from synthmri import params
    from synthmri.simulation import pretraining

    run = params.read(ROOT / "pretrained/params.yaml", "pretrain", pretraining.Pretrain)
    run = run.model_copy(update={"image_size": 64})
    images, prompts = base.simulated_slices(run, 20, 5)
    assert images.shape == (20, 64, 64) and images.dtype == np.uint8 and all(prompts)
    assert len({image.tobytes() for image in images}) == 20 and len(base.simulated_slices(run, 3, 5)[1]) == 3


def test_simulated_heads_are_judged_against_real_slices(small, monkeypatch):
    """Textures stand for slices: some like the "real" ones, which cannot be told apart from them, and some not."""
    texture = evaluation.textures(80, seed=0)[:, :64, :64]
    like, unlike = texture[40:], 255 - texture[40:] // 2
    monkeypatch.setattr(heads, "load_atlas", lambda: None)
    monkeypatch.setattr(heads, "milliseconds", lambda atlas, p, n: 40.0 / (p.levels * p.views))
    monkeypatch.setattr(heads, "real_slices", lambda root, name, n, data: (texture[:40], np.arange(40) // 4))
    monkeypatch.setattr(heads, "simulated_slices", lambda atlas, p, name, n, depth: (like, np.arange(40) // 4))
    prompts = [f"{contrast} axial brain MRI" for contrast in ("T1w", "T2w", "FLAIR")]
    monkeypatch.setattr(
        heads, "older_slices", lambda commit, n, folder: (np.repeat(unlike, 3, 0), prompts * len(unlike), 60.0)
    )
    monkeypatch.delenv("REAL_MRI", raising=False)
    with pytest.raises(UserError, match="REAL_MRI is None; name the folder of real slices, which holds lgg-flair"):
        heads.main()
    for folder, *_ in heads.SETS.values():
        Path(folder).mkdir(exist_ok=True)
    monkeypatch.setenv("REAL_MRI", ".")
    heads.main(before="abc1234", n=40, sheets=small / "sheets")
    found = result("heads")
    for name in heads.SETS:
        then, now = found["before"][name], found["now"][name]
        assert then["fd_alexnet"] > 3 * now["fd_alexnet"] and then["fd_effnet"] > 1.5 * now["fd_effnet"]
        assert then["accuracy_effnet"] > 0.8 and 0.2 < now["accuracy_effnet"] < 0.8 and now["n"] == 40
    assert found["milliseconds_a_slice"]["before"] == 60.0
    assert len(list((small / "sheets").iterdir())) == len(heads.SETS)
    assert heads.table().count("\n") == 1 + len(heads.SETS) and str(then["fd_effnet"]) in heads.table()


def test_the_linear_code_is_the_best_of_its_size_and_the_whole_of_all_numbers():
    images = evaluation.textures(6, seed=0)[:, :64, :64]
    np.testing.assert_array_equal(reconstruction.linear(images, 64), images)
    errors = [np.square(reconstruction.linear(images, k).astype(float) - images).mean() for k in (1, 4, 16)]
    means = images.reshape(6, 8, 8, 8, 8).mean((2, 4), keepdims=True)  # one number a block: its mean is one such code
    of_means = np.square(np.broadcast_to(means, (6, 8, 8, 8, 8)) - images.reshape(6, 8, 8, 8, 8)).mean()
    assert errors[0] > errors[1] > errors[2] and errors[0] < of_means + 0.5


def test_reconstruction_and_its_yardsticks(small, tiny_model, monkeypatch):
    monkeypatch.delenv("REAL_MRI", raising=False)
    imageset.write(small / "set", slices(8))
    reconstruction.main(model=[tiny_model, tiny_model / "vae"], simulated=small / "set")
    found = result("reconstruction")
    assert set(found) == {"simulated", "simulated, vae", "simulated, linear", "simulated, WebP", "machine"}
    assert found["simulated, vae"] == found["simulated"]  # of the pipeline, and opened alone
    assert found["simulated"]["psnr"] < found["simulated, linear"]["psnr"]  # an untrained autoencoder
    assert 0 < found["simulated, WebP"]["bits_a_pixel"] < 8
    assert f"{found['simulated, WebP']['fd_alexnet']:g}" in reconstruction.table(found)


def test_real_slices_are_run_by_what_is_committed_and_told_with_its_commit(small, monkeypatch):
    """The clone is there already, as after an interruption, and what is run in it is only noted."""
    for name, root, words in (
        ("brats", ".", "choose one of lgg_flair, open_ms"),
        ("open_ms", "none", "REAL_MRI is 'none'; name the folder"),
    ):
        monkeypatch.setenv("REAL_MRI", root)
        with pytest.raises(UserError, match=words):
            real.main(name, small / "scratch")
    Path("open-ms").mkdir()
    Path("docs").mkdir()
    monkeypatch.setenv("REAL_MRI", ".")
    metrics, made = (small / "scratch/open_ms" / name for name in ("metrics", "data/samples/latent_diffusion"))
    metrics.mkdir(parents=True)
    made.mkdir(parents=True)
    for name in ("data", "autoencoder", "latent_diffusion", *real.TABLES):
        (metrics / f"{name}.json").write_text(json.dumps({"of": name}))
        (metrics / f"{name}.md").write_text(f"table of {name}")
    (metrics / "data.json").write_text(json.dumps({s: {"images": 9, "subjects": 0} for s in ("train", "val", "test")}))
    (metrics / "training").mkdir()
    (metrics / "training/latent_diffusion.json").write_text('{"epoch_kept": 2}')
    (metrics / "fd_progression.csv").write_text("epoch,images_seen,kid_effnet,kept\n0,0,0.25,0\n2,18,0.125,1\n")
    np.save(made / "images.npy", evaluation.textures(30, seed=0)[:, :64, :64])
    (made / "manifest.csv").write_text("prompt\nFLAIR a\nFLAIR a\nFLAIR b\n")
    ran, failed = [], 1

    def run(command, **how):
        ran.append((Path(command[-1]).name, how["cwd"]))
        if "commands.generate" in command:
            assert command[command.index("--n") + 1] == "50" and command.count("--prompt") == 2
            command[-1].mkdir()
            (command[-1] / "manifest.csv").write_text("seed,drawn,alike,implausible\n1,7,3,2\n2,7,3,2\n")
        return SimpleNamespace(stdout="abc1234\n", returncode=failed)

    monkeypatch.setattr(real.subprocess, "run", run)
    with pytest.raises(UserError, match="`dvc repro` failed in"):
        real.main("open_ms", small / "scratch")
    ran, failed = [], 0
    real.main("open_ms", small / "scratch")
    assert ran == [(name, metrics.parent) for name in ("repro", "HEAD", ".shielded.part")]
    found = result("real_open_ms")
    assert found["commit"] == "abc1234" and found["gate"] == {"of": "gate"}
    assert found["shield"] == {"drawn": 7, "alike": 3, "implausible": 2, "passed": 2}
    page = Path("docs/real_open_ms.md").read_text()
    assert "Nobody knows whose" in page and "drew 7 slices to pass 2: 3 were too like" in page
    assert "of ? people" in page and "0.125" in page
    assert "of commit abc1234" in page and all(f"table of {name}" in page for name in real.TABLES)
    assert Image.open("docs/real_open_ms.png").size == (8 * 68 - 4, 3 * 68 - 4)
    Path("lgg-flair").mkdir()
    shutil.copytree("scratch/open_ms", "scratch/lgg_flair")
    real.main("lgg_flair", small / "scratch")
    assert "no picture" in Path("docs/real_lgg_flair.md").read_text() and not Path("docs/real_lgg_flair.png").exists()


def test_evaluation_agrees_with_torchmetrics(small, monkeypatch):
    """On pictures of 128 x 128, and without measuring: each side works once."""
    whole = evaluation.textures
    monkeypatch.setattr(evaluation, "textures", lambda n, seed: whole(n, seed)[:, :128, :128])
    clock = iter([2.0, 6.0])
    monkeypatch.setattr(measure, "seconds", lambda work, repeats: next(clock))
    evaluation.main(n=50)
    found = result("evaluation")
    assert found["ratio"] == 3
    for name, tolerance in {"fd": 1e-2, "kid": 1e-2, "ssim": 0.01, "psnr": 1e-4, "lpips": 1e-4}.items():
        assert found["ours"][name] == pytest.approx(found["torchmetrics"][name], rel=tolerance, abs=1e-5), name


def test_effort_is_linear_in_slices_and_in_the_speed_assumed(small, tiny_model):
    text = (small / "params.yaml").read_text(encoding="utf-8")
    (small / "params.yaml").write_text(text.replace("pretrained/base", str(tiny_model)), encoding="utf-8")
    effort.main("smoke", slices=100, teraflops=1.0)
    once = result("effort")
    effort.main("smoke", slices=200, teraflops=2.0)
    twice = result("effort")
    ours = [found["latent_diffusion"]["training_petaflop"] for found in (once, twice)]
    assert ours[0] > 0 and ours[1] == pytest.approx(2 * ours[0], rel=0.02)
    for name in generators.GENERATORS.keys() - {"latent_diffusion"}:
        assert once[name]["training_petaflop"] == pytest.approx(twice[name]["training_petaflop"])
        assert once[name]["hours"] == pytest.approx(2 * twice[name]["hours"], rel=0.02)


def test_preprocessing(small):
    pytest.importorskip("monai", reason="the extra `benchmarks` is not installed")
    import nibabel

    for i in range(4):
        volume = np.zeros((60, 70, 40), np.float32)
        volume[10:50, 10:60, 2:38] = np.random.default_rng(i).uniform(50, 100, (40, 50, 36))
        folder = small / f"raw/sub-{i}/anat"
        folder.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([3, 3, 4, 1])), folder / f"sub-{i}_FLAIR.nii.gz")
    preprocessing.main(raw=small / "raw", volumes=4)
    assert result("preprocessing")["ratio"] > 0


def test_scaling_measures_step_by_step_and_size_by_size(small, monkeypatch, capsys):
    def square(n, folder, device, base):
        return {"seconds": n**2 / 1000, "peak_mib": 300}

    def linear(n, folder, device, base):
        return {"seconds": float(n), "peak_mib": 900}

    monkeypatch.setattr(scaling, "STEPS", {"preprocess": square, "evaluate": linear})
    scaling.main(sizes=[1000, 2000], steps=["preprocess"])
    scaling.main(sizes=[2000], steps=["evaluate"], cores=64)
    text = capsys.readouterr().out
    found = result("scaling")
    assert set(found["cpu"]["preprocess"]) == {"1000", "2000"} and Path("docs/scaling.png").stat().st_size > 1000
    assert found["ratio"] == {"preprocess": {"slices": 2, "time": 4}, "evaluate": {"slices": 1, "time": 1}}
    assert found["dvc_repro_with_nothing_to_do_seconds"] is None  # no pipeline is here
    assert "| 1,000 | 1000 s | 300 MiB |  |  |" in text and "| 2,000 | 4000 s | 300 MiB | 2000 s | 900 MiB |" in text
    assert "as N to the power: preprocess 2.00." in text
    assert f"{2e6 * found['machine']['cores'] / 64 / 60:.0f} min" in text  # preprocess: 2 s a slice
    with pytest.raises(UserError, match="--steps nap is none; the steps are preprocess, evaluate"):
        scaling.main(sizes=[1000], steps=["nap"])


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
@pytest.mark.parametrize("step", ["features", "evaluate", "finetune", "sample"])
def test_a_step_of_scaling_does_its_work(small, tiny_model, monkeypatch, step):
    from ruamel.yaml import YAML

    yaml = YAML()
    tree = yaml.load(Path("params.yaml"))
    tree["finetune"]["base_model"] = str(tiny_model)
    yaml.dump(tree, Path("params.yaml"))
    monkeypatch.setattr(scaling, "slices", lambda n, seed, base: base[np.arange(seed, seed + n) % len(base)])
    folder = small / "scratch"
    folder.mkdir()
    made = scaling.STEPS[step](60, folder, "cpu", np.random.default_rng(0).integers(0, 256, (99, 256, 256), np.uint8))
    assert made["seconds"] > 0 and made["peak_mib"] > 100
    if step == "features":
        assert np.load(folder / "features/effnet.npy").shape == (60, 1280)
    if step == "evaluate":
        assert json.loads((folder / "m.json").read_text())["n"] == 20
    if step == "finetune":
        assert (folder / "tuned/unet").is_dir() and np.load(folder / "latents/mean.npy").shape[0] == 60
    if step == "sample":
        assert len(imageset.read(folder / "samples")) == 60


def test_the_cohort_of_scaling_is_one_that_can_be_read(small):
    from synthmri.scans import read

    base = evaluation.textures(4, seed=0)
    scaling.cohort(Path("raw"), 40, base)
    found, bad = read.find(Path("raw"))
    volume = read.read(found[1])
    assert [source.contrast for source in found] == ["T1w", "T1w"] and not bad
    assert volume.data.shape == (256, 256, 20) and volume.spacing_mm == pytest.approx((scaling.MM, scaling.MM, 5))
    scaling.imagesets(Path("."), {"train": 20, "samples": 300}, base)
    made = imageset.read(Path("samples"))
    assert len(made) == 300 and len({image.tobytes() for image in made.images}) == 300


def test_time_and_memory_of_a_process_of_its_own(small):
    code = "import numpy, subprocess, sys, time; a = numpy.ones(25_000_000); time.sleep(1.5)\n"  # 191 MiB
    (small / "hungry.py").write_text(code, encoding="utf-8")
    (small / "two.py").write_text(f"{code}subprocess.run([sys.executable, 'hungry.py'])", encoding="utf-8")
    found = scaling.child(["two"], small)
    assert 2 * 191 < found["peak_mib"] < 600 and found["seconds"] > 3
    with pytest.raises(RuntimeError, match="nowhere failed: .*No module named"):
        scaling.child(["nowhere"], small)


def test_pays_compares_the_same_training_from_two_starts(small, tiny_model, monkeypatch):
    from synthmri import params

    text = (small / "params.yaml").read_text(encoding="utf-8")
    (small / "params.yaml").write_text(text.replace("pretrained/base", str(tiny_model)), encoding="utf-8")
    assert params.read(Path("params.yaml"), "adapt", pays.autoencoder_training.Adapt).steps < 10
    train, test = slices(16), slices(20)
    found = pays.both(train, test, small, steps=1, precision="fp32")
    assert found["n"] == 8 and found["epochs"] == 1
    assert found["ratio"] == pytest.approx(
        found["from_scratch"]["fd_alexnet"] / found["from_base"]["fd_alexnet"], rel=1e-6
    )
    assert found["from_scratch"] != found["from_base"]


def test_layouts_measure_every_precision_that_is_native(small, tiny_model, monkeypatch):
    monkeypatch.setattr(layouts, "native_bf16", lambda device: False)
    monkeypatch.setattr(layouts, "slowdown", lambda precision, device: 12.0)
    layouts.main(model=tiny_model, avx2=False, repeats=1)
    rows = result("layouts")["native"]
    assert rows.pop("emulated bf16 / fp32") == 12
    assert set(rows) == {f"fp32 {layout} {batch}" for layout in layouts.LAYOUTS for batch in (1, 4, 16)}
    assert all(value > 0 for row in rows.values() for value in row.values())
    assert set(rows["fp32 channels_last 16"]) == {"encode", "decode", "unet", "unet_training"}


def commands(folder: Path, script: str) -> dict[str, str]:
    """An environment in which `dvc` is this shell script."""
    (folder / "bin").mkdir()
    (folder / "bin/dvc").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin/dvc").chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:/usr/bin:/bin"}


def test_seconds_of_a_stage_end_where_the_next_begins(tmp_path, monkeypatch):
    clock = iter([0.0, 2.0, 2.0, 7.0, 7.0, 10.0])  # the start; the screen and the book of each stage; the end
    monkeypatch.setattr(repro.time, "perf_counter", lambda: next(clock))
    script = "echo \"Running stage 'a':\"; echo \"no Running stage 'x':\"; echo \"Running stage 'b@c':\""
    found = repro.timed_stages(tmp_path, commands(tmp_path, script))
    assert found == {"start of dvc": 2.0, "a": 5.0, "b@c": 3.0}


def test_a_stage_that_fails_ends_the_measurement_with_its_words(tmp_path):
    with pytest.raises(UserError, match="(?s)`dvc repro` failed in the clone.*disk is full"):
        repro.timed_stages(tmp_path, commands(tmp_path, "echo \"Running stage 'a':\"; echo disk is full; exit 1"))


def test_a_clone_is_not_put_over_something(tmp_path):
    with pytest.raises(UserError, match="exists already"):
        repro.main(keep=tmp_path)


def test_bounds_on_membership_pass_harmless_models_and_refuse_leaking_ones(small, monkeypatch):
    shutil.copy(ROOT / "params.yaml", "params.yaml")  # the bounds of the default; smoke has none
    monkeypatch.setattr(membership, "PEOPLE", (5, 32))
    membership.main(models=20)
    found = result("membership")["people_a_side"]["several"]["32"]
    assert found["0.5"]["passes"] > 0.9 and found["0.8"]["passes"] == 0
    assert found["0.5"]["mean_auroc_high"] < found["0.7"]["mean_auroc_high"] < found["0.8"]["mean_auroc_high"]


def finished(folder: Path) -> Path:
    """What the benchmarks of utility read of a pipeline folder: slices of 8, 2 and 2 people who have both labels."""
    shutil.copy("params.yaml", folder)
    for name, people in (("train", 8), ("val", 2), ("test", 2)):
        found = slices(4 * people)
        subjects = np.repeat([f"sub-{name}-{i}" for i in range(people)], 4)
        manifest = found.manifest.assign(label=["none", "lesions"] * 2 * people, subject=subjects)
        imageset.write(folder / "data/slices" / name, imageset.ImageSet(found.images, manifest, {}))
    (folder / "models/base").mkdir(parents=True)
    (folder / "models/sampling.json").write_text("{}")
    return folder


@pytest.mark.parametrize("samples", ["people", "noise"])
def test_what_stands_in_for_synthetic_slices(small, monkeypatch, samples):
    (small / "done").mkdir()
    folder, seen = finished(small / "done"), {}

    def utility(place, sets):
        seen.update({name: imageset.read(path) for name, path in sets.items()})
        return {"classes": 2.0}, "said"

    monkeypatch.setattr(arms, "utility", utility)
    arms.main("x", folder, samples)
    assert result("arms_x")["samples"] == samples and result("arms_x")["classes"] == 2
    train, added, whole = seen["train"], seen["samples"], imageset.read(folder / "data/slices/train")
    assert "subject" not in added.manifest and set(added.manifest["label"]) == {"none", "lesions"}
    if samples == "people":
        assert train.manifest["subject"].nunique() == 4 and len(train) + len(added) == len(whole)
        assert not (train.images[:, None] == added.images[None]).all((2, 3)).any()
    else:
        assert len(train) == len(added) == len(whole)
        away = added.images.astype(float) - whole.images
        assert 0.5 * arms.NOISE < away.std() <= arms.NOISE * 1.05


def test_few_people_train_the_generator_too_and_it_goes_on(small, monkeypatch):
    (small / "done").mkdir()
    folder, calls = finished(small / "done"), []
    (folder / "data/features/val").mkdir(parents=True)
    command = "test -d data/slices/train && test -d data/features/val && test -f models/sampling.json && echo {} >> ran"
    lock = {"stages": {stage: {"cmd": command.format(stage)} for stage in few_people.STAGES}}
    (folder / "dvc.lock").write_text(json.dumps(lock))

    def utility(place, sets):
        calls.append(imageset.read(sets["train"]).manifest["subject"].nunique())
        tree = {"classes": 2.0, "real": {"100": {}}, "both_1": {"100": {"auroc_gain": 0.1 * int(place.name[-1])}}}
        (place / "utility.json").write_text(json.dumps(tree))
        (place / "utility.md").write_text("said")

    monkeypatch.setattr(arms, "utility", utility)
    for _ in range(2):
        few_people.main("x", folder, small / "scratch", [2, 4], 2)
    assert calls == [2, 2, 4, 4] and set(result("few_people_x")) == {"2", "4", "machine"}
    assert (small / "scratch/2_0/ran").read_text().split() == list(few_people.STAGES)
    found = result("few_people_x")
    _, _, *rows = few_people.table({number: found[number] for number in ("2", "4")}).splitlines()
    # Of 0 and 0.1: Student's t of one degree of freedom, 12.71, times the error of the mean, 0.05.
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows] == [
        [number, "real and synthetic 1 : 1", "+0.050 (-0.585 to +0.685)", "2"] for number in ("2", "4")
    ]
    with pytest.raises(UserError, match="8 training people are known, and --people asks for 8"):
        few_people.main("x", folder, small / "scratch", [8], 1)
