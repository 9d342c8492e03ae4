"""What `synthmri generate` writes says how large a pixel is, and the base keeps every weight as it was given."""

import json
import shutil
import subprocess
from pathlib import Path

import nibabel
import pydicom
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import base, generate

ROOT = Path(__file__).parent.parent
PIXEL_MM = 240 / 255  # as no decimal writes it


@pytest.fixture
def here(tiny_model, tmp_path, monkeypatch):
    """A repository after training: the model, what it was trained on, and parameters for it."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("  steps: 14 ", "  steps: 2 ")
    (tmp_path / "params.yaml").write_text(text.replace("base_model: pretrained/base", f"base_model: {tiny_model}"))
    shutil.copytree(tiny_model, tmp_path / "models/latent_diffusion")
    (tmp_path / "data/slices/train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawn(format: str, pixel_mm: float | None = None, model: Path = generate.MODEL) -> Path:
    """The first file of two slices."""
    shutil.rmtree("generated", ignore_errors=True)
    generate.main(n=2, format=format, pixel_mm=pixel_mm, model=model, settings=None, out=Path("generated"))
    return min(Path("generated").iterdir())


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
def test_files_have_the_pixel_size_of_the_training_slices(here, capsys):
    generate.TRAINED_ON.write_text(json.dumps({"pixel_mm": PIXEL_MM}))
    image = nibabel.load(drawn("nifti"))
    assert image.header.get_zooms() == pytest.approx((PIXEL_MM, PIXEL_MM, 1))
    assert image.header.get_xyzt_units()[0] == "mm"
    assert pydicom.dcmread(drawn("dicom")).PixelSpacing == pytest.approx([PIXEL_MM] * 2)
    assert pydicom.dcmread(drawn("dicom", pixel_mm=0.5)).PixelSpacing == [0.5, 0.5]
    assert "pixel" not in capsys.readouterr().err


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
def test_a_size_that_nobody_knows_is_not_made_up(here, capsys):
    """Pictures do not tell it, and of a model from elsewhere nothing is known here."""
    generate.TRAINED_ON.write_text(json.dumps({"pixel_mm": None}))
    assert nibabel.load(drawn("nifti")).header.get_xyzt_units()[0] == "unknown"
    generate.TRAINED_ON.write_text(json.dumps({"pixel_mm": PIXEL_MM}))
    shutil.copytree("models/latent_diffusion", "elsewhere")
    assert "PixelSpacing" not in pydicom.dcmread(drawn("dicom", model=Path("elsewhere")))
    assert capsys.readouterr().err.count("tell it with --pixel-mm") == 2


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
@pytest.mark.parametrize("kept", [torch.float32, torch.float16])
def test_the_base_keeps_the_precision_that_it_is_given_in(here, tiny_model, kept):
    """float32 stays float32 to the bit; what is in half precision stays half as large."""
    given = {}
    for part in ("unet", "vae"):
        file = Path("models/latent_diffusion", part, "diffusion_pytorch_model.safetensors")
        given[part] = {name: weight.to(kept) for name, weight in load_file(file).items()}
        save_file(given[part], file, metadata={"format": "pt"})
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace(f"base_model: {tiny_model}", "base_model: models/latent_diffusion"))
    base.main(out=Path("models/base"))
    for part, weights in given.items():
        found = load_file(Path("models/base", part, "diffusion_pytorch_model.safetensors"))
        assert found.keys() == weights.keys()
        assert all(found[name].dtype == kept and torch.equal(found[name], weights[name]) for name in weights)


def test_dvc_sees_another_secret_among_the_scans(tmp_path):
    """Pseudonyms hang on it, so all of preprocessing does; names of files go nowhere by that."""
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/raw/mueller_T1w.nii").write_bytes(b"scan")
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    make = "test -f data/raw/.salt || echo made > data/raw/.salt; cp data/raw/.salt out"
    (tmp_path / "dvc.yaml").write_text(f"stages: {{a: {{cmd: '{make}', deps: [data/raw], outs: [out]}}}}")

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    run("dvc", "init", "--no-scm")
    run("dvc", "repro")
    assert "up to date" in run("dvc", "repro")  # that the stage itself makes the secret is no change
    (tmp_path / "data/raw/.salt").write_text("another")
    run("dvc", "repro")
    assert (tmp_path / "out").read_text() == "another"
    kept = [file for file in (tmp_path / ".dvc").rglob("*") if file.is_file()]
    assert not any(b"mueller" in file.read_bytes() for file in [*kept, tmp_path / "dvc.lock"])
