"""Readers: a folder of NIfTI, DICOM, pictures or tensors -> oriented volumes or stacks of pictures.

`find` looks at names and headers only, `read` opens one source at a time. What is found decides what is read:

- NIfTI   .nii, .nii.gz; a BIDS tree or any other folders
- DICOM   a series of single slices, or multi-frame (enhanced) files; with or without .dcm
- picture .png, .jpg, .tif; 8 or 16 bit, grey
- tensor  .npy, .pt; H x W, N x H x W, N x 1 x H x W, or three equal channels

Names of files and people stay in `Source` and in messages, both of which stay on this machine.
"""

import csv
import gzip
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import nibabel
import numpy as np
from PIL import Image, ImageOps

from synthmri.errors import UserError

FORMATS = "NIfTI (.nii, .nii.gz), DICOM, pictures (.png, .jpg, .tif) and tensors (.npy, .pt)"
MAX_VOXELS = 2**28  # 1 GiB as float32: far above any head scan, far below what a damaged header claims
MIN_SLICES = 3  # fewer is a localizer, not a scan
MIN_SIDE = 16  # pixels of a picture
SPACING_MM = (0.05, 20.0)  # beyond this the header means another unit, or nothing

_KINDS = {
    (".nii", ".nii.gz"): "nifti",
    (".dcm", ".ima"): "dicom",
    (".png", ".jpg", ".jpeg", ".tif", ".tiff"): "picture",
    (".npy", ".pt"): "tensor",
}
_JUNK = re.compile(
    r"\.|readme|license|changes$|dicomdir$|thumbs\.db$|desktop\.ini$|.*\.(json|tsv|csv|txt|md|bval|bvec|dvc)$", re.I
)
# Of a BIDS subject only anat/ has what is asked for; and a mask is a NIfTI file but no image.
_NOT_ANATOMY = re.compile(r"(^|/)sub-[^/]+/(.+/)?(func|dwi|fmap|perf|pet)/|[_-](mask|dseg|probseg|seg)\.nii", re.I)
_SUBJECT = re.compile(r"(?:^|[/_])(sub-[a-z0-9]+|(?:sub|subj|subject|pat|patient|case)[-_ ]?\d+)(?![a-z0-9])", re.I)
_VISIT = re.compile(r"(ses|session|visit|study|timepoint|tp|run)\d*")
_WORDS = {
    "FLAIR": {"flair", "t2flair", "t2f"},
    "T1ce": {"t1ce", "t1c", "t1gd", "t1post"},
    "T1w": {"t1", "t1w", "t1n", "mprage"},
    "T2w": {"t2", "t2w"},
    "PD": {"pd", "pdw"},
}
_AGENT = {"ce", "c", "gd", "gad", "gadolinium", "post"}
_NO_AGENT = re.compile(r"(^|[^a-z])(pre|no|non|without|w/o|wo)($|[^a-z])")
LEAST_PEOPLE = 3  # fewer folders or tensors with a number in their name are no people: a split wants three


class BadFile(UserError):
    """A file that is not used. The message names it; `category` does not, so that it can be counted in public."""

    def __init__(self, category: str, message: str):
        super().__init__(category, message)  # both are arguments, so that it survives the way between processes
        self.category = category

    def __str__(self) -> str:
        return self.args[1]


@dataclass(frozen=True)
class Source:
    """What gives one scan or one stack of pictures.

    paths: one file, or the files of a DICOM series. subject: None where nothing tells whose it is.
    contrast: T1w, T1ce, T2w, FLAIR, PD or "". label: class, or "". name: path under the root, for messages.
    """

    paths: tuple[Path, ...]
    kind: Literal["nifti", "dicom", "picture", "tensor"]
    subject: str | None
    contrast: str
    label: str
    name: str

    @property
    def block(self) -> str:
        """Where neighbours may be of one person although no subject is known: the folder, or the tensor file."""
        return self.name if self.kind == "tensor" else str(PurePosixPath(self.name).parent)


class Scan(NamedTuple):
    """data: float32, finite. A volume is (X, Y, Z) towards right, anterior, superior, with voxels of spacing_mm;
    pictures are an upright stack (N, H, W) and have spacing_mm None."""

    data: np.ndarray
    spacing_mm: tuple[float, float, float] | None


def find(root: Path, classes: Sequence[str] = ()) -> tuple[list[Source], list[BadFile]]:
    """What can be read under `root`, in natural order of the names, and what cannot be.

    Subject: PatientID (DICOM; unless folders of several people share one, as after de-identification), else `sub-01` or
    `patient01` in the path. Else, of volumes, the top folder or else the file's name, both without contrast and visit;
    of pictures the folder, of a tensor the file, if there are at least three with a number in their name, as in P0001.
    Label: column `label` of participants.tsv, else the folder of a picture if it is one of `classes`.
    Raises UserError where `root` is no folder or its participants.tsv has no `participant_id`.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is no folder; make it and put your scans there: {FORMATS}")
    labels = _participants(root / "participants.tsv")
    sources, bad, series = [], [], {}
    for path in _walk(root):
        name = path.relative_to(root).as_posix()
        try:
            kind = _kind(path, root)
            if kind == "dicom":
                head = _dicom_head(path)
                series.setdefault(head.pop("series"), []).append((path, name, head))
            elif kind and not _NOT_ANATOMY.search(name):
                sources.append(_source((path,), kind, name, root.name, labels, classes))
        except BadFile as error:
            bad.append(BadFile(error.category, f"{name}: {error}"))
    shared: dict[str, set[str]] = {}  # PatientID -> the people that the paths name
    for files in series.values():
        _, name, head = files[0]
        shared.setdefault(head["subject"], set()).update(_SUBJECT.findall(name))
    for files in series.values():
        paths = tuple(path for path, _, _ in files)
        _, name, head = files[0]
        if len(shared[head["subject"]]) > 1:
            head = head | {"subject": ""}
        sources.append(_source(paths, "dicom", name, root.name, labels, (), **head))
    numbered = {source.subject for source in sources if source.kind in ("picture", "tensor") and source.subject}
    if len(numbered) < LEAST_PEOPLE:
        sources = [
            replace(source, subject=None)
            if source.kind in ("picture", "tensor") and not _SUBJECT.search(source.name)
            else source
            for source in sources
        ]
    return sorted(sources, key=lambda source: _natural(source.name)), bad


def read(source: Source) -> Scan:
    """Read one source whole. Raises BadFile, which names the file and the reason, for whatever is no proper image."""
    try:
        with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
            warnings.simplefilter("ignore")  # parsers warn of each oddity; what matters is checked below
            if source.kind == "nifti":
                return _nifti(source.paths[0])
            if source.kind == "dicom":
                return _dicom(source.paths)
            pixels = _picture(source.paths[0]) if source.kind == "picture" else _tensor(source.paths[0])
            return Scan(_finite(_stack(pixels)), None)
    except BadFile as error:
        raise BadFile(error.category, f"{source.name}: {error}") from None
    except Exception as error:  # on damaged files the parsers of these formats raise nearly anything
        reason = f"cannot be read ({type(error).__name__}: {error}); copy it again or remove it"
        raise BadFile("unreadable", f"{source.name}: {reason}") from None


def _walk(root: Path) -> list[Path]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [Path(folder) / name for name in links + files if not _JUNK.match(name)]
    return sorted(found, key=lambda path: _natural(path.as_posix()))


def _natural(name: str) -> list:
    """Sort key by which 2.png comes before 10.png."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]


def _kind(path: Path, root: Path) -> str | None:
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise BadFile("link", f"is a link to outside of {root}; copy the file itself there")
    if path.is_dir():
        return None  # a link to a folder that is walked anyway
    if not path.is_file():
        raise BadFile("unreadable", "is a link to nothing or no ordinary file; put the file itself there")
    for suffixes, kind in _KINDS.items():
        if path.name.lower().endswith(suffixes):
            return kind
    try:
        with path.open("rb") as file:
            if file.read(132)[128:] == b"DICM":
                return "dicom"
    except OSError as error:
        raise BadFile("unreadable", f"cannot be opened ({error.strerror})") from None
    raise BadFile("format", f"not a format that is read; these are: {FORMATS}")


def _source(paths, kind, name, root_name, labels, classes, subject="", text="") -> Source:
    path = PurePosixPath(name)
    match = _SUBJECT.search(name)
    if match:
        subject = subject or match[1]
    elif kind in ("nifti", "dicom") and not subject:
        subject = next(filter(None, map(_person, path.parts)), root_name)
    folder = path.parent.name
    is_class = kind == "picture" and folder in classes
    if not subject and not is_class:
        unit = folder if kind == "picture" else path.stem
        subject = unit if re.search(r"[0-9]", unit) and not _contrast(unit) else ""
    label = labels.get(subject) or (folder if is_class else "")
    places = [text, path.name.split(".")[0], *[parent.name for parent in path.parents], root_name]
    contrast = next(filter(None, map(_contrast, places)), "")
    return Source(paths, kind, subject or None, contrast, label, name)


def _person(name: str) -> str:
    """Name of a folder or file less contrast and visit: T1w and FLAIR, first and second visit are of one subject."""
    words = re.split(r"[^A-Za-z0-9]+", re.sub(r"\.(nii(\.gz)?|dcm|ima)$", "", name, flags=re.I))
    return "_".join(word for word in words if not _contrast(word) and not _VISIT.fullmatch(word.lower()))


def _contrast(text: str) -> str:
    words = set(re.split(r"[^a-z0-9]+", text.lower().replace("*", "star")))
    found = next((contrast for contrast, known in _WORDS.items() if words & known), "")
    if found == "FLAIR" and words & _WORDS["T1w"]:  # inversion for contrast, not against fluid
        found = "T1w"
    return "T1ce" if found == "T1w" and words & _AGENT and not _NO_AGENT.search(text.lower()) else found


def _participants(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as tab-separated text ({error}); mend or remove it") from None
    if rows and "participant_id" not in rows[0]:
        raise UserError(f"{path} has no column `participant_id`; add it, as BIDS asks, or remove the file")
    labels = {row["participant_id"]: (row.get("label") or "").strip() for row in rows}
    return {name: label for name, label in labels.items() if label not in ("", "n/a")}  # BIDS writes n/a for unknown


# Values and geometry ------------------------------------------------------------------------------------------------


def _check_size(shape: tuple[int, ...]) -> None:
    voxels = int(np.prod([int(n) for n in shape], dtype=object))
    if not 0 < voxels <= MAX_VOXELS:
        raise BadFile("size", f"its header claims {' x '.join(map(str, shape))} values; 1 to {MAX_VOXELS} are read")


def _check_numbers(dtype: np.dtype) -> None:
    if dtype.kind not in "buif":
        raise BadFile("values", f"holds values of type {dtype}; real numbers are read, so save the magnitude")


def _finite(data: np.ndarray) -> np.ndarray:
    """NaN and infinity become 0. Refuses what is then the same everywhere."""
    good = np.isfinite(data)
    if not good.any():
        raise BadFile("values", "holds no finite value; export it again")
    data = data if good.all() else np.where(good, data, np.float32(0))
    if data.min() == data.max():
        raise BadFile("values", f"is {data.flat[0]:g} everywhere; export it again or remove it")
    return data


def _volume(data: np.ndarray, affine: np.ndarray) -> Scan:
    """float32 (I, J, K) and its affine to RAS mm (4, 4) -> the same voxels, the axes nearest to R, A, S."""
    if min(data.shape) < MIN_SLICES:
        raise BadFile("slices", f"is {data.shape} voxels, at least {MIN_SLICES} each way are needed; a localizer?")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lo, hi = SPACING_MM
    if not np.isfinite(affine).all() or not ((spacing >= lo) & (spacing <= hi)).all():
        raise BadFile("geometry", f"has voxels of {spacing.tolist()} mm; {lo} to {hi} mm are read; mend its header")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.1:
        raise BadFile("geometry", "has axes that lie in one plane; mend the orientation in its header")
    axes = nibabel.io_orientation(affine)
    data = nibabel.apply_orientation(data, axes)
    return Scan(_finite(data), tuple(float(spacing[np.flatnonzero(axes[:, 0] == axis)[0]]) for axis in range(3)))


# Formats ------------------------------------------------------------------------------------------------------------


def _nifti(path: Path) -> Scan:
    image = nibabel.load(path)
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise BadFile("shape", f"is {len(shape)}-dimensional {shape}, three dimensions are read; split or remove it")
    _check_size(shape)
    _check_numbers(image.get_data_dtype())
    zooms = np.asarray(image.header.get_zooms()[:3], dtype=float)
    if not (np.isfinite(zooms) & (zooms > 0)).all():
        raise BadFile("geometry", f"has pixdim {zooms.tolist()} mm, which must be above 0; mend its header")
    if not image.header["sform_code"] and not image.header["qform_code"]:
        raise BadFile("geometry", "has neither sform nor qform, so left and up are unknown; convert it anew from DICOM")
    if path.name.lower().endswith(".gz"):
        image = type(image).from_bytes(_unpacked(path))
    return _volume(np.asarray(image.dataobj, dtype=np.float32).reshape(shape), image.affine)


def _unpacked(path: Path) -> bytes:
    """To its end, where the check sum is: nibabel itself stops at the last voxel, and takes damaged ones."""
    limit = 8 * MAX_VOXELS + 2**20
    with gzip.open(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise BadFile("size", f"unpacks to more than {limit} bytes; export it again")
    return content


def _dicom_head(path: Path) -> dict:
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


def _dicom(paths: tuple[Path, ...]) -> Scan:
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
    return _volume(data, affine)


def _frames(dataset, files: int) -> list[_Frame]:
    """The slices of one file, of a series of that many files."""
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise BadFile("no_pixels", "is DICOM without pixels (a report?); remove it")
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise BadFile("colour", "is DICOM in colour (a screenshot?); grey images are read")
    count = int(dataset.get("NumberOfFrames") or 1)
    _check_size((files * count, dataset.Rows, dataset.Columns))
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


def _picture(path: Path) -> np.ndarray:
    try:
        image = Image.open(path, formats=("PNG", "JPEG", "TIFF"))
    except Image.DecompressionBombError as error:
        raise BadFile("size", str(error)) from None
    with image:
        if image.format == "PNG":
            with Image.open(path, formats=("PNG",)) as copy:  # which is of no use afterwards
                copy.verify()  # the check sums, which Pillow does not look at when it reads the pixels
        if getattr(image, "n_frames", 1) > 1:
            raise BadFile("shape", f"has {image.n_frames} pages, one is read; save each as a file of its own")
        image = ImageOps.exif_transpose(image)
        if image.mode in ("1", "LA"):
            image = image.convert("L")
        elif image.mode in ("P", "PA", "RGBA"):
            image = image.convert("RGB")
        elif image.mode not in ("L", "I", "F", "RGB") and not image.mode.startswith("I;16"):
            raise BadFile("colour", f"is a picture of mode {image.mode}; grey ones are read")
        return np.asarray(image)


def _tensor(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise BadFile("unreadable", "holds several arrays; save one with numpy.save")
        return array
    import torch

    if path.stat().st_size > 8 * MAX_VOXELS:
        raise BadFile("size", f"has {path.stat().st_size} bytes; at most {8 * MAX_VOXELS} are read; save it in parts")
    if zipfile.is_zipfile(path):  # torch leaves the check sums alone
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise BadFile("unreadable", f"is damaged ({damaged}); copy it again or remove it")
    try:
        tensor = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:  # its text advises to load the file unsafely
        raise BadFile("unreadable", "holds Python objects or is damaged; save a tensor alone with torch.save") from None
    if not isinstance(tensor, torch.Tensor):
        raise BadFile("unreadable", f"holds a {type(tensor).__name__}; save a tensor alone with torch.save")
    _check_size(tuple(tensor.shape))
    if tensor.is_complex():
        _check_numbers(np.dtype(complex))
    return tensor.detach().to(torch.float32).numpy()


def _stack(pixels: np.ndarray) -> np.ndarray:
    """Real H x W, N x H x W or N x 1 x H x W, or any of these with three equal channels -> float32 (N, H, W)."""
    shape = pixels.shape
    _check_size(shape)
    _check_numbers(pixels.dtype)
    pixels = np.asarray(pixels, dtype=np.float32)
    if pixels.ndim in (3, 4) and shape[-1] in (1, 3):
        pixels = _grey(np.moveaxis(pixels, -1, 0))
    elif pixels.ndim == 4 and shape[1] in (1, 3):
        pixels = _grey(np.moveaxis(pixels, 1, 0))
    elif pixels.ndim == 3 and shape[0] == 3 and _equal(pixels):
        pixels = pixels[0]
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or min(pixels.shape[1:]) < MIN_SIDE:
        allowed = f"H x W, N x H x W or N x 1 x H x W of at least {MIN_SIDE} pixels a side"
        raise BadFile("shape", f"is of shape {shape}; what is read: {allowed}")
    return np.ascontiguousarray(pixels)


def _grey(channels: np.ndarray) -> np.ndarray:
    if not _equal(channels):
        raise BadFile("colour", "has channels that differ; grey images are read, so remove or convert it")
    return channels[0]


def _equal(channels: np.ndarray) -> bool:
    """Up to 3 % of the range, which JPEG costs."""
    return bool(np.nanmax(np.abs(channels - channels[:1])) <= 0.03 * (np.nanmax(channels) - np.nanmin(channels)))
