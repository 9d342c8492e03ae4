"""DICOM series, one file a slice or multi-frame -> oriented volumes."""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from synthmri.scans.scan import MIN_SLICES, BadFile, Scan, check_size, oriented


def read_head(path: Path) -> dict:
    """series: what its slices share. subject: PatientID. text: where the contrast may be written."""
    import pydicom

    tags = ["PatientID", "SeriesInstanceUID", "SeriesDescription", "ProtocolName", "ContrastBolusAgent"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*tags, "NumberOfFrames"])
            agent = str(head.get("ContrastBolusAgent") or "").strip().lower()
            agent = "" if agent in ("", "none", "no", "n", "0") else "ce"
            text = f"{head.get('SeriesDescription', '')} {head.get('ProtocolName', '')} {agent}"
            frames = int(head.get("NumberOfFrames") or 1)
            series = str(head.get("SeriesInstanceUID") or path.parent)
            subject = str(head.get("PatientID") or "").strip()
    except Exception as error:  # as in `read`
        raise BadFile("unreadable", f"is no readable DICOM file ({error}); copy it again or remove it") from None
    return {"series": (series, path if frames > 1 else None), "subject": subject, "text": text}


class _Frame(NamedTuple):
    """One slice of DICOM. pixels: float32 (rows, columns); position: mm, LPS; orientation: the direction in which
    the columns count up, then that of the rows, unit vectors (2, 3); spacing: mm between rows, between columns."""

    pixels: np.ndarray
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray


def read_dicom(paths: tuple[Path, ...]) -> Scan:
    """The volume of the files of one series, rescaled, bright as MONOCHROME2. Raises BadFile where they make none."""
    import pydicom

    frames, inverted = [], set()
    for path in paths:
        dataset = pydicom.dcmread(path)
        inverted.add(dataset.get("PhotometricInterpretation") == "MONOCHROME1")
        frames += _frames(dataset, len(paths))
    if len(frames) < MIN_SLICES:
        raise BadFile("slices", f"is a series of {len(frames)} slices, at least {MIN_SLICES} are needed; a localizer?")
    first = frames[0]
    for frame in frames:
        same = frame.pixels.shape == first.pixels.shape and np.allclose(frame.spacing, first.spacing)
        if not same or not np.allclose(frame.orientation, first.orientation, atol=1e-3):
            raise BadFile("geometry", "mixes slices of different size, spacing or orientation; export them apart")
    if len(inverted) > 1:
        raise BadFile("values", "mixes MONOCHROME1 and MONOCHROME2; export them apart")

    normal = np.cross(*first.orientation)
    frames.sort(key=lambda frame: float(frame.position @ normal))
    steps = np.diff([frame.position @ normal for frame in frames])
    if steps.min() < 0.01:
        raise BadFile("geometry", "has two slices at one position; several echoes or times are exported apart")
    if np.ptp(steps) > 0.2 * np.median(steps):
        lo, hi = steps.min(), steps.max()
        raise BadFile("geometry", f"has slices {lo:.2f} to {hi:.2f} mm apart; one is missing, export it again")

    # In memory an image is (row, column); the affine below is for (column, row, slice). DICOM counts towards left and
    # posterior, RAS towards right and anterior.
    data = np.stack([frame.pixels for frame in frames]).transpose(2, 1, 0)
    step = (frames[-1].position - frames[0].position) / (len(frames) - 1)
    affine = np.eye(4)
    along, down = first.orientation * first.spacing[::-1, None]
    affine[:3, :3] = np.column_stack([along, down, step])
    affine[:2] *= -1
    if True in inverted:
        data = data.max() + data.min() - data
    return oriented(data, affine)


def _frames(dataset, files: int) -> list[_Frame]:
    """The slices of one file, of a series of that many files."""
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise BadFile("no_pixels", "is DICOM without pixels (a report?); remove it")
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise BadFile("colour", "is DICOM in colour (a screenshot?); grey images are read")
    count = int(dataset.get("NumberOfFrames") or 1)
    check_size((files * count, dataset.Rows, dataset.Columns))
    pixels = dataset.pixel_array.reshape(count, dataset.Rows, dataset.Columns)
    frames = []
    for index in range(count):
        position = _element(dataset, index, "PlanePositionSequence", "ImagePositionPatient")
        orientation = _element(dataset, index, "PlaneOrientationSequence", "ImageOrientationPatient")
        spacing = _element(dataset, index, "PixelMeasuresSequence", "PixelSpacing")
        if position is None or orientation is None or spacing is None:
            raise BadFile("geometry", "lacks position, orientation or spacing of slices; export the original images")
        position, spacing = np.array(position, dtype=float), np.array(spacing, dtype=float)
        orientation = np.array(orientation, dtype=float).reshape(2, 3)
        if not np.allclose(orientation @ orientation.T, np.eye(2), atol=0.01):
            raise BadFile("geometry", f"has an orientation {orientation.tolist()} that is no pair of unit vectors")
        if count > 1 and "PerFrameFunctionalGroupsSequence" not in dataset:  # such files state the first position only
            gap = float(dataset.get("SpacingBetweenSlices") or dataset.get("SliceThickness") or 0)
            position = position + index * gap * np.cross(*orientation)
        slope = _element(dataset, index, "PixelValueTransformationSequence", "RescaleSlope")
        intercept = _element(dataset, index, "PixelValueTransformationSequence", "RescaleIntercept")
        scaled = pixels[index].astype(np.float32) * np.float32(1 if slope is None else slope)
        frames.append(_Frame(scaled + np.float32(intercept or 0), position, orientation, spacing))
    return frames


def _element(dataset, index: int, sequence: str, keyword: str):
    """A value of one frame: from its own functional group, else the shared one, else the file. None if absent."""
    own, shared = dataset.get("PerFrameFunctionalGroupsSequence"), dataset.get("SharedFunctionalGroupsSequence")
    for group in (own[index] if own else {}, shared[0] if shared else {}):
        items = group.get(sequence)
        if items and keyword in items[0]:
            return items[0].get(keyword)
    return dataset.get(keyword)
