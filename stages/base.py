"""Bring the model that fine-tuning starts from into models/base: a copy of a local directory, or of a hub's model."""

from pathlib import Path
from typing import Annotated

import typer

from stages import _cli, _files
from synthmri import params
from synthmri.generators import latent_diffusion


def main(out: Annotated[Path, typer.Option(help="folder of the pipeline")]):
    """Copy finetune.base_model, checked and in half precision."""
    _cli.start()
    p = params.read(_cli.PARAMS, "finetune", latent_diffusion.Finetune)
    pipe = latent_diffusion.load(p.base_model, revision=p.base_revision)
    with _files.replacing(out) as folder:
        _files.save_pipeline(pipe, folder, half=True)


if __name__ == "__main__":
    _cli.run(main)
