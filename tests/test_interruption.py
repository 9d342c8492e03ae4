"""Every long stage, killed at random moments and run again, on a full disk and in a read-only folder.

SYNTHMRI_KILLS is the number of kills of each stage, 2 unless set. `SYNTHMRI_KILLS=30 pytest tests/test_interruption.py`
takes its time and finds more.
"""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from conftest import copy_parameters
from forks import ROOT, Forks
from ruamel.yaml import YAML

from commands import draw
from stages import _files, _unfinished
from synthmri import imageset, params, streams
from synthmri.errors import UserError
from synthmri.registry import mlflow_store
from synthmri.reporting import comparison
from synthmri.simulation import pretraining
from synthmri.training import loop

KILLS = int(os.environ.get("SYNTHMRI_KILLS", "2"))
LDM = "models/latent_diffusion"
# A stage, its command line, and what it makes; each reads what those above it made.
STAGES = {
    "simulate": ("stages.simulate --out data/simulated", ["data/simulated"]),
    "preprocess": (
        "stages.preprocess --raw data/simulated --out data/slices --metrics metrics/data.json --sheet metrics/s.png",
        ["data/slices", "metrics/data.json", "metrics/s.png"],
    ),
    **{
        f"extract {split}": (
            f"stages.features --images data/slices/{split} --extractors models/extractors --out data/features/{split}",
            [f"data/features/{split}"],
        )
        for split in ("train", "val", "test")
    },
    "base": ("stages.base --out models/base", ["models/base"]),
    "adapt": (
        "stages.adapt --images data/slices/train --validation data/slices/val --base models/base "
        "--out models/autoencoder --metrics metrics/autoencoder.json",
        ["models/autoencoder", "metrics/autoencoder.json"],
    ),
    "encode": (
        "stages.encode --images data/slices/train --model models/autoencoder --out data/latents",
        ["data/latents"],
    ),
    "finetune": (
        "stages.finetune --images data/slices/train --validation data/slices/val --validation-features "
        "data/features/val --latents data/latents --base models/base --vae models/autoencoder "
        f"--out {LDM} --snapshots data/snapshots/latent_diffusion.npy --log metrics/ldm.csv "
        "--effort metrics/efforts/latent_diffusion.json",
        [LDM, "data/snapshots/latent_diffusion.npy", "metrics/ldm.csv", "metrics/efforts/latent_diffusion.json"],
    ),
    "sample": (
        f"stages.sample --generator latent_diffusion --model {LDM} --images data/slices/train "
        "--out data/samples/latent_diffusion --sheet metrics/x.png",
        ["data/samples/latent_diffusion", "metrics/x.png"],
    ),
    "extract": (
        "stages.features --images data/samples/latent_diffusion --extractors models/extractors "
        "--out data/features/latent_diffusion",
        ["data/features/latent_diffusion"],
    ),
    "references": (
        "stages.references --train data/slices/train --train-features data/features/train --test data/slices/test "
        "--test-features data/features/test --metrics metrics/references.json",
        ["metrics/references.json"],
    ),
    "evaluate": (
        f"stages.evaluate --generator latent_diffusion --model {LDM} --train data/slices/train "
        "--train-features data/features/train --test data/slices/test --test-features data/features/test "
        "--validation data/slices/val "
        "--validation-features data/features/val --samples data/samples/latent_diffusion "
        "--samples-features data/features/latent_diffusion "
        "--metrics metrics/scores.json --rounds metrics/rounds.csv --picture metrics/real.png "
        "--closest metrics/closest.png --pairs-table metrics/closest.csv",
        ["metrics/scores.json", "metrics/rounds.csv", "metrics/real.png", "metrics/closest.png", "metrics/closest.csv"],
    ),
    "sweep": (
        f"stages.sweep --model {LDM} --images data/slices/train --validation data/slices/val --validation-features "
        "data/features/val --table metrics/sweep.csv --picture metrics/sweep.png --choice metrics/sampling.json",
        ["metrics/sweep.csv", "metrics/sweep.png", "metrics/sampling.json"],
    ),
    "utility": (
        "stages.utility --train data/slices/train --validation data/slices/val --test data/slices/test "
        "--samples data/samples/latent_diffusion --external data/external --metrics metrics/utility.json "
        "--markdown metrics/utility.md --picture metrics/utility.png",
        ["metrics/utility.json", "metrics/utility.md", "metrics/utility.png"],
    ),
    **{
        f"train_{name}": (
            f"stages.train --model {name} --images data/slices/train --out models/{name} "
            f"--snapshots data/snapshots/{name}.npy --log metrics/{name}.csv --effort metrics/efforts/{name}.json "
            "--start pretrained",
            [f"models/{name}", f"data/snapshots/{name}.npy", f"metrics/{name}.csv", f"metrics/efforts/{name}.json"],
        )
        for name in ("vae", "dcgan", "ddpm", "unet_gan")
    },
    "progression": (
        "stages.progression --snapshots data/snapshots --efforts metrics/efforts --train data/slices/train "
        "--validation data/slices/val "
        "--validation-features data/features/val --finetuning metrics/finetuning.csv --all-models metrics/all.csv "
        "--picture metrics/curve.png --strips metrics/strips",
        ["metrics/finetuning.csv", "metrics/all.csv", "metrics/curve.png", "metrics/strips"],
    ),
    "privacy": (
        "stages.privacy --slices data/slices --samples data/samples --models models --metrics metrics/privacy.json "
        "--markdown metrics/privacy.md",
        ["metrics/privacy.json", "metrics/privacy.md"],
    ),
    "generate": ("commands.generate --n 6 --no-shield --out generated", ["generated"]),
    "pretrain": ("commands.pretrain --start models/base --out models/longer --images heads", ["models/longer"]),
}  # fmt: skip
DISTURBED = [name for name in STAGES if " " not in name]  # the others are these stages once more, for those after them


def contents(folder: Path, outs: list[str]) -> dict[str, tuple[int, str]]:
    """Path -> size and hash, of every file of these outputs."""
    files = [file for out in outs for file in [folder / out, *(folder / out).rglob("*")] if file.is_file()]
    return {
        str(file.relative_to(folder)): (file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in files
    }


def remove(folder: Path, outs: list[str]) -> None:
    """As DVC does before it runs a stage."""
    for out in outs:
        shutil.rmtree(folder / out) if (folder / out).is_dir() else (folder / out).unlink(missing_ok=True)


def litter(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


class Project:
    """A folder with the smallest parameters, and what the undisturbed stages made of them."""

    def __init__(self, folder: Path, forks: Forks):
        self.folder, self.forks = folder, forks
        self.made: dict[str, dict[str, tuple[int, str]]] = {}
        self.seconds: dict[str, float] = {}

    def run(self, name: str, **how) -> tuple[int, str, float]:
        return self.forks.run(*STAGES[name][0].split(), cwd=self.folder, **how)

    def until(self, name: str) -> None:
        """Run the stages up to and with this one, where that has not been done."""
        for stage, (_, outs) in STAGES.items():
            if stage not in self.made:
                status, told, self.seconds[stage] = self.run(stage)
                assert status == 0, told
                self.made[stage] = contents(self.folder, outs)
            if stage == name:
                return


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    copy_parameters(folder)
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    (folder / "pretrained/base").symlink_to(ROOT / "pretrained/base")
    with Forks("stages", folder, folder / "log") as forks:
        assert forks.run("commands.profile", "smoke")[0] == 0
        yaml = YAML()
        tree = yaml.load(folder / "params.yaml")
        tree["finetune"]["epochs"] = tree["progression"]["points"] = tree["progression"]["baseline_points"] = 3
        tree["baselines"]["vae"]["steps"] = 6
        tree["sweep"]["steps"] = [1]
        yaml.dump(tree, folder / "params.yaml")
        tree = yaml.load(folder / "data/cohort.yaml")
        tree["cohort"]["subjects"] = 3
        yaml.dump(tree, folder / "data/cohort.yaml")
        tree = yaml.load(folder / "pretrained/params.yaml")
        tree["pretrain"] |= {"image_size": 64, "checkpoint_steps": 1}
        tree["pretrain"]["autoencoder"] |= {"steps": 3, "batch_size": 2, "crop_px": 64}
        tree["pretrain"]["unet"] |= {"steps": 3, "batch_size": 2, "reuse": 2}
        yaml.dump(tree, folder / "pretrained/params.yaml")
        run = params.read(folder / "pretrained/params.yaml", "pretrain", pretraining.Pretrain)
        heads = pretraining.draw_heads(run, 8, streams.generator(0))
        imageset.write(folder / "heads", imageset.ImageSet(heads.images, heads.manifest, draw.drawn_by(run)))
        (folder / "data/samples").mkdir(parents=True)
        for name in set(comparison.MODELS) - {"latent_diffusion"}:  # whose samples these are, nothing here minds
            (folder / "data/samples" / name).symlink_to("latent_diffusion")
        yield Project(folder, forks)


@pytest.mark.parametrize("name", DISTURBED)
def test_killed_at_random_and_run_again_it_ends_with_the_same_bytes(project, name):
    project.until(name)
    outs = STAGES[name][1]
    remove(project.folder, outs)
    shutil.rmtree(project.folder / ".ckpt", ignore_errors=True)
    moments = random.Random(name)
    killed = 0
    for _ in range(5 * KILLS):
        status, told, seconds = project.run(name, kill=moments.uniform(0.05, 1) * project.seconds[name])
        assert status in (0, -9), told
        remove(project.folder, outs)
        if status == 0:  # the moment came too late: the machine has more time for us now than it had before
            project.seconds[name] = seconds
        killed += status == -9
        if killed == KILLS:
            break
    assert killed == KILLS
    status, told, _ = project.run(name)
    assert status == 0, told
    assert contents(project.folder, outs) == project.made[name]
    assert not litter(project.folder)


def test_the_workers_of_a_killed_stage_end_too(project, tmp_path):
    project.until("simulate")
    shutil.copy(project.folder / "params.yaml", tmp_path)
    line = STAGES["preprocess"][0].replace("data/simulated", str(project.folder / "data/simulated")).split()
    stage = subprocess.Popen(
        [sys.executable, "-m", *line],
        cwd=tmp_path,
        env=project.forks.environment | {"SYNTHMRI_WORKERS": "2"},
        stderr=subprocess.DEVNULL,
    )
    try:
        workers, end = [], time.monotonic() + 60
        while len(workers) < 2 and stage.poll() is None and time.monotonic() < end:
            workers = [child for child in psutil.Process(stage.pid).children(recursive=True) if child.cpu_times().user]
            time.sleep(0.01)
        assert len(workers) >= 2
    finally:
        stage.kill()
        stage.wait()
    assert psutil.wait_procs(workers, timeout=20)[1] == []


# A disk that takes no more, and a folder that may not be written to ---------------------------------------------------


def fails(project, name: str, **limits) -> str:
    """Run a stage under limits: it fails with a text, and leaves its outputs as they were and nothing beside them."""
    project.until(name)
    shutil.rmtree(project.folder / ".ckpt", ignore_errors=True)
    remove(project.folder, ["generated"])  # `generate` refuses to overwrite
    before = contents(project.folder, STAGES[name][1])
    status, told, _ = project.run(name, **limits)
    assert status == 1 and "Traceback" not in told and "error: " in told and "again" in told, told
    assert contents(project.folder, STAGES[name][1]) == before
    assert not litter(project.folder)
    return told


@pytest.mark.parametrize("name", DISTURBED)
def test_a_disk_that_takes_no_more_is_told_and_costs_nothing(project, name):
    """By a limit at half of the largest file that the stage writes, which any user can set anywhere."""
    project.until(name)
    largest = max(size for size, _ in project.made[name].values())
    told = fails(project, name, file_bytes=largest // 2)
    assert "ulimit -f" in told or "checkpoint" in told, told


@pytest.mark.parametrize("name", ["simulate", "train_vae", "generate"])
def test_a_folder_that_may_not_be_written_to_is_told(project, name):
    project.until(name)
    folder = (project.folder / STAGES[name][1][0]).parent
    remove(project.folder, ["generated"])
    folder.chmod(0o500)
    try:
        told = fails(project, name, plain=True)
    finally:
        folder.chmod(0o700)
    assert "permission denied" in told and STAGES[name][1][0] in told, told


def test_a_disk_that_fills_up_during_training_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    loop.save_checkpoint(tmp_path / "a.pt", {"step": 1})

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device.*make room"):
        loop.save_checkpoint(tmp_path / "a.pt", {"step": 2})
    assert loop.load_checkpoint(tmp_path / "a.pt") == {"step": 1} and not litter(tmp_path)


def test_a_damaged_checkpoint_is_told(tmp_path):
    loop.save_checkpoint(tmp_path / "a.pt", {"step": 1})
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:200])
    with pytest.raises(UserError, match="a.pt cannot be read.*remove it"):
        loop.load_checkpoint(tmp_path / "a.pt")


def test_a_checkpoint_belongs_to_its_code(tmp_path, monkeypatch):
    (tmp_path / "stages").mkdir()
    monkeypatch.setattr(_files, "__file__", str(tmp_path / "stages/_files.py"))
    (tmp_path / "stages/x.py").write_text("a = 1\n")
    before = _files.code()
    (tmp_path / "stages/x.pyc").write_text("compiled")
    assert _files.code() == before
    (tmp_path / "stages/x.py").write_text("a = 2\n")
    assert _files.code() != before


@pytest.mark.parametrize("again", ["the same data", "other data"])
def test_a_training_half_removed_is_not_gone_on_with(tmp_path, monkeypatch, again):
    """A kill while the checkpoints of a training that is done are removed left some of its files behind."""
    people, root = tmp_path / "people", tmp_path / "checkpoints"
    people.mkdir()
    (people / "a").write_text("1")

    def kept() -> list[Path]:
        return [file for file in root.rglob("*") if file.is_file() and file.name != _unfinished.LOCK]

    def remove_some(folder: Path) -> None:
        next(file for file in folder.rglob("*") if file.is_file()).unlink()  # of the checkpoints' folder alone
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(shutil, "rmtree", remove_some)
        with _unfinished.checkpoints(root, [people], 1) as folder:
            (folder / "snapshots").mkdir()
            (folder / "snapshots/0.npy").write_text("drawn")
            (folder / "train.pt").write_text("learnt")
    assert kept()
    if again == "other data":
        (people / "a").write_text("2")
    with _unfinished.checkpoints(root, [people], 1) as folder:
        assert kept() == list(folder.iterdir()) == []
    assert not litter(root)


def test_two_processes_do_not_train_by_the_same_checkpoints(tmp_path, monkeypatch):
    """As after a kill of DVC alone, which leaves its stage alive."""
    monkeypatch.setattr(_unfinished, "WAIT_S", 0.3)
    (tmp_path / "a").write_text("1")
    with _unfinished.checkpoints(tmp_path / "checkpoints", [tmp_path / "a"], 1) as folder:
        (folder / "train.pt").write_text("learnt")
        second = _unfinished.checkpoints(tmp_path / "checkpoints", [tmp_path / "a"], 2)
        with pytest.raises(UserError, match=r"another process .*checkpoints .*\.lock.*wait for it, or end it"), second:
            pass
        assert (folder / "train.pt").is_file()
    with _unfinished.checkpoints(tmp_path / "checkpoints", [tmp_path / "a"], 2):
        pass


@pytest.mark.parametrize("change", [{"gate": "refused"}, {"experiment": None}, "told otherwise"])
def test_killed_between_a_run_and_its_version_the_next_sync_mends_both(change):
    """Either is written first; what is looked at, the version, is written last."""
    run, version = {"gate": "passed", "experiment": "a", "mlflow.note.content": "told"}, None

    class Client:
        dying = True

        def get_run(self, run_id):
            return SimpleNamespace(data=SimpleNamespace(tags=dict(run)))

        def set_tag(self, run_id, key, value):
            run[key] = value

        def delete_tag(self, run_id, key):
            del run[key]

        def set_model_version_tag(self, name, number, key, value):
            self.die()
            version.tags[key] = value

        def delete_model_version_tag(self, name, number, key):
            self.die()
            del version.tags[key]

        def update_model_version(self, name, number, text):
            self.die()
            version.description = text

        def die(self):
            if self.dying:
                raise KeyboardInterrupt

    tags = {"gate": "passed", "experiment": "a"}
    version = SimpleNamespace(name="m", version=1, run_id="r", description="told", tags=tags)
    client = Client()
    write = mlflow_store.describe if isinstance(change, str) else mlflow_store.tag
    with pytest.raises(KeyboardInterrupt):
        write(client, version, change)
    client.dying = False
    write(client, version, change)
    if isinstance(change, str):
        assert version.description == run["mlflow.note.content"] == change
    else:
        assert version.tags == {key: run[key] for key in ("gate", "experiment") if key in run}
        assert all(version.tags.get(key) == value for key, value in change.items())


def test_an_error_of_the_program_stays_one(tmp_path):
    """Only what the file system refuses becomes a text: anything else is to be reported with its traceback."""
    with pytest.raises(KeyError), _files.replacing(tmp_path / "a") as part:
        part.write_text("half")
        raise KeyError("bug")
    assert list(tmp_path.iterdir()) == []


def test_a_score_that_is_no_number_is_named(tmp_path):
    with pytest.raises(UserError, match="outer.kid, fd would be no finite number"):
        _files.write_metrics(tmp_path / "m.json", {"outer": {"kid": float("nan"), "n": 3.0}, "fd": float("inf")})
    assert not (tmp_path / "m.json").exists()
