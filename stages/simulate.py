"""Write the simulated cohort as a BIDS-like tree of NIfTI volumes."""

import json
from pathlib import Path
from typing import Annotated

import typer

from stages import common
from synthmri import cohort, params

DESCRIPTION = {
    "Name": "Simulated brain MRI. Every subject is imaginary: deformed ICBM152 anatomy and signal equations",
    "BIDSVersion": "1.10.0",
    "DatasetType": "raw",
    "License": "CC0",
}
COLUMNS = ("participant_id", "age_like", "lesion_ml", "label")


def main(out: Annotated[Path, typer.Option(help="folder of the BIDS tree")]):
    """Simulate section `cohort`."""
    common.start()
    import nibabel

    p = params.read(common.PARAMS, "cohort", cohort.Cohort)
    rows = []
    with common.replacing(out) as folder:
        folder.mkdir()
        for subject in common.progress(cohort.simulate(p), "simulated subjects", p.subjects):
            place = folder / subject.name / "anat"
            place.mkdir(parents=True)
            for contrast, volume in subject.volumes.items():
                image = nibabel.Nifti1Image(volume, subject.affine)
                image.header.set_xyzt_units("mm")
                nibabel.save(image, place / f"{subject.name}_{contrast}.nii.gz")
            label = "lesions" if subject.lesion_ml > 0 else "none"
            rows.append((subject.name, str(subject.age_like), f"{subject.lesion_ml:.2f}", label))
        text = "\n".join("\t".join(row) for row in [COLUMNS, *rows])
        (folder / "participants.tsv").write_text(text + "\n", encoding="utf-8")
        (folder / "dataset_description.json").write_text(json.dumps(DESCRIPTION, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    common.run(main)
