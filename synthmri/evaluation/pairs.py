"""Resemblance of pairs of images (N, H, W): SSIM, PSNR, LPIPS; and MS-SSIM within a set.

Resemblance to the nearest training image is not quality: a constant mean image has a higher PSNR than real images have.
"""

import math

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import nn

from synthmri.errors import UserError

PSNR_OF_EQUALS = 100.0  # dB; stands for infinity, so that a mean over pairs stays finite


def ms_ssim(images: np.ndarray, *, pairs: int = 50, seed: int = 0) -> float | None:
    """Mean multi-scale SSIM (Wang 2003) over random pairs of different images of one set: diversity, lower is more.

    images: uint8 (N, H, W). By torchmetrics, with the paper's five scales; None below the 176 pixels that these need.
    """
    if min(images.shape[1:]) < 176 or len(images) < 2:
        return None
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure

    rng = np.random.default_rng(seed)
    first = rng.integers(0, len(images), pairs)
    second = (first + rng.integers(1, len(images), pairs)) % len(images)
    values = [
        measure(_unit(images[first[i : i + 10]]), _unit(images[second[i : i + 10]]), data_range=1.0, reduction="none")
        for i in range(0, pairs, 10)
    ]
    return float(torch.cat([value.flatten() for value in values]).double().mean())


def ssim(images: np.ndarray, references: np.ndarray) -> float:
    """Mean structural similarity of the pairs: Wang 2004 (IEEE TIP 13), eq. 13, with the paper's Gaussian window.

    The window is 11 x 11 with sigma 1.5 pixels, K1 = 0.01, K2 = 0.03, range 255.
    images, references: uint8 (N, H, W), at least 11 x 11 pixels. Returns a number in [-1, 1], 1 for equal images.
    Raises UserError for other types, sizes or counts.
    """
    _pairs(images, references)
    if min(images.shape[1:]) < 11:
        raise UserError(f"images of {images.shape[1]} x {images.shape[2]} pixels are below the 11 x 11 window of SSIM")
    values = [
        structural_similarity(a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        for a, b in zip(images, references, strict=True)
    ]
    return float(np.mean(values))


def psnr(images: np.ndarray, references: np.ndarray) -> float:
    """Mean over the pairs of the peak signal-to-noise ratio, 10 log10(255^2 / MSE) dB, at most 100 dB a pair.

    The bound stands for the infinity of equal images; a single grey level of difference in one pixel of 256 x 256 is
    96 dB. images, references: uint8 (N, H, W). Returns dB.
    Raises UserError for other types, sizes or counts.
    """
    _pairs(images, references)
    errors = [np.square(a.astype(np.int64) - b).mean() for a, b in zip(images, references, strict=True)]
    values = [10 * math.log10(255**2 / error) if error else math.inf for error in errors]
    return float(np.minimum(values, PSNR_OF_EQUALS).mean())


def lpips_distance(images: np.ndarray, references: np.ndarray, model: nn.Module, *, batch: int = 64) -> float:
    """Mean perceptual distance of the pairs: LPIPS, Zhang 2018 (arXiv 1801.03924), eq. 1; of equal ones it is 0.

    images, references: uint8 (N, H, W); grey is repeated for red, green and blue. model: `perceptual.lpips_model()`.
    Returns a number >= 0, 0 for equal images.
    Raises UserError for other types, sizes or counts.
    """
    _pairs(images, references)
    device = next(model.parameters()).device

    def tensor(grey):  # uint8 (B, H, W) -> float (B, 3, H, W) in [-1, 1]
        x = (torch.from_numpy(grey).to(device).float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)
        return x.contiguous(memory_format=torch.channels_last)

    total = 0.0
    with torch.inference_mode():
        for i in range(0, len(images), batch):
            pair = np.array(images[i : i + batch]), np.array(references[i : i + batch])
            apart = (pair[0] != pair[1]).any(axis=(1, 2))
            if apart.any():
                total += float(model(tensor(pair[0][apart]), tensor(pair[1][apart])).double().sum())
    return total / len(images)


def resemblance(images: np.ndarray, references: np.ndarray, lpips: nn.Module, *, batch: int = 64) -> dict[str, float]:
    """`ssim`, `psnr` (dB) and `lpips` of the pairs under these names; uint8 (N, H, W) each, errors as theirs."""
    return {
        "ssim": ssim(images, references),
        "psnr": psnr(images, references),
        "lpips": lpips_distance(images, references, lpips, batch=batch),
    }


def dice(masks: np.ndarray, references: np.ndarray) -> float:
    """Overlap of all masks with theirs, uint8 (N, H, W), 255 inside: 2 |A and B| / (|A| + |B|) over all pixels (Dice
    1945, Ecology 26), from 0 to 1; 1 where neither has any."""
    _pairs(masks, references)
    a, b = masks > 127, references > 127
    whole = int(a.sum()) + int(b.sum())
    return float(2 * (a & b).sum() / whole) if whole else 1.0


def check_images(images, references) -> None:
    """Raise UserError unless both are uint8 (N, H, W), of one H and W."""
    for array in (images, references):
        if array.dtype != np.uint8 or array.ndim != 3:
            raise UserError(f"scores of images take uint8 (N, H, W); these are {array.dtype} {array.shape}")
    if images.shape[1:] != references.shape[1:]:
        raise UserError(
            f"images of {images.shape[1:]} and {references.shape[1:]} pixels do not compare; resize one set"
        )


def _pairs(images, references) -> None:
    check_images(images, references)
    if len(images) != len(references) or len(images) == 0:
        raise UserError(f"{len(images)} images and {len(references)} references make no pairs; give one for each")


def _unit(images) -> torch.Tensor:
    return torch.from_numpy(np.array(images))[:, None].float() / 255
