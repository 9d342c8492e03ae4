"""DCGAN (Radford, Metz and Chintala 2016, arXiv 1511.06434), with as many more layers as the image size asks for.

The paper's convolutions without pooling, batch normalisation and ReLU in the generator, leaky ReLU in the
discriminator. Changed from it: bilinear doubling and a convolution in place of transposed convolutions, which
weave (Odena 2016, doi 10.23915/distill.00003); no batch normalisation in the discriminator, and the relativistic loss
with both gradient penalties (Huang 2024, arXiv 2501.05441), under which training converges; differentiable
augmentation and averaged weights.
"""

import torch

from synthmri.generators.gan import adversarial, networks


class Params(networks.Params):
    """Section `baselines.dcgan`."""


class DCGAN(adversarial.Adversarial):
    """Both players by the relativistic loss."""

    name, Params, discriminator = "dcgan", Params, networks.Discriminator

    @staticmethod
    def discriminator_loss(judge, real, fake, step, generator, p):
        x, y = adversarial.penalised(real, step), adversarial.penalised(fake, step)
        theirs, ours = judge(x).float(), judge(y).float()
        return adversarial.relativistic_loss(theirs, ours) + adversarial.penalty(step, (theirs, x), (ours, y))

    @staticmethod
    def generator_loss(judge, real, fake):
        with torch.no_grad():
            theirs = judge(real).float()
        return adversarial.relativistic_loss(judge(fake).float(), theirs)
