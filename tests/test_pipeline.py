"""The pipeline as its users run it: what dvc.yaml declares, and `dvc repro` of the smoke profile in a clone."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parent.parent
# Every import of the package passes through these two, and neither changes a result.
NEUTRAL = {"synthmri/__init__.py", "synthmri/torchvision_cpu.py", "stages/__init__.py"}


def imports(file: Path) -> set[str]:
    """The project's own files that a file imports, at its top or inside its functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    paths = {name.replace(".", "/") + ".py" for name in names if name.split(".")[0] in ("stages", "synthmri")}
    return {path for path in paths if (ROOT / path).is_file()}


def closure(start: str) -> set[str]:
    done, todo = set(), {start}
    while todo:
        path = todo.pop()
        done.add(path)
        todo |= imports(ROOT / path) - done
    return done - NEUTRAL


def stages() -> dict[str, dict]:
    tree = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in tree.items()}


@pytest.mark.parametrize("name", stages())
def test_declared_code_is_what_is_imported(name):
    stage = stages()[name]
    module = re.search(r"python -m (\S+)", stage["cmd"])[1].replace(".", "/") + ".py"
    declared = {dep for dep in stage["deps"] if dep.endswith(".py")}
    assert declared == closure(module)


@pytest.mark.parametrize("name", stages())
def test_declared_sections_are_what_is_read(name):
    stage = stages()[name]
    module = re.search(r"python -m (\S+)", stage["cmd"])[1].replace(".", "/") + ".py"
    text = "".join((ROOT / path).read_text(encoding="utf-8") for path in (module, "stages/common.py"))
    assert {name.split(".")[0] for name in stage["params"]} == set(re.findall(r'params\.read\([\w.]+, "(\w+)"', text))


def test_every_section_of_params_is_read_by_something():
    sections = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    read = {name.split(".")[0] for stage in stages().values() for name in stage["params"]}
    assert set(sections) == read | {"pretrain"}


def test_no_absolute_path_in_what_is_committed():
    for file in [
        ROOT / "dvc.yaml",
        ROOT / ".dvc" / "config",
        ROOT / "params.yaml",
        *(ROOT / "profiles").glob("*.yaml"),
    ]:
        assert not re.search(r"(?<![\w<.-])/(home|root|work|tmp|usr|mnt)/", file.read_text(encoding="utf-8")), file


def clone(folder: Path) -> Path:
    """The working tree as a repository of its own, with the smoke profile and no cache."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    run(folder, "python", "-m", "stages.profile", "smoke")
    return folder


def run(folder: Path, *command: str, ok: bool = True) -> str:
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [bin_folder / command[0], *command[1:]], cwd=folder, capture_output=True, text=True, env=environment
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def repro(tmp_path_factory):
    folder = clone(tmp_path_factory.mktemp("clone"))
    run(folder, "dvc", "repro")
    return folder


@pytest.mark.slow
def test_repro_makes_what_it_promises(repro):
    metrics = json.loads((repro / "metrics/latent_diffusion.json").read_text())
    for name in ("fd_alexnet", "kid_alexnet", "ssim", "psnr", "lpips", "recon_psnr", "fd_alexnet_reduction"):
        assert np.isfinite(metrics[name]), name
    assert len(list((repro / "data/samples/latent_diffusion/png").glob("*.png"))) == 8
    for picture in (
        "slices",
        "samples_base",
        "samples_latent_diffusion",
        "held_out_against_synthetic",
        "finetune_loss",
    ):
        assert (repro / f"metrics/{picture}.png").stat().st_size > 1000
    text = run(repro, "python", "-m", "stages.summary")
    assert "fd_alexnet fell by" in text and "Not for clinical use" in text


@pytest.mark.slow
def test_repro_again_does_nothing(repro):
    before = (repro / "dvc.lock").read_bytes()
    assert "up to date" in run(repro, "dvc", "repro")
    assert (repro / "dvc.lock").read_bytes() == before


@pytest.mark.slow
def test_a_changed_parameter_reruns_what_depends_on_it_alone(repro):
    text = (repro / "params.yaml").read_text()
    try:
        (repro / "params.yaml").write_text(text.replace("guidance: 1.0", "guidance: 2.0"))
        stale = json.loads(run(repro, "dvc", "status", "--json"))
    finally:
        (repro / "params.yaml").write_text(text)
    assert set(stale) == {"sample@base", "sample@latent_diffusion"}


@pytest.mark.slow
def test_second_clone_gives_the_same_bytes(repro, tmp_path):
    other = clone(tmp_path)
    run(other, "dvc", "repro")
    assert (other / "dvc.lock").read_bytes() == (repro / "dvc.lock").read_bytes()


@pytest.mark.slow
def test_outputs_tell_neither_where_nor_when_they_were_made(repro):
    for folder in ("metrics", "models", "data/slices", "data/samples", "data/simulated"):
        for file in (repro / folder).rglob("*"):
            if file.suffix in (".json", ".csv", ".tsv", ".md"):
                text = file.read_text(encoding="utf-8")
                assert str(repro) not in text and not re.search(r"20\d\d-\d\d-\d\dT?", text), file


@pytest.mark.slow
def test_model_opens_with_plain_diffusers(repro):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(repro / "models/latent_diffusion", safety_checker=None)
    assert pipe("FLAIR axial brain MRI", num_inference_steps=2, height=64, width=64).images[0].size == (64, 64)


@pytest.mark.slow
def test_bad_parameter_stops_with_its_name_and_no_traceback(repro):
    text = (repro / "params.yaml").read_text()
    try:
        (repro / "params.yaml").write_text(re.sub(r"n: 8 ", "n: 0 ", text))
        out = run(repro, "dvc", "repro", ok=False)
    finally:
        (repro / "params.yaml").write_text(text)
    assert "sample.n = 0" in out and "greater than or equal to 1" in out and "Traceback" not in out


@pytest.mark.slow
@pytest.mark.parametrize("format", ["png", "npy", "nifti", "dicom"])
def test_generate_writes_every_format(repro, tmp_path, format):
    out = tmp_path / "generated"
    run(repro, "python", "-m", "stages.generate", "--n", "2", "--seed", "1000", "--format", format, "--out", str(out))
    files = sorted(out.iterdir())
    if format == "dicom":
        import pydicom

        sets = [pydicom.dcmread(file) for file in files]
        assert [ds.ImageType[0] for ds in sets] == ["DERIVED"] * 2 and "SYNTHETIC" in sets[0].SeriesDescription
        assert len({ds.SOPInstanceUID for ds in sets}) == 2 and sets[0].pixel_array.shape == (64, 64)
    elif format == "npy":
        assert np.load(files[0]).shape == (2, 64, 64)
    elif format == "nifti":
        import nibabel

        assert nibabel.load(files[0]).shape == (64, 64, 2)
    else:
        assert [file.name for file in files] == ["001000.png", "001001.png"]


@pytest.mark.slow
def test_generate_refuses_to_overwrite(repro, tmp_path):
    text = run(repro, "python", "-m", "stages.generate", "--n", "1", "--out", str(tmp_path), ok=False)
    assert "exists already" in text and "Traceback" not in text


def test_unknown_profile_names_those_there_are(tmp_path):
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    text = run(tmp_path, "python", "-m", "stages.profile", "huge", ok=False)
    assert "'huge'" in text and "gpu, smoke" in text and "Traceback" not in text


@pytest.mark.parametrize("profile", [path.stem for path in (ROOT / "profiles").glob("*.yaml")])
def test_profiles_keep_comments_and_give_parameters_that_can_be_used(tmp_path, monkeypatch, profile):
    from synthmri import autoencoder, cohort, ldm, params, pretrain, scores, slices

    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    run(tmp_path, "python", "-m", "stages.profile", profile)
    assert (tmp_path / "params.yaml").read_text().count("#") == (ROOT / "params.yaml").read_text().count("#")
    classes = {
        "runtime": params.Runtime, "cohort": cohort.Cohort, "data": slices.Data,
        "adapt": autoencoder.Adapt, "encode": autoencoder.Encode,
        "prompt": ldm.Prompt, "finetune": ldm.Finetune, "sample": ldm.Sample, "evaluate": scores.Evaluate,
        "pretrain": pretrain.Pretrain,
    }  # fmt: skip
    for section in yaml.safe_load((tmp_path / "params.yaml").read_text()):
        params.read(tmp_path / "params.yaml", section, classes[section])


def test_summary_before_any_run_says_what_to_do(tmp_path):
    text = run(tmp_path, "python", "-m", "stages.summary", ok=False)
    assert "run `dvc repro` first" in text and "Traceback" not in text
