"""Bring the model that fine-tuning starts from into models/base: a copy of a local directory, or of a hub's model."""

from pathlib import Path
from typing import Annotated

import typer

from stages import common
from synthmri import ldm, params


def main(out: Annotated[Path, typer.Option(help="folder of the pipeline")]):
    """Copy finetune.base_model, checked and in half precision."""
    common.start()
    p = params.read(common.PARAMS, "finetune", ldm.Finetune)
    pipe = ldm.load(p.base_model, revision=p.base_revision)
    with common.replacing(out) as folder:
        common.save_pipeline(pipe, folder, half=True)


if __name__ == "__main__":
    common.run(main)
