"""How far simulated slices are from real ones: distances by two extractors, and how well a classifier tells them apart.

REAL_MRI=folder python -m benchmarks.heads --before COMMIT     # of a commit, for comparison, drawn in the same run
python -m benchmarks.heads --table                             # the table for the docs

Each set of real slices, preprocessed as the pipeline does it, is compared with as many slices of its contrast and
planes that the UNet's pretraining would draw. The classifier is a logistic regression on the extractors' frozen
features; people (of t1ce-tumor, which names none: blocks of file numbers) and heads are whole in one fold. 0.5 would be
chance.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks import measure
from stages import _cli
from synthmri import imageset, params
from synthmri.errors import UserError
from synthmri.evaluation import distances, features
from synthmri.reporting import plots
from synthmri.scans import read, slicing
from synthmri.simulation import pretraining, slices
from synthmri.simulation.atlas import load_atlas

SEED = 700_000  # of the heads; training draws from the seeds pretrain.seed + 0 to 3
EXTRACTORS = ("alexnet", "effnet")
ALL = {"axial": 1.0, "coronal": 1.0, "sagittal": 1.0}
# name: folder below REAL_MRI, contrast, planes, share of people with a mass
SETS = {
    "open-ms FLAIR": ("open-ms", "FLAIR", {"axial": 1.0}, 0.0),
    "open-ms T1w": ("open-ms", "T1w", {"axial": 1.0}, 0.0),
    "open-ms T2w": ("open-ms", "T2w", {"axial": 1.0}, 0.0),
    "lgg-flair": ("lgg-flair", "FLAIR", {"axial": 1.0}, 1.0),
    "t1ce-tumor": ("t1ce-tumor", "T1ce", ALL, 1.0),
}
CLASSES = ("tumour", "none", "meningioma", "glioma", "pituitary")
PATIENT = 12  # pictures of t1ce-tumor that are about one patient's

# Run in an older commit, whose heads have no module `slices`: its own slices for pretraining, and what each took.
OLDER = """
import sys, time, numpy as np, torch
from benchmarks import base
from synthmri import params
from synthmri.simulation import pretraining
torch.set_num_threads(1)
run = params.read("pretrained/params.yaml", "pretrain", pretraining.Pretrain)
base.simulated_slices(run, 1, 1)
start = time.process_time()
images, prompts = base.simulated_slices(run, int(sys.argv[1]), int(sys.argv[2]))
np.savez(sys.argv[3], images=images, prompts=prompts, seconds=time.process_time() - start)
"""


def real_slices(root: Path, name: str, most: int, data: slicing.Data) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, H, W) of one set, N <= most at even steps, and the person (N,) that each is of."""
    folder, contrast, _, _ = SETS[name]
    sources = [s for s in read.find(root / folder, CLASSES)[0] if folder != "open-ms" or s.contrast == contrast]
    if len(sources) > 2 * most:  # pictures
        sources = [sources[i] for i in imageset.evenly(len(sources), most)]
    whole = data.model_copy(update={"contrasts": (), "min_head_fraction": 0.0})
    images, people = [], []
    for number, source in enumerate(sources):
        scan = read.read(source)
        made = (
            slicing.from_pictures(scan.data, whole)
            if scan.spacing_mm is None
            else slicing.from_volume(scan.data, scan.spacing_mm, data)
        )
        images.append(made.images)
        people += [source.subject or f"block {number // PATIENT}"] * len(made.images)
    images = np.concatenate(images)
    chosen = imageset.evenly(len(images), most)
    return images[chosen], np.array(people)[chosen]


def simulated_slices(atlas, p: slices.Slices, name: str, n: int, depth_mm) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, H, W) of the contrast and planes of a set, and the head (n,) that each is of."""
    _, contrast, planes, tumours = SETS[name]
    scanner = p.scanner.model_copy(update={"sequences": {contrast: p.scanner.sequences[contrast]}})
    change = dict(scanner=scanner, planes=planes, tumours=tumours, stripped=0.0, levels=3, views=1, depth_mm=depth_mm)
    batch = slices.draw(atlas, p.model_copy(update=change), n, 256, torch.Generator().manual_seed(SEED))
    return imageset.to_uint8(batch.images.numpy()), batch.table["head"].to_numpy()


def older_slices(commit: str, n: int, folder: Path) -> tuple[np.ndarray, list[str], float]:
    """uint8 (n, H, W) and prompts of another commit's generator, and milliseconds of one core a slice."""
    archive = subprocess.run(["git", "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    command = [sys.executable, "-c", OLDER, str(n), str(SEED), "drawn.npz"]
    subprocess.run(command, cwd=folder, check=True, env=os.environ | {"PYTHONPATH": str(folder)})
    drawn = np.load(folder / "drawn.npz")
    return drawn["images"], drawn["prompts"].tolist(), 1000 * float(drawn["seconds"]) / n


def told_apart(real: np.ndarray, made: np.ndarray, people: np.ndarray, heads: np.ndarray, folds: int = 5) -> float:
    """Balanced accuracy of a logistic regression on features (N, D) and (M, D), cross-validated by person and head."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values, truth = np.concatenate([real, made]), np.repeat([1, 0], [len(real), len(made)])
    groups = [f"person {person}" for person in people] + [f"head {head}" for head in heads]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=200))
    found = cross_val_predict(model, values, truth, groups=groups, cv=GroupKFold(folds))
    return float(balanced_accuracy_score(truth, found))


def compared(real: np.ndarray, people: np.ndarray, sets: dict[str, tuple]) -> dict[str, dict[str, float]]:
    """Distances and accuracies of sets of simulated slices, each (images, heads), against one of real ones."""
    rows = {name: {"n": len(images)} for name, (images, _) in sets.items()}
    for extractor in EXTRACTORS:
        x = features.extract(extractor, real)
        for name, (images, heads) in sets.items():
            y = features.extract(extractor, images)
            rows[name][f"fd_{extractor}"] = round(distances.frechet_distance(y, x), 2)
            rows[name][f"accuracy_{extractor}"] = round(told_apart(x, y, people, heads), 3)
    return rows


def milliseconds(atlas, p: slices.Slices, n: int) -> float:
    """Processor time of one slice of 256 px, amortised over `n`, on one core."""
    slices.draw(atlas, p, 1, 256, torch.Generator().manual_seed(1))
    start = time.process_time()
    slices.draw(atlas, p, n, 256, torch.Generator().manual_seed(SEED))
    return 1000 * (time.process_time() - start) / n


def table() -> str:
    """What benchmarks/results/heads.json says, as Markdown."""
    found = json.loads((measure.RESULTS / "heads.json").read_text(encoding="utf-8"))
    lines = [
        "| real slices | N | FD AlexNet, before | now | FD EffNet, before | now | told apart, before | now |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in SETS:
        then, now = (found[when].get(name, {}) for when in ("before", "now"))
        cells = [name, now["n"]]
        for key in ("fd_alexnet", "fd_effnet", "accuracy_effnet"):
            cells += [then.get(key, ""), now[key]]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main(
    before: Annotated[str, typer.Option(help="commit whose heads are judged too")] = "",
    n: Annotated[int, typer.Option(min=20, help="slices of each set")] = 150,
    sheets: Annotated[Path | None, typer.Option(help="folder for real beside simulated; not for git")] = None,
    table_only: Annotated[bool, typer.Option("--table", help="only print the table of what is measured")] = False,
):
    """Write benchmarks/results/heads.json."""
    if table_only:
        print(table())
        return
    root = os.environ.get("REAL_MRI")
    if not root or not all((Path(root) / folder).is_dir() for folder, *_ in SETS.values()):
        folders = ", ".join(sorted({folder for folder, *_ in SETS.values()}))
        raise UserError(f"REAL_MRI is {root!r}; name the folder of real slices, which holds {folders}")
    _cli.start()
    torch.set_num_threads(1)
    data = params.read(_cli.PARAMS, "data", slicing.Data)
    p = params.read(_cli.PRETRAINING, "pretrain", pretraining.Pretrain).unet.slices
    atlas = load_atlas()
    found = {"before": {}, "now": {}, "milliseconds_a_slice": {}}
    older, prompts = np.zeros((0, 256, 256), np.uint8), []
    if before:
        with tempfile.TemporaryDirectory() as folder:
            older, prompts, took = older_slices(before, 3 * n, Path(folder))
        found["milliseconds_a_slice"]["before"] = round(took, 1)
    for levels, views in ((1, 1), (2, 2), (p.levels, p.views), (4, 4)):
        share = p.model_copy(update={"levels": levels, "views": views})
        found["milliseconds_a_slice"][f"{levels} levels, {views} views"] = round(milliseconds(atlas, share, 32), 1)
    for name, (folder, contrast, _, _) in SETS.items():
        real, people = real_slices(Path(root), name, n, data)
        made, heads = simulated_slices(atlas, p, name, n, data.depth_mm if folder == "open-ms" else p.depth_mm)
        sets = {"now": (made, heads)}
        if before:  # which had no T1ce
            known = contrast.replace("T1ce", "T1w")
            rows = [i for i, text in enumerate(prompts) if text.startswith(f"{known} ")][:n]
            sets["before"] = (older[rows], np.arange(len(rows)))
        for when, row in compared(real, people, sets).items():
            found[when][name] = row
            print(name, when, row, flush=True)
        if sheets:
            sheets.mkdir(parents=True, exist_ok=True)
            few = imageset.evenly(n, 20)
            plots.save(
                plots.real_against_synthetic(real[few % len(real)], made[few], title=name),
                sheets / f"{name.replace(' ', '_')}.png",
            )
    measure.write("heads", found)


if __name__ == "__main__":
    _cli.run(main)
