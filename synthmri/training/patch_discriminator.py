"""A critic of patches, which keeps a decoder from blurring (Isola 2017), with the hinge loss (Lim and Ye 2017)."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

WIDTH = 32


def discriminator() -> nn.Sequential:
    """(B, 1, H, W) -> (B, 1, H/8, W/8): how real each patch of about 38 px looks. Spectral norm as in Miyato 2018."""
    layers: list[nn.Module] = []
    channels = (1, WIDTH, 2 * WIDTH, 4 * WIDTH)
    for inside, outside in zip(channels[:-1], channels[1:], strict=True):
        layers += [spectral_norm(nn.Conv2d(inside, outside, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(channels[-1], 1, 3, padding=1)))


def discriminator_loss(critic: nn.Module, real: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """E[max(0, 1 - D(real))] + E[max(0, 1 + D(generated))]; both (B, 1, H, W)."""
    return F.relu(1 - critic(real).float()).mean() + F.relu(1 + critic(generated.detach()).float()).mean()


def generator_loss(critic: nn.Module, generated: torch.Tensor) -> torch.Tensor:
    """-E[D(generated)]; the critic's own weights get no gradient."""
    critic.requires_grad_(False)
    value = -critic(generated).float().mean()
    critic.requires_grad_(True)
    return value
