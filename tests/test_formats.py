"""Generated slices as files: deterministic, marked as synthetic, and valid for the validators of their formats."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import dicom_standard
import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.uid import MRImageStorage, SecondaryCaptureImageStorage, SegmentationStorage

from synthmri import formats
from synthmri.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 9, 11)).astype(np.uint8)  # odd: DICOM pads, BIDS does not care
MASKS = np.zeros_like(IMAGES)
MASKS[1:, 2:5, 3:9] = 255  # the first image has no lesion
PROMPTS = ["T1w axial brain MRI, level 6, naïve"] * 2 + ["FLAIR axial brain MRI, level 6"] * 2
PIXEL_MM = 240 / 255  # as no decimal writes it
KINDS = {  # plane, pixel_mm, slice_mm -> SOP class
    "axial": ("axial", PIXEL_MM, 5.0, MRImageStorage), "coronal": ("coronal", 0.5, None, MRImageStorage),
    "sagittal": ("sagittal", 0.5, 1.0, MRImageStorage), "no plane": ("", 0.5, 1.0, SecondaryCaptureImageStorage),
    "no size": ("axial", None, None, SecondaryCaptureImageStorage),
}  # fmt: skip


def drawing(plane="axial", pixel_mm=PIXEL_MM, slice_mm=5.0, prompts=PROMPTS, version="0123456789abcdef"):
    contrasts = ["T1w", "T1w", "FLAIR", "FLAIR"]
    rows = [(7 + i, prompts[i], contrasts[i], plane) for i in range(4)]
    table = pd.DataFrame(rows, columns=["seed", "prompt", "contrast", "plane"])
    return formats.Drawing(table, "latent_diffusion", version, {"steps": 14, "scheduler": "ddim"}, pixel_mm, slice_mm)


def written(
    folder: Path, format: str, of: formats.Drawing | None = None, images=IMAGES, masks=None
) -> dict[str, bytes]:
    shutil.rmtree(folder, ignore_errors=True)
    formats.write(folder, images, of or drawing(), format, masks)
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def series(folder: Path, of: formats.Drawing | None = None, images=IMAGES) -> list[pydicom.Dataset]:
    written(folder, "dicom", of, images)
    return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


@pytest.mark.parametrize("masks", [None, MASKS], ids=["images", "with masks"])
@pytest.mark.parametrize("format", formats.FORMATS)
def test_the_same_images_are_the_same_bytes(tmp_path, format, masks):
    first = written(tmp_path / "a", format, masks=masks)
    time.sleep(1.1)  # a gzip header counts seconds, and so do dates
    assert written(tmp_path / "b", format, masks=masks) == first


@pytest.mark.parametrize("format", formats.FORMATS)
def test_masks_lie_beside_images_that_are_as_they_are_without(tmp_path, format):
    without, beside = written(tmp_path / "a", format), written(tmp_path / "b", format, masks=MASKS)
    assert without == {name: beside[name] for name in without} and len(beside) > len(without)


def test_masks_are_read_as_they_were_drawn(tmp_path):
    """By the library of each format, on the geometry of the images."""
    written(tmp_path / "npy", "npy", masks=MASKS)
    np.testing.assert_array_equal(np.load(tmp_path / "npy/masks.npy"), MASKS)
    written(tmp_path / "png", "png", masks=MASKS)
    with Image.open(tmp_path / "png/000008_mask.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), MASKS[1])
        assert mask.text["Description"].startswith(formats.SYNTHETIC)
    written(tmp_path / "nifti", "nifti", masks=MASKS)
    image, mask = (nibabel.load(tmp_path / "nifti" / f"{name}.nii.gz") for name in ("images", "masks"))
    np.testing.assert_array_equal(np.asarray(mask.dataobj).transpose(2, 1, 0), MASKS // 255)
    np.testing.assert_array_equal(mask.affine, image.affine)
    files = written(tmp_path / "bids", "bids", masks=MASKS)
    stem = "sub-000009/anat/sub-000009_label-lesion_desc-synthetic_mask"
    assert json.loads(files[f"{stem}.json"])["Sources"] == [
        "bids::sub-000009/anat/sub-000009_desc-synthetic_FLAIR.nii.gz"
    ]
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "bids" / f"{stem}.nii.gz").dataobj)[:, :, 0].T,
                                  MASKS[2] // 255)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_segmentation_is_of_its_image(tmp_path, kind):
    files = written(tmp_path / "a", "dicom", drawing(*KINDS[kind][:3]), masks=MASKS)
    assert [name for name in files if "seg" in name] == [f"00000{seed}_seg.dcm" for seed in (8, 9)] + ["000010_seg.dcm"]
    image, mask = (pydicom.dcmread(tmp_path / "a" / name) for name in ("000008.dcm", "000008_seg.dcm"))
    np.testing.assert_array_equal(mask.pixel_array.reshape(9, 11), MASKS[1] // 255)
    assert mask.SOPClassUID == SegmentationStorage and mask.SyntheticData == "YES"
    assert mask.StudyInstanceUID == image.StudyInstanceUID and mask.PatientID == image.PatientID
    assert mask.SeriesInstanceUID != image.SeriesInstanceUID
    referenced = mask.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
    assert referenced == image.SOPInstanceUID
    if "FrameOfReferenceUID" in image:
        shared = mask.SharedFunctionalGroupsSequence[0]
        assert mask.FrameOfReferenceUID == image.FrameOfReferenceUID
        assert shared.PixelMeasuresSequence[0].PixelSpacing == image.PixelSpacing
        assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == image.ImageOrientationPatient


def test_every_dicom_uid_is_of_what_it_names(tmp_path):
    sets = series(tmp_path / "a")
    assert len({ds.SOPInstanceUID for ds in sets}) == 4 and len({ds.StudyInstanceUID for ds in sets}) == 1
    for kind in ("SeriesInstanceUID", "FrameOfReferenceUID", "SeriesNumber"):  # one a prompt
        assert [ds[kind].value for ds in sets] == [sets[0][kind].value] * 2 + [sets[2][kind].value] * 2
        assert sets[0][kind].value != sets[2][kind].value
    assert [ds.InstanceNumber for ds in sets] == [1, 2, 1, 2]
    other_pixels = IMAGES.copy()
    other_pixels[0, 0, 0] ^= 1
    changed = series(tmp_path / "b", images=other_pixels)
    assert [a.SOPInstanceUID == b.SOPInstanceUID for a, b in zip(sets, changed, strict=True)] == [False] + [True] * 3
    other_model = series(tmp_path / "c", drawing(version="f" * 16))
    assert not {ds.SOPInstanceUID for ds in sets} & {ds.SOPInstanceUID for ds in other_model}
    assert sets[0].StudyInstanceUID != other_model[0].StudyInstanceUID


@pytest.mark.parametrize("kind", KINDS)
def test_dicom_holds_the_pixels_and_says_that_they_are_synthetic(tmp_path, kind):
    plane, pixel_mm, slice_mm, sop_class = KINDS[kind]
    for row, ds in enumerate(series(tmp_path / "a", drawing(plane, pixel_mm, slice_mm))):
        assert ds.SOPClassUID == ds.file_meta.MediaStorageSOPClassUID == sop_class
        np.testing.assert_array_equal(ds.pixel_array, IMAGES[row])
        assert ds.SyntheticData == "YES" and list(ds.ImageType[:2]) == ["DERIVED", "SECONDARY"]
        assert (
            "SYNTHETIC" in ds.ImageType and "SYNTHETIC" in ds.SeriesDescription and "SYNTHETIC" in str(ds.PatientName)
        )
        assert ds.SeriesDescription == f"SYNTHETIC: {PROMPTS[row]}"[:64].rstrip()
        assert PROMPTS[row] in ds.ImageComments and f"seed {7 + row}" in ds.ImageComments
        assert "0123456789abcdef" in ds.ImageComments and "model 0123456789abcdef" in ds.SoftwareVersions
        assert "steps 14, scheduler ddim" in ds.DerivationDescription
        assert not any(element.tag.is_private for element in ds)
        assert ds.get("PixelSpacing") == (None if pixel_mm is None else pytest.approx([pixel_mm] * 2))
        if sop_class == MRImageStorage:
            assert ds.SliceThickness == slice_mm
            # The middle of the picture is the origin of its frame of reference (PS3.3, C.7.6.2.1.1).
            across, down = np.array(ds.ImageOrientationPatient).reshape(2, 3)
            middle = np.array(ds.ImagePositionPatient) + pixel_mm * (5 * across + 4 * down)
            assert middle == pytest.approx(np.zeros(3), abs=1e-6)


def test_mr_images_and_nifti_agree_on_where_left_and_up_are(tmp_path):
    """A pixel of DICOM and the same of NIfTI lie at one place, told in left-posterior and in right-anterior."""
    for plane, codes in {"axial": "LP", "coronal": "LI", "sagittal": "PI"}.items():
        ds = series(tmp_path / "dicom", drawing(plane, 0.5, 2.0))[0]
        written(tmp_path / "nifti", "nifti", drawing(plane, 0.5, 2.0))
        image = nibabel.load(tmp_path / "nifti/images.nii.gz")
        assert "".join(nibabel.aff2axcodes(image.affine))[:2] == codes
        assert image.header.get_zooms() == pytest.approx((0.5, 0.5, 2.0))
        across, down = np.array(ds.ImageOrientationPatient).reshape(2, 3)
        there = np.array(ds.ImagePositionPatient) + 0.5 * (10 * across + 2 * down)
        np.testing.assert_allclose((image.affine @ (10, 2, 0, 1))[:3] * (-1, -1, 1), there, atol=1e-5)
        assert np.asarray(image.dataobj)[10, 2, 0] == ds.pixel_array[2, 10]


@pytest.fixture(scope="module")
def standard():
    pytest.importorskip("dicom_validator", reason="install the extra `dev`")
    return dicom_standard.info(MRImageStorage, SecondaryCaptureImageStorage, SegmentationStorage)


@pytest.mark.parametrize("kind", KINDS)
def test_dicom_validator_finds_no_error(tmp_path, standard, kind):
    from dicom_validator.validator.dicom_file_validator import DicomFileValidator

    written(tmp_path / "a", "dicom", drawing(*KINDS[kind][:3]), masks=MASKS)
    found = DicomFileValidator(standard).validate(tmp_path / "a")
    assert len(found) == 7 and {name: result.errors for name, result in found.items()} == dict.fromkeys(found, 0)


@pytest.mark.parametrize("break_it", ["ScanningSequence", "FrameOfReferenceUID", "PixelSpacing", "StudyInstanceUID"])
def test_dicom_validator_finds_what_is_missing(tmp_path, standard, break_it):
    from dicom_validator.validator.dicom_file_validator import DicomFileValidator

    ds = series(tmp_path / "a")[0]
    del ds[break_it]
    ds.save_as(tmp_path / "broken.dcm")
    assert sum(result.errors for result in DicomFileValidator(standard).validate(tmp_path / "broken.dcm").values()) > 0


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="no dciodvfy here: `apt-get install dicom3tools`")
@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_finds_no_error(tmp_path, kind):
    written(tmp_path / "a", "dicom", drawing(*KINDS[kind][:3]), masks=MASKS)
    for file in (tmp_path / "a").iterdir():
        said = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True).stderr.splitlines()
        image = "MRImage" if KINDS[kind][3] == MRImageStorage else "SCImage"
        assert ("Segmentation" if "seg" in file.name else image) in said
        # Synthetic Data, which the standard has had since 2021, is not known to every release of it.
        known = ["(0x0008,0x001c)"]
        if "seg" in file.name and KINDS[kind][2] is None:
            known.append("SliceThickness")  # which a Segmentation ought to tell, and nobody knows
        assert [line for line in said if line.startswith("Error") and not any(map(line.__contains__, known))] == []


@pytest.mark.skipif(not shutil.which("dcentvfy"), reason="no dcentvfy here: `apt-get install dicom3tools`")
def test_the_images_of_a_study_agree(tmp_path):
    files = [str(tmp_path / "a" / name) for name in written(tmp_path / "a", "dicom", masks=MASKS)]
    done = subprocess.run(["dcentvfy", *files], capture_output=True, text=True)
    assert done.returncode == 0 and "Error" not in done.stdout + done.stderr


def test_bids_names_sidecars_and_origin(tmp_path):
    files = written(tmp_path / "a", "bids")
    stem = "sub-000009/anat/sub-000009_desc-synthetic_FLAIR"
    assert f"{stem}.nii.gz" in files and len([name for name in files if name.endswith(".nii.gz")]) == 4
    sidecar = json.loads(files[f"{stem}.json"])
    assert (sidecar["Seed"], sidecar["Prompt"], sidecar["ModelVersion"]) == (9, PROMPTS[2], "0123456789abcdef")
    origin = json.loads(files["dataset_description.json"])
    assert origin["DatasetType"] == "derivative" and origin["GeneratedBy"][1]["Version"] == "0123456789abcdef"
    image = nibabel.load(tmp_path / "a" / f"{stem}.nii.gz")
    assert image.shape == (11, 9, 1) and image.header.get_zooms() == pytest.approx((PIXEL_MM, PIXEL_MM, 5))
    np.testing.assert_array_equal(np.asarray(image.dataobj)[:, :, 0].T, IMAGES[2])


def test_bids_validator_finds_no_error(tmp_path):
    pytest.importorskip("bids_validator_deno", reason="install the extra `dev`")
    written(tmp_path / "a", "bids", masks=MASKS)
    command = Path(sys.executable).with_name("bids-validator-deno")

    def errors() -> list[str]:
        done = subprocess.run([command, "--json", tmp_path / "a"], capture_output=True, text=True, timeout=300)
        issues = json.loads(done.stdout)["issues"]["issues"]
        return [issue["code"] for issue in issues if issue["severity"] == "error"]

    assert errors() == []
    (tmp_path / "a/sub-000007/anat/anything.nii.gz").write_bytes(b"")  # and so it would have said
    assert errors() != []


def test_a_prompt_without_a_contrast_is_no_bids_file():
    table = drawing().table.assign(contrast="")
    formats.check(table, "dicom")
    with pytest.raises(UserError, match="names no contrast.*T1w, T1ce, T2w, FLAIR, PD"):
        formats.check(table, "bids")


def test_a_picture_says_what_it_is(tmp_path):
    written(tmp_path / "a", "png")
    with Image.open(tmp_path / "a/000009.png") as image:
        assert image.text["Description"].startswith(formats.SYNTHETIC) and PROMPTS[2] in image.text["Description"]
        np.testing.assert_array_equal(np.asarray(image), IMAGES[2])
    manifest = pd.read_csv(tmp_path / "a/manifest.csv")
    assert list(manifest["seed"]) == [7, 8, 9, 10] and list(manifest["prompt"]) == PROMPTS
