"""Volumes a second from NIfTI to 8-bit slices: this project's reader and slicer against the same steps in MONAI's
transforms, on one core; and what a second worker brings, where there is enough for it to do.

python -m benchmarks.preprocessing        (needs: pip install -e '.[benchmarks]')

MONAI interpolates linearly here, its default, where this project's spline is cubic; that favours MONAI.
"""

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks import measure
from stages import _cli, preprocess
from synthmri import params
from synthmri.errors import UserError
from synthmri.imageset import to_uint8
from synthmri.scans import read, slicing


def with_monai(files: list[Path], data: slicing.Data) -> int:
    """The number of slices made of the files: orientation, head mask, window, spacing, centring, quantisation."""
    from monai.transforms import (
        Compose,
        CropForeground,
        EnsureChannelFirst,
        ForegroundMask,
        LoadImage,
        Orientation,
        ResizeWithPadOrCrop,
        ScaleIntensityRangePercentiles,
        Spacing,
    )  # fmt: skip

    mm = data.field_of_view_mm / data.image_size
    low, high = data.window_percentiles
    mask = ForegroundMask(threshold="otsu", invert=True)
    prepare = Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            Orientation("RAS"),
            CropForeground(select_fn=lambda volume: mask(volume) > 0, allow_smaller=True),
            ScaleIntensityRangePercentiles(low, high, 0.0, 1.0, clip=True),
            Spacing((mm, mm, -1)),
            ResizeWithPadOrCrop((data.image_size, data.image_size, -1)),
        ]
    )
    count = 0
    for file in files:
        stack = to_uint8(np.asarray(prepare(str(file)))[0].transpose(2, 1, 0)[:: data.slice_step, ::-1, ::-1])
        count += len(stack[(stack > 25).mean((1, 2)) > data.min_head_fraction])
    return count


def main(
    raw: Annotated[Path, typer.Option(help="folder of NIfTI volumes")] = Path("data/simulated"),
    volumes: Annotated[int, typer.Option(min=4, help="how many of them")] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="how often each is read for one and for two workers")] = 20,
):
    """Write benchmarks/results/preprocessing.json."""
    _cli.start()
    torch.set_num_threads(1)
    data = params.read(_cli.PARAMS, "data", slicing.Data)
    found, _ = read.find(raw)
    sources = [source for source in found if source.contrast in data.contrasts or not data.contrasts][:volumes]
    if len(sources) < 4:
        raise UserError(f"{raw} holds {len(sources)} volumes of {data.contrasts}; 4 are needed: `dvc repro simulate`")
    files = [path for source in sources for path in source.paths]

    def own(count: int, times: int = 1) -> None:
        os.environ |= {"SYNTHMRI_WORKERS": str(count), "SYNTHMRI_CLUSTER": ""}
        for _ in preprocess._results(sources * times, data):
            pass

    alone = len(sources) / measure.seconds(lambda: own(1), repeats=2)
    one, two = (rounds * len(sources) / measure.seconds(lambda w=w: own(w, rounds), repeats=1) for w in (1, 2))
    theirs = len(sources) / measure.seconds(lambda: with_monai(files, data), repeats=2)
    measure.write(
        "preprocessing",
        {
            "ratio": alone / theirs,
            "ours": {"volumes_per_second": alone},
            "monai": {"volumes_per_second": theirs},
            "volumes": len(sources),
            "workers": {"volumes": rounds * len(sources), "one": one, "two": two, "scaling": two / one},
        },
    )


if __name__ == "__main__":
    _cli.run(main)
