"""Readers: a folder of NIfTI, DICOM, pictures or tensors -> oriented volumes or stacks of pictures.

`find` looks at names and headers only, `read` opens one source at a time. What is found decides what is read:

- NIfTI   .nii, .nii.gz; a BIDS tree or any other folders
- DICOM   a series of single slices, or multi-frame (enhanced) files; with or without .dcm
- picture .png, .jpg, .tif; 8 or 16 bit, grey
- tensor  .npy, .pt; H x W, N x H x W, N x 1 x H x W, or three equal channels

Names of files and people stay in `Source` and in messages, both of which stay on this machine.
"""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from synthmri.errors import UserError
from synthmri.scans.contrast import contrast_of
from synthmri.scans.dicom import read_dicom, read_head
from synthmri.scans.identity import LEAST_PEOPLE, SUBJECT, participants, person
from synthmri.scans.nifti import read_nifti
from synthmri.scans.pictures import as_stack, read_picture, read_tensor
from synthmri.scans.scan import FORMATS, BadFile, Scan, Source, finite

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
    labels = participants(root / "participants.tsv")
    sources, bad, series = [], [], {}
    for path in _walk(root):
        name = path.relative_to(root).as_posix()
        try:
            kind = _kind(path, root)
            if kind == "dicom":
                head = read_head(path)
                series.setdefault(head.pop("series"), []).append((path, name, head))
            elif kind and not _NOT_ANATOMY.search(name):
                sources.append(_source((path,), kind, name, root.name, labels, classes))
        except BadFile as error:
            bad.append(BadFile(error.category, f"{name}: {error}"))
    shared: dict[str, set[str]] = {}  # PatientID -> the people that the paths name
    for files in series.values():
        _, name, head = files[0]
        shared.setdefault(head["subject"], set()).update(SUBJECT.findall(name))
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
            if source.kind in ("picture", "tensor") and not SUBJECT.search(source.name)
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
                return read_nifti(source.paths[0])
            if source.kind == "dicom":
                return read_dicom(source.paths)
            pixels = read_picture(source.paths[0]) if source.kind == "picture" else read_tensor(source.paths[0])
            return Scan(finite(as_stack(pixels)), None)
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
    match = SUBJECT.search(name)
    if match:
        subject = subject or match[1]
    elif kind in ("nifti", "dicom") and not subject:
        subject = next(filter(None, map(person, path.parts)), root_name)
    folder = path.parent.name
    is_class = kind == "picture" and folder in classes
    if not subject and not is_class:
        unit = folder if kind == "picture" else path.stem
        subject = unit if re.search(r"[0-9]", unit) and not contrast_of(unit) else ""
    label = labels.get(subject) or (folder if is_class else "")
    places = [text, path.name.split(".")[0], *[parent.name for parent in path.parents], root_name]
    contrast = next(filter(None, map(contrast_of, places)), "")
    return Source(paths, kind, subject or None, contrast, label, name)
