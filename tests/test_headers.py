"""Headers that contradict themselves or the head that they show; backgrounds that are not black."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from test_readers import MARK, only, volume
from test_slices import make

from synthmri.scans import read, scan, slicing


def save_forms(path: Path, sform: np.ndarray, qform: np.ndarray, codes: tuple[int, int], zooms=None) -> None:
    image = nibabel.Nifti1Image(volume(), qform)
    image.set_sform(sform, codes[0])
    image.set_qform(qform, codes[1])
    if zooms:
        image.header["pixdim"][1:4] = zooms
    image.update_header = lambda: None  # which would mend it
    nibabel.save(image, path)


MM = np.diag([1.0, 2.0, 3.0, 1.0])
FLIPPED = np.diag([-1.0, 2.0, 3.0, 1.0])


def turned(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ MM


@pytest.mark.parametrize(
    ("sform", "codes"),
    [(MM, (1, 1)), (turned(0.1), (1, 1)), (turned(30), (2, 1)), (turned(30), (1, 0)), (turned(44.99), (1, 0))],
)
def test_forms_that_agree_or_speak_of_two_spaces(tmp_path, sform, codes):
    save_forms(tmp_path / "a.nii", sform, MM, codes)
    found = read.read(only(tmp_path))
    assert found.data[MARK] == 100
    np.testing.assert_allclose(found.spacing_mm, (1, 2, 3), rtol=1e-4)


@pytest.mark.parametrize(
    ("sform", "codes"), [(FLIPPED, (1, 1)), (FLIPPED, (4, 1)), (turned(10), (1, 1)), (turned(90), (2, 1))]
)
def test_forms_that_contradict_each_other_are_refused(tmp_path, sform, codes):
    save_forms(tmp_path / "a.nii", sform, MM, codes)
    with pytest.raises(scan.BadFile, match="sform .* qform .* differ by more than rounding") as caught:
        read.read(only(tmp_path))
    assert caught.value.category == "geometry"


def test_a_registration_that_scales_does_not_change_the_voxels(tmp_path):
    save_forms(tmp_path / "a.nii", np.diag([1.2, 2.4, 3.6, 1.0]), MM, (4, 1))  # to MNI space, which is larger
    np.testing.assert_allclose(read.read(only(tmp_path)).spacing_mm, (1, 2, 3), rtol=1e-5)


def test_spacing_against_affine(tmp_path):
    save_forms(tmp_path / "a.nii", MM, MM, (1, 0), zooms=[1, 1, 1])
    with pytest.raises(scan.BadFile, match=r"voxels of \[1.0, 2.0, 3.0\] mm by its affine and of \[1.0, 1.0, 1.0\]"):
        read.read(only(tmp_path))


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000.0), ("mm", 1.0), ("micron", 0.001)])
def test_the_unit_of_the_header_is_heeded(tmp_path, unit, factor):
    image = nibabel.Nifti1Image(volume(), MM / factor)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read.read(only(tmp_path)).spacing_mm, (1, 2, 3), rtol=1e-5)


@pytest.mark.parametrize("factor", [0.2, 8.0])
def test_a_head_of_no_size_of_a_head_is_refused(factor):
    spacing = (2.0 * factor,) * 3
    with pytest.raises(scan.BadFile, match="shows a head .* mm long, 60 to 450 mm are read.*mend its header"):
        slicing.from_volume(brain(40, 44, 48)[0], spacing, make())
    assert len(slicing.from_volume(brain(40, 44, 48)[0], (2.0, 2.0, 2.0), make()).images)


@pytest.mark.parametrize(
    ("shape", "count", "size"),
    [
        ((211, 180, 18), 18, (211, 180)),
        ((18, 211, 180), 18, (211, 180)),
        ((64, 64, 40), 40, (64, 64)),
        ((155, 64, 64), 155, (64, 64)),
        ((1, 64, 60, 30), 30, (64, 60)),
        ((1, 30, 64, 60), 30, (64, 60)),
        ((64, 60, 30, 1), 30, (64, 60)),
        ((40, 40, 40), 40, (40, 40)),
        ((24, 20), 1, (24, 20)),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "pt"])
def test_which_side_of_a_tensor_counts_the_slices(tmp_path, shape, count, size, suffix):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path = tmp_path / f"a.{suffix}"
    np.save(path, array) if suffix == "npy" else torch.save(torch.from_numpy(array), path)
    found = read.read(only(tmp_path)).data
    assert found.shape == (count, *size)
    flat = array.reshape([n for n in shape if n > 1]) if count > 1 else array[None]
    expected = np.moveaxis(flat, -1, 0) if flat.shape[0] != count or shape[:3] == (64, 64, 40) else flat
    np.testing.assert_array_equal(found, expected)


def test_slices_that_are_no_head_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(20, 400, 100)))
    with pytest.raises(scan.BadFile, match="shape"):
        read.read(only(tmp_path))


# Backgrounds ----------------------------------------------------------------------------------------------------------


def brain(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 of 500 to 1500 in a ball or disc, 0 outside; and where that is."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    inside = (grid**2).sum(0) < 0.5
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 2)
    texture = (texture - texture.min()) / np.ptp(texture)
    return np.where(inside, 500 + 1000 * texture, 0).astype(np.float32), inside


def z_scored(background: float, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    values, inside = brain(*shape)
    scores = (values - values[inside].mean()) / values[inside].std()
    return np.where(inside, scores, np.float32(background)).astype(np.float32), inside


@pytest.mark.parametrize("background", [0.0, np.nan, -30.0, 0.5, 30.0])
def test_the_constant_around_z_scores_is_black(background):
    scores, inside = z_scored(background, 48, 56, 52)
    plain, _ = brain(48, 56, 52)
    spacing, data = (3.0, 3.0, 3.0), make(field_of_view_mm=180)
    found = slicing.from_volume(scan.finite(scores), spacing, data)
    right = slicing.from_volume(plain, spacing, data)
    middle = found.images[len(found.images) // 2]
    assert (middle[:4] == 0).all() and (middle[:, -4:] == 0).all() and middle.max() > 200
    reference = right.images[len(right.images) // 2]
    outside = reference == 0
    assert outside.any() and (middle[outside] < 40).mean() > 0.99
    assert np.corrcoef(middle[~outside], reference[~outside])[0, 1] > 0.8


@pytest.mark.parametrize("background", [0.0, 0.5])
def test_the_constant_around_z_scored_pictures_is_black(background):
    scores, inside = z_scored(background, 64, 64)
    image = slicing.from_pictures(scan.finite(scores)[None], make()).images[0]
    assert (image[~inside] == 0).all() and image[inside].mean() > 60


def on_paper() -> tuple[np.ndarray, np.ndarray]:
    values, inside = brain(64, 64)
    grey = (values / 10).astype(np.uint8)
    return np.where(inside, grey, 255).astype(np.uint8), inside


@pytest.mark.parametrize("kind", ["png", "jpg", "transparent.png", "transparent_white.png", "palette.png"])
def test_white_paper_around_a_head_is_black_and_gives_no_window(tmp_path, kind):
    grey, inside = on_paper()
    path = tmp_path / f"a.{kind.split('.')[-1]}"
    if kind.startswith("transparent"):
        alpha = np.where(inside, 255, 0).astype(np.uint8)
        under = grey if "white" in kind else np.where(inside, grey, 77).astype(np.uint8)
        Image.fromarray(np.dstack([under] * 3 + [alpha])).save(path)
    elif kind.startswith("palette"):
        Image.fromarray(grey).convert("P").save(path)
    else:
        Image.fromarray(grey).save(path, quality=90)
    image = slicing.from_pictures(read.read(only(tmp_path)).data, make(window_percentiles=[1, 99])).images[0]
    rim = ndimage.binary_dilation(inside, iterations=3)
    core = ndimage.binary_erosion(inside, iterations=3)
    assert image[~rim].max() <= 5, image[~rim].max()
    assert np.corrcoef(image[core], grey[core])[0, 1] > 0.97
    assert np.ptp(image[core].astype(int)) > 150  # the window is the tissue's


@pytest.mark.parametrize("padding", [-2000, 32767])
def test_a_padding_that_no_header_tells_of_is_black(padding):
    values, inside = brain(40, 44, 48)
    values += np.abs(np.random.default_rng(1).normal(0, 10, values.shape)).astype(np.float32)
    padded = values.copy()
    padded[:3] = padded[-3:] = padded[:, :3] = padded[:, -3:] = padded[:, :, :3] = padded[:, :, -3:] = padding
    found = slicing.on_black(padded)
    np.testing.assert_array_equal(found[inside], values[inside])
    assert found.min() >= 0 and found[~inside].max() < 100


def test_dark_backgrounds_stay_as_they_are():
    values, _ = brain(40, 44, 48)
    noisy = values + np.abs(np.random.default_rng(1).normal(0, 10, values.shape)).astype(np.float32)
    for image in (values, noisy, noisy - 100, values[20]):
        assert slicing.on_black(image) is image


def test_a_negative_is_refused():
    values, _ = brain(64, 64)
    noisy = values + np.abs(np.random.default_rng(1).normal(0, 40, values.shape)).astype(np.float32)
    volumes = [(brain(40, 44, 48)[0] - 350).clip(0), noisy[None].repeat(8, 0)]  # even without noise: there is no paper
    for image in (noisy, *volumes):
        slicing.on_black(image)
        with pytest.raises(scan.BadFile, match="a negative"):
            slicing.on_black(image.max() - image)


@pytest.mark.parametrize("pixels", [np.uint8, np.uint16])
def test_tiff_of_which_white_is_zero(tmp_path, pixels):
    grey = (np.add.outer(np.arange(40), np.arange(32) * 2) * (1 if pixels is np.uint8 else 500)).astype(pixels)
    stored = np.iinfo(pixels).max - grey
    Image.fromarray(stored).save(tmp_path / "a.tif", tiffinfo={262: 0})
    if pixels is np.uint8:  # Pillow, when it writes one, turns the values itself
        stored = np.asarray(Image.open(tmp_path / "a.tif"))
    found = read.read(only(tmp_path)).data[0]
    assert np.corrcoef(found.ravel(), (grey if pixels is np.uint16 else stored).astype(float).ravel())[0, 1] > 0.999


# Channels -------------------------------------------------------------------------------------------------------------


def test_channels_that_differ_are_refused_with_a_way_on_or_one_is_taken(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (32, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.moveaxis(pixels, -1, 0)[None].repeat(2, 0))
    for source in read.find(tmp_path)[0]:
        with pytest.raises(scan.BadFile, match="set data.channel to 0, 1 or 2"):
            read.read(source)
        for channel in (0, 1, 2):
            np.testing.assert_array_equal(read.read(source, channel).data[0], pixels[..., channel])
