"""Draw simulated slices, many and once, for all that is pretrained on them; not part of `dvc repro`.

Resumable: pieces of PIECE slices, each of a seed of its own, wait beside the output until all are there.
"""

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from stages import _cli, _files, _workers
from synthmri import imageset, params, streams
from synthmri.errors import UserError
from synthmri.simulation import pretraining

PIECE = 500


def main(
    n: Annotated[int, typer.Option(min=PIECE, help=f"slices, rounded up to a multiple of {PIECE}")] = 100_000,
    out: Annotated[Path, typer.Option(help="folder of the ImageSet")] = Path(".ckpt/heads"),
) -> None:
    """Slices by pretrain.unet.slices of pretrained/params.yaml, with the words of their prompts in the manifest."""
    _cli.start()
    run = params.read(_cli.PRETRAINING, "pretrain", pretraining.Pretrain)
    key = _files.digest(run.seed, run.image_size, run.unet.slices.model_dump())
    pieces = out.with_name(f"{out.name}-{key}")
    pieces.mkdir(parents=True, exist_ok=True)
    numbers = range(-(-n // PIECE))
    missing = [number for number in numbers if not (pieces / f"{number}.npz").is_file()]
    drawn = _workers.ordered(
        partial(_piece, run=run, folder=pieces.absolute()), missing, *_workers.shared(threads=1),
        name=lambda number: f"slices {number * PIECE} to {(number + 1) * PIECE}",
    )  # fmt: skip
    for _ in _cli.progress(drawn, f"pieces of {PIECE} slices", len(missing)):
        pass
    manifest = pd.concat([_words(pieces, number) for number in numbers])
    shape, meta = (run.image_size, run.image_size), {"simulated": True} | drawn_by(run)
    with _files.replacing(out) as folder:
        imageset.write_pieces(folder, (_images(pieces, number) for number in numbers), shape, manifest, meta)
    shutil.rmtree(pieces)


def _images(pieces: Path, number: int) -> np.ndarray:
    with np.load(pieces / f"{number}.npz", allow_pickle=False) as piece:
        return piece["images"]


def _words(pieces: Path, number: int) -> pd.DataFrame:
    with np.load(pieces / f"{number}.npz", allow_pickle=False) as piece:
        return pd.DataFrame({name: piece[name] for name in piece.files if name != "images"})


def drawn_by(run: pretraining.Pretrain) -> dict:
    """What the slices depend on."""
    return {"seed": run.seed, "image_size": run.image_size, "slices": run.unet.slices.model_dump(mode="json")}


def drawn(folder: Path, run: pretraining.Pretrain) -> imageset.ImageSet:
    """Open what was drawn. Raises UserError where it is missing, or was drawn by other settings."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; `synthmri draw` draws the slices that all models are pretrained on")
    heads = imageset.read(folder)
    if any(heads.meta.get(key) != value for key, value in drawn_by(run).items()):
        raise UserError(
            f"{folder} was drawn by other settings than pretrain.seed, .image_size and .unet.slices now are; draw anew "
            f"(`synthmri draw --out {folder}`), or set them back"
        )
    return heads


def _piece(number: int, *, run: pretraining.Pretrain, folder: Path) -> None:
    """Draw one piece and keep it: a name that is there is a piece that is whole."""
    import torch

    torch.set_num_threads(1)
    heads = pretraining.draw_heads(run, PIECE, streams.generator(run.seed, "drawn slices", number))
    with _files.replacing(folder / f"{number}.npz") as part, open(part, "wb") as file:
        np.savez(
            file,
            images=heads.images,
            **{name: heads.manifest[name].to_numpy(dtype=str) for name in heads.manifest},
        )
        file.flush()
        os.fsync(file.fileno())  # without it a power cut leaves a name that is there and empty


if __name__ == "__main__":
    _cli.run(main)
