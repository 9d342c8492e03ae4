"""Whose a scan is, against trees whose people are known: the layouts of public collections, and those of hospitals."""

from pathlib import PurePosixPath

import pytest

from synthmri.scans import contrast, identity
from synthmri.scans.identity import (
    GUESS,
    JOINED,
    MANY_IN_ONE,
    NOBODY,
    ONE_IN_MANY,
    SAME_NUMBER,
    SHARED_ID,
    SPELLINGS,
    Trace,
)

FIVE = range(1, 6)
NAMES = ["anna", "berta", "carla", "dora", "emma"]


KINDS = {".gz": "nifti", ".nii": "nifti", ".npy": "tensor", ".pt": "tensor"}
KINDS |= dict.fromkeys([".png", ".jpg", ".tif"], "picture")
YALE = [(2001, "PRE"), (2002, "POST")]
GROUPS = ["AD", "AD", "CN", "CN", "MCI"]


def of(people, others) -> zip:
    return zip(people, others, strict=True)


def people(files: dict[str, list], classes: tuple = ()) -> list[identity.Whose]:
    """files: person -> names, or (name, PatientID)."""
    flat = [item if isinstance(item, tuple) else (item, "") for items in files.values() for item in items]
    return identity.people(
        [Trace(name, KINDS.get(PurePosixPath(name).suffix, "dicom"), patient) for name, patient in flat],
        classes,
        root="raw",
    )


def check(files: dict[str, list], classes: tuple = ()) -> set[str]:
    """The people found are those that were meant; returns the doubts."""
    found = people(files, classes)
    meant = [person for person, items in files.items() for _ in items]
    pairs = set(zip(meant, [whose.person for whose in found], strict=True))
    assert None not in {person for _, person in pairs}, pairs
    assert len(pairs) == len(files) == len({person for _, person in pairs}), sorted(pairs)
    return {doubt for whose in found for doubt in whose.doubts}


CERTAIN = {
    "upenn": {n: [f"UPENN-GBM-0000{n}_{v}/T1.nii.gz" for v in (11, 21)] for n in FIVE},
    "upenn in the file": {n: [f"UPENN-GBM-0000{n}_{v}_FLAIR.nii.gz" for v in (11, 21)] for n in FIVE},
    "oasis 2": {n: [f"OAS2_000{n}_MR{v}.nii.gz" for v in (1, 2)] for n in FIVE},
    "oasis 3": {n: [f"OAS3000{n}_MR_d{d}/anat/OAS3000{n}_T1w.nii.gz" for d in ("0129", "2340")] for n in FIVE},
    "oasis pictures": {n: [f"{c}/OAS1_000{n}_MR1_mpr-1_{k}.jpg" for k in (100, 101)] for n, c in of(FIVE, "aabbc")},
    "adni": {n: [f"002_S_029{n}_m{v}/brain.nii.gz" for v in (12, 24)] for n in FIVE},
    "adni tree": {
        n: [f"ADNI/002_S_029{n}/MP-RAGE/{day}_10_32_11.0/S1340{n}/ADNI_002_S_029{n}_MR_{n}.nii" for day in days]
        for n, days in of(FIVE, [("2006-04-18", "2006-11-02")] * 5)
    },
    "ixi": {n: [f"IXI00{n}-Guys-082{n}-{c}.nii.gz" for c in ("T1", "T2", "PD")] for n in FIVE},
    "brats 2020": {n: [f"BraTS20_Training_00{n}/slice_{k}.npy" for k in range(18)] for n in FIVE},
    "brats 2023": {n: [f"BraTS-GLI-0000{n}-00{v}/BraTS-GLI-0000{n}-00{v}-t1n.nii.gz" for v in (0, 1)] for n in FIVE},
    "brats 2018": {n: [f"HGG/Brats18_CBICA_AA{n}_1/Brats18_CBICA_AA{n}_1_t1ce.nii.gz"] for n in "ABCDE"},
    "lumiere": {n: [f"Patient-00{n}/week-{w}/T1.nii.gz" for w in ("000-1", "000-2", "044")] for n in FIVE},
    "remind": {n: [f"ReMIND-00{n}/{v}/T1.nii.gz" for v in ("preop", "intraop")] for n in FIVE},
    "mu-glioma": {n: [f"PatientID_000{n}/Timepoint_{v}/x_t1c.nii.gz" for v in (1, 2)] for n in FIVE},
    "ucsf": {n: [f"UCSF-PDGM-000{n}_{v}/FLAIR.nii.gz" for v in ("nifti", "FU001d_nifti")] for n in FIVE},
    "rhuh": {n: [f"RHUH-000{n}-{v}/T1.nii" for v in (0, 1, 2)] for n in FIVE},
    "fastmri": {n: [f"file_brain_AXT2_20{n % 2}_20000{n}1.npy"] for n in (11, 12, 13, 14, 15)},
    "lgg": {n: [f"TCGA_CS_494{n}_19960909/TCGA_CS_494{n}_19960909_{k}.tif" for k in FIVE] for n in FIVE},
    "cases by slice's class": {
        n: [f"case00{n}/{c}/0{k}.png" for c in ("tumour", "none") for k in (1, 2)] for n in FIVE
    },
    "classes by case": {n: [f"{c}/case00{n}/0{k}.png" for c in ("tumour", "none") for k in (1, 2)] for n in FIVE},
    "visits of pictures": {n: [f"P000{n}/visit{v}/{k}.png" for v in (1, 2, 3) for k in FIVE] for n in FIVE},
    "image and mask": {n: [f"P000{n}_image.npy", f"P000{n}_mask.npy"] for n in FIVE},
    "bids sessions": {n: [f"sub-0{n}/ses-{v}/anat/sub-0{n}_ses-{v}_T1w.nii.gz" for v in ("pre", "post")] for n in FIVE},
    "bids sites": {n: [f"Site{n % 2}/sub-0{n}/anat/sub-0{n}_T1w.nii.gz"] for n in FIVE},
    "one spelling with capitals": {n: [f"patient_{n}/T1.nii.gz", f"Patient{n}/T2.nii.gz"] for n in FIVE},
    "header": {n: [(f"export/1.2.840.{n}.1.2.3/{v}/IM0001", f"A-{n}") for v in ("2019", "2020")] for n in FIVE},
    "header and folder": {n: [(f"P000{n}/s{v}/IM0001", f"P000{n}") for v in (1, 2)] for n in FIVE},
    "header other than folder": {n: [(f"P000{n}/s{v}/IM0001", f"4711{n}") for v in (1, 2)] for n in FIVE},
    "visit in the header": {n: [(f"d{n}{v}/IM1", f"UPENN-GBM-0000{n}_{v}1") for v in (1, 2)] for n in FIVE},
    "dicom and nifti of it": {n: [(f"dicom/P000{n}/x/IM1", f"47-{n}"), f"nifti/P000{n}_T1.nii.gz"] for n in FIVE},
    "archive of cancer images": {
        n: [
            (f"Foo-Bar-0{n}/0{n}-25-2005-NA-BRAIN-9804{n}/{k}.0-T1 Axial-{n}1/1-0{k}.dcm", f"Foo-Bar-0{n}")
            for k in (1, 2)
        ]
        for n in FIVE
    },
    "oasis 1": {n: [f"disc1/OAS1_000{n}_MR{v}/RAW/OAS1_000{n}_MR{v}_mpr-1_anon.nii" for v in (1, 2)] for n in FIVE},
    "ppmi": {
        n: [f"PPMI/300{n}/x/2011-01-2{v}_15_22_47.0/S99/PPMI_300{n}_MR_raw_{v}.nii" for v in (1, 2)] for n in FIVE
    },
    "spaces": {n: [f"Pat {n} Visit {v}.nii" for v in (1, 2)] for n in FIVE},
    "zeros": {n: [f"sub-{n:03d}/anat/sub-{n:03d}_T1w.nii"] for n in (1, 10, 100, 2, 20)},
}
GUESSED = {
    "follow-up": {n: [f"{n}_baseline.nii.gz", f"{n}_followup.nii.gz"] for n in NAMES},
    "follow-up folders": {n: [f"{n}/{v}/scan.nii.gz" for v in ("baseline", "follow-up")] for n in NAMES},
    "months": {n: [f"{n}_m06_T1.nii.gz", f"{n}_12months_T1.nii.gz"] for n in NAMES},
    "time points": {n: [f"{n}/{v}/scan.nii" for v in ("T0", "T1", "T2")] for n in NAMES},
    "dates of pictures": {
        n: [f"{n}/{v}/{k}.png" for v in ("2019-05-11", "2020-01-02") for k in FIVE]
        for n in ("A_B", "C_D", "E_F", "G_H", "I_J")
    },
    "pre and post": {n: [f"{n}/{v}/T1.nii.gz" for v in ("pre", "post")] for n in NAMES},
    "sites": {n: [f"Site{s}/{n}/pre/T1.nii.gz"] for n, s in of((100, 101, 102, 103, 104), "AABBC")},
    "sites of other names": {
        n: [f"{s}/{n}/pre/T1.nii.gz"]
        for n, s in of((0, 2, 50, 51, 100), ["Utrecht", "Utrecht", "Singapore", "Singapore", "GE3T"])
    },
    "classes of numbers": {n: [f"{c}/{n}.nii.gz"] for n, c in of((101, 102, 103, 104, 105), GROUPS)},
    "classes of names": {n: [f"{c}/{n}.nii.gz"] for n, c in of(NAMES, GROUPS)},
    "parkinson": {n: [f"{c}/{n}.nii.gz"] for n, c in of(NAMES, ["PD", "PD", "HC", "HC", "HC"])},
    "contrast folders": {n: [f"{c}/{n:03d}.nii.gz" for c in ("T1", "FLAIR")] for n in FIVE},
    "numbers of visits": {n: [f"{n}{v}.nii.gz" for v in (1, 2)] for n in NAMES},
    "folders of visits": {n: [f"{n}/{v}/T1.nii.gz" for v in (1, 2)] for n in NAMES},
    "numbers twice": {n: [f"{n:03d}/{v:02d}/T1.nii.gz" for v in FIVE] for n in (1, 7, 9, 12, 30)},
    "training01_01": {n: [f"training0{n}/orig/training0{n}_0{v}_flair.nii.gz" for v in (1, 2, 3, 4)] for n in FIVE},
    "six digits": {n: [f"{n}/{v}/T1.nii" for v in ("190511", "200102")] for n in NAMES},
    "hcp": {n: [f"{n}/T1w/T1w_acpc_dc.nii.gz"] for n in (100307, 100408, 101107, 101309, 101915)},
    "hcp files": {n: [f"{n}_3T_T1w_MPR{v}.nii.gz" for v in (1, 2)] for n in (100307, 100408, 101107, 101309, 101915)},
    "males": {n: [f"M0{n}/T1.nii", f"M0{n}/T2.nii"] for n in FIVE},
    "scans": {n: [f"scan{n}.nii"] for n in FIVE},
    "windows": {
        n: [f"{n} (MRT Kopf)/Neuer Ordner/T1 - Kopie (2).nii.gz"]
        for n in ("Müller, A", "Weiß, B", "Öz, C", "Ek, D", "Noé, E")
    },
    "copies": {n: [f"{n}/T1.nii", f"{n} - Kopie/T1.nii", f"{n} (2)/T2.nii", f"Copy of {n}/T1.nii"] for n in NAMES},
    "yale": {n: [f"YG_{n}XYZ{n}/{y}-0{n}-01/YG_{n}XYZ{n}_{y}-0{n}-01_{c}.nii.gz" for y, c in YALE] for n in FIVE},
    "calgary": {n: [f"X{n:04d}_philips_15_5{n}_M.nii.gz"] for n in FIVE},
    "pictures by number": {n: [f"Q000{n}/{k}.png" for k in FIVE] for n in FIVE},
    "dates that differ": {
        n: [f"{n}_{d}.nii.gz" for d in (f"19051{k}", f"20010{k}")]
        for k, n in enumerate(("AB", "CD", "EF", "GH", "IJ"), 1)
    },
    "times": {n: [f"{n}_t1_mprage_20190510101010_3.nii.gz", f"{n}_t1_20200511121314_5.nii.gz"] for n in NAMES},
    "years first": {n: [f"{y}/{n}/T1.nii" for y in (2019, 2020)] for n in NAMES},
    "many visits": {n: [f"{n}/{v}/T1.nii.gz" for v in range(1, 9)] for n in NAMES},
    "many visits in the name": {n: [f"{n}{v}.nii.gz" for v in range(1, 9)] for n in NAMES},
    "accession numbers": {n: [f"{n}/{k * 17 + 4711}/T1.nii" for k in (i, i + 50)] for i, n in enumerate(NAMES)},
    "letters glued": {n: [f"HC{n:03d}T0.nii", f"HC{n:03d}T1.nii"] for n in FIVE},
    "scanners": {n: [f"{n}_3T.nii", f"{n}_Siemens7T.nii", f"{n}_1.5T.nii"] for n in NAMES},
    "pictures of numbers": {n: [f"{n}-{k}.png" for k in FIVE] for n in FIVE},
    "brain tree": {n: [f"{n}/brain/{c}.nii.gz" for c in ("t1", "t2")] for n in NAMES},
}  # fmt: skip
DAYS = [
    "2019-05-11",
    "20190511",
    "11.05.2019",
    "2019_05_11",
    "11-May-2019",
    "2019-05-11_10_32_11.0",
    "05-11-2019",
    "2019.05",
    "11-05-19",
]


@pytest.mark.parametrize("layout", CERTAIN)
def test_ids_of_known_forms_and_headers_are_certain(layout):
    assert check(CERTAIN[layout]) == set()


@pytest.mark.parametrize("layout", GUESSED)
def test_other_names_are_guessed_and_in_doubt(layout):
    assert GUESS in check(GUESSED[layout])


@pytest.mark.parametrize("day", DAYS)
@pytest.mark.parametrize("suffix", ["1.png", "T1.nii.gz"])
def test_dates_are_no_people(day, suffix):
    assert check({n: [f"{n}/{d}/{suffix}" for d in (day, "2021-02-03")] for n in NAMES}) == {GUESS}


@pytest.mark.parametrize(
    "files",
    [
        [f"batch_{k}.pt" for k in range(3)],
        [f"shard-0000{k}-of-00010.pt" for k in range(10)],
        [f"slices_{k}.npy" for k in range(30)],
        [f"{c}/{k}.png" for c in (1, 2, 3) for k in FIVE],  # classes as likely as people
        [f"{k}.png" for k in range(40)],
        [f"p{k:03d}.png" for k in range(40)],
        [f"{c}/{k}.png" for c in ("yes", "no", "Mild_Demented", "no_tumor", "glioma_tumor") for k in FIVE],
        [f"{c}/Te-gl_00{k}.jpg" for c in ("glioma", "meningioma", "pituitary", "notumor") for k in FIVE],
    ],
)
def test_nobody_knows_and_says_so(files):
    assert people({"?": files}) == [identity.Whose(None, (NOBODY,))] * len(files)


def test_conflicts_are_in_doubt():
    assert check({n: [f"patient_{n}/T1.nii", f"patient0{n}/T2.nii"] for n in FIVE}) == {SPELLINGS}
    codes = {n: [(f"P000{n}/x/IM1", f"SITE{n % 3}")] for n in FIVE}
    assert check(codes) == {SHARED_ID}
    assert check({n: [(f"{n}/x/IM1", "SITE1")] for n in NAMES}) == {GUESS}
    twice = {n: [(f"P000{n}/IM1", f"A{n}")] for n in range(1, 9)}
    twice[1].append(("P0009/IM1", "A1"))
    assert check(twice) == {JOINED}
    per_visit = {n: [(f"{n}/{v}/IM1", f"ACC{n}{v}") for v in (1, 2)] for n in NAMES}
    assert check(per_visit) == {JOINED, MANY_IN_ONE}
    codes = {n: [(f"{n}/IM1", f"SITE{k % 3}")] for k, n in enumerate(NAMES)}
    assert {doubt for whose in people(codes) for doubt in whose.doubts} == {ONE_IN_MANY}
    one_folder = {n: [(f"patient{n}/IM1", f"A{n}")] for n in FIVE}
    one_folder[5].append(("patient5/IM2", "B"))
    assert check(one_folder) == {JOINED}


def test_a_year_before_a_number_is_in_doubt():
    named = [f"PAT-2021-{n:05d}/FLAIR.nii.gz" for n in (17, 18)]
    found = identity.people([identity.Trace(name, "nifti") for name in named])
    assert all(identity.YEAR_OR_NUMBER in each.doubts for each in found)
    for name in ("patient_2021/FLAIR.nii.gz", "patient_7_2021-05-03/FLAIR.nii.gz", "case_001_002/T1.nii.gz"):
        assert not identity.people([identity.Trace(name, "nifti")])[0].doubts


def test_ids_that_deidentification_made_the_same_leave_the_folders():
    assert check({n: [(f"patient0{n}/IM1", "ANONYMOUS")] for n in FIVE}) == set()
    assert check({n: [(f"{n}/IM1", "anon")] for n in NAMES}) == {GUESS}


def test_the_same_number_below_sites_or_classes_is_in_doubt():
    assert SAME_NUMBER in check({f"{s}{n}": [f"Site{s}/00{n}/T1.nii.gz"] for s in "ABC" for n in FIVE})
    assert SAME_NUMBER in check({f"{s}{n}": [f"{s}/{n}.nii.gz"] for s in ("AD", "CN") for n in FIVE})
    centres = {f"{c}{n}": [f"Center_0{c}_Patient_0{n}/T1.nii"] for c in (1, 7, 8) for n in FIVE}
    assert check(centres) == {SAME_NUMBER}
    assert check({f"{s}{n}": [f"Site{s}/sub-0{n}/anat/sub-0{n}_T1w.nii"] for s in "ABC" for n in FIVE}) == {SAME_NUMBER}


def test_declared_classes_are_no_people():
    files = {n: [f"{c}/{n}/T1.nii.gz"] for n, c in zip(NAMES, ["edema", "edema", "cyst", "cyst", "P01"], strict=True)}
    assert check(files, ("edema", "cyst", "P01")) == {GUESS}
    assert people({"?": [f"grade{n}/1.png" for n in (1, 2, 3)]}, ("grade1", "grade2", "grade3"))[0].person is None


def test_people_of_two_trees_are_joined():
    files = {n: [f"{tree}/{n}/T1.nii.gz" for tree in ("old_server", "new_disk")] for n in NAMES}
    assert check(files) == {GUESS}


def test_person_is_written_as_in_the_name():
    (found,) = people({1: ["Patient_01/x/T1.nii"]})
    assert (found.person, found.names) == ("Patient_01", ("Patient_01",))
    (found,) = people({1: [("x/IM1", "4711")]})
    assert found.person == "4711"


def test_pseudonym_is_known_sha256():
    # printf id-1 | openssl dgst -sha256 -hmac salt
    assert identity.pseudonym("id-1", "salt") == "sub-508d175abdf3983b"


# Contrast -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, expected",
    [
        ("sub-01/ses-post/anat/sub-01_ses-post_T1w.nii.gz", "T1w"),
        ("sub-01_ses-pre_ce-gadolinium_T1w.nii", "T1ce"),
        ("sub-01_ce-none_T1w.nii", "T1w"),
        ("sub-01_acq-post_T1w.nii", "T1ce"),
        ("sub-01_acq-FLAIR_T2w.nii", "T2w"),
        ("sub-01_T2starw.nii", ""),
        ("sub-01_ses-post_t1ce.nii.gz", "T1ce"),
        ("T1_study/flair/x_T2w.nii", "T2w"),
        ("gd/T1.nii.gz", "T1w"),
        ("T2/scan.nii", "T2w"),
        ("BraTS_001_t1n.nii.gz", "T1w"),
        ("BraTS_001_t2f.nii.gz", "FLAIR"),
        ("anna/T1_post.nii.gz", "T1ce"),
        ("anna_T1_KM.nii.gz", "T1ce"),
        ("x.png", ""),
    ],
)
def test_contrast_of_names(name, expected):
    assert contrast.of_scan(name, {}) == (expected, "")


def test_contrast_of_names_in_doubt_and_of_time_points():
    assert contrast.of_name("anna_post_T1.nii")[1]
    assert contrast.of_name("anna/T1/scan.nii", {"t0", "t1"}) == ("", "")
    assert contrast.of_name("anna/T1/FLAIR.nii", {"t0", "t1"}) == ("FLAIR", "")
    assert contrast.of_name("PD/anna.nii", {"pd", "hc"}) == ("", "")
    assert contrast.of_name("PD/anna.nii", {"pd", "t1"}) == ("PD", "")


@pytest.mark.parametrize(
    "head, expected",
    [
        ({"SeriesDescription": "t2_tirm_tra_dark-fluid"}, "FLAIR"),
        ({"SeriesDescription": "T1 KM"}, "T1ce"),
        ({"SeriesDescription": "T1 o. KM"}, "T1w"),
        ({"SeriesDescription": "T1+C"}, "T1ce"),
        ({"SeriesDescription": "t1_mprage_sag nativ", "ContrastBolusAgent": "Gadovist"}, "T1w"),
        # Protocols of vendors, ms
        ({"RepetitionTime": 9000, "EchoTime": 81, "InversionTime": 2500, "ScanningSequence": ["SE", "IR"]}, "FLAIR"),
        ({"RepetitionTime": 5000, "EchoTime": 388, "InversionTime": 1800, "SequenceName": "*spcir_278ns"}, "FLAIR"),
        ({"RepetitionTime": 2300, "EchoTime": 2.98, "InversionTime": 900, "ScanningSequence": ["GR", "IR"]}, "T1w"),
        ({"RepetitionTime": 2000, "EchoTime": 9, "InversionTime": 860, "ScanningSequence": ["SE", "IR"]}, "T1w"),
        ({"RepetitionTime": 550, "EchoTime": 12, "ScanningSequence": "SE"}, "T1w"),
        ({"RepetitionTime": 550, "EchoTime": 12, "ScanningSequence": "SE", "ContrastBolusAgent": "Dotarem"}, "T1ce"),
        ({"RepetitionTime": 4000, "EchoTime": 100, "ScanningSequence": "SE"}, "T2w"),
        ({"RepetitionTime": 2500, "EchoTime": 15, "ScanningSequence": "SE"}, "PD"),
        ({"RepetitionTime": 5000, "EchoTime": 90, "ScanningSequence": ["EP", "SE"]}, ""),
        ({"RepetitionTime": 4000, "EchoTime": 60, "InversionTime": 150, "ScanningSequence": ["SE", "IR"]}, ""),
        ({"RepetitionTime": 27, "EchoTime": 20, "ScanningSequence": "GR"}, ""),
        ({}, ""),
    ],
)
def test_contrast_of_headers(head, expected):
    assert contrast.of_header(head) == (expected, "")


def test_a_header_that_contradicts_itself_is_in_doubt():
    head = {"SeriesDescription": "T1 axial", "RepetitionTime": 4000, "EchoTime": 100, "ScanningSequence": "SE"}
    assert contrast.of_header(head) == ("T1w", "its description says T1w, its times (TR, TE, TI) T2w")
