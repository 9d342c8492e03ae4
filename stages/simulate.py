"""Write the simulated cohort as a BIDS-like tree of NIfTI volumes."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stages import _cli, _files, _workers
from synthmri import params
from synthmri.simulation import cohort
from synthmri.simulation.atlas import load_atlas

DESCRIPTION = {
    "Name": "Simulated brain MRI. Every subject is imaginary: deformed ICBM152 anatomy and signal equations",
    "BIDSVersion": "1.10.0",
    "DatasetType": "raw",
    "License": "Derived from the ICBM152 atlas, copyright McConnell Brain Imaging Centre, free to use with its notice",
}
COLUMNS = ("participant_id", "age_like", "lesion_ml", "label")


def main(out: Annotated[Path, typer.Option(help="folder of the BIDS tree")]):
    """Simulate section `cohort`."""
    _cli.start()
    p = params.read(_cli.COHORT, "cohort", cohort.Cohort)
    with _files.replacing(out) as folder:
        folder.mkdir()
        one = partial(_one, p=p, folder=folder)
        made = _workers.ordered(
            one, range(p.subjects), *_workers.shared(threads=1), name=lambda i: f"simulated subject {i + 1}"
        )
        rows = list(_cli.progress(made, "simulated subjects", p.subjects))
        text = "\n".join("\t".join(row) for row in [COLUMNS, *rows])
        (folder / "participants.tsv").write_text(text + "\n", encoding="utf-8")
        (folder / "dataset_description.json").write_text(json.dumps(DESCRIPTION, indent=1) + "\n", encoding="utf-8")


def _one(i: int, p: cohort.Cohort, folder: Path) -> tuple[str, ...]:
    """Write the volumes of subject i and the mask of its lesions beside; returns its row of participants.tsv."""
    import torch

    torch.set_num_threads(1)  # so that the bytes are the same, however many processes there are
    subject = cohort.simulate_one(load_atlas(), p, i)
    volumes = subject.volumes | {"label-lesion_mask": subject.lesions}
    named = {f"{subject.name}_{what}": volume for what, volume in volumes.items()}
    _write(folder / subject.name / "anat", named, subject.affine)
    label = "lesions" if subject.lesion_ml > 0 else "none"
    return subject.name, str(subject.age_like), f"{subject.lesion_ml:.2f}", label


def _write(folder: Path, volumes: dict[str, np.ndarray], affine: np.ndarray) -> None:
    import nibabel

    for made in (folder.parent, folder):  # a worker that was killed may have made them; above them nothing is made
        made.mkdir(exist_ok=True)
    for name, volume in volumes.items():
        image = nibabel.Nifti1Image(volume, affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, folder / f"{name}.nii.gz")


if __name__ == "__main__":
    _cli.run(main)
