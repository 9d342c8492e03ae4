import subprocess
import sys

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


@pytest.mark.parametrize("dtype, shape", [(np.uint8, (4, 5)), (np.float32, (7,))])
@pytest.mark.parametrize("size", [1, 4, 30, 1000])
def test_growing_gives_the_bytes_of_numpy(tmp_path, dtype, shape, size):
    array = np.random.default_rng(0).integers(0, 9, (30, *shape)).astype(dtype)
    np.save(tmp_path / "whole.npy", array)
    with imageset.growing(tmp_path / "grown.npy", shape, dtype) as append:
        for start in range(0, 30, size):
            append(array[start : start + size])
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_pieces_are_copies_in_order_also_of_some_rows(tmp_path):
    array = np.arange(20).reshape(10, 2)
    np.save(tmp_path / "a.npy", array)
    for source in (array, np.load(tmp_path / "a.npy", mmap_mode="r")):
        found = list(imageset.pieces(source, 4))
        assert [start for start, _ in found] == [0, 4, 8] and not any(isinstance(p, np.memmap) for _, p in found)
        np.testing.assert_array_equal(np.concatenate([piece for _, piece in found]), array)
        rows = np.array([1, 2, 5, 7, 9])
        np.testing.assert_array_equal(np.concatenate([p for _, p in imageset.pieces(source, 2, rows)]), array[rows])


def test_pieces_that_do_not_fit_are_refused(tmp_path):
    three = example()
    with pytest.raises(UserError, match="2 images but 3 rows"):
        imageset.write_pieces(tmp_path / "a", [three.images[:2]], (4, 4), three.manifest, {})
    with pytest.raises(UserError, match=r"takes rows of uint8 \(4, 4\); this is float64 \(3, 4, 4\)"):
        imageset.write_pieces(tmp_path / "b", [three.images.astype(float)], (4, 4), three.manifest, {})


def test_a_set_beyond_memory_is_written_and_read_in_pieces(tmp_path):
    """200 MiB of images in a process that may take 60 MiB more than it has."""
    code = """
import resource, sys
import numpy as np, pandas as pd
from synthmri import imageset
now = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (now + 60 * 2**20,) * 2)
images = (np.full((64, 256, 256), i, np.uint8) for i in range(50))
imageset.write_pieces(sys.argv[1], images, (256, 256), pd.DataFrame({"subject": ["a"] * 3200}), {})
back = imageset.read(sys.argv[1])
assert sum(int(piece[:, 0, 0].sum()) for _, piece in imageset.pieces(back.images, 64)) == 64 * sum(range(50))
resident = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssFile"))
assert resident < 150 * 1024, resident  # what was read is given back
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "set"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
