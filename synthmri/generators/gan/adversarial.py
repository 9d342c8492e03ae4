"""Two players, augmented alike, one step each: how the adversarial models train.

Each image is judged beside one of the other kind, with both gradient penalties (Huang 2024, arXiv 2501.05441, eq. 2):
under that loss training converges and keeps its variety.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from synthmri.generators.gan import diffaugment
from synthmri.training import distributed, loop
from synthmri.training.precision import Precision, autocast

Judge = Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]]
PENALTY = 0.05  # weight of the gradient penalties
PENALTY_STEPS = 4  # every so many, the gradient penalties count as often (Karras 2020, arXiv 1912.04958, section 3.1)


def two_players(
    network: nn.Module,
    discriminator: nn.Module,
    draw: Callable[[torch.Generator], torch.Tensor],
    discriminator_loss: Callable[[Judge, torch.Tensor, torch.Tensor, int, torch.Generator], torch.Tensor],
    generator_loss: Callable[[Judge, torch.Tensor, torch.Tensor], torch.Tensor],
    p,
    *,
    precision: Precision,
) -> tuple[dict, Callable[[int, torch.Generator], dict[str, float]]]:
    """What `Baseline.learner` returns, for a network that makes (B, 1, S, S) in [-1, 1] of (B, network.latent_dim).

    discriminator_loss(judge, real, fake, step, generator) and generator_loss(judge, real, fake) are of augmented images
    (B, 1, S, S); judge is the discriminator under autocast. p: `Training` parameters.
    """
    share, device = distributed.share(p.batch_size), next(network.parameters()).device
    optimizer, discriminator_optimizer = optimizers = [
        torch.optim.Adam(player.parameters(), lr=p.learning_rate, betas=(0.0, 0.99))
        for player in (network, discriminator)
    ]

    def judge(x: torch.Tensor):
        with autocast(device, precision):
            return discriminator(x)

    def update(step: int, generator: torch.Generator) -> dict[str, float]:
        for each in optimizers:
            loop.set_rate(each, p.learning_rate * loop.warm_cosine(step, p.steps, min(10, p.steps)))
        real = diffaugment.augment(draw(generator), generator, share)
        z = torch.randn(p.batch_size, network.latent_dim, generator=generator)[share.rows].to(device)
        with autocast(device, precision):
            fake = network(z).float()
        detached = diffaugment.augment(fake.detach(), generator, share)
        theirs = share.weight * discriminator_loss(judge, real, detached, step, generator)
        loop.descend(discriminator_optimizer, theirs)
        discriminator.requires_grad_(False)
        ours = share.weight * generator_loss(judge, real, diffaugment.augment(fake, generator, share))
        loop.descend(optimizer, ours)
        discriminator.requires_grad_(True)
        return {"loss": ours.item(), "discriminator": theirs.item()}

    parts = {
        "discriminator": discriminator, "optimizer": optimizer, "discriminator_optimizer": discriminator_optimizer,
    }  # fmt: skip
    return parts, update


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
