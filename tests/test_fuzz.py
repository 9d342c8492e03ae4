"""Mutated files of every format that is read: a clear error or what was promised, never a traceback, a hang, or a
success that is none. SYNTHMRI_FUZZ multiplies the number of cases (1 unless set)."""

import json
import os
import signal
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_imageset import example
from test_readers import AXIAL, dicom_slices, save_dicom, save_nifti, volume
from test_slices import DATA

from reader_study import ratings
from stages import _files
from synthmri import imageset, params
from synthmri.errors import UserError
from synthmri.evaluation import distances
from synthmri.generators import vae
from synthmri.scans import inventory, prompts, read, scan, slicing
from synthmri.training import loop

FACTOR = int(os.environ.get("SYNTHMRI_FUZZ", "1"))
SECONDS = 30  # far above what any case takes: beyond it hangs
ODD = [
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80\0\0\0",
    b"nan",
    b"-1",
    b"1e999",
    b"9" * 40,
    b'"',
    b",",
]


class Hangs(BaseException):
    """No Exception: what catches those of parsers must not catch it."""


@contextmanager
def in_time():
    def stop(number, frame):
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three of: bits flipped, bytes overwritten by odd ones, cut off, taken out, doubled, put in."""
    out = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        # Half of them near the start: headers are there.
        end = min(len(out), 400) if rng.random() < 0.5 else len(out)
        at, length = int(rng.integers(0, max(end, 1))), int(rng.integers(1, 33))
        match rng.integers(6):
            case 0:
                if out:
                    out[at] ^= 1 << rng.integers(8)
            case 1:
                odd = ODD[rng.integers(len(ODD))]
                out[at : at + len(odd)] = odd
            case 2:
                del out[at:]
            case 3:
                del out[at : at + length]
            case 4:
                out[at:at] = out[at : at + length]
            case 5:
                out[at:at] = rng.bytes(length)
    return bytes(out)


def cases(name: str, content: bytes, count: int):
    """(seed, mutated bytes), none of them the bytes that were there."""
    for seed in range(count * FACTOR):
        changed = mutate(content, np.random.default_rng([zlib.crc32(name.encode()), seed]))
        if changed != content:
            yield seed, changed


def attempt(function, *args):
    """What the function returns, or None where it raised a UserError with a text that can be printed."""
    with in_time(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*args)
        except UserError as error:
            assert str(error).strip().encode() and len(str(error)) < 20_000
            return None


# Scans ----------------------------------------------------------------------------------------------------------------


def write_scan(folder: Path, name: str) -> Path:
    """One good scan or picture; returns the file to mutate."""
    rng, path = np.random.default_rng(0), folder / name
    grey = rng.integers(0, 256, (32, 40), np.uint8)
    if ".nii" in name:
        return save_nifti(path, volume().astype(np.int16))
    if name.endswith(".dcm"):
        for number, (pixels, position) in enumerate(dicom_slices(volume().round())[:4]):
            save_dicom(folder / f"{number}.dcm", pixels, **AXIAL | {"ImagePositionPatient": position})
        return folder / "2.dcm"
    if name.endswith(".npy"):
        np.save(path, np.stack([grey] * 3))
    elif name.endswith(".pt"):
        torch.save(torch.from_numpy(np.stack([grey] * 3)), path, _use_new_zipfile_serialization=name != "legacy.pt")
    else:
        Image.fromarray(grey).save(path)
    return path


def read_folder(folder: Path) -> list[scan.Scan]:
    sources, bad = read.find(folder)
    assert all(isinstance(error, scan.BadFile) and str(error).encode() for error in bad)
    return [found for source in sources if (found := attempt(read.read, source)) is not None]


SCANS = ["a.nii", "a.nii.gz", "2.dcm", "a.png", "a.tif", "a.jpg", "a.npy", "a.pt", "legacy.pt"]
CHECKED = {"a.nii.gz", "a.png", "a.pt"}  # their formats have check sums, so damage to the values cannot go unseen


@pytest.mark.parametrize("name", SCANS)
def test_a_mutated_scan_is_refused_or_read_as_promised(tmp_path, name):
    path = write_scan(tmp_path, name)
    (right,) = read_folder(tmp_path)
    content = path.read_bytes()
    for seed, changed in cases(name, content, 100):
        path.write_bytes(changed)
        told = f"{name}, seed {seed}"
        for case in read_folder(tmp_path):
            assert case.data.dtype == np.float32 and case.data.ndim == 3, told
            assert np.isfinite(case.data).all() and np.ptp(case.data) > 0, told
            if name not in ("a.jpg", "a.tif"):  # the others do not compress: no more values than the files have bytes
                assert case.data.size <= 4 * max(len(changed), right.data.size), told
            if case.spacing_mm is None:
                assert min(case.data.shape[1:]) >= scan.MIN_SIDE, told
            else:
                lo, hi = scan.SPACING_MM
                assert min(case.data.shape) >= scan.MIN_SLICES and lo <= min(case.spacing_mm), told
                assert max(case.spacing_mm) <= hi, told
            if name in CHECKED:
                np.testing.assert_array_equal(case.data, right.data, err_msg=told)


def test_a_mutated_list_of_participants_is_refused_or_read(tmp_path):
    write_scan(tmp_path, "sub-01_T1w.nii")
    content = b"participant_id\tage\tlabel\nsub-01\t30\tglioma\nsub-02\t40\tnone\n"
    for seed, changed in cases("participants", content, 60):
        (tmp_path / "participants.tsv").write_bytes(changed)
        found = attempt(read.find, tmp_path)
        assert found is None or isinstance(found[0][0].label, str), seed


def test_a_mutated_table_of_subjects_is_refused_or_rows_of_text(tmp_path):
    rows = [inventory.Row("anna/*", "anna", "T1w", "glioma", "yes"), inventory.Row("b[1].nii", use="no: mask")]
    content = inventory.text(rows).encode()
    (tmp_path / "subjects.csv").write_bytes(content)
    assert inventory.read_rows(tmp_path / "subjects.csv") == rows
    write_scan(tmp_path, "sub-01_T1w.nii")
    data = params.parse(DATA, "data", slicing.Data)
    for seed, changed in cases("subjects", content, 60):
        (tmp_path / "subjects.csv").write_bytes(changed)
        held = attempt(inventory.take, tmp_path, data)
        assert held is None or all(isinstance(source.subject, str | None) for source in held.sources), seed


# What stages hand on --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["images.npy", "manifest.csv", "meta.json"])
def test_a_mutated_imageset_is_refused_or_whole(tmp_path, name):
    imageset.write(tmp_path, example())
    content = (tmp_path / name).read_bytes()
    for seed, changed in cases(name, content, 80):
        (tmp_path / name).write_bytes(changed)
        found = attempt(imageset.read, tmp_path)
        if found is None:
            continue
        told = f"{name}, seed {seed}"
        assert found.images.dtype == np.uint8 and found.images.ndim == 3 and len(found) == len(found.manifest), told
        assert found.images.size and isinstance(np.array(found.images).sum(), np.integer), told
        assert isinstance(found.manifest.index, pd.RangeIndex) and isinstance(found.meta, dict), told
        assert all(isinstance(cell, str) for cell in found.manifest.to_numpy().ravel()), told
        json.dumps(found.meta, allow_nan=False)
        words = prompts.Prompt(template="{contrast} {plane} MRI, level {level}, {label}", token="")
        assert len(prompts.prompts(found.manifest, words)) == len(found), told


def test_mutated_features_are_refused_or_give_a_distance(tmp_path):
    path, other = tmp_path / "effnet.npy", np.random.default_rng(1).normal(size=(9, 7)).astype(np.float32)
    np.save(path, np.random.default_rng(0).normal(size=(9, 7)).astype(np.float32))

    def distance() -> float:
        return distances.frechet_distance(_files.read_features(tmp_path, 9)["effnet"], other)

    assert distance() > 0
    for seed, changed in cases("features", path.read_bytes(), 60):
        path.write_bytes(changed)
        found = attempt(distance)
        assert found is None or np.isfinite(found), seed


def test_a_mutated_checkpoint_is_refused_or_a_state(tmp_path):
    path = tmp_path / "a.pt"
    loop.save_checkpoint(path, {"step": 3, "weight": torch.zeros(40), "history": [[0, 1.5]]})
    for seed, changed in cases("checkpoint", path.read_bytes(), 60):
        path.write_bytes(changed)
        assert isinstance(attempt(loop.load_checkpoint, path), dict | None), seed


# What people write ----------------------------------------------------------------------------------------------------

SECTIONS = {"runtime": params.Runtime, "data": slicing.Data, "baselines.vae": vae.Params}
VAE = {
    "width": 4, "latent_dim": 4, "steps": 4, "batch_size": 2, "learning_rate": 0.002,
}  # fmt: skip


def numbers(value) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def sections(path: Path) -> None:
    """Read all three: whatever is taken is of the class, finite and within its bounds."""
    for name, cls in SECTIONS.items():
        found = attempt(params.read, path, name, cls)
        if found is not None:
            assert type(found) is cls and np.isfinite(np.array(numbers(found.model_dump()), dtype=float)).all()
            cls.model_validate(found.model_dump())


def test_mutated_params_are_refused_or_within_their_bounds(tmp_path):
    path = tmp_path / "params.yaml"
    tree = {"seed": 0, "runtime": {"threads": 1, "device": "cpu"}, "data": DATA, "baselines": {"vae": VAE}}
    path.write_text(yaml.safe_dump(tree))
    sections(path)
    for _, changed in cases("params", path.read_bytes(), 100):
        path.write_bytes(changed)
        sections(path)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize(
    "text",
    [
        "runtime: " + "[" * 5000,
        "runtime: " + "{a: " * 3000 + "1" + "}" * 3000,
        BOMB + "runtime: {threads: *a39, device: cpu}",
        "runtime: &a {threads: *a}",
        "runtime: {threads: " + "9" * 5000 + "}",
        "runtime: {threads: 0x" + "f" * 5000 + "}",
        "runtime: {threads: 2020-13-45}",
        'runtime: {threads: 1, device: "\\ud800"}',
        "runtime: {threads: !!python/object/apply:os.system ['true']}",
        "runtime: {? [a, b] : 1}",
        "runtime: {threads: !!binary aGk=, .nan: 1}",
        "runtime: {threads: 0:0:0.}",
        "--- a\n--- b\n",
        "\ufeffruntime: \x00",
    ],
)  # fmt: skip
def test_params_made_to_do_harm_are_refused(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    assert attempt(params.read, tmp_path / "params.yaml", "runtime", params.Runtime) is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100 * FACTOR, deadline=None, derandomize=True)
@given(key=st.sampled_from(sorted(VAE)), value=anything, extra=st.booleans())
def test_any_value_of_a_parameter_is_refused_or_of_its_type(key, value, extra):
    section = VAE | {key: value} | ({f"{key}_": value} if extra else {})
    found = attempt(params.parse, section, "baselines.vae", vae.Params)
    if found is not None:
        assert not extra and getattr(found, key) == value
        assert not isinstance(value, bool) and np.isfinite(float(value))


def test_mutated_ratings_are_refused_or_valid(tmp_path):
    path = tmp_path / "ratings.csv"
    rows = [
        {
            "packet": "p", "reader": reader, "position": str(k), "revision": "0", "repeat": "0", "image": f"i{k}",
            "sha256": "a" * 64, "source": "real", "case": str(k), "realism": "4", "verdict": "real",
            "plausibility": "3", "seconds": "2.5", "tags": "", "comment": 'fine, "so"',
        }
        for reader in ("amber", "birch")
        for k in range(3)
    ]  # fmt: skip
    pd.DataFrame(rows, columns=ratings.COLUMNS["rating"]).to_csv(path, index=False)
    assert len(ratings.read(path)) == 6
    for seed, changed in cases("ratings", path.read_bytes(), 100):
        path.write_bytes(changed)
        found = attempt(ratings.read, path)
        if found is None:
            continue
        assert list(found.columns) == list(ratings.COLUMNS["rating"]) and isinstance(found.index, pd.RangeIndex), seed
        assert len(found) <= len(changed.splitlines()), seed
        assert found["realism"].between(1, 5).all() and found["verdict"].isin(ratings.WORDS["verdict"]).all(), seed
        text = found[["packet", "reader", "image", "source", "tags", "comment", "seconds"]].to_numpy().ravel()
        assert all(isinstance(cell, str) for cell in text), seed
        assert len(ratings.merge([found])) == len(found), seed
