"""U-Net GAN (Schönfeld, Schiele and Khoreva 2020, arXiv 2002.12655).

The discriminator is a U-Net: its encoder judges the whole picture, its decoder every pixel, and CutMix pictures teach
it consistency. Generator and encoder are those of `dcgan` in place of the paper's, which are BigGAN's: what sets this
row of the comparison apart from that one is the paper's idea alone. With residual blocks, an encoder that summed over
places, and few steps, it drew one shape for all. Changed as well: a decoder of half the encoder's width; the
relativistic loss with both gradient penalties (Huang 2024, arXiv 2501.05441); differentiable augmentation and averaged
weights.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from synthmri.generators.gan import adversarial, networks


class Params(networks.Params):
    """Section `baselines.unet_gan`."""

    cutmix: float = Field(ge=0, le=1)


class Discriminator(nn.Module):
    """(B, 1, S, S) -> logits of the whole (B,) and of every pixel (B, 1, S, S).

    The decoder has half the encoder's channels at each resolution: as wide, it would cost three times the encoder.
    """

    def __init__(self, p: Params, size: int):
        super().__init__()
        widths = networks.widths(p, size)
        self.encoder = networks.Discriminator(p, size)
        skips = widths[-2::-1]
        below = [widths[-1], *(width // 2 for width in skips)]
        self.up = nn.ModuleList([nn.Conv2d(a + b, b // 2, 3, 1, 1) for a, b in zip(below, skips, strict=False)])
        self.pixels = nn.Conv2d(below[-1], 1, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        levels = self.encoder.levels(x)
        h = levels.pop()
        whole = self.encoder.judgement(h)
        for convolution in self.up:
            h = F.leaky_relu(convolution(torch.cat([_doubled(h), levels.pop()], dim=1)), 0.2)
        return whole.float(), self.pixels(_doubled(h)).float()


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")


def cutmix_mask(size: int, generator: torch.Generator) -> torch.Tensor:
    """(1, 1, S, S) of 1 (real) and 0 (generated): a rectangle of random place and area, either way round (Yun 2019)."""
    share = torch.rand((), generator=generator).item()
    edge = round(size * (1 - share) ** 0.5)
    top, left = torch.randint(0, size - edge + 1, (2,), generator=generator).tolist()
    mask = torch.ones(1, 1, size, size)
    mask[..., top : top + edge, left : left + edge] = 0
    return 1 - mask if torch.rand((), generator=generator) < 0.5 else mask


def verdict(whole: torch.Tensor, pixels: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """(B,) of logits (B,) and (B, 1, S, S): their expected squared slope over random `signs` (1, S, S) of 1 and -1 is
    that of the whole plus the mean of those of the pixels, so that one gradient serves the penalty of both heads."""
    return whole + pixels.shape[-1] * (signs * pixels).mean(dim=(1, 2, 3))


def beside_mixed(mask: torch.Tensor, mixed: torch.Tensor, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Eq. 6, of pixels: those of a mixture that are real (mask 1) beside generated ones, and the others beside real."""
    return adversarial.relativistic_loss(mask * mixed + (1 - mask) * real, mask * fake + (1 - mask) * mixed)


class UNetGAN(adversarial.Adversarial):
    """Both heads of the discriminator by the relativistic loss: pixels beside pixels in the same place."""

    name, Params, discriminator = "unet_gan", Params, Discriminator

    @staticmethod
    def discriminator_loss(judge, real, fake, step, generator, p):
        x, y = adversarial.penalised(real, step), adversarial.penalised(fake, step)
        (whole_real, pixels_real), (whole_fake, pixels_fake) = judge(x), judge(y)
        # Eqs. 3 and 4: the whole and every pixel.
        loss = adversarial.relativistic_loss(whole_real, whole_fake)
        loss = loss + adversarial.relativistic_loss(pixels_real, pixels_fake)
        signs = torch.randint(0, 2, pixels_real.shape[1:], generator=generator).to(x) * 2 - 1
        verdicts = [
            (verdict(whole, pixels, signs), images)
            for whole, pixels, images in ((whole_real, pixels_real, x), (whole_fake, pixels_fake, y))
        ]
        loss = loss + adversarial.penalty(step, *verdicts)
        # The share of steps with CutMix grows over the first half of the training, as in the paper; there is none in
        # those whose cost is counted.
        share = p.cutmix * min(1.0, 2 * step / p.steps) * (step >= adversarial.PENALTY_STEPS)
        if torch.rand((), generator=generator) < share:
            mask = cutmix_mask(real.shape[-1], generator).to(real)
            whole, pixels = judge(mask * real + (1 - mask) * fake)
            loss = loss + adversarial.relativistic_loss(whole_real, whole)
            loss = loss + beside_mixed(mask, pixels, pixels_real, pixels_fake)
            # Eq. 8: the verdict on the mixture is the mixture of the verdicts.
            loss = loss + F.mse_loss(pixels, mask * pixels_real + (1 - mask) * pixels_fake)
        return loss

    @staticmethod
    def generator_loss(judge, real, fake):
        with torch.no_grad():
            whole_real, pixels_real = judge(real)
        whole, pixels = judge(fake)
        return adversarial.relativistic_loss(whole, whole_real) + adversarial.relativistic_loss(
            pixels, pixels_real
        )  # eq. 5
