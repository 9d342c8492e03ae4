"""DCGAN (Radford, Metz and Chintala 2016, arXiv 1511.06434), with as many more layers as the image size asks for.

Strided convolutions, batch normalisation, ReLU in the generator and leaky ReLU in the discriminator, Adam with beta1 =
0.5, weights drawn from N(0, 0.02). Added to the paper: differentiable augmentation and averaged weights.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from synthmri.params import Section
from synthmri.training import diffaugment, distributed, loop, sampling
from synthmri.training.precision import Precision, autocast


class Params(Section):
    """Section `baselines.dcgan`."""

    width: int = Field(ge=4, le=512)
    latent_dim: int = Field(ge=2, le=4096)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    learning_rate: float = Field(gt=0, le=0.1)
    ema_decay: float = Field(ge=0, lt=1)
    shift_px: int = Field(ge=0, le=64)


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


def build(config: dict) -> Generator:
    """The untrained generator of {"params": section, "size": pixels, "seed": whole number}."""
    torch.manual_seed(config["seed"])
    return Generator(Params.model_validate(config["params"], strict=False), config["size"]).apply(_initialise)


def fit(
    images: np.ndarray, p: Params, *, seed: int, points: int, checkpoint, tick, snapshot, device="cpu", precision="fp32"
):
    """Train on uint8 (N, S, S). Returns the averaged generator, its config, losses a step, floating-point operations.

    Arguments and errors as in `vae.fit`.
    """
    config = {"params": p.model_dump(), "size": images.shape[1], "seed": seed}
    generator_net = build(config).to(device)
    discriminator = Discriminator(p, images.shape[1]).apply(_initialise).to(device)
    adam = dict(lr=p.learning_rate, betas=(0.5, 0.999))
    optimizer_g = torch.optim.Adam(generator_net.parameters(), **adam)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), **adam)
    average = loop.averaged(generator_net, p.ema_decay)
    share = distributed.share(p.batch_size)

    def update(step, generator):
        real = loop.batch(images, p.batch_size, p.shift_px, generator).to(device)
        z = torch.randn(p.batch_size, p.latent_dim, generator=generator)[share.rows].to(device)
        with autocast(device, precision):
            fake = generator_net(z)
            on_real = discriminator(diffaugment.augment(real, generator, share)).float()
            on_fake = discriminator(diffaugment.augment(fake.detach(), generator, share)).float()
        # Goodfellow 2014, eq. 1, as softplus of logits.
        loss_d = share.weight * (F.softplus(-on_real).mean() + F.softplus(on_fake).mean())
        optimizer_d.zero_grad(set_to_none=True)
        loss_d.backward()
        distributed.sum_gradients(discriminator.parameters())
        optimizer_d.step()
        with autocast(device, precision):
            on_fake = discriminator(diffaugment.augment(fake, generator, share)).float()
        loss_g = share.weight * F.softplus(-on_fake).mean()  # non-saturating
        optimizer_g.zero_grad(set_to_none=True)
        loss_g.backward()
        distributed.sum_gradients(generator_net.parameters())
        optimizer_g.step()
        average.update_parameters(generator_net)
        return {"loss": loss_g.item(), "discriminator": loss_d.item()}

    parts = {
        "generator": generator_net, "discriminator": discriminator, "average": average,
        "optimizer_g": optimizer_g, "optimizer_d": optimizer_d,
    }  # fmt: skip
    history, operations = loop.run(
        parts, update, name="dcgan", seed=seed, steps=p.steps, points=points, checkpoint=checkpoint, tick=tick,
        snapshot=lambda point: snapshot(point, average.module),
    )  # fmt: skip
    return average.module, config, history, operations


def sample(model: Generator, seeds, *, batch_size: int, precision: Precision = "fp32") -> np.ndarray:
    """uint8 (N, S, S): image i from seeds[i] alone; batch normalisation by the statistics of training."""
    device = next(model.parameters()).device
    model.eval()

    def draw(generators):
        return model(sampling.noise(generators, model.latent_dim).to(device))

    return sampling.in_batches(draw, seeds, batch_size, device, precision)


def load(folder: Path, *, device: str = "cpu"):
    """Open what `training.save_model` wrote of a trained model."""
    return loop.load_model(folder, build, device=device)
