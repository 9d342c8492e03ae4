"""DICOM series, one file a slice or multi-frame -> oriented volumes."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from synthmri.scans import kind
from synthmri.scans.scan import MIN_SLICES, BadFile, LeftOut, Scan, check_size, oriented

KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "ComplexImageComponent", "BurnedInAnnotation",
    "PatientID", "SeriesInstanceUID", "SeriesDescription", "ProtocolName", "ContrastBolusAgent", "NumberOfFrames",
    "RepetitionTime", "EchoTime", "InversionTime", "ScanningSequence", "SequenceName", "ScanOptions", "EchoNumbers",
    "AcquisitionNumber", "TemporalPositionIdentifier", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "Rows", "Columns",
)  # fmt: skip
LISTS = ("ImageType", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
RAW_DATA_TYPE = (0x0043, 0x102F)  # of GE, which tells a phase nowhere else: 0 magnitude, 1 phase, 2 real, 3 imaginary
# What two slices at one place of one series may differ in, the most telling first.
DIFFERENCES = (
    "ImageType",
    "EchoNumbers",
    "EchoTime",
    "InversionTime",
    "TemporalPositionIdentifier",
    "AcquisitionNumber",
)
REPEATS = 4  # more volumes of one series than this are a time series
T = TypeVar("T")


def read_head(path: Path) -> dict:
    """Keyword -> value of those KEYWORDS that a file has, preamble or not: text or number, of LISTS a list of these."""
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = [*KEYWORDS, RAW_DATA_TYPE]
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
            found = {word: dataset[word].value for word in KEYWORDS if word in dataset}
            head = {word: _plain(value, word in LISTS) for word, value in found.items() if value not in ("", None)}
            if RAW_DATA_TYPE in dataset and str(dataset[RAW_DATA_TYPE].value) in ("1", "3"):
                head["ComplexImageComponent"] = "PHASE"
            if "SOPClassUID" not in head and "Rows" not in head:
                raise ValueError("no element of an image is in it")
            int(head.get("NumberOfFrames", 1))
    except Exception as error:  # as in `read`
        raise BadFile("unreadable", f"is no readable DICOM file ({error}); copy it again or remove it") from None
    return head


def _plain(value, several: bool):
    """A number or text, or a list of these, of pydicom's value."""
    if several:
        return [_plain(item, False) for item in ([value] if isinstance(value, str | float) else value)]
    if isinstance(value, int | float):
        return float(value) if isinstance(value, float) else int(value)
    return str(value).strip()


class File(NamedTuple):
    """A file of DICOM, one slice or many frames: where it is, its path under the root, its head."""

    path: Path
    name: str
    head: dict

    @property
    def patient(self) -> str:
        """PatientID, "" where there is none."""
        return str(self.head.get("PatientID") or "")

    @property
    def series(self) -> str:
        """SeriesInstanceUID; the folder stands in for it where there is none."""
        return str(self.head.get("SeriesInstanceUID") or self.path.parent)

    @property
    def whole(self) -> Path | None:
        """Itself, where it has many frames: then it is a volume of its own."""
        return self.path if int(self.head.get("NumberOfFrames") or 1) > 1 else None


def series(
    files: Sequence[File], taken: Callable[[str], bool] = lambda name: False
) -> tuple[list[list[File]], list[BadFile]]:
    """The files of each volume together; and a word, one a series, for what is no scan, or is there twice.

    Volumes are told apart by patient, series, and what differs inside. taken: names that are scans in any case.
    """
    groups: dict[tuple, list[File]] = {}
    others: dict[tuple[str, str], list[File]] = {}
    seen, bad = set(), []
    burned = {_series_of(file) for file in files if str(file.head.get("BurnedInAnnotation")).upper() == "YES"}
    magnitudes = {_series_of(file) for file in files if _types(file) & {"M", "MAGNITUDE"}}
    for file in files:
        head = file.head
        # Some tools give all files one UID, so a copy has the place of the first too.
        one = (head.get("SOPInstanceUID"), _place(head), head.get("NumberOfFrames"))
        if one[0] and one in seen:
            others.setdefault(("copy", str(file.path.parent)), []).append(file)
        elif reason := kind.left_out(file.name, head):
            others.setdefault((reason, file.series), []).append(file)
        elif _series_of(file) in burned:
            others.setdefault(("burned_in", file.series), []).append(file)
        elif _types(file) & {"R", "REAL"} and _series_of(file) in magnitudes:  # alone it may be an inversion recovery
            others.setdefault(("phase image", file.series), []).append(file)
        else:
            groups.setdefault((file.patient, file.series, file.whole), []).append(file)
        seen.add(one)
    for (reason, _), members in others.items():
        if reason not in ("copy", "burned_in") and taken(members[0].name):
            for file in members:
                groups.setdefault((file.patient, file.series, file.whole), []).append(file)
            continue
        text = {
            "copy": "is left out: an image of the same SOPInstanceUID was read before",
            "burned_in": "has text, perhaps a name, burned into its pixels (BurnedInAnnotation YES); export it without",
        }.get(reason, f"is left out: {reason}")
        count = f" ({len(members)} files)" if len(members) > 1 else ""
        kept = BadFile if reason == "burned_in" else LeftOut
        bad.append(kept(reason, f"{members[0].name}: {text}{count}"))
    volumes: dict[tuple[str, str], list[list[File]]] = {}
    for (patient, uid, _), members in groups.items():
        volumes.setdefault((patient, uid), []).extend(_volumes(members))
    found = []
    for parts in volumes.values():
        if len(parts) <= REPEATS:
            found += parts
        else:
            text = f"is left out: {len(parts)} volumes of one series, over time or echoes"
            bad.append(LeftOut("time series", f"{parts[0][0].name}: {text}"))
    return found, bad


def _series_of(file: File) -> tuple[str, str]:
    return file.patient, file.series


def _types(file: File) -> set[str]:
    return {str(value).upper() for value in file.head.get("ImageType", ())}


def _volumes(files: list[File]) -> list[list[File]]:
    """The files of one series, parted into volumes by geometry, type, echo and time.

    A part of fewer than MIN_SLICES, such as a scout that was stored along, stays with the rest: `read_dicom` takes
    what fits together. What differs is looked at only where two slices lie at one place: some scanners number every
    slice of a volume anew.
    """
    usable = [part for part in _alike(files, lambda file: _geometry(file.head)) if len(part) >= MIN_SLICES]
    parts = usable if len(usable) > 1 else [files]
    for keyword in DIFFERENCES:
        parts = [piece for part in parts for piece in _parted(part, keyword)]
    return parts


def _parted(part: list[File], keyword: str) -> list[list[File]]:
    places = [_place(file.head) for file in part]
    if None in places or len(set(places)) == len(places):
        return [part]
    pieces: dict[str, list[File]] = {}
    for file in part:
        pieces.setdefault(str(file.head.get(keyword)), []).append(file)
    return list(pieces.values())


def _place(head: dict) -> tuple[float, ...] | None:
    try:
        return tuple(round(float(mm), 2) for mm in head["ImagePositionPatient"])
    except (KeyError, TypeError, ValueError):
        return None


def _geometry(head: dict) -> np.ndarray:
    """Size, spacing and orientation, as far as they are told."""
    try:
        told = [head.get(word) or [0] * n for word, n in (("ImageOrientationPatient", 6), ("PixelSpacing", 2))]
        return np.array([head.get("Rows", 0), head.get("Columns", 0), *told[0], *told[1]], dtype=float)
    except (TypeError, ValueError):
        return np.zeros(10)


def _alike(items: Sequence[T], geometry: Callable[[T], np.ndarray]) -> list[list[T]]:
    """Items of the same geometry together, in the order of their first."""
    parts: list[tuple[np.ndarray, list[T]]] = []
    for item in items:
        own = geometry(item)
        for other, members in parts:
            if own.shape == other.shape and np.allclose(own, other, rtol=1e-5, atol=1e-3):
                members.append(item)
                break
        else:
            parts.append((own, [item]))
    return [members for _, members in parts]


class _Frame(NamedTuple):
    """One slice of DICOM. pixels: float32 (rows, columns), NaN where it is padded; position: mm, LPS; orientation: the
    direction in which the columns count up, then that of the rows, unit vectors (2, 3); spacing: mm between rows,
    between columns. kind: why it is no part of a scan, or "". echo, time: which of several at one place it is."""

    pixels: np.ndarray
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    kind: str
    echo: float
    time: float

    @property
    def geometry(self) -> np.ndarray:
        return np.concatenate([self.pixels.shape, self.spacing, self.orientation.ravel()])


def read_dicom(paths: tuple[Path, ...]) -> Scan:
    """The volume of the files of one series, rescaled, bright as MONOCHROME2. Raises BadFile where they make none.

    Of frames that differ in size, spacing or orientation the most that are alike are taken; of magnitude and phase the
    magnitude, of several echoes or times at one place the first.
    """
    import pydicom

    frames, inverted = [], set()
    for path in paths:
        try:
            dataset = pydicom.dcmread(path, force=True)
            frames += _frames(dataset, len(paths))
        except Exception as error:
            error.path = path  # the one at fault, which `read` names
            raise
        inverted.add(dataset.get("PhotometricInterpretation") == "MONOCHROME1")
    reasons = {frame.kind for frame in frames}
    if "" not in reasons:
        raise LeftOut(min(reasons), f"holds no anatomical image but: {', '.join(sorted(reasons))}")
    frames = [frame for frame in frames if not frame.kind]
    if len(frames) < MIN_SLICES:
        raise LeftOut("scout", f"is a series of {len(frames)} slices, at least {MIN_SLICES} are needed; a localizer?")
    frames = max(_alike(frames, lambda frame: frame.geometry), key=len)
    if len(frames) < MIN_SLICES:
        raise LeftOut("scout", "is a series of slices in several directions; a localizer?")
    if len(inverted) > 1:
        raise BadFile("values", "mixes MONOCHROME1 and MONOCHROME2; export them apart")
    first = frames[0]

    normal = np.cross(*first.orientation)
    for several in ("echo", "time"):
        values = {getattr(frame, several) for frame in frames}
        places = {round(float(frame.position @ normal), 2) for frame in frames}
        if len(places) < len(frames) and len(values) > 1:
            if several == "time" and len(values) > REPEATS:
                raise LeftOut("time series", f"is a series of {len(values)} volumes at one place, over time")
            frames = [frame for frame in frames if getattr(frame, several) == min(values)]
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
        data = np.nanmax(data) + np.nanmin(data) - data
    return oriented(data, affine)


def _frames(dataset, files: int) -> list[_Frame]:
    """The slices of one file, of a series of that many files."""
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise BadFile("no_pixels", "is DICOM without pixels (a report?); remove it")
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise LeftOut("screen save", "is DICOM in colour (a screenshot?); grey images are read")
    count = int(dataset.get("NumberOfFrames") or 1)
    check_size((files * count, dataset.Rows, dataset.Columns))
    pixels = _pixels(dataset).reshape(count, dataset.Rows, dataset.Columns)
    padded = _padded(pixels, dataset)
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
        scaled += np.float32(intercept or 0)
        if padded is not None:
            scaled[padded[index]] = np.nan
        told = {
            "ImageType": _element(dataset, index, "MRImageFrameTypeSequence", "FrameType"),
            "ComplexImageComponent": _element(dataset, index, "MRImageFrameTypeSequence", "ComplexImageComponent"),
        }
        echo = _element(dataset, index, "MREchoSequence", "EffectiveEchoTime") if count > 1 else None
        time = _element(dataset, index, "FrameContentSequence", "TemporalPositionIndex") if count > 1 else None
        frames.append(
            _Frame(scaled, position, orientation, spacing, kind.left_out("", told), float(echo or 0), float(time or 0))
        )
    return frames


def _pixels(dataset) -> np.ndarray:
    """As stored. Raises BadFile where nothing that is installed can decode them."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if not dataset.file_meta.get("TransferSyntaxUID"):  # a file without preamble: as the other elements are coded
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    coding = dataset.file_meta.TransferSyntaxUID
    if coding.is_compressed:
        try:
            known = get_decoder(coding).is_available
        except NotImplementedError:
            known = False
        if not known:
            raise BadFile("compressed", f"is compressed as {coding.name}, which is not decoded; export it uncompressed")
    return dataset.pixel_array


def _padded(pixels: np.ndarray, dataset) -> np.ndarray | None:
    """bool, shaped as the pixels: where they fill a frame and show nothing. None where no padding is told."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return None
    last = dataset.get("PixelPaddingRangeLimit", first)
    lo, hi = sorted(int(np.array(int(value)).astype(pixels.dtype)) for value in (first, last))
    return (pixels >= lo) & (pixels <= hi)


def _element(dataset, index: int, sequence: str, keyword: str):
    """A value of one frame: from its own functional group, else the shared one, else the file. None if absent."""
    own, shared = dataset.get("PerFrameFunctionalGroupsSequence"), dataset.get("SharedFunctionalGroupsSequence")
    for group in (own[index] if own else {}, shared[0] if shared else {}):
        items = group.get(sequence)
        if items and keyword in items[0]:
            return items[0].get(keyword)
    return dataset.get(keyword)
