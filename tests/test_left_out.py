"""Whole runs over folders in which half of the files are no scans: nothing of them gets into a slice, nothing stops."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from test_preprocess import head, here, nifti, parameters, picture, run  # noqa: F401
from test_readers import AXIAL, save_dicom

from synthmri.errors import UserError

PEOPLE = [f"sub-{n:02d}" for n in range(1, 6)]


def save(path: str, data: np.ndarray) -> None:
    Path("raw", path).parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.asarray(data, np.float32), np.diag([4.0, 4.0, 4.0, 1.0])), Path("raw", path))


def mask_of(seed: int) -> np.ndarray:
    return (head(seed) > 60).astype(np.float32)


def checked(left_out: dict[str, int], scans: int = 5) -> None:
    """A run uses the scans, counts the rest under its reasons, and no slice of it is black and white alone."""
    sets, metrics = run()
    assert metrics["files"]["used"] == scans
    assert metrics["files_left_out"] == left_out and metrics["files_skipped"] == {}
    for part in sets.values():
        assert min(len(np.unique(image)) for image in np.asarray(part.images)) > 16


def test_pictures_and_their_masks(here):  # noqa: F811
    """As kaggle_3m has them."""
    for n in range(5):
        for k in range(8):
            name = f"raw/TCGA_CS_{4940 + n}_19960909/TCGA_CS_{4940 + n}_19960909_{k}"
            picture(f"{name.removeprefix('raw/')}.tif", 10 * n + k)
            Image.fromarray(mask_of(10 * n + k)[12].astype(np.uint8) * 255).save(f"{name}_mask.tif")
    checked({"mask": 40}, scans=40)


@pytest.mark.parametrize("name", ["T1_brainmask", "consensus_gt", "T1_roi", "lesions", "aseg", "x"])
def test_volumes_and_their_masks(here, name):  # noqa: F811
    for n, person in enumerate(PEOPLE):
        nifti(f"{person}/T1.nii.gz", n)
        save(f"{person}/{name}.nii.gz", mask_of(n))
    sets, metrics = run()
    assert metrics["files"]["used"] == 5 and sum(metrics["files_left_out"].values()) == 5


def test_tissue_classes_of_spm(here):  # noqa: F811
    for n, person in enumerate(PEOPLE):
        nifti(f"{person}/{person}_T1w.nii", n)
        for tissue in (1, 2, 3):
            save(f"{person}/c{tissue}{person}_T1w.nii", head(n) / 300)
    checked({"probability map": 15})


def test_series_of_dicom_beside_the_scans(here):  # noqa: F811
    """A segmentation, a phase, a scout and a screenshot for each person."""
    mr, storage = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1."
    for n, person in enumerate(PEOPLE):
        volume, own = head(n).round(), {"PatientID": person, "PixelSpacing": [4.0, 4.0]}
        for k in range(volume.shape[2]):
            where = {"ImagePositionPatient": [0.0, 0.0, 4.0 * k]}
            elements = {
                1: {},
                2: {"SOPClassUID": storage + "66.4", "Modality": "SEG"},
                3: {"SOPClassUID": mr, "ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]},
                4: {"SOPClassUID": storage + "7", "Modality": "OT"},
                5: {"ImagePositionPatient": [0.0, 0.0, 40.0 * k]},  # a scout of three slices
            }
            for series, special in elements.items():
                if series != 5 or k < 3:
                    special = {"SeriesInstanceUID": f"1.{n}.{series}", "SeriesDescription": "t1_mpr_sag"} | special
                    save_dicom(
                        Path("raw", person, f"{series}-{k}.dcm"), volume[:, :, k].T, **AXIAL | own | where | special
                    )
    checked({"label map": 5, "phase image": 5, "screen save": 5, "scout": 5})


def test_a_valid_tree_of_bids_with_what_belongs_to_it(here):  # noqa: F811
    for n, person in enumerate(PEOPLE):
        nifti(f"{person}/anat/{person}_T1w.nii.gz", n)
        save(f"{person}/anat/{person}_mod-T1w_defacemask.nii.gz", mask_of(n))
        save(f"{person}/anat/{person}_part-phase_T1w.nii.gz", head(n))
        save(f"{person}/dwi/{person}_dwi.nii.gz", head(n))
        save(f"derivatives/fmriprep/{person}/anat/{person}_space-MNI_desc-preproc_T1w.nii.gz", head(n))
        save(f"{person}/anat/{person}_T1w_brain.nii.gz", head(n))
    checked({"mask": 5, "phase image": 5, "diffusion": 5, "derivative": 10})


def test_layout_of_nnunet_and_of_freesurfer(here):  # noqa: F811
    parameters(subjects="confirmed")
    for n in range(5):
        nifti(f"imagesTr/BRATS_{n:03d}_0000.nii.gz", n)
        save(f"labelsTr/BRATS_{n:03d}.nii.gz", mask_of(n) * 3)
        nifti(f"anna{n}/mri/T1.nii.gz", 20 + n)
        for name in ("orig", "norm", "brain", "aseg", "wmparc", "ribbon"):
            save(f"anna{n}/mri/{name}.nii.gz", head(20 + n) + 1)
    checked({"label map": 20, "derivative": 15}, scans=10)


def test_masks_that_no_name_tells_of(here):  # noqa: F811
    """By their values: a folder A of scans, B of masks."""
    for n in range(5):
        for k in range(8):
            picture(f"P000{n}/A{k}.png", 10 * n + k)
            Image.fromarray(mask_of(10 * n + k)[12].astype(np.uint8) * 200).save(f"raw/P000{n}/B{k}.png")
    checked({"mask": 40}, scans=40)


def test_pictures_of_three_contrasts_in_three_channels(here, capfd):  # noqa: F811
    for n in range(5):
        for k in range(8):
            path = Path(f"raw/P000{n}/{k}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            channels = [head(seed + 10 * n + k)[12].clip(0, 255).astype(np.uint8) for seed in (0, 100, 200)]
            Image.fromarray(np.dstack(channels)).save(path)
    with pytest.raises(UserError):
        run()
    assert "set data.channel to 0, 1 or 2" in capfd.readouterr().err
    parameters(channel=1)
    sets, _ = run()
    first = sets["train"].images[0]
    assert any(np.array_equal(first, image) for image in sets["train"].images)
    parameters(channel=0)
    assert not np.array_equal(run()[0]["train"].images[0], first)


def test_heads_of_a_wrong_unit_are_failures(here, capfd):  # noqa: F811
    """A word that names the size, and the run stops: these are scans, and should be mended."""
    for n, person in enumerate(PEOPLE):
        path = Path("raw", person, "T1.nii.gz")
        path.parent.mkdir()
        nibabel.save(nibabel.Nifti1Image(head(n), np.diag([0.4, 0.4, 0.4, 1.0])), path)
    with pytest.raises(UserError, match="5 of 5 scans cannot be used"):
        run()
    said = capfd.readouterr().err
    assert "shows a head 9" in said and "sub-01/T1.nii.gz" in said
