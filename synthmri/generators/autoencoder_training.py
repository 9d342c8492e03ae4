"""Training an autoencoder to rebuild slices: the loss, and the adaptation of a pretrained one to a user's own."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from synthmri import streams
from synthmri.errors import UserError
from synthmri.generators import autoencoder
from synthmri.params import Section
from synthmri.training import distributed, loop, masks, patch_discriminator
from synthmri.training.precision import Precision, autocast

SHARPNESS = 4.0  # what a channel of -1 to 1 is multiplied by to be the logit of a mask
LATENT_NOISE = 0.05  # of an adaptation, as in pretraining
CROP_PX = 128  # edge of the crops that an autoencoder is adapted on, or the slices' where that is less


class Adapt(Section):
    """Section `adapt`."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1, le=1024)
    learning_rate: float = Field(gt=0, le=0.01)
    perceptual_weight: float = Field(ge=0)
    adversarial_weight: float = Field(ge=0)
    mask_weight: float = Field(ge=0)


class Losses(NamedTuple):
    """What is asked of an autoencoder beside small errors (L1), by weight."""

    perceptual: float = 0.0  # LPIPS (Zhang 2018)
    adversarial: float = 0.0  # a discriminator of patches: without one the decoder blurs what it cannot know, with one
    # it draws texture in its place, which is nearer in distribution and farther in PSNR (Blau 2018)
    adversarial_from: float = 0.0  # share of the steps that is done when that joins
    masks: float = 0.0  # above 0 blue is a mask, which `masks.loss` judges
    latents: float = 0.0  # a pull towards zero mean and unit variance of each channel
    latent_noise: float = 0.0  # standard deviation of noise on the latents, relative to theirs, so that the decoder
    # forgives a sampler's errors


def rebuild(
    vae,
    x: torch.Tensor,
    losses: Losses,
    perceptual: Callable,
    generator: torch.Generator,
    *,
    frozen_encoder: bool = False,
    share: distributed.Share | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """L1 of rebuilding x, with `perceptual` and `masks` of the losses; its latents; the image that came out, grey.

    x: (B, 3, H, W) in [-1, 1]; where masks count, its blue is one, and the encoder does not see it; perceptual:
    (B, 3, H, W) x (B, 3, H, W) -> distances; generator: the source of noise; share: which part of a batch x is, where
    it is not all of it: the loss is then the mean over that part. Returns a scalar, (B, C, h, w) and (B, 1, H, W).
    """
    masked = losses.masks > 0
    image = x[:, :1].expand_as(x) if masked else x
    with torch.set_grad_enabled(not frozen_encoder):
        z = autoencoder.posterior(vae.encode(image))[0].float()
    share = share or distributed.Share(len(x), slice(None), 1.0)
    noise = losses.latent_noise * torch.randn((share.whole, *z.shape[1:]), generator=generator)[share.rows].to(z)
    y = vae.decode(z + noise * distributed.std(z.detach())).sample.float()
    grey = autoencoder.grey(y, masked)
    shown = grey.expand_as(x) if masked else y
    value = F.l1_loss(y[:, :2], x[:, :2]) if masked else F.l1_loss(y, x)
    if losses.perceptual > 0:
        value = value + losses.perceptual * perceptual(image, shown.clamp(-1.2, 1.2)).float().mean()
    if masked:
        value = value + losses.masks * masks.loss(SHARPNESS * y[:, 2], (x[:, 2] > 0).float())
    return value, z, grey


def train(
    vae,
    part: str,
    draw: Callable[[torch.Generator], torch.Tensor],
    losses: Losses,
    perceptual: Callable,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    section: str,
    checkpoint: Path,
    every: int = 100,
    precision: Precision = "fp32",
    tick: loop.Tick = lambda step, loss, rate: None,
) -> int:
    """Train `vae` in place to rebuild the batches (B, 3, H, W) in [-1, 1] that `draw` makes of a generator.

    part: "decoder" keeps the latent space that a UNet knows, "full" moves it; perceptual: as for `rebuild`. Written to
    `checkpoint` `every` so many steps; a run that was killed goes on from there to the same result. Of several
    processes each takes its share of every batch, and draws whole batches in turn. Returns the floating-point
    operations. Raises UserError, naming `section` of the parameters, when the loss stops being finite.
    """
    device = next(vae.parameters()).device
    autoencoder.mark_masked(vae, losses.masks > 0)
    # The pieces by their names in diffusers: both kinds have `decoder`, the KL kind a convolution before it.
    names = ("decoder.", "post_quant_conv.") if part == "decoder" else ("",)
    vae.requires_grad_(False)
    weights = [w.requires_grad_(True) for name, w in vae.named_parameters() if name.startswith(names)]
    with streams.weights(seed, section, "discriminator"):
        discriminator = patch_discriminator.Discriminator().to(device)
    learners = {
        "optimizer": torch.optim.AdamW(weights, lr=learning_rate, betas=(0.5, 0.99), weight_decay=0.0),
        "discriminator_optimizer": torch.optim.AdamW(
            discriminator.parameters(), lr=1e-3, betas=(0.5, 0.99), weight_decay=0.0
        ),
        "vae": vae,
        "discriminator": discriminator,
    }
    optimizer, discriminator_optimizer = learners["optimizer"], learners["discriminator_optimizer"]
    first, operations = 0, loop.Operations()
    if state := loop.load_checkpoint(checkpoint):
        for name, learner in learners.items():
            learner.load_state_dict(state[name])
        first = state["step"]
        operations.load_state_dict(state["operations"])

    @distributed.ahead
    def batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = streams.generator(seed, section, "step", step)
        with torch.no_grad():
            return draw(generator).cpu(), generator.get_state()

    generator = torch.Generator()

    def judged(step: int) -> bool:
        return losses.adversarial > 0 and step >= losses.adversarial_from * steps

    def update(step: int) -> float:
        loop.set_rate(optimizer, learning_rate * loop.warm_cosine(step, steps, max(min(10, steps), steps // 40)))
        x, state = batches(step)
        share = distributed.share(len(x))
        x = x[share.rows].to(device)
        generator.set_state(state)
        with autocast(device, precision):
            value, z, grey = rebuild(
                vae, x, losses, perceptual, generator, frozen_encoder=part == "decoder", share=share
            )
            if judged(step):
                value = value + losses.adversarial * patch_discriminator.generator_loss(discriminator, grey)
        if losses.latents > 0:
            mean, std = distributed.mean(z, dim=(0, 2, 3)), distributed.std(z, dim=(0, 2, 3))
            value = value + losses.latents * (mean.square() + (std - 1).square()).mean()
        value = share.weight * value
        loop.descend(optimizer, value, max_grad_norm=1.0)
        loss = distributed.total(value.item())
        if not np.isfinite(loss):
            raise UserError(
                f"training the autoencoder diverged: the loss of step {step} is {loss}; lower "
                f"{section}.learning_rate (now {learning_rate}) or set runtime.precision to fp32"
            )
        if judged(step):
            with autocast(device, precision):
                theirs = share.weight * patch_discriminator.discriminator_loss(discriminator, x[:, :1], grey)
            loop.descend(discriminator_optimizer, theirs)
        return loss

    vae.train()
    for step in range(first, steps):
        loss = operations.run(functools.partial(update, step), "judged" if judged(step) else "")
        tick(step, loss, optimizer.param_groups[0]["lr"])
        if (step + 1) % every == 0 or step + 1 == steps:
            state = {name: learner.state_dict() for name, learner in learners.items()}
            loop.save_checkpoint(checkpoint, state | {"step": step + 1, "operations": operations.state_dict()})
    vae.requires_grad_(False).eval()
    return operations.total


def adapt(
    vae,
    images: np.ndarray,
    part: str,
    p: Adapt,
    perceptual: Callable,
    *,
    lesions: np.ndarray | None = None,
    seed: int,
    checkpoint: Path,
    precision: Precision = "fp32",
    tick: loop.Tick = lambda step, loss, rate: None,
) -> None:
    """Train `vae` in place on random, half of them mirrored crops of uint8 (N, H, W); the rest as for `train`.

    lesions: masks of the same shape, 255 inside; with them, and p.mask_weight above 0, it learns to draw these.
    """
    crop = min(CROP_PX, *images.shape[1:])
    masked = lesions is not None and p.mask_weight > 0
    parts, marked = ([images, lesions], masks.marked(lesions)) if masked else ([images], None)

    def draw(generator: torch.Generator) -> torch.Tensor:
        return autoencoder.to_tensor(*masks.crops(parts, p.batch_size, crop, generator, marked))

    losses = Losses(p.perceptual_weight, p.adversarial_weight, masks=p.mask_weight * masked, latent_noise=LATENT_NOISE)
    train(
        vae, part, draw, losses, perceptual, steps=p.steps, learning_rate=p.learning_rate, seed=seed, section="adapt",
        checkpoint=checkpoint, precision=precision, tick=tick,
    )  # fmt: skip
