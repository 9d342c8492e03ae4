"""Masks of lesions: which belongs to which scan, and that they stay on their slices."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from test_preprocess import head, here, nifti, parameters, picture, run  # noqa: F401
from test_readers import volume
from test_slices import ball, make

from synthmri import imageset
from synthmri.errors import UserError
from synthmri.scans import masks, read, scan, slicing
from synthmri.training import masks as training_masks


def source(name: str) -> scan.Source:
    return scan.Source((Path(name),), "nifti" if ".nii" in name else "picture", None, "", "", name)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("TCGA_CS_4941_19960909_1.tif", "TCGA_CS_4941_19960909_1_mask.tif"),
        ("images/001.png", "masks/001.png"),
        ("train/images/001.png", "train/masks/001.png"),
        ("imagesTr/BRATS_001_0000.nii.gz", "labelsTr/BRATS_001.nii.gz"),
        ("BraTS20_Training_001/BraTS20_Training_001_flair.nii", "BraTS20_Training_001/BraTS20_Training_001_seg.nii"),
        ("patient01/T1.nii.gz", "patient01/consensus_gt.nii.gz"),
        ("P0001_image.npy", "P0001_mask.npy"),
        ("anna_FLAIR.nii.gz", "anna_FLAIR_lesion.nii.gz"),
        ("anna_FLAIR.nii.gz", "anna_lesionMask.nii.gz"),
        ("images/image12.png", "masks/image12.png"),
        ("images/image12.png", "masks/mask12.png"),
        ("scan3.nii.gz", "scan3_mask.nii.gz"),
        ("images/case_0007.nii.gz", "labels/case_0007.nii.gz"),
        ("case_0001.nii.gz", "case_0001_mask.nii.gz"),
        ("anna/T1.nii.gz", "anna/mask1.nii.gz"),
        ("anna/scan1.nii.gz", "anna/mask.nii.gz"),
        ("Müller.png", "Müller_mask.png"),
        ("张伟.png", "张伟_mask.png"),
    ],
)
def test_the_mask_of_a_scan(image, mask):
    others = {"other_mask.nii.gz": Path("other"), mask: Path(mask)}
    (found,) = masks.paired([source(image)], others)
    assert found.mask == Path(mask)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("anna_T1.nii.gz", "anna_T1_brainmask.nii.gz"),
        ("anna_T1.nii.gz", "anna_T1_brain_mask.nii.gz"),
        ("sub-01_T1w.nii.gz", "sub-01_mod-T1w_defacemask.nii.gz"),
        ("anna/T1.nii.gz", "anna/aseg.nii.gz"),
        ("anna/T1.nii.gz", "berta/T1_mask.nii.gz"),
        ("images/001.png", "masks/002.png"),
        ("anna_1.png", "anna_2_mask.png"),
        ("images/image1.png", "masks/image12.png"),
        ("case_0001.nii.gz", "case_0002_mask.nii.gz"),
        ("Müller.png", "Möller_mask.png"),
        ("张伟.png", "李娜_mask.png"),
    ],
)
def test_what_is_no_mask_of_its_lesions(image, mask):
    (found,) = masks.paired([source(image)], {mask: Path(mask)})
    assert found.mask is None


@pytest.mark.parametrize("form", ["images/image{}.png", "images/case_000{}.nii.gz", "scan0{}/FLAIR.nii.gz"])
def test_every_scan_has_its_own_mask_and_no_other_s(form):
    scans = [form.format(n) for n in range(1, 10)]
    drawn = {name.replace("images/", "masks/").replace("FLAIR", "lesion_mask"): Path(name) for name in scans[::2]}
    found = masks.paired([source(name) for name in scans], drawn)
    assert [each.mask for each in found] == [Path(name) if n % 2 == 0 else None for n, name in enumerate(scans)]


def test_of_two_masks_none_is_taken_and_it_is_said():
    two = {name: Path(name) for name in ("anna/manual_mask.nii.gz", "anna/consensus_gt.nii.gz")}
    (found,) = masks.paired([source("anna/T1.nii.gz")], two)
    assert found.mask is None and found.doubts == (masks.SEVERAL,)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_mask_lies_where_its_lesion_lies(plane):
    """On slices of the pixels of the volume the mask is where the values are that it marks."""
    mm = (2.0, 2.0, 2.0)
    values, mark = ball() * 0.5, np.zeros(ball().shape, bool)
    mark[33:40, 22:27, 28:31] = True
    values[mark] = 100
    found = slicing.from_volume(values, mm, make(plane=plane), mark)
    assert found.masks.shape == found.images.shape and found.masks.dtype == np.uint8
    np.testing.assert_array_equal(found.masks == 255, found.images > 200)
    assert 0 < (found.masks > 0).sum() == mark.sum()
    assert slicing.from_volume(values, mm, make(plane=plane)).masks is None


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("shape", [(64, 48), (40, 64), (96, 90)])
def test_a_mask_lies_where_the_lesion_of_its_picture_lies(shape, size):
    y, x = np.ogrid[: shape[0], : shape[1]]
    picture = np.where((y - shape[0] / 2) ** 2 + (x - shape[1] / 2) ** 2 < 18**2, 50.0, 0).astype(np.float32)
    mark = np.zeros(shape, bool)
    mark[shape[0] // 2 : shape[0] // 2 + 9, shape[1] // 2 - 8 : shape[1] // 2] = True
    picture[mark] = 200
    found = slicing.from_pictures(picture[None], make(image_size=size), mark[None])
    bright, marked = found.images[0] > 150, found.masks[0] > 0
    assert (bright & marked).sum() > 0.85 * (bright | marked).sum() > 0


def cohort() -> None:
    """Five people of 8 pictures with masks as files of their own; the upper four of each have a lesion."""
    for n in range(5):
        for k in range(8):
            picture(f"P000{n}/{k}.png", 10 * n + k)
            mask = np.zeros((24, 24), np.uint8)
            mask[8:12, 9 : 12 + n] = 255 * (k >= 4)
            Image.fromarray(mask).save(f"raw/P000{n}/{k}_mask.png")


def test_masks_are_kept_beside_their_slices_and_label_them(here):  # noqa: F811
    cohort()
    sets, metrics = run()
    assert metrics["files_left_out"] == {"mask": 40} and metrics["train"]["label"] == {"unknown": 24}
    parameters(label_from="mask")
    sets, metrics = run()
    for part in sets.values():
        assert part.masks.shape == part.images.shape
        marked = np.asarray(part.masks).any((1, 2))
        assert list(part.manifest["label"]) == ["lesions" if any_ else "none" for any_ in marked]
        assert marked.sum() == len(part) / 2
    assert metrics["test"]["label"] == {"lesions": 4, "none": 4}
    some = sets["train"].take([0, 5])
    np.testing.assert_array_equal(some.masks, sets["train"].masks[[0, 5]])
    imageset.write(Path("again"), some)
    np.testing.assert_array_equal(imageset.read(Path("again")).masks, some.masks)


def test_masks_of_volumes(here):  # noqa: F811
    for n in range(5):
        nifti(f"sub-0{n}/T1.nii.gz", n)
        mask = np.zeros((24, 24, 24), np.uint8)
        mask[10:14, 9:12, 10:13] = 1
        nibabel.save(nibabel.Nifti1Image(mask, np.diag([4.0, 4.0, 4.0, 1.0])), f"raw/sub-0{n}/lesions.nii.gz")
    parameters(label_from="mask")
    sets, _ = run()
    for part in sets.values():
        assert (part.manifest["label"] == "lesions").sum() == 3 * part.manifest["subject"].nunique()


def test_without_masks_there_is_no_file_and_a_label_of_them_is_refused(here):  # noqa: F811
    for n in range(5):
        nifti(f"sub-0{n}/T1.nii.gz", n)
    sets, _ = run()
    assert all(part.masks is None for part in sets.values()) and not list(Path("out").rglob("masks*"))
    parameters(label_from="mask")
    with pytest.raises(UserError, match="no mask belongs to a scan; name masks as their scans"):
        run()


def test_a_mask_of_another_geometry(here):  # noqa: F811
    Path("raw/anna").mkdir()
    nibabel.save(nibabel.Nifti1Image(volume(), np.eye(4)), "raw/anna/T1.nii.gz")
    nibabel.save(nibabel.Nifti1Image((volume()[1:] > 15).astype(np.uint8), np.eye(4)), "raw/anna/lesion.nii.gz")
    (found,), _ = read.find(Path("raw"))
    with pytest.raises(scan.BadFile, match=r"its mask lesion.nii.gz is 19 x 24 x 28 voxels .* resample it"):
        read.read_mask(found, read.read(found))


def test_a_mask_of_any_colour(here):  # noqa: F811
    picture("anna/1.png", 3)
    mark = np.zeros((24, 24, 3), np.uint8)
    mark[8:12, 9:14, 1] = 255
    for name, marks in (("1_mask.png", Image.fromarray(mark)), ("2_mask.png", Image.fromarray(mark).quantize(4))):
        marks.save(f"raw/anna/{name}")
        one = scan.Source((Path("raw/anna/1.png"),), "picture", None, "", "", "anna/1.png", mask=Path("raw/anna", name))
        np.testing.assert_array_equal(read.read_mask(one, read.read(one))[0], mark[..., 1] > 0)


def test_a_mask_that_cannot_be_used_is_said_where_labels_do_without(here, capfd):  # noqa: F811
    cohort()
    Image.fromarray(np.eye(30, 24, dtype=np.uint8) * 255).save("raw/P0001/3_mask.png")
    Path("raw/P0002/5_mask.png").write_bytes(b"x")
    sets, metrics = run()
    said = " ".join(capfd.readouterr().err.split())
    assert "warning: taken for free of lesions, P0001/3.png" in said and "its mask 5_mask.png" in said
    assert metrics["files"]["used"] == 40 and not metrics["files_skipped"]


def test_places_of_latents_that_hold_a_lesion():
    masks_px = np.zeros((2, 32, 32), np.uint8)
    masks_px[0, 7, 8] = masks_px[1, 24:, 24:] = 255
    found = training_masks.blocks(masks_px, 4)
    assert found.dtype == bool and found.sum() == 2 and found[0, 0, 1] and found[1, 3, 3]


def test_the_loss_counts_more_in_lesions_and_where_those_of_about_the_same_level_lie():
    lesions = np.zeros((40, 2, 4, 4), bool)
    lesions[:10, 0, 1, 1] = lesions[:10, 1, 1, 2] = True  # mirrored
    for i in range(20, 30):
        lesions[i, :, 3, i % 3] = True
    weigh = training_masks.emphasis(lesions, np.arange(40.0))
    generator = torch.Generator().manual_seed(0)

    def of(*rows, view=0):
        return weigh(torch.tensor(rows), torch.full((len(rows),), view), generator)[:, 0]

    more = of(5)[0, 1, 1]
    assert more > 1 and of(5).sum() == 15 + more and of(5, view=1)[0, 1, 2] == more
    borrowed = of(*[35] * 60).amax(0) > 1  # has none, lies beside 20 to 29
    assert borrowed[3, :3].all() and borrowed.sum() == 3
    assert (of(*[35] * 60).sum(dim=(1, 2)) == 15 + more).all()


def test_large_lesions_do_not_outweigh_the_rest():
    weigh = training_masks.emphasis(np.ones((2, 1, 4, 4), bool), np.full(2, np.nan))
    found = weigh(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.Generator())
    torch.testing.assert_close(found, torch.full((2, 1, 4, 4), 1 + training_masks.RAISED))
