"""What a model card says of the raters of its images."""

import re

import numpy as np
import pytest
from ruamel.yaml import YAML

from synthmri import generators
from synthmri.generators import latent_diffusion, vae
from synthmri.reporting import card, comparison
from synthmri.training import sampling

SMALL = dict(width=4, latent_dim=2, steps=1, batch_size=2, learning_rate=1e-3)

COUNTS = {"raters": 4.0, "cases": 20.0, "few": 0.0, "inattentive": 0.0}
MANUAL = {"manual_score": 3.2, "manual_score_low": 2.9, "manual_score_high": 3.5}
FOUND = {"proportion_correct": 0.71, "proportion_correct_low": 0.6, "proportion_correct_high": 0.82}


def written(rated: dict[str, float], **seen: float) -> str:
    with open("params.yaml", encoding="utf-8") as file:
        tree = YAML(typ="safe").load(file)
    data = {split: {"images": 9, "subjects": 3} for split in ("train", "val", "test")}
    effort = {"parameters": 1e6, "images_seen": 100.0, "teraflop": 1.0} | seen
    verdict = "It passes the gate."
    return card.model_card("VAE", "vae", False, {"n": 200.0}, {}, effort, verdict, data, tree, "a prompt", rated)


def test_what_opens_it_opens_it(tmp_path):
    """The lines of the card, on a model of 16 px."""
    trained = generators.find("vae").untrained(vae.Params(**SMALL), 16, seed=0)
    trained.fit_prior(np.random.default_rng(0).integers(0, 256, (20, 16, 16), np.uint8))
    trained.save(tmp_path / "vae")
    code = re.search(r"```python\n(.*?)\n```", written({}), re.DOTALL)[1]
    space: dict = {}
    exec(code.replace("FOLDER", str(tmp_path / "vae")), space)
    assert space["images"].shape == (3, 16, 16) and space["images"].dtype == np.uint8


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
@pytest.mark.parametrize("name", sampling.SCHEDULERS)
def test_what_opens_a_pipeline_draws_by_the_sampler_of_its_scores(tiny_model, name):
    with open("params.yaml", encoding="utf-8") as file:
        tree = YAML(typ="safe").load(file)
    tree["sample"] |= {"steps": 2, "scheduler": name}
    data = {split: {"images": 9, "subjects": 3} for split in ("train", "val", "test")}
    effort = {"parameters": 1e6, "images_seen": 100.0, "teraflop": 1.0}
    text = card.model_card(
        "x", "latent_diffusion", True, {"n": 200.0}, {}, effort, "It passes.", data, tree, "a prompt", {}
    )
    space: dict = {}
    exec(re.search(r"```python\n(.*?)\n```", text, re.DOTALL)[1].replace("FOLDER", str(tiny_model)), space)
    ours = latent_diffusion.new_scheduler(latent_diffusion.load(tiny_model), name)
    assert type(space["pipe"].scheduler) is type(ours) and space["pipe"].scheduler.config == ours.config
    assert len(space["pipe"].scheduler.timesteps) == 2 and space["image"].mode == "RGB"


def test_a_model_that_draws_masks_says_which_channel_they_are():
    with open("params.yaml", encoding="utf-8") as file:
        tree = YAML(typ="safe").load(file)
    data = {split: {"images": 9, "subjects": 3} for split in ("train", "val", "test")}
    effort = {"parameters": 1e6, "images_seen": 100.0, "teraflop": 1.0}
    given = ("x", "latent_diffusion", True, {"n": 200.0}, {}, effort, "It passes the gate.", data, tree, "a prompt", {})
    text, without = card.model_card(*given, 0.761), card.model_card(*given)
    assert "blue is the mask of its lesions" in text and "Dice 0.76 on validation slices" in text
    assert "red, green, mask = image.split()" in text
    assert "mask" not in without


def test_what_it_was_pretrained_on_is_said():
    assert "simulated slices" not in written({}).partition("## Training")[2].partition("##")[0]
    seen = {"pretraining_images_seen": 28800.0, "pretraining_teraflop": 12.34}
    assert "Pretrained on 28800 simulated slices (12.3 TFLOP), which show no patient." in written({}, **seen)


def test_nobody_has_rated():
    assert "No blinded rater has judged these images." in written({"fd_effnet": 1.0})


@pytest.mark.parametrize("missed, few", [(0, 0), (1, 0), (0, 1), (2, 1)])
def test_who_did_not_attend_is_a_warning_and_no_silence(missed, few):
    counts = COUNTS | {"inattentive": missed, "few": few}
    text = written(comparison.manual(MANUAL | counts) | comparison.told_apart(FOUND | counts))
    assert "Realism by blinded raters, 1 to 5: 3.20 (2.90 to 3.50; 4 raters, 20 cases)." in text
    assert "found the real slice in 71 % (60 to 82; guessing: 50; 4 raters, 20 pairs)." in text
    assert ("**Warning:**" in text) == bool(missed or few)
    assert (f"{missed} of 4 raters missed planted controls" in text) == bool(missed)
    assert ("few raters or cases" in text) == bool(few)
