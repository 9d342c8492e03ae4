"""Synthetic slices in the formats that other programs read, each marked as synthetic and with what it was drawn by.

Written are uint8 images (N, H, W), 0 = black, with a `Drawing`, and where the model draws them masks of lesions, as the
images, 255 inside; the same give the same bytes. Slices are independent: what stacks or series hold is no volume.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from synthmri.errors import UserError

VERSION = metadata.version("synthmri")
SYNTHETIC = "SYNTHETIC IMAGE, NOT A PATIENT, NOT FOR CLINICAL USE"
# Plane -> where columns and rows of a picture run, in the patient coordinates of DICOM (left, posterior, superior).
DIRECTIONS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
}
# Columns: likeness to the nearest training slice; of all that was drawn, how many, and how many were refused as what.
SHIELD = ("likeness", "drawn", "alike", "implausible")
NO_DATE = "19000101"  # where a date has to be
SEGMENTATIONS = 1000  # what is added to the number of a series of images for that of its masks
BIDS_VERSION = "1.10.0"
BIDS_CONTRASTS = {"T1w": ("", "T1w"), "T1ce": ("ce-gadolinium_", "T1w"), "T2w": ("", "T2w"), "FLAIR": ("", "FLAIR"),
                  "PD": ("", "PDw")}  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """What slices were drawn by.

    table: DataFrame of N rows: seed (int, all different), prompt, contrast and plane (text, "" where the prompt names
    none), and where a shield was before them SHIELD, of which all but the first are alike in every row; model,
    version: the model's name and the hash of its files; settings: of the sampler; pixel_mm: edge of a pixel, slice_mm:
    distance of the volumes' slices, taken as their thickness; None where they are not known.
    """

    table: pd.DataFrame
    model: str
    version: str
    settings: dict
    pixel_mm: float | None = None
    slice_mm: float | None = None

    def origin(self) -> str:
        """Of all images, in words."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"{self.model} {self.version}, synthmri {VERSION}; {settings}; {self.shield()}"

    def shield(self) -> str:
        """What was refused, in words."""
        if "likeness" not in self.table:
            return "not compared with training slices"
        drawn, alike, implausible = self.table[list(SHIELD[1:])].iloc[0]
        return f"of {drawn} drawn, {alike} refused as too like a training slice and {implausible} as implausible"

    def comment(self, row: int) -> str:
        """Of one image, in words."""
        drawn = self.table.iloc[row]
        return f"{SYNTHETIC}. Prompt: {drawn['prompt']}; seed {drawn['seed']}; model {self.origin()}"


def check(table: pd.DataFrame, format: str) -> None:
    """Raise UserError where a format cannot hold what a drawing's table asks for, before it is drawn."""
    for prompt in table["prompt"][~table["contrast"].isin(BIDS_CONTRASTS)] if format == "bids" else ():
        raise UserError(
            f"the prompt {prompt!r} names no contrast, which BIDS has in its file names; name one of "
            f"{', '.join(BIDS_CONTRASTS)}, or take another --format"
        )


def write(folder: Path, images: np.ndarray, drawing: Drawing, format: str, masks: np.ndarray | None = None) -> None:
    """Write a folder (made here) in one of FORMATS."""
    folder.mkdir()
    FORMATS[format](folder, images, drawing, masks)


def npy(folder: Path, images: np.ndarray, drawing: Drawing, masks: np.ndarray | None) -> None:
    """images.npy and masks.npy, and row by row in manifest.csv what was drawn."""
    np.save(folder / "images.npy", images)
    if masks is not None:
        np.save(folder / "masks.npy", masks)
    _manifest(folder, drawing)


def png(folder: Path, images: np.ndarray, drawing: Drawing, masks: np.ndarray | None) -> None:
    """A file an image, named by its seed, which says in its `Description` what it is; its mask beside, as _mask.png."""
    for row, seed in enumerate(drawing.table["seed"]):
        text = PngInfo()
        text.add_itxt("Description", drawing.comment(row))
        Image.fromarray(images[row]).save(folder / f"{seed:06d}.png", pnginfo=text)
        if masks is not None:
            Image.fromarray(masks[row]).save(folder / f"{seed:06d}_mask.png", pnginfo=text)
    _manifest(folder, drawing)


def nifti(folder: Path, images: np.ndarray, drawing: Drawing, masks: np.ndarray | None) -> None:
    """One stack of independent slices, one of their masks (1 inside), and row by row in manifest.csv what was drawn."""
    planes = set(drawing.table["plane"])
    plane = planes.pop() if len(planes) == 1 else ""
    _nifti(folder / "images.nii.gz", images, drawing, plane)
    if masks is not None:
        _nifti(folder / "masks.nii.gz", masks // 255, drawing, plane)
    _manifest(folder, drawing)


def bids(folder: Path, images: np.ndarray, drawing: Drawing, masks: np.ndarray | None) -> None:
    """A BIDS derivative: each slice is of a "subject" of its own, named by its seed, with a sidecar; so is its mask."""
    generated = [
        {"Name": "synthmri", "Version": VERSION},
        {"Name": drawing.model, "Version": drawing.version, "Description": drawing.origin()},
    ]
    _json(folder / "dataset_description.json", {
        "Name": "Synthetic brain MRI slices, no patients", "BIDSVersion": BIDS_VERSION, "DatasetType": "derivative",
        "GeneratedBy": generated,
    })  # fmt: skip
    (folder / "README").write_text(
        f"{SYNTHETIC}.\nEach subject is one slice that a generative model drew, no person; its number is the seed.\n"
    )
    people = pd.DataFrame(
        {
            "participant_id": [f"sub-{seed:06d}" for seed in drawing.table["seed"]],
            "seed": drawing.table["seed"],
            "prompt": drawing.table["prompt"].replace("", "n/a"),
        }
    )
    people.to_csv(folder / "participants.tsv", sep="\t", index=False, lineterminator="\n")
    _json(folder / "participants.json", {
        "seed": {"Description": "number that the noise was drawn from"},
        "prompt": {"Description": "words that the model was given"},
    })  # fmt: skip
    for row, drawn in drawing.table.iterrows():
        person = f"sub-{drawn['seed']:06d}"
        entity, suffix = BIDS_CONTRASTS[drawn["contrast"]]
        place = folder / person / "anat"
        place.mkdir(parents=True)
        name = f"{person}_{entity}desc-synthetic_{suffix}"
        _nifti(place / f"{name}.nii.gz", images[[row]], drawing, drawn["plane"])
        _json(place / f"{name}.json", {
            "Description": SYNTHETIC, "SkullStripped": False, "Synthetic": True, "Prompt": drawn["prompt"],
            "Seed": int(drawn["seed"]), "Model": drawing.model, "ModelVersion": drawing.version,
            "Sampling": drawing.settings,
        })  # fmt: skip
        if masks is None:
            continue
        mask = f"{person}_{entity}label-lesion_desc-synthetic_mask"
        _nifti(place / f"{mask}.nii.gz", masks[[row]] // 255, drawing, drawn["plane"])
        _json(place / f"{mask}.json", {
            "Description": f"Lesions. {SYNTHETIC}", "Type": "Lesion", "Synthetic": True, "Prompt": drawn["prompt"],
            "Seed": int(drawn["seed"]), "Model": drawing.model, "ModelVersion": drawing.version,
            "Sources": [f"bids::{person}/anat/{name}.nii.gz"],
        })  # fmt: skip


def dicom(folder: Path, images: np.ndarray, drawing: Drawing, masks: np.ndarray | None) -> None:
    """A file an image, named by its seed; one study, in it a series for each prompt. Masks that are not empty are
    segmentations (PS3.3 A.51) of their images, as _seg.dcm."""
    series = {prompt: number + 1 for number, prompt in enumerate(dict.fromkeys(drawing.table["prompt"]))}
    counts = drawing.table.groupby("prompt").cumcount() + 1
    for row, drawn in drawing.table.iterrows():
        data = dataset(images[row], drawing, row, series=series[drawn["prompt"]], number=int(counts[row]))
        data.save_as(folder / f"{drawn['seed']:06d}.dcm", enforce_file_format=True)
        if masks is not None and masks[row].any():
            segmentation(data, masks[row]).save_as(folder / f"{drawn['seed']:06d}_seg.dcm", enforce_file_format=True)


def dataset(image: np.ndarray, drawing: Drawing, row: int, *, series: int, number: int):
    """The DICOM dataset of uint8 (H, W), row `row` of the drawing: image `number` of series `series`.

    It is an MR Image (PS3.3 A.4) where the size of its pixels and its plane are known, which such an image must tell;
    else a Secondary Capture (A.8). Either says that it is derived and synthetic. The series has a frame of reference of
    its own, with its origin at the middle of each slice: nobody knows where in a head a slice lies. What only an
    acquisition has stays empty. UIDs are hashes of what they name, so that two different pictures never share one.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, SecondaryCaptureImageStorage, generate_uid
    from pydicom.valuerep import DSfloat

    drawn = drawing.table.iloc[row]
    # The frame of reference, study and series of one drawing are those of all its images.
    whole = ["synthmri", drawing.origin(), str(drawing.pixel_mm), str(drawing.slice_mm), str(image.shape)]

    def uid(kind: str, *parts: str) -> str:
        return generate_uid(entropy_srcs=[json.dumps([kind, *whole, *parts])])

    study = json.dumps(list(drawing.table[["seed", "prompt"]].itertuples(index=False, name=None)), default=int)
    geometry = drawing.pixel_mm is not None and drawn["plane"] in DIRECTIONS
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = MRImageStorage if geometry else SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = uid("image", study, drawn["prompt"], str(drawn["seed"]), image.tobytes().hex())
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID = uid("study", study)
    ds.SeriesInstanceUID = uid("series", study, drawn["prompt"])
    ds.SyntheticData = "YES"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "SYNTHETIC^NOT A PATIENT", "SYNTHETIC", "", "O"
    ds.PatientIdentityRemoved, ds.DeidentificationMethod = "YES", "drawn by a generative model"
    ds.StudyDate = ds.StudyTime = ds.StudyID = ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.SeriesNumber, ds.InstanceNumber, ds.Modality = series, number, "MR" if geometry else "OT"
    # Viewers list series by it. LO: at most 64 characters, of which a backslash would begin another value.
    ds.SeriesDescription = re.sub(r"[\\\x00-\x1f]", " ", f"SYNTHETIC: {drawn['prompt']}")[:64].rstrip()
    ds.BodyPartExamined = "BRAIN"
    ds.Manufacturer, ds.ManufacturerModelName = "synthmri", drawing.model[:64]
    ds.SoftwareVersions = [f"synthmri {VERSION}", f"model {drawing.version}"]
    ds.ImageType = ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"]
    ds.DerivationDescription = f"Drawn by a generative model: {drawing.origin()}"[:1024]
    ds.ImageComments = drawing.comment(row)[:10240]
    ds.BurnedInAnnotation = "NO"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = image.shape
    ds.WindowCenter, ds.WindowWidth = 128, 256
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 7, 0
    if geometry:
        columns, rows = DIRECTIONS[drawn["plane"]]
        edge = DSfloat(drawing.pixel_mm, auto_format=True)
        corner = -(np.multiply(columns, image.shape[1] - 1) + np.multiply(rows, image.shape[0] - 1)) * edge / 2
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid("frame", study, drawn["prompt"]), ""
        ds.PatientPosition = ""
        ds.PixelSpacing = [edge, edge]
        ds.ImageOrientationPatient = [*columns, *rows]
        ds.ImagePositionPatient = [DSfloat(value + 0.0, auto_format=True) for value in corner]
        ds.SliceThickness = "" if drawing.slice_mm is None else DSfloat(drawing.slice_mm, auto_format=True)
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "RM", "NONE", "", "2D"
        ds.RepetitionTime = ds.EchoTime = ds.EchoTrainLength = ""
        ds.BitsAllocated = 16  # as an MR Image must
        ds.PixelData = image.astype("<u2").tobytes()
    else:
        ds.ConversionType, ds.PatientOrientation = "SYN", ""
        if drawing.pixel_mm is not None:
            ds.PixelSpacing = [DSfloat(drawing.pixel_mm, auto_format=True)] * 2
        ds.BitsAllocated = 8
        ds.PixelData = image.tobytes() + b"\0" * (image.size % 2)
    return ds


def segmentation(image, mask: np.ndarray):
    """The DICOM Segmentation of uint8 (H, W), 255 inside, of an image that `dataset` made."""
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    def uid(kind: str) -> str:
        return generate_uid(entropy_srcs=[json.dumps([kind, image.SOPInstanceUID, mask.tobytes().hex()])])

    description = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="lesion",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="synthmri", family=codes.DCM.ArtificialIntelligence, version=VERSION
        ),
    )
    ds = highdicom.seg.Segmentation(
        source_images=[image],
        pixel_array=(mask > 127)[None],
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[description],
        series_instance_uid=generate_uid(entropy_srcs=[f"masks of {image.SeriesInstanceUID}"]),
        series_number=image.SeriesNumber + SEGMENTATIONS,
        sop_instance_uid=uid("mask"),
        instance_number=image.InstanceNumber,
        manufacturer=image.Manufacturer,
        manufacturer_model_name=image.ManufacturerModelName,
        software_versions=list(image.SoftwareVersions),
        device_serial_number="0",
        content_description="SYNTHETIC",
        series_description=SYNTHETIC,
    )
    ds.SyntheticData, ds.ContentCreatorName, ds.ImageComments = "YES", "", image.ImageComments
    ds.PatientIdentityRemoved, ds.DeidentificationMethod = image.PatientIdentityRemoved, image.DeidentificationMethod
    if "PatientOrientation" in image:
        ds.PatientOrientation = image.PatientOrientation
    for shared in ds.SharedFunctionalGroupsSequence:
        for measures in shared.get("PixelMeasuresSequence", ()):
            measures.pop("SpacingBetweenSlices", None)  # made up: slices are independent
            if not measures.get("SliceThickness"):  # nobody knows it
                measures.pop("SliceThickness", None)
    # The library says when a file was made, and names by chance what its frames are counted by; the same drawing is to
    # give the same bytes. A multi-frame object must have a date.
    del ds.InstanceCreationDate, ds.InstanceCreationTime
    ds.ContentDate, ds.ContentTime = NO_DATE, "000000"
    for equipment in ds.ContributingEquipmentSequence:
        equipment.pop("ContributionDateTime", None)
    for item in (*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid("dimensions")
    return ds


FORMATS: dict[str, Callable] = {"png": png, "npy": npy, "nifti": nifti, "bids": bids, "dicom": dicom}


def _nifti(file: Path, images: np.ndarray, drawing: Drawing, plane: str) -> None:
    """(X, Y, N) with the size of a pixel in the affine; 1, of no unit, where it is not known.

    In a plane that nobody knows, as an axial picture. 1 from slice to slice where the thickness is not known.
    """
    import nibabel

    columns, rows = map(np.array, DIRECTIONS.get(plane, DIRECTIONS["axial"]))
    edge = drawing.pixel_mm or 1.0
    affine = np.eye(4)
    affine[:3, :3] = np.stack([columns, rows, np.cross(columns, rows)], axis=1)
    affine[:2, :3] *= -1  # from left and posterior, as in DICOM, to right and anterior
    affine[:3, :3] *= (edge, edge, drawing.slice_mm or 1.0)
    affine[:3, 3] = -affine[:3, :2] @ (np.array(images.shape[:0:-1]) - 1) / 2  # the origin is the middle of a slice
    image = nibabel.Nifti1Image(np.ascontiguousarray(images.transpose(2, 1, 0)), affine + 0.0)
    image.header.set_xyzt_units("mm" if drawing.pixel_mm else "unknown")
    image.header["descrip"] = b"synthetic slices, not for clinical use"
    nibabel.save(image, file)


def _manifest(folder: Path, drawing: Drawing) -> None:
    """What was drawn, a row an image in the order of the images."""
    table = drawing.table[["seed", "prompt"]].assign(model=drawing.model, version=drawing.version)
    table = table.join(drawing.table[[name for name in SHIELD if name in drawing.table]])
    table.to_csv(folder / "manifest.csv", index=False, lineterminator="\n")


def _json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
