"""DCGAN (Radford, Metz and Chintala 2016, arXiv 1511.06434), with as many more layers as the image size asks for.

Strided convolutions, batch normalisation, ReLU in the generator and leaky ReLU in the discriminator, Adam with beta1 =
0.5, weights drawn from N(0, 0.02). Added to the paper: differentiable augmentation and averaged weights.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from synthmri import streams
from synthmri.generators.baseline import Baseline
from synthmri.params import Section
from synthmri.training import adversarial, distributed, loop, sampling


class Params(Section):
    """Section `baselines.dcgan`."""

    width: int = Field(ge=4, le=512)
    latent_dim: int = Field(ge=2, le=4096)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    learning_rate: float = Field(gt=0, le=0.1)


def _widths(p: Params, size: int) -> list[int]:
    """Channels at size/2, size/4, ..., 4 pixels."""
    return [min(p.width * 2**i, p.width * 16) for i in range(loop.halvings(size))]


class Generator(nn.Module):
    """(B, latent) -> (B, 1, S, S) in [-1, 1]."""

    def __init__(self, p: Params, size: int):
        super().__init__()
        self.latent_dim, widths = p.latent_dim, _widths(p, size)[::-1]
        layers = [
            nn.ConvTranspose2d(p.latent_dim, widths[0], 4, 1, 0, bias=False),
            distributed.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [
                nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False),
                distributed.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], 1, 4, 2, 1), nn.Tanh())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(z[:, :, None, None])


class Discriminator(nn.Module):
    """(B, 1, S, S) -> logits (B,)."""

    def __init__(self, p: Params, size: int):
        super().__init__()
        widths = _widths(p, size)
        layers: list[nn.Module] = [nn.Conv2d(1, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 4, 2, 1, bias=False), distributed.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 0), nn.Flatten(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


class DCGAN(Baseline):
    """The losses of Goodfellow 2014, eq. 1, the generator's non-saturating, as softplus of logits."""

    name, Params = "dcgan", Params

    @staticmethod
    def build(p: Params, size: int) -> Generator:
        return Generator(p, size).apply(_initialise)

    def learner(self, p, draw, *, seed, precision):
        with streams.weights(seed, self.name, "discriminator"):
            discriminator = Discriminator(p, self.config["size"]).apply(_initialise).to(self.device)
        optimizers = tuple(
            torch.optim.Adam(player.parameters(), lr=p.learning_rate, betas=(0.5, 0.999))
            for player in (self.network, discriminator)
        )

        def discriminator_loss(judge, real, fake, step, generator):
            return F.softplus(-judge(real).float()).mean() + F.softplus(judge(fake).float()).mean()

        def generator_loss(judge, fake):
            return F.softplus(-judge(fake).float()).mean()

        return adversarial.two_players(
            self.network, discriminator, optimizers, draw, discriminator_loss, generator_loss,
            batch_size=p.batch_size, precision=precision,
        )  # fmt: skip

    def draw(self, generators):
        """Batch normalisation by the statistics of training."""
        return self.network(sampling.noise(generators, self.network.latent_dim).to(self.device))
