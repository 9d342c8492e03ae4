"""The whole pipeline on real slices: what is committed, cloned, with a profile, on a set of REAL_MRI.

REAL_MRI=folder python -m benchmarks.real open_ms --scratch FOLDER

Takes 20 minutes (open_ms) to an hour (t1ce_tumor) on two cores. Run again with the same folder, it goes on.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from benchmarks import measure
from stages import _cli, _files
from synthmri.errors import UserError
from synthmri.reporting import plots, tables
from synthmri.scans import splits

SETS = {"lgg_flair": "lgg-flair", "open_ms": "open-ms", "t1ce_tumor": "t1ce-tumor"}  # profile: folder below REAL_MRI
NUMBERS_ALONE = ("lgg_flair",)  # whose licence (NonCommercial, ShareAlike) lets no picture made from it lie here
TABLES = {
    "comparison": "The comparison",
    "gate": "The gate",
    "privacy": "Membership inference",
    "utility": "What a classifier gains",
}
SHOWN = 24  # synthetic slices in the picture
DRAWN = 100  # slices that the shield judges
NOBODY_KNOWN = (
    "Nobody knows whose each of these slices is: the split is by blocks of file numbers, so that one person may be on "
    "both sides of it, and an interval over people is one over runs of files."
)


def main(
    profile: Annotated[str, typer.Argument(help=f"one of {', '.join(SETS)}")],
    scratch: Annotated[Path, typer.Option(help="folder outside the repository for the clone, which is kept")],
):
    """Write benchmarks/results/real_<profile>.json, docs/real_<profile>.md and, where the licence of the set allows it,
    the picture docs/real_<profile>.png.
    """
    root = os.environ.get("REAL_MRI")
    if profile not in SETS:
        raise UserError(f"there are no real slices for profile {profile!r}; choose one of {', '.join(SETS)}")
    if not root or not (source := Path(root) / SETS[profile]).is_dir():
        raise UserError(f"REAL_MRI is {root!r}; name the folder of real volumes, which holds {SETS[profile]}")
    clone = scratch / profile
    if not clone.is_dir():
        with _files.replacing(clone) as part:  # a clone that is there is whole
            subprocess.run(["git", "clone", "--quiet", Path.cwd(), part], check=True)
            shutil.copytree(source, part / "data" / "raw" / SETS[profile])
            subprocess.run([sys.executable, "-m", "commands.profile", profile], cwd=part, check=True)
    if subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=clone).returncode:
        raise UserError(f"`dvc repro` failed in {clone}, as told above; mend it and run this again: it goes on")
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=clone, check=True, capture_output=True, text=True)
    commit = git.stdout.strip()
    metrics = clone / "metrics"
    numbers = {
        name: json.loads((metrics / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("data", "autoencoder", "latent_diffusion", "training/latent_diffusion", *TABLES)
    }
    numbers["shield"] = shielded(clone)
    curve = pd.read_csv(metrics / "fd_progression.csv").drop(columns="images_seen")
    measure.write(f"real_{profile}", {"commit": commit, **numbers})
    chapters = [
        f"# {SETS[profile]}",
        f"Written by `python -m benchmarks.real {profile}`, of commit {commit}. How to read the tables: "
        "[evaluation.md](evaluation.md), [utility_privacy.md](utility_privacy.md).",
        "The licence of these slices lets no picture made from them be shown here."
        if profile in NUMBERS_ALONE
        else f"![The first {SHOWN} synthetic slices of the latent diffusion model](real_{profile}.png)",
        NOBODY_KNOWN if not numbers["data"]["train"]["subjects"] else "",
        f"{people(numbers['data'])} The shield of `synthmri generate` drew {numbers['shield']['drawn']} slices to pass "
        f"{numbers['shield']['passed']}: {numbers['shield']['alike']} were too like a training slice, "
        f"{numbers['shield']['implausible']} no plausible head.",
    ]
    for name, title in TABLES.items():
        chapters += [f"## {title}", (metrics / f"{name}.md").read_text(encoding="utf-8").strip()]
    chapters += [
        "## Over fine-tuning",
        "Against the validation slices, of few images and few denoising steps; 1: the epoch that is kept.",
        tables.markdown(list(curve), [[f"{value:.3g}" for value in row] for row in curve.to_numpy(float)]),
    ]
    page = Path("docs") / f"real_{profile}.md"
    with _files.replacing(page) as part:
        part.write_text("\n\n".join(filter(None, chapters)) + "\n", encoding="utf-8")
    if profile in NUMBERS_ALONE:
        return
    made = np.load(clone / "data" / "samples" / "latent_diffusion" / "images.npy", mmap_mode="r")
    sheet = plots.contact_sheet(np.array(made[:SHOWN]), columns=8)
    with _files.replacing(page.with_suffix(".png")) as picture:
        plots.save(sheet, picture)


def people(data: dict) -> str:
    """Who is in each split, a sentence."""
    parts = [f"{data[name]['images']} slices of {data[name]['subjects'] or '?'} people" for name in splits.SPLITS]
    return "To train on, to choose by and to test on: " + ", ".join(parts) + "."


def shielded(clone: Path) -> dict[str, int]:
    """How many of the slices that the clone's model draws for prompts of training pass its shield, and why others do
    not."""
    with _files.replacing(clone / "shielded") as out:  # nobody keeps them
        prompts = pd.read_csv(clone / "data/samples/latent_diffusion/manifest.csv", dtype=str)["prompt"].value_counts()
        asked = [word for text in prompts.index[:DRAWN] for word in ("--prompt", text)]
        each = max(1, DRAWN // len(prompts.index[:DRAWN]))
        subprocess.run(  # by the code that is here, of which the clone may hold an older version
            [sys.executable, "-P", "-m", "commands.generate", *asked, "--n", str(each), "--format=npy", "--out", out],
            cwd=clone, env=os.environ | {"PYTHONPATH": str(Path.cwd())}, check=True,
        )  # fmt: skip
        table = pd.read_csv(out / "manifest.csv")
    counts = {name: int(table[name].iloc[0]) for name in ("drawn", "alike", "implausible")}
    return counts | {"passed": len(table)}


if __name__ == "__main__":
    _cli.run(main)
