"""The models, one a file: how each is built, trained, loaded and drawn from.

A further model is a class in a file of its own and one line here; docs/architecture.md shows a small one.
"""

import importlib

GENERATORS = {
    "latent_diffusion": "LatentDiffusion",
    "vae": "VAE",
    "dcgan": "DCGAN",
    "ddpm": "DDPM",
    "unet_gan": "UNetGAN",
}


def find(name: str) -> type:
    """The class (`base.Generator`) of the model `name`; only its own file is imported.

    Raises UserError for a name that is none.
    """
    from synthmri.errors import UserError

    if name not in GENERATORS:
        raise UserError(f"{name!r} is no model; those here are {', '.join(GENERATORS)}")
    return getattr(importlib.import_module(f"synthmri.generators.{name}"), GENERATORS[name])
