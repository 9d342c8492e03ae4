"""Readers: a folder of NIfTI, DICOM, pictures or tensors -> oriented volumes or stacks of pictures.

`find` looks at names and headers only, `read` opens one source at a time. What is found decides what is read:

- NIfTI   .nii, .nii.gz; a BIDS tree or any other folders
- DICOM   a series of single slices, or multi-frame (enhanced) files; with or without .dcm
- picture .png, .jpg, .tif; 8 or 16 bit, grey
- tensor  .npy, .pt; H x W, N x H x W, H x W x N, N x 1 x H x W, or three channels

Names of files and people stay in `Source` and in messages, both of which stay on this machine.
"""

import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from synthmri.errors import UserError
from synthmri.scans import contrast, dicom, identity, kind, masks, nifti
from synthmri.scans.participants import label_of, read_labels
from synthmri.scans.pictures import as_stack, read_picture, read_tensor
from synthmri.scans.scan import FORMATS, BadFile, LeftOut, Scan, Source, finite

_FORMATS = {
    (".nii", ".nii.gz"): "nifti",
    (".dcm", ".ima"): "dicom",
    (".png", ".jpg", ".jpeg", ".tif", ".tiff"): "picture",
    (".npy", ".pt"): "tensor",
}
# A first element of group 2 or 8, with the two letters of its type or a short length.
_NO_PREAMBLE = re.compile(rb"[\x02\x08]\x00.\x00([A-Z]{2}|.\x00\x00\x00)", re.S)
_JUNK = re.compile(
    r"\.|readme|license|changes$|dicomdir$|thumbs\.db$|desktop\.ini$|.*\.(json|tsv|csv|txt|md|bval|bvec|dvc)$", re.I
)


def find(
    root: Path, classes: Sequence[str] = (), *, taken: Callable[[str], bool] = lambda name: False
) -> tuple[list[Source], list[BadFile]]:
    """What can be read under `root`, in natural order of the names, and what cannot be.

    Person: `identity.people`. Contrast: `contrast`. Label: column `label` of the nearest participants.tsv, else the
    nearest folder that is one of `classes`. taken: which names are scans, whatever they look like.
    Raises UserError where `root` is no folder or a participants.tsv is none.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is no folder; make it and put your scans there: {FORMATS}")
    files, bad = _walk(root)
    tables = {path.relative_to(root).parent: read_labels(path) for path in files if path.name == "participants.tsv"}
    beside: dict[Path, set[str]] = {}
    for path in files:
        beside.setdefault(path.parent, set()).add(kind.stem(path.name))
    found, scanned, drawn = [], [], {}
    for path in files:
        name = path.relative_to(root).as_posix()
        try:
            form = _format(path, root) if path.name != "participants.tsv" else None
            if form == "dicom":
                scanned.append(dicom.File(path, name, dicom.read_head(path)))
            elif form:
                head = nifti.read_head(path) if form == "nifti" else {}
                reason = kind.left_out(name, head, beside[path.parent])
                if reason and not taken(name):
                    if reason in masks.REASONS:
                        drawn[name] = path
                    raise LeftOut(reason, f"is left out: {reason}")
                found.append((form, (path,), name, head))
        except BadFile as error:
            bad.append(type(error)(error.category, f"{name}: {error}"))
    series, others = dicom.series(scanned, taken)
    bad += others
    found += [("dicom", tuple(file.path for file in part), part[0].name, part[0].head) for part in series]
    found.sort(key=lambda item: natural(item[2]))

    traces = [identity.Trace(name, form, str(head.get("PatientID") or "")) for form, _, name, head in found]
    people = identity.people(traces, tuple(classes), root=root.resolve().name)
    vocabulary = {word for _, _, name, _ in found for word in re.split(r"[^a-z0-9]+", name.lower())}
    sources = []
    for (form, paths, name, head), whose in zip(found, people, strict=True):
        shown, contrast_doubt = contrast.of_scan(name, head, vocabulary, root=root.resolve().name)
        parents = PurePosixPath(name).parents
        table = next((tables[folder] for folder in map(Path, parents) if folder in tables), {})
        label, label_doubt = label_of(whose.names, table)
        label = label or next((folder.name for folder in parents if folder.name in classes), "")
        doubts = (*whose.doubts, *filter(None, (contrast_doubt, "" if label else label_doubt)))
        sources.append(Source(paths, form, whose.person, shown, label, name, doubts=doubts))
    return masks.paired(sources, drawn), bad


def read(source: Source, channel: int | None = None) -> Scan:
    """Read one source whole; channel: which to take of a picture whose channels differ.

    Raises BadFile, which names the file and the reason, for whatever is no proper image; LeftOut for a mask and such.
    """
    try:
        with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
            warnings.simplefilter("ignore")  # parsers warn of each oddity; what matters is checked below
            found = _read(source, channel)
            if reason := kind.left_out_by_values(found.data):
                raise LeftOut(reason, f"is left out: its values are those of a {reason}")
            return found
    except BadFile as error:
        raise type(error)(error.category, f"{_at_fault(source, error)}: {error}") from None
    except Exception as error:  # on damaged files the parsers of these formats raise nearly anything
        reason = f"cannot be read ({type(error).__name__}: {error}); {_remedy(source, error)}"
        raise BadFile("unreadable", f"{_at_fault(source, error)}: {reason}") from None


def read_mask(source: Source, like: Scan) -> np.ndarray:
    """Where the lesions of a source are: bool, shaped as its data. Raises BadFile where its mask lies otherwise."""
    try:
        found = _read_marks(replace(source, paths=(source.mask,)))
    except BadFile as error:
        if error.category != "constant":
            raise BadFile("mask", f"{source.name}: its mask {source.mask.name} {error}") from None
        return np.zeros(like.data.shape, bool)  # the same everywhere: no lesion
    except Exception as error:  # as in `read`
        raise BadFile("mask", f"{source.name}: its mask {source.mask.name} cannot be read ({error})") from None
    one, other = (scan.spacing_mm or (1, 1, 1) for scan in (found, like))
    if found.data.shape != like.data.shape or not np.allclose(one, other, rtol=1e-3):
        sizes = [f"{' x '.join(map(str, scan.data.shape))}" for scan in (found, like)]
        text = f"is {sizes[0]} voxels of {np.round(one, 2)} mm, not {sizes[1]} of {np.round(other, 2)}; resample it"
        raise BadFile("mask", f"{source.name}: its mask {source.mask.name} {text}, or remove it")
    return masks.lesion(found.data)


def _read_marks(source: Source) -> Scan:
    """As `_read`, of a mask: in a picture a lesion may be of any colour."""
    if source.kind != "picture":
        return _read(source, 0)
    pixels = read_picture(source.paths[0])
    return Scan(finite(as_stack(pixels.max(axis=-1) if pixels.ndim == 3 else pixels)), None)


def _at_fault(source: Source, error: Exception) -> str:
    """The name of the file that an error is about: of a series not its first."""
    path = getattr(error, "path", source.paths[0])
    root = source.paths[0].parents[len(PurePosixPath(source.name).parts) - 1]
    return path.relative_to(root).as_posix()


def _remedy(source: Source, error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it needs more memory than there is: set SYNTHMRI_WORKERS=1, or remove it"
    if isinstance(error, PermissionError):
        return "give yourself the right to read it (`chmod u+r`)"
    path = source.paths[0]
    if source.kind == "nifti" and path.is_file():
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        if packed != path.name.lower().endswith(".gz"):
            return "it is compressed: rename it to .nii.gz" if packed else "it is not compressed: rename it to .nii"
    return "it is damaged or of another format: if the original opens elsewhere copy it again, else remove it"


def _read(source: Source, channel: int | None) -> Scan:
    if source.kind == "nifti":
        return nifti.read_nifti(source.paths[0])
    if source.kind == "dicom":
        return dicom.read_dicom(source.paths)
    pixels = read_picture(source.paths[0]) if source.kind == "picture" else read_tensor(source.paths[0])
    return Scan(finite(as_stack(pixels, channel)), None)


def _walk(root: Path) -> tuple[list[Path], list[BadFile]]:
    """All files below, and links to folders, in natural order; and the folders that cannot be entered."""
    found, bad = [], []

    def refused(error: OSError) -> None:
        name = Path(error.filename).relative_to(root).as_posix()
        remedy = "give yourself the right to read it (`chmod -R u+rX`), or remove it"
        bad.append(BadFile("folder", f"{name}: is a folder that cannot be entered ({error.strerror}); {remedy}"))

    for folder, folders, files in os.walk(root, onerror=refused):
        for names in (folders, files):
            for name in [name for name in names if not _is_text(name)]:
                names.remove(name)
                readable = os.fsencode(Path(folder, name).relative_to(root)).decode("utf-8", "backslashreplace")
                bad.append(BadFile("name", f"{readable}: has a name that is not UTF-8; rename it"))
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [Path(folder) / name for name in links + files if name == "participants.tsv" or not _JUNK.match(name)]
    return sorted(found, key=lambda path: natural(path.as_posix())), bad


def _is_text(name: str) -> bool:
    """Whether a name can be written into a table and to the screen."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def natural(name: str) -> list:
    """Sort key by which 2.png comes before 10.png."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]


def _format(path: Path, root: Path) -> str | None:
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except FileNotFoundError:
            raise BadFile("special", "is a link to nothing, at which `dvc repro` stops; remove it") from None
        except (OSError, RuntimeError):  # RuntimeError: until Python 3.12
            raise BadFile(
                "special", "is a link that leads back to itself, at which `dvc repro` stops; remove it"
            ) from None
        if not target.is_relative_to(root.resolve()):
            raise BadFile("link", f"is a link to outside of {root}; copy the file itself there")
    if path.is_dir():
        return None  # a link to a folder that is walked anyway
    if not path.is_file():
        raise BadFile("special", "is a pipe, a socket or a device, which `dvc repro` waits for without end; remove it")
    for suffixes, form in _FORMATS.items():
        if path.name.lower().endswith(suffixes):
            return form
    try:
        with path.open("rb") as file:
            start = file.read(132)
            if start[128:] == b"DICM" or _NO_PREAMBLE.match(start):
                return "dicom"
    except OSError as error:
        raise BadFile("unreadable", f"cannot be opened ({error.strerror})") from None
    raise BadFile("format", f"not a format that is read; these are: {FORMATS}")
