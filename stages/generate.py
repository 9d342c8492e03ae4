"""Make more images from a trained model, outside DVC.

synthmri generate --n 20 --prompt "T1w axial brain MRI, level 6, none" --format png --out generated
"""

import datetime
import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from PIL import Image

from stages import _cli, _files
from synthmri import params
from synthmri.errors import UserError
from synthmri.generators import latent_diffusion
from synthmri.training import sampling

MODEL, CHOSEN = Path("models/latent_diffusion"), Path("models/sampling.json")  # of `dvc repro`
TRAINED_ON = Path("data/slices/train/meta.json")
SYNTHETIC = "SYNTHETIC IMAGE, NOT A PATIENT, NOT FOR CLINICAL USE"


def main(
    n: Annotated[int, typer.Option(min=1, max=100_000, help="number of images")] = 16,
    prompt: Annotated[
        str, typer.Option(help="what to draw, in the words of training")
    ] = "T1w axial brain MRI, level 6, none",
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="of the first image; image i has seed + i")] = 1_000_000,
    format: Annotated[Literal["png", "npy", "nifti", "dicom"], typer.Option(help="format of the files")] = "png",
    out: Annotated[Path, typer.Option(help="folder to make; it must not exist yet")] = Path("generated"),
    model: Annotated[Path, typer.Option(help="pipeline in Stable Diffusion format")] = MODEL,
    settings: Annotated[
        Path | None,
        typer.Option(help="JSON of guidance, steps and scheduler; for the model of `dvc repro`, what `sweep` chose"),
    ] = None,
    pixel_mm: Annotated[
        float | None,
        typer.Option(min=0.01, max=100, help="mm of a pixel's edge; for the model of `dvc repro`, its training's"),
    ] = None,
):
    """Draw N images by section `sample`."""
    runtime = _cli.start()
    p = params.read(_cli.PARAMS, "sample", sampling.Sample)
    if settings is None and model == MODEL and CHOSEN.is_file():
        settings = CHOSEN
    if pixel_mm is None and model == MODEL and TRAINED_ON.is_file():
        pixel_mm = _files.read_json(TRAINED_ON).get("pixel_mm")
    if pixel_mm is None and format in ("nifti", "dicom"):
        print("nobody knows how large a pixel is, so the files do not say; tell it with --pixel-mm", file=sys.stderr)
    if settings is not None:
        p = sampling.settled(p, _files.read_json(settings))
    if p.guidance_scale > sampling.guidance([prompt], p.guidance_scale):
        print(f"the prompt is empty, so guidance {p.guidance_scale:g} changes nothing and is left out", file=sys.stderr)
    if out.exists():
        raise UserError(f"{out} exists already; name another folder with --out, or remove it")
    if not (model / "model_index.json").is_file():
        raise UserError(f"{model} holds no trained model; run `dvc repro` first, or name one with --model")
    pipe = latent_diffusion.load(model, device=runtime.device)
    size = latent_diffusion.image_size(pipe)
    seeds = list(range(seed, seed + n))
    images = latent_diffusion.sample(
        pipe,
        [prompt] * n,
        seeds,
        p,
        size=size,
        precision=_cli.precision(runtime),
        progress=lambda starts, k: _cli.progress(starts, "sampled batches", k),
    )
    with _files.replacing(out) as folder:
        folder.mkdir()
        write(folder, images, seeds, prompt, format, pixel_mm)
    print(f"{n} images in {out}")


def write(folder: Path, images: np.ndarray, seeds: list[int], prompt: str, format: str, pixel_mm: float | None) -> None:
    """Write uint8 (N, H, W) as one .npy, one NIfTI stack, or a PNG or DICOM file an image named by its seed.

    pixel_mm: edge of a pixel, None where it is not known; NIfTI then has 1 of no unit, DICOM nothing.
    """
    if format == "npy":
        np.save(folder / "images.npy", images)
    elif format == "nifti":
        import nibabel

        # Independent slices, not a volume: (X, Y, N) in RAS+, from the radiological picture; 1 from slice to slice.
        stack = np.ascontiguousarray(images.transpose(2, 1, 0)[::-1, ::-1])
        image = nibabel.Nifti1Image(stack, np.diag([pixel_mm or 1, pixel_mm or 1, 1, 1]))
        image.header.set_xyzt_units("mm" if pixel_mm else "unknown")
        image.header["descrip"] = b"synthetic slices, not for clinical use"
        nibabel.save(image, folder / "images.nii.gz")
    elif format == "png":
        for seed, image in zip(seeds, images, strict=True):
            Image.fromarray(image).save(folder / f"{seed:06d}.png")
    else:
        import pydicom.uid

        study, series = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
        for i, (seed, image) in enumerate(zip(seeds, images, strict=True)):
            dicom(image, i + 1, f"{prompt} (seed {seed})", study, series, pixel_mm).save_as(
                folder / f"{seed:06d}.dcm", enforce_file_format=True
            )


def dicom(image: np.ndarray, number: int, comment: str, study: str, series: str, pixel_mm: float | None):
    """A Secondary Capture dataset of uint8 (H, W), marked as derived and synthetic, with UIDs of its own.

    pixel_mm: edge of a pixel, for PixelSpacing, which is left out where it is not known (None).
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
    from pydicom.valuerep import DSfloat

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "SYNTHETIC^NOT A PATIENT", "SYNTHETIC", "", "O"
    ds.StudyDate = ds.ContentDate = datetime.date.today().strftime("%Y%m%d")
    ds.StudyTime = ds.ContentTime = "000000"
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "", "", ""
    ds.SeriesNumber, ds.InstanceNumber, ds.Modality, ds.ConversionType = 1, number, "OT", "SYN"
    ds.ImageType = ["DERIVED", "SECONDARY", "SYNTHETIC"]
    ds.SeriesDescription = ds.DerivationDescription = SYNTHETIC
    ds.BurnedInAnnotation, ds.PatientIdentityRemoved = "NO", "YES"
    ds.DeidentificationMethod = "drawn by a generative model"
    ds.ImageComments = comment[:10240]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = image.shape
    if pixel_mm:
        ds.PixelSpacing = [DSfloat(pixel_mm, auto_format=True)] * 2
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = image.tobytes() + b"\0" * (image.size % 2)
    return ds


if __name__ == "__main__":
    _cli.run(main)
