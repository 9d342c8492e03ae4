"""NIfTI files -> oriented volumes."""

import gzip
import json
import re
from pathlib import Path

import nibabel
import numpy as np

from synthmri.scans.scan import MAX_VOXELS, BadFile, Scan, check_numbers, check_size, oriented

UNIT_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # metre, mm, micron; code 0 does not tell
SCANNER = 1  # the code of an affine that the scanner gave; above it those of a registration


def read_head(path: Path) -> dict:
    """What the header and the sidecar beside it (as dcm2niix and BIDS write) tell, times in ms; {} of a broken file.

    Keys are keywords of DICOM, and intent_code, descrip and shape of NIfTI.
    """
    try:
        header = nibabel.load(path).header
        head = {"intent_code": int(header["intent_code"]), "descrip": header["descrip"].item().decode("latin-1")}
        head["shape"] = header.get_data_shape()
    except Exception:  # `read_nifti` will say why
        return {}
    sidecar = path.with_name(re.sub(r"\.nii(\.gz)?$", ".json", path.name, flags=re.I))
    try:
        told = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}
    except (OSError, ValueError, RecursionError):
        told = {}
    if not isinstance(told, dict):
        return head
    for keyword in ("RepetitionTime", "EchoTime", "InversionTime"):  # BIDS gives seconds
        if isinstance(told.get(keyword), int | float):
            told[keyword] *= 1000
    return told | head


def read_nifti(path: Path) -> Scan:
    """A volume of three dimensions whose header says where left and up are. Raises BadFile for any other."""
    image = nibabel.load(path)
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise BadFile("shape", f"is {len(shape)}-dimensional {shape}, three dimensions are read; split or remove it")
    check_size(shape)
    check_numbers(image.get_data_dtype())
    affine = _affine(image.header)
    if path.name.lower().endswith(".gz"):
        image = type(image).from_bytes(_unpacked(path))
    return oriented(np.asarray(image.dataobj, dtype=np.float32).reshape(shape), affine)


def _affine(header: nibabel.Nifti1Header) -> np.ndarray:
    """Voxels to mm (4, 4). The scanner's qform goes before an sform that a registration wrote, which may scale.

    Raises BadFile where the parts of the header contradict each other in what matters here, axes and voxels.
    """
    zooms = np.asarray(header.get_zooms()[:3], dtype=float)
    if not (np.isfinite(zooms) & (zooms > 0)).all():
        raise BadFile("geometry", f"has pixdim {zooms.tolist()} mm, which must be above 0; mend its header")
    sform, s_code = header.get_sform(coded=True)
    qform, q_code = header.get_qform(coded=True)
    if not s_code and not q_code:
        raise BadFile("geometry", "has neither sform nor qform, so left and up are unknown; convert it anew from DICOM")
    if s_code and q_code:
        same = np.allclose(sform[:3, :3] @ np.diag(1 / zooms), qform[:3, :3] @ np.diag(1 / zooms), atol=0.02)
        codes = [nibabel.aff2axcodes(affine) if np.isfinite(affine).all() else () for affine in (sform, qform)]
        if not same and (codes[0] != codes[1] or s_code == q_code):  # codes that differ mean spaces that may differ
            raise BadFile(
                "geometry",
                f"has an sform (axes {''.join(map(str, codes[0]))}) and a qform (axes {''.join(map(str, codes[1]))}) "
                "that differ by more than rounding, so left and up are in doubt; convert it anew from DICOM, or set "
                "the code of the wrong one to 0",
            )
    affine = qform if not s_code or (q_code == SCANNER and s_code > SCANNER) else sform
    voxels = np.linalg.norm(affine[:3, :3], axis=0)
    if np.isfinite(voxels).all() and voxels.all() and not np.allclose(voxels, zooms, rtol=0.02):
        raise BadFile(
            "geometry",
            f"has voxels of {np.round(voxels, 3).tolist()} mm by its affine and of {np.round(zooms, 3).tolist()} mm by "
            "pixdim; convert it anew from DICOM, or mend the wrong one",
        )
    scale = UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    return np.diag([scale, scale, scale, 1.0]) @ affine


def _unpacked(path: Path) -> bytes:
    """To its end, where the check sum is: nibabel itself stops at the last voxel, and takes damaged ones."""
    limit = 8 * MAX_VOXELS + 2**20
    with gzip.open(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise BadFile("size", f"unpacks to more than {limit} bytes; export it again")
    return content
