"""Bring the model that fine-tuning starts from into models/base: a copy of a local directory, or of a hub's model."""

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer

from stages import _cli, _files
from synthmri import params
from synthmri.generators import finetuning, latent_diffusion


def main(out: Annotated[Path, typer.Option(help="folder of the pipeline")]):
    """Copy finetune.base_model, checked; in half precision where no weight changes by that, else in float32."""
    _cli.start()
    p = params.read(_cli.PARAMS, "finetune", finetuning.Finetune)
    pipe = latent_diffusion.load(p.base_model)
    weights = [weight for part in (pipe.unet, pipe.vae) for weight in part.state_dict().values()]
    half = all(torch.equal(weight.half().to(weight.dtype), weight) for weight in weights)  # as its files were
    with _files.replacing(out) as folder:
        _files.save_pipeline(pipe, folder, half=half)
        effort = Path(p.base_model) / _files.PRETRAINING
        if effort.is_file():
            shutil.copyfile(effort, folder / effort.name)


if __name__ == "__main__":
    _cli.run(main)
