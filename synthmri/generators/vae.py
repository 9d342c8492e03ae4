"""Variational autoencoder (Kingma and Welling 2014, arXiv 1312.6114), convolutional.

Gaussian likelihood with its optimal variance in closed form (Rybkin 2021, arXiv 2006.13202, eq. 10), so that there is
no weight between it and the divergence to tune. Added to the paper: a perceptual distance and a discriminator of
patches beside the likelihood (Larsen 2016, arXiv 1512.09300, and Esser 2021, arXiv 2012.09841), which ask for the
detail that a Gaussian likelihood blurs; a mixture of Gaussians, fitted to the latents of the training slices, in place
of N(0, 1) to draw from (Ghosh 2020, arXiv 1903.12436, section 4); averaged weights.
"""

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from synthmri import streams
from synthmri.generators.baseline import Baseline, Training, channels_last
from synthmri.imageset import evenly, to_uint8
from synthmri.training import distributed, loop, patch_discriminator, perceptual, resolution, sampling
from synthmri.training.precision import Precision, autocast

PERCEPTUAL, ADVERSARIAL = 0.2, 0.02  # weights beside the evidence bound of a pixel, in nats
MIXTURE = 10  # Gaussians at most
SLICES_A_PART = 10  # training slices to each Gaussian of the mixture, at least: fewer, and it would be of single people
MOST_FITTED = 2000  # training slices that the mixture is fitted to
DRAWS = 4  # latents of each from its posterior


class Params(Training):
    """Section `baselines.vae`."""

    width: int = Field(ge=4, le=512, multiple_of=4)
    latent_dim: int = Field(ge=2, le=4096)


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
            up += [nn.GroupNorm(4, before), nn.SiLU(), nn.Upsample(scale_factor=2, mode="bilinear")]
            up += [nn.Conv2d(before, after or 1, 3, 1, 1)]
        self.up = nn.Sequential(*up, nn.Tanh())
        # What is drawn from: shares, means and Cholesky factors of Gaussians; until it is fitted, N(0, 1).
        self.register_buffer("shares", torch.eye(MIXTURE)[0])
        self.register_buffer("means", torch.zeros(MIXTURE, p.latent_dim))
        self.register_buffer("factors", torch.eye(p.latent_dim).repeat(MIXTURE, 1, 1))

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


def _smaller(images: torch.Tensor) -> torch.Tensor:
    """(B, 1, S, S) as LPIPS sees them: at half the size, as what it costs falls by four and finer detail is the
    discriminator's; of at least 32 px, below which AlexNet has nothing left."""
    if images.shape[-1] >= 64:
        return F.avg_pool2d(images, 2)
    return F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)


class VAE(Baseline):
    """Draws the decoder's mean at z of the mixture."""

    name, Params, architecture = "vae", Params, ("width", "latent_dim")

    @staticmethod
    def build(p: Params, size: int) -> Network:
        return Network(p, size)

    def learner(self, p, draw, *, seed, precision):
        network, share = self.network, distributed.share(p.batch_size)
        with streams.weights(seed, self.name, "discriminator"):
            discriminator = channels_last(patch_discriminator.Discriminator()).to(self.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=p.learning_rate)
        discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=p.learning_rate, betas=(0.5, 0.99))
        lpips = perceptual.lpips_model(device=self.device)

        def update(step, generator):
            x = draw(generator)
            with autocast(self.device, precision):
                mean, log_variance = network.encode(x)
                noise = torch.randn(p.batch_size, p.latent_dim, generator=generator)[share.rows].to(x)
                y = network.decode(mean + noise * (log_variance / 2).exp()).float()
                seen = lpips(*(_smaller(each).expand(-1, 3, -1, -1) for each in (x, y))).float().mean()
                fooled = patch_discriminator.generator_loss(discriminator, y)
            likelihood, divergence = negative_elbo(x, y, mean, log_variance, share.weight)
            loss = (likelihood + divergence) / x[0].numel() + PERCEPTUAL * seen + ADVERSARIAL * fooled
            loss = share.weight * loss
            for each in (optimizer, discriminator_optimizer):
                loop.set_rate(each, p.learning_rate * loop.warm_cosine(step, p.steps, 10))
            loop.descend(optimizer, loss, max_grad_norm=1.0)
            with autocast(self.device, precision):
                judged = share.weight * patch_discriminator.discriminator_loss(discriminator, x, y)
            loop.descend(discriminator_optimizer, judged)
            return {"loss": loss.item(), "divergence": share.weight * divergence.item()}

        parts = {
            "discriminator": discriminator, "optimizer": optimizer, "discriminator_optimizer": discriminator_optimizer,
        }  # fmt: skip
        return parts, update

    @torch.no_grad()
    def fit_prior(self, images):
        """Fit the mixture to latents drawn from the posteriors of training slices.

        Latents, not posterior means: their noise keeps a Gaussian from closing in on single slices.
        """
        from sklearn.mixture import GaussianMixture

        self.network.eval()
        rows, generator, latents = evenly(len(images), MOST_FITTED), streams.generator(0, "mixture"), []
        for start in range(0, len(rows), 64):
            mean, log_variance = self.network.encode(loop.to_tensor(images[rows[start : start + 64]]).to(self.device))
            noise = torch.randn(DRAWS, *mean.shape, generator=generator).to(mean)
            latents.append((mean + noise * (log_variance / 2).exp()).flatten(0, 1).cpu())
        parts = max(1, min(len(self.network.shares), len(rows) // SLICES_A_PART))
        fitted = GaussianMixture(parts, reg_covar=1e-3, random_state=0).fit(torch.cat(latents).double().numpy())
        self.network.shares.zero_()[:parts] = torch.from_numpy(fitted.weights_)
        self.network.means[:parts] = torch.from_numpy(fitted.means_)
        self.network.factors[:parts] = torch.linalg.cholesky(torch.from_numpy(fitted.covariances_))

    def draw(self, generators):
        noise = sampling.noise(generators, self.network.latent_dim + 1).to(self.device)
        # One of the numbers, through the normal distribution function, says which Gaussian; the rest are its noise.
        place = torch.special.ndtr(noise[:, 0])
        part = torch.searchsorted(self.network.shares.cumsum(0), place).clamp(
            max=int(self.network.shares.nonzero()[-1])
        )
        z = self.network.means[part] + (self.network.factors[part] * noise[:, None, 1:]).sum(dim=2)
        return self.network.decode(z)

    @torch.no_grad()
    def reconstruct(self, images: np.ndarray, *, batch_size: int, precision: Precision = "fp32") -> np.ndarray:
        """Through the posterior's mean; see `Generator`."""
        self.network.eval()
        out = []
        for start in range(0, len(images), batch_size):
            x = loop.to_tensor(resolution.shrunk(images[start : start + batch_size], self.px)).to(self.device)
            with autocast(self.device, precision):
                y = self.network.decode(self.network.encode(x)[0])
            y = resolution.enlarged(y, images.shape[1])[:, 0]
            out.append(to_uint8((y.float() / 2 + 0.5).cpu().numpy()))
        return np.concatenate(out)
