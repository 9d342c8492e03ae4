"""`synthmri check`: the table of whose each scan is, what edits of it do, and what stops a run of real data."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_preprocess import contents, head, here, nifti, parameters, picture, run  # noqa: F401
from test_readers import AXIAL, save_dicom, volume

from commands import _console, check
from stages import _secrets
from synthmri import params
from synthmri.errors import UserError
from synthmri.scans import inventory, likeness, participants, read, slicing

NAMES = ["anna", "berta", "carla", "dora", "emma"]


def table() -> list[dict[str, str]]:
    with open("raw/subjects.csv", newline="") as file:
        return list(csv.DictReader(file))


def write(rows: list[dict[str, str]]) -> None:
    with open("raw/subjects.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "subject", "contrast", "label", "use"])
        writer.writeheader()
        writer.writerows(rows)


def visits(subjects=NAMES) -> None:
    for n, name in enumerate(subjects):
        for visit in ("baseline", "followup"):
            nifti(f"{name}_{visit}_FLAIR.nii.gz", 10 * n + (visit == "followup"))


def data() -> slicing.Data:
    return params.read(Path("params.yaml"), "data", slicing.Data)


def test_doubt_stops_a_run_until_it_is_confirmed(here, capsys):  # noqa: F811
    visits()
    with pytest.raises(UserError, match="(?s)in doubt.*guessed from a name.*10 scans.*synthmri check.*confirmed"):
        run()
    assert not Path("out/slices").exists() and not Path("raw/subjects.csv").exists()
    with pytest.raises(UserError, match="a run would stop at what is marked"):
        check.main(Path("raw"))
    shown = capsys.readouterr().out
    assert "5 people, 10 scans" in shown and "FLAIR 2" in shown and "? whose it is was guessed" in shown
    assert [(row["path"], row["subject"], row["use"]) for row in table()[:2]] == [
        ("anna_baseline_FLAIR.nii.gz", "anna", "yes"),
        ("anna_followup_FLAIR.nii.gz", "anna", "yes"),
    ]
    with pytest.raises(UserError, match="in doubt"):  # nobody looked at it
        run()
    parameters(subjects="confirmed")
    sets, _ = run()
    assert [part.manifest["subject"].nunique() for part in sets.values()] == [3, 1, 1]
    check.main(Path("raw"))
    nifti("nina_FLAIR.nii.gz", 77)  # what was confirmed is no longer what is there
    for _ in range(2):
        with pytest.raises(UserError, match="(?s)in doubt.*is not that of what is found now"):
            run()
        with pytest.raises(UserError, match="a run would stop"):
            check.main(Path("raw"))
        assert len(table()) == 10  # what was confirmed stays
    parameters(subjects="check")
    with pytest.raises(UserError):
        check.main(Path("raw"))
    assert len(table()) == 11
    parameters(subjects="confirmed")
    run()


def test_certain_people_ask_nothing(here, capsys):  # noqa: F811
    for n in range(5):
        nifti(f"sub-0{n}/anat/sub-0{n}_FLAIR.nii.gz", n)
    check.main(Path("raw"))
    assert "?" not in capsys.readouterr().out
    _, metrics = run()
    assert metrics["files"]["used"] == 5


def test_an_edited_table_rules(here):  # noqa: F811
    visits()
    nifti("anna2_FLAIR.nii.gz", 99)
    with pytest.raises(UserError):
        check.main(Path("raw"))
    rows = table()
    for row in rows:
        row["subject"] = "anna" if row["path"].startswith("anna2") else row["subject"]
        row["label"] = "ms" if row["subject"] in ("anna", "berta") else "none"
        row["use"] = "no" if row["path"].startswith("emma_followup") else row["use"]
    rows.append(
        {"path": "d*_FLAIR.nii.gz", "contrast": "T2w"}
    )  # the last that fits rules; an empty cell changes nothing
    write(rows)
    held = inventory.take(Path("raw"), data())
    assert held.edited and not inventory.unsettled(held, data())
    whose = {source.name.split("_")[0]: source.subject for source in held.sources}
    assert whose == {name: name for name in NAMES} | {"anna2": "anna"}
    assert {source.label for source in held.sources if source.subject == "anna"} == {"ms"}
    assert {source.contrast for source in held.sources if source.subject == "dora"} == {"T2w"}
    assert len(held.sources) == 10
    sets, metrics = run()
    assert metrics["files_left_out"] == {"table": 1}
    assert {label for part in sets.values() for label in part.manifest["label"]} == {"ms", "none"}
    before = Path("raw/subjects.csv").read_bytes()
    check.main(Path("raw"))  # keeps what a person wrote
    assert table() == [
        {key: row.get(key, "") for key in ("path", "subject", "contrast", "label", "use")} for row in rows
    ]
    assert before.splitlines()[1:] == Path("raw/subjects.csv").read_bytes().splitlines()[1:]


def test_files_that_came_after_an_edit_are_in_doubt_again(here):  # noqa: F811
    visits()
    write([{"path": "*_baseline_*", "subject": ""}, {"path": "*_followup_*"}])
    held = inventory.take(Path("raw"), data())
    assert held.edited and not inventory.unsettled(held, data())
    nifti("nina_FLAIR.nii.gz", 77)
    held = inventory.take(Path("raw"), data())
    assert inventory.unsettled(held, data()) and held.rows[-1].path == "nina_FLAIR.nii.gz"
    for subjects in ("check", "confirmed"):
        parameters(subjects=subjects)
        with pytest.raises(UserError, match="a run would stop"):  # however often nobody looks
            check.main(Path("raw"))
        with pytest.raises(UserError, match="in doubt"):
            run()
    assert table()[-1]["use"] == "yes?" and len(table()) == 3
    write([row | {"use": row["use"].removesuffix("?")} for row in table()])
    assert not inventory.unsettled(inventory.take(Path("raw"), data()), data())


def test_one_person_in_two_spellings_of_the_table_is_one(here):  # noqa: F811
    """A spreadsheet takes the zeros of 0012345 away, and a follow-up comes with them."""
    visits(["0012345", "berta", "carla"])
    write([{"path": "0012345_b*", "subject": "12345"}, {"path": "0012345_f*"}, {"path": "b*", "subject": "Carla"}])
    found = {source.name: source.subject for source in inventory.take(Path("raw"), data()).sources}
    assert found["0012345_baseline_FLAIR.nii.gz"] == found["0012345_followup_FLAIR.nii.gz"] == "12345"
    assert found["berta_baseline_FLAIR.nii.gz"] == found["carla_baseline_FLAIR.nii.gz"] == "Carla"


def test_a_name_that_is_no_text_is_refused_and_the_rest_goes_on(here, capsys):  # noqa: F811
    for n in range(3):
        nifti(f"sub-0{n}_FLAIR.nii.gz", n)
    os.rename(b"raw/sub-02_FLAIR.nii.gz", b"raw/M\xfcller_FLAIR.nii.gz")
    for _ in range(2):
        check.main(Path("raw"))
        assert "skipped M\\xfcller_FLAIR.nii.gz: has a name that is not UTF-8" in capsys.readouterr().out
    assert [row["path"] for row in table()] == ["sub-00_FLAIR.nii.gz", "sub-01_FLAIR.nii.gz"]


def test_folders_patterns_and_windows_in_the_table(here):  # noqa: F811
    for n in range(1, 4):
        for k in range(3):
            picture(f"{n}/day1/{k}.png", 10 * n + k)
    write(
        [
            {"path": "data\\raw\\1\\", "subject": "eins"},
            {"path": "2/*/[01].png", "subject": "zwei", "contrast": "flair", "label": "x"},
            {"path": "3", "subject": "unknown", "use": "Yes"},
            {"path": "nobody/*", "subject": "niemand"},
        ]
    )
    held = inventory.take(Path("raw"), data())
    found = {source.name: (source.subject, source.contrast, source.label) for source in held.sources}
    assert found["1/day1/2.png"] == ("eins", "", "") and found["2/day1/1.png"] == ("zwei", "FLAIR", "x")
    assert found["2/day1/2.png"][0] is None and found["3/day1/0.png"][0] is None
    assert held.unused == ["nobody/*"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("subject,use\nanna,yes\n", "no column `path`"),
        ("path,contrast\na,T3w\n", "line 2: contrast 'T3w'; write one of T1w, T1ce"),
        ("path,use\na,yes\nb,perhaps\n", "line 3: use 'perhaps'; write yes or no"),
        ("path,subject\n,anna\n", "line 2: no path"),
    ],
)
def test_a_table_that_cannot_be_understood_says_where(here, text, message):  # noqa: F811
    Path("raw/subjects.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        inventory.take(Path("raw"), data())


def test_a_table_of_a_spreadsheet_is_read(here):  # noqa: F811
    nifti("anna_FLAIR.nii.gz", 1)
    Path("raw/subjects.csv").write_text("\ufeffPath ; Subject;use\nanna_FLAIR.nii.gz;Änne;YES\n", encoding="utf-8")
    assert inventory.take(Path("raw"), data()).sources[0].subject == "Änne"
    Path("raw/subjects.csv").write_bytes("path;subject\na;Änne\n".encode("cp1252"))
    with pytest.raises(UserError, match="save it as CSV in UTF-8"):
        inventory.take(Path("raw"), data())


def test_what_is_left_out_stands_in_the_table_and_can_be_taken(here):  # noqa: F811
    for n in range(3):
        nifti(f"sub-0{n}/anat/sub-0{n}_FLAIR.nii.gz", n)
        nifti(f"sub-0{n}/anat/sub-0{n}_desc-brain_mask.nii.gz", 10 + n)
    check.main(Path("raw"))
    rows = {row["path"]: row["use"] for row in table()}
    assert rows["sub-00/anat/sub-00_desc-brain_mask.nii.gz"] == "no: mask"
    write([{"path": "*_mask.nii.gz", "use": "yes"}])
    assert len(inventory.take(Path("raw"), data()).sources) == 6


def test_dicom_beside_the_nifti_made_of_it_is_one_person(here, capfd):  # noqa: F811
    for n in range(5):
        for k in range(24):
            place = {"ImagePositionPatient": [0, 0, 4.0 * k], "PixelSpacing": [4, 4], "PatientID": f"47{n}"}
            place |= {"SeriesInstanceUID": f"1.{n}", "ImageOrientationPatient": AXIAL["ImageOrientationPatient"]}
            save_dicom(Path(f"raw/P000{n}/dicom/{k}"), head(n)[:, :, k].T, **place)
        nifti(f"P000{n}/nifti/FLAIR.nii.gz", n)
    sets, metrics = run()
    people = [set(part.manifest["subject"]) for part in sets.values()]
    assert [len(found) for found in people] == [3, 1, 1] and len(set.union(*people)) == 5
    assert metrics["files"]["used"] == 10 and "look alike" not in capfd.readouterr().err


def test_dicom_has_a_row_a_series(here):  # noqa: F811
    for n in range(3):
        for k in range(4):
            place = {"ImagePositionPatient": [0, 0, k], "SeriesInstanceUID": f"1.{n}", "PatientID": f"A{n}"}
            save_dicom(Path(f"raw/{n}/{k}"), volume()[:, :, k].T, **AXIAL | place)
    check.main(Path("raw"))
    assert [(row["path"], row["subject"], row["contrast"]) for row in table()] == [
        (f"{n}/", f"A{n}", "FLAIR") for n in range(3)
    ]


def test_assumptions_fill_what_pictures_cannot_tell(here):  # noqa: F811
    for n in range(3):
        for k in range(4):
            picture(f"patient{n}/{k}.png", 10 * n + k)
    nifti("patient3/scan.nii.gz", 88)
    parameters(assume={"contrast": "FLAIR", "plane": "axial"}, contrasts=["FLAIR"])
    sets, metrics = run()
    assert {(row.contrast, row.plane) for part in sets.values() for row in part.manifest.itertuples()} == {
        ("FLAIR", "axial")
    }
    assert metrics["files"] == {"found": 13, "asked_for": 12, "used": 12}  # a volume may be anything
    assert sets["train"].meta["pixel_mm"] is None


def test_classes_are_labels_of_volumes_too(here, capsys):  # noqa: F811
    for n, group in enumerate(["AD", "AD", "CN", "CN", "MCI"]):
        nifti(f"{group}/P000{n}_FLAIR.nii.gz", n)
    check.main(Path("raw"))
    assert "look like classes: AD, CN, MCI; name them in data.classes" in capsys.readouterr().out
    parameters(classes=["AD", "CN", "MCI"])
    sets, _ = run()
    labels = [label for part in sets.values() for label in part.manifest.drop_duplicates("subject")["label"]]
    assert sorted(labels) == ["AD", "AD", "CN", "CN", "MCI"]


def test_nothing_of_the_table_gets_out(here, capsys):  # noqa: F811
    visits()
    parameters(subjects="confirmed")
    check.main(Path("raw"))
    run()
    for name, content in contents("out").items():
        for word in NAMES:
            assert word not in name and word.encode() not in content


def test_only_where_it_is_used(here, monkeypatch):  # noqa: F811
    visits()
    parameters(source="simulated")
    check.main(Path("raw"), if_used=True)
    assert not Path("raw/subjects.csv").exists()
    monkeypatch.setattr(sys, "argv", ["synthmri", "check", "--raw", "raw"])
    with pytest.raises(SystemExit, match="1"):
        _console.main()
    assert len(table()) == 10


# Labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head", ["participant_id\tage\tlabel", " Participant ID \tage\tLabel ", "PARTICIPANT_ID,age,LABEL"]
)
def test_labels_match_whatever_way_ids_are_written(here, head):  # noqa: F811
    for n in (1, 2, 3, 10):
        nifti(f"sub-{n:02d}/anat/sub-{n:02d}_T1w.nii.gz", n)
    separator = "\t" if "\t" in head else ","
    rows = [("01", "1", "a"), ("sub-02", "2", "b"), ("3", "3", "a"), ("Sub-010", "4", "n/a")]
    Path("raw/participants.tsv").write_text("\n".join([head, *map(separator.join, rows)]) + "\n")
    sources, _ = read.find(Path("raw"))
    assert [(source.label, source.doubts) for source in sources] == [("a", ()), ("b", ()), ("a", ()), ("", ())]


def test_labels_that_match_nobody_are_in_doubt(here):  # noqa: F811
    for n in (1, 2, 3):
        nifti(f"set/sub-0{n}/anat/sub-0{n}_T1w.nii.gz", n)
    Path("raw/set/participants.tsv").write_text("participant_id\tlabel\nx1\ta\nsub-02\tb\nsub-02\tc\n")
    sources, _ = read.find(Path("raw"))
    assert [source.doubts for source in sources] == [
        (participants.UNLABELLED,), (participants.TWO_LABELS,), (participants.UNLABELLED,),
    ]  # fmt: skip


# Likeness -------------------------------------------------------------------------------------------------------------


def test_a_turned_moved_mirrored_copy_is_seen_and_others_are_not():
    from scipy import ndimage

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    inside = ((y - 48) / 38) ** 2 + ((x - 48) / 30) ** 2 < 1
    heads = ndimage.gaussian_filter(rng.normal(size=(5, 6, 96, 96)), (0, 0, 2, 2))
    heads = np.where(inside, 120 + 500 * heads, 0).clip(0, 255)
    copy = np.stack([ndimage.shift(ndimage.rotate(image, 7, reshape=False, order=1), (5, -3)) for image in heads[0]])
    images = np.concatenate([*heads, 0.8 * copy[:, :, ::-1]]).clip(0, 255).astype(np.uint8)
    people = np.repeat(["a", "b", "c", "d", "e", "copy"], 6)
    ((one, other, value),) = likeness.alike(images, np.arange(len(images)), list(people))
    assert {one, other} == {"a", "copy"} and value > 0.7


def test_two_names_of_one_person_are_named_on_the_screen(here, capfd):  # noqa: F811
    import nibabel

    for n in range(4):
        nifti(f"patient{n}/FLAIR.nii.gz", 10 * n)
    image = nibabel.load("raw/patient0/FLAIR.nii.gz")
    Path("raw/patient9").mkdir()
    moved = np.roll(np.asarray(image.dataobj), 1, 0) * 3 + np.random.default_rng(0).normal(size=image.shape)
    nibabel.save(nibabel.Nifti1Image(moved, image.affine), "raw/patient9/FLAIR.nii.gz")
    parameters(duplicate_correlation=1.0)
    run()
    assert "warning: patient0 and patient9 look alike (FLAIR" in capfd.readouterr().err


# The file system ------------------------------------------------------------------------------------------------------


def test_links_pipes_and_loops_are_named_with_a_remedy(here, capsys):  # noqa: F811
    for n in range(3):
        nifti(f"sub-0{n}/anat/sub-0{n}_T1w.nii.gz", n)
    Path("raw/dead.nii").symlink_to("nothing.nii")
    Path("raw/loop.nii").symlink_to("loop.nii")
    Path("raw/sub-00/up").symlink_to("..")
    os.mkfifo("raw/pipe")
    sources, bad = read.find(Path("raw"))
    assert len(sources) == 3
    assert {(error.name, error.category) for error in bad} == {
        (name, "special") for name in ("dead.nii", "loop.nii", "pipe")
    }
    with pytest.raises(
        UserError, match="`dvc repro` would stop or wait without end at dead.nii, loop.nii, pipe; remove"
    ):
        check.main(Path("raw"))
    assert "a pipe, a socket or a device" in capsys.readouterr().out


def test_a_folder_without_permission_is_named(here, monkeypatch):  # noqa: F811
    for n in range(3):
        nifti(f"sub-0{n}/anat/sub-0{n}_T1w.nii.gz", n)
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("sub-01"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    sources, (error,) = read.find(Path("raw"))
    assert len(sources) == 2 and error.category == "folder"
    assert str(error).startswith("sub-01: is a folder that cannot be entered") and "chmod" in str(error)


def test_a_secret_that_is_none_says_so(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "utf16").write_text("a" * 40, encoding="utf-16")
    (tmp_path / "dead").symlink_to("nothing")
    for name in ("folder", "utf16", "dead"):
        with pytest.raises(UserError, match=f"{name} .*remove it for a new secret"):
            _secrets.secret(tmp_path / name)


def test_alike_files_are_one_line_and_who_loses_all_is_named(here, capfd):  # noqa: F811
    for n in range(5):
        nifti(f"patient{n}/FLAIR.nii.gz", n)
    for n in range(6):
        Path(f"raw/patient9/x{n}_FLAIR.nii").parent.mkdir(exist_ok=True)
        Path(f"raw/patient9/x{n}_FLAIR.nii").write_bytes(b"x" * (400 + n))
    parameters(max_bad_fraction=0.9)
    run()
    said = capfd.readouterr().err
    assert said.count("skipped") == 1 and "skipped 6 files: cannot be read" in said
    assert "(patient9/x0_FLAIR.nii, patient9/x1_FLAIR.nii, patient9/x2_FLAIR.nii, ...)" in said
    assert "nothing is left of 1 people (patient9)" in said


def test_messages_name_the_file_at_fault_and_a_remedy_that_helps(tmp_path):
    import gzip

    import torch

    for k in range(5):
        save_dicom(tmp_path / "a" / f"IM{k}", volume()[:, :, k].T, **AXIAL, ImagePositionPatient=[0, 0, k])
    path = tmp_path / "a/IM3"
    path.write_bytes(path.read_bytes()[:-300])
    nifti_bytes = b"\0" * 400
    (tmp_path / "b.nii").write_bytes(gzip.compress(nifti_bytes))
    (tmp_path / "c.nii.gz").write_bytes(nifti_bytes)
    torch.save(torch.eye(20).to_sparse(), tmp_path / "d.pt")
    said = {}
    for source in read.find(tmp_path)[0]:
        with pytest.raises(UserError) as caught:
            read.read(source)
        said[source.name] = str(caught.value)
    assert said["a/IM0"].startswith("a/IM3: ")
    assert "rename it to .nii.gz" in said["b.nii"] and "rename it to .nii" in said["c.nii.gz"]
    assert "to_dense" in said["d.pt"]
    assert not any("copy it again" in said[name] for name in ("b.nii", "c.nii.gz", "d.pt"))


def test_command_line_in_a_folder_of_ones_own(here):  # noqa: F811
    visits()
    command = [sys.executable, "-m", "commands.check", "--raw", "raw"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr.startswith("error: a run would stop") and "Traceback" not in done.stderr
