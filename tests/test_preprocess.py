"""The stage as a whole: folders of scans in, ImageSets out; same bytes again, nothing of a person in them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from test_readers import AXIAL, save_dicom
from test_slices import DATA, ball

from stages import preprocess
from synthmri import imageset, params
from synthmri.errors import UserError
from synthmri.reporting import answers
from synthmri.scans import slicing

RUNTIME = {"threads": 1, "device": "cpu"}
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty project: params.yaml and raw/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    parameters()
    return tmp_path


def parameters(*, workers: int = 1, cluster: str = "", **changes) -> None:
    data = DATA | {"min_head_fraction": 0.05} | changes
    os.environ |= {"SYNTHMRI_WORKERS": str(workers), "SYNTHMRI_CLUSTER": cluster}  # until the test ends: conftest.py
    Path("params.yaml").write_text(yaml.safe_dump({"runtime": RUNTIME, "data": data}))


def head(seed: int) -> np.ndarray:
    """A ball of 20 x 24 x 28 voxels of 4 mm with blobs of its own inside."""
    from scipy import ndimage

    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(24, 24, 24)), 1.5)
    return (ball((4.0, 4.0, 4.0), extent=96) * (0.6 + 2 * texture)).clip(0).astype(np.float32)


def nifti(name: str, seed: int) -> None:
    path = Path("raw", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(head(seed), np.diag([4.0, 4.0, 4.0, 1.0])), path)


def cohort(subjects: int = 5) -> None:
    for n in range(subjects):
        nifti(f"patient{n}/study1_FLAIR.nii.gz", 10 * n)
        nifti(f"patient{n}/study2_FLAIR.nii.gz", 10 * n + 1)


def picture(name: str, seed: int) -> None:
    path = Path("raw", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(head(seed)[12].clip(0, 255).astype(np.uint8)).save(path)


def run(out: str = "out") -> tuple[dict[str, imageset.ImageSet], dict]:
    preprocess.main(Path("raw"), Path(out, "slices"), Path(out, "data.json"), Path(out, "sheet.png"))
    sets = {name: imageset.read(Path(out, "slices", name)) for name in ("train", "val", "test")}
    return sets, json.loads(Path(out, "data.json").read_text())


def contents(out: str) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(Path(out).rglob("*")) if path.is_file()}


def test_volumes_are_split_by_subject(here):
    cohort()
    sets, metrics = run()
    people = [set(part.manifest["subject"]) for part in sets.values()]
    assert [len(group) for group in people] == [3, 1, 1]
    assert len(set.union(*people)) == 5
    for name, part in sets.items():
        # Both visits of a subject are on its side, and each row tells where it is from.
        assert (part.manifest.groupby("subject")["source"].nunique() == 2).all()
        assert set(part.manifest["split"]) == {name}
        assert list(part.manifest.columns) == preprocess.COLUMNS
        assert metrics[name]["images"] == len(part) == metrics[name]["contrast"]["FLAIR"]
    first = sets["train"].manifest.iloc[0]
    assert (first["contrast"], first["plane"], first["slice_mm"], first["label"]) == ("FLAIR", "axial", "4.000", "")
    assert sets["train"].meta["pixel_mm"] == 2.0
    assert sets["train"].meta["orientation"].startswith("anterior up")
    assert metrics["files"] == {"found": 10, "asked_for": 10, "used": 10}
    assert Image.open("out/sheet.png").size == (1024, 712)
    assert not list(Path("out").rglob("*.raw")) and not list(Path("out").glob(".*"))


def test_pseudonyms_hang_on_a_secret_that_stays_with_the_scans(here):
    cohort(4)

    def people(out: str) -> list[str]:
        sets, _ = run(out)
        return [name for part in sets.values() for name in part.manifest["subject"]]

    first = people("one")
    secret = Path("raw/.salt").read_text()
    assert people("again") == first and len(secret.strip()) == 64
    outputs = [file for folder in ("one", "again") for file in Path(folder).rglob("*") if file.is_file()]
    assert outputs and not any(secret.strip().encode() in file.read_bytes() for file in outputs)
    Path("raw/.salt").unlink()
    assert not set(people("other")) & set(first)
    Path("raw/.salt").write_text("short")
    with pytest.raises(UserError, match="raw/.salt holds 5 characters"):
        run("last")


def test_folders_of_pictures_that_are_people_are_split_by_person(here):
    """P0001 is no name that says whose it is, but three or more such folders are people."""
    for person in range(5):
        for n in range(40):
            picture(f"P{person:04d}/{n:03d}.png", 100 * person + n)
    parameters(border_gap=2)
    sets, metrics = run()
    whose = {name: set(part.manifest["subject"]) for name, part in sets.items()}
    assert [len(people) for people in whose.values()] == [3, 1, 1] and len(set.union(*whose.values())) == 5
    assert metrics["slices_dropped"]["border_gap"] == 0 and metrics["train"]["images"] == 120


def test_other_contrasts_are_left_out(here):
    cohort()
    nifti("patient9/study1_T1W.nii.gz", 99)
    nifti("patient9/scan.nii.gz", 98)
    parameters(contrasts=["FLAIR"])
    _, metrics = run()
    assert metrics["files"] == {"found": 12, "asked_for": 10, "used": 10}
    parameters(contrasts=["T2w"])
    with pytest.raises(UserError, match=r"contrasts = \['T2w'\], but raw holds {'FLAIR': 10, 'T1w': 1, 'unknown': 1}"):
        run()
    parameters(contrasts=["FLAIR", "unknown"])
    assert run()[1]["files"]["used"] == 11


def test_pictures_are_split_in_blocks_of_each_folder(here):
    for n in range(30):
        picture(f"glioma/{n + 1}.png", n)
        picture(f"pituitary/{n + 901}.png", 100 + n)
    parameters(subjects="confirmed", border_gap=2, classes=["glioma", "pituitary"])
    sets, metrics = run()
    for label in ("glioma", "pituitary"):
        # The running number is that of the natural order over all, so of the file number in a folder.
        numbers = {
            name: sorted(int(source[-4:]) for source in part.manifest["source"][part.manifest["label"] == label])
            for name, part in sets.items()
        }
        assert [len(of_split) for of_split in numbers.values()] == [16, 5, 5]
        assert numbers["val"][0] - numbers["train"][-1] == 3
        assert numbers["test"][0] - numbers["val"][-1] == 3
    assert metrics["slices_dropped"]["border_gap"] == 8
    assert metrics["val"] == {
        "images": 10,
        "subjects": 0,
        "contrast": {"unknown": 10},
        "label": {"glioma": 5, "pituitary": 5},
    }
    assert sets["train"].meta["pixel_mm"] is None
    assert set(sets["train"].manifest["depth_mm"]) == {""}


def test_tensor_is_split_in_blocks(here):
    np.save("raw/a.npy", np.stack([head(n)[12] for n in range(30)]))
    parameters(subjects="confirmed")
    sets, _ = run()
    assert [len(part) for part in sets.values()] == [12, 4, 4]


def test_bytes_do_not_depend_on_workers_or_time(here):
    cohort(4)
    Path("raw/broken.nii").write_bytes(b"x" * 400)
    parameters(subjects="confirmed", max_bad_fraction=0.5)
    run("one")
    run("again")
    parameters(subjects="confirmed", max_bad_fraction=0.5, workers=2)
    run("two")
    assert contents("one") == contents("again") == contents("two")


def test_nothing_of_a_person_gets_out(here, capfd):
    secret = "Qwertz"
    for n in range(4):
        for k in range(24):
            save_dicom(
                Path(f"raw/{secret}{n}/2019-05-17/{secret}{k}.dcm"),
                head(n)[:, :, k].T,
                PatientName=f"{secret}^{n}",
                PatientID=f"{secret}{n}",
                StudyDate="20190517",
                SeriesInstanceUID=f"1.2.{n}",
                SeriesDescription=f"T2 {secret}",
                ImageOrientationPatient=AXIAL["ImageOrientationPatient"],
                ImagePositionPatient=[0, 0, 4.0 * k],
                PixelSpacing=[4, 4],
            )
        nifti(f"{secret}{n}_FLAIR.nii.gz", 50 + n)
    picture(f"{secret.upper()}/{secret}.png", 3)
    Path(f"raw/{secret}.nii").write_bytes(b"x" * 400)
    parameters(subjects="confirmed", max_bad_fraction=0.5)
    run()
    for name, content in contents("out").items():
        for word in (secret, secret.upper(), secret.lower(), "2019", "broken"):
            assert word not in name and word.encode() not in content, (word, name)
    assert f"skipped {secret}.nii: cannot be read" in capfd.readouterr().err  # the log stays on this machine


def test_what_will_stop_a_later_stage_is_said_at_once(here, capfd):
    cohort()
    parameters(image_size=88)
    out = [Path("out", name) for name in ("slices", "data.json", "sheet.png")]
    preprocess.main(Path("raw"), *out, least=1000)
    said = " ".join(capfd.readouterr().err.split())
    for name in ("train", "test"):
        assert f"{name} slices, below evaluate.min_images = 1000: nothing will be scored" in said
    assert "validation slices, below" in said and "no model can become champion" in said
    assert "the baselines" not in said
    people = json.loads(out[1].read_text())["train"]["subjects"]
    assert 0 < people < answers.LEAST_PEOPLE == preprocess.FEW_PEOPLE
    assert f"{people} people to train on: so few cannot be protected" in said
    preprocess.main(Path("raw"), *out, least=1, image_px=128)
    said = capfd.readouterr().err
    assert "min_images" not in said and "the baselines would learn 88 px" in " ".join(said.split())


def test_a_volume_of_one_bright_voxel_gives_no_slice_and_stops_nothing(here):
    """It lies between those that the threshold is sought on, as the mask of a small lesion may."""
    cohort()
    volume = np.zeros((80, 80, 80), np.float32)
    volume[41, 41, 41] = 1
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([3.0, 3.0, 3.0, 1.0])), "raw/patient0/spot_FLAIR.nii.gz")
    _, metrics = run()
    assert metrics["files"] == {"found": 11, "asked_for": 11, "used": 10}
    data = params.parse(DATA, "data", slicing.Data)
    with pytest.raises(UserError, match="no head stands out from the background"):
        slicing.from_volume(np.zeros((80, 80, 80)), (3.0, 3.0, 3.0), data)
    assert slicing.from_pictures(np.zeros((1, 80, 80)), data.model_copy(update={"min_head_fraction": 0.0})).dropped == {
        "empty": 1
    }


def test_bad_files_are_counted_up_to_a_bound(here):
    cohort(5)
    Path("raw/broken.nii").write_bytes(b"x" * 400)
    Path("raw/sheet.xlsx").write_bytes(b"x" * 400)
    parameters(subjects="confirmed")
    _, metrics = run()  # 1 of 11, and a file that is no scan at all
    assert metrics["files_skipped"] == {"format": 1, "unreadable": 1}
    Path("raw/broken2.nii").write_bytes(b"x" * 400)
    before = contents("out")
    with pytest.raises(UserError, match="2 of 12 scans cannot be used, more than data.max_bad_fraction = 0.1"):
        run()
    assert contents("out") == before  # what was there is still there, whole


def test_duplicates_across_the_split(here):
    for n in range(40):
        picture(f"{n}.png", n)
    picture("38.png", 0)  # in test, the same as one in train
    parameters(subjects="confirmed")
    sets, metrics = run()
    assert metrics["slices_dropped"]["duplicate_exact"] == 1
    assert [len(part) for part in sets.values()] == [18, 6, 5]


def test_one_patient_under_two_names_is_a_leak(here):
    for name in ("anna", "berta", "carla"):
        nifti(f"{name}.nii.gz", 1)
    parameters(subjects="confirmed")
    with pytest.raises(UserError, match="the split leaks: .* two names"):
        run()


@pytest.mark.parametrize("files", [[], ["README.md", ".gitignore"], ["notes.docx"]])
def test_empty_folder_tells_what_to_put_there(here, files):
    for name in files:
        Path("raw", name).write_text("x")
    with pytest.raises(UserError, match=r"raw holds no scans .*; put there NIfTI .* data.source to simulated"):
        run()


def test_one_subject_is_too_few(here):
    nifti("patient1/a_FLAIR.nii.gz", 1)
    nifti("patient1/b_FLAIR.nii.gz", 2)
    with pytest.raises(UserError, match="at least 3 are needed"):
        run()


def test_nothing_left(here):
    cohort(3)
    parameters(depth_mm=[200, 300])
    with pytest.raises(UserError, match="no slice is left of 6 scans"):
        run()


def test_all_splits_get_images(here):
    for n in range(8):
        picture(f"{n}.png", n)
    parameters(subjects="confirmed")
    with pytest.raises(UserError, match="no image is left for val, where 2 are needed .*data.border_gap = 5"):
        run()


def test_command_line(here):
    command = [sys.executable, "-m", "stages.preprocess", "--raw", "raw", "--out", "o/slices"]
    command += ["--metrics", "o/data.json", "--sheet", "o/sheet.png"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: raw holds no scans") and "Traceback" not in done.stderr
    cohort(3)
    parameters(workers=2)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv("o/slices/train/manifest.csv")) > 0


# Real scans -----------------------------------------------------------------------------------------------------------

REAL = os.environ.get("REAL_MRI", "")
real = pytest.mark.skipif(not Path(REAL, "open-ms").is_dir(), reason="REAL_MRI names no folder of real scans")


@real
def test_real_volumes(here):
    for number in ("01", "04", "12"):
        scans = Path("raw", f"patient{number}")
        scans.mkdir()
        (scans / "s_FLAIR.nii.gz").write_bytes(
            Path(REAL, "open-ms", f"patient{number}", "study1_FLAIR.nii.gz").read_bytes()
        )
    parameters(depth_mm=[30, 90], image_size=128, field_of_view_mm=240, window_percentiles=[0.5, 99.5])
    sets, metrics = run()
    for part in sets.values():
        depths = part.manifest["depth_mm"].astype(float)
        assert 15 <= len(part) <= 21 and depths.between(30, 90).all()
        # Anterior up: a head is narrower in front than behind, so the upper half of it holds less.
        head = (np.asarray(part.images[: len(part) // 2]) > 40).mean(0) > 0.5
        rows = np.flatnonzero(head.any(1))
        assert 75 < len(rows) < 125  # 140 to 230 mm long
        quarter = len(rows) // 4
        assert head[rows[:quarter]].sum() < head[rows[-quarter:]].sum()
    assert metrics["slices_dropped"]["duplicate_near"] == 0


@real
def test_real_pictures(here):
    for label in ("glioma", "meningioma", "pituitary"):
        folder = Path("raw", "t1ce-tumor", label)
        folder.mkdir(parents=True)
        for path in sorted(Path(REAL, "t1ce-tumor", label).iterdir())[:40]:
            (folder / path.name).write_bytes(path.read_bytes())
    parameters(subjects="confirmed", contrasts=["T1ce"], image_size=256, classes=["glioma", "meningioma", "pituitary"])
    sets, metrics = run()
    assert metrics["train"]["label"] == {"glioma": 18, "meningioma": 18, "pituitary": 18}
    assert metrics["test"]["label"] == {"glioma": 6, "meningioma": 6, "pituitary": 6}
    assert sets["train"].images.shape[1:] == (256, 256)
