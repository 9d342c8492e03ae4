"""Networks of both GANs, after Radford, Metz and Chintala 2016 (arXiv 1511.06434); what is changed: see `dcgan`."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from synthmri.generators.baseline import Training
from synthmri.training import distributed, loop


class Params(Training):
    """What the section of each says."""

    width: int = Field(ge=4, le=512)
    latent_dim: int = Field(ge=2, le=4096)


def widths(p: Params, size: int) -> list[int]:
    """Channels at size/2, size/4, ..., 4 pixels."""
    return [min(p.width * 2**i, p.width * 16) for i in range(loop.halvings(size))]


class Generator(nn.Module):
    """(B, latent) -> (B, 1, S, S) in [-1, 1]."""

    def __init__(self, p: Params, size: int):
        super().__init__()
        self.latent_dim, channels = p.latent_dim, widths(p, size)[::-1]
        layers = [
            nn.ConvTranspose2d(p.latent_dim, channels[0], 4, 1, 0, bias=False),
            distributed.BatchNorm2d(channels[0]),
            nn.ReLU(),
        ]
        for before, after in zip(channels, channels[1:], strict=False):
            layers += [
                nn.Upsample(scale_factor=2, mode="bilinear"),
                nn.Conv2d(before, after, 3, 1, 1, bias=False),
                distributed.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(
            *layers, nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(channels[-1], 1, 3, 1, 1), nn.Tanh()
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z[:, :, None, None])


class Discriminator(nn.Module):
    """(B, 1, S, S) -> logits (B,)."""

    def __init__(self, p: Params, size: int):
        super().__init__()
        channels = [1, *widths(p, size)]
        pairs = zip(channels, channels[1:], strict=False)
        self.down = nn.ModuleList([nn.Conv2d(before, after, 4, 2, 1) for before, after in pairs])
        self.whole = nn.Conv2d(channels[-1], 1, 4, 1, 0)

    def levels(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What it sees at size/2, size/4, ..., 4 pixels."""
        seen = []
        for convolution in self.down:
            x = F.leaky_relu(convolution(x), 0.2)
            seen.append(x)
        return seen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.judgement(self.levels(x)[-1])

    def judgement(self, deepest: torch.Tensor) -> torch.Tensor:
        """Logits (B,) of the last of `levels`."""
        return self.whole(deepest).flatten()


def initialise(module: nn.Module) -> None:
    """For `Module.apply`: every convolution after He 2015 (arXiv 1502.01852), for leaky ReLU of slope 0.2."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, 0.2)
