"""Two players, augmented alike, one step each: what adversarial models are.

Each image is judged beside one of the other kind, with both gradient penalties (Huang 2024, arXiv 2501.05441, eq. 2):
under that loss training converges and keeps its variety.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from synthmri import streams
from synthmri.generators.baseline import Baseline, channels_last
from synthmri.generators.gan import diffaugment, networks
from synthmri.training import distributed, loop, sampling
from synthmri.training.precision import autocast

Judge = Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]]  # the discriminator, of (B, 1, S, S)
PENALTY = 0.05  # weight of the gradient penalties
PENALTY_STEPS = 4  # every so many, the gradient penalties count as often (Karras 2020, arXiv 1912.04958, section 3.1)


class Adversarial(Baseline):
    """The generator of `networks` beside a discriminator of its own; images that losses get are augmented."""

    architecture = ("width", "latent_dim")
    kinds = PENALTY_STEPS

    @staticmethod
    @abstractmethod
    def discriminator(p: networks.Params, size: int) -> nn.Module:
        """The untrained discriminator of images (B, 1, size, size)."""

    @staticmethod
    @abstractmethod
    def discriminator_loss(
        judge: Judge, real: torch.Tensor, fake: torch.Tensor, step: int, generator: torch.Generator, p: networks.Params
    ) -> torch.Tensor:
        """A scalar, of images (B, 1, S, S); generator: the random numbers of this step."""

    @staticmethod
    @abstractmethod
    def generator_loss(judge: Judge, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """A scalar, of images (B, 1, S, S)."""

    @staticmethod
    def build(p, size):
        return networks.Generator(p, size).apply(networks.initialise)

    def learner(self, p, draw, *, seed, precision):
        with streams.weights(seed, self.name, "discriminator"):
            discriminator = channels_last(self.discriminator(p, self.px).apply(networks.initialise)).to(self.device)
        share = distributed.share(p.batch_size)
        optimizer, discriminator_optimizer = optimizers = [
            torch.optim.Adam(player.parameters(), lr=p.learning_rate, betas=(0.0, 0.99))
            for player in (self.network, discriminator)
        ]

        def judge(x: torch.Tensor):
            with autocast(self.device, precision):
                return discriminator(x)

        def update(step: int, generator: torch.Generator) -> dict[str, float]:
            for each in optimizers:
                loop.set_rate(each, p.learning_rate * loop.warm_cosine(step, p.steps, min(10, p.steps)))
            real = diffaugment.augment(draw(generator), generator, share)
            z = torch.randn(p.batch_size, p.latent_dim, generator=generator)[share.rows].to(self.device)
            with autocast(self.device, precision):
                fake = self.network(z).float()
            detached = diffaugment.augment(fake.detach(), generator, share)
            theirs = share.weight * self.discriminator_loss(judge, real, detached, step, generator, p)
            loop.descend(discriminator_optimizer, theirs)
            discriminator.requires_grad_(False)
            ours = share.weight * self.generator_loss(judge, real, diffaugment.augment(fake, generator, share))
            loop.descend(optimizer, ours)
            discriminator.requires_grad_(True)
            return {"loss": ours.item(), "discriminator": theirs.item()}

        parts = {
            "discriminator": discriminator, "optimizer": optimizer, "discriminator_optimizer": discriminator_optimizer,
        }  # fmt: skip
        return parts, update

    def draw(self, generators):
        """Batch normalisation by the statistics of training."""
        return self.network(sampling.noise(generators, self.network.latent_dim).to(self.device))


def relativistic_loss(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
    """-log of the probability that `better` is found the more real, over logits in the same place; a scalar."""
    return F.softplus(worse - better).mean()


def penalised(images: torch.Tensor, step: int) -> torch.Tensor:
    """`images` (B, 1, S, S), at steps of the gradient penalties ready to be derived by."""
    # A view, since the counter of operations cannot see through a leaf.
    return images.detach().requires_grad_(step % PENALTY_STEPS == 0).view_as(images)


def penalty(step: int, *judged: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor | float:
    """Of (logits (B,), images (B, 1, S, S) by `penalised`): what the discriminator's loss gets at this step."""
    if step % PENALTY_STEPS:
        return 0.0
    return PENALTY_STEPS * PENALTY / 2 * sum(steepness(logits, images) for logits, images in judged)


def steepness(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """E |dD/dx|^2, the gradient penalty of Mescheder 2018 (arXiv 1801.04406, eq. 9): R1 of real images, R2 of others.

    logits: (B,) of x: (B, 1, S, S) that requires a gradient; image i's logit of image i alone.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()
