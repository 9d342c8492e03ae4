"""The discriminator of patches, against the hinge loss worked out by hand."""

import torch
from torch import nn

from synthmri import streams
from synthmri.training import patch_discriminator


def test_hinge_losses_of_known_scores():
    class Known(nn.Module):
        """The same at the one scale, 1 more at the other."""

        def forward(self, x):
            return [x, x + 1]

    real, generated = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    # max(0, 1 - 2), max(0, 1 - .5); max(0, 1 - 3), max(0, 1 + 0); then 3, 1.5; -2, 1
    assert patch_discriminator.discriminator_loss(Known(), real, generated).item() == (0.25 + 0.5 + 0 + 1) / 2
    assert patch_discriminator.generator_loss(Known(), generated).item() == (1.5 + 0.5) / 2


def test_generator_loss_moves_the_picture_and_not_the_discriminator():
    discriminator = patch_discriminator.Discriminator()
    picture = torch.zeros(2, 1, 64, 64, requires_grad=True)
    patch_discriminator.generator_loss(discriminator, picture).backward()
    assert picture.grad.abs().sum() > 0
    assert all(w.grad is None and w.requires_grad for w in discriminator.parameters())


def test_the_discriminator_sees_a_patch_and_learns_texture_from_blur():
    with streams.weights(0, "critic"):
        discriminator = patch_discriminator.Discriminator()
    assert [scale.shape for scale in discriminator(torch.zeros(1, 1, 128, 128))] == [(1, 1, 16, 16), (1, 1, 8, 8)]
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3, betas=(0.5, 0.99))
    for _ in range(60):
        sharp = torch.randn(8, 1, 32, 32, generator=generator)
        loss = patch_discriminator.discriminator_loss(discriminator, sharp, nn.functional.avg_pool2d(sharp, 3, 1, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5  # 2 where nothing is told apart
