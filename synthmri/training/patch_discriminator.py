"""A discriminator of patches, which keeps a decoder from blurring (Isola 2017), with the hinge loss (Lim and Ye 2017).

Two of them: one sees the image, one its half, as in Wang 2018 (arXiv 1711.11585): texture and structure.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

WIDTH, SCALES = 32, 2


class Discriminator(nn.Module):
    """(B, 1, H, W) -> how real each patch of about 38 px looks, (B, 1, H/8, W/8), and each of 76 px, half as many."""

    def __init__(self):
        super().__init__()
        self.scales = nn.ModuleList([_one() for _ in range(SCALES)])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [scale(F.avg_pool2d(x, 2**i)).float() for i, scale in enumerate(self.scales)]


def _one() -> nn.Sequential:
    """(B, 1, H, W) -> (B, 1, H/8, W/8). Spectral norm as in Miyato 2018."""
    layers: list[nn.Module] = []
    channels = (1, WIDTH, 2 * WIDTH, 4 * WIDTH)
    for inside, outside in zip(channels[:-1], channels[1:], strict=True):
        layers += [spectral_norm(nn.Conv2d(inside, outside, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(channels[-1], 1, 3, padding=1)))


def discriminator_loss(discriminator: nn.Module, real: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """E[max(0, 1 - D(real))] + E[max(0, 1 + D(generated))], over patches and then scales; both (B, 1, H, W)."""
    pairs = zip(discriminator(real), discriminator(generated.detach()), strict=True)
    return sum(F.relu(1 - theirs).mean() + F.relu(1 + ours).mean() for theirs, ours in pairs) / SCALES


def generator_loss(discriminator: nn.Module, generated: torch.Tensor) -> torch.Tensor:
    """-E[D(generated)]; the discriminator's own weights get no gradient."""
    discriminator.requires_grad_(False)
    value = -sum(scale.mean() for scale in discriminator(generated)) / SCALES
    discriminator.requires_grad_(True)
    return value
