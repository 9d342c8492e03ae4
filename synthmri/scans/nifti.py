"""NIfTI files -> oriented volumes."""

import gzip
from pathlib import Path

import nibabel
import numpy as np

from synthmri.scans.scan import MAX_VOXELS, BadFile, Scan, check_numbers, check_size, oriented


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
    zooms = np.asarray(image.header.get_zooms()[:3], dtype=float)
    if not (np.isfinite(zooms) & (zooms > 0)).all():
        raise BadFile("geometry", f"has pixdim {zooms.tolist()} mm, which must be above 0; mend its header")
    if not image.header["sform_code"] and not image.header["qform_code"]:
        raise BadFile("geometry", "has neither sform nor qform, so left and up are unknown; convert it anew from DICOM")
    if path.name.lower().endswith(".gz"):
        image = type(image).from_bytes(_unpacked(path))
    return oriented(np.asarray(image.dataobj, dtype=np.float32).reshape(shape), image.affine)


def _unpacked(path: Path) -> bytes:
    """To its end, where the check sum is: nibabel itself stops at the last voxel, and takes damaged ones."""
    limit = 8 * MAX_VOXELS + 2**20
    with gzip.open(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise BadFile("size", f"unpacks to more than {limit} bytes; export it again")
    return content
