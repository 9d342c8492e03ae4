"""What `synthmri generate` writes says how large a pixel is, and the base keeps every weight as it was given."""

import functools
import json
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from commands import _shield, generate
from stages import _files, base
from synthmri.errors import UserError
from synthmri.evaluation import shield
from synthmri.training.precision import autocast

ROOT = Path(__file__).parent.parent
PIXEL_MM = 240 / 255  # as no decimal writes it


@pytest.fixture
def here(tiny_model, tmp_path, monkeypatch):
    """A repository after training: the model, what it was trained on, and parameters for it."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("  steps: 14 ", "  steps: 2 ")
    (tmp_path / "params.yaml").write_text(text.replace("base_model: pretrained/base", f"base_model: {tiny_model}"))
    shutil.copytree(tiny_model, tmp_path / "models/latent_diffusion")
    (tmp_path / "data/slices/train").mkdir(parents=True)
    trained_on({"pixel_mm": PIXEL_MM}, ["5.000"] * 3, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained_on(meta: dict, slice_mm: list[str], root: Path = Path()) -> None:
    folder = root / generate.TRAINED_ON
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "manifest.csv").write_text("\n".join(["subject,slice_mm", *(f"s,{mm}" for mm in slice_mm)]) + "\n")


def drawn(format: str, pixel_mm: float | None = None, model: Path = generate.MODEL, **more) -> Path:
    """The first file of two slices."""
    shutil.rmtree("generated", ignore_errors=True)
    options = {"n": 2, "seed": 1_000_000, "prompt": None, "settings": None, "slice_mm": None, "shielded": False} | more
    generate.main(format=format, pixel_mm=pixel_mm, model=model, out=Path("generated"), **options)
    return min(Path("generated").iterdir())


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
def test_files_have_the_pixel_size_of_the_training_slices(here, capsys):
    image = nibabel.load(drawn("nifti"))
    assert image.header.get_zooms() == pytest.approx((PIXEL_MM, PIXEL_MM, 5))
    assert image.header.get_xyzt_units()[0] == "mm"
    ds = pydicom.dcmread(drawn("dicom"))
    assert ds.PixelSpacing == pytest.approx([PIXEL_MM] * 2) and ds.SliceThickness == 5
    ds = pydicom.dcmread(drawn("dicom", pixel_mm=0.5, slice_mm=2.0))
    assert ds.PixelSpacing == [0.5, 0.5] and ds.SliceThickness == 2
    assert "pixel" not in capsys.readouterr().err


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
def test_each_prompt_is_a_series_and_the_same_call_gives_the_same_bytes(here):
    prompts = ["T1w axial brain MRI, level 6, none", "FLAIR axial brain MRI, level 6, none"]
    files = []
    for _ in range(2):
        drawn("dicom", prompt=prompts)
        files.append({file.name: file.read_bytes() for file in Path("generated").iterdir()})
    assert files[0] == files[1] and len(files[0]) == 4
    sets = [pydicom.dcmread(file) for file in sorted(Path("generated").iterdir())]
    assert len({ds.SeriesInstanceUID for ds in sets}) == len({ds.FrameOfReferenceUID for ds in sets}) == 2
    assert [prompts[0] in ds.ImageComments for ds in sets] == [True, True, False, False]
    assert f"model {_files.digest(generate.MODEL)}" in sets[0].SoftwareVersions
    drawn("dicom", n=3, prompt=prompts[:1])  # image i hangs on its seed, not on its company
    again = pydicom.dcmread(Path("generated/1000001.dcm"))
    assert again.pixel_array.tobytes() == sets[1].pixel_array.tobytes()


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
def test_what_a_format_cannot_hold_is_said_before_it_is_drawn(here):
    with pytest.raises(UserError, match="names no contrast"):
        drawn("bids", prompt=["a brain"], model=Path("not looked at"))


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
def test_what_is_refused_is_drawn_again_and_stated(here, monkeypatch, capsys):
    """By default for the model of `dvc repro`: here the first draw of the first image is too like a training slice."""
    verdicts = iter([([0.9, 0.2], [True, False], [False, False]), ([0.3], [False], [False])])
    monkeypatch.setattr(_shield, "known", lambda size: shield.Known(np.zeros((1, size, size), np.uint8), 0.5, None))
    monkeypatch.setattr(shield, "judge", lambda images, known: shield.Verdict(*map(np.array, next(verdicts))))
    seeds = [1_000_000 + shield.AGAIN, 1_000_001]
    assert drawn("png", shielded=None).name == f"{min(seeds)}.png"
    table = pd.read_csv("generated/manifest.csv")
    assert list(table["seed"]) == seeds and list(table["likeness"]) == [0.3, 0.2]
    assert [set(table[name]) for name in ("drawn", "alike", "implausible")] == [{3}, {1}, {0}]
    said = Image.open(Path("generated") / f"{seeds[0]}.png").text["Description"]
    assert "of 3 drawn, 1 refused as too like a training slice and 0 as implausible" in said
    again = generate.latent_diffusion.load(generate.MODEL)
    p = generate.params.read(Path("params.yaml"), "sample", generate.sampling.Sample)
    precision = generate._cli.precision(generate._cli.start())
    same = generate.latent_diffusion.draw(again, [generate.PROMPT], seeds[:1], p, size=64, precision=precision)[:, 0]
    assert (np.array(Image.open(Path("generated") / f"{seeds[0]}.png")) == same[0]).all()
    assert "not shielded" not in capsys.readouterr().err


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
def test_what_never_passes_is_missing_and_said(here, monkeypatch, capsys):
    known = shield.Known(np.zeros((1, 64, 64), np.uint8), 0.5, None)
    monkeypatch.setattr(_shield, "known", lambda size: known)

    def judge(images, known, passing):
        odd = np.arange(len(images)) >= passing
        return shield.Verdict(np.zeros(len(images)), ~odd & False, odd)

    monkeypatch.setattr(shield, "judge", functools.partial(judge, passing=0))
    with pytest.raises(UserError, match="2 of 2 images passed the shield in none of 8 draws"):
        drawn("npy", shielded=True)
    assert not Path("generated").exists()
    calls = []

    def once(images, known):
        calls.append(len(images))
        return judge(images, known, passing=len(calls) == 1)

    monkeypatch.setattr(shield, "judge", once)
    assert np.load(drawn("npy", shielded=True)).shape == (1, 64, 64)
    assert "1 of 2 images passed the shield in none of 8 draws and are missing" in capsys.readouterr().err


@pytest.fixture
def masked(here):
    """The model of `here`, whose autoencoder says that it draws masks."""
    file = here / "models/latent_diffusion/vae/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"third_channel": "mask"}))
    return here


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
def test_a_model_that_draws_masks_gives_them_beside_the_images(masked, capsys):
    images = np.load(drawn("npy"))
    masks = np.load("generated/masks.npy")
    assert masks.shape == images.shape == (2, 64, 64) and set(np.unique(masks)) <= {0, 255}
    assert "2 images and their masks in generated" in capsys.readouterr().out
    # As anybody sees them who opens the model with diffusers alone, in the same number format.
    precision = generate._cli.precision(generate._cli.start())
    pipe = generate.latent_diffusion.load(generate.MODEL)
    p = generate.params.read(Path("params.yaml"), "sample", generate.sampling.Sample)
    pipe.scheduler = generate.latent_diffusion.new_scheduler(pipe, p.scheduler)
    with autocast(pipe.device, precision):
        shown = pipe(
            generate.PROMPT, generator=torch.Generator().manual_seed(1_000_000), num_inference_steps=p.steps,
            guidance_scale=p.guidance_scale, height=64, width=64, output_type="np",
        ).images[0]  # fmt: skip
    assert np.abs(shown[..., :2].mean(-1) * 255 - images[0]).max() <= 1
    assert ((shown[..., 2] > 0.5) == (masks[0] > 0)).mean() > 0.99


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
def test_a_mask_goes_with_the_image_that_passed(masked, monkeypatch):
    """The first draw of the first image is refused: what is written are image and mask of the second."""
    monkeypatch.setattr(_shield, "known", lambda size: shield.Known(np.zeros((1, size, size), np.uint8), 0.5, None))
    verdicts = iter([([0.9, 0.2], [True, False], [False, False]), ([0.3], [False], [False])])
    monkeypatch.setattr(shield, "judge", lambda images, known: shield.Verdict(*map(np.array, next(verdicts))))
    drawn("npy", shielded=None)
    images, masks = np.load("generated/images.npy"), np.load("generated/masks.npy")
    seeds = list(pd.read_csv("generated/manifest.csv")["seed"])
    assert seeds == [1_000_000 + shield.AGAIN, 1_000_001]
    drawn("npy", seed=seeds[0], n=1)
    np.testing.assert_array_equal(np.load("generated/images.npy"), images[:1])
    np.testing.assert_array_equal(np.load("generated/masks.npy"), masks[:1])


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
def test_a_model_from_elsewhere_is_not_compared_unless_it_is_asked(here, capsys):
    shutil.copytree("models/latent_diffusion", "elsewhere")
    drawn("npy", model=Path("elsewhere"), shielded=None)
    assert "not shielded" in capsys.readouterr().err
    assert list(pd.read_csv("generated/manifest.csv")) == ["seed", "prompt", "model", "version"]
    with pytest.raises(UserError, match="train"):  # where nothing lies to compare with
        drawn("npy", model=Path("elsewhere"), shielded=True)


@pytest.mark.parametrize("tiny_model", ["epsilon"], indirect=True)
def test_a_size_that_nobody_knows_is_not_made_up(here, capsys):
    """Pictures do not tell it, and of a model from elsewhere nothing is known here."""
    trained_on({"pixel_mm": None}, ["", ""])
    assert nibabel.load(drawn("nifti")).header.get_xyzt_units()[0] == "unknown"
    trained_on({"pixel_mm": PIXEL_MM}, ["5.000", "1.000"])
    assert pydicom.dcmread(drawn("dicom")).SliceThickness is None
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
