"""How well an autoencoder rebuilds slices it has never seen: real ones where REAL_MRI names them, and simulated ones.

python -m benchmarks.reconstruction --model pretrained/base
"""

import json
import os
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stages import common
from synthmri import autoencoder, features, imageset, params, plots, readers, scores, slices


def real_sets(root: Path, data: slices.Data) -> dict[str, np.ndarray]:
    """Every 5th axial slice of open-ms in every contrast and every 20th picture of t1ce-tumor, preprocessed."""
    wide = data.model_copy(update={"contrasts": (), "slice_step": 5})
    found = {}
    for name in ("open-ms", "t1ce-tumor"):
        sources, _ = readers.find(root / name)
        parts = []
        for source in sources if name == "open-ms" else sources[::20]:
            scan = readers.read(source)
            made = (
                slices.from_pictures(scan.data, wide)
                if scan.spacing_mm is None
                else slices.from_volume(scan.data, scan.spacing_mm, wide)
            )
            parts.append(made.images)
        found[name] = np.concatenate(parts)
    return found


def main(
    model: Annotated[Path, typer.Option(help="pipeline in Stable Diffusion format")] = Path("pretrained/base"),
    simulated: Annotated[Path, typer.Option(help="ImageSet of simulated slices, if there is one")] = Path(
        "data/slices/test"
    ),
    out: Annotated[Path, typer.Option(help="JSON to write")] = Path("benchmarks/results/reconstruction.json"),
    show: Annotated[
        Path | None, typer.Option(help="folder for pictures of the real slices; keep it out of git")
    ] = None,
):
    """Mean PSNR, SSIM and LPIPS of slices against themselves through the autoencoder."""
    common.start()
    data = params.read(common.PARAMS, "data", slices.Data)
    root = os.environ.get("REAL_MRI")
    sets = real_sets(Path(root), data) if root else {}
    if (simulated / "images.npy").is_file():
        sets["simulated"] = np.asarray(imageset.read(simulated).images)
    vae = autoencoder.load(model / "vae")
    lpips, rows = features.lpips_model(), {}
    for name, images in sets.items():
        decoded = autoencoder.reconstruct(vae, images, batch=16, bf16=True)
        values = scores.resemblance(decoded, images, lpips)
        rows[name] = {"n": len(images)} | {key: round(value, 4) for key, value in values.items()}
        print(name, rows[name])
        if show:
            show.mkdir(parents=True, exist_ok=True)
            some = np.linspace(0, len(images) - 1, 8).astype(int)
            pair = np.concatenate([images[some], decoded[some]])
            plots.save(plots.contact_sheet(pair, columns=8), show / f"reconstruction_{name}.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    common.run(main)
