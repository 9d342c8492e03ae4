"""Variational autoencoder (Kingma and Welling 2014, arXiv 1312.6114), convolutional.

Gaussian likelihood with its optimal variance in closed form (Rybkin 2021, arXiv 2006.13202, eq. 10), so that there is
no weight between reconstruction and divergence to tune.
"""

import numpy as np
import torch
from pydantic import Field
from torch import nn

from synthmri.generators.baseline import Baseline
from synthmri.imageset import to_uint8
from synthmri.params import Section
from synthmri.training import distributed, loop, sampling
from synthmri.training.precision import Precision, autocast


class Params(Section):
    """Section `baselines.vae`."""

    width: int = Field(ge=4, le=512, multiple_of=4)
    latent_dim: int = Field(ge=2, le=4096)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    learning_rate: float = Field(gt=0, le=0.1)


class Network(nn.Module):
    """(B, 1, S, S) in [-1, 1] -> latents (B, latent) -> (B, 1, S, S); S = 4 * 2^k."""

    def __init__(self, p: Params, size: int):
        super().__init__()
        self.latent_dim, levels = p.latent_dim, loop.halvings(size)
        # Wide where the picture is small: about the same work at every resolution.
        widths = [min(p.width * 2**i, p.width * 16) for i in range(levels)]
        down: list[nn.Module] = []
        for before, after in zip([1, *widths], widths, strict=False):
            down += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(4, after), nn.SiLU()]
        self.down = nn.Sequential(*down, nn.Flatten(), nn.Linear(widths[-1] * 16, 2 * p.latent_dim))
        up: list[nn.Module] = [nn.Linear(p.latent_dim, widths[-1] * 16), nn.Unflatten(1, (widths[-1], 4, 4))]
        for before, after in zip(widths[::-1], [*widths[-2::-1], 0], strict=True):
            up += [nn.GroupNorm(4, before), nn.SiLU(), nn.ConvTranspose2d(before, after or 1, 4, 2, 1)]
        self.up = nn.Sequential(*up, nn.Tanh())

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of the posterior, (B, latent) each."""
        mean, log_variance = self.down(x).float().chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """(B, latent) -> (B, 1, S, S) in [-1, 1]."""
        return self.up(z)


def negative_elbo(
    x: torch.Tensor, y: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor, weight: float = 1.0
):
    """Nats a picture: -log p(x|z) with the variance that fits the batch best, and the divergence from N(0, 1).

    weight: that of these pictures in the mean over a batch of which they are this process's share.
    """
    square = distributed.summed(weight * (x - y).square().mean())
    likelihood = 0.5 * x[0].numel() * (torch.log(2 * torch.pi * square) + 1)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
    return likelihood, divergence


class VAE(Baseline):
    """Draws the decoder's mean at z ~ N(0, 1)."""

    name, Params = "vae", Params

    @staticmethod
    def build(p: Params, size: int) -> Network:
        return Network(p, size)

    def learner(self, p, draw, *, seed, precision):
        network, share = self.network, distributed.share(p.batch_size)
        optimizer = torch.optim.Adam(network.parameters(), lr=p.learning_rate)

        def update(step, generator):
            x = draw(generator)
            with autocast(self.device, precision):
                mean, log_variance = network.encode(x)
                noise = torch.randn(p.batch_size, p.latent_dim, generator=generator)[share.rows].to(x)
                y = network.decode(mean + noise * (log_variance / 2).exp()).float()
            likelihood, divergence = negative_elbo(x, y, mean, log_variance, share.weight)
            loss = share.weight * (likelihood + divergence) / x[0].numel()
            loop.set_rate(optimizer, p.learning_rate * loop.warm_cosine(step, p.steps, 10))
            loop.descend(optimizer, loss, max_grad_norm=1.0)
            return {"loss": loss.item(), "divergence": share.weight * divergence.item()}

        return {"optimizer": optimizer}, update

    def draw(self, generators):
        return self.network.decode(sampling.noise(generators, self.network.latent_dim).to(self.device))

    @torch.no_grad()
    def reconstruct(self, images: np.ndarray, *, batch_size: int, precision: Precision = "fp32") -> np.ndarray:
        """Through the posterior's mean; see `Generator`."""
        self.network.eval()
        out = []
        for start in range(0, len(images), batch_size):
            x = loop.to_tensor(images[start : start + batch_size]).to(self.device)
            with autocast(self.device, precision):
                y = self.network.decode(self.network.encode(x)[0])[:, 0]
            out.append(to_uint8((y.float() / 2 + 0.5).cpu().numpy()))
        return np.concatenate(out)
