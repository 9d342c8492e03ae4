"""DCGAN (Radford, Metz and Chintala 2016, arXiv 1511.06434), with as many more layers as the image size asks for.

The paper's convolutions without pooling, batch normalisation and ReLU in the generator, leaky ReLU in the
discriminator. Changed from it: bilinear doubling and a convolution in place of transposed convolutions, which
weave (Odena 2016, doi 10.23915/distill.00003); no batch normalisation in the discriminator, and the relativistic loss
with both gradient penalties (Huang 2024, arXiv 2501.05441), under which training converges; differentiable
augmentation and averaged weights.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from synthmri import streams
from synthmri.generators.baseline import Baseline, Training, arranged
from synthmri.generators.gan import adversarial
from synthmri.training import distributed, loop, sampling


class Params(Training):
    """Section `baselines.dcgan`."""

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
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, 0.2)


class DCGAN(Baseline):
    """Both players by the relativistic loss."""

    name, Params, architecture = "dcgan", Params, ("width", "latent_dim")
    kinds = adversarial.PENALTY_STEPS

    @staticmethod
    def build(p: Params, size: int) -> Generator:
        return Generator(p, size).apply(initialise)

    def learner(self, p, draw, *, seed, precision):
        with streams.weights(seed, self.name, "discriminator"):
            discriminator = arranged(Discriminator(p, self.px).apply(initialise)).to(self.device)

        def discriminator_loss(judge, real, fake, step, generator):
            x, y = adversarial.penalised(real, step), adversarial.penalised(fake, step)
            theirs, ours = judge(x).float(), judge(y).float()
            return adversarial.beside(theirs, ours) + adversarial.penalty(step, (theirs, x), (ours, y))

        def generator_loss(judge, real, fake):
            with torch.no_grad():
                theirs = judge(real).float()
            return adversarial.beside(judge(fake).float(), theirs)

        return adversarial.two_players(
            self.network, discriminator, draw, discriminator_loss, generator_loss, p, precision=precision
        )

    def draw(self, generators):
        """Batch normalisation by the statistics of training."""
        return self.network(sampling.noise(generators, self.network.latent_dim).to(self.device))
