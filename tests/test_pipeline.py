"""The pipeline as its users run it: what dvc.yaml declares, and `dvc repro` of the smoke profile in a clone."""

import ast
import functools
import graphlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import copy_parameters
from forks import ROOT, stand_ins
from PIL import Image

from synthmri import generators

# No dependency of any stage: how a command starts, shares work and fails, how parameters are read (DVC knows their
# values), and what an import passes through. All of it holds messages, and none of it changes a byte of a result but
# `_cli.set_threads`, which says so itself.
NEUTRAL = {
    "synthmri/torchvision_cpu.py", "synthmri/errors.py", "synthmri/params.py",
    "stages/_cli.py", "stages/_launch.py", "stages/_replacing.py", "stages/_watch.py", "stages/_workers.py",
}  # fmt: skip


@functools.cache
def imports(file: Path) -> set[str]:
    """The project's own files that a file imports, at its top or inside its functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in names if name.split(".")[0] in ("commands", "stages", "synthmri", "reader_study")}
    paths = {name.replace(".", "/") + ".py" for name in ours}
    return {path for path in paths if (ROOT / path).is_file()}


def closure(start: str) -> set[str]:
    done, todo = set(), {start}
    while todo:
        path = todo.pop()
        done.add(path)
        todo |= (imports(ROOT / path) if path not in NEUTRAL else set()) - done
    return done - NEUTRAL - {file for file in done if file.endswith("__init__.py")}


def fill(value, fields: dict):
    """A stage with ${...} replaced, as DVC does for each item of a foreach."""
    if isinstance(value, dict):
        return {fill(key, fields): fill(item, fields) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, fields) for item in value]
    return re.sub(r"\$\{([\w.]+)\}", lambda m: str(fields.get(m[1], m[0])), value) if isinstance(value, str) else value


@functools.cache
def stages() -> dict[str, dict]:
    """Every stage by its name, those of a foreach one by one."""
    out = {}
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items():
        if "foreach" not in stage:
            out[name] = stage
            continue
        each = stage["foreach"]
        for key, item in each.items() if isinstance(each, dict) else ((item, item) for item in each):
            fields = {"key": key, "item": item} | (
                {f"item.{field}": value for field, value in item.items()} if isinstance(item, dict) else {}
            )
            out[f"{name}@{key}"] = fill(stage["do"], fields)
    return out


def modules(stage: dict) -> list[str]:
    """The file that a stage runs, and the one that it opens by name."""
    found = [re.search(r"python -m (\S+)", stage["cmd"])[1].replace(".", "/") + ".py"]
    if by_name := re.search(r"--generator (\S+)", stage["cmd"]):
        found.append(f"synthmri/generators/{by_name[1]}.py")
    elif found == ["stages/train.py"]:
        found.append(f"synthmri/generators/{re.search(r'--model (.+?) ', stage['cmd'])[1]}.py")
    elif found == ["stages/privacy.py"]:  # opens all of them
        found += [f"synthmri/generators/{name}.py" for name in generators.GENERATORS]
    return found


def declared(stage: dict) -> set[str]:
    """Files and folders of code."""
    rooms = ("stages", "synthmri", "reader_study")
    return {dep for dep in stage["deps"] if dep.split("/")[0] in rooms and not dep.endswith((".html", ".js"))}


def covers(dep: str, file: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


def needed(stage: dict) -> set[str]:
    return set().union(*[closure(module) for module in modules(stage)])


def test_what_guides_a_choice_sees_no_test_people():
    """Their slices and features go to what judges, and not to what trains, adapts, sweeps or draws the curves."""
    judges = {"references", "evaluate", "raters", "utility", "privacy", "register", "report", "features", "segment"}
    seeing = {
        name.partition("@")[0]
        for name, stage in stages().items()
        if any(dep.startswith(("data/slices/test", "data/features/test")) for dep in stage["deps"])
    }
    assert seeing == judges
    assert "data/features/val" in stages()["progression"]["deps"]


@pytest.mark.parametrize("name", stages())
def test_imported_code_is_declared(name):
    deps = declared(stages()[name])
    assert [file for file in sorted(needed(stages()[name])) if not any(covers(dep, file) for dep in deps)] == []


@pytest.mark.parametrize("group", sorted({name.split("@")[0] for name in stages()}))
def test_declared_code_is_imported(group):
    """Of a foreach, by one of its stages: they share one list."""
    members = [stage for name, stage in stages().items() if name.split("@")[0] == group]
    files = set().union(*map(needed, members))
    for dep in set().union(*map(declared, members)):
        assert (ROOT / dep).exists() and any(covers(dep, file) for file in files), dep


def stale(change: str) -> set[str]:
    """The stages that an edit of a file makes DVC run again, themselves and not what follows from them."""
    return {
        name.split("@")[0] for name, stage in stages().items() if any(covers(dep, change) for dep in declared(stage))
    }


TRAINING = {"adapt", "finetune", "train"}


@pytest.mark.parametrize(
    "change",
    ["synthmri/evaluation/scorecard.py", "synthmri/evaluation/membership.py", "synthmri/reporting/comparison.py"],
)
def test_an_edited_metric_retrains_nothing(change):
    assert stale(change) and not stale(change) & (TRAINING | {"sample"})


@pytest.mark.parametrize("change", ["synthmri/evaluation/distances.py", "synthmri/evaluation/copies.py"])
def test_what_says_when_fine_tuning_stops_retrains_that_alone(change):
    assert stale(change) & (TRAINING | {"sample"}) == {"finetune"}


def test_an_edit_of_one_model_retrains_no_other():
    hit = {
        name
        for name, stage in stages().items()
        if any(covers(d, "synthmri/generators/dcgan.py") for d in declared(stage))
    }
    assert hit == {"train@dcgan", "sample@dcgan", "evaluate@dcgan", "privacy"}  # the last attacks every model


@pytest.mark.parametrize("change", sorted(NEUTRAL))
def test_a_reworded_message_of_the_ground_reruns_nothing(change):
    assert stale(change) == set()


ROOMS = (
    "commands",
    "stages",
    "simulation reader_study demo registry evaluation generators",
    "scans reporting training",
    "",
)


def test_imports_run_downwards():
    """From commands and stages over what makes and judges images to what these share, and to the ground; never up, and
    never in a circle of rooms."""
    floor = {room: depth for depth, rooms in enumerate(ROOMS) for room in rooms.split()}

    def room(path: str) -> str:
        parts = path.split("/")
        return parts[0] if parts[0] != "synthmri" else parts[1] if len(parts) > 2 else ""

    graph: dict[str, set[str]] = {}
    folders = ("commands/*.py", "stages/*.py", "synthmri/**/*.py", "reader_study/*.py")
    for start in [file for folder in folders for file in ROOT.glob(folder)]:
        here = room(str(start.relative_to(ROOT)))
        for path in imports(start):
            there = room(path)
            if here and there and here != there:
                graph.setdefault(here, set()).add(there)
                assert floor[here] <= floor[there], f"{start.relative_to(ROOT)} imports {path}"
            assert here or not there or start.name == "__init__.py", f"{start.relative_to(ROOT)} imports {path}"
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def named(stage: dict) -> list[str]:
    """The params of a stage, those in other files than params.yaml among them."""
    return [
        name
        for entry in stage.get("params", [])
        for name in (sum(entry.values(), []) if isinstance(entry, dict) else [entry])
    ]


@pytest.mark.parametrize("name", stages())
def test_declared_sections_are_what_is_read(name):
    stage = stages()[name]
    text = (ROOT / modules(stage)[0]).read_text(encoding="utf-8")
    read = set(re.findall(r'params\.read\([\w.]+, f?"([\w.]+)', text))
    if "_cli.start()" in text:
        read.add("runtime")
    if "_cli.seed()" in text:
        read.add("seed")
    if "_launch.start()" in text:
        read |= {"runtime", "parallel"}
    sections = {param.split(".")[0] for param in named(stage)}
    if "stages.sample" in stage["cmd"] and "--generator latent_diffusion" not in stage["cmd"]:
        read -= {"prompt"}  # read for the latent diffusion model alone
    assert sections == {section.split(".")[0] for section in read}


def test_every_section_of_params_is_read_by_something():
    sections = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    read = {name.split(".")[0] for stage in stages().values() for name in named(stage)}
    assert set(sections) == (read - {"cohort"}) | {"study"}
    assert "cohort" in read  # in data/cohort.yaml


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
    run(folder, "python", "-m", "commands.profile", "smoke")
    return folder


def environment(folder: Path, path: str | None = None) -> dict[str, str]:
    return os.environ | {"PATH": path or os.environ["PATH"], "PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def usual_path():
    """The PATH as users have it. In tests that need this, a `python` and a `dvc` that start at once come first."""
    usual = os.environ["PATH"]
    with stand_ins("clones") as commands, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{commands}{os.pathsep}{usual}")
        yield usual


def read(folder: Path, *command: str) -> dict:
    """What a command of DVC says as JSON."""
    done = subprocess.run([*command, "--json"], cwd=folder, capture_output=True, env=environment(folder))
    return json.loads(done.stdout)


def run(folder: Path, *command: str, ok: bool = True) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment(folder))
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


SAMPLED = [f"sample@{name}" for name in ("latent_diffusion", "vae", "dcgan", "ddpm", "unet_gan")]


@pytest.fixture(scope="module")
def clones(tmp_path_factory, usual_path):
    """Two clones after `dvc repro`, side by side: the smoke profile keeps to one thread.

    The first runs as its users run it. The second stops at the samples: what comes after are numbers of files that are
    then known to be equal.
    """
    folders = [clone(tmp_path_factory.mktemp(name)) for name in ("first", "second")]
    runs = []
    for folder, path, targets in zip(folders, (usual_path, None), ([], SAMPLED), strict=True):
        given = environment(folder, path)
        with open(folder.with_suffix(".log"), "w") as log:
            command = [shutil.which("dvc", path=given["PATH"]), "repro", *targets]
            runs.append(subprocess.Popen(command, cwd=folder, env=given, stdout=log, stderr=log))
    for folder, process in zip(folders, runs, strict=True):
        assert process.wait() == 0, folder.with_suffix(".log").read_text()
    return folders


@pytest.fixture(scope="module")
def repro(clones):
    return clones[0]


@pytest.mark.slow
def test_repro_makes_what_it_promises(repro):
    metrics = json.loads((repro / "metrics/latent_diffusion.json").read_text())
    for name in ("fd_alexnet", "fd_effnet", "kid_effnet", "coverage", "ssim", "psnr", "lpips", "memorised",
                 "recon_psnr"):  # fmt: skip
        assert np.isfinite(metrics[name]), name
    tree = json.loads((repro / "metrics/comparison.json").read_text())
    assert list(tree["models"]) == ["vae", "dcgan", "ddpm", "unet_gan", "latent_diffusion"]
    assert list(tree["references"]) == [
        "base", "base_adapted", "real", "blurred", "mean_image", "train_copies", "train_copies_mirrored",
    ]  # fmt: skip
    assert tree["references"]["train_copies"]["memorised"] == 1
    assert tree["references"]["train_copies_mirrored"]["memorised"] == 1
    assert len({row["n"] for row in [*tree["models"].values(), tree["references"]["real"]]}) == 1
    table = (repro / "metrics/comparison.csv").read_text().splitlines()  # nobody rated: a column, and nothing in it
    column = table[0].split(",").index("manual_score")
    assert [line.split(",")[column] for line in table[1:]] == [""] * 12
    assert set(json.loads((repro / "metrics/raters.json").read_text())) == {"counts"}
    for model in [*tree["models"], "base", "base_adapted"]:
        assert len(list((repro / f"data/samples/{model}/png").glob("*.png"))) == 8
        for kind in ("samples", "real_beside", "closest"):
            assert (repro / f"metrics/{kind}/{model}.png").stat().st_size > 1000
    for picture in ("slices", "comparison", "progression"):
        assert (repro / f"metrics/{picture}.png").stat().st_size > 1000
    progression = (repro / "metrics/fd_progression.csv").read_text().splitlines()
    assert progression[0].startswith("epoch,") and [line.split(",")[0] for line in progression[1:]] == ["0", "1"]
    page = (repro / "metrics/report.html").read_text()
    assert "the data are a simulated cohort, not patients" in " ".join(page.split()) and not re.search(
        r'src="(?!data:)|href="(?!#)',
        page,  # nothing from elsewhere; links within the page alone
    )
    rebuilt = json.loads((repro / "metrics/latent_diffusion.json").read_text())
    assert ("This is poor" in page) == (rebuilt["recon_lpips"] > 0.1)
    text = run(repro, "python", "-m", "commands.summary")
    assert "fine-tuned (N = 8)" in text and "Not for clinical use" in text


@pytest.mark.slow
def test_report_runs_no_foreign_html_and_git_gets_no_people(repro, tmp_path):
    """Labels come from the data. Whose slices the pictures show, the slices tell, whatever params.yaml now says."""
    shutil.copytree(repro / "metrics", tmp_path / "metrics")
    counts = json.loads((tmp_path / "metrics/data.json").read_text())
    words = tmp_path / "metrics/utility.md"
    words.write_text(words.read_text() + "\n\n<img src=x onerror=alert(1)>\n")
    inputs = ["--slices", "data/slices", "--samples", "data/samples", "--snapshots", "data/progression"]
    inputs += ["--params", "params.yaml", "--defaults", "profiles/default.yaml"]
    made = []
    for simulated in (1, 0):
        (tmp_path / "metrics/data.json").write_text(json.dumps(counts | {"simulated": simulated}))
        places = ["--metrics", "metrics", "--out", "page.html", "--picture", "small.png"]
        places[1::2] = [str(tmp_path / name) for name in places[1::2]]
        run(repro, "python", "-m", "stages.report", *inputs, *places)
        made.append(((tmp_path / "page.html").read_text(), Image.open(tmp_path / "small.png").tobytes()))
        assert "<img src=x" not in made[-1][0] and "&lt;img src=x" in made[-1][0]
    (page, picture), (of_people, without) = made
    assert "not patients" in page and "not patients" not in of_people
    assert picture != without  # test_gate.py says what it shows
    verdicts = json.loads((tmp_path / "metrics/gate.json").read_text())
    for verdict in verdicts.values():
        verdict["passed"] = 0.0
    (tmp_path / "metrics/gate.json").write_text(json.dumps(verdicts))
    run(repro, "python", "-m", "stages.report", *inputs, *places)
    assert Image.open(tmp_path / "small.png").size == (1200, 160)  # words alone


@pytest.mark.slow
def test_metrics_are_finite_floats(repro):
    def leaves(tree):
        return [leaf for value in tree.values() for leaf in leaves(value)] if isinstance(tree, dict) else [tree]

    for file in (repro / "metrics").glob("*.json"):
        if file.name != "data.json":
            values = leaves(json.loads(file.read_text()))
            assert values and all(isinstance(value, float) and np.isfinite(value) for value in values), file


@pytest.mark.slow
def test_repro_again_does_nothing(repro):
    before = (repro / "dvc.lock").read_bytes()
    assert "up to date" in run(repro, "dvc", "repro")
    assert (repro / "dvc.lock").read_bytes() == before


@pytest.mark.slow
def test_notebook_runs(repro, tmp_path, monkeypatch):
    """As in Colab, with the smoke profile, in a clone where `dvc repro` has nothing left to do."""
    import nbformat
    from nbclient import NotebookClient

    for name, value in (environment(repro) | {"SYNTHMRI_PROFILE": "smoke"}).items():
        monkeypatch.setenv(name, value)
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    before = (repro / "dvc.lock").read_bytes()
    notebook = nbformat.read(repro / "notebooks/synthetic_brain_mri.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": repro / "notebooks"}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert "up to date" in text and "of the base" in text and (repro / "dvc.lock").read_bytes() == before
    shown = [output["data"] for output in outputs if output.output_type == "display_data"]
    assert sum("image/png" in data for data in shown) == 4
    assert "latent diffusion" in shown[-1]["text/markdown"]


@pytest.mark.slow
def test_a_changed_parameter_reruns_what_depends_on_it_alone(repro):
    text = (repro / "params.yaml").read_text()
    try:
        (repro / "params.yaml").write_text(text.replace("guidance_scale: 1.0", "guidance_scale: 2.0"))
        stale = read(repro, "dvc", "status")
    finally:
        (repro / "params.yaml").write_text(text)
    assert set(stale) == {"sweep", "report"}  # and what is sampled, should the sweep then choose otherwise


@pytest.mark.slow
def test_a_baselines_parameter_reruns_that_model_alone(repro):
    text = (repro / "params.yaml").read_text()
    try:
        (repro / "params.yaml").write_text(re.sub(r"(vae:(?:.*\n)+?.*learning_rate: )\d", r"\g<1>9", text, count=1))
        stale = read(repro, "dvc", "status")
    finally:
        (repro / "params.yaml").write_text(text)
    # And what is sampled, should the model then be another, and all that comes after it.
    assert set(stale) == {"train@vae", "report"}


@pytest.mark.slow
def test_second_clone_gives_the_same_bytes(clones):
    first, second = (yaml.safe_load((folder / "dvc.lock").read_text())["stages"] for folder in clones)
    assert set(SAMPLED) < set(second) and len(second) == 17
    for name, entry in second.items():
        assert entry == first[name], name


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
@pytest.mark.parametrize("format", ["png", "npy", "nifti", "bids", "dicom"])
def test_generate_writes_every_format(repro, tmp_path, format):
    out = tmp_path / "generated"
    run(
        repro, "python", "-m", "commands.generate", "--n", "2", "--seed", "1000", "--format", format, "--out", str(out),
        "--no-shield",
    )  # fmt: skip
    files = sorted(file for file in out.iterdir() if file.name != "manifest.csv")
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
    elif format == "bids":
        assert len(list(out.glob("sub-*/anat/*_desc-synthetic_FLAIR.nii.gz"))) == 2
    else:
        assert [file.name for file in files] == ["001000.png", "001001.png"]


@pytest.mark.slow
def test_what_leaves_the_house_has_passed_the_shield_or_nothing_leaves(repro, tmp_path):
    """Of a model this small both may be: what counts is that it was looked at."""
    out = tmp_path / "generated"
    command = ["python", "-m", "commands.generate", "--n", "2", "--out", str(out)]
    done = subprocess.run(command, cwd=repro, capture_output=True, text=True, env=environment(repro))
    if done.returncode:
        assert "2 of 2 images passed the shield in none of 8 draws" in done.stderr and not out.exists()
    else:
        assert "likeness,drawn,alike,implausible" in (out / "manifest.csv").read_text()


@pytest.mark.slow
def test_generate_refuses_to_overwrite(repro, tmp_path):
    text = run(repro, "python", "-m", "commands.generate", "--n", "1", "--out", str(tmp_path), ok=False)
    assert "exists already" in text and "Traceback" not in text


@pytest.mark.slow
def test_repro_registers_every_model(repro):
    """And so the hashes that the registry compares are DVC's: it registers nothing where they differ."""
    for model in ("vae", "dcgan", "ddpm", "unet_gan", "latent_diffusion"):
        assert f"synthmri-{model} version 1" in run(repro, "python", "-m", "stages.register", "--show", model, "1")
    verdicts = json.loads((repro / "metrics/gate.json").read_text())
    leader = next(model for model, verdict in verdicts.items() if verdict["rank"] == 1)
    assert "version 1 champion" in run(repro, "python", "-m", "stages.register", "--show", leader, "champion")


def commit(folder: Path) -> None:
    """All that git would take, if there is anything new."""
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    if subprocess.run(["git", "diff", "--cached", "--quiet"], cwd=folder).returncode:
        subprocess.run(["git", *who, "commit", "-qm", "smoke"], cwd=folder, check=True)


@pytest.mark.slow
def test_experiments_compare(repro):
    """The README's commands. Last of those that use the clone: they change its workspace."""
    commit(repro)
    run(repro, "dvc", "exp", "run", "--name", "longer", "-S", "finetune.epochs=2")
    changed = read(repro, "dvc", "metrics", "diff")
    assert set(changed) == {"metrics/summary.json"} and "fd_effnet" in changed["metrics/summary.json"]
    assert not [name for name in changed["metrics/summary.json"] if name.startswith("vae.")]  # as they were
    parameters = read(repro, "dvc", "params", "diff")
    assert parameters["params.yaml"]["finetune.epochs"] == {"old": 1, "new": 2, "diff": 1}
    assert "longer" in run(repro, "dvc", "exp", "show", "--csv")
    run(repro, "dvc", "plots", "diff", "HEAD", "--out", "plots_diff")
    assert "fd_progression" in (repro / "plots_diff/index.html").read_text()
    run(repro, "dvc", "exp", "run", "--queue", "-S", "baselines.vae.latent_dim=2,3")
    assert run(repro, "dvc", "queue", "status").count("Queued") == 2


@pytest.mark.slow
def test_an_older_version_is_restored_in_a_fresh_clone(repro, tmp_path):
    """By the commands that the registry prints; and the restored model draws the same samples again."""
    commit(repro)
    run(repro, "python", "-m", "stages.register", "--sync")
    text = run(repro, "python", "-m", "stages.register", "--show", "latent_diffusion", "1")
    revision = re.search(r"git checkout ([0-9a-f]{40})", text)[1]
    fresh = tmp_path / "fresh"
    subprocess.run(["git", "clone", "-q", repro, fresh], check=True)
    subprocess.run(["git", "checkout", "-q", revision], cwd=fresh, check=True)
    run(fresh, "dvc", "cache", "dir", "--local", str(repro / ".dvc/cache"))
    run(fresh, "dvc", "checkout")
    hashes = {out["path"]: out["md5"] for stage in yaml.safe_load((fresh / "dvc.lock").read_text())["stages"].values()
              for out in stage.get("outs", [])}  # fmt: skip
    for path in ("models/latent_diffusion", "data/samples/latent_diffusion"):
        assert hashes[path] in text
    sampled = (fresh / "data/samples/latent_diffusion/images.npy").read_bytes()
    run(fresh, "python", "-m", "stages.sample", "--generator", "latent_diffusion",
        "--model", "models/latent_diffusion", "--images", "data/slices/train",
        "--out", "again", "--sheet", "again.png")  # fmt: skip
    assert (fresh / "again/images.npy").read_bytes() == sampled
    assert "5 versions" in run(fresh, "python", "-m", "stages.register", "--sync")  # a store of its own


def test_unknown_profile_names_those_there_are(tmp_path):
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    copy_parameters(tmp_path)
    text = run(tmp_path, "python", "-m", "commands.profile", "huge", ok=False)
    assert "'huge'" in text and "gpu, lgg_flair, open_ms, quick, seed, smoke" in text and "Traceback" not in text


@pytest.mark.parametrize("profile", [path.stem for path in (ROOT / "profiles").glob("*.yaml")])
def test_profiles_keep_comments_and_give_parameters_that_can_be_used(tmp_path, monkeypatch, profile):
    from reader_study import design, ratings
    from stages import _launch
    from synthmri import params
    from synthmri.evaluation import downstream, membership, scorecard, sweep
    from synthmri.generators import (
        autoencoder,
        autoencoder_training,
        baseline,
        dcgan,
        ddpm,
        finetuning,
        unet_gan,
        vae,
    )
    from synthmri.registry import gate
    from synthmri.scans import prompts, slicing
    from synthmri.simulation import cohort, pretraining
    from synthmri.training import sampling, snapshots

    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    copy_parameters(tmp_path)
    run(tmp_path, "python", "-m", "commands.profile", profile)
    assert (tmp_path / "params.yaml").read_text().count("#") == (ROOT / "params.yaml").read_text().count("#")
    classes = {
        "runtime": params.Runtime, "parallel": _launch.Parallel,
        "data": slicing.Data,
        "adapt": autoencoder_training.Adapt, "encode": autoencoder.Encode,
        "prompt": prompts.Prompt, "finetune": finetuning.Finetune, "sample": sampling.Sample,
        "evaluate": scorecard.Evaluate,
        "utility": downstream.Utility, "privacy": membership.Privacy,
        "registry": gate.Registry, "raters": ratings.Raters, "study": design.Study,
        "sweep": sweep.Sweep, "progression": snapshots.Progression,
        "train": baseline.Train, "baselines.vae": vae.Params,
        "baselines.dcgan": dcgan.Params, "baselines.ddpm": ddpm.Params, "baselines.unet_gan": unet_gan.Params,
    }  # fmt: skip
    sections = yaml.safe_load((tmp_path / "params.yaml").read_text())
    assert set(sections) == {name.split(".")[0] for name in classes} | {"seed"}
    assert set(sections["baselines"]) == {name.split(".")[1] for name in classes if "." in name}
    for section, cls in classes.items():
        params.read(tmp_path / "params.yaml", section, cls)
    params.read_seed(tmp_path / "params.yaml")
    params.read(tmp_path / "data/cohort.yaml", "cohort", cohort.Cohort)
    params.read(tmp_path / "pretrained/params.yaml", "pretrain", pretraining.Pretrain)


def test_summary_before_any_run_says_what_to_do(tmp_path):
    text = run(tmp_path, "python", "-m", "commands.summary", ok=False)
    assert "run `dvc repro`" in text and "Traceback" not in text
