"""How each model came on while it was trained: FD and KID of images of the same seeds, and the images themselves.

Against the validation slices: the snapshot that is kept was chosen on them, so the test people take no part.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from stages import _cli, _files
from synthmri import imageset, params
from synthmri.evaluation import distances, features, scorecard, stopping
from synthmri.reporting import plots
from synthmri.training.snapshots import Progression, epochs_shown

SHOWN = 6  # seeds in a strip


def main(
    snapshots: Annotated[Path, typer.Option(help="folder of NPY files, (points, N, H, W), one a model")],
    efforts: Annotated[Path, typer.Option(help="folder of JSON files, one a model, for the images seen")],
    train: Annotated[Path, typer.Option(help="ImageSet of the training slices, which may be copied")],
    validation: Annotated[Path, typer.Option(help="ImageSet of the validation slices")],
    validation_features: Annotated[Path, typer.Option(help="features of these")],
    finetuning: Annotated[Path, typer.Option(help="CSV to write: the latent diffusion model, by epoch")],
    all_models: Annotated[Path, typer.Option(help="CSV to write: every model, by images seen")],
    picture: Annotated[Path, typer.Option(help="PNG to write: the curves")],
    strips: Annotated[Path, typer.Option(help="folder of PNGs to write: the same seeds over the training")],
) -> None:
    """N is small (progression.n), so these distances are larger than the table's and compare among themselves alone."""
    runtime = _cli.start()
    p = params.read(_cli.PARAMS, "evaluate", scorecard.Evaluate)
    judge, val = scorecard.JUDGE, _files.read_features(validation_features, None)[scorecard.JUDGE]
    fd, kid = scorecard.NAMES[judge], f"kid_{judge}"
    progress = params.read(_cli.PARAMS, "progression", Progression)
    rows, stacks = [], {}
    for file in _cli.progress(sorted(snapshots.glob("*.npy")), "progressions"):
        stack = np.load(file)
        stacks[file.stem] = stack
        values = features.extract(judge, stack.reshape(-1, *stack.shape[2:]), batch=p.batch_size, device=runtime.device)
        effort = _files.read_json(efforts / f"{file.stem}.json")
        shares = np.linspace(0, 1, len(stack))
        if "epochs" in effort:  # drawn between two of them, and it may have stopped before the last
            epochs = epochs_shown(round(effort["epochs"]), progress.points)[: len(stack)]
            shares = np.array(epochs) / max(1, effort["epochs_trained"])
        values = values.reshape(len(stack), stack.shape[1], -1)
        if file.stem == "latent_diffusion":
            standing = _standing(stack, values, train, validation, val)
        for point, part in enumerate(values):
            rows.append(
                {
                    "model": file.stem,
                    "images_seen": round(shares[point] * effort["images_seen"]),
                    fd: float(f"{distances.frechet_distance(part, val):.6g}"),
                    kid: float(f"{distances.kernel_distance(part, val):.6g}"),
                }
            )
    table = pd.DataFrame(rows)
    ours = table[table.model == "latent_diffusion"].reset_index(drop=True)
    effort = _files.read_json(efforts / "latent_diffusion.json")
    epochs = epochs_shown(round(effort["epochs"]), progress.points)[: len(ours)]
    ours = ours.assign(epoch=epochs, kept=[int(epoch == effort["epoch_kept"]) for epoch in epochs])
    for name in ("recall", "coverage", "memorised"):
        ours[name] = [float(f"{getattr(each, name):.6g}") for each in standing]
    ours = ours[["epoch", "images_seen", fd, kid, "recall", "coverage", "memorised", "kept"]]
    groups = list(table.groupby("model"))
    chart = plots.curve(
        [group.images_seen for _, group in groups], [group[fd] for _, group in groups],
        [name for name, _ in groups], x_label="training images seen", y_label=f"{fd} to validation people",
        title=f"Progression over training (N = {stack.shape[1]}); ring: the snapshot of fine-tuning that is kept",
        log_y=True, ring=tuple(ours.loc[ours.kept == 1, ["images_seen", fd]].iloc[0]),
    )  # fmt: skip
    with (
        _files.replacing(finetuning) as first,
        _files.replacing(all_models) as second,
        _files.replacing(picture) as curve,
        _files.replacing(strips) as folder,
    ):
        ours.to_csv(first, index=False)
        table.to_csv(second, index=False)
        plots.save(chart, curve)
        folder.mkdir()
        for name, stack in stacks.items():
            some = stack[:, :SHOWN]
            seen = table[table.model == name].images_seen
            captions = [f"{count} seen" for count in seen for _ in range(some.shape[1])]
            sheet = plots.contact_sheet(some.reshape(-1, *some.shape[2:]), columns=some.shape[1], captions=captions)
            plots.save(sheet, folder / f"{name}.png")


def _standing(
    stack: np.ndarray, values: np.ndarray, train: Path, validation: Path, val_features: np.ndarray
) -> list[stopping.Snapshot]:
    """What fine-tuning judged its snapshots by."""
    train_images, val = imageset.read(train).images, imageset.read(validation).images
    honest = stopping.honest(val, train_images)
    return [
        stopping.snapshot(images, each, train_images, val_features, honest)
        for images, each in zip(stack, values, strict=True)
    ]


if __name__ == "__main__":
    _cli.run(main)
