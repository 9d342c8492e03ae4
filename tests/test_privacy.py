"""Membership inference: a model that learned its images by heart is caught, an honest one is not."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

from stages import privacy as stage
from synthmri import imageset, params, streams
from synthmri.errors import UserError
from synthmri.evaluation import copies, membership
from synthmri.generators import autoencoder, ddpm, finetuning, latent_diffusion
from synthmri.registry import gate
from synthmri.reporting import comparison
from synthmri.training import denoising_loss

P = membership.Privacy(loss_pairs=8, timesteps=(50, 100, 200, 400))
TINY = ddpm.Params(
    stem=4, channels=(32, 32), layers_per_block=1, sample_steps=5, steps=300, batch_size=8, learning_rate=5e-3,
)  # fmt: skip


def blobs(n: int, *, seed: int, side: int = 32) -> np.ndarray:
    """uint8 (n, side, side): smooth random pictures, every one of another imaginary person."""
    noise = torch.randn(n, 1, side // 2, side // 2, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, size=(side, side), mode="bicubic")[:, 0]
    return (128 + 50 * smooth).clamp(0, 255).byte().numpy()


def attacked(model, members: np.ndarray, others: np.ndarray) -> dict[str, float]:
    images = np.concatenate([members, others])
    errors = model.denoising_errors(images, [""] * len(images), P.timesteps, seed=0, batch_size=8)
    found = np.split(membership.by_loss(errors), [len(members)])
    return membership.attack(*found, np.arange(len(members)), np.arange(len(others)), P)


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    checkpoint = tmp_path_factory.mktemp("overfitted") / "state.pt"
    model, *_ = ddpm.DDPM.fit(
        blobs(8, seed=0), TINY, seed=0, points=1, checkpoint=checkpoint, tick=lambda *_: None, snapshot=lambda *_: None
    )
    return model


def test_a_model_that_learned_its_images_by_heart_is_caught_by_loss(overfitted):
    found = attacked(overfitted, blobs(8, seed=0), blobs(24, seed=1))
    assert found["auroc"] > 0.8 and found["auroc_low"] > 0.6 and found["tpr_at_1pct_fpr"] > 0.1


class Pooling(torch.nn.Module):
    """An autoencoder's first half that tells images apart, as an untrained one does not: means of 4 x 4 pixels."""

    def __init__(self):
        super().__init__()
        self.where = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(scaling_factor=2.0)

    def encode(self, x):
        small = torch.nn.functional.avg_pool2d(x[:, :1].float(), 4)
        return SimpleNamespace(latents=torch.nn.functional.pixel_unshuffle(small, 2))


@pytest.mark.parametrize("tiny_model", ["v_prediction"], indirect=True)
def test_a_latent_diffusion_model_that_learned_its_images_by_heart_is_caught_and_refused(tiny_model, tmp_path):
    """Relative to its base, as the stage does it; what it finds is what the gate refuses."""
    members, others, text = blobs(8, seed=0, side=64), blobs(24, seed=1, side=64), "T1w axial brain MRI"
    images, texts = np.concatenate([members, others]), [text] * 32
    pipe = latent_diffusion.load(tiny_model)
    pipe.vae = Pooling()

    def errors() -> np.ndarray:
        return latent_diffusion.denoising_errors(pipe, images, texts, P.timesteps, seed=0, batch_size=8)

    before = errors()
    mean, std = autoencoder.encode(pipe.vae, members, batch_size=8)
    p = params.read("params.yaml", "finetune", finetuning.Finetune)
    p = p.model_copy(update=dict(epochs=150, batch_size=8, learning_rate=5e-3))
    finetuning.finetune(
        pipe,
        finetuning.Lessons(mean[:, None], 0 * std[:, None], texts[:8]),
        p,
        seed=0,
        checkpoint=tmp_path / "state.pt",
    )
    found = membership.attack(*np.split(membership.by_loss(errors(), before), [8]), np.arange(8), np.arange(24), P)
    assert found["auroc_low"] > 0.6
    honest = {"val_kid_effnet": 0.1, "memorised": 0.05, "coverage": 0.5}
    rules = params.read("params.yaml", "registry", gate.Registry)
    verdict = gate.judge(honest | membership.worst({"loss": found}), rules)
    assert [rule for rule, why in verdict.items() if why] == ["mia_auroc", "mia_auroc_high"]


def test_of_images_that_it_never_saw_it_tells_nothing(overfitted):
    found = attacked(overfitted, blobs(40, seed=2), blobs(40, seed=3))
    assert found["auroc_low"] < 0.5 and found["auroc"] < 0.6


def test_an_untrained_model_is_not_caught():
    model = ddpm.DDPM.untrained(TINY, 32, seed=0)
    found = attacked(model, blobs(40, seed=0), blobs(40, seed=1))
    assert found["auroc_low"] < 0.5 and found["auroc"] < 0.6


def test_copies_are_caught_by_distance_and_others_are_not():
    members, others, who = blobs(20, seed=0, side=64), blobs(20, seed=1, side=64), np.arange(20)
    copied = np.clip(members[:, :, ::-1] + np.random.default_rng(0).normal(0, 5, members.shape), 0, 255).astype(
        np.uint8
    )
    honest = blobs(20, seed=2, side=64)

    def attack(made):
        return membership.attack(*(copies.likeness(side, made).largest for side in (members, others)), who, who, P)

    caught, missed = attack(copied), attack(honest)
    assert caught["auroc"] == caught["auroc_low"] == caught["tpr_at_1pct_fpr"] == 1
    assert missed["auroc_low"] < 0.5 < missed["auroc_high"]


def test_slices_of_one_person_do_not_narrow_the_interval():
    """The same scores ten times over know no more; counted as people they would seem to."""
    rng = np.random.default_rng(0)
    members, others, who = rng.normal(0.5, 1, 12), rng.normal(0, 1, 12), np.arange(12)
    once = membership.attack(members, others, who, who, P)
    tenfold = membership.attack(
        np.repeat(members, 10), np.repeat(others, 10), np.repeat(who, 10), np.repeat(who, 10), P
    )
    assert tenfold["auroc_low"] == pytest.approx(once["auroc_low"], abs=1e-9)
    apart = membership.attack(np.repeat(members, 10), np.repeat(others, 10), np.arange(120), np.arange(120), P)
    assert apart["auroc_low"] > once["auroc_low"] + 0.05


def test_a_handful_of_people_is_sure_of_nothing():
    found = membership.attack(np.ones(40), np.zeros(40), np.arange(40) % 4, np.arange(40), P)
    assert found == {"auroc": 1, "tpr_at_1pct_fpr": 1, "people": 4, "trained_people": 4}
    assert {"auroc_low", "auroc_high"} < set(membership.attack(np.ones(5), np.zeros(5), np.arange(5), np.arange(5), P))


def test_attack_is_the_area_of_scikit_learn_and_the_rate_is_counted():
    members, others = np.array([3.0, 1.0, 2.0, 5.0]), np.array([0.0, 2.0, 4.0])
    found = membership.attack(members, others, np.arange(4), np.arange(3), P)
    assert found["auroc"] == pytest.approx(roc_auc_score([1] * 4 + [0] * 3, np.concatenate([members, others])))
    assert found["tpr_at_1pct_fpr"] == 0.25  # one of four lies above the highest of the others


def test_one_false_alarm_in_a_hundred_is_allowed():
    others = np.arange(100.0)
    found = membership.attack(np.array([98.5, 97.5]), others, np.arange(2), np.arange(100), P)
    assert found["tpr_at_1pct_fpr"] == 0.5


def test_worst_is_what_either_attack_may_reach():
    """Of the upper ends the largest, whichever attack it is of: what is not known of one may be its success."""
    sure = {"auroc": 0.60, "auroc_low": 0.57, "auroc_high": 0.63, "people": 20.0, "trained_people": 20.0}
    large = {"auroc": 0.55, "auroc_low": 0.36, "auroc_high": 0.74, "people": 9.0, "trained_people": 20.0}
    found = membership.worst({"distance": sure, "loss": large})
    assert (found["mia_auroc"], found["mia_auroc_high"], found["mia_people"]) == (0.60, 0.74, 9)
    unknown = {"auroc": 0.5, "people": 4.0, "trained_people": 20.0}
    assert "mia_auroc_high" not in membership.worst({"distance": sure, "loss": unknown})


def test_the_upper_end_is_the_known_one_where_a_person_is_one_slice():
    """With n people a side that nothing tells apart, by Mann and Whitney's variance (2n + 1) / (12 n^2)."""
    rng, n = np.random.default_rng(0), 40
    ends = [
        membership.attack(rng.standard_normal(n), rng.standard_normal(n), np.arange(n), np.arange(n), P)["auroc_high"]
        for _ in range(200)
    ]
    assert np.mean(ends) == pytest.approx(0.5 + 1.96 * np.sqrt((2 * n + 1) / (12 * n**2)), abs=0.012)
    assert np.mean(np.array(ends) > 0.5) > 0.94


def test_worst_is_the_most_successful_attack():
    known = {"people": 9.0, "trained_people": 9.0}
    weak, strong = (known | {"auroc": a, "auroc_low": a - 0.1, "auroc_high": a + 0.1} for a in (0.5, 0.8))
    found = membership.worst({"distance": weak, "loss": strong})
    assert found["mia_auroc"] == 0.8 and found["mia_auroc_high"] == pytest.approx(0.9)
    assert found["mia_distance_auroc"] == 0.5


def test_what_no_interval_is_known_of_does_not_pass_the_gate():
    """Of four people an attack of AUROC 0.5 may yet be one of 1."""
    found = membership.worst(
        {"distance": membership.attack(np.zeros(40), np.zeros(40), np.arange(40) % 4, np.arange(40), P)}
    )
    assert found["mia_auroc"] == 0.5 and not any(name.endswith(("_low", "_high")) for name in found)
    good = {"val_kid_effnet": 0.02, "memorised": 0.05, "coverage": 0.3}
    p = params.read("params.yaml", "registry", gate.Registry)
    assert gate.judge(good | found, p)["mia_auroc_high"].startswith("mia_auroc_high is not known")
    worse = found | {"mia_auroc": 0.96}
    said = membership.markdown({"vae": found, "dcgan": worse}, {"vae": "VAE", "dcgan": "DCGAN"})
    assert "| 0.500 (interval not known) | 0.000 |" in said
    assert said.startswith("One side has fewer than 5 people") and "on DCGAN, with an AUROC of 0.960" in said
    assert "So few people cannot be protected" in said
    enough = worse | {"mia_trained_people": 24.0}
    assert "with an AUROC of 0.960. More validation or test people would tell." in membership.markdown(
        {"vae": found, "dcgan": enough}, {"vae": "VAE", "dcgan": "DCGAN"}
    )
    both = {"mia_loss_auroc": 0.97, "mia_loss_tpr_at_1pct_fpr": 0.5, "mia_auroc": 0.97, "mia_trained_people": 24.0}
    sure = {"mia_distance_auroc": 0.5, "mia_distance_auroc_low": 0.4, "mia_distance_auroc_high": 0.6}
    said = membership.markdown({"vae": both | sure | {"mia_distance_tpr_at_1pct_fpr": 0.0}}, {"vae": "VAE"})
    assert "on VAE, with an AUROC of 0.970" in said and "No attack tells" not in said
    off = p.model_copy(update={"largest_mia_auroc_high": 1.0})
    assert not any(gate.judge(good | found, off).values())


def test_every_timestep_has_the_same_weight():
    errors = np.random.default_rng(0).random((6, 3))
    assert np.allclose(membership.by_loss(errors), membership.by_loss(errors * [1, 1000, 0.01]))


def test_easy_people_are_not_taken_for_members_where_a_reference_tells():
    """Members are easier to any model: the bare error betrays that alone. What training took off is found."""
    rng = np.random.default_rng(0)
    hard = np.exp(rng.normal(np.repeat([0.0, 1.0], 20)[:, None], 0.3, (40, 3)))
    noise = np.exp(rng.normal(0, 0.05, (40, 3)))
    seen, who = np.where(np.arange(40) < 20, 0.8, 1.0)[:, None], np.arange(20)

    def found(*errors):
        return membership.attack(*np.split(membership.by_loss(*errors), 2), who, who, P)

    assert found(hard * noise)["auroc_low"] > 0.8  # no training at all
    honest = found(hard * noise, hard)
    assert honest["auroc_low"] < 0.5 < honest["auroc_high"]
    assert found(hard * noise * seen, hard)["auroc_low"] > 0.9


def test_pairs_are_alike_in_contrast_and_level():
    def manifest(levels, contrast, label="none"):
        depths = [f"{10 * mm:.2f}" for mm in levels]
        return pd.DataFrame({"contrast": contrast, "plane": "axial", "label": label, "depth_mm": depths})

    members = manifest([3, 3, 4, 5, 7], ["T1w", "T1w", "T1w", "FLAIR", "T1w"])
    others = manifest([3, 4, 4, 5, 6], ["T1w", "T1w", "T1w", "T1w", "T1w"])
    ours, theirs = membership.matched(members, others)
    columns = ["contrast", "depth_mm"]
    assert members.iloc[ours][columns].values.tolist() == others.iloc[theirs][columns].values.tolist()
    assert len(ours) == 2 and len(set(theirs)) == 2
    for other in (manifest([9], ["PD"]), manifest([3], ["T1w"], "lesions")):
        assert [len(side) for side in membership.matched(members, other)] == [0, 0]


def test_errors_are_those_of_training():
    """The mean over timesteps and noises of the errors is the loss without weights."""
    images = blobs(16, seed=0)
    model = ddpm.DDPM.untrained(TINY, 32, seed=0)
    steps = list(range(2, 1000, 5))
    errors = model.denoising_errors(images, [""] * 16, steps, seed=0, batch_size=5)
    x = torch.nn.functional.pixel_unshuffle(torch.from_numpy(images)[:, None].float() / 127.5 - 1, 4)
    with torch.no_grad():
        losses = [
            denoising_loss.loss(model.network, x, model.scheduler, streams.generator(0, k)).item() for k in range(50)
        ]
    assert errors.shape == (16, 200) and errors.mean() == pytest.approx(np.mean(losses), rel=0.03)


def test_timestep_beyond_the_schedule_is_named():
    model = ddpm.DDPM.untrained(TINY, 32, seed=0)
    with pytest.raises(UserError, match="privacy.timesteps holds 1000; the model's noise schedule has 0 to 999"):
        model.denoising_errors(blobs(2, seed=0), [""] * 2, [1000], seed=0, batch_size=2)


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_model):
    """A place to run the stage in: three splits of a few people, samples, and untrained models."""
    shutil.copy("params.yaml", tmp_path)
    tree = yaml.safe_load((tmp_path / "params.yaml").read_text())
    tree["privacy"] = P.model_dump(mode="json") | {"loss_pairs": 18, "timesteps": [100]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(tmp_path)
    for name, people in (("train", 7), ("val", 1), ("test", 5)):
        who = np.repeat(np.arange(people), 3)
        columns = {
            "contrast": "T1w",
            "plane": "axial",
            "label": "none",
            "depth_mm": ["30.00", "40.00", "50.00"] * people,
        }
        manifest = pd.DataFrame({"subject": [f"sub-{name}-{i}" for i in who]}).assign(**columns)
        images = blobs(len(who), seed=people, side=64)
        imageset.write(tmp_path / "slices" / name, imageset.ImageSet(images, manifest))
    for k, name in enumerate(comparison.MODELS):
        save_samples(tmp_path, name, blobs(5, seed=20 + k, side=64))
    for name in ("base", "latent_diffusion"):
        shutil.copytree(tiny_model, tmp_path / "models" / name)
    ddpm.DDPM.untrained(TINY, 64, seed=0).save(tmp_path / "models/ddpm")
    return tmp_path


def save_samples(folder, name, images):
    manifest = pd.DataFrame({"seed": [str(seed) for seed in range(len(images))]})
    imageset.write(folder / "samples" / name, imageset.ImageSet(images, manifest))


def run(folder):
    stage.main(*(folder / name for name in ("slices", "samples", "models", "privacy.json", "privacy.md")))
    return json.loads((folder / "privacy.json").read_text()), (folder / "privacy.md").read_text()


def test_stage_attacks_every_model_and_gives_the_same_again(folder):
    tree, text = run(folder)
    assert list(tree) == list(comparison.MODELS)
    for name, row in tree.items():
        assert {"mia_auroc", "mia_auroc_high", "mia_distance_auroc", "mia_people", "mia_pairs"} <= set(row)
        assert ("mia_loss_auroc" in row) == (name in ("latent_diffusion", "ddpm"))
        assert all(isinstance(value, float) and np.isfinite(value) for value in row.values())
    assert tree["vae"]["mia_pairs"] == 18 and "18 training slices against as many" in text
    assert tree["latent_diffusion"]["mia_loss_auroc"] == 0.5  # it is its own base here: nothing to find
    assert run(folder) == (tree, text)


def test_stage_catches_a_model_whose_images_are_copies(folder):
    """Mirrored, as models that train on mirror images may draw them."""
    near = imageset.read(folder / "slices/train").images
    save_samples(folder, "vae", np.ascontiguousarray(near[:, :, ::-1]))
    tree, text = run(folder)
    assert tree["vae"]["mia_auroc"] == 1 and "better than chance for: VAE" in text


def test_stage_without_a_pair_says_so(folder):
    for name in ("val", "test"):
        found = imageset.read(folder / "slices" / name)
        made = imageset.ImageSet(np.array(found.images), found.manifest.assign(contrast="PD"))
        imageset.write(folder / "slices" / name, made)
    tree, text = run(folder)
    assert tree["vae"] == {"mia_pairs": 0} and text.startswith("Not measured")


def test_stage_without_samples_names_the_remedy(folder):
    shutil.rmtree(folder / "samples/vae")
    with pytest.raises(UserError, match="samples/vae is no ImageSet.*run `dvc repro`"):
        run(folder)


def test_latent_errors_know_the_prompt(tiny_model):
    pipe = latent_diffusion.load(tiny_model)
    images = blobs(3, seed=0, side=64)
    errors = latent_diffusion.denoising_errors(pipe, images, ["T1w", "FLAIR", "T1w"], [100, 300], seed=0, batch_size=2)
    other = latent_diffusion.denoising_errors(pipe, images, ["T1w", "T1w", "T1w"], [100, 300], seed=0, batch_size=3)
    assert errors.shape == (3, 2) and np.isfinite(errors).all()
    assert np.allclose(errors[[0, 2]], other[[0, 2]], rtol=0.03) and not np.allclose(errors[1], other[1], rtol=1e-6)
