"""How preprocessing, features and scores grow with the number of slices (time, peak memory), and how long `dvc repro`
takes when there is nothing to do.

python -m benchmarks.scaling --sizes 100 --sizes 1000 --sizes 10000

Each piece runs in a process of its own, whose peak memory the operating system tells. The slices are random pictures.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml

from benchmarks import measure
from stages import common

PICTURES_A_FILE = 500


def pictures(folder: Path, n: int) -> None:
    """n smooth random pictures of 256 x 256 in files of 500, uint8 .npy as a user may have them."""
    from benchmarks.evaluation import textures

    folder.mkdir()
    for number, start in enumerate(range(0, n, PICTURES_A_FILE)):
        np.save(folder / f"part{number:04d}.npy", textures(min(PICTURES_A_FILE, n - start), seed=number))


def child(arguments: list[str], folder: Path) -> dict[str, float]:
    """Seconds and peak MiB (of the largest process) of `python -m ...` in `folder`."""
    # A process in between, so that the peak is that of this child alone.
    watcher = (
        "import json, resource, subprocess, sys, time; start = time.perf_counter(); "
        "subprocess.run([sys.executable, '-m', *sys.argv[1:]], check=True, stdout=2); "
        "print(json.dumps([time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", watcher, *arguments], cwd=folder, check=True, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    seconds, kib = yaml.safe_load(done.stdout)
    return {"seconds": round(seconds, 2), "peak_mib": round(kib / 1024)}


def main(
    sizes: Annotated[list[int], typer.Option(help="numbers of slices")] = (100, 1000, 10_000),
):
    """Write benchmarks/results/scaling.json."""
    result: dict = {"slices": {}}
    for n in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            tree = yaml.safe_load(common.PARAMS.read_text(encoding="utf-8"))
            tree["data"] |= {"source": "raw", "contrasts": [], "border_gap": 5}
            (folder / common.PARAMS.name).write_text(yaml.safe_dump(tree), encoding="utf-8")
            pictures(folder / "raw", n)
            made = {
                "preprocess": child(
                    ["stages.preprocess", "--raw", "raw", "--out", "slices", "--metrics", "data.json",
                     "--sheet", "slices.png"], folder,
                )
            }  # fmt: skip
            for split in ("train", "test"):
                made[f"features of {split}"] = child(
                    ["stages.extract", "--images", f"slices/{split}", "--out", f"features/{split}"], folder
                )
            result["slices"][n] = made
            print(n, made)
    first, last = min(sizes), max(sizes)
    result["ratio"] = {
        stage: round(result["slices"][last][stage]["seconds"] / result["slices"][first][stage]["seconds"], 2)
        for stage in result["slices"][first]
    }
    result["ratio_of_slices"] = last / first
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "dvc", "repro"], capture_output=True, text=True)
    nothing = "Data and pipelines are up to date" in done.stdout + done.stderr
    result["dvc_repro_with_nothing_to_do_seconds"] = round(time.perf_counter() - start, 2) if nothing else None
    measure.write("scaling", result)


if __name__ == "__main__":
    common.run(main)
