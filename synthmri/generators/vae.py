"""Variational autoencoder (Kingma and Welling 2014, arXiv 1312.6114), convolutional.

Gaussian likelihood with its optimal variance in closed form (Rybkin 2021, arXiv 2006.13202, eq. 10), so that there is
no weight between reconstruction and divergence to tune.
"""

from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import nn

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
    ema_decay: float = Field(ge=0, lt=1)
    shift_px: int = Field(ge=0, le=64)


class VAE(nn.Module):
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


def build(config: dict) -> VAE:
    """The untrained network of {"params": section, "size": pixels}."""
    torch.manual_seed(config["seed"])
    return VAE(Params.model_validate(config["params"], strict=False), config["size"])


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


def fit(
    images: np.ndarray, p: Params, *, seed: int, points: int, checkpoint, tick, snapshot, device="cpu", precision="fp32"
):
    """Train on uint8 (N, S, S). Returns the averaged network, its config, losses a step, floating-point operations.

    snapshot(point, network) is called at `points` + 1 even distances of the training; other arguments and errors as in
    `training.run`.
    """
    config = {"params": p.model_dump(), "size": images.shape[1], "seed": seed}
    model = build(config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=p.learning_rate)
    average = loop.averaged(model, p.ema_decay)
    share = distributed.share(p.batch_size)

    def update(step, generator):
        for group in optimizer.param_groups:
            group["lr"] = p.learning_rate * loop.warm_cosine(step, p.steps, 10)
        x = loop.batch(images, p.batch_size, p.shift_px, generator).to(device)
        with autocast(device, precision):
            mean, log_variance = model.encode(x)
            noise = torch.randn(p.batch_size, p.latent_dim, generator=generator)[share.rows].to(device)
            y = model.decode(mean + noise * (log_variance / 2).exp()).float()
        likelihood, divergence = negative_elbo(x, y, mean, log_variance, share.weight)
        loss = share.weight * (likelihood + divergence) / x[0].numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.sum_gradients(model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        return {"loss": loss.item(), "divergence": share.weight * divergence.item()}

    history, operations = loop.run(
        {"model": model, "optimizer": optimizer, "average": average}, update, name="vae", seed=seed, steps=p.steps,
        points=points, checkpoint=checkpoint, tick=tick, snapshot=lambda point: snapshot(point, average.module),
    )  # fmt: skip
    return average.module, config, history, operations


def sample(model: VAE, seeds, *, batch_size: int, precision: Precision = "fp32") -> np.ndarray:
    """uint8 (N, S, S): the decoder's mean at z ~ N(0, 1), image i from seeds[i] alone."""
    device = next(model.parameters()).device
    model.eval()

    def draw(generators):
        return model.decode(sampling.noise(generators, model.latent_dim).to(device))

    return sampling.in_batches(draw, seeds, batch_size, device, precision)


@torch.no_grad()
def reconstruct(model: VAE, images: np.ndarray, *, batch: int, precision: Precision = "fp32") -> np.ndarray:
    """uint8 (N, S, S) -> uint8 (N, S, S): each image through the posterior's mean and back."""
    device = next(model.parameters()).device
    out = []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(np.array(images[start : start + batch]))[:, None].float() / 127.5 - 1
        with autocast(device, precision):
            y = model.decode(model.encode(x.to(device))[0])[:, 0]
        out.append(to_uint8((y.float() / 2 + 0.5).cpu().numpy()))
    return np.concatenate(out)


def load(folder: Path, *, device: str = "cpu"):
    """Open what `training.save_model` wrote of a trained model."""
    return loop.load_model(folder, build, device=device)
