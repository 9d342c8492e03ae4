"""Two players, augmented alike, one step each: how the adversarial models train."""

from collections.abc import Callable

import torch
from torch import nn

from synthmri.training import diffaugment, distributed, loop
from synthmri.training.precision import Precision, autocast

Judge = Callable[[torch.Tensor], torch.Tensor | tuple[torch.Tensor, ...]]


def two_players(
    network: nn.Module,
    discriminator: nn.Module,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    draw: Callable[[torch.Generator], torch.Tensor],
    discriminator_loss: Callable[[Judge, torch.Tensor, torch.Tensor, int, torch.Generator], torch.Tensor],
    generator_loss: Callable[[Judge, torch.Tensor], torch.Tensor],
    *,
    batch_size: int,
    precision: Precision,
) -> tuple[dict, Callable[[int, torch.Generator], dict[str, float]]]:
    """What `Baseline.learner` returns, for a network that makes (B, 1, S, S) in [-1, 1] of (B, network.latent_dim).

    optimizers: of the network and of the discriminator. discriminator_loss(judge, real, fake, step, generator) and
    generator_loss(judge, fake) are of augmented images (B, 1, S, S); judge is the discriminator under autocast.
    """
    share, device = distributed.share(batch_size), next(network.parameters()).device
    optimizer, discriminator_optimizer = optimizers

    def judge(x: torch.Tensor):
        with autocast(device, precision):
            return discriminator(x)

    def update(step: int, generator: torch.Generator) -> dict[str, float]:
        real = diffaugment.augment(draw(generator), generator, share)
        z = torch.randn(batch_size, network.latent_dim, generator=generator)[share.rows].to(device)
        with autocast(device, precision):
            fake = network(z).float()
        detached = diffaugment.augment(fake.detach(), generator, share)
        theirs = share.weight * discriminator_loss(judge, real, detached, step, generator)
        loop.descend(discriminator_optimizer, theirs)
        ours = share.weight * generator_loss(judge, diffaugment.augment(fake, generator, share))
        loop.descend(optimizer, ours)
        return {"loss": ours.item(), "discriminator": theirs.item()}

    parts = {
        "discriminator": discriminator, "optimizer": optimizer, "discriminator_optimizer": discriminator_optimizer,
    }  # fmt: skip
    return parts, update
