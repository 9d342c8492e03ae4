import numpy as np
import pandas as pd
import pytest

from synthmri import imageset
from synthmri.errors import UserError


def example(n=3):
    images = np.arange(n * 16, dtype=np.uint8).reshape(n, 4, 4)
    manifest = pd.DataFrame({"subject": [f"sub-{i:02}" for i in range(n)], "label": ["", "a,b", 'c"d'][:n]})
    return imageset.ImageSet(images, manifest, {"spacing_mm": 1.5})


def test_comes_back_as_it_was_written(tmp_path):
    imageset.write(tmp_path / "set", example())
    back = imageset.read(tmp_path / "set")
    np.testing.assert_array_equal(back.images, example().images)
    pd.testing.assert_frame_equal(back.manifest, example().manifest, check_dtype=False)
    assert back.meta == {"spacing_mm": 1.5}
    assert isinstance(back.images, np.memmap)


def test_same_set_same_bytes(tmp_path):
    for name in "ab":
        imageset.write(tmp_path / name, example())
    for file in ("images.npy", "manifest.csv", "meta.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_take_keeps_rows_with_images():
    taken = example().take([2, 0])
    assert list(taken.manifest["subject"]) == ["sub-02", "sub-00"]
    np.testing.assert_array_equal(taken.images[0], example().images[2])


@pytest.mark.parametrize("file", ["images.npy", "manifest.csv", "meta.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damage_is_told(tmp_path, file, damage):
    imageset.write(tmp_path / "set", example())
    path = tmp_path / "set" / file
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:15])
    with pytest.raises(UserError, match="dvc repro|manifest"):
        imageset.read(tmp_path / "set")


def test_a_pickle_is_not_opened(tmp_path):
    imageset.write(tmp_path / "set", example())
    np.save(tmp_path / "set" / "images.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="damaged"):
        imageset.read(tmp_path / "set")


def test_only_uint8_and_equal_counts():
    with pytest.raises(UserError, match="float64"):
        imageset.ImageSet(np.zeros((2, 4, 4)), pd.DataFrame(index=range(2)))
    with pytest.raises(UserError, match="3 images but 2 rows"):
        imageset.ImageSet(np.zeros((3, 4, 4), np.uint8), pd.DataFrame(index=range(2)))


def test_quantisation_clips_and_rounds_half_to_even():
    values = np.array([-1.0, 0.0, 0.5 / 255, 1.5 / 255, 1.0, 7.0])
    assert imageset.to_uint8(values).tolist() == [0, 0, 0, 2, 255, 255]
