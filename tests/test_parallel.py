"""Two processes end where one does: trainings but for the order of sums, samples to the last bit."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import ranks
import torch
import yaml

from stages import _launch, sample
from synthmri import imageset
from synthmri.errors import UserError
from synthmri.simulation import pretraining
from synthmri.training import distributed

ROOT = Path(__file__).parent.parent
TRAININGS = ["vae", "dcgan", "ddpm", "unet_gan", "full", "lora", "autoencoder", "unet", "adapted"]
DRAWN = ["vae", "dcgan", "ddpm", "unet_gan", "latent_diffusion"]


def environment():
    return os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of checkpoints, and what is made by one process (this) and by each of two of `accelerate launch`."""
    folder = tmp_path_factory.mktemp("parallel")
    pretraining.new_tokenizer().save_pretrained(folder / "tokenizer")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    with open(folder / "log", "w") as log:
        two = subprocess.Popen(
            [*command, "tests/ranks.py", folder / "two"], cwd=ROOT, env=environment(), stdout=log, stderr=log
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            one = ranks.everything(folder / "one")
            torch.set_num_threads(threads)
        assert two.wait(timeout=900) == 0, (folder / "log").read_text()
    return folder, one, *[torch.load(folder / f"two/{rank}.pt") for rank in range(2)]


def gradients(checkpoint: Path) -> torch.Tensor:
    """The running means of all gradients that Adam keeps."""

    def found(tree, key=""):
        if isinstance(tree, dict):
            return [tensor for name, value in tree.items() for tensor in found(value, name)]
        return [tree.flatten()] if key == "exp_avg" else []

    return torch.cat(found(torch.load(checkpoint)))


@pytest.mark.parametrize("name", TRAININGS)
def test_gradients_and_losses_are_those_of_one_process(made, name):
    """To 1e-4 of the gradient's norm and 1e-5 of the loss: what docs/parallel.md states."""
    folder, one, two, _ = made
    expected, got = gradients(folder / f"one/{name}.pt"), gradients(folder / f"two/{name}.pt")
    assert (got - expected).norm() < 1e-4 * expected.norm()
    torch.testing.assert_close(two[f"{name} losses"], one[f"{name} losses"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ranks.SMALL)
def test_the_first_gradient_is_that_of_one_process_to_rounding(made, name):
    """Before Adam, which divides by a gradient's size, has carried rounding on."""
    folder, *_ = made
    expected, got = (gradients(folder / f"{count}/{name}-first.pt") for count in ("one", "two"))
    assert expected.norm() > 0 and (got - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("name", TRAININGS)
def test_processes_end_with_the_same_weights_to_the_bit(made, name):
    _, one, first, second = made
    assert torch.equal(first[name], second[name])
    # Adam divides a gradient by its size: where that is next to nothing, rounding can turn a step of the learning rate.
    assert (first[name] - one[name]).abs().max() < 1e-3


@pytest.mark.parametrize("name", DRAWN)
def test_images_are_those_of_one_process_to_the_bit(made, name):
    _, one, first, second = made
    np.testing.assert_array_equal(first[f"{name} drawn"].numpy(), one[f"{name} drawn"])
    np.testing.assert_array_equal(second[f"{name} drawn"].numpy(), one[f"{name} drawn"])


@pytest.mark.parametrize("whole, count", [(16, 1), (5, 2), (7, 3), (1, 2), (2, 4)])
def test_shares_are_the_batch(monkeypatch, whole, count):
    monkeypatch.setattr(distributed, "count", lambda: count)
    rows, weights = [], []
    for rank in range(count):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        share = distributed.share(whole)
        assert len(range(whole)[share.rows]) > 0
        rows += list(range(whole)[share.rows]) if share.weight else []
        weights.append(share.weight)
    assert rows == list(range(whole)) and sum(weights) == pytest.approx(1)


def test_fewer_images_than_processes_and_engines_that_split_a_model_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 4)
    with pytest.raises(UserError, match="baselines.vae.batch_size = 2 is less than 4 processes"):
        distributed.check(2, "baselines.vae.batch_size")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="FSDP, which splits a model"):
        distributed.join("cpu", 1)


# stages --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the smallest parameters, two processes, and slices to train on."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    tree["runtime"]["threads"], tree["parallel"]["processes"] = 1, 2
    tree["baselines"]["vae"] |= {"width": 4, "latent_dim": 4, "steps": 2, "batch_size": 3}
    tree["progression"] |= {"n": 3, "baseline_points": 1}
    tree["train"]["pretrained"] = False
    tree["sample"] |= {"n": 5, "batch_size": 2}
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    images = np.random.default_rng(0).integers(0, 255, (4, 64, 64), dtype=np.uint8)
    manifest = pd.DataFrame({"subject": list("abcd"), "plane": "axial"})
    imageset.write(Path("slices"), imageset.ImageSet(images, manifest, {}))
    return tree


@pytest.mark.parametrize("cores, warned", [(1, True), (2, True), (4, False)])
def test_more_threads_than_cores_are_warned_of(project, monkeypatch, capsys, cores, warned):
    """Two processes of two threads each."""
    project["runtime"]["threads"] = 2
    Path("params.yaml").write_text(yaml.safe_dump(project), encoding="utf-8")
    monkeypatch.setattr(_launch.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(_launch, "_run", lambda processes: 0)
    with pytest.raises(SystemExit):
        _launch.start()
    said = capsys.readouterr().err
    assert ("set runtime.threads to 1" in said) == warned == ("slow each other" in said)


def run(module: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


@pytest.mark.slow
def test_stages_start_their_processes_and_write_once(project):
    """Trained by two processes; then the same images from two as from one."""
    done = run(
        "stages.train", "--model", "vae", "--images", "slices", "--out", "vae", "--snapshots", "s.npy",
        "--log", "l.csv", "--effort", "e.json", "--start", "nowhere",
    )  # fmt: skip
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    assert np.load("s.npy").shape == (2, 3, 64, 64) and len(Path("l.csv").read_text().splitlines()) == 3
    options = ["--generator", "vae", "--model", "vae", "--images", "slices"]
    done = run("stages.sample", *options, "--out", "two/vae", "--sheet", "two.png")
    assert done.returncode == 0, done.stderr
    project["parallel"]["processes"] = 1
    Path("params.yaml").write_text(yaml.safe_dump(project), encoding="utf-8")
    sample.main("vae", Path("vae"), Path("slices"), Path("one/vae"), Path("one.png"))
    one, two = ({f.relative_to(name): f.read_bytes() for f in Path(name).rglob("*.*")} for name in ("one", "two"))
    assert one == two and len(one) == 5 + 3
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()


def test_an_error_of_one_process_ends_all_with_one_message(project):
    done = run("failing")
    assert (done.returncode, done.stderr) == (1, "error: the second process has failed\n")


def test_processes_end_with_the_stage_that_started_them(project):
    stage = subprocess.Popen(
        [sys.executable, "-m", "failing", "--forever"], env=environment(), stdout=subprocess.PIPE, text=True
    )
    pids = [int(stage.stdout.readline()) for _ in range(2)]
    stage.kill()
    stage.wait()
    end = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(psutil.pid_exists(pid) for pid in pids)
