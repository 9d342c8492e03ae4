"""Slices against phantoms whose right place, size and value on the image are known."""

import numpy as np
import pytest

from synthmri import params
from synthmri.errors import UserError
from synthmri.scans import slicing, splits

DATA = {
    "source": "raw",
    "subjects": "check",
    "assume": {"contrast": "", "plane": ""},
    "contrasts": [],
    "plane": "axial",
    "depth_mm": [0, 400],
    "slice_step": 1,
    "image_size": 64,
    "field_of_view_mm": 128,
    "window_percentiles": [0, 100],
    "min_head_fraction": 0,
    "split": {"train": 0.6, "val": 0.2, "test": 0.2},
    "seed": 0,
    "classes": [],
    "border_gap": 5,
    "duplicate_correlation": 0.99,
    "max_bad_fraction": 0.1,
}


def make(**changes) -> slicing.Data:
    return params.parse(DATA | changes, "data", slicing.Data)


def ball(spacing=(2.0, 2.0, 2.0), radius=40.0, extent=120.0, shift=(0, 0, 0)) -> np.ndarray:
    """float32 (X, Y, Z): a ball of 100 on 0, `radius` in mm, in a box of `extent` mm."""
    axes = [(np.arange(round(extent / mm)) + 0.5) * mm - extent / 2 - s for mm, s in zip(spacing, shift, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return np.where(x**2 + y**2 + z**2 <= radius**2, 100, 0).astype(np.float32)


# Orientation, depth and size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plane, up, right",  # which way a mark must be moved to come out at the top and at the right of the image
    [("axial", (1, +1), (0, -1)), ("coronal", (2, +1), (0, -1)), ("sagittal", (2, +1), (1, -1))],
)
def test_orientation_on_the_image(plane, up, right):
    head = ball() * 0.5
    where = [30, 30, 30]
    for axis, sign in (up, right):
        where[axis] += sign * 10
    i, j, k = where
    head[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2] = 100
    images = slicing.from_volume(head, (2, 2, 2), make(plane=plane)).images
    _, row, column = np.unravel_index(images.argmax(), images.shape)
    assert row < 28 and column > 36
    # 10 voxels of 2 mm are 10 pixels of 2 mm. The mark is three voxels wide, argmax takes the first of them.
    assert abs(row - (31 - 10)) <= 2 and abs(column - (32 + 10)) <= 2


@pytest.mark.parametrize("plane, axis, first", [("axial", 2, "high"), ("coronal", 1, "high"), ("sagittal", 0, "low")])
def test_depth_counts_from_vertex_forehead_and_left(plane, axis, first):
    """RAS indices rise to the right, anterior, superior: so vertex and forehead are high and the left side is low."""
    head = ball(shift=(0, 0, 0)) * 0.5
    index = [slice(28, 32)] * 3
    index[axis] = slice(40, 43) if first == "high" else slice(17, 20)
    head[tuple(index)] = 100  # 20 mm off the centre, towards the first slice
    result = slicing.from_volume(head, (2, 2, 2), make(plane=plane))
    brightest = result.images.reshape(len(result.images), -1).max(1).argmax()
    assert 14 <= result.depth_mm[brightest] <= 22  # the first slice is 40 mm off the centre
    assert result.depth_mm[0] == 0 and result.slice_mm == 2
    assert result.depth_mm == sorted(result.depth_mm)


def test_depth_range_step_and_empty_slices():
    result = slicing.from_volume(ball(), (2, 2, 2), make(depth_mm=[20, 60], slice_step=2))
    assert min(result.depth_mm) >= 20 and max(result.depth_mm) <= 60
    assert set(np.diff(result.depth_mm)) == {4.0} and result.slice_mm == 2  # as thick as they were
    assert result.dropped == {"outside_depth": 30 - len(result.images), "empty": 0}

    # A ball of radius 40 mm at distance d of its centre covers pi (40^2 - d^2) of 128^2 mm^2.
    result = slicing.from_volume(ball(), (2, 2, 2), make(min_head_fraction=0.2))
    kept = np.abs(np.array(result.depth_mm) - 39)
    assert np.sqrt(40**2 - 0.2 * 128**2 / np.pi) == pytest.approx(kept.max(), abs=4)
    assert result.dropped["empty"] > 0


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("spacing", [(2, 2, 2), (0.5, 1.5, 4), (3, 1, 1)])
def test_a_circle_stays_a_circle_of_its_size(plane, spacing):
    head = ball(spacing, shift=(6, -8, 4))
    result = slicing.from_volume(head, spacing, make(plane=plane, field_of_view_mm=160, image_size=128))
    image = result.images[len(result.images) // 2] >= 128
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    slack = 1.5 * max(spacing)
    for span in (rows, columns):
        assert len(span) * 160 / 128 == pytest.approx(80, abs=slack)
        assert (span[0] + span[-1] + 1) / 2 * 160 / 128 == pytest.approx(80, abs=slack)  # the head is in the middle


def test_shrinking_smooths():
    stripes = np.zeros((1, 512, 512), np.float32)
    stripes[:, :, ::2] = 1
    stripes[:, :, 1::2] = 0.5
    image = slicing.from_pictures(stripes, make()).images[0]
    assert np.ptp(image[8:-8, 8:-8].astype(int)) <= 12  # without it, moire of nearly the full range


def test_window_is_taken_inside_the_head():
    head = ball()
    head[ball() > 0] = np.linspace(100, 300, int((ball() > 0).sum()))
    head[0, 0, 0] = 10000  # a spike outside
    images = slicing.from_volume(head, (2, 2, 2), make(window_percentiles=[1, 99])).images
    assert images.max() == 255
    assert 80 < np.median(images[len(images) // 2][24:40, 24:40]) < 175


def test_a_mask_is_no_image():
    with pytest.raises(UserError, match="mask"):
        slicing.from_volume(ball(radius=60, extent=100) + 7, (2, 2, 2), make(window_percentiles=[25, 75]))


# Pictures -------------------------------------------------------------------------------------------------------------


def disc(rows: int, columns: int, radius: int) -> np.ndarray:
    y, x = np.ogrid[:rows, :columns]
    inside = (y - rows / 2) ** 2 + (x - columns / 2) ** 2 < radius**2
    return np.where(inside, 50 + x + 0 * y, 0).astype(np.float32)


def test_picture_of_the_right_size_is_only_windowed():
    picture = disc(64, 64, 28)
    picture[0, 0] = 255
    result = slicing.from_pictures(picture[None], make())
    head = slicing.head_mask(picture)
    lo, hi = picture[head].min(), picture[head].max()
    np.testing.assert_array_equal(result.images[0], np.rint(np.clip((picture - lo) / (hi - lo), 0, 1) * 255))
    assert result.depth_mm is None and result.slice_mm is None


@pytest.mark.parametrize("shape", [(64, 41), (40, 64)])
def test_picture_is_padded_to_a_square(shape):
    picture = disc(*shape, 15)
    image = slicing.from_pictures(picture[None], make()).images[0]
    top, left = (64 - shape[0]) // 2, (64 - shape[1]) // 2
    inner = image[top : top + shape[0], left : left + shape[1]]
    assert (image > 0).sum() == (inner > 0).sum() > 600
    assert np.corrcoef(inner.ravel(), picture.ravel())[0, 1] > 0.98


def test_range_of_a_tensor_does_not_matter():
    picture = disc(64, 64, 28)
    scaled = picture / picture.max() * 2 - 1
    both = slicing.from_pictures(np.stack([picture, scaled]), make()).images
    assert np.abs(both[0].astype(int) - both[1]).max() <= 1


def test_empty_pictures_are_dropped_and_counted():
    stack = np.stack([disc(64, 64, 28), disc(64, 64, 3), np.zeros((64, 64), np.float32)])
    result = slicing.from_pictures(stack, make(min_head_fraction=0.05))
    assert len(result.images) == 1 and result.dropped == {"empty": 2}


# Splits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 5, 10, 97])
def test_split_of_subjects(count):
    subjects = [f"sub-{n}" for n in range(count)]
    fractions = make().split
    sides = splits.split(subjects * 2, fractions, seed=1)
    sizes = [list(sides.values()).count(name) for name in splits.SPLITS]
    assert set(sides) == set(subjects) and min(sizes) >= 1
    assert sizes[0] == pytest.approx(0.6 * count, abs=1.01)
    assert splits.split(subjects[::-1], fractions, seed=1) == sides
    assert count < 10 or splits.split(subjects, fractions, seed=2) != sides


def test_split_needs_three_subjects():
    with pytest.raises(UserError, match=r"1 subject\(s\) found, at least 3"):
        splits.split(["a", "a"], make().split, 0)


def test_blocks_are_contiguous_with_a_gap():
    names = splits.blocks(110, make().split, gap=5)
    assert names == ["train"] * 60 + [""] * 5 + ["val"] * 20 + [""] * 5 + ["test"] * 20
    assert splits.blocks(3, make().split, gap=0) == ["train", "val", "test"]
    assert splits.blocks(12, make().split, gap=5) == ["train"] * 12


def noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64), np.uint8)


def test_duplicates_are_found_outside_train():
    images = noise(12, 0)
    where = np.array(["train"] * 5 + ["val"] * 3 + ["test"] * 3 + [""])
    images[5] = images[0]  # val of train
    images[6] = images[9]  # val of test
    images[8] = np.clip(images[1].astype(int) + 1, 0, 255)  # test of train, nearly
    images[10] = images[11]  # of one that was dropped anyway
    images[3] = images[2]  # twice in train
    found = splits.duplicates(images, where, 0.99)
    assert found.tolist() == ["", "", "", "", "", "exact", "exact", "", "near", "", "", ""]


@pytest.mark.parametrize("bound", [0.9, 0.95, 0.99])
def test_the_quick_first_look_loses_no_duplicate(monkeypatch, bound):
    """Against all correlations at once, of images that are alike by all degrees."""
    rng, (kinds, size) = np.random.default_rng(0), (300, 400)
    shared = rng.normal(size=(kinds, 32, 32))[rng.integers(0, kinds, size)]
    own = rng.normal(size=(size, 32, 32)) * rng.uniform(0.02, 0.5, size)[:, None, None]
    images = np.clip(128 + 30 * (shared + own), 0, 255).astype(np.uint8)
    images[5], images[300] = 0, 255  # of one value: like nothing
    where = np.array(["train", "val", "test", ""])[np.clip(rng.integers(0, 6, size) - 2, 0, 3)]
    small = splits.thumbnails(images).astype(float)
    likeness = small @ small.T
    test, val, train = (np.flatnonzero(where == name) for name in ("test", "val", "train"))
    expected = np.full(size, "", "<U5")
    expected[test[likeness[np.ix_(test, train)].max(1) > bound]] = "near"
    left = np.concatenate([train, test[expected[test] == ""]])
    expected[val[likeness[np.ix_(val, left)].max(1) > bound]] = "near"
    assert (expected[test] == "near").sum() < len(test) / 2 and (expected == "near").sum() > 2
    monkeypatch.setattr(splits, "BLOCK", 16)
    np.testing.assert_array_equal(splits.duplicates(images, where, bound), expected)


def test_a_leaking_split_is_refused():
    images = noise(8, 0)
    images[5:] = images[:3]
    with pytest.raises(UserError, match="leaks: 3 of 3"):
        splits.duplicates(images, np.array(["train"] * 4 + ["val"] + ["test"] * 3), 0.99)


# Parameters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"depth_mm": [90, 30]}, "must rise"),
        ({"depth_mm": [-5, 30]}, "must rise"),
        ({"window_percentiles": [99, 1]}, "the lower must be from 0 to 25"),
        ({"split": {"train": 0.8, "val": 0.2, "test": 0.2}}, "sum to 1.2 and must sum to 1"),
        ({"split": {"train": 1.0, "val": 0.0, "test": 0.0}}, "data.split.train = 1.0"),
        ({"image_size": 100}, "multiple of 8"),
        ({"image_size": 32}, "greater than or equal to 64"),
        ({"slice_step": 0}, "greater than or equal to 1"),
        ({"field_of_view_mm": 24}, "greater than or equal to 120"),
        ({"contrasts": ["t1"]}, "data.contrasts.0"),
        ({"plane": "oblique"}, "'axial', 'coronal' or 'sagittal'"),
    ],
)
def test_bad_parameters_name_the_bound(change, message):
    with pytest.raises(UserError, match=message):
        make(**change)
