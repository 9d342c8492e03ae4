"""DICOM as hospitals send it: compressed, without preamble, doubled, mixed; and what lies beside the scans."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)
from test_readers import AXIAL, SHAPE, dicom_slices, only, save_dicom, save_series, volume

from synthmri.scans import read, scan

DATA = volume().round()


def planes(folder: Path, data: np.ndarray, name: str = "", **elements) -> list[Path]:
    """A series, its slices in order."""
    return [
        save_dicom(folder / f"{name}{k:03d}.dcm", pixels, **AXIAL | {"ImagePositionPatient": position} | elements)
        for k, (pixels, position) in enumerate(dicom_slices(data))
    ]


def reasons(root: Path) -> list[str]:
    return [error.category for error in read.find(root)[1]]


# Coding ---------------------------------------------------------------------------------------------------------------


def lossless_jpeg(pixels: np.ndarray) -> bytes:
    """uint16 (rows, columns) -> JPEG Lossless, first-order prediction, as ITU-T T.81 annex H writes it.

    One Huffman table gives each of the 17 categories of a difference a code of 5 bits.
    """
    rows, columns = pixels.shape
    left = np.zeros_like(pixels, dtype=np.int64)
    left[:, 1:] = pixels[:, :-1]
    left[1:, 0] = pixels[:-1, 0]
    left[0, 0] = 1 << 15
    differences = (pixels.astype(np.int64) - left + 2**15) % 2**16 - 2**15
    bits = ""
    for difference in differences.ravel().tolist():
        size = abs(difference).bit_length()
        bits += f"{size:05b}"
        if size and size < 16:
            bits += f"{difference if difference > 0 else difference + 2**size - 1:0{size}b}"
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = b"\x10" + rows.to_bytes(2, "big") + columns.to_bytes(2, "big") + b"\x01\x01\x11\0"
    table = b"\0" + bytes([0, 0, 0, 0, 17] + [0] * 11) + bytes(range(17))
    parts = [(b"\xff\xc3", frame), (b"\xff\xc4", table), (b"\xff\xda", b"\x01\x01\0\x01\0\0")]
    head = b"".join(marker + (len(body) + 2).to_bytes(2, "big") + body for marker, body in parts)
    return b"\xff\xd8" + head + scan + b"\xff\xd9"


def jpeg_2000(pixels: np.ndarray) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG2000", irreversible=False, no_jp2=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("syntax", "encode"), [(JPEGLosslessSV1, lossless_jpeg), (JPEG2000Lossless, jpeg_2000), (RLELossless, None)]
)
def test_compressed_series_are_read_to_the_voxel(tmp_path, syntax, encode):
    for path in planes(tmp_path, DATA):
        dataset = pydicom.dcmread(path)
        if encode is None:
            dataset.compress(syntax, generate_instance_uid=False)
        else:
            dataset.PixelData = encapsulate([encode(dataset.pixel_array)])
            dataset["PixelData"].is_undefined_length = True
            dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path)
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, DATA)


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm", "MR_small_RLE.dcm"])
def test_compressed_files_of_other_hands(tmp_path, name):
    """pydicom's own samples, one image of a scanner in several codings."""
    plain = pydicom.dcmread(get_testdata_file("MR_small.dcm")).pixel_array
    for k in range(3):
        dataset = pydicom.dcmread(get_testdata_file(name))
        dataset.ImagePositionPatient, dataset.SOPInstanceUID = [0, 0, 3.0 * k], generate_uid()
        dataset.ImageOrientationPatient = AXIAL["ImageOrientationPatient"]
        dataset.save_as(tmp_path / f"{k}.dcm")
    np.testing.assert_array_equal(read.read(only(tmp_path)).data[::-1, ::-1, 1].T, plain)


def test_a_coding_that_is_not_decoded_is_named(tmp_path):
    for path in planes(tmp_path, DATA):
        dataset = pydicom.dcmread(path)
        dataset.PixelData = encapsulate([b"\0" * 64])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4
        dataset.save_as(path)
    with pytest.raises(scan.BadFile, match="compressed as MPEG-4 .*export it uncompressed") as caught:
        read.read(only(tmp_path))
    assert caught.value.category == "compressed" and "copy it again" not in str(caught.value)


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("suffix", [".dcm", ""])
def test_files_without_preamble(tmp_path, meta, suffix):
    for path in planes(tmp_path, DATA):
        if meta:  # group 2 alone
            content = path.read_bytes()[132:]
        else:
            dataset = pydicom.dcmread(path)
            bare = Dataset(dataset)
            bare.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
            content = path.read_bytes()
            assert content[:1] == b"\x08"
        path.unlink()
        path.with_suffix(suffix).write_bytes(content)
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, DATA)


def test_implicit_coding(tmp_path):
    for path in planes(tmp_path, DATA):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        dataset.save_as(path, implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, DATA)


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "signed"), [(-2000, True), (63536, False), (65535, False), (32767, True)])
def test_padding_becomes_background(tmp_path, value, signed):
    """As GE fills the corners of a round field of view."""
    data = DATA.copy()
    data[:4, :4] = data[-4:, -4:] = value
    for k, (pixels, position) in enumerate(dicom_slices(data)):
        path = save_dicom(
            tmp_path / f"{k}.dcm", pixels.astype(np.int64) % 2**16, ImagePositionPatient=position, **AXIAL
        )
        dataset = pydicom.dcmread(path)
        dataset.PixelRepresentation = int(signed)
        dataset.add_new("PixelPaddingValue", "SS" if signed else "US", value)
        dataset.save_as(path)
    found = read.read(only(tmp_path)).data
    assert (found[:4, :4] == 0).all() and (found[-4:, -4:] == 0).all()
    np.testing.assert_array_equal(found[4:-4], data[4:-4])


def test_a_padding_of_zero_changes_nothing(tmp_path):
    data = DATA.copy()
    data[:4] = 0
    for path in planes(tmp_path, data):
        dataset = pydicom.dcmread(path)
        dataset.add_new("PixelPaddingValue", "US", 0)
        dataset.save_as(path)
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, data)


# What one series holds ------------------------------------------------------------------------------------------------


def test_magnitude_is_taken_of_magnitude_and_phase(tmp_path):
    planes(tmp_path, DATA, "m", ImageType=["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"])
    planes(tmp_path, volume()[::-1], "p", ImageType=["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"])
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, DATA)
    assert reasons(tmp_path) == ["phase image"]


def test_a_phase_of_ge_is_told_by_a_private_element(tmp_path):
    planes(tmp_path, DATA, "m", ImageType=["ORIGINAL", "PRIMARY", "OTHER"])
    for path in planes(tmp_path, DATA[::-1], "p", ImageType=["ORIGINAL", "PRIMARY", "OTHER"]):
        dataset = pydicom.dcmread(path)
        block = dataset.private_block(0x0043, "GEMS_PARM_01", create=True)
        block.add_new(0x2F, "SS", 1)
        dataset.save_as(path)
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, DATA)
    assert reasons(tmp_path) == ["phase image"]


def test_a_real_part_counts_where_there_is_no_magnitude(tmp_path):
    planes(tmp_path, DATA, "r", ImageType=["ORIGINAL", "PRIMARY", "R_IR", "R", "IR"])
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, DATA)
    planes(tmp_path, DATA[::-1], "m", ImageType=["ORIGINAL", "PRIMARY", "M_IR", "M", "IR"])
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, DATA[::-1])
    assert reasons(tmp_path) == ["phase image"]


@pytest.mark.parametrize("keyword, values", [("EchoNumbers", (1, 2)), ("EchoTime", (12.0, 95.0))])
def test_echoes_are_two_scans(tmp_path, keyword, values):
    for value, data in zip(values, (DATA, DATA[::-1]), strict=True):
        planes(tmp_path, data, f"e{value}", **{keyword: value})
    sources, bad = read.find(tmp_path)
    assert not bad and [len(source.paths) for source in sources] == [SHAPE[2]] * 2
    for source, data in zip(sources, (DATA, DATA[::-1]), strict=True):
        np.testing.assert_array_equal(read.read(source).data, data)


def test_what_changes_from_slice_to_slice_parts_nothing(tmp_path):
    for k, path in enumerate(planes(tmp_path, DATA)):
        dataset = pydicom.dcmread(path)
        dataset.AcquisitionNumber, dataset.EchoTime = k, 90 + 0.01 * k
        dataset.save_as(path)
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, DATA)


def test_directions_are_scans_of_their_own_and_a_lone_scout_is_none(tmp_path):
    planes(tmp_path, DATA)
    save_dicom(
        tmp_path / "scout.dcm", np.ones((50, 40)), ImagePositionPatient=[0, 0, 0], PixelSpacing=[5, 5],
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
    )  # fmt: skip
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, DATA)
    for i in range(SHAPE[0]):
        save_dicom(
            tmp_path / f"sagittal{i}.dcm", DATA[i, ::-1, ::-1].T, ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
            PixelSpacing=[3.0, 2.0], ImagePositionPatient=[-1.0 * i, -46.0, 81.0],
        )  # fmt: skip
    sources, _ = read.find(tmp_path)
    assert sorted(len(source.paths) for source in sources) == [SHAPE[0], SHAPE[2]]
    for source in sources:
        np.testing.assert_array_equal(read.read(source).data, DATA)


def test_one_series_of_two_patients_is_two(tmp_path):
    for patient in ("a", "b"):
        planes(tmp_path / patient, DATA, PatientID=patient)
    assert [len(source.paths) for source in read.find(tmp_path)[0]] == [SHAPE[2]] * 2


def test_a_time_series_is_left_out(tmp_path):
    for time in range(6):
        planes(tmp_path, DATA + time, f"t{time}-", TemporalPositionIdentifier=time + 1)
    assert (read.find(tmp_path)[0], reasons(tmp_path)) == ([], ["time series"])


def item(**elements) -> Dataset:
    group = Dataset()
    for keyword, value in elements.items():
        setattr(group, keyword, value)
    return group


def save_enhanced(path: Path, frames: list[tuple[np.ndarray, list[float], dict]], **elements) -> None:
    """One multi-frame file. frames: pixels, position, and sequences of the frame's own functional group."""
    groups = [item(PlanePositionSequence=[item(ImagePositionPatient=where)], **own) for _, where, own in frames]
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=AXIAL["PixelSpacing"])],
        PlaneOrientationSequence=[item(ImageOrientationPatient=AXIAL["ImageOrientationPatient"])],
    )
    save_dicom(
        path, np.stack([pixels for pixels, _, _ in frames]), NumberOfFrames=len(frames),
        SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1", PerFrameFunctionalGroupsSequence=groups,
        SharedFunctionalGroupsSequence=[shared], **elements,
    )  # fmt: skip


def test_one_enhanced_file_of_magnitude_and_phase(tmp_path):
    frames = []
    for kind, data in (("M", DATA), ("P", DATA[::-1])):
        own = {"MRImageFrameTypeSequence": [item(FrameType=["ORIGINAL", "PRIMARY", kind, "NONE"])]}
        frames += [(pixels, where, own) for pixels, where in dicom_slices(data)]
    save_enhanced(tmp_path / "e.dcm", frames, ImageType=["ORIGINAL", "PRIMARY", "M", "NONE"])
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, DATA)


def test_one_enhanced_file_of_two_echoes_gives_the_first(tmp_path):
    frames = []
    for echo, data in ((95.0, DATA[::-1]), (12.0, DATA)):
        own = {"MREchoSequence": [item(EffectiveEchoTime=echo)]}
        frames += [(pixels, where, own) for pixels, where in dicom_slices(data)]
    save_enhanced(tmp_path / "e.dcm", frames)
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, DATA)


def test_enhanced_files_of_a_time_series(tmp_path):
    frames = [(pixels, where, {}) for pixels, where in dicom_slices(DATA)]
    for time in range(6):
        save_enhanced(tmp_path / f"{time}.dcm", frames, SeriesDescription="run 1")
    assert (read.find(tmp_path)[0], reasons(tmp_path)) == ([], ["time series"])


def test_copies_are_counted_once(tmp_path):
    for path in planes(tmp_path / "a", DATA):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "a" / f"copy of {path.name}").write_bytes(path.read_bytes())
    source = only(tmp_path)
    assert len(source.paths) == SHAPE[2] and reasons(tmp_path) == ["copy", "copy"]
    np.testing.assert_array_equal(read.read(source).data, DATA)


def test_one_uid_for_all_images_makes_no_copies(tmp_path):
    planes(tmp_path, DATA, SOPInstanceUID="1.2.3")
    assert len(only(tmp_path).paths) == SHAPE[2]


def test_burned_in_text_is_refused(tmp_path):
    planes(tmp_path, DATA, BurnedInAnnotation="YES")
    sources, (bad,) = read.find(tmp_path)
    assert not sources and bad.category == "burned_in" and not isinstance(bad, scan.LeftOut)
    assert "burned into its pixels" in str(bad) and "(28 files)" in str(bad)
    one, *_ = planes(tmp_path, DATA, BurnedInAnnotation="NO")
    assert len(read.find(tmp_path)[0]) == 1
    dataset = pydicom.dcmread(one)
    dataset.BurnedInAnnotation = "YES"  # one slice is enough
    dataset.save_as(one)
    assert (read.find(tmp_path)[0], reasons(tmp_path)) == ([], ["burned_in"])


# What lies beside it --------------------------------------------------------------------------------------------------

STORAGE = "1.2.840.10008.5.1.4.1.1."


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"SOPClassUID": STORAGE + "66.4", "Modality": "SEG"}, "label map"),
        ({"SOPClassUID": STORAGE + "481.3", "Modality": "RTSTRUCT"}, "label map"),
        ({"SOPClassUID": STORAGE + "11.1", "Modality": "PR"}, "report"),
        ({"SOPClassUID": STORAGE + "88.59", "Modality": "KO"}, "report"),
        ({"SOPClassUID": STORAGE + "2", "Modality": "CT"}, "other modality"),
        ({"SOPClassUID": STORAGE + "128", "Modality": "PT"}, "other modality"),
        ({"SOPClassUID": STORAGE + "7", "Modality": "OT"}, "screen save"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "phase image"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"]}, "diffusion"),
        ({"ImageType": ["DERIVED", "PRIMARY", "ADC", "ND"]}, "diffusion"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SUBTRACTION"]}, "subtraction"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "projection"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "reformatted"),
        ({"SeriesDescription": "Localizer"}, "scout"),
    ],
)
def test_what_lies_beside_a_series(tmp_path, elements, reason):
    save_series(tmp_path / "scan", DATA)
    planes(tmp_path / "other", DATA[::-1], **{"SeriesInstanceUID": "9.9"} | elements)
    np.testing.assert_array_equal(read.read(only(tmp_path)).data, DATA)
    assert reasons(tmp_path) == [reason]


def test_scout_slices_far_apart(tmp_path):
    for k in range(3):
        position = [-19.0, -46.0, 40.0 * k]
        save_dicom(tmp_path / f"{k}.dcm", dicom_slices(DATA)[k][0], ImagePositionPatient=position, **AXIAL)
    with pytest.raises(scan.LeftOut, match="3 slices 40 mm apart; a localizer"):
        read.read(only(tmp_path))
