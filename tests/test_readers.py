"""Readers against files written here, whose right answer is known, and against every kind of bad file."""

import gzip
import os
import pickle
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from synthmri.errors import UserError
from synthmri.scans import read, scan

SHAPE = (20, 24, 28)  # all different, so that a swapped axis shows
MARK = (3, 5, 7)  # right, anterior, superior index of the one bright voxel


def volume() -> np.ndarray:
    data = np.random.default_rng(0).uniform(10, 20, SHAPE).astype(np.float32)
    data[MARK] = 100
    return data


def save_nifti(path: Path, data: np.ndarray, affine=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine), path)
    return path


def save_dicom(path: Path, pixels: np.ndarray, **elements) -> Path:
    """One MR file. pixels: uint16 (rows, columns) or (frames, rows, columns); elements: any DICOM keyword."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "id-1"
    dataset.SeriesInstanceUID, dataset.SeriesDescription = "1.2.3", "Ax T2 FLAIR"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.PixelData = pixels.astype(np.uint16).tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def dicom_slices(data: np.ndarray) -> list[tuple[np.ndarray, list[float]]]:
    """Volume (X, Y, Z), RAS, voxels 1 x 2 x 3 mm -> axial slices as scanners write them, with ImagePositionPatient.

    Columns run towards left, rows towards posterior: both axes turned round against RAS.
    """
    return [(data[::-1, ::-1, k].T, [-19.0, -46.0, 3.0 * k]) for k in range(data.shape[2])]


AXIAL = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [2.0, 1.0]}


def save_series(folder: Path, data: np.ndarray, **elements) -> None:
    order = np.random.default_rng(1).permutation(data.shape[2])  # file names tell nothing of the order
    for name, k in enumerate(order):
        pixels, position = dicom_slices(data)[k]
        save_dicom(folder / f"IM{name:03d}", pixels, **AXIAL | {"ImagePositionPatient": position} | elements)


def only(root: Path) -> scan.Source:
    sources, bad = read.find(root)
    assert all(isinstance(error, scan.LeftOut) for error in bad), [str(error) for error in bad]
    assert len(sources) == 1
    return sources[0]


# Geometry and values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR", "SRA", "ILP"])
@pytest.mark.parametrize("tilt", [0.0, 20.0])
def test_any_axes_come_out_as_ras(tmp_path, codes, tilt):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
    )
    stored = nibabel.orientations.apply_orientation(volume(), turn)
    stored_affine = affine @ nibabel.orientations.inv_ornt_aff(turn, SHAPE)
    angle = np.deg2rad(tilt)
    oblique = np.eye(4)
    oblique[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    save_nifti(tmp_path / "a.nii.gz", stored, oblique @ stored_affine)
    found = read.read(only(tmp_path))
    assert found.data.dtype == np.float32
    np.testing.assert_array_equal(found.data, volume())
    np.testing.assert_allclose(found.spacing_mm, (1, 2, 3), rtol=1e-5)


def test_nifti_scale_factors_and_singleton_axis(tmp_path):
    image = nibabel.Nifti1Image(volume().astype(np.int16)[..., None], np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, tmp_path / "a.nii")
    assert read.read(only(tmp_path)).data[MARK] == 100 * 0.5 - 3


def test_some_nan_become_zero(tmp_path):
    data = volume()
    data[0, 0, :2] = np.nan, np.inf
    save_nifti(tmp_path / "a.nii", data)
    found = read.read(only(tmp_path)).data
    assert found[0, 0, 0] == found[0, 0, 1] == 0
    assert found[MARK] == 100


def test_dicom_series_of_shuffled_files_without_extension(tmp_path):
    save_series(tmp_path, volume().round(), RescaleSlope=2, RescaleIntercept=-5)
    source = only(tmp_path)
    assert (source.subject, source.contrast, len(source.paths)) == ("id-1", "FLAIR", SHAPE[2])
    found = read.read(source)
    np.testing.assert_array_equal(found.data, volume().round() * 2 - 5)
    np.testing.assert_allclose(found.spacing_mm, (1, 2, 3))


def test_monochrome1_is_inverted(tmp_path):
    data = volume().round()
    save_series(tmp_path, data, PhotometricInterpretation="MONOCHROME1")
    found = read.read(only(tmp_path)).data
    np.testing.assert_array_equal(found, data.max() + data.min() - data)


def test_sagittal_dicom(tmp_path):
    data = volume().round()
    for i in range(SHAPE[0]):  # columns towards posterior, rows towards inferior
        save_dicom(
            tmp_path / f"{i}.dcm",
            data[i, ::-1, ::-1].T,
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
            PixelSpacing=[3.0, 2.0],
            ImagePositionPatient=[-1.0 * i, -46.0, 81.0],
        )
    found = read.read(only(tmp_path))
    np.testing.assert_array_equal(found.data, data)
    np.testing.assert_allclose(found.spacing_mm, (1, 2, 3))


@pytest.mark.parametrize("shared", [True, False])
def test_enhanced_multi_frame(tmp_path, shared):
    def item(**elements):
        group = Dataset()
        for keyword, value in elements.items():
            setattr(group, keyword, value)
        return group

    data = volume().round()
    common = item(
        PixelMeasuresSequence=[item(PixelSpacing=AXIAL["PixelSpacing"])],
        PlaneOrientationSequence=[item(ImageOrientationPatient=AXIAL["ImageOrientationPatient"])],
        PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=1)],
    )
    order = np.random.default_rng(2).permutation(SHAPE[2])
    frames = [dicom_slices(data)[k] for k in order]
    groups = [item(PlanePositionSequence=[item(ImagePositionPatient=position)]) for _, position in frames]
    if not shared:
        for group in groups:
            group.update(common)
    elements = {"SharedFunctionalGroupsSequence": [common]} if shared else {}
    save_dicom(
        tmp_path / "e.dcm",
        np.stack([pixels for pixels, _ in frames]),
        NumberOfFrames=len(frames),
        PerFrameFunctionalGroupsSequence=groups,
        **elements,
    )
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, data * 2 + 1)


def test_plain_multi_frame(tmp_path):
    frames = dicom_slices(volume().round())
    save_dicom(
        tmp_path / "m.dcm",
        np.stack([pixels for pixels, _ in frames]),
        NumberOfFrames=len(frames),
        SpacingBetweenSlices=3.0,
        ImagePositionPatient=frames[0][1],
        **AXIAL,
    )
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, volume().round())


PICTURE = np.add.outer(np.arange(40), np.arange(32) * 2)  # 40 rows, 32 columns, 0..101


@pytest.mark.parametrize(
    "name, pixels, tolerance",
    [
        ("a.png", PICTURE.astype(np.uint8), 0),
        ("a.png", (PICTURE * 500).astype(np.uint16), 0),
        ("a.tif", (PICTURE * 500).astype(np.uint16), 0),
        ("a.tiff", PICTURE.astype(np.float32), 0),
        ("a.JPG", PICTURE.astype(np.uint8), 4),
        ("a.png", np.dstack([PICTURE] * 3).astype(np.uint8), 0),
        ("a.jpeg", np.dstack([PICTURE] * 3).astype(np.uint8), 4),
        ("a.png", np.dstack([PICTURE] * 3 + [PICTURE * 0 + 255]).astype(np.uint8), 0),
    ],
)
def test_pictures(tmp_path, name, pixels, tolerance):
    Image.fromarray(pixels).save(tmp_path / name)
    found = read.read(only(tmp_path))
    expected = pixels if pixels.ndim == 2 else pixels[..., 0]
    assert found.spacing_mm is None and found.data.dtype == np.float32
    np.testing.assert_allclose(found.data, expected[None], atol=tolerance)


STACK = np.random.default_rng(3).uniform(-1, 1, (5, 24, 20)).astype(np.float32)


@pytest.mark.parametrize(
    "array",
    [STACK, STACK[:, None], np.repeat(STACK[:, None], 3, 1), np.repeat(STACK[..., None], 3, 3), STACK[..., None]],
    ids=["NHW", "N1HW", "N3HW", "NHW3", "NHW1"],
)
@pytest.mark.parametrize("suffix", ["npy", "pt"])
def test_tensors(tmp_path, array, suffix):
    path = tmp_path / f"preprocessed_sample_256x256.{suffix}"
    np.save(path, array) if suffix == "npy" else torch.save(torch.from_numpy(array), path)
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, STACK)


def test_tensor_of_one_picture_and_of_half_precision(tmp_path):
    torch.save(torch.from_numpy(STACK[0]).half(), tmp_path / "a.pt")
    np.testing.assert_allclose(read.read(only(tmp_path)).data, STACK[:1], atol=1e-3)


# What is found --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, subject, contrast",
    [
        ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01", "T1w"),
        ("sub-01/ses-2/anat/sub-01_ses-2_ce-gadolinium_T1w.nii.gz", "sub-01", "T1ce"),
        ("sub-A7_FLAIR.nii", "sub-A7", "FLAIR"),
        ("open-ms/patient01/study1_FLAIR.nii.gz", "patient01", "FLAIR"),
        ("patient01/study2_T1W.nii.gz", "patient01", "T1w"),
        ("miller/2nd/T2_flair.nii.gz", "miller", "FLAIR"),
        ("BraTS_001/BraTS_001_t1ce.nii.gz", "BraTS_001", "T1ce"),
        ("IXI002-Guys-0828-PD.nii.gz", "IXI002", "PD"),
        ("IXI002-Guys-0828-T2.nii.gz", "IXI002", "T2w"),
        ("kim_visit2_T1GD.nii.gz", "kim", "T1ce"),
        ("scan7.nii", "scan7", ""),
        ("FLAIR/scan7.nii", "scan7", "FLAIR"),
        ("visit1/P1.2/FLAIR.nii", "P1_2", "FLAIR"),
        ("T2star/scan7.nii", "scan7", ""),
    ],
)
def test_subject_and_contrast_of_volumes(tmp_path, name, subject, contrast):
    save_nifti(tmp_path / "raw" / name, volume())
    source = only(tmp_path / "raw")
    assert (source.subject, source.contrast, source.label) == (subject, contrast, "")


@pytest.mark.parametrize(
    "name, subject, contrast, label",
    [
        ("t1ce-tumor/glioma/0001.png", None, "T1ce", "glioma"),
        ("anna meier/0001.png", None, "", ""),  # lower case alone makes no class
        ("0001.png", None, "", ""),
        ("images/0001.png", None, "", ""),
        ("FLAIR/0001.png", None, "FLAIR", ""),
        ("patient07/0001.png", "patient07", "", ""),
        ("DOE_JANE/0001.png", None, "", ""),  # a name is no class
    ],
)
def test_subject_and_label_of_pictures(tmp_path, name, subject, contrast, label):
    path = tmp_path / "raw" / name
    path.parent.mkdir(parents=True)
    Image.fromarray(PICTURE.astype(np.uint8)).save(path)
    (source,), bad = read.find(tmp_path / "raw", classes=["glioma"])
    assert (source.subject, source.contrast, source.label) == (subject, contrast, label) and not bad


@pytest.mark.parametrize("suffix", ["/1.png", ".npy"])
def test_three_numbered_folders_or_tensors_are_people_and_two_are_none(tmp_path, suffix):
    for count in (1, 2, 3, 4):
        path = tmp_path / f"X000{count}{suffix}"
        path.parent.mkdir(exist_ok=True)
        if suffix == ".npy":
            np.save(path, PICTURE)
        else:
            Image.fromarray(PICTURE.astype(np.uint8)).save(path)
        found = [source.subject for source in read.find(tmp_path)[0]]
        assert found == ([None] * count if count < 3 else [f"X000{n + 1}" for n in range(count)])


def test_numbered_classes_are_no_people(tmp_path):
    for name in ("grade1", "grade2", "grade3"):
        (tmp_path / name).mkdir()
        Image.fromarray(PICTURE.astype(np.uint8)).save(tmp_path / name / "1.png")
    sources, _ = read.find(tmp_path, classes=["grade1", "grade2", "grade3"])
    assert [(source.subject, source.label) for source in sources] == [(None, f"grade{n}") for n in (1, 2, 3)]


@pytest.mark.parametrize(
    "text, contrast",
    [
        ("Ax T1 FLAIR", "T1w"),
        ("AX T2 FLAIR", "FLAIR"),
        ("AX T1 PRE GAD", "T1w"),
        ("T1 W/O C", "T1w"),
        ("T1 no Gd", "T1w"),
        ("T1 post GD", "T1ce"),
    ],
)
def test_contrast_of_series_descriptions(tmp_path, text, contrast):
    save_series(tmp_path, volume(), SeriesDescription=text)
    assert only(tmp_path).contrast == contrast


@pytest.mark.parametrize("agent", ["NONE", "no", "0", ""])
def test_no_agent_is_no_agent(tmp_path, agent):
    save_series(tmp_path, volume(), SeriesDescription="AX T1 SE", ContrastBolusAgent=agent)
    assert only(tmp_path).contrast == "T1w"


def test_one_id_for_all_after_deidentification_leaves_the_folders(tmp_path):
    for n in (1, 2, 3):
        folder = tmp_path / f"patient0{n}"
        save_series(folder, volume(), PatientID="ANONYMOUS", SeriesInstanceUID=f"1.{n}", SeriesDescription="T1")
    assert [source.subject for source in read.find(tmp_path)[0]] == ["patient01", "patient02", "patient03"]
    save_series(tmp_path / "visit2", volume(), PatientID="A7", SeriesInstanceUID="1.9", SeriesDescription="T1")
    assert "A7" in [source.subject for source in read.find(tmp_path)[0]]


def test_contrast_agent_of_dicom(tmp_path):
    save_series(tmp_path, volume(), SeriesDescription="AX T1 SE", ContrastBolusAgent="Gadovist")
    assert only(tmp_path).contrast == "T1ce"


def test_series_are_parted_by_uid_not_by_folder(tmp_path):
    for uid, contrast in (("1.1", "T1W"), ("1.2", "T2W")):
        for k, (pixels, position) in enumerate(dicom_slices(volume())):
            elements = AXIAL | {
                "ImagePositionPatient": position,
                "SeriesInstanceUID": uid,
                "SeriesDescription": contrast,
            }
            save_dicom(tmp_path / str(k % 2) / f"{uid}-{k}.dcm", pixels, **elements)
    sources, _ = read.find(tmp_path)
    assert [(source.contrast, len(source.paths)) for source in sources] == [("T1w", SHAPE[2]), ("T2w", SHAPE[2])]


def test_natural_order_and_junk(tmp_path):
    for name in ("10.png", "9.png", "1.png"):
        Image.fromarray(PICTURE.astype(np.uint8)).save(tmp_path / name)
    junk = [
        ".DS_Store",
        "README.md",
        "README",
        ".gitignore",
        "a.json",
        "a.tsv",
        "a.csv",
        "a.txt",
        "a.bval",
        "a.nii.dvc",
    ]
    for name in junk:
        (tmp_path / name).write_text("x")
    sources, bad = read.find(tmp_path)
    assert [source.name for source in sources] == ["1.png", "9.png", "10.png"]
    assert not bad


def test_bids_other_than_anatomy_is_not_looked_at(tmp_path):
    save_nifti(tmp_path / "sub-01/anat/sub-01_T1w.nii.gz", volume())
    save_nifti(tmp_path / "sub-01/anat/sub-01_desc-brain_mask.nii.gz", volume())
    save_nifti(tmp_path / "sub-01/func/sub-01_bold.nii.gz", np.zeros((4, 4, 4, 5), np.float32))
    assert only(tmp_path).name == "sub-01/anat/sub-01_T1w.nii.gz"


def test_labels_of_participants(tmp_path):
    save_nifti(tmp_path / "sub-01/anat/sub-01_T1w.nii.gz", volume())
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tlabel\nsub-01\t40\tglioma\n")
    assert only(tmp_path).label == "glioma"
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tlabel\nsub-01\t40\tn/a\n")  # BIDS: not known
    assert only(tmp_path).label == ""
    (tmp_path / "participants.tsv").write_text("id\tlabel\nsub-01\tglioma\n")
    with pytest.raises(UserError, match="participant_id"):
        read.find(tmp_path)


def test_links(tmp_path):
    inside, outside = tmp_path / "raw", tmp_path / "elsewhere"
    save_nifti(inside / "a.nii", volume())
    save_nifti(outside / "b.nii", volume())
    (inside / "in.nii").symlink_to(inside / "a.nii")
    (inside / "out.nii").symlink_to(outside / "b.nii")
    (inside / "folder").symlink_to(outside)
    (inside / "dead.nii").symlink_to(inside / "nothing.nii")
    sources, bad = read.find(inside)
    assert [source.name for source in sources] == ["a.nii", "in.nii"]
    assert [(error.category, str(error).split(":")[0]) for error in bad] == [
        ("special", "dead.nii"),
        ("link", "folder"),
        ("link", "out.nii"),
    ]


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="is no folder; make it"):
        read.find(tmp_path / "nothing")


# Bad files ------------------------------------------------------------------------------------------------------------


def huge(path):
    header = nibabel.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header.set_sform(np.eye(4), 1)
    path.write_bytes(header.binaryblock + bytes(4))


def edited(path, keyword, value):
    save_nifti(path, volume())
    raw = bytearray(path.read_bytes())
    header = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
    header[keyword] = value
    raw[:348] = header.binaryblock
    path.write_bytes(raw)


def cut(path, save, *args):
    save(path, *args)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def colour(path):
    pixels = np.dstack([PICTURE, PICTURE[::-1], PICTURE]).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def pages(path):
    page = Image.fromarray(PICTURE.astype(np.uint8))
    page.save(path, save_all=True, append_images=[page])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def flat(array):
    return lambda path: save_nifti(path, array)


BAD = {
    "noise.nii": (lambda path: path.write_bytes(b"\x07" * 1000), "unreadable"),
    "noise.nii.gz": (lambda path: path.write_bytes(b"\x07" * 1000), "unreadable"),
    "gz_of_noise.nii.gz": (lambda path: path.write_bytes(gzip.compress(b"\x07" * 1000)), "unreadable"),
    "empty.nii": (lambda path: path.touch(), "unreadable"),
    "cut.nii": (lambda path: cut(path, save_nifti, volume()), "unreadable"),
    "cut.nii.gz": (lambda path: cut(path, save_nifti, volume()), "unreadable"),
    "4d.nii": (flat(np.zeros((4, 5, 6, 2), np.float32)), "shape"),
    "2d.nii": (flat(volume()[..., 0]), "shape"),
    "complex.nii": (flat(volume().astype(np.complex64)), "values"),
    "nan.nii": (flat(np.full(SHAPE, np.nan, np.float32)), "values"),
    "constant.nii": (flat(np.ones(SHAPE, np.float32)), "constant"),
    "localizer.nii": (flat(volume()[..., :2]), "scout"),
    "huge.nii": (huge, "size"),
    "zero_affine.nii": (lambda path: edited(path, "srow_x", 0), "geometry"),
    "nan_affine.nii": (lambda path: edited(path, "srow_x", np.nan), "geometry"),
    "no_affine.nii": (lambda path: edited(path, "sform_code", 0), "geometry"),
    "nan_spacing.nii": (lambda path: edited(path, "pixdim", [1, np.nan, 1, 1, 1, 1, 1, 1]), "geometry"),
    "wide.nii": (lambda path: save_nifti(path, volume(), np.diag([1, 1, 1000, 1])), "geometry"),
    "colour.png": (colour, "colour"),
    "colour.jpg": (colour, "colour"),
    "cmyk.jpg": (lambda path: Image.new("CMYK", (32, 32)).save(path), "colour"),
    "black.png": (lambda path: Image.new("L", (32, 32)).save(path), "constant"),
    "tiny.png": (lambda path: Image.linear_gradient("L").resize((4, 4)).save(path), "shape"),
    "pages.tif": (pages, "shape"),
    "noise.png": (lambda path: path.write_bytes(b"\x07" * 1000), "unreadable"),
    "cut.png": (lambda path: cut(path, Image.effect_noise((64, 64), 50).save), "unreadable"),
    "cut.jpg": (lambda path: cut(path, Image.effect_noise((64, 64), 50).save), "unreadable"),
    "5d.npy": (lambda path: np.save(path, STACK[None, None]), "shape"),
    "two_channels.npy": (lambda path: np.save(path, np.repeat(STACK[:, None], 2, 1)), "shape"),
    "colour.npy": (lambda path: np.save(path, STACK[:3].repeat(4, 0).reshape(4, 3, 24, 20)), "colour"),
    "complex.npy": (lambda path: np.save(path, STACK * 1j), "values"),
    "none.npy": (lambda path: np.save(path, STACK[:0]), "size"),
    "objects.npy": (lambda path: np.save(path, np.array([{}, None]), allow_pickle=True), "unreadable"),
    "list.pt": (lambda path: torch.save([1, 2], path), "unreadable"),
    "evil.pt": (lambda path: path.write_bytes(pickle.dumps(Evil())), "unreadable"),
    "complex.pt": (lambda path: torch.save(torch.ones(2, 20, 20, dtype=torch.complex64), path), "values"),
    "constant.pt": (lambda path: torch.save(torch.ones(2, 20, 20), path), "constant"),
    "noise.dcm": (lambda path: path.write_bytes(b"\x07" * 1000), "unreadable"),
    "scan.mgz": (lambda path: path.write_bytes(b"\x07" * 1000), "format"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name_and_reason(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make, category = BAD[name]
    (tmp_path / "raw").mkdir()
    make(tmp_path / "raw" / name)
    sources, bad = read.find(tmp_path / "raw")
    for source in sources:
        with pytest.raises(scan.BadFile) as caught:
            read.read(source)
        bad.append(caught.value)
    assert [error.category for error in bad] == [category]
    assert str(bad[0]).startswith(f"{name}: ")
    assert not Path("evil").exists()
    again = pickle.loads(pickle.dumps(bad[0]))  # it comes back from a worker
    assert (str(again), again.category) == (str(bad[0]), category)


def without(keyword):
    def change(path):
        dataset = pydicom.dcmread(path)
        del dataset[keyword]
        dataset.save_as(path)

    return change


def setting(**elements):
    def change(path):
        dataset = pydicom.dcmread(path)
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)

    return change


@pytest.mark.parametrize(
    "change, category",
    [
        (without("PixelData"), "no_pixels"),
        (without("ImagePositionPatient"), "geometry"),
        (without("PixelSpacing"), "geometry"),
        (setting(PixelSpacing=[2.5, 1.0]), "geometry"),
        (setting(PixelSpacing=[0, 0]), "geometry"),
        (setting(ImageOrientationPatient=[1, 0, 0, 0, 0, 1]), "geometry"),
        (setting(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "geometry"),
        (setting(ImagePositionPatient=[-19, -46, 3]), "geometry"),  # that of another slice
        (setting(PhotometricInterpretation="MONOCHROME1"), "values"),
        (setting(Rows=60000, Columns=60000), "size"),
        (setting(Rows=25), "unreadable"),  # more rows than pixels
        (lambda path: path.write_bytes(path.read_bytes()[:-300]), "unreadable"),
        (lambda path: path.unlink(), "geometry"),  # a slice is missing
    ],
)
def test_bad_slice_in_a_series(tmp_path, change, category):
    save_series(tmp_path, volume(), PixelSpacing=[2.0, 1.0])
    path = next(path for path in tmp_path.iterdir() if pydicom.dcmread(path).ImagePositionPatient[2] == 30)
    change(path)
    with pytest.raises(scan.BadFile) as caught:
        read.read(only(tmp_path))
    assert caught.value.category == category, str(caught.value)


def test_dicom_localizer_and_colour(tmp_path):
    for k, (pixels, position) in enumerate(dicom_slices(volume())[:2]):
        save_dicom(tmp_path / "a" / f"{k}.dcm", pixels, **AXIAL, ImagePositionPatient=position)
    with pytest.raises(scan.BadFile, match="series of 2 slices"):
        read.read(only(tmp_path / "a"))
    save_dicom(tmp_path / "b" / "c.dcm", np.zeros((20, 20, 3), np.uint16), SamplesPerPixel=3)
    with pytest.raises(scan.BadFile, match="colour"):
        read.read(only(tmp_path / "b"))


# Real volumes ---------------------------------------------------------------------------------------------------------

REAL = os.environ.get("REAL_MRI", "")
real = pytest.mark.skipif(not Path(REAL, "open-ms").is_dir(), reason="REAL_MRI names no folder of real scans")


@real
def test_real_volumes():
    sources, bad = read.find(Path(REAL, "open-ms"))
    flair = [source for source in sources if source.contrast == "FLAIR"]
    assert not bad
    assert {source.subject for source in flair} == {f"patient{n:02d}" for n in (1, 3, 4, 9, 12)}
    found = read.read(flair[0])
    assert found.data.shape == (320, 320, 36)
    np.testing.assert_allclose(found.spacing_mm, (0.71875, 0.71875, 4.0), atol=1e-3)
    # Defaced: the missing face is in front and below, so the bottom quarter is brighter behind than in front.
    front, back = found.data[:, 160:, :9].mean(), found.data[:, :160, :9].mean()
    assert back > 1.2 * front


@real
def test_real_pictures():
    sources, bad = read.find(Path(REAL, "t1ce-tumor"), ["glioma", "meningioma", "pituitary"])
    assert not bad
    assert {source.label for source in sources} == {"glioma", "meningioma", "pituitary"}
    assert {(source.contrast, source.subject) for source in sources} == {("T1ce", None)}
    numbers = [int(source.paths[0].stem) for source in sources if source.label == "glioma"]
    assert numbers == sorted(numbers)
