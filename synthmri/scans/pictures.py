"""Pictures (PNG, JPEG, TIFF) and tensors (.npy, .pt) -> stacks of grey slices."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from synthmri.scans.scan import MAX_VOXELS, MIN_SIDE, BadFile, check_numbers, check_size


def read_picture(path: Path) -> np.ndarray:
    """Pixels of one PNG, JPEG or TIFF, upright: (H, W), or (H, W, 3). Raises BadFile for others."""
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


def read_tensor(path: Path) -> np.ndarray:
    """The array of a .npy (memory-mapped) or a .pt of one tensor, never a pickle. Raises BadFile for others."""
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
    check_size(tuple(tensor.shape))
    if tensor.is_complex():
        check_numbers(np.dtype(complex))
    return tensor.detach().to(torch.float32).numpy()


def as_stack(pixels: np.ndarray) -> np.ndarray:
    """Real H x W, N x H x W or N x 1 x H x W, or any of these with three equal channels -> float32 (N, H, W)."""
    shape = pixels.shape
    check_size(shape)
    check_numbers(pixels.dtype)
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
