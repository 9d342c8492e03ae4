"""The choice of the sampler's settings: what is tried, what is sure, and what is written."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from synthmri import params
from synthmri.errors import UserError
from synthmri.evaluation import sweep
from synthmri.generators import latent_diffusion
from synthmri.reporting import plots
from synthmri.training import sampling


def own(**change):
    return params.read("params.yaml", "sample", sampling.Sample).model_copy(update=change)


def section(**change):
    return params.read("params.yaml", "sweep", sweep.Sweep).model_copy(update=change)


def combinations(samples):
    return [(one.guidance_scale, one.steps, one.scheduler) for one in samples]


# what is tried -------------------------------------------------------------------------------------------------------


def test_section_sample_comes_first_and_once():
    p = section(guidance_scale=(1.0, 3.0), steps=(5, 9), scheduler=("ddim",))
    mine = own(guidance_scale=3.0, steps=9, scheduler="ddim")
    tried = combinations(sweep.grid(p, mine, guided=True))
    assert tried[0] == (3.0, 9, "ddim")
    assert sorted(tried) == [(1.0, 5, "ddim"), (1.0, 9, "ddim"), (3.0, 5, "ddim"), (3.0, 9, "ddim")]


def test_an_empty_list_is_the_value_of_section_sample():
    mine = own(guidance_scale=1.5, steps=9, scheduler="ddim")
    assert combinations(sweep.grid(section(guidance_scale=(), steps=(), scheduler=()), mine, guided=True)) == [
        (1.5, 9, "ddim")
    ]


def test_guidance_is_not_tried_where_it_changes_nothing():
    tried = sweep.grid(section(guidance_scale=(1.0, 7.0), steps=(4, 8), scheduler=()), own(steps=4), guided=False)
    assert [one.guidance_scale for one in tried] == [own().guidance_scale] * 2


def test_evaluations_of_the_network():
    guided = own(guidance_scale=7.0, steps=10)
    assert sampling.evaluations(["T1w"], guided) == 20
    assert sampling.evaluations(["", ""], guided) == 10
    assert sampling.evaluations(["T1w"], own(guidance_scale=1.0, steps=10)) == 10


# what is sure --------------------------------------------------------------------------------------------------------


def cohort(rng, people=6, each=12, size=16):
    subjects = np.repeat(np.arange(people), each)
    return rng.normal(size=(people, size))[subjects] * 0.3 + rng.normal(size=(people * each, size)), subjects


def test_gains_are_differences_of_kid_and_zero_for_the_first():
    from synthmri.evaluation import distances

    rng = np.random.default_rng(0)
    val, subjects = cohort(rng)
    sets = [rng.normal(size=(20, 16)) + shift for shift in (1.0, 0.0, 2.0)]
    gain, spread = sweep.gains(sets, val, subjects, seed=0)
    kid = [distances.kernel_distance(one, val) for one in sets]
    np.testing.assert_allclose(gain, [0, kid[0] - kid[1], kid[0] - kid[2]])
    assert spread[0] == 0 and (spread[1:] > 0).all() and gain[1] > 0 > gain[2]
    assert sweep.choose(gain, spread, 6) == 1


def test_equals_keep_section_sample():
    """Sets of one distribution: another than the first is chosen no more often than promised."""
    rng = np.random.default_rng(1)
    val, subjects = cohort(rng)
    taken = 0
    for _ in range(40):
        sets = [rng.normal(size=(12, 16)) for _ in range(4)]
        taken += sweep.choose(*sweep.gains(sets, val, subjects, seed=0), 6) != 0
    assert taken <= 6  # 2 are expected at most; more than 6 would have a chance of 0.003


def test_people_add_to_the_uncertainty():
    rng = np.random.default_rng(2)
    val, subjects = cohort(rng)
    sets = [rng.normal(size=(20, 16)) + shift for shift in (0.5, 0.0)]
    slices = np.arange(len(val))
    as_slices, as_people = (sweep.gains(sets, val, who, seed=0)[1] for who in (slices, subjects))
    assert 0 < as_slices[1] < as_people[1]  # slices of one person are alike


@pytest.mark.parametrize(
    ("gain", "spread", "people", "best"),
    [
        ([0.0], [0.0], 5, 0),
        ([0.0, 1.0], [0.0, 0.7], 9999, 0),  # 1.4 standard errors; 1.64 are needed of one
        ([0.0, 1.0], [0.0, 0.5], 9999, 1),
        ([0.0, 1.0], [0.0, 0.5], 5, 0),  # 2.13 of five people (Student's t with 4 degrees of freedom)
        ([0.0, 1.0], [0.0, 0.4], 5, 1),
        ([0.0, 1.0, 0.1, 0.2], [0.0, 0.5, 1.0, 1.0], 9999, 0),  # 2.13 of three
        ([0.0, 1.0, 2.0, 3.0], [0.0, 0.1, 0.1, 9.0], 9999, 2),
        ([0.0, -1.0], [0.0, 0.1], 5, 0),
    ],
)
def test_choice(gain, spread, people, best):
    assert sweep.choose(np.array(gain), np.array(spread), people) == best


# what is written -----------------------------------------------------------------------------------------------------


def test_chosen_settings_replace_those_of_section_sample():
    p = sampling.with_choice(own(), {"guidance_scale": 2.0, "steps": 7, "scheduler": "ddim"})
    assert combinations([p]) == [(2.0, 7, "ddim")] and p.n == own().n
    with pytest.raises(UserError, match="sample.guidance_scale = 0"):
        sampling.with_choice(own(), {"guidance_scale": 0.0})


def test_heat_map_frames_the_chosen(tmp_path):
    table = pd.DataFrame(
        {
            "guidance_scale": [1.0, 2.0, 1.0], "steps": [4, 4, 8], "scheduler": ["ddim"] * 2 + ["euler"],
            "kid_effnet": [0.1, 0.2, -0.01], "chosen": [0, 0, 1],
        }
    )  # fmt: skip
    figure = plots.heat_map(table, "kid_effnet")
    ddim, euler = figure.axes[:2]
    assert [len(axes.patches) for axes in (ddim, euler)] == [0, 1]
    assert {text.get_text() for text in ddim.texts} == {"0.1", "0.2"}
    plots.save(figure, tmp_path / "a.png")
    plots.save(plots.heat_map(table, "kid_effnet"), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def workplace(folder: Path, model: Path, monkeypatch, *, template="{contrast} {plane} brain MRI", **lists) -> None:
    """Slices of 3 people and a params.yaml in a folder, which becomes the current one."""
    from ruamel.yaml import YAML

    from synthmri import imageset
    from synthmri.evaluation import features

    yaml = YAML()
    yaml.preserve_quotes = True
    tree = yaml.load(Path("params.yaml"))
    tree["prompt"]["template"] = template
    tree["sample"].update({"guidance_scale": 7.0, "steps": 2, "scheduler": "dpmsolver++", "batch_size": 4, "n": 8})
    tree["sweep"].update(lists)
    yaml.dump(tree, folder / "params.yaml")
    monkeypatch.chdir(folder)
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"subject": list("aabbcc"), "contrast": "T1w", "plane": "axial", "label": "", "depth_mm": "60"})
    for name in ("train", "val"):
        images = rng.integers(0, 255, (6, 64, 64), dtype=np.uint8)
        imageset.write(Path(name), imageset.ImageSet(images, rows))
    Path("features").mkdir()
    np.save("features/effnet.npy", features.effnet(images))
    Path("model").symlink_to(model)


def run_sweep() -> tuple[pd.DataFrame, dict]:
    from stages import sweep as stage

    stage.main(
        model=Path("model"), images=Path("train"), validation=Path("val"), validation_features=Path("features"),
        table=Path("sweep.csv"), picture=Path("sweep.png"), choice=Path("sampling.json"),
    )  # fmt: skip
    return pd.read_csv("sweep.csv"), json.loads(Path("sampling.json").read_text())


def test_the_stage_scores_every_combination_and_sample_reads_its_choice(tiny_model, tmp_path, monkeypatch, capsys):
    from stages import sample

    workplace(tmp_path, tiny_model, monkeypatch, guidance_scale=[1.0], steps=[1, 2], scheduler=["ddim"])
    table, choice = run_sweep()
    assert list(zip(table.guidance_scale, table.steps, table.network_evaluations, strict=True)) == [
        (7.0, 2, 4), (1.0, 1, 1), (1.0, 2, 2),
    ]  # fmt: skip
    assert np.isfinite(table[["kid_effnet", "fd_effnet", "kid_gain_std"]]).all(axis=None) and set(table.n) == {8}
    best = table[table.chosen == 1].iloc[0]
    assert choice == {name: best[name] for name in ("guidance_scale", "steps", "scheduler")}
    assert Image.open("sweep.png").size[0] > 100
    Path("sampling.json").write_text(json.dumps(choice | {"steps": 3}))
    sample.main("latent_diffusion", Path("model"), Path("train"), Path("out"), Path("sheet.png"), Path("sampling.json"))
    assert json.loads(Path("out/meta.json").read_text())["sample"]["steps"] == 3


def test_too_few_people_choose_nothing(tiny_model, tmp_path, monkeypatch, capsys):
    workplace(tmp_path, tiny_model, monkeypatch, guidance_scale=[1.0], steps=[1, 2], scheduler=["ddim"])
    rows = pd.read_csv("val/manifest.csv", dtype=str, keep_default_na=False)
    rows.assign(subject=list("aaabbb")).to_csv("val/manifest.csv", index=False)
    table, choice = run_sweep()
    assert "2 validation people are too few to choose by" in capsys.readouterr().err
    assert list(table.chosen) == [1, 0, 0] and "kid_gain" not in table
    assert np.isfinite(table.kid_effnet).all() and choice["steps"] == 2


def test_with_empty_prompts_guidance_is_said_to_do_nothing(tiny_model, tmp_path, monkeypatch, capsys):
    from stages import sample

    workplace(tmp_path, tiny_model, monkeypatch, template="", guidance_scale=[1.0, 3.0], steps=[], scheduler=["ddim"])
    table, choice = run_sweep()
    assert "guidance changes nothing" in capsys.readouterr().err
    assert set(table.guidance_scale) == {7.0} and set(table.network_evaluations) == {2}
    sample.main("latent_diffusion", Path("model"), Path("train"), Path("out"), Path("sheet.png"), Path("sampling.json"))
    assert "guidance 7 changes nothing" in capsys.readouterr().err


def test_the_original_recipe_draws(tiny_model, tmp_path, monkeypatch, capsys):
    """profiles/seed.yaml as it is, but for the number of images and of steps."""
    from ruamel.yaml import YAML

    from commands import profile
    from stages import sample

    recipe = Path("profiles/seed.yaml").read_text()
    workplace(tmp_path, tiny_model, monkeypatch)
    Path("profiles").mkdir()
    Path("profiles/seed.yaml").write_text(recipe)
    profile.main("seed")
    yaml = YAML()
    yaml.preserve_quotes = True
    tree = yaml.load(Path("params.yaml"))
    assert dict(tree["sample"]) | {"guidance_scale": 7.0, "steps": 1000, "batch_size": 32} == tree["sample"]
    tree["sample"].update({"steps": 10, "n": 2, "batch_size": 2})
    yaml.dump(tree, Path("params.yaml"))
    table, choice = run_sweep()
    assert choice == {"guidance_scale": 7.0, "steps": 10, "scheduler": "ddpm"} and list(table.n) == [0]
    sample.main("latent_diffusion", Path("model"), Path("train"), Path("out"), Path("sheet.png"), Path("sampling.json"))
    drawn = np.load("out/images.npy")
    assert drawn.shape == (2, 64, 64) and drawn.std() > 0
    assert "guidance 7 changes nothing" in capsys.readouterr().err


def test_nothing_is_drawn_where_there_is_nothing_to_choose(tmp_path, monkeypatch):
    workplace(tmp_path, tmp_path / "no model", monkeypatch, guidance_scale=[], steps=[], scheduler=[])
    table, choice = run_sweep()
    assert choice == {"guidance_scale": 7.0, "steps": 2, "scheduler": "dpmsolver++"}
    assert list(table.n) == [0] and list(table.chosen) == [1] and "kid_effnet" not in table
    assert Path("sweep.png").stat().st_size > 1000


def test_guidance_without_words_changes_nothing(tiny_model):
    """That skipping it is right: the plain pipeline with guidance 7 and no prompt draws what it draws without."""
    from diffusers import StableDiffusionPipeline

    p = own(guidance_scale=7.0, steps=3, batch_size=1, scheduler="ddim")
    pipe = latent_diffusion.load(tiny_model)
    calls = []
    pipe.unet.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    ours = latent_diffusion.draw(pipe, [""], [3], p, size=64)[:, 0][0] / 255
    assert calls == [1, 1, 1]
    plain = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    plain.scheduler = latent_diffusion.new_scheduler(plain, "ddim")
    import torch

    theirs = plain(
        "", generator=torch.Generator().manual_seed(3), num_inference_steps=3, guidance_scale=7.0, height=64, width=64,
        output_type="np",
    ).images[0].mean(-1)  # fmt: skip
    assert np.abs(ours - theirs).max() < 2 / 255


def test_the_base_is_drawn_with_the_adapted_decoder(tiny_model, tmp_path, monkeypatch):
    """What tells the decoder's share from that of fine-tuning: same seeds and prompts, another autoencoder."""
    from diffusers import AutoencoderKL

    from stages import sample

    workplace(tmp_path, tiny_model, monkeypatch)
    Path("sampling.json").write_text(json.dumps({"guidance_scale": 1.0, "steps": 2, "scheduler": "ddim"}))
    vae = AutoencoderKL.from_pretrained(tiny_model / "vae")
    vae.save_pretrained("same")
    vae.decoder.conv_out.bias.data += 0.5
    vae.save_pretrained("brighter")
    drawn = {}
    for name in (None, "same", "brighter"):
        arguments = ("latent_diffusion", *map(Path, ("model", "train", "out", "sheet.png", "sampling.json")))
        sample.main(*arguments, vae=name and Path(name))
        drawn[name] = np.load("out/images.npy").astype(float)
    assert (drawn["same"] == drawn[None]).all() and (drawn["brighter"] - drawn[None]).mean() > 10
