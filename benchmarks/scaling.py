"""How preprocessing, features and evaluation grow with the number of slices: time, and peak memory of all processes.
And how long `dvc repro` takes when there is nothing to do.

python -m benchmarks.scaling --sizes 1000 --sizes 10000 --sizes 100000    # each size joins those measured before
python -m benchmarks.scaling --table                                      # the table and what it comes to, for the docs

The cohort is made of smooth random textures in an ellipse, 20 slices a person, as NIfTI; the model that is evaluated
has drawn as many images as there are held-out slices. One worker a core, of one thread. 100,000 slices take about
20 GB of disk below --scratch.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
import yaml
from matplotlib.figure import Figure

from benchmarks import measure
from benchmarks.evaluation import textures
from stages import common
from synthmri import imageset, plots

SLICES_A_PERSON = 20
MM = 240 / 256  # of a pixel, so that nothing is resampled
BOUND_MIB = 1536
STEPS = ("preprocess", "features", "evaluate")
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


def samples(folder: Path, n: int, base: np.ndarray) -> None:
    """n images as a model's."""
    size = imageset.PIECE
    made = (slices(min(size, n - start), 10**6 + start, base) for start in range(0, n, size))
    manifest = pd.DataFrame({"model": "random", "seed": np.arange(n).astype(str), "prompt": "", "label": ""})
    imageset.write_pieces(folder, made, (256, 256), manifest, {})


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


def measured(n: int, folder: Path, device: str) -> dict[str, dict[str, float]]:
    """Each step at n slices: "preprocess", "features" (of `images` images), "evaluate"."""
    tree = yaml.safe_load(common.PARAMS.read_text(encoding="utf-8"))
    tree["runtime"] |= {"device": device, "threads": 1}
    tree["workers"] |= {"preprocess": os.cpu_count(), "extract": os.cpu_count() if device == "cpu" else 1}
    tree["data"] |= {"source": "raw", "contrasts": [], "depth_mm": [0, 400], "image_size": 256}
    tree["data"]["split"] = {"train": 0.9, "val": 0.05, "test": 0.05}  # of so many nobody holds out a quarter
    tree["evaluate"] |= {"min_images": 10}
    (folder / common.PARAMS.name).write_text(yaml.safe_dump(tree), encoding="utf-8")
    base = textures(200, seed=0)
    cohort(folder / "raw", n, base)
    made = {
        "preprocess": child(
            ["stages.preprocess", "--raw", "raw", "--out", "slices", "--metrics", "data.json", "--sheet", "slices.png"],
            folder,
        )
    }
    shutil.rmtree(folder / "raw")  # makes room
    counts = {name: len(imageset.read(folder / "slices" / name)) for name in ("train", "val", "test")}
    samples(folder / "slices/samples", counts["test"], base)
    parts = [
        child(["stages.extract", "--images", f"slices/{name}", "--out", f"features/{name}"], folder)
        for name in (*counts, "samples")
    ]
    made["features"] = {
        "seconds": round(sum(part["seconds"] for part in parts), 2),
        "peak_mib": max(part["peak_mib"] for part in parts),
        "images": sum(counts.values()) + counts["test"],
    }
    arguments = ["stages.evaluate", "--code", "baselines/dcgan", "--model", "none"]
    for option, name in (("train", "train"), ("validation", "val"), ("test", "test"), ("samples", "samples")):
        arguments += [f"--{option}", f"slices/{name}", f"--{option}-features", f"features/{name}"]
    arguments += ["--before-features", "features/samples"]
    arguments += ["--metrics", "m.json", "--picture", "held_out.png", "--closest", "closest.png"]
    made["evaluate"] = child(arguments, folder)
    return made


def ratio(rows: dict[str, dict]) -> dict[str, float]:
    """How many times as long the largest size takes as the smallest: `slices` times as many slices."""
    first, last = (rows[n] for n in (min(rows, key=int), max(rows, key=int)))
    growth = {step: round(last[step]["seconds"] / first[step]["seconds"], 2) for step in STEPS}
    return growth | {"slices": max(map(int, rows)) / min(map(int, rows))}


def nothing_to_do() -> float | None:
    """Seconds of `dvc repro` here, the least of three, or None where it has something to do."""

    def dvc(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", "dvc", "repro", *arguments], capture_output=True, text=True)
        return done.stdout + done.stderr

    if "Data and pipelines are up to date" not in dvc("--dry"):
        return None
    return round(measure.seconds(dvc), 2)


def table(result: dict) -> str:
    """Markdown: a row for each size, and below it how time grows."""
    sizes = sorted(int(n) for n in result["slices"])
    lines = [
        "| slices | " + " | ".join(f"{step}: time | memory" for step in STEPS) + " |",
        "|---:" * (1 + 2 * len(STEPS)) + "|",
    ]
    for n in sizes:
        row = result["slices"][str(n)]
        cells = [f"{row[step]['seconds']:.0f} s | {row[step]['peak_mib']} MiB" for step in STEPS]
        lines.append(f"| {n:,} | " + " | ".join(cells) + " |")
    if len(sizes) > 1:
        growth = []
        for step in STEPS:
            less, more = (result["slices"][str(n)][step]["seconds"] for n in sizes[-2:])
            growth.append(f"{step} {np.log(more / less) / np.log(sizes[-1] / sizes[-2]):.2f}")
        lines += ["", f"Time grows from {sizes[-2]:,} to {sizes[-1]:,} slices as N to the power: {', '.join(growth)}."]
    return "\n".join(lines)


def million(result: dict, cores: int, gpus: int) -> list[str]:
    """What 1,000,000 slices come to on a machine of so many cores and GPUs: linear in slices, cores and GPUs."""

    def each(place: str, step: str) -> float:  # seconds a slice, at the largest size measured
        largest = max(result[place], key=int)
        return result[place][largest][step]["seconds"] / result[place][largest][step].get("images", int(largest))

    here = result["machine"]["cores"]
    images = max(row["features"]["images"] / int(n) for n, row in result["slices"].items()) * 1e6
    lines = [
        "",
        "A million slices, from the largest size measured:",
        f"preprocess: {each('slices', 'preprocess'):.4f} s x 1,000,000 x {here} / {cores} cores = "
        f"{each('slices', 'preprocess') * 1e6 * here / cores / 3600:.1f} h",
    ]
    for place, parts, name in (("slices", cores / here, f"{here} / {cores} cores"), ("cuda", gpus, f"1 / {gpus} GPUs")):
        if result.get(place):
            hours = each(place, "features") * images / parts / 3600
            lines.append(f"features: {each(place, 'features'):.5f} s x {images:,.0f} x {name} = {hours:.1f} h")
            alone = each(place, "evaluate")
            lines.append(f"evaluate, in one process: {alone:.5f} s x 1,000,000 = {alone * 1e6 / 3600:.1f} h")
    return lines


def picture(result: dict) -> Figure:
    """Seconds, and MiB beside the bound, of each step over the number of slices."""
    sizes = sorted(int(n) for n in result["slices"])
    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    for axes, key, label in zip(figure.subplots(1, 2), ("seconds", "peak_mib"), ("seconds", "peak MiB"), strict=True):
        for step in STEPS:
            axes.plot(sizes, [result["slices"][str(n)][step][key] for n in sizes], marker="o", label=step)
        axes.set(xlabel="slices", ylabel=label, xscale="log")
        axes.grid(alpha=0.3)
    axes.axhline(BOUND_MIB, color="black", linestyle=":", label="1.5 GiB")
    axes.set_ylim(0)
    axes.legend(frameon=False)
    figure.axes[0].set_yscale("log")
    return figure


def main(
    sizes: Annotated[list[int], typer.Option(min=100, help="numbers of slices, multiples of 20")] = (),
    scratch: Annotated[Path | None, typer.Option(help="folder for what is made; the system's own if not given")] = None,
    device: Annotated[str, typer.Option(help="of features and evaluation; kept apart in the JSON if not cpu")] = "cpu",
    table_only: Annotated[bool, typer.Option("--table", help="only print the table of what is measured")] = False,
    cores: Annotated[int, typer.Option(min=1, help="of the machine that a million slices are reckoned for")] = 64,
    gpus: Annotated[int, typer.Option(min=1, help="of that machine")] = 8,
    curve: Annotated[Path, typer.Option(help="PNG to write")] = Path("docs/scaling.png"),
):
    """Write benchmarks/results/scaling.json and docs/scaling.png, after each size."""
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"slices": {}}
    for n in () if table_only else sizes:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            result.setdefault("slices" if device == "cpu" else device, {})[str(n)] = measured(n, Path(folder), device)
        result["ratio"] = ratio(result["slices"]) if result["slices"] else {}
        result["dvc_repro_with_nothing_to_do_seconds"] = nothing_to_do()
        measure.write("scaling", result)
        result["machine"] = measure.machine()
        curve.parent.mkdir(exist_ok=True)
        plots.save(picture(result), curve)
    print(table(result))
    print("\n".join(million(result, cores, gpus)))


if __name__ == "__main__":
    common.run(main)
