"""How each step grows with the number of slices: time, and peak memory of all its processes. And how long `dvc repro`
takes when there is nothing to do.

python -m benchmarks.scaling --sizes 1000 --sizes 100000 --steps preprocess    # joins what was measured before
python -m benchmarks.scaling --table                                           # the tables for the docs

Each step runs as the pipeline runs it, on input that is made for it alone: smooth random textures in an ellipse, 20
slices a person, as NIfTI for preprocessing. Preprocessing and features take one worker a core, of one thread. The
features that are evaluated are random numbers, which take as long; the model has drawn as many images as `test` has.
Fine-tuning encodes the slices and trains one epoch. 100,000 slices take about 20 GB of disk below --scratch.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
import yaml
from matplotlib.figure import Figure

from benchmarks import measure
from benchmarks.evaluation import textures
from stages import _cli
from synthmri import imageset, params
from synthmri.errors import UserError
from synthmri.generators import finetuning
from synthmri.reporting import plots

SLICES_A_PERSON = 20
MM = 240 / 256  # of a pixel, so that nothing is resampled
BOUND_MIB = 1536
RESULT = measure.RESULTS / "scaling.json"


def slices(n: int, seed: int, base: np.ndarray) -> np.ndarray:
    """uint8 (n, 256, 256) of a head each, at the cost of a sum: two of the base textures, shifted, in an ellipse."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:256j, -1:1:256j]
    head = (x / 0.7) ** 2 + (y / 0.85) ** 2 < 1
    out = np.empty((n, 256, 256), np.uint8)
    for image in out:
        (i, j), shifts = rng.integers(0, len(base), 2), rng.integers(0, 256, (2, 2))
        texture = np.roll(base[i], shifts[0], (0, 1)).astype(np.int16) + np.roll(base[j], shifts[1], (0, 1)) - 128
        image[:] = np.clip(texture, 30, 255) * head
    return out


def cohort(folder: Path, n: int, base: np.ndarray) -> None:
    """n slices of n / 20 people as BIDS-like NIfTI volumes."""
    import nibabel

    for person in range(n // SLICES_A_PERSON):
        place = folder / f"sub-{person:05d}/anat"
        place.mkdir(parents=True)
        volume = slices(SLICES_A_PERSON, person, base)[:, ::-1, ::-1].transpose(2, 1, 0)
        image = nibabel.Nifti1Image(volume, np.diag([MM, MM, 5, 1]))
        nibabel.save(image, place / f"sub-{person:05d}_T1w.nii")


def imagesets(folder: Path, counts: dict[str, int], base: np.ndarray) -> None:
    """An ImageSet of so many slices under each name; "samples" are a model's."""
    for part, (name, n) in enumerate(counts.items()):
        starts = range(0, n, imageset.PIECE)
        made = (slices(min(imageset.PIECE, n - start), 10**7 * (part + 1) + start, base) for start in starts)
        if name == "samples":
            columns = {"model": "random", "seed": np.arange(n).astype(str), "prompt": "", "label": ""}
        else:
            people = [f"{name}{i // SLICES_A_PERSON}" for i in range(n)]
            columns = {"subject": people, "contrast": "T1w", "plane": "axial", "label": "", "depth_mm": "60.0"}
        imageset.write_pieces(folder / name, made, (256, 256), pd.DataFrame(columns), {})


def child(arguments: list[str], folder: Path) -> dict[str, float]:
    """Seconds of `python -m ...` in `folder`, and the peak MiB of it and its children together.

    Looked at five times a second. Memory is the proportional set size: what processes share counts once, and pages of
    mapped files count too.
    """
    import psutil

    start, peak = time.perf_counter(), 0
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with tempfile.TemporaryFile("w+") as log:
        process = psutil.Popen([sys.executable, "-m", *arguments], cwd=folder, stdout=log, stderr=log, env=environment)
        while process.poll() is None:
            total = 0
            for each in [process, *children(process)]:
                try:
                    total += each.memory_full_info().pss
                except psutil.Error:  # it has just ended
                    continue
            peak = max(peak, total)
            time.sleep(0.2)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{' '.join(arguments)} failed: {log.read()[-2000:]}")
    return {"seconds": round(time.perf_counter() - start, 2), "peak_mib": round(peak / 2**20)}


def children(process) -> list:
    import psutil

    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def parameters(folder: Path, device: str, threads: int | None = None) -> None:
    """params.yaml as committed, but for the machine and for what so many slices need."""
    tree = yaml.safe_load(_cli.PARAMS.read_text(encoding="utf-8"))
    tree["runtime"] |= {"device": device} | ({"threads": threads} if threads else {})
    tree["data"] |= {"source": "raw", "label_from": "names", "contrasts": [], "depth_mm": [0, 400], "image_size": 256}
    tree["evaluate"] |= {"min_images": 10}
    tree["finetune"] |= {"epochs": 1, "base_model": str(Path(tree["finetune"]["base_model"]).resolve())}
    (folder / _cli.PARAMS.name).write_text(yaml.safe_dump(tree), encoding="utf-8")


def splits(n: int) -> dict[str, int]:
    """Of so many slices nobody tests on a quarter: one in twenty, but a person at least."""
    test = max(SLICES_A_PERSON, n // 20)
    return {"train": n - 2 * test, "val": test, "test": test}


def preprocess(n: int, folder: Path, device: str, base: np.ndarray) -> dict[str, float]:
    parameters(folder, device, threads=1)
    cohort(folder / "raw", n, base)
    arguments = ["--raw", "raw", "--out", "slices", "--metrics", "data.json", "--sheet", "slices.png"]
    return child(["stages.preprocess", *arguments], folder)


def features(n: int, folder: Path, device: str, base: np.ndarray) -> dict[str, float]:
    parameters(folder, device, threads=1)
    imagesets(folder, {"slices": n}, base)
    return child(["stages.features", "--images", "slices", "--extractors", "extractors", "--out", "features"], folder)


def evaluate(n: int, folder: Path, device: str, base: np.ndarray) -> dict[str, float]:
    parameters(folder, device, threads=1)
    counts = splits(n)
    counts["samples"] = counts["test"]
    imagesets(folder, counts, base)
    arguments = ["stages.evaluate", "--generator", "dcgan", "--model", "none"]
    for option, name in (("train", "train"), ("validation", "val"), ("test", "test"), ("samples", "samples")):
        numbers(folder / f"features/{name}", counts[name])
        arguments += [f"--{option}", name, f"--{option}-features", f"features/{name}"]
    arguments += ["--metrics", "m.json", "--rounds", "m.csv", "--picture", "real.png", "--closest", "closest.png"]
    arguments += ["--pairs-table", "closest.csv"]
    return child(arguments, folder)


def numbers(folder: Path, n: int) -> None:
    """Random features of n images by both extractors, in the shape of theirs."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(list(folder.name.encode()))
    for name, width in (("alexnet", 256), ("effnet", 1280)):
        with imageset.growing(folder / f"{name}.npy", (width,), np.float32) as append:
            for start in range(0, n, 4096):
                append(rng.random((min(4096, n - start), width), np.float32))


def finetune(n: int, folder: Path, device: str, base: np.ndarray) -> dict[str, float]:
    parameters(folder, device)
    imagesets(folder, {"slices": n, "val": 100}, base)
    numbers(folder / "features/val", 100)
    start = params.read(folder / _cli.PARAMS.name, "finetune", finetuning.Finetune).base_model
    encoded = child(["stages.encode", "--images", "slices", "--model", f"{start}/vae", "--out", "latents"], folder)
    arguments = ["stages.finetune", "--images", "slices", "--validation", "val", "--validation-features"]
    arguments += ["features/val", "--latents", "latents", "--base", start]
    arguments += ["--vae", f"{start}/vae", "--out", "tuned", "--log", "log.csv", "--snapshots", "snapshots.npy"]
    tuned = child([*arguments, "--effort", "effort.json"], folder)
    return {
        "seconds": round(encoded["seconds"] + tuned["seconds"], 2),
        "peak_mib": max(encoded["peak_mib"], tuned["peak_mib"]),
    }


def sample(n: int, folder: Path, device: str, base: np.ndarray) -> dict[str, float]:
    parameters(folder, device)
    file = folder / _cli.PARAMS.name
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    tree["sample"]["n"] = n
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    imagesets(folder, {"slices": 100}, base)
    arguments = [
        "stages.sample",
        "--generator",
        "latent_diffusion",
        "--model",
        tree["finetune"]["base_model"],
        "--images",
        "slices",
    ]
    return child([*arguments, "--out", "samples", "--sheet", "sheet.png"], folder)


STEPS = {step.__name__: step for step in (preprocess, features, evaluate, finetune, sample)}


def ratio(steps: dict[str, dict]) -> dict[str, dict[str, float]]:
    """How many times as long the largest size of a step takes as its smallest: `slices` times as many slices."""
    found = {}
    for step, rows in steps.items():
        less, more = min(rows, key=int), max(rows, key=int)
        growth = rows[more]["seconds"] / rows[less]["seconds"]
        found[step] = {"slices": int(more) / int(less), "time": round(growth, 2)}
    return found


def nothing_to_do() -> float | None:
    """Seconds of `dvc repro` here, the least of three, or None where it has something to do."""

    def dvc(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", "dvc", "repro", *arguments], capture_output=True, text=True)
        return done.stdout + done.stderr

    if "Data and pipelines are up to date" not in dvc("--dry"):
        return None
    return round(measure.seconds(dvc), 2)


def table(steps: dict[str, dict]) -> str:
    """Markdown: a row for each size, and below it how time grows between the two largest of a step."""
    lines = [
        "| slices | " + " | ".join(f"{step}: time | memory" for step in steps) + " |",
        "|---:" * (1 + 2 * len(steps)) + "|",
    ]
    for n in sizes_of(steps):
        cells = [
            f"{rows[str(n)]['seconds']:.0f} s | {rows[str(n)]['peak_mib']} MiB" if str(n) in rows else " | "
            for rows in steps.values()
        ]
        lines.append(f"| {n:,} | " + " | ".join(cells) + " |")
    growth = []
    for step, rows in steps.items():
        if len(rows) > 1:
            less, more = sorted(rows, key=int)[-2:]
            power = np.log(rows[more]["seconds"] / rows[less]["seconds"]) / np.log(int(more) / int(less))
            growth.append(f"{step} {power:.2f}")
    return "\n".join([*lines, "", f"Time grows between the two largest sizes as N to the power: {', '.join(growth)}."])


def sizes_of(steps: dict[str, dict]) -> list[int]:
    return sorted({int(n) for rows in steps.values() for n in rows})


def million(result: dict, cores: int, gpus: int) -> list[str]:
    """What 1,000,000 slices come to on a machine of so many cores and GPUs: linear in slices, cores and GPUs."""
    here = result["machine"]["cores"]
    divided = {"cpu": (cores / here, f"{here} / {cores} cores"), "cuda": (gpus, f"1 / {gpus} GPUs")}
    lines = ["A million slices, from the largest size measured of each step:"]
    for device, (parts, name) in divided.items():
        for step in ("preprocess", "features", "evaluate"):
            rows = result.get(device, {}).get(step)
            if rows:
                largest = max(rows, key=int)
                each = rows[largest]["seconds"] / int(largest)
                by, shared = ("in one process", 1) if step == "evaluate" else (f"x {name}", parts)
                lines.append(f"{step}: {each:.5f} s x 1,000,000 {by} = {each * 1e6 / shared / 60:.0f} min")
    return lines


def picture(steps: dict[str, dict]) -> Figure:
    """Seconds, and MiB beside the bound, of each step over the number of slices."""
    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    for axes, key, label in zip(figure.subplots(1, 2), ("seconds", "peak_mib"), ("seconds", "peak MiB"), strict=True):
        for step, rows in steps.items():
            sizes = sorted(rows, key=int)
            axes.plot([int(n) for n in sizes], [rows[n][key] for n in sizes], marker="o", label=step)
        axes.set(xlabel="slices", ylabel=label, xscale="log")
        axes.grid(alpha=0.3)
    axes.axhline(BOUND_MIB, color="black", linestyle=":", label="1.5 GiB")
    axes.set_ylim(0)
    axes.legend(frameon=False)
    figure.axes[0].set_yscale("log")
    return figure


def main(
    sizes: Annotated[list[int], typer.Option(min=100, help="numbers of slices, multiples of 20")] = (),
    steps: Annotated[list[str], typer.Option(help=f"which of {', '.join(STEPS)}; all if not given")] = tuple(STEPS),
    scratch: Annotated[Path | None, typer.Option(help="folder for what is made; the system's own if not given")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; each is kept apart in the JSON")] = "cpu",
    table_only: Annotated[bool, typer.Option("--table", help="only print the table of what is measured")] = False,
    cores: Annotated[int, typer.Option(min=1, help="of the machine that a million slices are reckoned for")] = 64,
    gpus: Annotated[int, typer.Option(min=1, help="of that machine")] = 8,
    curve: Annotated[Path, typer.Option(help="PNG to write")] = Path("docs/scaling.png"),
):
    """Write benchmarks/results/scaling.json and docs/scaling.png, after each size of each step."""
    for step in steps:
        if step not in STEPS:
            raise UserError(f"--steps {step} is none; the steps are {', '.join(STEPS)}")
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    if not table_only and result.get("machine") != measure.machine():
        result = {}  # no row of the growth comes from another machine
    base = textures(200, seed=0)
    if not table_only:
        result["dvc_repro_with_nothing_to_do_seconds"] = nothing_to_do()
    for step, n in () if table_only else product(steps, sizes):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            made = STEPS[step](n, Path(folder), device, base)
        result.setdefault(device, {}).setdefault(step, {})[str(n)] = made
        print(f"{step}, {n:,} slices: {made}", flush=True)
        result["ratio"] = ratio(result["cpu"]) if "cpu" in result else {}
        measure.write("scaling", result)
        result["machine"] = measure.machine()
        curve.parent.mkdir(exist_ok=True)
        plots.save(picture(result.get("cpu", {})), curve)
    if result:
        print(table(result.get("cpu", {})))
        print("", *million(result, cores, gpus), sep="\n")


if __name__ == "__main__":
    _cli.run(main)
