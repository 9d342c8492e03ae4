"""Scoring N images against real ones: this project's scores against torchmetrics with the same extractor.

python -m benchmarks.evaluation

FD and KID of AlexNet features, and SSIM, PSNR and LPIPS of pairs; on random pictures, as only the time is of interest.
Both sides extract the features of both sets. The numbers of both are compared too.
"""

import warnings
from functools import cache
from typing import Annotated
from unittest.mock import patch

import numpy as np
import torch
import typer

from benchmarks import measure
from stages import _cli
from synthmri.evaluation import distances, features, pairs
from synthmri.training import perceptual


class Pooled(torch.nn.Module):
    """uint8 (B, 3, H, W) -> (B, 256), the features of features.alexnet, as torchmetrics calls an extractor."""

    num_features = 256

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(features.alexnet(x[:, 0].numpy(), batch=len(x)))


def textures(n: int, seed: int) -> np.ndarray:
    """uint8 (n, 256, 256) smooth random pictures."""
    from scipy import ndimage

    noise = np.random.default_rng(seed).normal(size=(n, 256, 256)).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, (0, 3, 3))
    return np.clip(128 + smooth / smooth.std() * 40, 0, 255).astype(np.uint8)


def main(n: Annotated[int, typer.Option(min=50, help="images in each set")] = 200):
    """Write benchmarks/results/evaluation.json."""
    _cli.start()
    made, real = textures(n, 0), textures(n, 1)
    lpips = perceptual.lpips_model()

    def ours() -> dict[str, float]:
        x, y = (features.alexnet(images, batch=16) for images in (made, real))
        values = {"fd": distances.frechet_distance(x, y), "kid": distances.kernel_distance(x, y)}
        return values | pairs.resemblance(made, real, lpips, batch=16)

    def theirs() -> dict[str, float]:
        from torchmetrics.image import (
            FrechetInceptionDistance,
            KernelInceptionDistance,
            PeakSignalNoiseRatio,
            StructuralSimilarityIndexMeasure,
        )
        from torchmetrics.wrappers import FeatureShare

        warnings.simplefilter("ignore")
        extractor = Pooled()
        frechet = FrechetInceptionDistance(feature=extractor)
        kernel = KernelInceptionDistance(feature=extractor, subset_size=n, subsets=1)
        both = FeatureShare([frechet, kernel])  # one extraction for the two, as here
        ssim, psnr = (
            StructuralSimilarityIndexMeasure(data_range=255.0),
            PeakSignalNoiseRatio(data_range=255.0, dim=(1, 2, 3), reduction="elementwise_mean"),
        )
        distances_seen = []
        for start in range(0, n, 16):
            a, b = (torch.from_numpy(images[start : start + 16])[:, None] for images in (made, real))
            both.update(a.expand(-1, 3, -1, -1), real=False)
            both.update(b.expand(-1, 3, -1, -1), real=True)
            for metric in (ssim, psnr):
                metric.update(a.float(), b.float())
            with torch.no_grad():
                pair = [(x.float() / 127.5 - 1).expand(-1, 3, -1, -1) for x in (a, b)]
                distances_seen += lpips(*pair).flatten().tolist()
        return {
            "fd": frechet.compute().item(),
            "kid": kernel.compute()[0].item(),
            "ssim": ssim.compute().item(),
            "psnr": psnr.compute().item(),
            "lpips": float(np.mean(distances_seen)),
        }

    # Either side builds the extractor once: torchmetrics calls it for every batch, which is no work of its own.
    with patch.object(perceptual, "alexnet_convolutions", cache(perceptual.alexnet_convolutions)):
        our_values, their_values = ours(), theirs()
        our_seconds, their_seconds = measure.seconds(ours, repeats=2), measure.seconds(theirs, repeats=2)
    measure.write(
        "evaluation",
        {
            "ratio": their_seconds / our_seconds,
            "ours": {"seconds": our_seconds} | {name: our_values[name] for name in their_values},
            "torchmetrics": {"seconds": their_seconds} | their_values,
            "n": n,
        },
    )


if __name__ == "__main__":
    _cli.run(main)
