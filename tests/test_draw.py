"""Slices drawn for pretraining: the same, however they were interrupted and shared out."""

from pathlib import Path

import numpy as np
import pytest
from conftest import copy_parameters
from ruamel.yaml import YAML

from commands import draw
from synthmri import imageset


@pytest.fixture
def small(tmp_path, monkeypatch):
    copy_parameters(tmp_path)
    file, yaml = tmp_path / "pretrained/params.yaml", YAML()
    tree = yaml.load(file)
    tree["pretrain"]["image_size"] = 64
    yaml.dump(tree, file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(draw, "PIECE", 3)
    return tmp_path


def test_an_interrupted_drawing_goes_on_to_the_same_slices(small, monkeypatch):
    draw.main(n=6, out=Path("whole"))
    whole, piece = imageset.read(Path("whole")), draw._piece

    def killed(number, **settings):
        if number == 1:
            raise KeyboardInterrupt
        piece(number, **settings)

    monkeypatch.setattr(draw, "_piece", killed)
    with pytest.raises(KeyboardInterrupt):
        draw.main(n=6, out=Path("halves"))
    seen = []
    monkeypatch.setattr(draw, "_piece", lambda number, **settings: (seen.append(number), piece(number, **settings)))
    draw.main(n=6, out=Path("halves"))
    halves = imageset.read(Path("halves"))
    assert seen == [1] and len(whole) == 6
    np.testing.assert_array_equal(halves.images, whole.images)
    assert halves.manifest.equals(whole.manifest) and {"contrast", "plane", "label"} < set(whole.manifest)
    assert whole.images.std() > 10 and not (whole.images[:3] == whole.images[3:]).all()
    assert sorted(path.name for path in small.iterdir()) == ["data", "halves", "params.yaml", "pretrained", "whole"]
