"""Pictures (PNG, JPEG, TIFF) and tensors (.npy, .pt) -> stacks of grey slices."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from synthmri.scans.scan import MAX_VOXELS, MIN_SIDE, BadFile, check_numbers, check_size

MAX_RATIO = 3  # of the sides of a picture: no head is longer


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
        white_is_zero = image.format == "TIFF" and image.tag_v2.get(262) == 0 and image.mode[0] in "IF"  # not so of L
        image = ImageOps.exif_transpose(image)
        if image.mode in ("LA", "PA", "RGBA") or ("transparency" in image.info and image.mode in ("L", "P", "RGB")):
            image = image.convert("RGBA")  # what is transparent hides any colour: on black it is background
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
        elif image.mode == "1":
            image = image.convert("L")
        elif image.mode == "P":
            image = image.convert("RGB")
        elif image.mode not in ("L", "I", "F", "RGB") and not image.mode.startswith("I;16"):
            raise BadFile("colour", f"is a picture of mode {image.mode}; grey ones are read")
        pixels = np.asarray(image)
        return pixels.max() - (pixels - pixels.min()) if white_is_zero else pixels


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
    if tensor.layout != torch.strided:
        raise BadFile("values", "is a sparse tensor; save it dense, as tensor.to_dense()")
    check_size(tuple(tensor.shape))
    if tensor.is_complex():
        check_numbers(np.dtype(complex))
    return tensor.detach().to(torch.float32).numpy()


def as_stack(pixels: np.ndarray, channel: int | None = None) -> np.ndarray:
    """Real H x W, N x H x W, H x W x N or N x 1 x H x W, or with three channels -> float32 (N, H, W).

    Of channels that differ `channel` is taken; None refuses them. Which side of three is N is told by the other two,
    which are more alike; in doubt it is the first.
    """
    shape = pixels.shape
    check_size(shape)
    check_numbers(pixels.dtype)
    pixels = np.asarray(pixels, dtype=np.float32)
    if pixels.ndim in (3, 4) and shape[-1] in (1, 3):
        pixels = _grey(np.moveaxis(pixels, -1, 0), channel)
    elif pixels.ndim == 4 and shape[1] in (1, 3):
        pixels = _grey(np.moveaxis(pixels, 1, 0), channel)
    elif pixels.ndim == 4 and shape[0] == 1 or pixels.ndim == 3 and shape[0] == 3 and _equal(pixels):
        pixels = pixels[0]
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    allowed = f"H x W, N x H x W or N x 1 x H x W of at least {MIN_SIDE} pixels a side"
    if pixels.ndim != 3:
        raise BadFile("shape", f"is of shape {shape}; what is read: {allowed}")
    if _ratio(pixels.shape[1:]) > 1.2 * _ratio(pixels.shape[:2]):
        pixels = np.moveaxis(pixels, -1, 0)
    if min(pixels.shape[1:]) < MIN_SIDE or _ratio(pixels.shape[1:]) > MAX_RATIO:
        raise BadFile("shape", f"is of shape {shape}; what is read: {allowed}, the longer at most {MAX_RATIO} times")
    return np.ascontiguousarray(pixels)


def _ratio(sides: tuple[int, int]) -> float:
    return max(sides) / min(sides)


def _grey(channels: np.ndarray, channel: int | None) -> np.ndarray:
    if len(channels) == 3 and not _equal(channels):
        if channel is None:
            raise BadFile("colour", "has channels that differ; set data.channel to 0, 1 or 2 to take one, or remove it")
        return channels[channel]
    return channels[0]


def _equal(channels: np.ndarray) -> bool:
    """Up to 3 % of the range, which JPEG costs."""
    return bool(np.nanmax(np.abs(channels - channels[:1])) <= 0.03 * (np.nanmax(channels) - np.nanmin(channels)))
