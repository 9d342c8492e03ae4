"""What all models have in common, and that a further one takes one file: the one that docs/architecture.md shows."""

import inspect
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from forks import ROOT

from stages import sample, train
from synthmri import generators, imageset
from synthmri.errors import UserError
from synthmri.generators.base import Generator


@pytest.mark.parametrize("name", generators.GENERATORS)
def test_every_model_is_a_generator(name):
    found = generators.find(name)
    assert issubclass(found, Generator) and not inspect.isabstract(found)
    assert found.prompted == (name == "latent_diffusion")


def test_a_model_that_is_none_is_told():
    with pytest.raises(UserError, match="'gan' is no model; those here are latent_diffusion, vae"):
        generators.find("gan")


def test_the_models_are_those_of_the_pipeline():
    tree = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    baselines = set(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["baselines"])
    assert set(generators.GENERATORS) == baselines | {"latent_diffusion"}
    assert set(tree["train"]["foreach"]) == baselines
    assert set(tree["sample"]["foreach"]) == {*generators.GENERATORS, "base", "base_adapted"}
    assert set(tree["evaluate"]["foreach"]) == {*generators.GENERATORS, "base", "base_adapted"}


def test_a_model_is_named_where_the_docs_say():
    """In dvc.yaml: all that knows a model by its name."""
    tree = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    naming = {name for name, stage in tree["stages"].items() if re.search(r"\bvae\b", json.dumps(_own(stage)))}
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    told = re.search(r"`dvc.yaml` names it in the `foreach` of (.*?);", " ".join(text.split()), re.DOTALL)[1]
    assert naming == set(re.findall(r"`(\w+)`", told)) and len(naming) == 8


def _own(stage: dict) -> list:
    """Of a foreach its items, else what a stage depends on."""
    return [*stage["foreach"]] if "foreach" in stage else stage["deps"]


def test_a_sixth_model_is_one_file(tmp_path, monkeypatch):
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    module = types.ModuleType("synthmri.generators.average")
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(generators.GENERATORS, "average", "Average")
    tree = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    own = {"steps": 400, "batch_size": 8, "learning_rate": 0.02}
    tree["baselines"]["average"], tree["sample"] = own, tree["sample"] | {"n": 5, "batch_size": 5}
    tree["train"]["pretrained"] = False
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    rows = np.random.default_rng(0).integers(90, 110, (12, 32, 32)).astype(np.uint8)
    rows[:, :16] += 100
    manifest = pd.DataFrame({"subject": [f"sub-{i}" for i in range(12)], "plane": "axial"})
    imageset.write(Path("slices"), imageset.ImageSet(rows, manifest))

    train.main("average", *map(Path, ("slices", "model", "snapshots.npy", "log.csv", "effort.json", "nowhere")))
    sample.main("average", Path("model"), Path("slices"), Path("drawn"), Path("sheet.png"))

    drawn = imageset.read(Path("drawn"))
    halves = drawn.images[:, :16].mean(), drawn.images[:, 16:].mean()
    assert halves[0] == pytest.approx(200, abs=8) and halves[1] == pytest.approx(100, abs=8)
    assert drawn.images[0].std() > 40 and not (drawn.images[0] == drawn.images[1]).all()
    assert json.loads(Path("effort.json").read_text())["images_seen"] == 3200
    assert not any(Path(".ckpt").rglob("*.pt"))  # the training is done, so there is nothing to go on from
